"""What a call of n rows takes, learned from the calls as they come, in well under a microsecond to ask."""

from __future__ import annotations

import math

_FORGET = 0.98  # weight that is left of a call after the next one: about the last 50 calls count
_OUTLIER = 5.0  # a call is believed up to so many times what was expected, so that one stuck call is not the rule

_NEW = 0.005  # weight of the newest call in the contention


class CallTimes:
    """Fits `(fixed_ms + per_row_ms * n_rows) * (1 + contention * n_others)` to the calls of one extension, where
    `n_others` were in flight when a call began. Older calls are forgotten exponentially.

    Least squares, each call weighted by the inverse of what it took, so that slow calls do not decide about fast
    ones; the contention by the regression of what is left on `n_others`. All parts are at least 0. As long as all
    calls had the same size the slope stays what it was at first. `fixed_ms` and `per_row_ms` are what is known before
    the first call; 0 and 0 is to know nothing.
    """

    __slots__ = (
        "_mean_others",
        "_mean_ratio",
        "_ratio_others",
        "_square_others",
        "_t0",
        "_t1",
        "_w0",
        "_w1",
        "_w2",
        "contention",
        "fixed_ms",
        "n_calls",
        "per_row_ms",
        "spread",
    )

    def __init__(self, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> None:
        self.fixed_ms = fixed_ms
        self.per_row_ms = per_row_ms
        self.contention = 0.0
        self.spread = 0.1  # mean absolute error as a share of what was expected
        self._mean_others, self._mean_ratio, self._ratio_others, self._square_others = 0.0, 1.0, 0.0, 0.0
        self.n_calls = 0
        self._w0 = self._w1 = self._w2 = self._t0 = self._t1 = 0.0

    def expected_ms(self, n_rows: int, n_others: int = 0) -> float:
        """What a call of `n_rows` rows beside `n_others` other calls should take; 0 while nothing is known."""
        return (self.fixed_ms + self.per_row_ms * n_rows) * (1.0 + self.contention * n_others)

    def rows_within(self, budget_ms: float, n_others: int = 0) -> float:
        """How many rows a call can have to end within `budget_ms`; 0 where none can, inf where any number can."""
        left_ms = budget_ms / (1.0 + self.contention * n_others) - self.fixed_ms
        if left_ms <= 0.0:
            return 0.0
        return left_ms / self.per_row_ms if self.per_row_ms > 0.0 else math.inf

    def parallel(self, n_slots: int) -> float:
        """How many calls' worth of computing so many slots do at a time; less than `n_slots` if they share cores."""
        return n_slots / (1.0 + self.contention * (n_slots - 1))

    def enough_rows(self, rate_per_ms: float, parallel: float) -> float:
        """The smallest batch that keeps up with so many rows per ms; inf when none does."""
        left = parallel - rate_per_ms * self.per_row_ms
        return rate_per_ms * self.fixed_ms / left if left > 0.0 else math.inf

    def observe(self, n_rows: int, took_ms: float, n_others: int = 0) -> None:
        """One call that ended. Calls that cannot have been (no rows, negative or unknown times) are ignored."""
        if n_rows < 1 or n_others < 0 or not 0.0 < took_ms < 1e9:
            return
        self.n_calls += 1
        alone_ms = self.fixed_ms + self.per_row_ms * n_rows
        if alone_ms > 0.0:
            expected_ms = alone_ms * (1.0 + self.contention * n_others)
            if self.n_calls > 8:
                took_ms = min(took_ms, _OUTLIER * expected_ms)
            self.spread += 0.05 * (min(abs(took_ms / expected_ms - 1.0), 2.0) - self.spread)
            self._learn_contention(took_ms / alone_ms, n_others)
        self._learn_line(n_rows, took_ms / (1.0 + self.contention * n_others))

    def _learn_line(self, n_rows: int, alone_ms: float) -> None:
        weight = 1.0 / max(alone_ms, 0.05)
        self._w0 = w0 = _FORGET * self._w0 + weight
        self._w1 = w1 = _FORGET * self._w1 + weight * n_rows
        self._w2 = w2 = _FORGET * self._w2 + weight * n_rows * n_rows
        self._t0 = t0 = _FORGET * self._t0 + weight * alone_ms
        self._t1 = t1 = _FORGET * self._t1 + weight * alone_ms * n_rows
        varied = w0 * w2 - w1 * w1
        slope = (w0 * t1 - w1 * t0) / varied if varied > 1e-3 * w0 * w2 else self.per_row_ms
        self.per_row_ms = slope = min(max(slope, 0.0), t1 / w2)
        self.fixed_ms = max(0.0, (t0 - slope * w1) / w0)

    def _learn_contention(self, ratio: float, n_others: int) -> None:
        # What calls take from each other changes seldom, and chance tells less of it than of the line: long memory,
        # and a stuck call counts as twice the usual.
        ratio = min(ratio, 2.0 * (1.0 + self.contention * n_others))
        new = max(_NEW, 1.0 / self.n_calls)
        from_others, from_ratio = n_others - self._mean_others, ratio - self._mean_ratio
        self._mean_others += new * from_others
        self._mean_ratio += new * from_ratio
        self._ratio_others = (1.0 - new) * (self._ratio_others + new * from_others * from_ratio)
        self._square_others = (1.0 - new) * (self._square_others + new * from_others * from_others)
        if self._square_others > 0.01 and self.n_calls > 8:
            slope = self._ratio_others / self._square_others
            ratio_alone = self._mean_ratio - slope * self._mean_others
            self.contention = min(max(slope / ratio_alone, 0.0), 2.0) if ratio_alone > 0.1 else 2.0
