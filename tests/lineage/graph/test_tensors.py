"""Weights that a family has in common are kept once, and come back as they were or not at all."""

from __future__ import annotations

import json
import tracemalloc
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from lineage.errors import ArtifactRefused, ModelNotFound
from lineage.graph.blobs import Blobs, FolderBlobs, MemoryBlobs
from lineage.graph.tensors import TensorStore, content_hash
from lineage.identity import hash_safetensors, hash_tensors
from tests.clocks import Clock

Tensors = dict[str, npt.NDArray[Any]]

arrays = hnp.arrays(
    st.sampled_from([np.bool_, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64, ">f4"]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)
versions = st.dictionaries(st.text(min_size=1, max_size=5), arrays, max_size=4)


def at(now_s: float) -> Clock:
    clock = Clock()
    clock.now_s = now_s
    return clock


@pytest.fixture(params=["memory", "folder"])
def blobs(request: pytest.FixtureRequest, tmp_path: Path) -> Blobs:
    return MemoryBlobs(at(1_000.0)) if request.param == "memory" else FolderBlobs(tmp_path, at(1_000.0))


@pytest.fixture
def store(blobs: Blobs) -> TensorStore:
    return TensorStore(blobs)


def network(seed: int = 0, **others: npt.NDArray[Any]) -> Tensors:
    rng = np.random.default_rng(seed)
    layers: Tensors = {f"layer{i}.weight": rng.normal(size=(64, 64)).astype(np.float32) for i in range(4)}
    return {**layers, **others}


def same(one: Mapping[str, npt.NDArray[Any]], other: Mapping[str, npt.NDArray[Any]]) -> bool:
    return one.keys() == other.keys() and all(
        one[name].shape == other[name].shape
        and one[name].dtype == other[name].dtype.newbyteorder("=")
        and one[name].tobytes() == other[name].astype(one[name].dtype).tobytes()
        for name in one
    )


@given(versions)
def test_a_version_comes_back_as_it_went_in(tensors: Tensors) -> None:
    store = TensorStore(MemoryBlobs())
    manifest = store.put(tensors)
    assert same(store.load(manifest.content), tensors)
    assert store.manifest(manifest.content) == manifest
    assert manifest.n_bytes == sum(array.nbytes for array in tensors.values())


@given(versions)
def test_its_content_hash_is_that_of_the_registry(tensors: Tensors) -> None:
    other = {name: tensors[name].copy(order="F") for name in reversed(tensors)}
    assert content_hash(tensors) == content_hash(other) == hash_tensors(tensors)


def test_a_tensor_that_two_versions_share_is_kept_once(store: TensorStore) -> None:
    head = np.ones((10, 64), np.float32)
    first = store.put(network(head=head))
    second = store.put(network(head=head + 1, again=head))
    figures = store.figures()
    assert (figures.n_versions, figures.n_named, figures.n_tensors) == (2, 11, 6)
    assert figures.bytes_named == first.n_bytes + second.n_bytes
    assert figures.bytes_distinct == first.n_bytes + head.nbytes
    assert figures.bytes_distinct < figures.bytes_kept < 1.05 * figures.bytes_distinct
    assert 0.4 < figures.saved_share < 0.5
    assert first.tensors["head"] == second.tensors["again"]
    assert sorted(store.contents()) == sorted([first.content, second.content])


@pytest.mark.parametrize("other", [np.zeros(6, np.float32), np.zeros((2, 3)), np.zeros((2, 3), np.int32)])
def test_the_same_bytes_in_another_shape_or_dtype_are_another_tensor(store: TensorStore, other: Any) -> None:
    one = store.put({"a": np.zeros((2, 3), np.float32)})
    assert store.put({"a": other}).tensors["a"].sha256 != one.tensors["a"].sha256


def test_each_tensor_is_a_safetensors_file_of_its_own(tmp_path: Path) -> None:
    tensors = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3), "n": np.array(7)}
    manifest = TensorStore(FolderBlobs(tmp_path)).put(tensors)
    for name, ref in manifest.tensors.items():
        (path,) = tmp_path.rglob(f"{ref.sha256}.safetensors")
        np.testing.assert_array_equal(load_file(path)["tensor"], tensors[name])


def test_a_file_of_weights_is_kept_and_written_again_with_the_same_identity(store: TensorStore, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file as save_torch_file

    path, again = tmp_path / "weights.safetensors", tmp_path / "again.safetensors"
    halves = torch.randn(5, 3, dtype=torch.bfloat16)
    save_torch_file({"halves": halves, "flag": torch.tensor(True), "big": torch.ones(3)}, path, {"made": "today"})
    manifest = store.put_file(path)
    assert manifest.content == hash_safetensors(path)
    store.write_file(manifest.content, again)
    assert hash_safetensors(again) == manifest.content
    loaded = store.load(manifest.content, ["halves"])
    np.testing.assert_array_equal(loaded["halves"], halves.float().numpy())
    assert list(loaded) == ["halves"]


def test_a_damaged_file_of_weights_is_refused(store: TensorStore, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.zeros(4)}, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactRefused, match=r"weights\.safetensors"):
        store.put_file(path)


@pytest.mark.parametrize("position", [0, 20, -1])
def test_a_damaged_tensor_is_named_and_nothing_of_it_is_given_out(tmp_path: Path, position: int) -> None:
    store = TensorStore(FolderBlobs(tmp_path))
    tensors = network()
    manifest = store.put(tensors)
    (path,) = tmp_path.rglob(f"{manifest.tensors['layer2.weight'].sha256}.safetensors")
    whole = bytearray(path.read_bytes())
    whole[position] ^= 1
    path.write_bytes(bytes(whole))
    with pytest.raises(ArtifactRefused, match=r"'layer2\.weight'.*damaged"):
        store.load(manifest.content)
    assert len(store.load(manifest.content, ["layer1.weight"])) == 1
    assert [said[:23] for said in store.damaged(manifest.content)] == ["tensor 'layer2.weight' "]
    store.put({"elsewhere": tensors["layer2.weight"]})
    assert store.damaged(manifest.content) == ()


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    store = TensorStore(FolderBlobs(tmp_path))
    manifest = store.put(network())
    (path,) = tmp_path.rglob(f"{manifest.tensors['layer0.weight'].sha256}.safetensors")
    path.unlink()
    with pytest.raises(ArtifactRefused, match=r"'layer0\.weight'.*missing"):
        store.load(manifest.content)


def test_a_manifest_that_was_changed_is_refused_and_nothing_is_collected(tmp_path: Path) -> None:
    store = TensorStore(FolderBlobs(tmp_path))
    manifest = store.put({"a": np.zeros(3), "b": np.ones(3)})
    (path,) = tmp_path.rglob(f"{manifest.content}.json")
    said = json.loads(path.read_text())
    said["tensors"]["a"], said["tensors"]["b"] = said["tensors"]["b"], said["tensors"]["a"]
    path.write_text(json.dumps(said))
    with pytest.raises(ArtifactRefused, match="manifest"):
        store.load(manifest.content)
    assert "manifest" in store.damaged(manifest.content)[0]
    with pytest.raises(ArtifactRefused, match="manifest"):
        store.collect(now_s=1e12)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2


def test_collecting_removes_old_tensors_that_nothing_names(store: TensorStore) -> None:
    first, second = store.put(network(head=np.ones(8))), store.put(network(head=np.zeros(8)))
    store.forget(first.content)
    assert not store.has(first.content)
    assert store.collect(now_s=1_100.0, grace_s=100.0).n_tensors == 0
    assert store.collect(now_s=1_100.1, grace_s=100.0).n_tensors == 1
    assert store.damaged(second.content) == ()
    store.forget(second.content)
    assert store.collect(now_s=2_000.0, grace_s=100.0).n_tensors == 5
    assert store.figures().bytes_kept == 0


def test_a_tensor_that_is_about_to_be_used_again_is_not_collected() -> None:
    clock = at(1_000.0)
    store = TensorStore(MemoryBlobs(clock))
    old = store.put({"a": np.ones(8), "b": np.zeros(8)})
    store.forget(old.content)
    clock.now_s += 10_000.0
    new = store.put({"a": np.ones(8)})
    store.forget(new.content)  # as if its manifest was not yet written
    assert store.collect(now_s=clock()).n_tensors == 1
    assert store.put({"a": np.ones(8)}) == new
    assert store.damaged(new.content) == ()


def test_what_is_not_there_is_not_found(store: TensorStore) -> None:
    for content in ("0" * 64, "../../etc/passwd"):
        with pytest.raises(ModelNotFound):
            store.load(content)
    manifest = store.put({"a": np.zeros(3)})
    with pytest.raises(ArtifactRefused, match=r"no tensor 'b'"):
        store.load(manifest.content, ["b"])


@pytest.mark.parametrize(
    "tensors", [{"a": np.array([object()])}, {"a": np.array(["x"])}, {"a": np.zeros(2, complex)}, {"__metadata__": 1}]
)
def test_what_are_no_weights_is_refused(store: TensorStore, tensors: Any) -> None:
    with pytest.raises(ArtifactRefused):
        store.put(tensors)
    assert store.figures().n_tensors == 0


def test_large_tensors_are_not_copied(tmp_path: Path) -> None:
    store = TensorStore(FolderBlobs(tmp_path))
    large = {"a": np.zeros((1024, 1024), np.float64), "b": np.ones((1024, 1024), np.float64)}
    tracemalloc.start()
    try:
        manifest = store.put(large)
        store.put(large)
        loaded = store.load(manifest.content)
        assert float(loaded["b"].sum()) == 1024**2
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 6 << 20  # a tensor has 8 MiB
    with pytest.raises(ValueError, match="read-only"):
        loaded["a"][0] = 1.0


class Killed(BaseException):
    """What ends a process in the middle of something."""


@pytest.mark.parametrize("after", range(5))
def test_a_writer_that_is_killed_leaves_either_nothing_or_a_whole_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    store, tensors = TensorStore(FolderBlobs(tmp_path)), network()
    replace, done = Path.replace, 0

    def killed(self: Path, target: Path) -> Path:
        nonlocal done
        if done == after:
            raise Killed
        done += 1
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(Killed):
        store.put(tensors)
    monkeypatch.undo()
    content = content_hash(tensors)
    assert not store.has(content)
    assert store.figures().n_tensors == after
    assert store.put(tensors).content == content
    assert store.damaged(content) == ()
    assert store.figures().n_tensors == 4
