from __future__ import annotations

from dataclasses import replace

import pytest

from planner.rollout.records import STEPS, RolloutPlan
from planner.rollout.simulation import WORLDS, World, simulate

PLAN = RolloutPlan()
CANARY = RolloutPlan(steps=tuple(replace(step, mirrored=0.0) for step in STEPS if step.share))
BY_NAME = {world.name: world for world in WORLDS}


def test_the_same_seed_gives_the_same_result() -> None:
    world = replace(BY_NAME["equally good"], n_requests=3000)
    assert simulate(world, PLAN, 1) == simulate(world, PLAN, 1)


@pytest.mark.parametrize("name", ["5 points worse", "2 times slower", "fails 1 %"])
def test_a_bad_challenger_is_rolled_back_before_it_serves_anybody(name: str) -> None:
    for seed in range(2):
        result = simulate(BY_NAME[name], PLAN, seed)
        assert (result.stage, result.n_hurt) == ("rolled_back", 0)


@pytest.mark.parametrize("name", ["5 points worse", "2 times slower", "fails 1 %"])
def test_without_a_shadow_it_serves_few_until_then(name: str) -> None:
    result = simulate(BY_NAME[name], CANARY, 2, every_s=10.0)
    assert (result.stage, result.most_share <= 0.05) == ("rolled_back", True)
    assert 0.0 < result.hurt <= 0.05


def test_harm_that_only_shows_when_it_serves_is_found_before_it_serves_many() -> None:
    result = simulate(BY_NAME["fails 1 % when served"], PLAN, 2, every_s=10.0)
    assert (result.stage, result.hurt <= 0.05) == ("rolled_back", True)


def test_an_equally_good_challenger_is_promoted() -> None:
    result = simulate(BY_NAME["equally good"], PLAN, 1, every_s=10.0)
    assert (result.stage, result.most_share) == ("champion", 0.5)
    assert result.n_requests < 80_000


def test_users_that_are_unlike_and_stay_with_a_version_raise_no_alarm_where_all_is_checked() -> None:
    world = BY_NAME["equally good, 200 users"]
    unchecked = RolloutPlan(steps=tuple(replace(step, checked=0.0) for step in STEPS))
    seeds = range(10_000, 10_010)
    assert not any(simulate(world, PLAN, seed, every_s=20.0).stage == "rolled_back" for seed in seeds)
    assert any(simulate(world, unchecked, seed, every_s=20.0).stage == "rolled_back" for seed in seeds)


def test_without_truth_nobody_is_promoted() -> None:
    result = simulate(World("no truth", judged=0.0, n_requests=30_000), PLAN, 1, every_s=10.0)
    assert (result.stage, result.n_requests, result.most_share) == ("canary", 30_000, 0.05)
    assert "accuracy is not shown" in result.reason
