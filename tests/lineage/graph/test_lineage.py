from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from lineage.errors import LineageRefused, UnknownVersion
from lineage.graph.graph import HealthyAncestor
from lineage.graph.lineage import Derivation, Lineage, open_lineage
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import DataSignature, EdgeKind, Version, VersionId
from tests.lineage.graph.making import data, dataset_id, edge, version, version_id


@pytest.fixture
def lineage() -> Lineage:
    return Lineage(MemoryLineageStore())


def test_the_graph_follows_the_store(lineage: Lineage) -> None:
    lineage.store.add(version("a"))
    graph = lineage.graph()
    lineage.store.add(version("b"), [edge("a", "b")])
    assert len(graph) == 1
    assert list(lineage.graph().descendants(version_id("a"))) == [version_id("b")]
    assert lineage.graph() is graph


def test_another_database_in_the_place_of_the_first_is_read_anew(lineage: Lineage) -> None:
    lineage.store.add_all([version("a"), version("b")])
    assert len(lineage.graph()) == 2
    lineage.store = MemoryLineageStore()
    lineage.store.add(version("c"))
    assert lineage.graph().versions() == (version_id("c"),)


def test_a_lineage_is_opened_by_the_url_of_its_database(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new/fenix.db"
    first, second = open_lineage(url), open_lineage(url)
    first.store.add(version("a"))
    assert len(second.graph()) == 1
    first.close()
    second.close()


def test_the_examples_in_the_docs_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parents[3] / "docs/lineage.md").read_text().partition("## Parameters")[0]
    blocks = re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    assert len(blocks) > 1
    names: dict[str, Any] = {}
    for block in blocks:
        exec(block, names)
    assert names["graph"].ancestors(names["child"].id) == {names["parent"].id: 1}
    names["lineage"].close()


def test_versions_are_named_by_id_by_its_beginning_and_as_in_mlflow(lineage: Lineage) -> None:
    id_ = version_id("a")
    lineage.store.add_all([Version(id_, "digits@home", "3"), version("b")])
    for text in (id_, id_[:6], id_[:63], "digits@home@3"):
        assert lineage.resolve(text) == id_
    for text in ("model-b@1", "models:/model-b/1", f"models:/model-b/1#{'0' * 64}"):
        assert lineage.resolve(text) == version_id("b")


def test_a_text_that_names_no_version_is_told_what_is_near(lineage: Lineage) -> None:
    lineage.store.add_all([Version(version_id(n), "digits", str(n)) for n in range(8)])
    with pytest.raises(UnknownVersion, match="digits@99") as error:
        lineage.resolve("digits@99")
    assert error.value.hint == "digits has digits@3, digits@4, digits@5, digits@6, digits@7."
    for text, hint in (
        ("digits", "digits@7"),
        ("digit@1", "Nearest: digits."),
        ("what is it", "Write an id"),
        ("", "Write an id"),
        ("f" * 64, "registered"),
        ("ffffff", "registered"),
    ):
        with pytest.raises(UnknownVersion) as error:
            lineage.resolve(text)
        assert hint in error.value.hint


def test_the_beginning_of_several_ids_is_refused(lineage: Lineage) -> None:
    ids = [VersionId("abcdef" + "0" * 57 + str(n)) for n in range(3)]
    lineage.store.add_all([Version(id_) for id_ in ids])
    with pytest.raises(LineageRefused, match="3 versions"):
        lineage.resolve("abcdef")
    assert lineage.resolve(ids[1]) == ids[1]


def test_drift_is_asked_once_for_each_signature_of_the_nearest(lineage: Lineage) -> None:
    versions = [version("root", data=data("clean")), version("a", data=data("clean")), version("b")]
    versions += [version("c", data=data("noisy")), version("d", data=data("noisy")), version("leaf")]
    chain = [edge(a.name[6:], b.name[6:]) for a, b in pairwise(versions)]
    lineage.store.add_all(versions, chain)
    asked: list[DataSignature] = []

    def drift(signature: DataSignature) -> float | None:
        asked.append(signature)
        return {dataset_id("clean"): 0.05, dataset_id("noisy"): None}[signature.dataset]

    leaf = version_id("leaf")
    assert lineage.nearest_healthy_ancestor(leaf, drift, 0.1) == HealthyAncestor(version_id("a"), 4, 0.05)
    assert asked == [data("noisy"), data("clean")]
    assert lineage.nearest_healthy_ancestor(leaf, drift, 0.01) is None
    assert lineage.nearest_healthy_ancestor(version_id("root"), drift, 0.1) is None


def test_a_cascade_says_how_each_version_was_made(lineage: Lineage) -> None:
    tune = edge("bad", "tuned", params={"epochs": 2})
    merge = [edge(name, "merged", EdgeKind.MERGE, params={"weight": 0.5}) for name in ("tuned", "other")]
    quantise = edge("tuned", "small", EdgeKind.QUANTISE)
    names = ("bad", "other", "tuned", "merged", "small")
    lineage.store.add_all([version(name) for name in names], [*merge, quantise, tune])
    first, second = lineage.cascade([version_id("bad")])
    assert first == (Derivation(version_id("tuned"), (tune,)),)
    assert {one.version: one.edges for one in second} == {
        version_id("merged"): tuple(merge),
        version_id("small"): (quantise,),
    }
    assert lineage.cascade() == ()
