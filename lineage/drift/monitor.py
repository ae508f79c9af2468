"""Follows one model version: panes of its replicas in, reports out."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

from lineage.drift.estimates import AccuracyModel
from lineage.drift.judge import Judge
from lineage.drift.reference import Reference
from lineage.drift.report import DriftReport, Since
from lineage.drift.sketches import Sketch
from lineage.drift.thresholds import DriftSettings
from lineage.drift.windows import Pane, WindowSettings, windows_of


class Monitor:
    """Keeps the windows of one model version, and since when it has drifted. Not for several threads at once."""

    def __init__(
        self,
        reference: Reference,
        model: str = "",
        settings: DriftSettings | None = None,
        windows: WindowSettings | None = None,
        accuracy: AccuracyModel | None = None,
        *,
        last: DriftReport | None = None,
        keep: int = 64,
    ) -> None:
        """`last` is the last report that was made before a restart: what it said of since when goes on."""
        self.judge = Judge(reference, settings, accuracy=accuracy, model=model)
        self._windows = windows_of(windows or WindowSettings(), Sketch(reference.bins))
        self._since = Since(last.since_s if last else None)
        self.reports: deque[DriftReport] = deque(maxlen=keep)
        self.last_window: Pane | None = None

    def hear(self, pane: bytes | Pane) -> list[DriftReport]:
        """A pane of a replica; the reports of the windows that it completes. Raises BinsDiffer for a pane of other
        training data, ValueError for bytes that are no pane."""
        if isinstance(pane, bytes):
            pane = Pane.from_bytes(pane, self.judge.reference.bins)
        return self._report(self._windows.add(pane))

    def tick(self, now_s: float) -> list[DriftReport]:
        """The reports of windows whose time is over; call it at least once per step of windows by time."""
        return self._report(self._windows.due(now_s))

    def _report(self, windows: list[Pane]) -> list[DriftReport]:
        made = []
        for window in windows:
            report = self.judge.report(window.sketch, window.from_s, window.to_s)
            since_s = self._since.after(report.drifted, window.from_s, report.n_rows)
            made.append(replace(report, since_s=since_s))
            self.last_window = window
        self.reports.extend(made)
        return made
