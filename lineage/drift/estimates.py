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

    edges     float64 (n_blocks - 1,): confidences between blocks that are equally often right
    accuracy  float64 (n_blocks,): how often, rising with confidence
    n_block   int64 (n_blocks,): the rows behind it
    """

    edges: Array
    accuracy: Array
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
        isotonic regression: Zadrozny and Elkan 2002, KDD."""
        shares = np.diff(np.concatenate([[0.0], live.upto(self.edges), [1.0]]))
        value = float(shares @ self.accuracy)
        right = np.clip(self.accuracy, 0.5 / (self.n_block + 1), 1 - 0.5 / (self.n_block + 1))
        spread = right * (1 - right)
        of_calibration = float((shares**2 * spread / self.n_block).sum())
        of_rows = float((shares * spread).sum()) / n_rows
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
            {"edges": self.edges, "accuracy": self.accuracy, "n_block": self.n_block},
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> AccuracyModel:
        """Raises ValueError for bytes that `to_bytes` did not make."""
        plain, arrays = unpacked(_MAGIC, _VERSION, data)
        try:
            overall, n, threshold, share = plain["plain"]
            edges, accuracy, n_block = (arrays[name] for name in ("edges", "accuracy", "n_block"))
            return cls(edges, accuracy, n_block, overall, n, threshold, share)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the accuracy model cannot be read: {error}") from None


def learn_accuracy(confidence: Array, right: Array) -> AccuracyModel:
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
    values, first, n_value = np.unique(sure, return_index=True, return_counts=True)
    rate = np.add.reduceat(hits.astype(np.float64), first) / n_value
    fitted: Any = isotonic_regression(rate, weights=n_value)
    begins = fitted.blocks[:-1]
    n_block = np.add.reduceat(n_value, begins)
    # Drawn in towards the overall rate, as a block at either end of the scale is pure by chance.
    accuracy = (fitted.x[begins] * n_block + hits.mean()) / (n_block + 1.0)
    edges = (values[begins[1:]] + values[begins[1:] - 1]) / 2
    overall = float(hits.mean())
    n_wrong = n - int(hits.sum())
    threshold = float(sure[n_wrong - 1]) if n_wrong else float(np.nextafter(sure[0], -np.inf))
    ties = float((sure == threshold).mean())
    share = (overall - float((sure > threshold).mean())) / ties if ties else 0.0
    return AccuracyModel(edges, accuracy, n_block.astype(np.int64), overall, n, threshold, share)
