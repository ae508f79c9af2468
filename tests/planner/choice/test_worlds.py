from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.choice.greedy import Fixed, Prior
from planner.choice.policy import Arm, Context, Result, value
from planner.choice.thompson import Thompson
from planner.choice.worlds import WORLDS, Truth, World, late, run, segmented, slope, stationary
from planner.goals import Objective
from tests.benchmarks.digits import CORRUPTIONS, Models, Stream, corrupted, only


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


class Heard(Prior):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.results: list[Result] = []

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        self.results.append(result)


ARM = Arm("never", 0.9, 100, 10.0, 0.0)


def test_where_outcomes_are_known_they_are_what_is_heard() -> None:
    def outcome(arm: int, segment: int, step: int, n: int, rng: random.Random) -> tuple[bool, float, float]:
        return step == 2, 10.0 + step, float(step == 1)

    world = World("known", (ARM,), 1, lambda i, s, step, n: Truth(0.5, 10.0), outcome=outcome)
    policy = Heard()
    run(world, policy, 3, 1)
    assert [result.right for result in policy.results] == [0.0, 1.0, 0.0]
    assert [result.n_failed for result in policy.results] == [0, 0, 1]
    assert math.exp(policy.results[1].log_ms) == pytest.approx(11.0)


def test_where_answers_are_counted_a_plan_that_is_never_right_loses_one_by_each_request() -> None:
    arms = (ARM, replace(ARM, plan="always"))
    world = World("counted", arms, 1, lambda i, s, step, n: Truth(float(i), 10.0), counted=True)
    assert run(world, Prior(), 100, 1).regret[-1] == pytest.approx(100.0)
    assert run(replace(world, counted=False), Prior(), 100, 1).regret[-1] > 900.0


@pytest.mark.parametrize("kind", CORRUPTIONS)
def test_corrupted_digits_are_digits_still(kind: str) -> None:
    rng = np.random.default_rng(1)
    images = np.zeros((20, 8, 8))
    images[:, 3:5, 2:6] = 0.75
    seen = corrupted(images, kind, rng)
    assert seen.shape == images.shape
    assert seen.min() >= 0.0
    assert seen.max() <= 1.0
    assert (kind == "clean") == np.array_equal(seen, images)
    if kind == "shift":
        assert sorted(set(seen.sum(axis=(1, 2)))) == [6.0]


def test_a_stream_of_digits_follows_its_mix_and_tells_what_the_models_said() -> None:
    right = np.zeros((len(CORRUPTIONS), 1, 4), dtype=np.bool_)
    right[2, 0, 3] = True
    known = Models((ARM,), right, ((0.0, 0.0, 0.25, 0.0, 0.0),), np.zeros((len(CORRUPTIONS), 4, 2)), ((7.0,),))

    def mix(segment: int, t: float) -> Sequence[float]:
        return only(2) if t < 0.5 else (1.0, 0.0, 0.0, 0.0, 3.0)

    stream = Stream(known, mix, (3, 1, 0, 2), (0.0, 0.999, 0.2, 0.3))
    assert [stream.request(0, step, 4) for step in range(4)] == [(2, 3), (2, 1), (0, 0), (4, 2)]
    assert stream.outcome(0, 0, 0, 4, random.Random(1)) == (False, 7.0, 1.0)
    assert stream.truth(0, 0, 0, 4).accuracy == 0.25
    assert stream.truth(0, 0, 3, 4).accuracy == 0.0
