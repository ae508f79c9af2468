from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from planner.errors import BadRequest
from planner.rollout.records import RolloutPlan, RolloutStep
from planner.rollout.rollout import promote, start
from planner.rollout.shares import Split, split_of

USERS = [f"user-{i}" for i in range(15_000)]


def canary(share: float, id_: str = "digits:2:0.0") -> Split:
    return Split(id_, "1", (("2", share),))


@pytest.mark.parametrize("share", [0.01, 0.05, 0.25, 0.5])
def test_a_share_is_what_it_says(share: float) -> None:
    n = sum(canary(share).serves(user) == "2" for user in USERS)
    off = (len(USERS) * share * (1.0 - share)) ** 0.5
    assert abs(n - len(USERS) * share) < 4.0 * off


def test_shares_are_exact_over_all_draws() -> None:
    split = Split("id", "a", (("b", 0.25), ("c", 0.5)))
    assert split._ends == (1 << 62, 3 << 62)


def test_none_and_all_are_exactly_that() -> None:
    assert {canary(0.0).serves(user) for user in USERS[:2000]} == {"1"}
    assert {canary(1.0).serves(user) for user in USERS[:2000]} == {"2"}
    assert Split("id", "1").serves("anybody") == "1"


def test_a_user_stays_with_the_version_as_its_share_grows() -> None:
    before: set[str] = set()
    for share in (0.01, 0.05, 0.25, 0.5):
        now = {user for user in USERS[:5000] if canary(share).serves(user) == "2"}
        assert before < now
        before = now


def test_the_choice_is_the_same_in_every_process() -> None:
    script = (
        "from planner.rollout.shares import Split; "
        "s = Split('digits:2:0.0', '1', (('2', 0.3),)); "
        "print([s.serves(str(i)) for i in range(50)])"
    )
    root = Path(__file__).parents[3]
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root).stdout
    assert said.strip() == str([canary(0.3).serves(str(i)) for i in range(50)])


def test_other_users_try_the_next_rollout() -> None:
    one, other = canary(0.1, "digits:2:0.0"), canary(0.1, "digits:3:17.5")
    both = sum(one.serves(user) == other.serves(user) == "2" for user in USERS)
    assert abs(both - 0.01 * len(USERS)) < 4.0 * (0.01 * len(USERS)) ** 0.5


@pytest.mark.parametrize(
    "challengers", [(("2", 1.1),), (("2", -0.1),), (("2", 0.6), ("3", 0.6)), (("1", 0.1),), (("2", 0.1), ("2", 0.1))]
)
def test_shares_that_cannot_be_are_refused(challengers: tuple[tuple[str, float], ...]) -> None:
    with pytest.raises(BadRequest):
        Split("id", "1", challengers)


def test_the_split_of_a_rollout_follows_its_stage() -> None:
    plan = RolloutPlan(steps=(RolloutStep(0.0, 0.7), RolloutStep(0.2, 0.1)))
    shadow = start("digits", "1", "2", plan, 0.0)
    assert split_of(shadow) == Split(shadow.id, "1", (), (("2", 0.7),))
    assert split_of(promote(shadow, 1.0, by="ada")) == Split(shadow.id, "2")
    canary_first = start("digits", "1", "2", RolloutPlan(steps=plan.steps[1:]), 0.0)
    assert split_of(canary_first) == Split(canary_first.id, "1", (("2", 0.2),), (("2", 0.1),), 1.0)
