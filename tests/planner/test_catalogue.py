from __future__ import annotations

import pytest

from planner.cards import Card, ChainRule
from planner.catalogue import Catalogue, Change
from planner.errors import NotFound
from planner.features import Feature, Port

ANY = ChainRule()


def extension(name: str, takes: str, gives: str, version: str = "1", after: ChainRule = ANY) -> Card:
    return Card(name, version, (Port("x", Feature(takes)),), (Port("y", Feature(gives)),), after=after)


A, B = extension("a", "text", "text/en"), extension("b", "text", "label")


def test_a_change_gives_a_new_snapshot_and_leaves_the_old_one_alone() -> None:
    old = Catalogue.of([A])
    new = old.apply(Change(2, (B,), removed_cards=(A.id,)))
    assert list(old.cards) == ["a@1"]
    assert (new.epoch, list(new.cards)) == (2, ["b@1"])


def test_a_whole_change_replaces_everything_whatever_came_before() -> None:
    assert list(Catalogue.of([A], epoch=5).apply(Change(6, (B,), whole=True)).cards) == ["b@1"]


def test_a_change_that_does_not_follow_is_refused() -> None:
    with pytest.raises(ValueError, match="does not follow"):
        Catalogue.of([A], epoch=5).apply(Change(7))


def test_a_card_is_found_by_its_id_or_by_a_name_with_one_version() -> None:
    catalogue = Catalogue.of([A, B])
    assert catalogue.card("a@1") is catalogue.card("a") is A
    with pytest.raises(NotFound, match="no extension 'aa'") as error:
        catalogue.card("aa")
    assert "a@1" in error.value.hint


def test_a_name_with_several_versions_asks_which() -> None:
    with pytest.raises(NotFound, match="several versions") as error:
        Catalogue.of([A, extension("a", "text", "label", "2")]).card("a")
    assert "a@1, a@2" in error.value.hint


def test_the_graph_joins_outputs_to_the_inputs_that_may_take_them() -> None:
    picky = extension("picky", "text", "label", after=ChainRule(deny=("a*",)))
    edges = Catalogue.of([A, B, picky]).graph().edges(data=True)
    assert [(u, v, d) for u, v, d in edges] == [("a@1", "b@1", {"output": "y", "input": "x"})]
