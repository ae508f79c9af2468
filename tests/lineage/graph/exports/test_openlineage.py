"""Events that any OpenLineage server takes, and the same ones for the same lineage."""

from __future__ import annotations

import json
import sys
import uuid
from typing import Any

import jsonschema
import pytest

from lineage.errors import StoreUnavailable
from lineage.graph.exports.openlineage import openlineage_json, run_events
from lineage.graph.family import Family, family_of
from lineage.graph.records import Version
from tests.lineage.graph.families import data_of, digits_family, id_of

pytest.importorskip("openlineage.client")

TEXT = {"type": "string", "minLength": 1}
URI = {"type": "string", "format": "uri"}


def of(required: dict[str, Any], **optional: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def facets(**known: Any) -> dict[str, Any]:
    """Facets say who made them and by which schema; those that are known have fields of their own."""
    each = of({"_producer": URI, "_schemaURL": URI})
    return {
        "type": "object",
        "properties": {k: {"allOf": [each, v]} for k, v in known.items()},
        "additionalProperties": each,
    }


def dataset(**own: Any) -> dict[str, Any]:
    field = of({"name": TEXT}, type=TEXT, ordinal_position={"type": "integer"})
    known = facets(
        version=of({"datasetVersion": TEXT}),
        datasetType=of({"datasetType": TEXT}),
        schema=of({"fields": {"type": "array", "items": field}}),
    )
    return of({"namespace": TEXT, "name": TEXT}, facets=known, **own)


# What the specification (2-0-2) asks of a run event, in the part of it that is used.
RUN_EVENT = of(
    {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": URI,
        "schemaURL": URI,
        "run": of(
            {"runId": {"type": "string", "format": "uuid"}},
            facets=facets(executionParameters=of({"parameters": {"type": "array", "items": of({"key": TEXT})}})),
        ),
        "job": of(
            {"namespace": TEXT, "name": TEXT},
            facets=facets(
                jobType=of({"processingType": {"enum": ["BATCH", "STREAMING", "SERVICE"]}, "integration": TEXT})
            ),
        ),
    },
    eventType={"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
    inputs={
        "type": "array",
        "items": dataset(inputFacets=facets(inputStatistics=of({"rowCount": {"type": "integer"}}))),
    },
    outputs={"type": "array", "items": dataset(outputFacets=facets())},
)


def events(family: Family) -> list[dict[str, Any]]:
    return [json.loads(line) for line in openlineage_json(family).splitlines()]


def test_every_event_is_as_the_specification_asks() -> None:
    validator = jsonschema.Draft202012Validator(RUN_EVENT, format_checker=jsonschema.FormatChecker())
    found = events(digits_family())
    for event in found:
        validator.validate(event)
        assert event["schemaURL"] == "https://openlineage.io/spec/2-0-2/OpenLineage.json#/$defs/RunEvent"
    broken = {**found[0], "run": {"runId": "not a uuid"}}
    assert not validator.is_valid(broken)
    del found[1]["inputs"][0]["facets"]["version"]["datasetVersion"]
    assert not validator.is_valid(found[1])


def test_every_run_starts_and_completes_and_leads_from_parents_and_data_to_the_version() -> None:
    found = events(digits_family())
    runs: dict[str, list[dict[str, Any]]] = {}
    for event in found:
        runs.setdefault(event["run"]["runId"], []).append(event)
    assert len(runs) == 7
    for start, complete in runs.values():
        assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
        assert "outputs" not in start or start["outputs"] == []
    (repair,) = [event for event in found if event["job"]["name"] == "repair" and event["eventType"] == "COMPLETE"]
    assert [one["name"] for one in repair["inputs"]][:2] == ["models/digits/3", "models/digits/1"]
    assert repair["inputs"][2]["name"].startswith("data/")
    assert repair["inputs"][2]["inputFacets"]["inputStatistics"]["rowCount"] == 200
    assert [one["name"] for one in repair["outputs"]] == ["models/digits/4"]
    own = repair["run"]["facets"]["fenix_transformation"]["parents"]
    assert own[0]["metrics"] == {"accuracy": 0.98}
    assert own[0]["drift"] == {"psi": {"pixels": 0.31}}
    (train,) = [event for event in found if event["job"]["name"] == "train" and event["eventType"] == "COMPLETE"]
    assert [one["name"] for one in train["outputs"]] == ["models/digits/1"]


def test_the_same_lineage_gives_the_same_events() -> None:
    assert openlineage_json(digits_family()) == openlineage_json(digits_family())
    other = openlineage_json(digits_family(), namespace="elsewhere", producer="https://example.org/fenix")
    first = json.loads(other.splitlines()[0])
    assert first["job"]["namespace"] == "elsewhere"
    assert first["job"]["facets"]["jobType"]["_producer"] == "https://example.org/fenix"
    assert first["run"]["runId"] != events(digits_family())[0]["run"]["runId"]
    assert uuid.UUID(first["run"]["runId"]).version == 5


def test_a_version_of_which_nothing_is_known_but_its_weights_has_no_run() -> None:
    assert run_events(family_of([Version(id_of("a"))], [])) == []
    (_, complete) = events(family_of([Version(id_of("a"), data=data_of("a"))], []))
    assert complete["outputs"][0]["name"] == f"models/{id_of('a')}"


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("openlineage")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(StoreUnavailable) as caught:
        run_events(digits_family())
    assert "fenix-serve[openlineage]" in caught.value.hint
