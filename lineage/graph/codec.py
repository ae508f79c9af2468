"""Versions, edges and signatures as plain data, for the wire, and signatures as bytes, for whoever keeps them."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import orjson

from lineage.errors import LineageRefused
from lineage.graph.records import (
    Column,
    DatasetId,
    DataSignature,
    Edge,
    Moments,
    Version,
)

_MOMENTS = tuple(Moments.__dataclass_fields__)


def version_to_dict(version: Version, *, sketches: bool = True) -> dict[str, Any]:
    """A version as plain data; with `sketches=False` without the sketches, which are most of it."""
    data = version.data and signature_to_dict(version.data, sketches=sketches)
    return {"id": version.id, "name": version.name, "number": version.number, "data": data, "made_s": version.made_s}


def parse_version(value: Mapping[str, Any]) -> Version:
    """The version of `version_to_dict`. Raises LineageRefused."""
    fields = _fields(value, "a version", {"id"}, {"name", "number", "data", "made_s"})
    fields["data"] = _parse_data(fields)
    return Version(**fields)


def edge_to_dict(edge: Edge, *, sketches: bool = True) -> dict[str, Any]:
    """An edge as plain data."""
    return {
        "parent": edge.parent,
        "child": edge.child,
        "kind": str(edge.kind),
        "params": dict(edge.params),
        "metrics": dict(edge.metrics),
        "data": edge.data and signature_to_dict(edge.data, sketches=sketches),
        "drift": dict(edge.drift),
        "made_s": edge.made_s,
    }


def parse_edge(value: Mapping[str, Any]) -> Edge:
    """The edge of `edge_to_dict`. Raises LineageRefused."""
    optional = {"params", "metrics", "data", "drift", "made_s"}
    fields = _fields(value, "an edge", {"parent", "child", "kind"}, optional)
    fields["data"] = _parse_data(fields)
    return Edge(**fields)


def signature_to_dict(data: DataSignature, *, sketches: bool = True) -> dict[str, Any]:
    """A signature as plain data, its sketches in base64."""
    return {
        "dataset": data.dataset,
        "n_rows": data.n_rows,
        "columns": [_column_to_dict(column, sketches) for column in data.columns],
    }


def parse_signature(value: Mapping[str, Any]) -> DataSignature:
    """The signature of `signature_to_dict`. Raises LineageRefused."""
    fields = _fields(value, "a signature", {"dataset", "n_rows"}, {"columns"})
    columns = fields.get("columns", [])
    if not isinstance(columns, list):
        raise LineageRefused("the columns of a signature are a list.")
    return DataSignature(DatasetId(fields["dataset"]), fields["n_rows"], tuple(map(_parse_column, columns)))


def signature_to_bytes(data: DataSignature) -> bytes:
    """A signature as bytes: a line of JSON with the sizes of the sketches, then the sketches."""
    head = signature_to_dict(data, sketches=False)
    head["n_bytes"] = [len(column.sketch) for column in data.columns]
    return b"\n".join([orjson.dumps(head), b"".join(column.sketch for column in data.columns)])


def signature_from_bytes(body: bytes) -> DataSignature:
    """The signature of `signature_to_bytes`. Raises LineageRefused for other bytes."""
    line, _, sketches = body.partition(b"\n")
    try:
        head = orjson.loads(line)
        sizes = head.pop("n_bytes")
        if sum(sizes) != len(sketches):
            raise ValueError("sketches are missing")
        at = 0
        for column, size in zip(head["columns"], sizes, strict=True):
            column["sketch"] = sketches[at : at + size]
            at += size
    except (ValueError, KeyError, TypeError) as error:
        raise LineageRefused(f"a signature in the lineage is damaged: {error}.") from None
    return parse_signature(head)


def _column_to_dict(column: Column, sketches: bool) -> dict[str, Any]:
    made: dict[str, Any] = {"name": column.name, "datatype": column.datatype, "shape": list(column.shape)}
    made["moments"] = column.moments and dict(zip(_MOMENTS, column.moments.values, strict=True))
    if sketches:
        made["sketch"] = base64.b64encode(column.sketch).decode()
    return made


def _parse_column(value: Mapping[str, Any]) -> Column:
    fields = _fields(value, "a column", {"name", "datatype"}, {"shape", "moments", "sketch"})
    if fields.get("moments") is not None:
        fields["moments"] = Moments(**_fields(fields["moments"], "the moments", {"n_values"}, set(_MOMENTS)))
    if isinstance(fields.get("sketch"), str):
        try:
            fields["sketch"] = base64.b64decode(fields["sketch"], validate=True)
        except ValueError:
            raise LineageRefused(f"the sketch of column {fields['name']!r} is not base64.") from None
    return Column(**fields)


def _parse_data(fields: Mapping[str, Any]) -> DataSignature | None:
    data = fields.get("data")
    return None if data is None else parse_signature(data)


def _fields(value: Any, what: str, required: set[str], optional: set[str]) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise LineageRefused(f"{what} is written as names with values, not as {str(value)[:40]!r}.")
    if missing := sorted(required - set(value)):
        raise LineageRefused(f"{what} lacks {', '.join(missing)}.")
    if odd := sorted(set(value) - required - optional):
        raise LineageRefused(f"{what} has no {odd[0]!r}.", hint=f"There are: {', '.join(sorted(required | optional))}.")
    return dict(value)
