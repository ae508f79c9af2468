from __future__ import annotations

import json
from typing import Any

import pytest

from planner.errors import BadCard
from planner.rollout.codec import parse_plan, parse_rollout, plan_to_dict, rollout_to_dict
from planner.rollout.records import RolloutPlan, RolloutStep
from planner.rollout.rollout import decide, follow, observe, promote
from tests.planner.rollout.seen import begun, mirrored, served


def test_a_rollout_comes_back_from_json_as_it_was() -> None:
    rollout = observe(begun(), [mirrored(400, failed=1, wrong=2)])
    rollout = follow(rollout, decide(rollout, 1020.0), 1020.0)
    rollout = observe(rollout, [served("2", 100), served("3", 9), mirrored(30, slower=1.1)])
    for one in (begun(), rollout, promote(rollout, 1030.0, by="ada")):
        assert parse_rollout(json.loads(json.dumps(rollout_to_dict(one), allow_nan=False))) == one


def test_what_comes_back_goes_on_as_if_it_had_never_been_away() -> None:
    rollout = observe(begun(), [mirrored(400)])
    again = parse_rollout(json.loads(json.dumps(rollout_to_dict(rollout))))
    seen = [mirrored(2000, failed=30)]
    assert decide(observe(again, seen), 1020.0) == decide(observe(rollout, seen), 1020.0)


def test_a_plan_says_only_what_is_not_as_by_default() -> None:
    given = {"steps": [{"share": 0.02, "min_outcomes": 10}], "latency_ratio": 1.5}
    assert parse_plan(given) == RolloutPlan(steps=(RolloutStep(0.02, min_outcomes=10),), latency_ratio=1.5)
    assert parse_plan(plan_to_dict(RolloutPlan())) == RolloutPlan()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"latency_ration": 2}, "latency_ration"),
        ({"steps": [{"share": 0.1, "mirorred": 1}]}, "steps.0.mirorred"),
        ({"steps": [{}]}, "steps.0.share"),
        ({"alpha": "small"}, "alpha"),
        ({"alpha": 0.0}, "alpha is a number from"),
        ({"steps": [{"share": 2.0}]}, "A step's share"),
        ([], "rollout"),
        (None, "rollout"),
    ],
)
def test_a_plan_that_does_not_fit_says_where(wrong: Any, said: str) -> None:
    with pytest.raises(BadCard, match=said):
        parse_plan(wrong)


def test_what_is_no_rollout_is_refused() -> None:
    plain = rollout_to_dict(begun())
    with pytest.raises(BadCard, match="stage"):
        parse_rollout({**plain, "stage": "somewhere"})
