"""What is sent to Neo4j is idempotent, in batches, and makes the same graph as the copy for Cypher."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from lineage.errors import StoreUnavailable
from lineage.graph.exports import neo4j as exporter
from lineage.graph.exports.cypher import _SCHEMA, CypherGraph
from lineage.graph.exports.neo4j import connect, export_to_neo4j
from lineage.graph.exports.rows import property_graph
from lineage.graph.memory import MemoryLineageStore
from tests.lineage.graph.families import digits_family

Call = tuple[str, dict[str, Any] | None, str | None]


class Recording:
    """A driver that writes down what it is given."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def execute_query(
        self, query_: Any, parameters_: dict[str, Any] | None = None, *, database_: str | None = None
    ) -> None:
        self.calls.append((query_, parameters_, database_))


def test_constraints_come_first_then_nodes_then_relationships() -> None:
    driver = Recording()
    sent = export_to_neo4j(driver, digits_family(), database="lineage")
    assert sent == {"Version": 7, "Dataset": 2, "Metric": 2, "BECAME": 8, "TRAINED_ON": 4, "MEASURED": 6}
    assert {database for _, _, database in driver.calls} == {"lineage"}
    constraints, merges = driver.calls[:3], driver.calls[3:]
    assert all("IF NOT EXISTS" in statement and "IS UNIQUE" in statement for statement, _, _ in constraints)
    assert [statement.split("MERGE ")[1].split()[0] for statement, _, _ in merges[:3]] == [
        "(v:Version",
        "(d:Dataset",
        "(m:Metric",
    ]
    assert len(merges) == 6
    for statement, params, _ in merges:
        assert statement.startswith("UNWIND $rows AS row\n")
        assert "CREATE" not in statement
        assert params is not None
        assert params["rows"]


def test_large_families_go_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "BATCH_ROWS", 3)
    driver = Recording()
    export_to_neo4j(driver, digits_family())
    sizes = [
        len(params["rows"])
        for statement, params, _ in driver.calls
        if params and "(v:Version {id: row.id})" in statement
    ]
    assert sizes == [3, 3, 1]


def test_the_statements_make_the_same_graph_as_the_copy_and_twice_the_same(tmp_path: Path) -> None:
    ladybug = pytest.importorskip("ladybug")
    family = digits_family()
    questions = [
        "MATCH (v:Version) RETURN v.id, v.name, v.number, v.made_s ORDER BY v.id",
        "MATCH (d:Dataset) RETURN d.id, d.n_rows, d.columns ORDER BY d.id",
        "MATCH (a)-[e:BECAME]->(b) RETURN a.id, b.id, e.kind, e.params, e.drift, e.dataset, e.made_s"
        " ORDER BY a.id, b.id",
        "MATCH (a)-[e:TRAINED_ON]->(b) RETURN a.id, b.id, e.signature ORDER BY a.id",
        "MATCH (a)-[e:MEASURED]->(b) RETURN a.id, b.name, e.kind, e.parent, e.value ORDER BY a.id, b.name, e.parent",
    ]
    store = MemoryLineageStore()
    store.add_all(list(family.versions.values()), family.edges)
    with CypherGraph(store) as graph:
        expected = [[list(row) for row in graph.query(question).rows] for question in questions]
    assert all(expected)
    with ladybug.Database(str(tmp_path / "graph"), max_db_size=1 << 33) as database:
        connection = ladybug.Connection(database, num_threads=1)
        for statement in _SCHEMA:
            connection.execute(statement)
        for _ in range(2):
            for part in property_graph(family):
                connection.execute(part.merge, {"rows": part.rows})
        assert [connection.execute(question).get_all() for question in questions] == expected
        connection.close()


def test_a_server_that_does_not_answer_is_reported() -> None:
    pytest.importorskip("neo4j")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises(StoreUnavailable, match="does not answer"):
            connect(f"bolt://127.0.0.1:{taken.getsockname()[1]}", "neo4j", "secret")
    with pytest.raises(StoreUnavailable, match="no address"):
        connect("nonsense://host")


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "neo4j", None)
    with pytest.raises(StoreUnavailable) as caught:
        connect("bolt://localhost")
    assert "fenix-serve[neo4j]" in caught.value.hint
