"""Latencies in a histogram of logarithmic bins: mergeable, and off by at most 1 % of the value.

Source: Masson, Rim and Lee 2019, DDSketch: A Fast and Fully-Mergeable Quantile Sketch, VLDB 12.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

from lineage.quality.intervals import LEVEL, Estimate, quantile_ranks

RELATIVE_ERROR = 0.01
_RATIO = (1 + RELATIVE_ERROR) / (1 - RELATIVE_ERROR)  # bin i holds what is above _RATIO ** (i - 1), up to _RATIO ** i
_LOG_RATIO = math.log(_RATIO)
_LEAST_MS, _MOST_MS = 1e-3, 1e8  # beyond them latencies count as these: at most 1,267 bins


class LatencySketch:
    """Counts of latencies by bin. What is at most 1 us counts as 1 us."""

    __slots__ = ("bins", "n")

    def __init__(self, bins: Mapping[int, int] | None = None) -> None:
        self.bins: dict[int, int] = dict(bins or {})
        self.n = sum(self.bins.values())

    def add(self, latency_ms: npt.NDArray[np.float64]) -> None:
        """Counts finite latencies, shape (n,)."""
        if not len(latency_ms):
            return
        bins = np.ceil(np.log(np.clip(latency_ms, _LEAST_MS, _MOST_MS)) / _LOG_RATIO).astype(np.int64)
        least = int(bins.min())
        counts = np.bincount(bins - least)
        there = np.flatnonzero(counts)
        self._count(zip((there + least).tolist(), counts[there].tolist(), strict=True))

    def merge(self, other: LatencySketch) -> None:
        self._count(other.bins.items())

    def _count(self, counts: Iterable[tuple[int, int]]) -> None:
        for bin_, count in counts:
            self.bins[bin_] = self.bins.get(bin_, 0) + count
            self.n += count

    def quantiles(self, at: tuple[float, ...]) -> tuple[Estimate | None, ...]:
        """The quantiles at these levels, in ms, with limits by rank, rounded outwards to the edges of their bins."""
        if not self.n:
            return (None,) * len(at)
        numbers = sorted(self.bins)
        ends = np.cumsum([self.bins[number] for number in numbers])

        def bin_of(rank: int) -> int:
            return numbers[int(np.searchsorted(ends, rank))]

        found = []
        for q in at:
            value = 2 * _RATIO ** bin_of(max(1, math.ceil(q * self.n))) / (_RATIO + 1)
            low, high = quantile_ranks(self.n, q, LEVEL)
            found.append(
                Estimate(
                    value,
                    _RATIO ** (bin_of(low) - 1) if low else 0.0,
                    _RATIO ** bin_of(high) if high <= self.n else math.inf,
                    self.n,
                )
            )
        return tuple(found)

    def n_above(self, latency_ms: float) -> int:
        """How many were surely above: those in higher bins than its own."""
        limit = math.ceil(math.log(min(max(latency_ms, _LEAST_MS), _MOST_MS)) / _LOG_RATIO)
        return sum(count for bin_, count in self.bins.items() if bin_ > limit)
