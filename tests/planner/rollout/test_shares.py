from __future__ import annotations

import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import BadRequest
from planner.rollout.records import RolloutPlan, RolloutStep
from planner.rollout.rollout import promote, start
from planner.rollout.shares import Split, following, split_of

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
        "s = Split('digits:2:0.0', '1', (('2', 0.3),), (('2', 0.4),)); "
        "print([(s.serves(str(i)), s.mirrors(str(i), '1')) for i in range(50)])"
    )
    root = Path(__file__).parents[3]
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=root).stdout
    split = Split("digits:2:0.0", "1", (("2", 0.3),), (("2", 0.4),))
    assert said.strip() == str([(split.serves(str(i)), split.mirrors(str(i), "1")) for i in range(50)])


def test_other_users_try_the_next_rollout() -> None:
    one, other = canary(0.1, "digits:2:0.0"), canary(0.1, "digits:3:17.5")
    both = sum(one.serves(user) == other.serves(user) == "2" for user in USERS)
    assert abs(both - 0.01 * len(USERS)) < 4.0 * (0.01 * len(USERS)) ** 0.5


def test_who_is_mirrored_does_not_hang_on_who_is_served() -> None:
    split = Split("id", "1", (("2", 0.5),), (("2", 0.5), ("3", 0.1)))
    seen = Counter((split.serves(user), "2" in split.mirrors(user, "1")) for user in USERS)
    assert all(abs(n - len(USERS) / 4) < 4.0 * (len(USERS) * 3 / 16) ** 0.5 for n in seen.values())
    third = sum("3" in split.mirrors(user, "1") for user in USERS)
    assert abs(third - 0.1 * len(USERS)) < 4.0 * (0.09 * len(USERS)) ** 0.5


def test_all_are_mirrored_when_the_plan_says_all() -> None:
    assert all(Split("id", "1", (), (("2", 1.0),)).mirrors(user, "1") == ("2",) for user in USERS[:1000])
    assert Split("id", "1", (), (("2", 0.0),)).mirrors("anybody", "1") == ()


def test_the_champion_checks_its_share_of_what_the_challenger_serves() -> None:
    split = Split("id", "1", (("2", 0.5),), (("2", 1.0),), checked=0.2)
    assert {split.mirrors(user, "2") for user in USERS[:1000]} == {(), ("1",)}
    n = sum(split.mirrors(user, "2") == ("1",) for user in USERS)
    assert abs(n - 0.2 * len(USERS)) < 4.0 * (0.16 * len(USERS)) ** 0.5
    assert all(Split("id", "1", (("2", 0.5),), (), 1.0).mirrors(user, "2") == ("1",) for user in USERS[:1000])
    assert Split("id", "1", (("2", 0.5),)).mirrors("anybody", "2") == ()


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


def test_better_versions_get_more() -> None:
    assert following({"a": 3.0, "b": 1.0}) == pytest.approx({"a": 0.75, "b": 0.25})
    assert following({"a": 1.0, "b": 0.0}) == pytest.approx({"a": 0.95, "b": 0.05})
    assert following({"a": 0.0, "b": 0.0}) == {"a": 0.5, "b": 0.5}
    assert following({"a": 2.0, "b": 1.0, "c": 0.0}, 0.1) == pytest.approx({"a": 0.6, "b": 0.3, "c": 0.1})
    assert following({"a": 1.0, "b": 0.0, "c": 0.0}, 0.0, 0.6) == pytest.approx({"a": 0.6, "b": 0.2, "c": 0.2})
    assert following({"a": 7.0}) == {"a": 1.0}
    assert following({}) == {}


@given(
    st.lists(st.floats(0.0, 1e6), min_size=2, max_size=6),
    st.floats(0.0, 0.16),
    st.floats(0.5, 1.0),
)
def test_shares_add_up_within_their_bounds_in_the_order_of_the_values(
    values: list[float], least: float, most: float
) -> None:
    shares = list(following({str(i): value for i, value in enumerate(values)}, least, most).values())
    assert sum(shares) == pytest.approx(1.0, abs=1e-9)
    assert all(least - 1e-9 <= share <= most + 1e-9 for share in shares)
    ranked = sorted(zip(values, shares, strict=True))
    assert all(a[1] <= b[1] + 1e-9 for a, b in pairwise(ranked))


def test_values_and_bounds_that_cannot_be_are_refused() -> None:
    with pytest.raises(BadRequest, match="at least 0"):
        following({"a": -1.0, "b": 1.0})
    with pytest.raises(BadRequest, match="finite"):
        following({"a": float("inf"), "b": 1.0})
    with pytest.raises(BadRequest, match="3 versions do not fit"):
        following({"a": 1.0, "b": 1.0, "c": 1.0}, 0.4)
