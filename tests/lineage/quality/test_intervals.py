"""The intervals hold what they promise: coverage by simulation, with seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lineage.quality import calibration, intervals
from lineage.quality.intervals import Estimate
from lineage.quality.outcomes import Outcomes
from lineage.quality.quality import quality_of
from lineage.quality.sketch import LatencySketch
from lineage.quality.summary import Moments, Summary


def covers(estimate: Estimate | None, true: float) -> bool:
    return estimate is not None and estimate.low <= true <= estimate.high


def labelled(truth: np.ndarray, predicted: np.ndarray) -> Summary:
    summary = Summary()
    summary.add(Outcomes.of(np.zeros(len(truth)), truth=truth, predicted=predicted), True, True)
    return summary


def test_an_interval_of_a_share_is_wilsons() -> None:
    found = intervals.share(8, 10)
    assert found is not None
    assert (round(found.low, 4), found.value, round(found.high, 4)) == (0.4902, 0.8, 0.9433)  # Wilson's own formula
    assert intervals.share(0, 0) is None
    assert intervals.share(0, 7) == Estimate(0.0, 0.0, pytest.approx(0.3543, abs=1e-4), 7)


def test_the_interval_of_a_mean_covers_and_is_not_wider_than_need_be() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(3.0, 2.0, (2000, 6))
    hits = [covers(intervals.mean(6, row.sum(), row @ row), 3.0) for row in draws]
    assert 0.935 < np.mean(hits) < 0.965
    assert intervals.mean(1, 5.0, 25.0) == Estimate(5.0, -math.inf, math.inf, 1)


def test_the_interval_of_a_rate_covers() -> None:
    counts = np.random.default_rng(2).poisson(4.0, 2000)
    assert np.mean([covers(intervals.rate(int(n), 2.0), 2.0) for n in counts]) >= 0.95
    assert intervals.rate(3, 0.0) is None


@pytest.mark.parametrize(("n", "q"), [(20, 0.5), (200, 0.95), (1000, 0.99)])
def test_the_interval_of_a_latency_quantile_covers(n: int, q: float) -> None:
    rng = np.random.default_rng(n)
    true = math.exp(0.8 * float(np.quantile(np.random.default_rng(0).standard_normal(400_000), q)))
    hits = []
    for _ in range(400):
        sketch = LatencySketch()
        sketch.add(rng.lognormal(0.0, 0.8, n))
        hits.append(covers(sketch.quantiles((q,))[0], true))
    assert np.mean(hits) > 0.93


def test_where_there_are_too_few_a_quantile_has_no_upper_limit() -> None:
    sketch = LatencySketch()
    sketch.add(np.arange(1.0, 21.0))
    (p99,) = sketch.quantiles((0.99,))
    assert p99 is not None
    assert p99.value == pytest.approx(20.0, rel=0.011)
    assert p99.high == math.inf


@pytest.mark.parametrize("n", [40, 400])
def test_the_intervals_of_f1_cover(n: int) -> None:
    rng = np.random.default_rng(n)
    joint = np.array([[0.5, 0.02, 0.03], [0.05, 0.2, 0.05], [0.01, 0.04, 0.1]])
    f1s = 2 * joint.diagonal() / (joint.sum(axis=0) + joint.sum(axis=1))
    hits, hits_macro = [], []
    for _ in range(400):
        cells = rng.choice(9, n, p=joint.ravel())
        found = quality_of(labelled(cells // 3, cells % 3), 0.0, 1.0)
        first = found.class_named("0")
        assert first is not None
        hits.append(covers(first.f1, f1s[0]))
        hits_macro.append(covers(found.macro_f1, f1s.mean()))
    assert np.mean(hits) > 0.92
    assert np.mean(hits_macro) > 0.92


def test_all_right_does_not_mean_that_macro_f1_is_certain() -> None:
    found = quality_of(labelled(np.arange(20) % 2, np.arange(20) % 2), 0.0, 1.0).macro_f1
    assert found is not None
    assert found.value == found.high == 1.0
    assert 0.7 < found.low < 0.95


@pytest.mark.parametrize("claims_too_much", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("equal_mass", [False, True])
def test_the_interval_of_the_calibration_error_covers(claims_too_much: float, equal_mass: bool) -> None:
    rng = np.random.default_rng(5)
    hits, plain, freed = [], [], []
    for _ in range(150):
        sure = rng.uniform(0.3, 1.0, 1000)
        right = rng.random(1000) < (1.0 - claims_too_much) * sure
        counts = calibration.count(sure, right.astype(float))
        found = calibration.equal_mass(counts) if equal_mass else calibration.equal_width(counts)
        assert found is not None
        true = claims_too_much * float(sure.mean())
        hits.append(covers(found.ece, true))
        plain.append(found.plain_ece - true)
        freed.append(found.ece.value - true)
    assert np.mean(hits) > 0.88
    assert abs(np.mean(freed)) < abs(np.mean(plain)) or abs(np.mean(plain)) < 0.005


def test_the_intervals_of_regression_errors_cover() -> None:
    rng = np.random.default_rng(7)
    noise, spread = 2.0, 5.0
    true = {
        "mae": math.hypot(noise, 0.5) * 0,  # set below, by a large sample
        "rmse": math.hypot(noise, 0.5),
        "bias": 0.5,
        "r2": 1 - (noise**2 + 0.25) / spread**2,
    }
    true["mae"] = float(np.abs(np.random.default_rng(0).normal(0.5, noise, 1_000_000)).mean())
    hits: dict[str, list[bool]] = {name: [] for name in true}
    for _ in range(400):
        summary = Summary()
        truth = rng.normal(100.0, spread, 200)
        said = truth + rng.normal(0.5, noise, 200)
        summary.add(Outcomes.of(np.zeros(200), truth=truth, predicted=said), True, True)
        errors = quality_of(summary, 0.0, 1.0).errors
        assert errors is not None
        for name in true:
            hits[name].append(covers(getattr(errors, name), true[name]))
    for name, seen in hits.items():
        assert np.mean(seen) > 0.92, name


def test_moments_of_far_apart_origins_add_up() -> None:
    rng = np.random.default_rng(3)
    truth = np.concatenate([rng.normal(1e4, 1.0, 100), rng.normal(-50.0, 3.0, 200)])
    said = truth + rng.normal(0.0, 1.0, 300)
    whole, first, second = Moments(), Moments(), Moments()
    whole.add(said, truth)
    first.add(said[:100], truth[:100])
    second.add(said[100:], truth[100:])
    first.merge(second)
    first.merge(Moments())
    centred = Moments()
    centred.merge(first)
    shift = whole.origin - centred.origin
    assert (centred.y[1] - shift * centred.n) == pytest.approx(whole.y[1], abs=1e-6)
    assert centred.with_e2[0] == pytest.approx(whole.with_e2[0])
