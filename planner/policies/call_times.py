"""What a call of n rows takes, learned from the calls as they come, in well under a microsecond to ask."""

from __future__ import annotations

_FORGET = 0.98  # weight that is left of a call after the next one: about the last 50 calls count
_OUTLIER = 5.0  # a call is believed up to so many times what was expected, so that one stuck call is not the rule


class CallTimes:
    """Fits `fixed_ms + per_row_ms * n_rows` to the calls of one extension, older ones forgotten exponentially.

    Least squares, each call weighted by the inverse of what it took, so that slow calls do not decide about fast
    ones. Both parts are at least 0. As long as all calls had the same size the slope stays what it was at first.
    `fixed_ms` and `per_row_ms` are what is known before the first call; 0 and 0 is to know nothing.
    """

    __slots__ = ("_t0", "_t1", "_w0", "_w1", "_w2", "fixed_ms", "n_calls", "per_row_ms", "spread")

    def __init__(self, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> None:
        self.fixed_ms = fixed_ms
        self.per_row_ms = per_row_ms
        self.spread = 0.1  # mean absolute error as a share of what was expected
        self.n_calls = 0
        self._w0 = self._w1 = self._w2 = self._t0 = self._t1 = 0.0

    def expected_ms(self, n_rows: int) -> float:
        """What a call of `n_rows` rows should take; 0 while nothing is known."""
        return self.fixed_ms + self.per_row_ms * n_rows

    def rows_within(self, budget_ms: float) -> float:
        """How many rows a call can have to end within `budget_ms`; may be 0 or less, or inf."""
        left_ms = budget_ms - self.fixed_ms
        if left_ms <= 0.0:
            return 0.0
        return left_ms / self.per_row_ms if self.per_row_ms > 0.0 else float("inf")

    def observe(self, n_rows: int, took_ms: float) -> None:
        """One call that ended. Calls that cannot have been (no rows, negative or unknown times) are ignored."""
        if n_rows < 1 or not 0.0 < took_ms < 1e9:
            return
        expected_ms = self.fixed_ms + self.per_row_ms * n_rows
        if expected_ms > 0.0:
            if self.n_calls >= 8:
                took_ms = min(took_ms, _OUTLIER * expected_ms)
            self.spread += 0.05 * (min(abs(took_ms / expected_ms - 1.0), 2.0) - self.spread)
        self.n_calls += 1
        weight = 1.0 / max(took_ms, 0.05)
        self._w0 = w0 = _FORGET * self._w0 + weight
        self._w1 = w1 = _FORGET * self._w1 + weight * n_rows
        self._w2 = w2 = _FORGET * self._w2 + weight * n_rows * n_rows
        self._t0 = t0 = _FORGET * self._t0 + weight * took_ms
        self._t1 = t1 = _FORGET * self._t1 + weight * took_ms * n_rows
        varied = w0 * w2 - w1 * w1
        if varied > 1e-3 * w0 * w2:
            slope = max(0.0, (w0 * t1 - w1 * t0) / varied)
        else:
            slope = min(self.per_row_ms, t1 / w2)
        fixed = (t0 - slope * w1) / w0
        if fixed < 0.0:
            fixed, slope = 0.0, t1 / w2
        self.fixed_ms, self.per_row_ms = fixed, slope
