from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from lineage.drift import Sketch
from lineage.drift.judge import Judge
from lineage.drift.plots import Format, columns_picture, history_picture
from lineage.drift.thresholds import DriftSettings
from tests.lineage.drift.tables import reference_of, sketch_of, table

REFERENCE = reference_of(table(500, 0))
JUDGE = Judge(REFERENCE, DriftSettings(simulated=200))
STARTS = {"svg": b"<?xml", "png": b"\x89PNG"}


@pytest.mark.parametrize("format_", ["svg", "png"])
def test_pictures_are_drawn_as_svg_and_png_without_any_global_state(format_: Format) -> None:
    window = sketch_of(REFERENCE, table(100, 1, shift=1.0))
    report = JUDGE.report(window, 0.0, 60.0)
    later = replace(report, to_s=120.0)
    for picture in (
        columns_picture(REFERENCE, window, report, ["x[1]", "city", "still"], format_=format_),
        history_picture([report, later], "x[1]", "psi", format_),
    ):
        assert picture.startswith(STARTS[format_])
    assert "matplotlib.pyplot" not in sys.modules


def test_a_window_without_rows_and_a_history_without_reports_have_a_picture() -> None:
    empty = Sketch(REFERENCE.bins)
    report = JUDGE.report(empty, 0.0, 1.0)
    assert columns_picture(REFERENCE, empty, report, most=1).startswith(b"<?xml")
    assert columns_picture(REFERENCE, empty, report, ["nothing"]).startswith(b"<?xml")
    assert history_picture([]).startswith(b"<?xml")
    assert history_picture([report], "x[1]").startswith(b"<?xml")
