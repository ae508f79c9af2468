from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import StoreUnavailable
from planner.rollout.records import Observation, Pairs, RolloutPlan
from planner.rollout.rollout import observe, promote, start
from planner.rollout.store import KEPT_PAST, Changed, Known, MemoryRolloutStore, RolloutStore, SqlRolloutStore

FIRST = start("digits", "1", "2", RolloutPlan(), 100.0)
SEEN = observe(FIRST, [Observation("1", 5, 1), Pairs(n=3, n_compared=3, n_agreed=2)])


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RolloutStore]:
    if request.param == "memory":
        yield MemoryRolloutStore()
        return
    on_sqlite = request.param == "sqlite"
    sql = SqlRolloutStore(
        f"sqlite:///{tmp_path}/fenix.db" if on_sqlite else request.getfixturevalue("postgres").database()
    )
    yield sql
    sql.close()


def test_at_first_nothing_is_known(store: RolloutStore) -> None:
    assert store.load() == Known()
    assert store.past("digits") == ()


def test_a_rollout_comes_back_with_all_its_evidence(store: RolloutStore) -> None:
    store.write(Changed((FIRST,)))
    store.write(Changed((SEEN,), reports={"g": 4}, feedback=77))
    known = store.load()
    assert known.rollouts == {"digits": SEEN}
    assert (known.reports, known.feedback) == ({"g": 4}, 77)
    assert store.past("digits") == (SEEN,)


def test_the_last_rollout_of_an_extension_counts_and_those_before_are_kept(store: RolloutStore) -> None:
    over = promote(SEEN, 200.0, by="me")
    second = start("digits", "2", "3", RolloutPlan(), 300.0, others=(over,))
    other = start("texts", "1", "2", RolloutPlan(), 50.0)
    for rollout in (FIRST, over, other, second):
        store.write(Changed((rollout,)))
    assert store.load().rollouts == {"digits": second, "texts": other}
    assert store.past("digits") == (second, over)
    store.write(Changed(forgotten=("digits",)))
    assert set(store.load().rollouts) == {"texts"}


def test_old_rollouts_are_dropped(store: RolloutStore) -> None:
    for k in range(KEPT_PAST + 5):
        store.write(Changed((replace(FIRST, started_s=float(k)),)))
    past = store.past("digits")
    assert len(past) == KEPT_PAST + 1
    assert past[0].started_s == KEPT_PAST + 4


def test_what_is_held_and_the_aliases_are_replaced_as_a_whole(store: RolloutStore) -> None:
    store.write(Changed(held=frozenset({"a@2", "b@2"}), aliases={"a": {"champion": "1"}}))
    store.write(Changed(held=frozenset({"b@2"}), reports={"g": 1}))
    known = store.load()
    assert (known.held, known.aliases) == (frozenset({"b@2"}), {"a": {"champion": "1"}})
    store.write(Changed(aliases={}))
    assert store.load().aliases == {}


def test_the_sql_store_survives_its_process_and_writes_all_or_nothing(database_url: str) -> None:
    first = SqlRolloutStore(database_url)
    first.write(Changed((SEEN,), reports={"g": 1}))
    with pytest.raises(StoreUnavailable):
        first.write(Changed((promote(SEEN, 200.0, by="me"),), reports={"g": 2, None: 3}))  # type: ignore[dict-item]
    first.close()
    second = SqlRolloutStore(database_url)
    known = second.load()
    assert (known.rollouts, known.reports) == ({"digits": SEEN}, {"g": 1})
    second.close()
