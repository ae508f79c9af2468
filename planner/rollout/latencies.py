"""Latencies as histograms that add up, in bins of equal ratio."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from planner.errors import BadRequest

PER_DOUBLE = 31.062837195053903  # bins in a factor of 2: ten in one of 1.25, so a bin is 2.3 % wide
_PER_E = PER_DOUBLE / math.log(2.0)
_KEPT = 20_000


def bins_in(ratio: float) -> int:
    """The ratio of two latencies as a number of bins, rounded."""
    return round(_PER_E * math.log(ratio))


@dataclass(frozen=True, slots=True)
class Latencies:
    """How many calls took how long: `bins[i]` of them from `edge_ms(i)` to `edge_ms(i + 1)`."""

    bins: Mapping[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.bins and min(self.bins.values()) < 0:
            raise BadRequest("A histogram of latencies counts calls, and no count is below 0.")

    @classmethod
    def of(cls, took_ms: Iterable[float]) -> Latencies:
        """The histogram of some times in milliseconds, finite and at least 0 (what is below 1 us counts as that).

        Raises BadRequest.
        """
        took = np.asarray(took_ms if isinstance(took_ms, np.ndarray) else list(took_ms), dtype=float)
        if not np.all(np.isfinite(took) & (took >= 0.0)):
            raise BadRequest("Latencies are finite and at least 0 ms.")
        if not took.size:
            return cls()
        numbers = np.floor(_PER_E * np.log(np.maximum(took, 1e-3))).astype(int)
        least = int(numbers.min())
        counts = np.bincount(numbers - least)
        return cls({least + i: n for i, n in enumerate(counts.tolist()) if n})

    @property
    def n(self) -> int:
        return sum(self.bins.values())

    def n_from(self, number: int) -> int:
        """How many took at least `edge_ms(number)`."""
        return sum([n for i, n in self.bins.items() if i >= number])

    def plus(self, other: Latencies) -> Latencies:
        if not other.bins:
            return self
        if not self.bins:
            return other
        bins = dict(self.bins)
        for number, n in other.bins.items():
            bins[number] = bins.get(number, 0) + n
        return Latencies(bins)

    def faded(self) -> Latencies:
        """Halved where it is large, so that what is new counts."""
        if self.n <= _KEPT:
            return self
        return Latencies({number: n // 2 for number, n in self.bins.items() if n > 1})

    def quantile_bin(self, share: float) -> int:
        """The bin in which the quantile lies; there must be calls."""
        upto, wanted = 0, share * self.n
        for number in sorted(self.bins):
            upto += self.bins[number]
            if upto >= wanted:
                return number
        raise ValueError("there is no quantile of nothing")

    def quantile_ms(self, share: float) -> float:
        """A quantile, in the middle of its bin; 0 where there is nothing."""
        return edge_ms(self.quantile_bin(share) + 0.5) if self.n else 0.0


def edge_ms(number: float) -> float:
    """Where a bin begins."""
    return math.exp(number / _PER_E)
