from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from planner.cards import Accuracy
from planner.catalogue import Change
from planner.catalogue_store import CatalogueStore, MemoryCatalogueStore, SqlCatalogueStore
from planner.errors import StoreUnavailable
from planner.features import Feature, Port
from planner.goals import Goal, Terms
from tests.planner.doubles import card

GOAL = Goal("add", (Port("x", Feature("number")),), (Port("y", Feature("number")),), terms=Terms(tags=frozenset({"a"})))


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[CatalogueStore]:
    if request.param == "memory":
        yield MemoryCatalogueStore()
        return
    on_sqlite = request.param == "sqlite"
    sql = SqlCatalogueStore(
        f"sqlite:///{tmp_path}/fenix.db" if on_sqlite else request.getfixturevalue("postgres").database()
    )
    yield sql
    sql.close()


def test_an_empty_store_holds_epoch_zero(store: CatalogueStore) -> None:
    assert (store.load().epoch, dict(store.load().cards)) == (0, {})


def test_what_was_put_comes_back_equal_and_in_order_of_registration(store: CatalogueStore) -> None:
    store.write(Change(1, (card("b"), card("a")), (GOAL,)))
    store.write(Change(2, (card("c"),)))
    store.write(Change(3, (card("a").but(accuracy=Accuracy(0.5, 10)),)))
    loaded = store.load()
    assert loaded.epoch == 3
    assert list(loaded.cards.values()) == [card("b"), card("a").but(accuracy=Accuracy(0.5, 10)), card("c")]
    assert loaded.goals["add"] == GOAL


def test_what_was_removed_is_gone(store: CatalogueStore) -> None:
    store.write(Change(1, (card("a"), card("b")), (GOAL,)))
    store.write(Change(2, removed_cards=(card("a").id,), removed_goals=("add",)))
    assert list(store.load().cards) == ["b@1"]
    assert not store.load().goals


def test_a_change_out_of_line_is_refused_and_writes_nothing(store: CatalogueStore) -> None:
    store.write(Change(1, (card("a"),)))
    with pytest.raises(ValueError, match="does not follow"):
        store.write(Change(3, (card("b"),)))
    assert list(store.load().cards) == ["a@1"]


def test_the_sql_store_survives_its_process(database_url: str) -> None:
    first = SqlCatalogueStore(database_url)
    first.write(Change(1, (card("a"),)))
    first.close()
    second = SqlCatalogueStore(database_url)
    assert second.load().epoch == 1
    second.close()


@pytest.mark.parametrize("url", ["sqlite:////proc/none/x.db", "no url", "nodb://x"])
def test_a_database_that_does_not_open_is_a_typed_error(url: str) -> None:
    with pytest.raises(StoreUnavailable):
        SqlCatalogueStore(url)
