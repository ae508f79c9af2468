from __future__ import annotations

from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.rollout.records import Rollout, RolloutPlan, RolloutStep
from planner.rollout.rollout import promote, settled, start
from planner.rollout.traffic import Rules, running, traffic_of, withheld
from tests.planner.doubles import card

TRIAL = start("a", "1", "2", RolloutPlan(steps=(RolloutStep(0.25),)), 1.0)
FUSED = {ExtensionId("f@1"): (ExtensionId("a@1"), ExtensionId("b@1"))}
CARDS = (card("a"), card("a").but(version="2"), card("a").but(version="3"), card("b"), card("f"))


def parts_of(one: Card) -> tuple[ExtensionId, ...]:
    return FUSED.get(one.id, ())


def rules(*rollouts: Rollout, held: tuple[str, ...] = ()) -> Rules:
    return Rules("k", 1, {one.extension: traffic_of(one) for one in rollouts}, frozenset(map(ExtensionId, held)))


def test_without_rollouts_everybody_serves_but_who_is_held() -> None:
    assert withheld(rules(), Catalogue.of(CARDS), parts_of) == set()
    assert withheld(rules(held=("b@1",)), Catalogue.of(CARDS), parts_of) == {"b@1", "f@1"}


def test_of_an_extension_with_a_rollout_only_the_champion_serves() -> None:
    over = promote(TRIAL, 2.0, by="me")
    assert withheld(rules(over), Catalogue.of(CARDS), parts_of) == {"a@1", "a@3", "f@1"}
    back = settled("a", "1", 3.0, ("2",), by="me")
    assert withheld(rules(back), Catalogue.of(CARDS), parts_of) == {"a@2", "a@3"}


def test_while_a_rollout_runs_neither_version_is_part_of_something_else() -> None:
    assert withheld(rules(TRIAL), Catalogue.of(CARDS), parts_of) == {"a@2", "a@3", "f@1"}


def test_where_the_champion_is_gone_nobody_is_held_back() -> None:
    assert withheld(rules(TRIAL), Catalogue.of(CARDS[1:]), parts_of) == set()


def test_a_rollout_runs_where_both_versions_are_there() -> None:
    assert [one.challenger_id for one in running(rules(TRIAL), Catalogue.of(CARDS))] == ["a@2"]
    assert running(rules(TRIAL), Catalogue.of(CARDS[:1])) == ()
    assert running(rules(promote(TRIAL, 2.0, by="me")), Catalogue.of(CARDS)) == ()
