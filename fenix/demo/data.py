"""The demo's data, which come inside scikit-learn: handwritten digits, wines and breast tumours, split once.

How the parts are made: 28 % of the rows are drawn at random, with the classes in their proportions, and held out; of
the rest as many again are drawn for validation; the others are for training. The draw depends on `SEED` and the labels
alone, so a digit and its scan are always in the same part. Models are fitted on the train part; estimates, thresholds
and every choice of a method or a number rest on the validation part; the held-out part is only reported on. The seed
is not chosen either: the claims of the demo are tested on others, too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.features import Array

SEED = 0
_SHARE = 0.28  # of the rows, for the validation part and again for the held-out part

GREYS = 16  # of a digit: 0 is paper, 16 is ink
SCAN_SIDE = 32
_DIGIT_SIDE = (20.0, 28.0)  # of a digit on a scan: the least and the greatest
_PAPER, _INK, _NOISE, _SPECKS = (200.0, 240.0), 170.0, 10.0, 0.005


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


def scans(seed: int = SEED) -> Split:
    """The same digits, in the same parts, as they come out of a scanner: `x` uint8 (n, 32, 32), `y` 0 to 9.

    A scan depends on its digit alone, not on the seed of the split.
    """
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    return _split(scanned(pixels.reshape(-1, 8, 8), np.random.default_rng(0)), labels, seed)


def scanned(images: Array, rng: np.random.Generator) -> Array:
    """Digits (n, 8, 8) of grey values 0 to 16 on sheets of light, noisy, speckled paper: uint8 (n, 32, 32), 255 white.

    Each is enlarged by a factor of its own and lies where it happens to.
    """
    n_rows = len(images)
    side = rng.uniform(*_DIGIT_SIDE, n_rows)
    corner = rng.uniform(1.0, SCAN_SIDE - 1.0 - side, (2, n_rows))
    places = np.arange(SCAN_SIDE) + 0.5
    row, column = np.floor((places - corner[..., None]) * (8 / side[:, None])).astype(int).clip(-1, 8)
    bordered = np.pad(images / GREYS, ((0, 0), (1, 1), (1, 1)))
    ink = bordered[np.arange(n_rows)[:, None, None], row[:, :, None] + 1, column[:, None, :] + 1]
    sheets = rng.uniform(*_PAPER, (n_rows, 1, 1)) - _INK * ink + rng.normal(0.0, _NOISE, ink.shape)
    specks = rng.random(ink.shape) < _SPECKS
    drawn: Array = np.where(specks, rng.uniform(40.0, 120.0, ink.shape), sheets).clip(0, 255).round().astype(np.uint8)
    return drawn


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
