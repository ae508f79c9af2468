from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineage.errors import LineageRefused
from lineage.graph.codec import (
    edge_to_dict,
    parse_edge,
    parse_signature,
    parse_version,
    signature_from_bytes,
    signature_to_bytes,
    signature_to_dict,
    version_to_dict,
)
from lineage.graph.records import Column, DataSignature, EdgeKind, Moments
from tests.lineage.graph.making import data, dataset_id, edge, version

FINITE = st.none() | st.floats(allow_nan=False, allow_infinity=False)
COLUMNS = st.builds(
    Column,
    st.text(st.characters(categories=("L", "N", "P")), min_size=1, max_size=8),
    st.sampled_from(["FP32", "BYTES"]),
    st.lists(st.integers(-1, 9), max_size=3).map(tuple),
    st.none() | st.builds(Moments, st.integers(0, 2**40), st.integers(0, 9), *[FINITE] * 6),
    st.binary(max_size=20),
)


@given(st.lists(COLUMNS, max_size=4, unique_by=lambda column: column.name), st.integers(0, 2**40))
def test_a_signature_comes_back_from_bytes_and_from_plain_data(columns: list[Column], n_rows: int) -> None:
    made = DataSignature(dataset_id("a"), n_rows, tuple(columns))
    assert signature_from_bytes(signature_to_bytes(made)) == made
    again = parse_signature(json.loads(json.dumps(signature_to_dict(made))))
    assert again == made
    assert again.id == made.id


def test_versions_and_edges_come_back_from_json() -> None:
    for one in (version("a"), version("b", 12.5, data("x"))):
        assert parse_version(json.loads(json.dumps(version_to_dict(one)))) == one
    for two in (
        edge("a", "b"),
        edge("a", "b", EdgeKind.MERGE, params={"w": [0.5]}, metrics={"acc": 0.9}, data=data("y"), drift={"psi": 0.1}),
    ):
        assert parse_edge(json.loads(json.dumps(edge_to_dict(two)))) == two


def test_sketches_may_be_left_out() -> None:
    told = version_to_dict(version("a", data=data("x")), sketches=False)
    again = parse_version(told)
    assert again.data is not None
    assert [column.sketch for column in again.data.columns] == [b"", b""]
    assert again.data.columns[0].moments == data("x").columns[0].moments


@pytest.mark.parametrize(
    "body",
    [b"", b"{}", b"not json\nabc", signature_to_bytes(data("x"))[:-1], signature_to_bytes(data("x")) + b"x", b"[]\n"],
)
def test_damaged_bytes_are_refused(body: bytes) -> None:
    with pytest.raises(LineageRefused, match="damaged"):
        signature_from_bytes(body)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kind": "clone"}, "no kind of edge"),
        ({"weight": 1}, "has no 'weight'"),
        ({"data": "x"}, "a signature is written as names"),
        ({"data": {"dataset": "0" * 64}}, "lacks n_rows"),
        (
            {"data": {"dataset": "0" * 64, "n_rows": 1, "columns": [{"name": "x", "datatype": "FP32", "sketch": "%"}]}},
            "64",
        ),
    ],
)
def test_an_edge_that_is_written_otherwise_is_refused(change: dict[str, Any], said: str) -> None:
    with pytest.raises(LineageRefused, match=said):
        parse_edge({**edge_to_dict(edge("a", "b")), **change})
    with pytest.raises(LineageRefused, match="lacks child, kind"):
        parse_edge({"parent": "0" * 64})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where in plain data something else could stand."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, one in inner for place in places(one, (*path, key)))]


@given(st.data(), JSON)
def test_whatever_is_sent_is_an_edge_or_refused(draw: st.DataObject, odd: Any) -> None:
    sent: Any = edge_to_dict(edge("a", "b", params={"w": [1]}, metrics={"acc": 0.9}, data=data("y"), drift={"psi": 1}))
    path = draw.draw(st.sampled_from(places(sent)))
    if not path:
        sent = odd
    else:
        into = sent
        for key in path[:-1]:
            into = into[key]
        into[path[-1]] = odd
    try:
        made = parse_edge(sent)
    except LineageRefused:
        return
    assert parse_edge(json.loads(json.dumps(edge_to_dict(made)))) == made
    assert made.data is None or signature_from_bytes(signature_to_bytes(made.data)) == made.data
