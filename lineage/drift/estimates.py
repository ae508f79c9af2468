"""How accurate a model still is, without labels: from its confidences, and what they were worth on labelled rows.

Both methods hold where inputs drift and what a confidence is worth does not; where the meaning of the inputs changes
(concept drift) neither can see it, only truth can (`error_watch.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import isotonic_regression
from scipy.special import ndtri

from lineage.drift.columns import Array
from lineage.drift.packing import packed, unpacked
from lineage.drift.sketches import Points

LEVEL = 0.95
_MAGIC, _VERSION = b"FXDA", 1


@dataclass(frozen=True, slots=True)
class AccuracyEstimate:
    """An accuracy with the interval that holds the true one in `LEVEL` of all cases, and what is lost against the
    labelled rows, with its interval. `method` is "cbpe" or "atc"."""

    method: str
    value: float
    low: float
    high: float
    lost: float
    lost_low: float
    lost_high: float


@dataclass(frozen=True, slots=True, eq=False)
class AccuracyModel:
    """What confidences were worth on labelled rows that the model was not trained on.

    edges     float64 (n_cells - 1,): inner edges of confidence, a cell holding what is above its lower and up to its
              upper one
    accuracy  float64 (n_cells,): of the rows in a cell, rising with confidence
    block     int64 (n_cells,): cells that share their accuracy
    n_block   int64 (n_blocks,): the rows behind it
    """

    edges: Array
    accuracy: Array
    block: Array
    n_block: Array
    overall: float
    n: int
    threshold: float  # of ATC; of the rows exactly there a share counts as right
    share_at_threshold: float

    def estimates(self, live: Points, n_rows: int) -> tuple[AccuracyEstimate, ...]:
        """Of `n_rows` rows whose confidences are these; none where there are none."""
        if not len(live.values) or n_rows <= 0:
            return ()
        return self.cbpe(live, n_rows), self.atc(live, n_rows)

    def cbpe(self, live: Points, n_rows: int) -> AccuracyEstimate:
        """The mean of calibrated confidences. Source: NannyML, Confidence-based Performance Estimation; Kivimaeki et
        al. 2025, Confidence-based Estimators for Predictive Performance in Model Monitoring, JAIR 82. Calibrated by
        isotonic regression over cells: Zadrozny and Elkan 2002, KDD."""
        shares = np.diff(np.concatenate([[0.0], live.upto(self.edges), [1.0]]))
        value = float(shares @ self.accuracy)
        of_blocks = np.bincount(self.block, shares, len(self.n_block))
        right = np.bincount(self.block, self.accuracy, len(self.n_block)) / np.bincount(self.block)
        right = np.clip(right, 0.5 / (self.n_block + 1), 1 - 0.5 / (self.n_block + 1))
        of_calibration = float((of_blocks**2 * right * (1 - right) / np.maximum(self.n_block, 1)).sum())
        of_rows = float((of_blocks * right * (1 - right)).sum()) / n_rows
        return self._estimate("cbpe", value, of_calibration + of_rows, live.rank_error)

    def atc(self, live: Points, n_rows: int) -> AccuracyEstimate:
        """The share of rows above the confidence above which, on labelled rows, as many were as were right. Source:
        Garg, Balakrishnan, Lipton, Neyshabur and Sedghi 2022, Leveraging Unlabeled Data to Predict Out-of-Distribution
        Performance, ICLR."""
        upto, below = live.upto(np.array([self.threshold, np.nextafter(self.threshold, -np.inf)]))
        value = float(1.0 - upto + self.share_at_threshold * (upto - below))
        smoothed = (value * n_rows + 1.0) / (n_rows + 2.0)
        variance = smoothed * (1.0 - smoothed) / n_rows + self.overall * (1.0 - self.overall) / self.n
        return self._estimate("atc", value, variance, live.rank_error)

    def _estimate(self, method: str, value: float, variance: float, rank_error: float) -> AccuracyEstimate:
        z = float(ndtri(0.5 + LEVEL / 2))
        half = z * math.sqrt(variance) + rank_error
        low, high = max(0.0, value - half), min(1.0, value + half)
        lost_half = z * math.sqrt(variance + self.overall * (1.0 - self.overall) / self.n) + rank_error
        lost = self.overall - value
        return AccuracyEstimate(method, value, low, high, lost, lost - lost_half, lost + lost_half)

    def to_bytes(self) -> bytes:
        return packed(
            _MAGIC,
            _VERSION,
            {"plain": [self.overall, self.n, self.threshold, self.share_at_threshold]},
            {"edges": self.edges, "accuracy": self.accuracy, "block": self.block, "n_block": self.n_block},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> AccuracyModel:
        """Raises ValueError for bytes that `to_bytes` did not make."""
        plain, arrays = unpacked(_MAGIC, _VERSION, data)
        try:
            overall, n, threshold, share = plain["plain"]
            edges, accuracy, block, n_block = (arrays[name] for name in ("edges", "accuracy", "block", "n_block"))
            return cls(edges, accuracy, block, n_block, overall, n, threshold, share)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the accuracy model cannot be read: {error}") from None


def learn_accuracy(confidence: Array, right: Array, n_cells: int = 40) -> AccuracyModel:
    """From labelled rows the model was not trained on: `confidence` float (n,), `right` boolean (n,). Rows without a
    confidence are left out. Raises ValueError where none is left."""
    there = np.isfinite(np.asarray(confidence, np.float64))
    sure = np.asarray(confidence, np.float32)[there].astype(np.float64)  # as sketches have it
    hits = np.asarray(right, bool)[there]
    n = len(sure)
    if not n:
        raise ValueError("an estimate of accuracy needs rows with a confidence and the truth")
    order = np.argsort(sure, kind="stable")
    sure, hits = sure[order], hits[order]
    at = np.ceil(n * np.arange(1, n_cells) / n_cells).astype(np.intp) - 1
    edges = np.unique(sure[at[at >= 0]])
    edges = edges[edges < sure[-1]]
    cell = edges.searchsorted(sure, "left")
    n_cell = np.bincount(cell, minlength=len(edges) + 1)
    n_hits = np.bincount(cell, hits, len(edges) + 1)
    fitted: Any = isotonic_regression(n_hits / np.maximum(n_cell, 1), weights=np.maximum(n_cell, 1e-9))
    block = np.concatenate([[0], np.cumsum(np.abs(np.diff(fitted.x)) > 1e-12)]).astype(np.int64)
    n_block = np.bincount(block, n_cell).astype(np.int64)
    overall = float(hits.mean())
    n_wrong = n - int(hits.sum())
    threshold = float(sure[n_wrong - 1]) if n_wrong else float(np.nextafter(sure[0], -np.inf))
    ties = float((sure == threshold).mean())
    share = (overall - float((sure > threshold).mean())) / ties if ties else 0.0
    return AccuracyModel(edges, np.asarray(fitted.x, np.float64), block, n_block, overall, n, threshold, share)
