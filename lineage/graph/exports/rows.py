"""The lineage as a property graph, the same in LadybugDB and Neo4j.

(:Version {id, name, number, made_s})
(:Dataset {id, n_rows, columns})            columns: their names, in order
(:Metric {name})
(:Version)-[:BECAME {kind, params, drift, dataset, made_s}]->(:Version)    params and drift: JSON
(:Version)-[:TRAINED_ON {signature}]->(:Dataset)
(:Version)-[:MEASURED {value, kind, parent}]->(:Metric)                    on the way from that parent
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lineage.graph.family import Family
from lineage.graph.records import DataSignature

Row = dict[str, Any]

KEYS = {"Version": "id", "Dataset": "id", "Metric": "name"}  # the property that a node is known by

_MERGE_VERSIONS = """UNWIND $rows AS row
MERGE (v:Version {id: row.id})
SET v.name = row.name, v.number = row.number, v.made_s = row.made_s"""
_MERGE_DATASETS = """UNWIND $rows AS row
MERGE (d:Dataset {id: row.id})
SET d.n_rows = row.n_rows, d.columns = row.columns"""
_MERGE_METRICS = """UNWIND $rows AS row
MERGE (m:Metric {name: row.name})"""
_MERGE_BECAME = """UNWIND $rows AS row
MATCH (p:Version {id: row.from_id}), (c:Version {id: row.to_id})
MERGE (p)-[e:BECAME {kind: row.kind}]->(c)
SET e.params = row.params, e.drift = row.drift, e.dataset = row.dataset, e.made_s = row.made_s"""
_MERGE_TRAINED_ON = """UNWIND $rows AS row
MATCH (v:Version {id: row.from_id}), (d:Dataset {id: row.to_id})
MERGE (v)-[e:TRAINED_ON]->(d)
SET e.signature = row.signature"""
_MERGE_MEASURED = """UNWIND $rows AS row
MATCH (v:Version {id: row.from_id}), (m:Metric {name: row.to_id})
MERGE (v)-[e:MEASURED {kind: row.kind, parent: row.parent}]->(m)
SET e.value = row.value"""


@dataclass(frozen=True, slots=True)
class Part:
    """One kind of node or relationship: its name, the statement that merges `$rows` of it, and those rows. Doing it
    again changes nothing. Relationships begin at the node `from_id` and end at `to_id`."""

    name: str
    merge: str
    rows: list[Row]


def property_graph(family: Family) -> tuple[Part, ...]:
    """The parts of a family, nodes before the relationships between them."""
    versions = [
        {"id": version.id, "name": version.name, "number": version.number, "made_s": version.made_s}
        for version in family.versions.values()
    ]
    datasets = {
        data.dataset: {"id": data.dataset, "n_rows": data.n_rows, "columns": [column.name for column in data.columns]}
        for data in _signatures(family)
    }
    became = [
        {
            "from_id": edge.parent,
            "to_id": edge.child,
            "kind": str(edge.kind),
            "params": _json(edge.params),
            "drift": _json(edge.drift),
            "dataset": edge.data.dataset if edge.data else "",
            "made_s": edge.made_s,
        }
        for edge in family.edges
    ]
    trained_on = [
        {"from_id": version.id, "to_id": version.data.dataset, "signature": version.data.id}
        for version in family.versions.values()
        if version.data is not None
    ]
    measured = [
        {"from_id": edge.child, "to_id": name, "kind": str(edge.kind), "parent": edge.parent, "value": value}
        for edge in family.edges
        for name, value in edge.metrics.items()
    ]
    metrics: list[Row] = [{"name": name} for name in dict.fromkeys(row["to_id"] for row in measured)]
    return (
        Part("Version", _MERGE_VERSIONS, versions),
        Part("Dataset", _MERGE_DATASETS, list(datasets.values())),
        Part("Metric", _MERGE_METRICS, metrics),
        Part("BECAME", _MERGE_BECAME, became),
        Part("TRAINED_ON", _MERGE_TRAINED_ON, trained_on),
        Part("MEASURED", _MERGE_MEASURED, measured),
    )


def _signatures(family: Family) -> Iterator[DataSignature]:
    for data in (*(version.data for version in family.versions.values()), *(edge.data for edge in family.edges)):
        if data is not None:
            yield data


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
