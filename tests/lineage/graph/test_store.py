from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from lineage.database import transaction
from lineage.errors import LineageConflict, LineageCycle, LineageRefused, StoreUnavailable, UnknownVersion
from lineage.graph import sql
from lineage.graph.facts import Changes, Link, Named, Node, Trained
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import Edge, EdgeKind, Version
from lineage.graph.sql import SqlLineageStore
from lineage.graph.store import LineageStore
from tests.lineage.graph.making import data, dataset_id, edge, families, version, version_id
from tests.postgres import PostgresServer

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def postgres_url(request: pytest.FixtureRequest) -> str:
    """One database for all tests that empty it: to make one takes half a second."""
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.database()


def emptied(store: SqlLineageStore) -> SqlLineageStore:
    with transaction(store._engine) as connection:
        for table in sql._METADATA.sorted_tables:
            connection.execute(table.delete())
        connection.execute(sql._COUNTERS.insert(), [{"name": "facts", "value": 0}])
    return store


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LineageStore]:
    if request.param == "memory":
        yield MemoryLineageStore()
        return
    on_sqlite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/fenix.db" if on_sqlite else request.getfixturevalue("postgres_url")
    kept = emptied(SqlLineageStore(url))
    yield kept
    kept.close()


def everything(store: LineageStore) -> object:
    """All that a store says."""
    ids = store.ids()
    return (
        store.changes(),
        store.versions(ids),
        [store.names(id_) for id_ in ids],
        store.edges(),
        [(store.ancestors(id_), store.descendants(id_)) for id_ in ids],
    )


def test_at_first_nothing_is_known(store: LineageStore) -> None:
    assert store.counter() == 0
    assert store.changes() == Changes()
    assert store.ids() == ()
    assert store.versions([version_id("a")]) == {}
    assert store.find("model-a", "1") is None
    assert store.trained_on(dataset_id("a")) == ()
    for ask in (store.version, store.ancestors, store.descendants):
        with pytest.raises(UnknownVersion):
            ask(version_id("a"))


def test_a_version_and_its_edges_come_back_as_they_were(store: LineageStore) -> None:
    parent, child = version("a", 10.0, data("x")), version("b", 20.5)
    made = edge(
        "a",
        "b",
        EdgeKind.REPAIR,
        params={"scale": 0.3, "layers": ["fc", {"µ": None}], "n": 2**70},
        metrics={"accuracy": 0.1 + 0.2},
        data=data("recent"),
        drift={"psi": {"pixels": 0.4}, "nul": "\0"},
        made_s=21.0,
    )
    assert store.add(parent)
    assert store.add(child, [made])
    assert store.version(parent.id) == parent
    assert store.versions([child.id, parent.id, version_id("c")]) == {child.id: child, parent.id: parent}
    assert store.edges_into([child.id]) == store.edges_out_of([parent.id]) == store.edges() == (made,)
    assert store.edges_into([parent.id]) == store.edges_out_of([child.id]) == ()
    assert store.find("model-b", "1") == child.id
    signature = data("x")
    assert store.signature(signature.id) == signature
    assert store.trained_on(dataset_id("x")) == (parent.id,)
    assert store.trained_on(dataset_id("recent")) == (child.id,)


def test_a_version_without_a_name_or_data_is_a_version(store: LineageStore) -> None:
    bare = Version(version_id("a"))
    store.add(bare)
    assert store.version(bare.id) == bare
    assert store.names(bare.id) == ()


def test_ancestors_and_descendants_are_found_through_merges(store: LineageStore) -> None:
    store.add_all(
        [version(name) for name in "abcde"],
        [edge("a", "b"), edge("a", "c"), edge("b", "d", EdgeKind.MERGE), edge("c", "d", EdgeKind.MERGE)],
    )
    a, b, c, d, e = (version_id(name) for name in "abcde")
    assert store.ancestors(d) == (a, b, c)
    assert store.descendants(a) == (b, c, d)
    assert store.ancestors(a) == store.descendants(d) == store.ancestors(e) == ()


def test_the_same_again_is_accepted_and_changes_nothing(store: LineageStore) -> None:
    made = edge("a", "b", params={"epochs": 3}, data=data("x"), made_s=5.0)
    store.add(version("a", data=data("x")))
    store.add(version("b", 7.0), [made])
    before = everything(store)
    assert not store.add(version("a", data=data("x")))
    assert not store.add(version("b", 99.0), [replace(made, made_s=98.0)])
    assert not store.link(made, made)
    assert store.add_all([], []) == 0
    assert everything(store) == before


@pytest.mark.parametrize("what", ["params", "metrics", "drift"])
def test_an_edge_that_says_something_else_is_refused(store: LineageStore, what: str) -> None:
    store.add_all([version("a"), version("b")], [edge("a", "b")])
    before = everything(store)
    with pytest.raises(LineageConflict, match=what):
        store.add_all([version("c")], [edge("a", "c"), edge("a", "b", **{what: {"x": 1.0}})])
    with pytest.raises(LineageConflict, match="data"):
        store.link(edge("a", "b", data=data("x")))
    assert everything(store) == before


def test_one_batch_may_not_contradict_itself(store: LineageStore) -> None:
    with pytest.raises(LineageConflict, match="params"):
        store.add_all([version("a"), version("b")], [edge("a", "b"), edge("a", "b", params={"x": 1})])
    with pytest.raises(LineageConflict, match="training data"):
        store.add_all([version("a", data=data("x")), version("a", data=data("y"))])
    with pytest.raises(LineageConflict, match="is version"):
        store.add_all([Version(version_id("a"), "digits", "1"), Version(version_id("b"), "digits", "1")])
    assert store.counter() == 0


def test_two_edges_of_different_kinds_between_two_versions_are_two_edges(store: LineageStore) -> None:
    edges = edge("a", "b", EdgeKind.REPAIR), edge("a", "b", EdgeKind.FINE_TUNE)
    store.add_all([version("a"), version("b")], edges)
    assert store.edges_into([version_id("b")]) == edges


def test_the_same_tensors_may_be_registered_under_another_name(store: LineageStore) -> None:
    id_ = version_id("a")
    store.add(Version(id_))
    for number in ("1", "7"):
        assert store.add(Version(id_, "digits", number))
    assert store.names(id_) == (("digits", "1"), ("digits", "7"))
    assert (store.version(id_).name, store.version(id_).number) == ("digits", "1")
    assert store.find("digits", "7") == id_


def test_a_name_that_is_taken_is_refused(store: LineageStore) -> None:
    store.add(Version(version_id("a"), "digits", "1"))
    with pytest.raises(LineageConflict, match="digits@1"):
        store.add(Version(version_id("b"), "digits", "1"))
    assert store.ids() == (version_id("a"),)


def test_training_data_may_come_later_but_not_change(store: LineageStore) -> None:
    store.add(version("a"))
    assert store.add(version("a", data=data("x")))
    assert store.version(version_id("a")).data == data("x")
    assert not store.add(version("a"))
    with pytest.raises(LineageConflict, match="training data"):
        store.add(version("a", data=data("y")))
    with pytest.raises(LineageConflict, match="training data"):
        store.add(version("a", data=data("x", n_rows=5)))
    assert store.version(version_id("a")).data == data("x")


def test_an_edge_from_nowhere_is_refused_and_nothing_is_written(store: LineageStore) -> None:
    with pytest.raises(UnknownVersion, match=version_id("a")[:12]):
        store.add(version("b"), [edge("a", "b")])
    with pytest.raises(LineageRefused):
        store.add(version("b"), [edge("b", "c")])
    assert store.counter() == 0


def test_a_version_is_not_its_own_parent(store: LineageStore) -> None:
    with pytest.raises(LineageCycle, match="its own parent"):
        store.add(version("a"), [edge("a", "a")])
    assert store.counter() == 0


def test_a_cycle_among_new_edges_is_refused(store: LineageStore) -> None:
    with pytest.raises(LineageCycle):
        store.add_all([version(n) for n in "abc"], [edge("a", "b"), edge("b", "c"), edge("c", "a")])
    assert store.counter() == 0


def test_a_cycle_with_edges_that_were_there_is_refused(store: LineageStore) -> None:
    store.add_all([version(n) for n in "abcd"], [edge("a", "b"), edge("b", "c")])
    before = everything(store)
    with pytest.raises(LineageCycle, match="descends from"):
        store.link(edge("c", "a"))
    with pytest.raises(LineageCycle):  # by way of d and the new e
        store.add_all([version("e")], [edge("c", "d"), edge("d", "e"), edge("e", "b")])
    assert everything(store) == before
    store.link(edge("a", "c"))
    store.link(edge("d", "a"))


def test_a_cycle_is_found_among_many_edges_at_once(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sql, "MOST_WALKS", 1)
    store.add_all([version(n) for n in "abcd"], [edge("a", "b"), edge("b", "c")])
    with pytest.raises(LineageCycle):
        store.link(edge("a", "d"), edge("d", "b"), edge("c", "a"))
    store.link(edge("a", "d"), edge("d", "b"), edge("a", "c"))
    assert store.ancestors(version_id("b")) == (version_id("a"), version_id("d"))


def test_the_counter_numbers_the_facts_and_changes_follow_it(store: LineageStore) -> None:
    store.add(version("a", 3.0, data("x")))
    assert store.counter() == 3
    store.add(version("b", 4.0), [edge("a", "b", data=data("y"))])
    assert store.counter() == 6
    a, b = version_id("a"), version_id("b")
    trained = Trained(a, data("x").id, dataset_id("x"))
    link = Link(a, b, EdgeKind.FINE_TUNE, dataset_id("y"))
    names = Named(a, "model-a", "1"), Named(b, "model-b", "1")
    assert store.changes() == Changes((Node(a, 3.0), Node(b, 4.0)), names, (trained,), (link,), 6)
    assert store.changes(3, 2) == Changes((Node(b, 4.0),), (names[1],), (), (), 5)
    assert store.changes(6) == Changes(counter=6)


def test_more_versions_than_fit_one_question_are_written_and_found(
    store: LineageStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sql, "MANY", 7)
    n = 40
    edges = [edge(i, i + 1, params={"i": i}) for i in range(n - 1)]
    assert store.add_all([version(i) for i in range(n)], edges) == 3 * n - 1
    assert store.add_all([version(i) for i in range(n)], edges) == 0
    assert len(store.versions([version_id(i) for i in range(n + 5)])) == n
    assert store.edges() == tuple(edges)
    assert len(store.ancestors(version_id(n - 1))) == n - 1
    since, seen = 0, 0
    while (page := store.changes(since, 11)).counter > since:
        assert page.counter - since <= 11
        seen += len(page.nodes) + len(page.names) + len(page.trained) + len(page.links)
        since = page.counter
    assert seen == since == 3 * n - 1


def test_stores_in_sql_say_what_the_one_in_memory_says(database_url: str) -> None:
    kept = SqlLineageStore(database_url)

    @settings(max_examples=10)
    @given(families())
    def agree(family: tuple[list[Version], list[Edge]]) -> None:
        memory = MemoryLineageStore()
        memory.add_all(*family)
        emptied(kept).add_all(*family)
        assert everything(kept) == everything(memory)

    agree()
    kept.close()


def test_the_lineage_survives_its_process(database_url: str) -> None:
    first = SqlLineageStore(database_url)
    first.add_all([version("a", data=data("x")), version("b")], [edge("a", "b", params={"epochs": 3})])
    before = everything(first)
    first.close()
    second = SqlLineageStore(database_url)
    assert everything(second) == before
    second.close()


def test_what_was_acknowledged_survives_a_kill(database_url: str) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.lineage.graph.writer", database_url, "chain", "100000"],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    assert process.stdout is not None
    for _ in range(20):
        last = int(process.stdout.readline())
    process.kill()
    last = max([last, *map(int, process.stdout.read().split())])
    process.wait()
    process.stdout.close()
    store = SqlLineageStore(database_url)
    kept = store.ids()
    assert kept[: last + 1] == tuple(version_id(i) for i in range(last + 1))
    assert len(kept) <= last + 2  # one more may be written that nobody was told of
    assert len(store.ancestors(kept[-1])) == len(kept) - 1
    store.add(version("after"), [edge(len(kept) - 1, "after")])
    assert store.counter() == 3 * (len(kept) + 1) - 1
    store.close()


def test_processes_that_add_at_once_neither_lose_anything_nor_close_a_cycle(database_url: str) -> None:
    n = 10
    writers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.lineage.graph.writer", database_url, direction, str(n)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
        )
        for direction in ("left", "right")
    ]
    refused = [int(writer.communicate(timeout=60)[0]) for writer in writers]
    store = SqlLineageStore(database_url)
    assert len(store.ids()) == 1 + 5 * n
    assert len(store.edges()) == 4 * n
    assert store.counter() == 2 * len(store.ids()) + len(store.edges())
    assert sum(refused) == n
    store.close()


def test_a_database_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable):
        SqlLineageStore("postgresql+psycopg://nobody@localhost:1/nothing")
    store = SqlLineageStore(f"sqlite:///{tmp_path}/fenix.db")
    store.close()
    os.remove(tmp_path / "fenix.db")
    with pytest.raises(StoreUnavailable):
        store.add(version("a"))
