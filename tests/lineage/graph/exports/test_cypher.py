"""Cypher answers about the lineage as it is, and changes nothing."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lineage.errors import LineageRefused, StoreUnavailable
from lineage.graph.exports.cypher import CypherGraph
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import Edge, EdgeKind, Version
from lineage.graph.store import LineageStore
from tests.lineage.graph.families import digits_family, id_of

pytest.importorskip("ladybug")


@pytest.fixture
def store() -> LineageStore:
    family = digits_family()
    made = MemoryLineageStore()
    made.add_all(list(family.versions.values()), family.edges)
    return made


@pytest.fixture
def graph(store: LineageStore) -> Iterator[CypherGraph]:
    with CypherGraph(store) as made:
        yield made


def test_it_knows_versions_datasets_metrics_and_how_they_hang_together(graph: CypherGraph) -> None:
    found = graph.query(
        "MATCH (p:Version)-[e:BECAME]->(c {name: $name, number: '4'}) RETURN p.number, e.kind ORDER BY p.number",
        {"name": "digits"},
    )
    assert found.columns == ("p.number", "e.kind")
    assert found.rows == (("1", "repair"), ("3", "repair"))
    assert found.is_whole
    ancestors = graph.query("MATCH (a)-[:BECAME*]->(c {name: 'digits-small'}) RETURN a.number ORDER BY a.number")
    assert ancestors.rows == (("1",), ("2",))
    good = graph.query(
        "MATCH (v:Version)-[m:MEASURED]->(:Metric {name: 'accuracy'}) WHERE m.value > 0.965 RETURN DISTINCT"
        " v.number, m.value ORDER BY v.number"
    )
    assert good.rows == (("2", 0.97), ("4", 0.98))
    data = graph.query("MATCH (v {number: '2'})-[:TRAINED_ON]->(d:Dataset) RETURN d.n_rows, d.columns")
    assert data.rows == ((200, ["pixels", "label"]),)


def test_nodes_and_relationships_come_as_their_properties(graph: CypherGraph) -> None:
    ((node, edge, label),) = graph.query(
        "MATCH (v {name: 'digits', number: '1'})-[e:BECAME]->(c {number: '2'}) RETURN v, e, label(e)"
    ).rows
    assert node == {
        "_label": "Version",
        "id": id_of("base"),
        "name": "digits",
        "number": "1",
        "made_s": 1_700_000_000.0,
    }
    assert (edge["_label"], edge["kind"], edge["drift"], label) == (
        "BECAME",
        "fine-tune",
        '{"psi": {"pixels": 0.31}}',
        "BECAME",
    )
    ((unnamed,),) = graph.query("MATCH (v:Version {id: $id}) RETURN v.name", {"id": id_of("merged")}).rows
    assert unnamed == ""


def test_the_copy_is_made_again_when_the_lineage_changed_and_only_then(graph: CypherGraph, store: LineageStore) -> None:
    count = "MATCH (v:Version) RETURN count(*)"
    assert graph.query(count).rows == ((7,),)
    assert graph.query(count).rows == ((7,),)
    assert graph.n_builds == 1
    new = Version(id_of("new"), "digits", "5")
    store.add(new, [Edge(id_of("repaired"), new.id, EdgeKind.PRUNE)])
    assert graph.query(count).rows == ((8,),)
    assert graph.n_builds == 2


def test_an_empty_lineage_can_be_asked() -> None:
    with CypherGraph(MemoryLineageStore()) as graph:
        assert graph.query("MATCH (v:Version) RETURN v").rows == ()


def test_writing_is_refused_twice(graph: CypherGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LineageRefused, match="begins with CREATE"):
        graph.query("CREATE (v:Version {id: 'x'})")
    monkeypatch.setattr("lineage.graph.exports.cypher.check_reads", lambda statement: frozenset())
    with pytest.raises(LineageRefused, match="read-only"):
        graph.query("CREATE (v:Version {id: 'x'})")
    assert graph.query("MATCH (v:Version) RETURN count(*)").rows == ((7,),)


def test_what_is_not_cypher_is_the_askers_fault(graph: CypherGraph) -> None:
    for statement in ("MATCH (v:Versin) RETURN v", "MATCH (v RETURN v"):
        with pytest.raises(LineageRefused, match="not understood"):
            graph.query(statement)
    with pytest.raises(LineageRefused, match=r"\$id, which is not given"):
        graph.query("MATCH (v:Version {id: $id}) RETURN v.name, '$name'")


def test_more_rows_than_asked_for_are_cut_and_that_is_said(graph: CypherGraph) -> None:
    found = graph.query("MATCH (v:Version) RETURN v.id", most_rows=3)
    assert (len(found.rows), found.is_whole) == (3, False)
    assert graph.query("MATCH (v:Version) RETURN v.id", most_rows=7).is_whole


def test_a_statement_that_takes_too_long_is_stopped() -> None:
    store = MemoryLineageStore()
    versions = [Version(id_of(str(i)), "m", str(i)) for i in range(60)]
    edges = [
        Edge(versions[i].id, versions[j].id, EdgeKind.MERGE) for i in range(60) for j in range(i + 1, min(i + 5, 60))
    ]
    store.add_all(versions, edges)
    with CypherGraph(store, timeout_s=0.05) as graph:
        with pytest.raises(LineageRefused, match=r"longer than 0\.05 s"):
            graph.query("MATCH (a:Version)-[:BECAME*1..30]->(b:Version) RETURN count(*)")
        assert graph.query("MATCH (v:Version) RETURN count(*)").rows == ((60,),)


def test_long_lines_are_walked_to_their_end() -> None:
    store = MemoryLineageStore()
    versions = [Version(id_of(str(i)), "m", str(i)) for i in range(300)]
    store.add_all(versions, [Edge(a.id, b.id, EdgeKind.FINE_TUNE) for a, b in itertools.pairwise(versions)])
    with CypherGraph(store) as graph:
        found = graph.query("MATCH (a:Version)-[:BECAME*]->(b:Version {number: '299'}) RETURN count(*)")
    assert found.rows == ((299,),)


def test_the_copy_is_removed_on_closing(store: LineageStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    graph = CypherGraph(store)
    graph.query("MATCH (v:Version) RETURN count(*)")
    store.add(Version(id_of("new")))
    graph.query("MATCH (v:Version) RETURN count(*)")
    assert len(list(tmp_path.iterdir())) == 1
    graph.close()
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_it_says_what_to_install(store: LineageStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ladybug", None)
    with pytest.raises(StoreUnavailable) as caught:
        CypherGraph(store).query("RETURN 1")
    assert "fenix-serve[cypher]" in caught.value.hint
