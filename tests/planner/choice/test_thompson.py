from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice.greedy import Prior
from planner.choice.policy import Arm, Choice, Context, Result
from planner.choice.posteriors import Posteriors
from planner.choice.thompson import Thompson
from planner.choice.worlds import abrupt, run, segmented, stationary
from planner.errors import NoPlan
from planner.goals import Objective

ARMS = tuple(Arm(plan, accuracy, 100, 10.0, 0.0) for plan, accuracy in (("a", 0.92), ("b", 0.9), ("c", 0.88)))
CONTEXT = Context("digits", "ann")


def draw(policy: Thompson, arms: tuple[Arm, ...], n: int, seed: int = 1, context: Context = CONTEXT) -> list[Choice]:
    rng = random.Random(seed)
    return [policy.choose(context, arms, rng, 0.0) for _ in range(n)]


def test_plans_that_may_be_the_best_are_tried_and_the_likeliest_most() -> None:
    choices = draw(Thompson(share=1.0), ARMS, 2000)
    counts = [sum(choice.arm == i for choice in choices) for i in range(3)]
    assert counts[0] > counts[1] > counts[2] > 20


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(0.6, 0.99), min_size=2, max_size=6), st.integers(0, 100))
def test_propensities_sum_to_one_and_are_how_often_plans_are_drawn(accuracies: list[float], seed: int) -> None:
    arms = tuple([Arm(f"p{i}", accuracy, 50, 10.0, 0.0) for i, accuracy in enumerate(accuracies)])
    choices = draw(Thompson(share=1.0), arms, 2000, seed)
    propensities = choices[0].propensities
    assert sum(propensities) == pytest.approx(1.0)
    expected = [2000 * p for p in propensities]
    counts = [sum(choice.arm == i for choice in choices) for i in range(len(arms))]
    chi_square = sum((c - e) ** 2 / e for c, e in zip(counts, expected, strict=True) if e > 0.0)
    assert chi_square < 40.0  # 5 degrees of freedom at most: exceeded once in ten million times


def test_propensities_add_up_to_draws_also_when_the_budget_is_small_and_beliefs_move() -> None:
    rng, policy = random.Random(1), Thompson(share=0.1)
    expected, variance, drawn = 0.0, 0.0, 0
    for _ in range(5000):
        choice = policy.choose(CONTEXT, ARMS, rng, 0.0)
        p = choice.propensities[1]
        expected, variance, drawn = expected + p, variance + p * (1.0 - p), drawn + (choice.arm == 1)
        policy.learn(CONTEXT, ARMS[choice.arm], Result.answered(10.0, 0.0, right=float(rng.random() < 0.9)))
    assert abs(drawn - expected) < 5.0 * variance**0.5


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=8), st.integers(0, 50))
def test_an_excluded_plan_is_never_drawn_and_pinned_ones_alone_are(marks: list[tuple[bool, bool]], seed: int) -> None:
    arms = tuple([Arm(f"p{i}", 0.9, 50, 10.0, 0.0, pinned, excluded) for i, (pinned, excluded) in enumerate(marks)])
    if all(arm.excluded for arm in arms):
        with pytest.raises(NoPlan):
            draw(Thompson(), arms, 1)
        return
    pinned = any(arm.pinned and not arm.excluded for arm in arms)
    for choice in draw(Thompson(), arms, 50, seed):
        assert not arms[choice.arm].excluded
        assert arms[choice.arm].pinned or not pinned
        assert all(p == 0.0 for arm, p in zip(arms, choice.propensities, strict=True) if arm.excluded)


@settings(max_examples=15, deadline=None)
@given(st.floats(0.0, 0.5), st.integers(1, 40), st.integers(0, 100))
def test_no_more_requests_than_the_budget_go_to_plans_believed_worse(share: float, group: int, seed: int) -> None:
    policy, rng, worse = Thompson(share=share, burst=6.0), random.Random(seed), 0
    context = replace(CONTEXT, n_requests=group)
    for i in range(300):
        choice = policy.choose(context, ARMS, rng, 0.0)
        beliefs = policy.posteriors.beliefs(context, ARMS, 0.0)
        worths = [belief.worth(Objective())[0] for belief in beliefs]
        worse += group * (worths[choice.arm] < max(worths) - 1e-9)
        assert worse <= share * group * (i + 1) + 18.0


def test_without_a_budget_the_best_is_taken() -> None:
    choices = draw(Thompson(share=0.0, burst=0.0), ARMS, 50)
    assert {choice.arm for choice in choices} == {0}
    assert choices[0].propensities == (1.0, 0.0, 0.0)


def test_a_large_group_waits_until_the_budget_allows_all_of_it() -> None:
    policy = Thompson(share=0.1, burst=0.0)
    context = replace(CONTEXT, n_requests=100)
    choices = draw(policy, ARMS, 400, context=context)
    others = [i for i, choice in enumerate(choices) if choice.arm != 0]
    assert others[0] >= 9
    assert 5 <= len(others) <= 40


def test_it_learns_what_works_and_keeps_looking() -> None:
    policy = Thompson()
    for arm, right in zip(ARMS, (60, 95, 60), strict=True):
        policy.learn(CONTEXT, arm, Result.judged(right, 100))
    choice = draw(policy, ARMS, 1)[0]
    assert choice.propensities[1] > 0.95
    assert min(choice.propensities) > 0.0
    assert choice.arm == 1
    assert "best" in choice.reason


def test_what_is_little_known_is_looked_at_even_when_it_seems_bad() -> None:
    policy = Thompson(least=1.0)
    policy.learn(CONTEXT, ARMS[0], Result.judged(950, 1000))
    policy.learn(CONTEXT, ARMS[1], Result.judged(0, 20))
    policy.learn(CONTEXT, ARMS[2], Result.judged(500, 1000))
    propensities = draw(policy, ARMS, 1)[0].propensities
    assert propensities[1] > 0.01
    assert propensities[1] > 5.0 * propensities[2] > 0.0


def test_what_matters_is_the_objective_of_the_goal() -> None:
    arms = (Arm("right", 0.95, 500, 300.0, 0.0), Arm("fast", 0.8, 500, 5.0, 0.0), Arm("cheap", 0.8, 500, 300.0, 0.0))
    policy = Thompson(share=0.0, burst=0.0)
    patient = draw(policy, arms, 1, context=replace(CONTEXT, objective=Objective(latency=0.0)))
    hurried = draw(policy, arms, 1, context=replace(CONTEXT, objective=Objective(latency=10.0)))
    assert (patient[0].arm, hurried[0].arm) == (0, 1)


def test_what_one_gateway_learns_another_chooses_by() -> None:
    one, two = Thompson(), Thompson(share=0.0, burst=0.0)
    draw(two, ARMS, 1)
    one.learn(CONTEXT, ARMS[2], Result.judged(200, 200))
    one.learn(CONTEXT, ARMS[0], Result.judged(100, 200))
    one.learn(CONTEXT, ARMS[1], Result.judged(100, 200))
    two.posteriors.absorb(one.posteriors.take_delta(), 0.0)
    assert draw(two, ARMS, 1)[0].arm == 2


def test_it_survives_a_restart() -> None:
    before = Thompson(share=0.0, burst=0.0)
    before.learn(CONTEXT, ARMS[2], Result.judged(200, 200))
    before.learn(CONTEXT, ARMS[0], Result.judged(100, 200))
    before.learn(CONTEXT, ARMS[1], Result.judged(100, 200))
    after = Thompson(Posteriors.from_json(before.posteriors.to_json()), share=0.0, burst=0.0)
    assert draw(after, ARMS, 1)[0].arm == 2


def test_other_plans_for_the_same_segment_are_kept_apart() -> None:
    policy = Thompson(share=0.0, burst=0.0)
    others = (Arm("x", 0.5, 50, 10.0, 0.0), Arm("y", 0.99, 50, 10.0, 0.0))
    assert [draw(policy, arms, 1)[0].arm for arms in (ARMS, others, ARMS, others)] == [0, 1, 0, 1]


def test_the_same_seed_gives_the_same_choices() -> None:
    runs = [[choice.arm for choice in draw(Thompson(share=1.0), ARMS, 200, seed)] for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


@pytest.mark.parametrize("seed", [1, 2])
def test_where_the_planner_is_wrong_it_loses_much_less_than_the_planner(seed: int) -> None:
    world = stationary(seed)
    ours, priors = run(world, Thompson(), 2000, seed), run(world, Prior(), 2000, seed)
    assert 0.0 < ours.regret[-1] < priors.regret[-1] / 3.0


def test_each_segment_gets_its_own_best_plan() -> None:
    found = run(segmented(1), Thompson(), 4000, 1, settled=2000)
    assert found.share_on_best > 0.9


def test_it_follows_a_world_that_changes() -> None:
    world = abrupt(1)
    ours, priors = run(world, Thompson(), 3000, 1), run(world, Prior(), 3000, 1)
    assert ours.lost[-1] < priors.lost[-1] / 2.0
