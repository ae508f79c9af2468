from __future__ import annotations

from collections.abc import Iterator

import pytest

from lineage.database import open_database
from planner.choice import rule_store
from planner.choice.rule_store import RuleStore, StoredRule
from planner.choice.rules import Rule
from planner.errors import BadRequest, Conflict, NotFound


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def store(url: str) -> Iterator[RuleStore]:
    engine = open_database(url)
    yield RuleStore(engine)
    engine.dispose()


def test_rules_are_there_after_the_store_was_opened_anew_the_oldest_first(url: str, store: RuleStore) -> None:
    store.add("pin reader@2  for ann", 2.0)
    store.add("exclude draft-*", 1.0)
    engine = open_database(url)
    rules = RuleStore(engine).rules()
    engine.dispose()
    assert [(str(one.rule), one.added_s) for one in rules] == [("exclude draft-*", 1.0), ("pin reader@2 for ann", 2.0)]


def test_a_rule_that_is_there_stays_as_it_is(store: RuleStore) -> None:
    store.add("pin reader for ann", 1.0)
    assert store.add("pin   reader for ann", 5.0) == StoredRule(Rule("pin", "reader", user="ann"), 1.0)
    assert len(store.rules()) == 1


def test_a_rule_is_taken_back_by_its_words(store: RuleStore) -> None:
    store.add("pin reader for ann", 1.0)
    with pytest.raises(NotFound, match="reader for bob"):
        store.remove("pin reader for bob")
    store.remove("pin  reader for ann")
    assert store.rules() == ()


def test_what_is_no_rule_is_refused(store: RuleStore) -> None:
    for text in ("", "pin", "keep reader", "pin reader for", f"pin {'x' * 600}"):
        with pytest.raises(BadRequest):
            store.add(text, 1.0)
    with pytest.raises(BadRequest):
        store.remove("nonsense")


def test_their_number_is_bounded(store: RuleStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rule_store, "MOST_RULES", 1)
    store.add("pin reader", 1.0)
    store.add("pin reader", 1.0)
    with pytest.raises(Conflict):
        store.add("pin writer", 1.0)
