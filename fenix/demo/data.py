"""The demo's data, which come inside scikit-learn: handwritten digits, wines and breast tumours, split once.

Models are fitted on the train part, the planner's estimates come from the validation part, and every figure the demo
reports comes from the held-out part, which nothing before that has seen.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.features import Array

SEED = 2
_SHARE = 0.28  # of the rows, for the validation part and again for the held-out part


@dataclass(frozen=True, slots=True)
class Part:
    """Rows and their true labels: `x` (n_rows, *row shape), `y` (n_rows,) int64."""

    x: Array
    y: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, slots=True)
class Split:
    """One data set in three disjoint parts, each with the classes in the same proportions."""

    train: Part
    validation: Part
    held_out: Part


def digits(seed: int = SEED) -> Split:
    """1,797 scanned digits: `x` uint8 (n, 8, 8) with values 0 to 16, `y` 0 to 9.

    Source: Alpaydin and Kaynak 1998, Optical Recognition of Handwritten Digits (UCI).
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _split(pixels.reshape(-1, 8, 8).astype(np.uint8), labels, seed)


def wines(seed: int = SEED) -> Split:
    """178 wines from three cultivars: `x` float64 (n, 13) from a chemical analysis, `y` 0 to 2.

    Source: Forina et al. 1988, PARVUS (UCI).
    """
    from sklearn.datasets import load_wine

    table, labels = load_wine(return_X_y=True)
    return _split(table, labels, seed)


def tumours(seed: int = SEED) -> Split:
    """569 breast tumours: `x` float64 (n, 30) measured on cell nuclei, `y` 0 for malignant, 1 for benign.

    Source: Street, Wolberg and Mangasarian 1993, Breast Cancer Wisconsin Diagnostic (UCI).
    """
    from sklearn.datasets import load_breast_cancer

    table, labels = load_breast_cancer(return_X_y=True)
    return _split(table, labels, seed)


def write_rows(path: Path, rows: Mapping[str, Array]) -> Path:
    """Writes arrays by port name as `.npz`, the form in which a goal's validation set is deployed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = dict(rows)
    np.savez_compressed(path, **arrays)
    return path


def _split(x: Array, y: npt.NDArray[Any], seed: int) -> Split:
    from sklearn.model_selection import train_test_split

    n_rows = round(len(y) * _SHARE)
    rest, held_out = train_test_split(np.arange(len(y)), test_size=n_rows, stratify=y, random_state=seed)
    train, validation = train_test_split(rest, test_size=n_rows, stratify=y[rest], random_state=seed)
    labels = y.astype(np.int64)
    return Split(*(Part(x[rows], labels[rows]) for rows in (train, validation, held_out)))
