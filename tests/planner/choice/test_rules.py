from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice.policy import Arm, open_arms
from planner.choice.rules import Rule, Rules, marked
from planner.errors import BadRequest, NoPlan

ARMS = tuple(Arm(plan, 0.9, 100, 10.0, 0.0) for plan in ("p1", "p2", "p3"))
IDS = (("reader@1",), ("reader@2", "draft-poet@1"), ("other@1",))


def open_after(*lines: str, goal: str = "digits", segment: str = "", user: str = "ann") -> list[str]:
    rules = Rules.parse(lines).concerning(goal, segment, user)
    arms = marked(ARMS, IDS, rules)
    return [arms[i].plan for i in open_arms(arms)]


def test_an_excluded_extension_takes_its_plans_with_it() -> None:
    assert open_after("exclude draft-*") == ["p1", "p3"]


def test_a_pinned_version_keeps_all_others_out() -> None:
    assert open_after("pin reader@2") == ["p2"]


def test_a_name_means_all_its_versions() -> None:
    assert open_after("exclude reader") == ["p3"]


def test_a_plan_is_meant_by_its_id() -> None:
    assert open_after("exclude plan:p1") == ["p2", "p3"]


def test_a_rule_holds_for_whom_it_names_only() -> None:
    assert open_after("exclude reader for bob") == ["p1", "p2", "p3"]
    assert open_after("exclude reader for a*") == ["p3"]
    assert open_after("exclude reader in letters") == ["p1", "p2", "p3"]
    assert open_after("exclude reader at tags=pii", segment="tags=pii") == ["p3"]


def test_excluding_beats_pinning() -> None:
    assert open_after("pin reader", "exclude reader@2") == ["p1"]


def test_a_pin_that_nothing_meets_is_without_effect() -> None:
    assert open_after("pin unheard-of") == ["p1", "p2", "p3"]


def test_when_nothing_is_left_the_error_names_the_rules() -> None:
    with pytest.raises(NoPlan, match="exclude \\* for ann"):
        open_after("exclude * for ann")


def test_comments_and_empty_lines_are_left_out() -> None:
    assert Rules.parse(["", "# all of it", "pin reader # the good one"]).rules == (Rule("pin", "reader"),)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pin", "a rule is like"),
        ("", "a rule is like"),
        ("exlude reader", "'exlude' is unknown"),
        ("pin reader form ann", "'form' is not understood"),
        ("pin reader for", "after 'for' comes a user"),
        ("pin reader for ann for bob", "'for' is said twice"),
        ("pin plan:", "the id of a plan"),
    ],
)
def test_a_wrong_rule_says_which_word_is_wrong(text: str, says: str) -> None:
    with pytest.raises(BadRequest, match=says):
        Rule.parse(text)


def test_a_misspelt_word_brings_the_nearest() -> None:
    with pytest.raises(BadRequest) as caught:
        Rule.parse("exlude reader")
    assert "exclude" in caught.value.hint


WORDS = st.from_regex(r"\A[a-z0-9*@=.:-]{1,12}\Z").filter(lambda word: word != "plan:")


@settings(max_examples=40)
@given(st.sampled_from(["pin", "exclude"]), WORDS, WORDS, WORDS, WORDS)
def test_a_rule_reads_as_it_is_written(verb: str, subject: str, user: str, segment: str, goal: str) -> None:
    rule = Rule.parse(f"{verb} {subject} for {user} at {segment} in {goal}")
    assert Rule.parse(str(rule)) == rule
