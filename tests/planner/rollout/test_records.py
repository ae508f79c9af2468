from __future__ import annotations

from typing import Any

import pytest

from planner.errors import BadCard, BadRequest
from planner.rollout.latencies import Latencies
from planner.rollout.records import Observation, Pairs, RolloutPlan, RolloutStep


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"share": 1.0}, "share is a number from 0 to 0.99"),
        ({"share": -0.1}, "share is a number"),
        ({"share": "half"}, "share is a number"),
        ({"share": True}, "share is a number"),
        ({"share": float("nan")}, "share is a number"),
        ({"share": 0.0}, "mirrors some requests"),
        ({"share": 0.1, "mirrored": 0.95, "checked": 0.5}, "0.95 is mirrored"),
        ({"share": 0.1, "checked": 1.5}, "checked is a number from 0 to 1"),
        ({"share": 0.1, "mirrored": 1.5}, "mirrored is a number from 0 to 1"),
        ({"share": 0.1, "min_outcomes": 0}, "min_outcomes is a count of at least 1"),
        ({"share": 0.1, "min_outcomes": 1.5}, "min_outcomes is a count"),
        ({"share": 0.1, "min_s": -1.0}, "min_s is a number at least 0"),
    ],
)
def test_a_step_that_makes_no_sense_says_why(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadCard, match=said):
        RolloutStep(**wrong)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"steps": ()}, "at least one step"),
        ({"steps": (RolloutStep(0.1), RolloutStep(0.1))}, "0.1 follows 0.1"),
        ({"steps": (RolloutStep(0.1), RolloutStep(0.0, 1.0))}, "0 follows 0.1"),
        ({"accuracy_margin": 0.0}, "accuracy_margin"),
        ({"accuracy_margin": 1}, "accuracy_margin"),
        ({"error_margin": -0.1}, "error_margin"),
        ({"latency_ratio": 1.0}, "latency_ratio"),
        ({"latency_quantiles": (0.5, 1.0)}, "latency quantile"),
        ({"alpha": 0.0}, "alpha"),
        ({"promote_alpha": 0.9}, "promote_alpha"),
        ({"careful_share": 1.1}, "careful_share"),
        ({"served_factor": 0.5}, "served_factor"),
        ({"min_agreement": 1.0}, "min_agreement"),
        ({"patience_s": float("nan")}, "patience_s"),
        ({"give_up_s": -1.0}, "give_up_s"),
        ({"require_truth": False, "min_agreement": None}, "agreement stands in"),
        ({"require_truth": False, "steps": (RolloutStep(0.1),)}, "mirrors nothing"),
    ],
)
def test_a_plan_that_makes_no_sense_says_why(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(BadCard, match=said):
        RolloutPlan(**wrong)


def test_the_plan_by_default_begins_unseen_and_counts_its_tests() -> None:
    plan = RolloutPlan()
    assert plan.steps[0].share == 0.0
    assert plan.n_tests == 5
    assert RolloutPlan(min_agreement=None, latency_quantiles=()).n_tests == 2


@pytest.mark.parametrize(
    "wrong",
    [{"n": -1}, {"n": 1.0}, {"n": True}, {"n": 3, "n_failed": 4}, {"n_right": 1}, {"n_judged": 2, "n_right": 3}],
)
def test_an_observation_counts_outcomes(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="is a count of at least 0"):
        Observation("1", **wrong)


@pytest.mark.parametrize(
    "wrong",
    [
        {"n": -1},
        {"n": 3, "n_failed": 2, "n_both_failed": 2},
        {"n_compared": 1, "n_agreed": 2},
        {"n_judged": 3, "n_right": 2, "n_champion_right": 2},
    ],
)
def test_pairs_count_outcomes(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="is a count of at least 0"):
        Pairs(**wrong)


def test_observations_and_pairs_add_up() -> None:
    one, other = Observation("1", 5, 1, Latencies({3: 4}), 2, 1), Observation("1", 2, 0, Latencies({3: 2}), 1, 1)
    assert one.plus(other) == Observation("1", 7, 1, Latencies({3: 6}), 3, 2)
    with pytest.raises(BadRequest, match="do not add"):
        one.plus(Observation("2"))
    pairs = Pairs(5, 1, 1, 1, 2, 1, 4, 1, 1, 1, Latencies({1: 3}), Latencies({2: 3}))
    with pytest.raises(BadRequest, match="do not add"):
        pairs.plus(Pairs(served=True))
    assert pairs.plus(pairs) == Pairs(10, 2, 2, 2, 4, 2, 8, 2, 2, 2, Latencies({1: 6}), Latencies({2: 6}))
