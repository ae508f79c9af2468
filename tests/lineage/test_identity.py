"""The same weights have the same identity, whatever their order, layout or file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import save, save_file

from lineage.errors import ArtifactRefused
from lineage.identity import hash_folder, hash_safetensors, hash_tensors

arrays = hnp.arrays(
    st.sampled_from([np.bool_, np.uint8, np.int32, np.int64, np.float16, np.float32, np.float64]),
    hnp.array_shapes(max_dims=3, max_side=4),
)


@given(st.dictionaries(st.text(min_size=1, max_size=5), arrays, max_size=4))
def test_identity_does_not_depend_on_order_or_memory_layout(tensors: dict[str, np.ndarray]) -> None:
    other = {name: np.asfortranarray(tensors[name]) for name in reversed(tensors)}
    assert hash_tensors(tensors) == hash_tensors(other)


@given(arrays)
def test_a_file_has_the_identity_of_its_tensors(tmp_path_factory: pytest.TempPathFactory, array: np.ndarray) -> None:
    path = tmp_path_factory.getbasetemp() / "weights.safetensors"
    path.write_bytes(save({"b": array, "a": np.zeros(2)}, metadata={"made": "today"}))
    assert hash_safetensors(path) == hash_tensors({"a": np.zeros(2), "b": array})


@pytest.mark.parametrize(
    "other",
    [
        {"a": np.array([1.0, 2.5])},
        {"b": np.array([1.0, 2.0])},
        {"a": np.array([[1.0, 2.0]])},
        {"a": np.array([1.0, 2.0], np.float32)},
        {"a": np.array([1.0, 2.0]), "b": np.zeros(0)},
        {},
    ],
)
def test_another_value_name_shape_or_dtype_is_another_identity(other: dict[str, np.ndarray]) -> None:
    assert hash_tensors(other) != hash_tensors({"a": np.array([1.0, 2.0])})


def test_tensors_of_objects_are_refused() -> None:
    with pytest.raises(ArtifactRefused, match="dtype object"):
        hash_tensors({"a": np.array([object()])})


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": np.zeros(4)}, path)
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ArtifactRefused, match=r"weights\.safetensors"):
        hash_safetensors(path)


def test_a_folder_changes_its_digest_with_a_name_or_a_byte(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("1")
    first = hash_folder(tmp_path)
    (tmp_path / "a" / "one").write_text("2")
    second = hash_folder(tmp_path)
    (tmp_path / "a" / "one").rename(tmp_path / "a" / "two")
    assert len({first, second, hash_folder(tmp_path)}) == 3


def test_a_folder_with_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/")
    with pytest.raises(ArtifactRefused, match="link"):
        hash_folder(tmp_path)
