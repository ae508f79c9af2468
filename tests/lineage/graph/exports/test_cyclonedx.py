"""Bills of materials that the published schema accepts, with the lineage in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from lineage.graph.exports.cyclonedx import cyclonedx_json
from lineage.graph.family import Family, family_of
from lineage.graph.records import Edge, EdgeKind, Version
from tests.lineage.graph.families import data_of, digits_family, id_of


def made(family: Family, **options: Any) -> dict[str, Any]:
    document = cyclonedx_json(family, made_s=1_700_001_000.0, **options)
    refused = JsonStrictValidator(SchemaVersion.V1_6).validate_str(document)
    assert refused is None, refused
    found: dict[str, Any] = json.loads(document)
    return found


def component(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = [one for one in document["components"] if one["bom-ref"] == id_of(name)]
    return dict(found)


def test_the_schema_would_notice_a_model_card_that_is_wrong() -> None:
    document = json.loads(cyclonedx_json(digits_family(), made_s=0.0))
    document["components"][0]["modelCard"] = {"accuracy": 0.9}
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_models_have_cards_with_metrics_and_data() -> None:
    document = made(digits_family(), centre=id_of("repaired"))
    repaired = document["metadata"]["component"]
    assert (repaired["type"], repaired["name"], repaired["version"]) == ("machine-learning-model", "digits", "4")
    card = repaired["modelCard"]
    assert card["quantitativeAnalysis"]["performanceMetrics"] == [{"type": "accuracy", "value": "0.98"}]
    assert card["modelParameters"]["datasets"] == [{"ref": data_of("noisy").dataset}]
    assert json.loads(card["properties"][0]["value"]) == {"psi": {"pixels": 0.31}}
    assert repaired["bom-ref"] == id_of("repaired")
    assert repaired["bom-ref"] not in [one["bom-ref"] for one in document["components"]]
    data = [one for one in document["components"] if one["type"] == "data"]
    assert len(data) == 2
    assert all("modelCard" not in one for one in data)


def test_parents_are_ancestors_and_dependencies() -> None:
    document = made(digits_family())
    repaired = component(document, "repaired")
    ancestors = {one["properties"][0]["value"] for one in repaired["pedigree"]["ancestors"]}
    assert ancestors == {id_of("base"), id_of("other")}
    assert repaired["pedigree"]["notes"] == "repair of digits@3\nrepair of digits@1"
    assert "pedigree" not in component(document, "base")
    depends = {one["ref"]: set(one.get("dependsOn", ())) for one in document["dependencies"]}
    assert depends[id_of("repaired")] == {id_of("base"), id_of("other"), data_of("noisy").dataset}
    assert depends[id_of("base")] == {data_of("clean").dataset}


def test_the_same_family_gives_the_same_document() -> None:
    first, second = made(digits_family()), made(digits_family())
    assert first == second
    other = made(family_of(list(digits_family().versions.values())[:2], digits_family().edges))
    assert other["serialNumber"] != first["serialNumber"]


@pytest.mark.parametrize("n", [0, 1])
def test_small_families_are_fine_too(n: int) -> None:
    document = made(family_of([Version(id_of("a"))][:n], []))
    assert len(document.get("components", ())) == n


def test_two_kinds_of_edge_from_one_parent_are_one_ancestor() -> None:
    versions = [Version(id_of(name), name, "1") for name in "ab"]
    edges = [Edge(id_of("a"), id_of("b"), kind) for kind in (EdgeKind.PRUNE, EdgeKind.QUANTISE)]
    found = component(made(family_of(versions, edges)), "b")
    assert len(found["pedigree"]["ancestors"]) == 1
    assert found["pedigree"]["notes"] == "prune of a@1\nquantise of a@1"
