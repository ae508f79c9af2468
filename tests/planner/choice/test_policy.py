from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.choice.policy import Arm, Choice, Result, drawn, open_arms, value
from planner.errors import NoPlan
from planner.goals import Objective

UNIT = st.floats(0.0, 1.0)


def arm(plan: str, *, pinned: bool = False, excluded: bool = False) -> Arm:
    return Arm(plan, 0.9, 100, 10.0, 0.0, pinned, excluded)


def test_the_value_is_the_objective_negated() -> None:
    objective = Objective(2.0, 3.0, 4.0)
    assert value(objective, 0.8, 50.0, 0.1) == -objective.score(0.8, 50.0, 0.1)


def test_a_failure_is_worth_as_little_as_a_wrong_answer() -> None:
    assert value(Objective(), 0.9, 10.0, 0.0, failures=0.1) == pytest.approx(value(Objective(), 0.81, 10.0, 0.0))


def test_a_plan_that_is_never_right_has_a_finite_value() -> None:
    assert math.isfinite(value(Objective(), 0.0, 10.0, 0.0))
    assert math.isfinite(value(Objective(), 0.9, 10.0, 0.0, failures=1.0))


@given(UNIT, st.floats(0.01, 1e4), st.floats(0.0, 10.0))
def test_a_reward_is_at_most_zero_and_falls_with_whatever_is_worse(right: float, ms: float, cost: float) -> None:
    def reward(right: float, ms: float, cost: float) -> float:
        return Result.answered(ms, cost, right=right).reward(Objective(), 0.5)

    assert reward(right, ms, cost) <= 0.0
    assert reward(right * 0.5, ms, cost) <= reward(right, ms, cost)
    assert reward(right, ms * 2.0, cost) < reward(right, ms, cost)
    assert reward(right, ms, cost + 1.0) < reward(right, ms, cost)


def test_where_no_truth_is_known_the_accuracy_is_assumed() -> None:
    assert Result.answered(10.0, 0.0).reward(Objective(), 0.75) == pytest.approx(-0.26)
    assert Result.answered(10.0, 0.0, right=1.0).reward(Objective(), 0.75) == pytest.approx(-0.01)


def test_a_failed_request_is_a_wrong_answer_without_latency() -> None:
    assert Result.failed().reward(Objective(), 0.75) == -1.0


def test_pinned_arms_keep_the_others_out_and_excluded_ones_are_never_open() -> None:
    assert open_arms([arm("a"), arm("b", excluded=True), arm("c")]) == [0, 2]
    assert open_arms([arm("a"), arm("b", pinned=True), arm("c")]) == [1]
    assert open_arms([arm("a"), arm("b", pinned=True, excluded=True)]) == [0]


@pytest.mark.parametrize("arms", [[], [arm("a", excluded=True)]])
def test_without_an_open_arm_there_is_no_choice(arms: list[Arm]) -> None:
    with pytest.raises(NoPlan):
        open_arms(arms)


@given(st.lists(UNIT, min_size=1, max_size=8).filter(lambda weights: sum(weights) > 1e-3), st.integers(0, 1000))
def test_what_has_no_probability_is_never_drawn(weights: list[float], seed: int) -> None:
    propensities = [weight / sum(weights) for weight in weights]
    rng = random.Random(seed)
    assert all(propensities[drawn(propensities, rng)] > 0.0 for _ in range(20))


def test_draws_come_as_often_as_they_should() -> None:
    rng = random.Random(1)
    draws = [drawn((0.2, 0.0, 0.8), rng) for _ in range(4000)]
    assert draws.count(0) == pytest.approx(800, abs=100)


def test_a_choice_knows_its_own_propensity() -> None:
    assert Choice(1, (0.25, 0.75)).propensity == 0.75
