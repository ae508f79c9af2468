from __future__ import annotations

import doctest
import importlib
import json
import math
import pickle
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineage.errors import LineageRefused
from lineage.graph.records import (
    MOST_DEPTH,
    Column,
    DatasetId,
    DataSignature,
    Edge,
    EdgeKind,
    Moments,
    Version,
    VersionId,
    id_of_parts,
    plain,
)
from tests.lineage.graph.making import data, dataset_id, edge, version_id

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("module", ["records", "graph", "lineage", "signatures"])
def test_the_examples_in_docstrings_are_true(module: str) -> None:
    ran = doctest.testmod(importlib.import_module(f"lineage.graph.{module}"))
    assert ran.attempted > 0
    assert ran.failed == 0


@given(PLAIN)
def test_plain_data_stay_as_they_are(value: Any) -> None:
    assert plain(value) == value
    assert json.loads(json.dumps(plain(value))) == value


def test_what_is_handed_in_is_copied_as_plain_data() -> None:
    params: dict[str, Any] = {
        "scale": np.float32(0.5),
        "layers": ("fc", ["conv"]),
        "mask": np.array([[True, False]]),
        "kind": EdgeKind.PRUNE,
        "n": np.int64(3),
    }
    made = edge("a", "b", params=params)
    params["layers"][1].append("later")
    params["more"] = 1
    expected = {"scale": 0.5, "layers": ["fc", ["conv"]], "mask": [[True, False]], "kind": "prune", "n": 3}
    assert made.params == expected
    assert type(made.params["kind"]) is str
    assert edge("a", "b", metrics={"accuracy": np.float64(0.9), "n": 5}).metrics == {"accuracy": 0.9, "n": 5.0}


@pytest.mark.parametrize(
    "value", [{"x": math.nan}, {"x": [math.inf]}, {"x": {3: 4}}, {"x": {1, 2}}, {"x": b"bytes"}, {"x": object()}, [1]]
)
def test_what_is_not_plain_is_refused(value: Any) -> None:
    for what in ("params", "drift"):
        with pytest.raises(LineageRefused, match=what):
            edge("a", "b", **{what: value})


def test_data_that_are_nested_without_end_are_refused() -> None:
    deep: list[Any] = []
    for _ in range(MOST_DEPTH + 1):
        deep = [deep]
    with pytest.raises(LineageRefused, match="deep"):
        edge("a", "b", params={"x": deep})
    endless: dict[str, Any] = {}
    endless["x"] = endless
    with pytest.raises(LineageRefused, match="deep"):
        edge("a", "b", drift=endless)


@pytest.mark.parametrize("metrics", [{"accuracy": math.nan}, {"accuracy": "good"}, {"accuracy": None}])
def test_a_metric_is_a_finite_number(metrics: dict[str, Any]) -> None:
    with pytest.raises(LineageRefused, match="accuracy"):
        edge("a", "b", metrics=metrics)


@pytest.mark.parametrize("id_", ["", "a" * 63, "A" * 64, "g" * 64, "a" * 65, "a" * 64 + "\n", None, 5])
def test_an_id_is_a_hash(id_: Any) -> None:
    with pytest.raises(LineageRefused, match="SHA-256"):
        Version(id_)
    with pytest.raises(LineageRefused, match="SHA-256"):
        Edge(version_id("a"), id_, EdgeKind.PRUNE)
    with pytest.raises(LineageRefused, match="SHA-256"):
        DataSignature(id_, 3)


@pytest.mark.parametrize(
    ("name", "number"),
    [("digits", ""), ("", "1"), ("x" * 257, "1"), ("digits", "1" * 33), ("a\0b", "1"), ("a\nb", "1")],
)
def test_a_name_comes_with_a_number_and_can_be_read(name: str, number: str) -> None:
    with pytest.raises(LineageRefused):
        Version(version_id("a"), name, number)


def test_a_kind_of_edge_may_be_given_as_a_text_and_must_exist() -> None:
    assert Edge(version_id("a"), version_id("b"), "fine-tune").kind is EdgeKind.FINE_TUNE  # type: ignore[arg-type]
    with pytest.raises(LineageRefused, match="'finetune'") as error:
        Edge(version_id("a"), version_id("b"), "finetune")  # type: ignore[arg-type]
    assert "fine-tune, prune" in error.value.hint


@pytest.mark.parametrize("wrong", [{"n_values": -1}, {"n_values": 2.5}, {"mean": math.nan}, {"maximum": math.inf}])
def test_moments_are_counts_and_finite_numbers(wrong: dict[str, Any]) -> None:
    with pytest.raises(LineageRefused):
        Moments(**{"n_values": 3, **wrong})


def test_two_columns_of_one_name_are_refused() -> None:
    with pytest.raises(LineageRefused, match="same name"):
        DataSignature(dataset_id("a"), 3, (Column("x", "FP32"), Column("x", "INT8")))


def test_a_signature_is_known_by_all_that_it_says() -> None:
    base = data("a")
    pixels, text = base.columns
    assert pixels.moments is not None
    others = [
        replace(base, dataset=DatasetId("0" * 64)),
        replace(base, n_rows=99),
        replace(base, columns=(text, pixels)),
        replace(base, columns=(pixels,)),
        replace(base, columns=(replace(pixels, sketch=b""), text)),
        replace(base, columns=(replace(pixels, sketch=b"", name="q"), replace(text, sketch=pixels.sketch))),
        replace(base, columns=(replace(pixels, shape=(64,)), text)),
        replace(base, columns=(replace(pixels, moments=None), text)),
        replace(base, columns=(replace(pixels, moments=replace(pixels.moments, mean=0.51)), text)),
    ]
    assert len({one.id for one in (base, *others)}) == len(others) + 1
    assert data("a").id == base.id
    assert base.column("text") == text
    assert base.column("none") is None


def test_the_id_of_a_fusion_depends_on_its_parts_their_order_and_wiring() -> None:
    a, b = version_id("a"), version_id("b")
    made = {
        id_of_parts(EdgeKind.FUSE, [a, b]),
        id_of_parts(EdgeKind.FUSE, [b, a]),
        id_of_parts(EdgeKind.MERGE, [a, b]),
        id_of_parts(EdgeKind.FUSE, [a, b], "a->b"),
    }
    assert len(made) == 4
    assert id_of_parts(EdgeKind.FUSE, (a, b)) in made
    assert Version(next(iter(made)))


def test_records_travel_between_processes() -> None:
    made = edge("a", "b", params={"x": 1}, data=data("x"))
    assert pickle.loads(pickle.dumps(made)) == made
    assert str(Version(VersionId("a" * 64))) == "a" * 12
