"""How fast those get on that wait for their turn, and how long the way is then: what a new one has to expect. Pure."""

from __future__ import annotations

import math
from collections import deque

PACE_S = 0.25  # of waiting, over which the pace is measured
CALM_S = 5.0  # the same for those who have time
TRIPS, MOST_TRIPS = 32, 0.85  # that are remembered; the share that is taken for most of them
SPREAD = 1.0  # standard deviations of those who leave, against which an estimate is to hold
UNKNOWN_S = 0.02  # of waiting, before which nothing is said about the pace


class Pace:
    """Of one waiting room. Times are seconds on one clock, given by the caller.

    What is known of the way is old after some time: who is refused for it does not show how things are now.
    """

    __slots__ = ("_horizon_s", "_old_s", "_rows", "_since_s", "_sorted", "_trips", "_waited_s")

    def __init__(self, horizon_s: float = PACE_S) -> None:
        """What happened `horizon_s` of waiting ago counts a third of what happens now."""
        self._horizon_s = horizon_s
        self._rows = self._waited_s = 0.0  # that could leave while somebody waited, and how long that took
        self._since_s: float | None = None  # from when on somebody waits, or the last ones left
        self._trips: deque[float] = deque(maxlen=TRIPS)
        self._sorted: list[float] = []
        self._old_s = math.inf  # when all trips are

    def waits(self, now_s: float) -> None:
        """Somebody has to."""
        if self._since_s is None:
            self._since_s = now_s

    def left(self, n_rows: int, now_s: float, others_wait: bool) -> None:
        """So many rows set out, or could have."""
        if self._since_s is not None:
            span_s = max(0.0, now_s - self._since_s)
            kept = math.exp(-span_s / self._horizon_s)
            self._rows = kept * self._rows + n_rows
            self._waited_s = kept * self._waited_s + span_s
        self._since_s = now_s if others_wait else None

    def took(self, trip_s: float, now_s: float) -> None:
        """Somebody was on the way for so long, whatever became of it."""
        if now_s > self._old_s:
            self._trips.clear()
        self._trips.append(trip_s)
        self._sorted = sorted(self._trips)
        self._old_s = now_s + max(2.0 * PACE_S, 4.0 * self._sorted[int(MOST_TRIPS * len(self._sorted))])

    def trip_s(self, now_s: float, share: float = MOST_TRIPS) -> float:
        """What such a share of the trips did not exceed; 0 where there was none lately."""
        return self._sorted[int(share * len(self._sorted))] if self._sorted and now_s <= self._old_s else 0.0

    def wait_s(self, rows_ahead: int, now_s: float) -> float:
        """How long one should expect to wait for an answer behind so many rows."""
        if not rows_ahead:
            return self.trip_s(now_s)
        span_s = 0.0 if self._since_s is None else max(0.0, now_s - self._since_s)
        kept = math.exp(-span_s / self._horizon_s)
        waited_s = kept * self._waited_s + span_s
        if waited_s < UNKNOWN_S:
            return self.trip_s(now_s)
        # How many leave in a while varies with what comes that is more urgent, as arrivals do: by the root of them.
        rows = rows_ahead + SPREAD * math.sqrt(rows_ahead)
        return rows * waited_s / max(kept * self._rows, 1e-3) + self.trip_s(now_s)
