from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice.exp3 import Exp3, Exp4, lost
from planner.choice.greedy import Prior
from planner.choice.policy import Arm, Context, Policy, Result
from planner.choice.worlds import adversarial, run, segmented
from planner.goals import Objective

ARMS = tuple(Arm(plan, 0.9, 100, 10.0, 0.0) for plan in "abc")
CONTEXT = Context("digits", "ann")
KINDS = pytest.mark.parametrize("kind", [Exp3, Exp4])


def shares(policy: Policy, n: int, right: tuple[float, float, float], seed: int = 1) -> list[float]:
    rng = random.Random(seed)
    for _ in range(n):
        choice = policy.choose(CONTEXT, ARMS, rng, 0.0)
        truth = float(rng.random() < right[choice.arm])
        policy.learn(CONTEXT, ARMS[choice.arm], Result.answered(10.0, 0.0, right=truth, propensity=choice.propensity))
    return list(policy.choose(CONTEXT, ARMS, rng, 0.0).propensities)


@KINDS
def test_it_comes_to_prefer_what_loses_least(kind: type[Exp3] | type[Exp4]) -> None:
    assert shares(kind(), 3000, (0.6, 0.9, 0.6))[1] > 0.8


@KINDS
def test_every_plan_is_tried_and_propensities_sum_to_one(kind: type[Exp3] | type[Exp4]) -> None:
    found = shares(kind(mixing=0.06), 500, (0.2, 0.9, 0.2))
    assert sum(found) == pytest.approx(1.0)
    assert min(found) >= 0.02


@KINDS
def test_it_turns_round_when_the_world_does(kind: type[Exp3] | type[Exp4]) -> None:
    policy = kind()
    shares(policy, 2000, (0.9, 0.5, 0.5))
    assert shares(policy, 2000, (0.5, 0.9, 0.5), seed=2)[1] > 0.7


@KINDS
def test_it_begins_with_what_the_planner_prefers(kind: type[Exp3] | type[Exp4]) -> None:
    arms = (Arm("a", 0.95, 100, 10.0, 0.0), Arm("b", 0.6, 100, 10.0, 0.0))
    found = kind().choose(CONTEXT, arms, random.Random(1), 0.0).propensities
    assert found[0] > 0.8


@KINDS
@settings(max_examples=20)
@given(excluded=st.integers(0, 2), seed=st.integers(0, 50))
def test_an_excluded_plan_is_never_drawn(kind: type[Exp3] | type[Exp4], excluded: int, seed: int) -> None:
    arms = tuple([Arm(arm.plan, 0.9, 100, 10.0, 0.0, excluded=i == excluded) for i, arm in enumerate(ARMS)])
    policy, rng = kind(), random.Random(seed)
    for _ in range(20):
        choice = policy.choose(CONTEXT, arms, rng, 0.0)
        assert choice.arm != excluded
        assert choice.propensities[excluded] == 0.0
        policy.learn(CONTEXT, arms[choice.arm], Result.judged(0.0, propensity=choice.propensity))


@KINDS
def test_one_result_of_many_requests_is_not_the_end_of_a_plan(kind: type[Exp3] | type[Exp4]) -> None:
    policy, rng = kind(), random.Random(1)
    policy.choose(CONTEXT, ARMS, rng, 0.0)
    policy.learn(CONTEXT, ARMS[0], Result(n=100_000, n_failed=100_000, propensity=0.01))
    assert policy.choose(CONTEXT, ARMS, rng, 0.0).propensities[0] > 0.02


@KINDS
def test_it_beats_the_planner_where_plans_take_turns(kind: type[Exp3] | type[Exp4]) -> None:
    world = adversarial(1)
    assert run(world, kind(rate=0.1), 5000, 1).lost[-1] < 0.8 * run(world, Prior(), 5000, 1).lost[-1]


def test_exp4_trusts_the_segment_where_segments_differ() -> None:
    found = run(segmented(1), Exp4(rate=0.1), 4000, 1, settled=3000)
    assert found.share_on_best > 0.6


def test_what_comes_in_two_parts_is_lost_once() -> None:
    context = Context("digits", objective=Objective(1.0, 1.0, 1.0))
    parts = lost(context, Result.answered(100.0, 0.2)) + lost(context, Result.judged(0.0))
    assert parts == pytest.approx(lost(context, Result.answered(100.0, 0.2, right=0.0))) == pytest.approx(1.3)


def test_a_plan_that_was_not_among_the_arms_teaches_nothing() -> None:
    policy = Exp3()
    before = policy.choose(CONTEXT, ARMS, random.Random(1), 0.0).propensities
    policy.learn(CONTEXT, Arm("z", 0.9, 100, 10.0, 0.0), Result.judged(0.0))
    policy.learn(Context("letters"), ARMS[0], Result.judged(0.0))
    assert policy.choose(CONTEXT, ARMS, random.Random(1), 0.0).propensities == before
