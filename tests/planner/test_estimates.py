import numpy as np
import pytest

from planner.cards import Accuracy, Evidence, Threshold
from planner.estimates import Stage, cascade_accuracy, coverage, ensemble_accuracy, majority, predict
from planner.plans import REQUEST, Binding, Guard, Source, Step
from tests.planner.worlds import card


def step(id_, extension, *sources, guard=None):
    bindings = [Binding(f"in{i}", (Source(*source),)) for i, source in enumerate(sources)]
    return Step(id_, extension, tuple(bindings), guard=guard)


def answer(*sources):
    return (Binding("out0", tuple(Source(*source) for source in sources)),)


A = card("a", "x", "y", p50_ms=2, accuracy=0.9, cost=1, p99_ratio=3)
B = card("b", "x", "y", p50_ms=5, accuracy=0.8, cost=2, p99_ratio=1)
JOIN = card("join", "y y", "z", p50_ms=1, accuracy=0.5, cost=0.5, p99_ratio=2)
CARDS = {c.id: c for c in (A, B, JOIN)}


def test_parallel_branches_cost_the_longer_time_and_both_prices():
    steps = (
        step(0, "a@1", (REQUEST, "in0")),
        step(1, "b@1", (REQUEST, "in0")),
        step(2, "join@1", (0, "out0"), (1, "out0")),
    )
    p = predict(steps, answer((2, "out0")), CARDS)
    assert p.p50_ms == pytest.approx(5 + 1)
    assert p.p99_ms == pytest.approx(6 + 2)  # here the other branch is the slow one
    assert p.cost == pytest.approx(3.5)
    assert p.accuracy == pytest.approx(0.9 * 0.8 * 0.5)


def test_an_empty_plan_is_free_and_right():
    p = predict((), answer((REQUEST, "in0")), {})
    assert (p.p50_ms, p.p99_ms, p.cost, p.accuracy) == (0.0, 0.0, 0.0, 1.0)


def cascade(below=0.5):
    return (
        step(0, "a@1", (REQUEST, "in0")),
        step(1, "b@1", (REQUEST, "in0"), guard=Guard(0, below)),
    ), answer((0, "out0"), (1, "out0"))


def test_a_cascade_without_evidence_is_estimated_pessimistically():
    cheap = A.but(thresholds=(Threshold(0.5, 0.6, 0.95),))
    dear = B.but(accuracy=Accuracy(0.97))
    p = predict(*cascade(), {cheap.id: cheap, dear.id: dear}, n_rows=1)
    assert p.accuracy == pytest.approx(0.97 - 0.6 * 0.05)
    assert p.cost == pytest.approx(1 + 0.4 * 2)
    assert p.p50_ms == pytest.approx(2 + 0.4 * 5)
    assert p.p99_ms == pytest.approx(6 + 5)


def test_many_rows_always_wait_for_the_dear_branch_but_few_of_them_go_there():
    cheap = A.but(thresholds=(Threshold(0.5, 0.6, 0.95),))
    dear = B.but(profile=B.profile.__class__(1.0, 1.0, 0.0, 1.0))
    p = predict(*cascade(), {cheap.id: cheap, dear.id: dear}, n_rows=1000)
    assert p.p50_ms == pytest.approx(2 + 1 + 400, rel=1e-3)
    assert 6 + 400 < p.p99_ms < 6 + 1 + 450


def test_a_useless_dear_branch_leaves_what_the_cheap_one_gets_right():
    cheap, useless = A.but(thresholds=(Threshold(0.5, 0.6, 0.9),)), B.but(accuracy=Accuracy(0.0))
    assert cascade_accuracy([Stage(cheap, 0.5), Stage(useless)]) == pytest.approx(0.54)


def test_cascades_with_evidence_are_counted_row_by_row():
    rng = np.random.default_rng(3)
    right = rng.random((3, 500)) < np.array([[0.7], [0.8], [0.95]])
    sure = rng.random((3, 500)).astype(np.float16)
    cards = [A.but(evidence=Evidence.of("d", r, c)) for r, c in zip(right, sure, strict=True)]
    stages = [Stage(cards[0], 0.6), Stage(cards[1], 0.4), Stage(cards[2])]
    expected = np.where(sure[0] >= 0.6, right[0], np.where(sure[1] >= 0.4, right[1], right[2])).mean()
    assert cascade_accuracy(stages) == pytest.approx(expected)
    steps = (
        step(0, "s0@1", (REQUEST, "in0")),
        step(1, "s1@1", (REQUEST, "in0"), guard=Guard(0, 0.6)),
        step(2, "s2@1", (REQUEST, "in0"), guard=Guard(1, 0.4)),
    )
    known = {f"s{i}@1": c.but(name=f"s{i}") for i, c in enumerate(cards)}
    p = predict(steps, answer((0, "out0"), (1, "out0"), (2, "out0")), known)
    assert p.accuracy == pytest.approx(expected)
    passed = sure[0] < 0.6
    assert p.cost == pytest.approx(1 + passed.mean() + (passed & (sure[1] < 0.4)).mean())


def test_evidence_from_different_data_is_not_compared():
    right = np.ones(100, bool)
    a = A.but(evidence=Evidence.of("d1", right, right.astype(float)), accuracy=Accuracy(0.6))
    b = B.but(evidence=Evidence.of("d2", right, right.astype(float)), accuracy=Accuracy(0.6))
    assert ensemble_accuracy([a, b], [1.0, 1.0]) == pytest.approx(0.6)


def test_coverage_comes_from_the_next_stricter_threshold():
    judge = A.but(thresholds=(Threshold(0.5, 0.9, 0.95), Threshold(0.8, 0.5, 0.99)))
    assert coverage(judge, 0.5) == (0.9, 0.95)
    assert coverage(judge, 0.6) == (0.5, 0.99)
    assert coverage(judge, 0.9) == (0.0, 1.0)


def test_a_majority_of_independent_voters_follows_condorcet():
    assert majority([0.7]) == pytest.approx(0.7)
    assert majority([0.7, 0.7]) == pytest.approx(0.7)
    assert majority([0.7] * 3) == pytest.approx(0.7**3 + 3 * 0.7**2 * 0.3)
    assert majority([0.9, 0.6, 0.5]) == pytest.approx(
        0.9 * 0.6 * 0.5 + 0.9 * 0.6 * 0.5 + 0.9 * 0.4 * 0.5 + 0.1 * 0.6 * 0.5
    )


def test_without_evidence_a_vote_is_worth_less_than_independent_voters_promise():
    voters = [A.but(accuracy=Accuracy(0.7)) for _ in range(3)]
    assert 0.7 < ensemble_accuracy(voters, [1.0] * 3) < majority([0.7] * 3)


def test_an_ensemble_with_evidence_weighs_votes_with_confidence():
    right = np.array([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 1, 0]], bool)
    sure = np.array([[0.5, 0.25, 0.25, 0.875], [0.5, 0.75, 0.25, 0.25], [0.5, 0.25, 0.75, 0.25]])
    cards = [A.but(evidence=Evidence.of("d", r, c)) for r, c in zip(right, sure, strict=True)]
    # Row by row: 1.0 > 0.5, 0.75 > 0.5, 0.75 > 0.5, 0.875 > 0.5: the sure voter is right although outnumbered.
    assert ensemble_accuracy(cards, [1.0] * 3) == pytest.approx(1.0)
