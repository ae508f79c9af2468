"""The part of a lineage that is shown or exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from lineage.errors import UnknownVersion
from lineage.graph.family import FamilyReader, family_of, nearest_family, whole_family
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import Edge, EdgeKind, Version
from lineage.graph.sql import SqlLineageStore
from lineage.graph.store import LineageStore
from tests.lineage.graph.families import digits_family, id_of


def stored(*edges: tuple[str, str]) -> MemoryLineageStore:
    store = MemoryLineageStore()
    names = dict.fromkeys(name for edge in edges for name in edge)
    store.add_all(
        [Version(id_of(name), "m", name) for name in names],
        [Edge(id_of(parent), id_of(child), EdgeKind.FINE_TUNE) for parent, child in edges],
    )
    return store


@pytest.fixture(params=["memory", "sql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LineageStore]:
    made = MemoryLineageStore() if request.param == "memory" else SqlLineageStore(f"sqlite:///{tmp_path}/lineage.db")
    yield made
    made.close()


def test_the_whole_family_is_what_was_stored(store: LineageStore) -> None:
    family = digits_family()
    assert whole_family(store) == family_of([], [])
    store.add_all(list(family.versions.values()), family.edges)
    found = whole_family(store)
    assert found.versions == family.versions
    assert list(found.versions) == list(family.versions)
    assert set(map(str, found.edges)) == set(map(str, family.edges))


def test_a_reader_takes_up_what_was_added_since(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineage.graph.family.PAGE_FACTS", 3)
    family = digits_family()
    versions = list(family.versions.values())
    reader = FamilyReader(store)
    assert reader.family().versions == {}
    store.add_all([replace(versions[0], name="", number="", data=None), *versions[1:4]], family.edges[:3])
    assert len(reader.family().edges) == 3
    store.add_all(versions, family.edges)
    found = reader.family()
    assert found.versions == family.versions
    assert set(map(str, found.edges)) == set(map(str, family.edges))
    assert reader.counter == store.counter()


def test_edges_that_lead_out_of_a_family_are_left_out() -> None:
    family = digits_family()
    some = family_of(list(family.versions.values())[:2], family.edges)
    assert [(edge.parent, edge.child) for edge in some.edges] == [(id_of("base"), id_of("tuned"))]


def test_ancestors_and_descendants_come_before_siblings() -> None:
    chain = [(str(i), str(i + 1)) for i in range(6)]
    store = stored(*chain, *(("2", f"sibling{i}") for i in range(50)))
    found = nearest_family(store, id_of("3"), 6)
    assert {version.number for version in found.versions.values()} == {"1", "2", "3", "4", "5", "0"}
    assert found.hidden == {id_of("2"): 50, id_of("5"): 1}
    assert len(found.edges) == 5


def test_siblings_fill_what_is_left_and_nothing_is_hidden_where_all_are_shown() -> None:
    store = stored(("a", "b"), ("a", "c"), ("c", "d"), ("x", "y"))
    found = nearest_family(store, id_of("b"), 10)
    assert {version.number for version in found.versions.values()} == {"a", "b", "c", "d"}
    assert (len(found.edges), found.hidden) == (3, {})
    assert list(nearest_family(store, id_of("b"), 1).versions) == [id_of("b")]


def test_a_version_that_is_not_there_has_no_family() -> None:
    with pytest.raises(UnknownVersion):
        nearest_family(stored(("a", "b")), id_of("z"))
