"""What is remembered of the recent past of one extension's calls. Pure: time is an argument."""

from __future__ import annotations

import math

NEWS_S = 1.0  # how long what calls took is a reason to drop what would be late; then one has to try again
RATE_S = 0.05  # over which arrivals are counted


class Pulse:
    """Arrivals, calls and drops before one extension. Times are seconds on one clock."""

    def __init__(self, now_s: float) -> None:
        self.n_rows = 0  # that came since `_since_s`
        self.n_dropped_rows = 0  # since the last call
        self.recent_ms = 0.0
        self._rate_per_s = 0.0
        self._since_s = now_s
        self._called_s = -math.inf

    def rate_per_s(self, now_s: float) -> float:
        """Rows that come per second: a moving average over some `RATE_S`."""
        span_s = now_s - self._since_s
        if span_s >= RATE_S:
            kept = math.exp(-span_s / (4 * RATE_S))
            self._rate_per_s = kept * self._rate_per_s + (1.0 - kept) * self.n_rows / span_s
            self.n_rows, self._since_s = 0, now_s
        return self._rate_per_s

    def called(self, took_ms: float, now_s: float) -> int:
        """Notes a call; gives back the rows dropped since the one before."""
        self.recent_ms = took_ms if self.recent_ms == 0.0 else 0.8 * self.recent_ms + 0.2 * took_ms
        self._called_s = now_s
        dropped, self.n_dropped_rows = self.n_dropped_rows, 0
        return dropped

    def run_s(self, expected_ms: float, now_s: float) -> float:
        """What a call will take, where that is fresh enough to turn anybody away for it: an extension that was slow
        once, and from then on gets nothing in time, could never show that it is well again."""
        return expected_ms / 1e3 if now_s - self._called_s <= NEWS_S else 0.0
