from statistics import NormalDist

import numpy as np
import pytest

from planner.cards import Accuracy, Evidence, Threshold
from planner.catalogue import Catalogue
from planner.estimates import CAUTION, Stage, cascade_accuracy, coverage, ensemble_accuracy, majority, predict
from planner.goals import Objective
from planner.plan import plan
from planner.plans import REQUEST, Binding, Guard, Source, Step
from tests.planner.worlds import card, wish


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
    joint = np.where(sure[0] >= 0.6, right[0], np.where(sure[1] >= 0.4, right[1], right[2]))
    expected = joint.mean() - allowance(joint, right)
    assert 0.005 < allowance(joint, right) < 0.02
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


def allowance(joint, parts):
    """What is taken off for luck, by the table of Agresti and Min: half a row more in each of the four cells."""
    n = len(joint) + 2
    errors = []
    for part in parts:
        only_joint, only_part = (joint & ~part).sum() + 0.5, (~joint & part).sum() + 0.5
        errors.append(np.sqrt(only_joint + only_part - (only_joint - only_part) ** 2 / n) / n)
    return CAUTION * min(errors)


def test_stages_that_never_differ_are_worth_a_little_less_together_than_alone():
    right = np.arange(500) >= 10
    cards = [A.but(evidence=Evidence.of("d", right, np.linspace(0, 1, 500))) for _ in range(2)]
    together = cascade_accuracy([Stage(cards[0], 0.5), Stage(cards[1])])
    assert right.mean() - 1 / 500 < together < right.mean()


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
    assert ensemble_accuracy(cards, [1.0] * 3) == pytest.approx(1.0 - allowance(np.ones(4, bool), right))


# Does a plan keep what it promises? Classifiers with a known truth, chosen by the planner on little evidence.

THRESHOLDS = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # as shares of rows kept
ALIKE = 0.6  # how far what is hard for one classifier is hard for the others


def answers(accuracies, n_rows, rng):
    """Per classifier, which rows it gets right and how sure it is: surer where it is far from its limits."""
    hardness, found = rng.normal(size=n_rows), []
    for accuracy in accuracies:
        limit = NormalDist().inv_cdf(accuracy)
        margin = limit - np.sqrt(ALIKE) * hardness - np.sqrt(1 - ALIKE) * rng.normal(size=n_rows)
        sure = np.abs(margin) * np.where(margin > 0, 1.0, 0.6) + 0.7 * rng.normal(size=n_rows)
        found.append((margin > 0, 1 / (1 + np.exp(-sure))))
    return found


def promises(accuracies, costs, objective, n_rows, n_times):
    """How much better the best plan seems than it is, on average, and how much better row by row; in points."""
    world = answers(accuracies, 200_000, np.random.default_rng(1))
    rng = np.random.default_rng(n_rows)
    gaps, naive = [], []
    for _ in range(n_times):
        seen = answers(accuracies, n_rows, rng)
        cards = []
        for i, (right, sure) in enumerate(seen):
            edges = [float(np.quantile(sure, 1 - share)) for share in THRESHOLDS]
            points = tuple(Threshold(t, float((sure >= t).mean()), float(right[sure >= t].mean())) for t in edges)
            known = {"thresholds": points, "evidence": Evidence.of("d", right, sure)}
            cards.append(card(f"c{i}", "x", "y", accuracy=float(right.mean()), cost=costs[i], **known))
        best = plan(wish("x", "y", objective=objective), Catalogue.of(cards)).best
        used = [int(step.extension[1]) for step in best.steps]
        below = best.steps[-1].guard.below if len(used) > 1 else 0.0

        def true(rows, used=used, below=below):
            (first, sure), (last, _) = rows[used[0]], rows[used[-1]]
            return float(np.where(sure >= below, first, last).mean())

        gaps.append(best.prediction.accuracy - true(world))
        naive.append(true(seen) - true(world))
    return 100 * np.mean(gaps), 100 * np.mean(naive)


@pytest.mark.parametrize("n_rows", [150, 500, 2000])
@pytest.mark.parametrize("cheap", [0.9, 0.97])
def test_a_cascade_keeps_what_it_promises(n_rows, cheap):
    gap, naive = promises((cheap, 0.985), (0.05, 1.0), Objective(1.0, 0.0, 0.1), n_rows, 100)
    assert abs(gap) < {150: 0.45, 500: 0.15, 2000: 0.1}[n_rows]
    assert abs(gap) < naive or naive < 0.1  # as counted row by row it is not kept


@pytest.mark.parametrize("n_rows", [500, 2000])
def test_the_best_of_many_plans_nearly_keeps_what_it_promises(n_rows):
    gap, naive = promises((0.95, 0.975, 0.98, 0.985), (0.01, 0.1, 0.2, 0.4), Objective(1.0, 0.0, 0.01), n_rows, 100)
    assert gap < {500: 0.5, 2000: 0.2}[n_rows]
    assert gap < 0.7 * naive
