"""The figures are those of scikit-learn and numpy."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics
from sklearn.calibration import calibration_curve

from lineage.quality import Outcomes, Quality, calibration
from lineage.quality.quality import quality_of
from lineage.quality.summary import MAX_CLASSES, MAX_PAIRS, OTHER, Summary


def summed(*batches: Outcomes) -> Summary:
    summary = Summary()
    for batch in batches:
        summary.add(batch, True, True)
    return summary


def figures(*batches: Outcomes) -> Quality:
    return quality_of(summed(*batches), 0.0, 10.0)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=60))
def test_shares_per_class_are_those_of_scikit_learn(cells: list[tuple[int, int]]) -> None:
    truth, said = [t for t, _ in cells], [p for _, p in cells]
    found = figures(Outcomes.of(np.zeros(len(cells)), truth=truth, predicted=said))
    labels = sorted({*truth, *said})
    precision, recall, f1, support = metrics.precision_recall_fscore_support(
        truth, said, labels=labels, zero_division=np.nan
    )
    assert [c.label for c in found.classes] == [str(label) for label in labels]
    for i, seen in enumerate(found.classes):
        assert seen.support == support[i]
        for ours, theirs in ((seen.precision, precision[i]), (seen.recall, recall[i]), (seen.f1, f1[i])):
            assert (np.nan if ours is None else ours.value) == pytest.approx(theirs, nan_ok=True)
            assert ours is None or ours.low <= ours.value + 1e-12 <= ours.high + 1e-9
    assert found.accuracy is not None
    assert found.macro_f1 is not None
    assert found.accuracy.value == pytest.approx(metrics.accuracy_score(truth, said))
    assert found.macro_f1.value == pytest.approx(metrics.f1_score(truth, said, average="macro", zero_division=0.0))
    assert found.micro_f1 is not None
    assert found.micro_f1.value == pytest.approx(metrics.f1_score(truth, said, average="micro"))
    confused = Counter((str(t), str(p)) for t, p in cells if t != p)
    assert sum(pair.n for pair in found.confused) == sum(n for _, n in confused.most_common(10))
    assert all(confused[pair.truth, pair.predicted] == pair.n for pair in found.confused)


def test_regression_errors_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(20.0, 3.0, 500)
    said = truth + rng.normal(0.3, 1.0, 500)
    halves = [Outcomes.of(np.zeros(250), truth=truth[i : i + 250], predicted=said[i : i + 250]) for i in (0, 250)]
    first, second = summed(halves[0]), summed(halves[1])
    first.merge(second)
    errors = quality_of(first, 0.0, 1.0).errors
    assert errors is not None
    assert errors.r2 is not None
    assert errors.mae.value == pytest.approx(metrics.mean_absolute_error(truth, said))
    assert errors.rmse.value == pytest.approx(metrics.root_mean_squared_error(truth, said))
    assert errors.r2.value == pytest.approx(metrics.r2_score(truth, said))
    assert errors.bias.value == pytest.approx(float((said - truth).mean()))


def test_numbers_that_never_vary_have_no_r_squared() -> None:
    errors = figures(Outcomes.of([0.0] * 4, truth=[7.0] * 4, predicted=[7.0, 7.5, 6.5, 7.0])).errors
    assert errors is not None
    assert errors.r2 is None
    assert errors.rmse.value == pytest.approx(0.125**0.5)


def test_reliability_over_bins_of_equal_width_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(1)
    sure = np.round(rng.random(3000), 2)  # so that some lie on the edges of bins
    right = rng.random(3000) < sure**2
    found = calibration.equal_width(calibration.count(sure, right.astype(float)))
    assert found is not None
    share, confidence = calibration_curve(right, sure, n_bins=calibration.N_BINS)
    assert [bin_.right.value for bin_ in found.bins] == pytest.approx(share.tolist())
    assert [bin_.confidence for bin_ in found.bins] == pytest.approx(confidence.tolist())
    sizes = np.array([bin_.n for bin_ in found.bins])
    assert found.plain_ece == pytest.approx(float(sizes @ np.abs(share - confidence) / 3000))


def test_bins_of_equal_mass_hold_about_as_many_also_where_confidences_crowd() -> None:
    rng = np.random.default_rng(2)
    sure = 1.0 - rng.exponential(0.02, 3000).clip(0.0, 0.9)
    right = rng.random(3000) < 0.9 * sure
    found = calibration.equal_mass(calibration.count(sure, right.astype(float)))
    assert found is not None
    assert sum(bin_.n for bin_ in found.bins) == 3000
    assert 10 <= len(found.bins) <= calibration.N_BINS
    assert max(bin_.n for bin_ in found.bins) < 2.5 * 3000 / calibration.N_BINS
    share, confidence = calibration_curve(right, sure, n_bins=calibration.N_BINS, strategy="quantile")
    assert found.plain_ece == pytest.approx(float(np.mean(np.abs(share - confidence))), abs=0.005)


def test_a_confidence_that_is_always_the_same_fills_one_bin() -> None:
    counts = calibration.count(np.ones(50), np.ones(50))
    for found in (calibration.equal_width(counts), calibration.equal_mass(counts)):
        assert found is not None
        assert len(found.bins) == 1
        assert found.plain_ece == 0.0
        assert found.ece.low == 0.0


def test_latency_quantiles_are_within_one_percent() -> None:
    rng = np.random.default_rng(3)
    took = rng.lognormal(1.0, 1.0, 5000)
    found = figures(Outcomes.of(np.zeros(5000), latency_ms=took))
    for ours, q in ((found.p50_ms, 0.5), (found.p95_ms, 0.95), (found.p99_ms, 0.99)):
        assert ours is not None
        true = float(np.quantile(took, q, method="inverted_cdf"))
        assert ours.value == pytest.approx(true, rel=0.01001)
        assert ours.low < true < ours.high


def test_failures_count_as_errors_and_neither_as_latency_nor_as_judged() -> None:
    outcomes = Outcomes.of(
        [0.0] * 4,
        latency_ms=[1.0, 1.0, 1.0, 9000.0],
        failed=[False, False, False, True],
        predicted=[1, 2, 2, 2],
        truth=[1, 2, 1, 1],
        rating=[5.0, 4.0, None, 1.0],
    )
    found = figures(outcomes)
    assert found.error_rate is not None
    assert found.p99_ms is not None
    assert found.rating is not None
    assert (found.n, found.n_failed, found.error_rate.value) == (4, 1, 0.25)
    assert found.p99_ms.value < 1.1
    assert (found.n_judged, found.n_right) == (3, 2)
    assert found.rating.value == pytest.approx(10 / 3)
    assert found.throughput_per_s is not None
    assert found.throughput_per_s.value == 0.4


def test_of_nothing_nothing_is_known() -> None:
    found = figures()
    assert (found.n, found.n_judged, found.classes, found.confused) == (0, 0, (), ())
    for name in ("throughput_per_s", "error_rate", "p50_ms", "accuracy", "macro_f1", "by_width", "errors", "rating"):
        assert getattr(found, name) is None, name


def test_figures_can_be_written_as_json() -> None:
    found = figures(
        Outcomes.of([0.0, 0.0], latency_ms=[1.0, 2.0], confidence=[0.9, 0.8], predicted=[1, 2], truth=[1, 1])
    )
    plain = json.loads(json.dumps(found.plain(), allow_nan=False))
    assert plain["p99_ms"]["high"] is None
    assert plain["accuracy"]["value"] == plain["micro_f1"]["value"] == 0.5
    assert plain["confused"] == [{"truth": "1", "predicted": "2", "n": 1}]
    assert plain["by_width"]["bins"][0]["n"] == 1


def test_rare_classes_are_counted_together_and_the_accuracy_stays_exact() -> None:
    rng = np.random.default_rng(4)
    truth = np.concatenate([np.repeat([0, 1], 2000), np.arange(2, 1002)])
    said = np.where(rng.random(len(truth)) < 0.8, truth, rng.integers(0, 1002, len(truth)))
    order = rng.permutation(len(truth))
    batches = [Outcomes.of(np.zeros(len(at)), truth=truth[at], predicted=said[at]) for at in np.split(order, 10)]
    summary = summed(*batches)
    assert len(summary.classes) <= MAX_CLASSES
    assert len(summary.pairs) <= MAX_PAIRS
    assert sum(counts[0] for counts in summary.classes.values()) == len(truth)
    found = quality_of(summary, 0.0, 1.0)
    assert found.accuracy is not None
    assert found.accuracy.value == pytest.approx(float(np.mean(truth == said)))
    zero = found.class_named("0")
    assert zero is not None
    assert zero.support == 2000
    assert found.class_named(OTHER) is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 40))
def test_summaries_of_parts_add_up_to_that_of_the_whole_also_as_json(seed: int, cut: int) -> None:
    rng = np.random.default_rng(seed)
    data = {
        "at_s": rng.uniform(0.0, 5.0, 40),
        "latency_ms": rng.lognormal(0.0, 1.0, 40),
        "failed": rng.random(40) < 0.1,
        "confidence": rng.random(40),
        "predicted": rng.integers(0, 3, 40),
        "truth": rng.integers(0, 3, 40),
        "rating": rng.integers(1, 6, 40).astype(float),
    }
    whole = summed(Outcomes.of(**data))
    first, second = (
        summed(Outcomes.of(**{name: values[part] for name, values in data.items()}))
        for part in (slice(0, cut), slice(cut, None))
    )
    first.merge(Summary.of(json.loads(json.dumps(second.plain()))))
    ours, theirs = first.plain(), whole.plain()
    assert dict(map(tuple, ours.pop("latency"))) == dict(map(tuple, theirs.pop("latency")))
    assert sorted(ours.pop("pairs")) == sorted(theirs.pop("pairs"))
    assert np.array(sorted(ours.pop("reliability"))) == pytest.approx(np.array(sorted(theirs.pop("reliability"))))
    for name in ("confidence", "rating", "errors"):
        assert ours.pop(name) == pytest.approx(theirs.pop(name))
    assert ours == theirs
