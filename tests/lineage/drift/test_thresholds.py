from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from lineage.drift import Rows, Sketch
from lineage.drift.judge import Judge
from lineage.drift.thresholds import STATISTICS, DriftSettings, Thresholds, grid
from tests.lineage.drift.tables import plain_reference


def share_of_alarms(
    draw: Callable[[np.random.Generator, int], np.ndarray], n_rows: int, settings: DriftSettings, n_windows: int
) -> float:
    """Of windows without drift."""
    rng = np.random.default_rng(11)
    reference = plain_reference(draw(rng, 20_000))
    judge = Judge(reference, settings)
    n_alarms = 0
    for _ in range(n_windows):
        sketch = Sketch(reference.bins)
        sketch.add(Rows(draw(rng, n_rows).astype(np.float32)))
        n_alarms += judge.level(sketch) <= settings.false_alarms
    return n_alarms / n_windows


def alike(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.sqrt(0.8) * rng.normal(size=(n, 1)) + np.sqrt(0.2) * rng.normal(size=(n, 6))


def uneven(rng: np.random.Generator, n: int) -> np.ndarray:
    return np.stack([rng.standard_cauchy(n), rng.poisson(1.5, n), rng.random(n) < 0.2], axis=1)


@pytest.mark.parametrize(("draw", "n_rows"), [(alike, 50), (uneven, 200)], ids=["correlated", "heavy and discrete"])
def test_windows_without_drift_alarm_as_often_as_the_setting_says(
    draw: Callable[[np.random.Generator, int], np.ndarray], n_rows: int
) -> None:
    found = share_of_alarms(draw, n_rows, DriftSettings(false_alarms=0.1, simulated=1000), 150)
    assert 0.04 <= found <= 0.17  # 0.1, within three standard errors of 150 windows


def test_a_change_that_only_shows_in_how_columns_go_together_is_found() -> None:
    rng = np.random.default_rng(0)
    reference = plain_reference(alike(rng, 5000))
    judge = Judge(reference, DriftSettings(simulated=500))
    live = alike(rng, 400)
    shuffled = np.stack([rng.permutation(column) for column in live.T], axis=1)
    reports = []
    for values in (live, shuffled):
        sketch = Sketch(reference.bins)
        sketch.add(Rows(values.astype(np.float32)))
        reports.append(judge.report(sketch, 0.0, 1.0))
    assert [report.drifted for report in reports] == [False, True]
    assert {finding.kind for finding in reports[1].alarms} <= {"joint", "range"}
    assert not reports[1].drifted_columns


def test_thresholds_are_the_same_for_the_same_seed_and_fall_with_the_rows() -> None:
    reference = plain_reference(np.random.default_rng(0).normal(size=(5000, 3)))
    settings = DriftSettings(statistics=STATISTICS, simulated=300)
    a, b = Thresholds(reference, settings).null(100), Thresholds(reference, settings).null(100)
    assert np.array_equal(a.greatest, b.greatest)
    assert a.threshold(0.01) > a.threshold(0.1)
    assert a.level(a.threshold(0.01)) == pytest.approx(0.01)
    judge = Judge(reference, settings)
    limits = []
    for n in (50, 1000):
        sketch = Sketch(reference.bins)
        sketch.add(Rows(np.random.default_rng(1).normal(size=(n, 3)).astype(np.float32)))
        first = next(c for c in judge.report(sketch, 0.0, 1.0).columns if c.column.name == "x[0]")
        assert [test.statistic for test in first.tests] == list(STATISTICS)
        limits.append([test.threshold for test in first.tests])
    assert (np.array(limits[0]) > 2 * np.array(limits[1])).all()


def test_a_fixed_threshold_takes_the_place_of_the_calibrated_one() -> None:
    rng = np.random.default_rng(0)
    reference = plain_reference(rng.normal(size=(5000, 1)))
    sketch = Sketch(reference.bins)
    sketch.add(Rows(rng.normal(0.3, 1.0, (2000, 1)).astype(np.float32)))
    fixed = DriftSettings(statistics=("psi",), fixed={"psi": 0.2}, simulated=200)
    calibrated = DriftSettings(statistics=("psi",), simulated=200)
    assert not Judge(reference, fixed).report(sketch, 0.0, 1.0).drifted
    assert Judge(reference, calibrated).report(sketch, 0.0, 1.0).drifted


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no statistic chi"):
        DriftSettings(statistics=("chi",))
    with pytest.raises(ValueError, match="between 0 and 1"):
        DriftSettings(false_alarms=0.0)
    with pytest.raises(ValueError, match="100"):
        DriftSettings(simulated=5)


def test_sizes_within_a_few_percent_share_their_thresholds() -> None:
    assert [grid(n) for n in (0, 1, 32)] == [1, 1, 32]
    for n in (33, 50, 500, 5000, 123_456):
        assert abs(grid(n) / n - 1) <= 0.035
    assert len({grid(n) for n in range(32, 5001)}) < 100
