from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from planner.rollout.aliases import Move, Wish, aliases_of, differences
from planner.rollout.records import RolloutPlan
from planner.rollout.rollout import promote, start

TRIAL = start("digits", "1", "2", RolloutPlan(), 1.0)
BOTH = {"champion": "1", "challenger": "2"}
VERSIONS = st.sampled_from(["1", "2", "3"])
ALIASES = st.fixed_dictionaries({"champion": VERSIONS}, optional={"challenger": VERSIONS})


def test_a_running_rollout_has_both_aliases_and_one_that_is_over_its_champion() -> None:
    assert aliases_of(TRIAL) == BOTH
    assert aliases_of(promote(TRIAL, 2.0, by="me")) == {"champion": "2"}


def test_what_the_cluster_did_is_moved_in_the_registry() -> None:
    assert differences(BOTH, BOTH, {"champion": "2"}).moves == (Move("champion", "2"), Move("challenger", ""))
    assert differences({}, {}, BOTH).moves == (Move("champion", "1"), Move("challenger", "2"))


def test_what_a_hand_moved_is_wished() -> None:
    assert differences(BOTH, {"champion": "2", "challenger": "2"}, BOTH).wishes == (Wish("promote", "2"),)
    one = {"champion": "1"}
    assert differences(one, {"champion": "1", "challenger": "3"}, one).wishes == (Wish("start", "3"),)
    assert differences(BOTH, one, BOTH).wishes == (Wish("abort", "2"),)


def test_an_alias_that_contradicts_itself_is_put_back_with_a_remark() -> None:
    one = {"champion": "1"}
    found = differences(one, {"champion": "1", "challenger": "1"}, one)
    assert found.moves == (Move("challenger", ""),)
    assert "at once" in found.remarks[0]
    found = differences(one, {}, one)
    assert found.moves == (Move("champion", "1"),)
    assert "taken away" in found.remarks[0]


def test_where_both_moved_an_alias_the_clusters_word_counts() -> None:
    found = differences({"champion": "1"}, {"champion": "3"}, {"champion": "2"})
    assert (found.moves, found.wishes) == ((Move("champion", "2"),), ())
    assert found.remarks


@given(agreed=ALIASES, ours=ALIASES)
def test_the_own_moves_are_never_taken_for_those_of_somebody_else(agreed: dict[str, str], ours: dict[str, str]) -> None:
    there = dict(agreed)
    todo = differences(agreed, there, ours)
    assert (todo.wishes, todo.remarks) == ((), ())
    for move in todo.moves:
        there = {**there, move.alias: move.version} if move.version else {k: there[k] for k in there if k != move.alias}
    assert there == ours
    assert differences(there, there, ours).moves == ()
