"""What an MLflow registry knows of versions and their parents becomes lineage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from lineage.graph.exports.from_mlflow import import_from_mlflow, lineage_tags
from lineage.graph.family import whole_family
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.records import Edge, EdgeKind, VersionId
from lineage.identity import hash_folder, hash_safetensors
from lineage.models import ModelRegistry, describe_folder
from tests.lineage.graph.families import id_of
from tests.lineage.stores import model_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return model_registry(tmp_path_factory.mktemp("cache"))


def register(registry: ModelRegistry, folder: Path, name: str, content: str, **options: Any) -> str:
    folder.mkdir(parents=True)
    describe_folder(folder, {"format": "test", "content": content})
    return registry.register(name, folder, content=content, **options).version


def foreign(registry: ModelRegistry, name: str, folder: Path, params: Mapping[str, str], parent_run: str = "") -> str:
    """A version as others make them, without our tags; returns its run."""
    client = registry._client
    tags = {"mlflow.parentRunId": parent_run} if parent_run else {}
    run = client.create_run(registry._experiment_id, tags=tags)
    for key, value in params.items():
        client.log_param(run.info.run_id, key, value)
    client.log_metric(run.info.run_id, "accuracy", 0.5)
    client.log_metric(run.info.run_id, "loss", float("nan"))
    client.log_artifacts(run.info.run_id, str(folder), "model")
    registry._ensure_model(name)
    client.create_model_version(name, f"{run.info.artifact_uri}/model", run.info.run_id)
    return str(run.info.run_id)


def edges(store: MemoryLineageStore) -> set[tuple[str, str, str]]:
    return {(edge.parent, edge.child, str(edge.kind)) for edge in store.edges()}


def test_versions_of_ours_come_with_the_edges_that_their_tags_name(registry: ModelRegistry, tmp_path: Path) -> None:
    a, b, c = (id_of(f"mlflow {name}") for name in "abc")
    register(registry, tmp_path / "a", "ours", a)
    register(registry, tmp_path / "b", "ours", b, tags={"parent": "models:/ours/1"}, params={"epochs": 3})
    merge = [Edge(parent, c, EdgeKind.MERGE) for parent in (a, b)]
    register(registry, tmp_path / "c", "ours", c, tags=lineage_tags(merge), metrics={"accuracy": 0.9})
    store = MemoryLineageStore()
    found = import_from_mlflow(registry, store, ["ours"])
    assert (found.n_versions, found.n_edges, found.left_out) == (3, 3, ())
    assert edges(store) == {(a, b, "fine-tune"), (a, c, "merge"), (b, c, "merge")}
    assert store.find("ours", "3") == c
    family = whole_family(store)
    by_ends = {(edge.parent, edge.child): edge for edge in family.edges}
    assert by_ends[a, b].params == {"epochs": "3"}
    assert by_ends[a, c].metrics == {"accuracy": 0.9}
    assert family.versions[a].made_s > 1_600_000_000
    again = import_from_mlflow(registry, store, ["ours"])
    assert (again.n_versions, again.n_new) == (3, 0)


def test_versions_of_others_are_known_by_their_weights_or_files(registry: ModelRegistry, tmp_path: Path) -> None:
    for name in ("base", "child", "nested"):
        (tmp_path / name).mkdir()
    save_file({"w": np.ones(3)}, tmp_path / "base" / "model.safetensors")
    (tmp_path / "child" / "model.txt").write_text("a tree")
    (tmp_path / "nested" / "model.txt").write_text("another tree")
    run = foreign(registry, "foreign", tmp_path / "base", {})
    foreign(registry, "foreign", tmp_path / "child", {"base_model": "foreign@1", "transformation": "Quantized"})
    foreign(registry, "foreign", tmp_path / "nested", {}, parent_run=run)
    store = MemoryLineageStore()
    found = import_from_mlflow(registry, store, ["foreign"])
    assert found.left_out == ()
    base, child = hash_safetensors(tmp_path / "base" / "model.safetensors"), hash_folder(tmp_path / "child")
    assert edges(store) == {(base, child, "quantise"), (base, hash_folder(tmp_path / "nested"), "fine-tune")}
    (edge,) = [edge for edge in store.edges() if edge.child == child]
    assert (edge.metrics, edge.params) == ({"accuracy": 0.5}, {})


def test_what_does_not_fit_is_left_out_and_told(registry: ModelRegistry, tmp_path: Path) -> None:
    a, b = id_of("odd a"), id_of("odd b")
    register(registry, tmp_path / "a", "odd", a, tags={"parent": "models:/odd/2"})
    register(registry, tmp_path / "b", "odd", b, tags={"parent": "models:/odd/1", "transformation": "magic"})
    register(registry, tmp_path / "c", "odd", id_of("odd c"), tags={"parent": f"models:/odd@champion, {'0' * 64}"})
    store = MemoryLineageStore()
    found = import_from_mlflow(registry, store, ["odd"])
    assert edges(store) == {(b, a, "fine-tune")}
    told = "\n".join(found.left_out)
    assert "models:/odd/2: 'magic' is no kind of edge" in told
    assert "models:/odd/3: its parent 'models:/odd@champion' is not in the lineage." in told
    assert told.count("models:/odd/2: ") == 2  # the cycle
    assert len(found.left_out) == 4


def test_the_same_weights_registered_twice_are_one_version(registry: ModelRegistry, tmp_path: Path) -> None:
    id = id_of("twice")
    for i in "ab":
        register(registry, tmp_path / i, "twice", id, tags={"parent": "models:/twice/1"} if i == "b" else {})
    store = MemoryLineageStore()
    found = import_from_mlflow(registry, store, ["twice"])
    assert (found.n_versions, len(store.ids()), store.edges(), found.left_out) == (2, 1, (), ())
    assert store.names(VersionId(id)) == (("twice", "1"), ("twice", "2"))


def test_without_names_all_models_are_read(registry: ModelRegistry, tmp_path: Path) -> None:
    register(registry, tmp_path / "m", "one-more", id_of("one more"))
    store = MemoryLineageStore()
    import_from_mlflow(registry, store)
    assert store.find("one-more", "1") == id_of("one more")


def test_a_run_that_is_not_there_noted_nothing(registry: ModelRegistry) -> None:
    assert registry.run_notes("0" * 32) is None
