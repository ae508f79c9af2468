"""How many rows come per second, at any time scale."""

from __future__ import annotations

_SHARE = 0.05  # of a new gap in the mean: about the last 20 arrivals count


class ArrivalRate:
    """A moving average of the gaps between rows. Silence counts: the rate falls while nothing comes."""

    __slots__ = ("_gap_ms", "_last_ms")

    def __init__(self) -> None:
        self._gap_ms = 0.0
        self._last_ms: float | None = None

    def add(self, n_rows: int, now_ms: float) -> None:
        """`n_rows` rows came together at `now_ms`."""
        if self._last_ms is not None:
            gap_ms = (now_ms - self._last_ms) / n_rows
            # Each row of a request is an arrival of its own, n_rows at a time.
            share = _SHARE if n_rows == 1 else 1.0 - (1.0 - _SHARE) ** n_rows
            self._gap_ms = gap_ms if self._gap_ms == 0.0 else self._gap_ms + share * (gap_ms - self._gap_ms)
        self._last_ms = now_ms

    def per_s(self, now_ms: float) -> float:
        """Rows per second as of `now_ms`; 0 before the second arrival."""
        if self._last_ms is None or self._gap_ms <= 0.0:
            return 0.0
        return 1e3 / max(self._gap_ms, 0.5 * (now_ms - self._last_ms))
