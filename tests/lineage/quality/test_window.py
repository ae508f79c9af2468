from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineage.quality import Outcomes, QualityWindow
from lineage.quality.outcomes import Requests
from lineage.quality.summary import OTHER, Summary

HOUR_S, DAY_S = 3600.0, 86400.0
NOW_S = 1_800_000_000.0  # at a full hour


def batch(at_s: float, right: int, wrong: int = 0, segment: str = "") -> Outcomes:
    n = right + wrong
    return Outcomes.of(
        [at_s] * n, latency_ms=[2.0] * n, predicted=[1] * n, truth=[1] * right + [0] * wrong, segment=segment
    )


def test_a_window_is_answered_from_the_minutes_that_it_holds() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S - 2 * HOUR_S, 0, 10), NOW_S)
    window.add(batch(NOW_S - 600.0, 8, 2), NOW_S)
    window.add(batch(NOW_S - 30.0, 5), NOW_S)
    recent, hour, whole = window.last(60.0, NOW_S), window.last(HOUR_S, NOW_S), window.quality(NOW_S)
    assert (recent.n, hour.n, whole.n) == (5, 15, 25)
    assert hour.accuracy is not None
    assert hour.accuracy.value == pytest.approx(13 / 15)
    past = window.quality(NOW_S, until_s=NOW_S - HOUR_S)
    assert (past.n_judged, past.n_right) == (10, 0)


def test_throughput_is_over_the_time_since_the_first_outcome() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S - 20.0, 30), NOW_S - 20.0)
    window.add(batch(NOW_S, 30), NOW_S)
    for found in (window.last(HOUR_S, NOW_S), window.quality(NOW_S)):
        assert found.throughput_per_s is not None
        assert found.throughput_per_s.value == pytest.approx(3.0)


def test_old_minutes_become_hours_then_days_then_one_and_nothing_is_lost() -> None:
    window = QualityWindow()
    n = 0
    for hour in range(0, 24 * 100, 7):
        for minute in (0, 20):
            at_s = NOW_S + hour * HOUR_S + 60.0 * minute
            window.add(batch(at_s, 3, 1), at_s)
            n += 4
    assert window.quality(at_s).n == n
    assert len(window.plain()["slots"]) <= 60 + 48 + 60 + 1
    day = window.last(DAY_S, at_s)
    assert 4 * 6 <= day.n <= 4 * 9
    assert at_s - DAY_S - HOUR_S <= day.since_s <= at_s - DAY_S


def test_truth_that_comes_late_joins_its_requests_and_counts_no_request_twice() -> None:
    window = QualityWindow()
    at_s = [NOW_S - 3 * DAY_S, NOW_S - 10.0]
    window.add(Outcomes.of(at_s, latency_ms=[1.0, 1.0], predicted=[1, 1]), NOW_S - 5.0)
    window.judge(Outcomes.of(at_s, predicted=[1, 1], truth=[0, 1], confidence=[0.9, 0.9], rating=[1.0, 5.0]), NOW_S)
    whole, recent = window.quality(NOW_S), window.last(60.0, NOW_S)
    assert (whole.n, whole.n_judged, whole.n_right) == (2, 2, 1)
    assert (recent.n, recent.n_judged, recent.n_right) == (1, 1, 1)
    assert whole.by_width is not None
    assert whole.rating is not None
    assert whole.rating.value == 3.0


def test_a_clock_that_is_ahead_does_not_make_everything_old() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S, 5), NOW_S)
    window.add(batch(NOW_S + 1000 * DAY_S, 5), NOW_S)
    assert window.last(60.0, NOW_S).n == 10


def test_segments_are_kept_apart() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S, 9, 1, "clinic"), NOW_S)
    window.add(batch(NOW_S, 5, 5, "school"), NOW_S)
    found = window.by_segment(NOW_S)
    assert {name: q.n_right for name, q in found.items()} == {"clinic": 9, "school": 5}
    assert window.quality(NOW_S, segment="school").n == 10
    assert window.quality(NOW_S).n_right == 14
    assert window.quality(NOW_S, segment="nobody").n == 0


def test_of_many_segments_the_frequent_ones_are_kept_also_when_they_come_late() -> None:
    window = QualityWindow(max_segments=4)
    rng = np.random.default_rng(0)
    for second in range(60):
        names = [f"user-{rng.integers(10_000)}" for _ in range(10)] + (["late"] * 10 if second > 20 else [])
        window.add(
            Outcomes.of([NOW_S + second] * len(names), latency_ms=[1.0] * len(names), segment=names), NOW_S + second
        )
    found = window.by_segment(NOW_S + 60.0)
    assert len(found) <= 5
    assert OTHER in found
    assert found["late"].n > 350
    assert window.quality(NOW_S + 60.0).n == sum(q.n for q in found.values()) == 600 + 390


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_windows_of_several_gateways_add_up_and_survive_json(seed: int) -> None:
    rng = np.random.default_rng(seed)
    one, parts = QualityWindow(), [QualityWindow(), QualityWindow()]
    at_s = NOW_S
    for _ in range(12):
        at_s += float(rng.choice([1.0, 50.0, HOUR_S, 20 * HOUR_S]))
        outcomes = batch(at_s, int(rng.integers(1, 5)), int(rng.integers(0, 3)), str(rng.choice(["a", "b"])))
        one.add(outcomes, at_s)
        parts[int(rng.integers(2))].add(outcomes, at_s)
    merged = QualityWindow.of(json.loads(json.dumps(parts[0].plain(), allow_nan=False)))
    merged.merge(parts[1])
    assert merged.quality(at_s).plain() == one.quality(at_s).plain()
    assert {k: q.n for k, q in merged.by_segment(at_s).items()} == {k: q.n for k, q in one.by_segment(at_s).items()}
    for window_s in (60.0, HOUR_S, DAY_S):
        assert merged.last(window_s, at_s).n >= 1


def test_what_is_not_a_window_is_refused() -> None:
    with pytest.raises(ValueError, match="not a quality window"):
        QualityWindow.of({"slots": []})
    with pytest.raises(ValueError, match="multiple"):
        QualityWindow([(60, 10), (90, 10)])
    with pytest.raises(ValueError, match="resolutions"):
        QualityWindow().merge(QualityWindow([(10, 10)]))


def test_requests_are_counted_by_column_as_they_are_one_by_one() -> None:
    rng = np.random.default_rng(3)
    at_s = NOW_S - rng.uniform(0.0, 3 * HOUR_S, 300)
    latency_ms, confidence = rng.lognormal(1.0, 1.0, 300), rng.uniform(0.0, 1.0, 300)
    failed = rng.random(300) < 0.1
    window, plain = QualityWindow(), QualityWindow()
    window.count(Requests(at_s, latency_ms, failed, confidence), "ann", NOW_S)
    plain.add(Outcomes.of(at_s, latency_ms=latency_ms, failed=failed, confidence=confidence, segment="ann"), NOW_S)
    slots, others = (sorted(one.plain()["slots"], key=lambda slot: slot[:2]) for one in (window, plain))
    assert slots == others
    assert len(slots) > 40


def test_what_is_taken_back_was_never_said() -> None:
    window, once = QualityWindow(), QualityWindow()
    wrong = Outcomes.of([NOW_S] * 2, predicted=["a", "b"], truth=["c", "b"], confidence=[0.9, 0.4], rating=[0.0, 1.0])
    for one in (window, once):
        one.add(batch(NOW_S, 3, 2), NOW_S)
    before = window.quality(NOW_S).plain()
    window.judge(wrong, NOW_S)
    assert window.quality(NOW_S).n_judged == 7
    window.take_back(wrong, NOW_S)
    assert window.quality(NOW_S).plain() == before == once.quality(NOW_S).plain()


def test_taking_back_what_is_not_there_leaves_no_count_below_nothing() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S, 1), NOW_S)
    window.take_back(batch(NOW_S, 3, 4), NOW_S)
    window.take_back(Outcomes.of([NOW_S], predicted=[1.0], truth=[2.0], rating=[1.0]), NOW_S)
    quality = window.quality(NOW_S)
    assert (quality.n, quality.n_judged, quality.n_right, quality.classes, quality.errors) == (1, 0, 0, (), None)


def test_a_window_that_becomes_narrower_keeps_the_frequent_segments_and_all_counts() -> None:
    window = QualityWindow()
    for name, n in (("ann", 5), ("bob", 3), ("cid", 1)):
        window.add(batch(NOW_S, n, segment=name), NOW_S)
    weight = window.weight
    window.narrow(1)
    assert {name: q.n for name, q in window.by_segment(NOW_S).items()} == {"ann": 5, OTHER: 4}
    assert window.weight < weight
    assert window.quality(NOW_S).n == 9


def test_a_brief_look_has_the_same_counts() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S, 8, 2, segment="ann"), NOW_S)
    brief, whole = window.quality(NOW_S, brief=True), window.quality(NOW_S)
    assert (brief.n, brief.accuracy, brief.p50_ms) == (whole.n, whole.accuracy, whole.p50_ms)
    assert (brief.classes, len(whole.classes)) == ((), 2)
    assert window.by_segment(NOW_S, brief=True)["ann"].n_right == 8


def test_summaries_may_be_written_as_bytes_which_are_kept_until_something_is_counted() -> None:
    window = QualityWindow()
    window.add(batch(NOW_S, 8, 2), NOW_S)
    packed = window.plain(Summary.packed)
    again = QualityWindow.of(packed, Summary.unpack)
    assert again.quality(NOW_S).plain() == window.quality(NOW_S).plain()
    window.judge(batch(NOW_S, 1), NOW_S)
    assert window.plain(Summary.packed)["slots"] != packed["slots"]
    for wrong in (b"", b"{}", packed["slots"][0][2][""][:-1]):
        with pytest.raises(ValueError, match="not a summary"):
            Summary.unpack(wrong)
