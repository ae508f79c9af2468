from __future__ import annotations

import pytest

from lineage.drift import Pane, WindowSettings
from lineage.drift.monitor import Monitor
from lineage.drift.thresholds import DriftSettings
from tests.lineage.drift.tables import reference_of, sketch_of, table

REFERENCE = reference_of(table(3000, 0))
SETTINGS = DriftSettings(simulated=300)


def pane(seed: int, to_s: float, shift: float) -> bytes:
    return Pane(to_s - 10.0, to_s, sketch_of(REFERENCE, table(100, seed, shift))).to_bytes()


def test_panes_of_several_replicas_make_reports_that_say_since_when() -> None:
    monitor = Monitor(REFERENCE, "sales/3", SETTINGS, WindowSettings(rows=200))
    reports = []
    for i, shift in enumerate([0.0, 0.0, 1.0, 1.0, 0.0]):
        for replica in range(2):
            reports += monitor.hear(pane(10 * i + replica, 10.0 * i + 10.0, shift))
    assert [(report.drifted, report.since_s) for report in reports] == [
        (False, None),
        (False, None),
        (True, 20.0),
        (True, 20.0),
        (False, None),
    ]
    assert list(monitor.reports) == reports
    assert reports[0].model == "sales/3"


def test_since_when_goes_on_after_a_restart() -> None:
    first = Monitor(REFERENCE, settings=SETTINGS, windows=WindowSettings(rows=100))
    (before,) = first.hear(pane(0, 10.0, 1.0))
    again = Monitor(REFERENCE, settings=SETTINGS, windows=WindowSettings(rows=100), last=before)
    (after,) = again.hear(pane(1, 20.0, 1.0))
    assert after.since_s == before.since_s == 0.0


def test_windows_by_time_are_reported_by_the_clock_also_when_nobody_asked() -> None:
    monitor = Monitor(REFERENCE, settings=SETTINGS, windows=WindowSettings(rows=None, seconds=10.0, grace_s=0.0))
    assert monitor.hear(pane(0, 15.0, 0.0)) == []
    assert monitor.tick(19.0) == []
    assert [report.n_rows for report in monitor.tick(40.0)] == [100, 0, 0]


def test_bytes_that_are_no_pane_are_refused_and_nothing_changes() -> None:
    monitor = Monitor(REFERENCE, settings=SETTINGS, windows=WindowSettings(rows=200))
    monitor.hear(pane(0, 10.0, 0.0))
    with pytest.raises(ValueError, match="pane"):
        monitor.hear(b"nonsense")
    (report,) = monitor.hear(pane(1, 20.0, 0.0))
    assert report.n_rows == 200
