"""The lineage as a CycloneDX bill of materials for machine learning (ML-BOM), version 1.6 of the format.

Each version is a component of type machine-learning-model with a model card, each set of training data one of type
data. Parents are the ancestors of a component's pedigree, and what it depends on.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from lineage.graph.family import Family
from lineage.graph.records import DataSignature, Edge, Version, VersionId

_OUR_IDS = uuid.UUID("6b1f2a52-9c0e-5d0c-9d6f-6f4a6f0d2b11")


def cyclonedx_json(family: Family, *, made_s: float, centre: VersionId | None = None, indent: int | None = 1) -> str:
    """The bill of materials as JSON. `made_s` is its time, since 1970; `centre` the version that it is about, which
    then stands in the metadata instead of among the components.

    The same family gives the same document. Names, numbers, parameters and metrics are in it as they are in the
    lineage; rows of training data are not.
    """
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.output.json import JsonV1Dot6

    into: dict[str, list[Edge]] = {}
    for edge in family.edges:
        into.setdefault(edge.child, []).append(edge)
    models = {id: _model(version, into.get(id, ()), family) for id, version in family.versions.items()}
    data = {one.dataset: _data(one) for one in _signatures(family)}
    bom = Bom(
        components=[*(one for id, one in models.items() if id != centre), *data.values()],
        metadata=BomMetaData(
            timestamp=datetime.fromtimestamp(made_s, UTC), component=None if centre is None else models.get(centre)
        ),
        serial_number=uuid.uuid5(_OUR_IDS, json.dumps([*family.versions, *map(str, family.edges)])),
    )
    for id, version in family.versions.items():
        needed = [models[parent] for parent in dict.fromkeys(edge.parent for edge in into.get(id, ()))]
        bom.register_dependency(models[id], [*needed, *([data[version.data.dataset]] if version.data else [])])
    document = json.loads(JsonV1Dot6(bom).output_as_string())
    cards: dict[str, dict[str, Any]] = {id: _card(version, into.get(id, ())) for id, version in family.versions.items()}
    _put_cards(document, cards)  # of which the library knows nothing yet
    return json.dumps(document, indent=indent, ensure_ascii=False) + "\n"


def _model(version: Version, edges: Sequence[Edge], family: Family) -> Any:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType, Pedigree

    ancestors = [
        _bare(family.versions[parent], f"{version.id}/from/{parent}")
        for parent in dict.fromkeys(edge.parent for edge in edges)
    ]
    notes = "\n".join(f"{edge.kind} of {family.versions[edge.parent]}" for edge in edges)
    properties = [Property(name="fenix:content", value=version.id)]
    for edge in edges:
        properties.append(Property(name=f"fenix:{edge.kind}:{edge.parent}", value=_json(edge.params)))
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=version.id,
        name=version.name or "unregistered",
        version=version.number or version.id[:12],
        properties=properties,
        pedigree=Pedigree(ancestors=ancestors, notes=notes) if edges else None,
    )


def _bare(version: Version, bom_ref: str) -> Any:
    """A version as an ancestor: who it is; the rest stands with its own component."""
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        bom_ref=bom_ref,
        name=version.name or "unregistered",
        version=version.number or version.id[:12],
        properties=[Property(name="fenix:content", value=version.id)],
    )


def _data(data: DataSignature) -> Any:
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    columns = [[column.name, column.datatype, list(column.shape)] for column in data.columns]
    return Component(
        type=ComponentType.DATA,
        bom_ref=data.dataset,
        name=f"training data {data.dataset[:12]}",
        version=data.id[:12],
        description=f"{data.n_rows:,} rows",
        properties=[
            Property(name="fenix:rows", value=str(data.n_rows)),
            Property(name="fenix:columns", value=_json(columns)),
        ],
    )


def _card(version: Version, edges: Sequence[Edge]) -> dict[str, Any]:
    data = {one.dataset: one for one in (version.data, *(edge.data for edge in edges)) if one is not None}
    metrics = [{"type": name, "value": f"{value:.9g}"} for edge in edges for name, value in edge.metrics.items()]
    card: dict[str, Any] = {"bom-ref": f"{version.id}/card"}
    if data:
        card["modelParameters"] = {"datasets": [{"ref": dataset} for dataset in data]}
    if metrics:
        unique = {(metric["type"], metric["value"]): metric for metric in metrics}
        card["quantitativeAnalysis"] = {"performanceMetrics": list(unique.values())}
    drift = [{"name": f"fenix:drift:{edge.parent}", "value": _json(edge.drift)} for edge in edges if edge.drift]
    if drift:
        card["properties"] = drift
    return card


def _put_cards(document: dict[str, Any], cards: Mapping[str, dict[str, Any]]) -> None:
    for component in (*document.get("components", ()), document.get("metadata", {}).get("component", {})):
        card = cards.get(component.get("bom-ref", ""))
        if card is not None:
            component["modelCard"] = card


def _signatures(family: Family) -> list[DataSignature]:
    every = [*(version.data for version in family.versions.values()), *(edge.data for edge in family.edges)]
    return [data for data in every if data is not None]


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
