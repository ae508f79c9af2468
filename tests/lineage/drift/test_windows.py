from __future__ import annotations

import numpy as np
import pytest

from lineage.drift import BinsDiffer, Pane, Sketch, WindowSettings
from lineage.drift.windows import windows_of
from tests.lineage.drift.tables import plain_reference

REFERENCE = plain_reference(np.arange(100.0).reshape(-1, 1))
EMPTY = Sketch(REFERENCE.bins)


def pane(n: int, to_s: float) -> Pane:
    sketch = EMPTY.empty()
    if n:
        sketch.add(REFERENCE.layout.rows({"x": np.full((n, 1), 5.0, np.float32)}))
    return Pane(to_s - 1.0, to_s, sketch)


def test_windows_by_rows_are_full_when_they_come_and_slide_by_their_steps() -> None:
    windows = windows_of(WindowSettings(rows=100, steps=4), EMPTY)
    found = []
    for i in range(12):
        found += windows.add(pane(25, float(i + 1)))
    assert [(w.from_s, w.to_s, w.sketch.n_rows) for w in found[:2]] == [(0.0, 4.0, 100), (1.0, 5.0, 100)]
    assert len(found) == 9


def test_small_panes_wait_for_each_other_and_large_ones_make_a_larger_window() -> None:
    windows = windows_of(WindowSettings(rows=100), EMPTY)
    assert windows.add(pane(60, 1.0)) == []
    (window,) = windows.add(pane(70, 2.0))
    assert (window.from_s, window.to_s, window.sketch.n_rows) == (0.0, 2.0, 130)


def test_windows_by_time_merge_all_replicas_and_come_when_their_time_is_over() -> None:
    windows = windows_of(WindowSettings(rows=None, seconds=60.0, steps=2, grace_s=5.0), EMPTY)
    for to_s, n in ((610.0, 10), (620.0, 20), (640.0, 5), (659.0, 7)):
        assert windows.add(pane(n, to_s)) == []
    assert windows.due(634.0) == []
    assert windows.due(635.0) == []  # the first step alone is no window
    (window,) = windows.due(665.0)
    assert (window.from_s, window.to_s, window.sketch.n_rows) == (600.0, 660.0, 42)
    (window,) = windows.due(700.0)
    assert (window.from_s, window.to_s, window.sketch.n_rows) == (630.0, 690.0, 12)


def test_a_late_pane_is_left_out_and_counted_and_a_long_pause_is_passed_over() -> None:
    windows = windows_of(WindowSettings(rows=None, seconds=10.0, grace_s=0.0), EMPTY)
    windows.add(pane(3, 5.0))
    assert [w.sketch.n_rows for w in windows.due(10.0)] == [3]
    windows.add(pane(4, 9.0))
    assert windows.due(20.0)[0].sketch.n_rows == 0
    assert windows.n_late_rows == 4  # type: ignore[union-attr]
    assert len(windows.due(1e9)) <= 2


def test_a_pane_survives_its_bytes_and_others_are_refused() -> None:
    data = pane(3, 7.0).to_bytes()
    again = Pane.from_bytes(data, REFERENCE.bins)
    assert (again.from_s, again.to_s, again.sketch.n_rows) == (6.0, 7.0, 3)
    with pytest.raises(BinsDiffer):
        Pane.from_bytes(data, plain_reference(np.arange(7.0).reshape(-1, 1)).bins)
    for bad in (b"", data[:20], b"\xff" * 16 + data[16:]):
        with pytest.raises(ValueError, match=r"pane|unpack|bytes"):
            Pane.from_bytes(bad, REFERENCE.bins)


@pytest.mark.parametrize(
    "wrong", [{"rows": None}, {"rows": 5, "seconds": 1.0}, {"rows": 3, "steps": 4}, {"rows": None, "seconds": 0.0}]
)
def test_windows_that_cannot_be_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"window"):
        WindowSettings(**wrong)  # type: ignore[arg-type]
