"""Windows over what replicas send: panes are put together by rows or by time, and slide in steps.

A pane is the sketch of some rows of one replica. Panes of all replicas merge into steps, the last few steps are a
window: by rows, once a step has enough; by time, once its time is over.
"""

from __future__ import annotations

import math
import struct
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from lineage.drift.bins import Bins
from lineage.drift.sketches import Sketch

_TIMES = struct.Struct("<dd")


@dataclass(frozen=True, slots=True, eq=False)
class Pane:
    """The sketch of rows that were seen between two times since 1970."""

    from_s: float
    to_s: float
    sketch: Sketch

    def to_bytes(self) -> bytes:
        return _TIMES.pack(self.from_s, self.to_s) + self.sketch.to_bytes()

    @classmethod
    def from_bytes(cls, data: bytes, bins: Bins) -> Pane:
        """Raises BinsDiffer for a pane over other bins, ValueError for bytes that `to_bytes` did not make."""
        if len(data) < _TIMES.size:
            raise ValueError("these bytes are no pane")
        from_s, to_s = _TIMES.unpack_from(data)
        if not (math.isfinite(from_s) and math.isfinite(to_s)):
            raise ValueError("a pane is between two times")
        return cls(from_s, to_s, Sketch.from_bytes(data[_TIMES.size :], bins))


def merged(panes: Sequence[Pane]) -> Pane:
    """At least one pane, as one."""
    sketch = panes[0].sketch.empty()
    for pane in panes:
        sketch.merge(pane.sketch)
    return Pane(min(pane.from_s for pane in panes), max(pane.to_s for pane in panes), sketch)


@dataclass(frozen=True, slots=True)
class WindowSettings:
    """Windows of `rows` rows, or of `seconds`, whichever is set, sliding in `steps` steps; 1 does not slide. By time, a
    step waits `grace_s` for panes that are under way. Raises ValueError for what cannot be."""

    rows: int | None = 500
    seconds: float | None = None
    steps: int = 1
    grace_s: float = 2.0

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.seconds is None):
            raise ValueError("windows are of so many rows, or of so many seconds")
        if self.steps < 1 or (self.rows or self.steps) < self.steps:
            raise ValueError("a window has at least one step, and a step at least one row")
        if self.seconds is not None and self.seconds <= 0.0:
            raise ValueError("a window lasts longer than nothing")


class RowWindows:
    """Windows of at least so many rows. A window has more where panes are larger than what it lacks."""

    def __init__(self, rows: int, steps: int = 1) -> None:
        self._step_rows = math.ceil(rows / steps)
        self._steps: deque[Pane] = deque(maxlen=steps)
        self._open: Pane | None = None

    def add(self, pane: Pane) -> list[Pane]:
        """Windows that this pane completes: none or one."""
        self._open = pane if self._open is None else merged([self._open, pane])
        if self._open.sketch.n_rows < self._step_rows:
            return []
        self._steps.append(self._open)
        self._open = None
        return [merged(self._steps)] if len(self._steps) == self._steps.maxlen else []

    def due(self, now_s: float) -> list[Pane]:
        """Nothing is ever due by time alone."""
        return []


class TimeWindows:
    """Windows of so many seconds, their ends at whole steps since 1970. A pane counts for the step it ended in; one
    that comes after its step was closed is left out and counted in `n_late_rows`."""

    def __init__(self, seconds: float, empty: Sketch, steps: int = 1, grace_s: float = 2.0) -> None:
        """`empty` is the sketch of a step in which nobody asked."""
        self._step_s = seconds / steps
        self._n_steps = steps
        self._grace_s = grace_s
        self._empty = empty
        self._open: dict[int, Pane] = {}
        self._closed: deque[Pane] = deque(maxlen=steps)
        self._next: int | None = None  # the first step that is not closed
        self.n_late_rows = 0

    def add(self, pane: Pane) -> list[Pane]:
        """Takes a pane; windows come out of `due`."""
        step = math.floor(pane.to_s / self._step_s)
        if self._next is not None and step < self._next:
            self.n_late_rows += pane.sketch.n_rows
            return []
        held = self._open.get(step)
        self._open[step] = pane if held is None else merged([held, pane])
        return []

    def due(self, now_s: float) -> list[Pane]:
        """The windows whose time is over. After a pause longer than a window the steps in it are passed over."""
        last = math.floor((now_s - self._grace_s) / self._step_s) - 1  # the last that is over
        if self._next is None:
            if not self._open:
                return []
            self._next = min(self._open)
        windows = []
        while self._next <= last:
            if not self._open and last - self._next > 2 * self._n_steps:
                self._next = last - self._n_steps
                self._closed.clear()
            begins = self._next * self._step_s
            held = self._open.pop(self._next, None)
            sketch = self._empty.empty() if held is None else held.sketch
            self._closed.append(Pane(begins, begins + self._step_s, sketch))
            self._next += 1
            if len(self._closed) == self._n_steps:
                windows.append(merged(self._closed))
        return windows


def windows_of(settings: WindowSettings, empty: Sketch) -> RowWindows | TimeWindows:
    """By rows or by time, as the settings say."""
    if settings.seconds is not None:
        return TimeWindows(settings.seconds, empty, settings.steps, settings.grace_s)
    return RowWindows(settings.rows or 1, settings.steps)
