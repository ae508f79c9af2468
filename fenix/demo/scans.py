"""Finding the digit on a scan: the one step that makes every reader of digits a reader of scans."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from deployments.extension import Extension
from fenix.demo.data import GREYS, SCAN_SIDE, scanned
from fenix.demo.digits import IMAGE
from planner.features import Array, Feature

SCAN = Feature("scan/digit", "UINT8", (SCAN_SIDE, SCAN_SIDE))

_MARGIN = 0.2  # of the darkest ink: what is lighter is no part of the digit when its bounds are looked for
_STAIN = 0.1  # of the darkest ink: what is lighter is paper


class LocateDigit(Extension):
    """Finds the handwritten digit on a scanned sheet of noisy paper and brings it to the usual 8 x 8 grey values.

    A median filter takes away specks and noise; the ink is what is darker than the sheet; the square around it is
    averaged down. Most of a reading's cost is spent here, whoever reads afterwards.
    """

    inputs = {"scan": SCAN}
    outputs = {"image": IMAGE}

    def infer(self, scan: Array) -> Array:
        smooth = ndimage.median_filter(scan, size=(1, 3, 3)).astype(np.float32)
        paper = np.median(smooth.reshape(len(scan), -1), axis=1)[:, None, None]
        ink = (paper - smooth).clip(0.0)
        ink /= np.maximum(ink.max(axis=(1, 2), keepdims=True), 1.0)
        down, across = _bounds((ink > _MARGIN).any(axis=2)), _bounds((ink > _MARGIN).any(axis=1))
        side = np.maximum(down[1] - down[0], across[1] - across[0])
        ink[ink < _STAIN] = 0.0
        small = _shares(down.mean(axis=0), side) @ ink @ _shares(across.mean(axis=0), side).transpose(0, 2, 1)
        small /= np.maximum(small.max(axis=(1, 2), keepdims=True), 1e-6)
        image: Array = np.rint(small * GREYS).astype(np.uint8)
        return image

    def samples(self, n_rows: int, rng: np.random.Generator) -> dict[str, Array]:
        """Sheets with something on them: a median filter takes longer on pure noise."""
        return {"scan": scanned(rng.integers(0, GREYS + 1, (n_rows, 8, 8)), rng)}


def _bounds(marked: Array) -> Array:
    """Where the marks of each row (n, length) begin and end: (2, n); the whole length where there are none."""
    return np.stack([marked.argmax(axis=1), marked.shape[1] - marked[:, ::-1].argmax(axis=1)]).astype(np.float32)


def _shares(middle: Array, side: Array) -> Array:
    """Weights (n, 8, SCAN_SIDE) that average a stretch of pixels around `middle`, `side` long, into eight parts."""
    edges = middle[:, None] + side[:, None] * np.linspace(-0.5, 0.5, 9, dtype=np.float32)
    starts = np.arange(SCAN_SIDE, dtype=np.float32)
    covered = np.minimum(edges[:, 1:, None], starts + 1.0) - np.maximum(edges[:, :-1, None], starts)
    shares: Array = covered.clip(0.0) * (8.0 / side)[:, None, None]
    return shares
