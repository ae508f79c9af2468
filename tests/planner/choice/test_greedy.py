from __future__ import annotations

import random

import pytest

from planner.choice.greedy import EpsilonGreedy, Fixed, Prior
from planner.choice.policy import Arm, Context, Policy, Result

ARMS = tuple(Arm(plan, accuracy, 100, 10.0, 0.0) for plan, accuracy in (("a", 0.92), ("b", 0.9), ("c", 0.88)))
CONTEXT = Context("digits")


def propensities(policy: Policy, arms: tuple[Arm, ...] = ARMS) -> tuple[float, ...]:
    return policy.choose(CONTEXT, arms, random.Random(1), 0.0).propensities


def test_the_prior_takes_what_the_planner_ranks_first_whatever_comes() -> None:
    policy = Prior()
    policy.learn(CONTEXT, ARMS[0], Result.judged(0.0, 1000))
    assert propensities(policy) == (1.0, 0.0, 0.0)


def test_the_prior_passes_over_what_is_excluded() -> None:
    assert propensities(Prior(), (Arm("x", 0.99, 1, 1.0, 0.0, excluded=True), *ARMS)) == (0.0, 1.0, 0.0, 0.0)


def test_a_fixed_plan_is_taken_while_it_is_there_and_open() -> None:
    assert propensities(Fixed("b")) == (0.0, 1.0, 0.0)
    assert propensities(Fixed("z")) == (1.0, 0.0, 0.0)
    assert propensities(Fixed("b"), (ARMS[0], Arm("b", 0.9, 100, 10.0, 0.0, excluded=True))) == (1.0, 0.0)


def test_greedy_takes_the_best_it_knows_and_any_by_chance() -> None:
    policy = EpsilonGreedy(epsilon=0.3)
    assert propensities(policy) == pytest.approx((0.8, 0.1, 0.1))
    policy.learn(CONTEXT, ARMS[0], Result.judged(50, 100))
    policy.learn(CONTEXT, ARMS[1], Result.judged(90, 100))
    assert propensities(policy) == pytest.approx((0.1, 0.8, 0.1))


def test_greedy_draws_by_its_propensities_and_leaves_out_what_is_excluded() -> None:
    policy, rng = EpsilonGreedy(epsilon=0.5), random.Random(1)
    arms = (*ARMS, Arm("x", 0.99, 1, 1.0, 0.0, excluded=True))
    choices = [policy.choose(CONTEXT, arms, rng, 0.0) for _ in range(3000)]
    counts = [sum(choice.arm == i for choice in choices) for i in range(4)]
    assert counts[3] == 0
    assert counts[0] == pytest.approx(2000, abs=150)
