from __future__ import annotations

import math

import pytest

from planner.choice.greedy import Fixed, Prior
from planner.choice.policy import value
from planner.choice.thompson import Thompson
from planner.choice.worlds import WORLDS, World, late, run, segmented, slope, stationary
from planner.goals import Objective


def best_of(world: World, segment: int, step: int, n: int) -> int:
    def worth(i: int) -> float:
        truth = world.truth(i, segment, step, n)
        return value(Objective(), truth.accuracy, truth.p50_ms, truth.cost, truth.failures)

    return max(range(len(world.arms)), key=worth)


def test_the_best_fixed_plan_has_no_regret() -> None:
    world = stationary(1)
    best = world.arms[best_of(world, 0, 0, 1000)].plan
    found = run(world, Fixed(best), 1000, 1)
    assert found.regret[-1] == pytest.approx(0.0)
    assert found.share_on_best == 0.0  # nothing came after the first 2,000
    assert run(world, Fixed(best), 1000, 1, settled=0).share_on_best == 1.0


@pytest.mark.parametrize("make", WORLDS)
def test_the_planner_predicts_in_order_and_the_first_is_not_the_best_all_along(make: type[World]) -> None:
    for seed in range(3):
        world = make(seed)  # type: ignore[call-arg, arg-type]
        values = [value(Objective(), arm.accuracy, arm.p50_ms, arm.cost) for arm in world.arms]
        assert values == sorted(values, reverse=True)
        moments = [(segment, step) for segment in range(world.n_segments) for step in (0, 500, 999)]
        assert any(best_of(world, segment, step, 1000) != 0 for segment, step in moments)


def test_in_the_world_of_segments_each_has_another_best() -> None:
    world = segmented(1)
    assert len({best_of(world, segment, 0, 1) for segment in range(4)}) == 4


def test_what_is_lost_to_the_moment_is_never_less_than_the_regret() -> None:
    for make in WORLDS:
        found = run(make(1), Prior(), 500, 1)
        assert all(a >= b - 1e-6 for a, b in zip(found.lost, found.regret, strict=True))


def test_the_same_seed_gives_the_same_run() -> None:
    world = late(1)
    assert run(world, Thompson(), 600, 3) == run(world, Thompson(), 600, 3)
    assert run(world, Thompson(), 600, 3) != run(world, Thompson(), 600, 4)


def test_truth_that_is_late_or_missing_teaches_less() -> None:
    world, prompt = late(1), Thompson()
    run(world, prompt, 600, 1)
    judged = sum(row[7] for row in prompt.posteriors.to_json()["plans"])
    seen = sum(row[4] for row in prompt.posteriors.to_json()["plans"])
    assert seen == pytest.approx(600, rel=0.05)
    assert 200 < judged < 480


def test_the_slope_tells_growth() -> None:
    at = [2**i for i in range(14)]
    assert slope(at, [0.1 * n for n in at]) == pytest.approx(1.0)
    assert slope(at, [math.sqrt(n) for n in at]) == pytest.approx(0.5)
    assert slope(at, [-1.0] * 14) == -math.inf
