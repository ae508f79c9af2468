"""Model versions come back from the registry as they went in, or not at all."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest

from lineage.errors import ArtifactRefused, ModelNotFound, StoreUnavailable
from lineage.identity import hash_folder
from lineage.models import ModelRegistry, ModelVersion, describe_folder, read_descriptor
from tests.lineage.stores import artifacts, model_registry


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return model_registry(tmp_path_factory.mktemp("cache"))


def model(folder: Path, text: str = "weights") -> Path:
    (folder / "inner").mkdir(parents=True)
    (folder / "inner" / "weights").write_text(text)
    describe_folder(folder, {"format": "test"})
    return folder


def test_a_version_comes_back_with_its_files_card_and_tags(registry: ModelRegistry, tmp_path: Path) -> None:
    made = registry.register(
        "digits",
        model(tmp_path / "m"),
        content="abc",
        card={"name": "digits"},
        params={"C": 1.0},
        metrics={"accuracy": 0.9},
        tags={"made-by": "a test"},
        alias="champion",
    )
    found = registry.resolve("models:/digits@champion")
    assert found == made
    assert (found.uri, found.content, found.aliases) == ("models:/digits/1", "abc", ("champion",))
    assert found.tags is not None
    assert found.tags["made-by"] == "a test"
    folder = registry.fetch(found)
    assert (folder / "inner" / "weights").read_text() == "weights"
    assert read_descriptor(folder) == {"loader": {"format": "test"}, "card": {"name": "digits"}}
    assert hash_folder(folder) == found.digest


def test_an_alias_moves_and_a_number_stays(registry: ModelRegistry, tmp_path: Path) -> None:
    first = registry.register("moving", model(tmp_path / "a", "1"), content="1", alias="champion")
    second = registry.register("moving", model(tmp_path / "b", "2"), content="2", alias="champion")
    assert registry.resolve("models:/moving@champion").version == second.version == "2"
    registry.set_alias(first, "champion")
    assert registry.resolve("models:/moving@champion").version == "1"
    assert registry.resolve("models:/moving/2").content == "2"
    assert [(version.version, version.aliases) for version in registry.versions("moving")] == [
        ("1", ("champion",)),
        ("2", ()),
    ]
    assert registry.versions("nothing") == ()


def test_fetching_twice_gives_the_same_folder_and_repairs_a_damaged_one(
    registry: ModelRegistry, tmp_path: Path
) -> None:
    version = registry.register("kept", model(tmp_path / "m", "kept"), content="c")
    folder = registry.fetch(version)
    assert registry.fetch(version) == folder
    (folder / "inner" / "weights").write_text("damaged")
    assert (registry.fetch(version) / "inner" / "weights").read_text() == "kept"


def test_artifacts_that_changed_in_the_store_are_refused(tmp_path: Path) -> None:
    registry = model_registry(tmp_path / "cache")
    version = registry.register("tampered", model(tmp_path / "m", "mine"), content="c")
    (weights,) = [path for path in artifacts().rglob("weights") if path.read_text() == "mine"]
    weights.write_text("theirs")
    with pytest.raises(ArtifactRefused, match="not the ones that were registered"):
        registry.fetch(version)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_digest_that_leads_out_of_the_cache_is_refused(registry: ModelRegistry) -> None:
    with pytest.raises(ArtifactRefused, match="not a SHA-256"):
        registry.fetch(ModelVersion("digits", "1", digest="../artifacts"))


@pytest.mark.parametrize(
    ("uri", "hint"),
    [
        ("models:/digit@champion", "Nearest: digits"),
        ("models:/digits@chmpion", "aliases champion"),
        ("models:/digits/77", "has versions 1"),
        ("models:/digits", "models:/name@alias"),
        ("runs:/1/digits", "models:/name@alias"),
    ],
)
def test_what_is_not_there_is_named_with_what_is_near(
    registry: ModelRegistry, tmp_path: Path, uri: str, hint: str
) -> None:
    if not registry.versions("digits"):
        registry.register("digits", model(tmp_path / "m"), content="abc", alias="champion")
    with pytest.raises(ModelNotFound) as caught:
        registry.resolve(uri)
    assert hint in caught.value.hint


def test_a_folder_without_our_descriptor_is_not_registered(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match=r"fenix\.json"):
        registry.register("bare", tmp_path, content="c")
    assert registry.versions("bare") == ()


def test_a_name_that_the_registry_refuses_is_the_callers_fault(registry: ModelRegistry, tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="refuses"):
        registry.register("a/b", model(tmp_path / "m"), content="c")


@pytest.mark.parametrize("text", ["{", "[]", json.dumps({"loader": 3})])
def test_a_damaged_descriptor_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "fenix.json").write_text(text)
    with pytest.raises(ArtifactRefused, match=r"fenix\.json"):
        read_descriptor(tmp_path)


def test_a_dead_server_is_reported_soon(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        registry = ModelRegistry(f"http://127.0.0.1:{taken.getsockname()[1]}", tmp_path)
        started_s = time.perf_counter()
        with pytest.raises(StoreUnavailable, match="does not answer"):
            registry.resolve("models:/digits@champion")
        assert time.perf_counter() - started_s < 20
