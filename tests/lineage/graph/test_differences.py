"""A diff says of each tensor what became of it, and by how much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lineage.errors import ArtifactRefused
from lineage.graph.blobs import FolderBlobs, MemoryBlobs
from lineage.graph.differences import Fate, diff, diff_stored
from lineage.graph.tensors import TensorStore

BEFORE: dict[str, npt.NDArray[Any]] = {
    "gone": np.zeros(3),
    "kept": np.array([1.0, math.nan, 3.0]),
    "moved": np.array([[3.0, 0.0], [0.0, 4.0]], np.float32),
    "rounded": np.array([0.5, 1.25]),
    "wider": np.zeros((2, 3)),
}
AFTER: dict[str, npt.NDArray[Any]] = {
    "kept": np.array([1.0, math.nan, 3.0]),
    "moved": np.array([[3.0, 0.0], [0.5, 4.0]], np.float32),
    "new": np.array(1),
    "rounded": np.array([0.5, 1.25], np.float16),
    "wider": np.zeros((2, 4)),
}


def test_each_tensor_has_its_fate() -> None:
    found = diff(BEFORE, AFTER)
    assert {change.name: change.fate.value for change in found.changes} == {
        "gone": "removed",
        "kept": "same",
        "moved": "changed",
        "new": "added",
        "rounded": "retyped",
        "wider": "reshaped",
    }
    (moved,) = found.of(Fate.CHANGED)
    assert (moved.before, moved.after) == ("float32 2x2", "float32 2x2")
    assert (moved.n_entries, moved.relative_l2, moved.max_abs, moved.equal_share) == (4, 0.1, 0.5, 0.75)
    (added,) = found.of(Fate.ADDED)
    assert (added.before, added.after, added.relative_l2) == ("", "int64 scalar", None)
    assert found.equal_share == 8 / 9
    assert "1 changed" in found.sentence()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_any_more_shows(bad: float) -> None:
    (change,) = diff({"a": np.ones(4)}, {"a": np.array([1.0, 1.0, bad, 1.0])}).changes
    assert (change.fate, change.relative_l2, change.max_abs, change.equal_share) == (
        Fate.CHANGED,
        math.inf,
        math.inf,
        0.75,
    )


@given(hnp.arrays(np.float32, st.integers(0, 9)), hnp.arrays(np.float32, st.integers(0, 9)))
def test_a_version_differs_from_another_but_not_from_itself(
    one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]
) -> None:
    assert [change.fate for change in diff({"a": one}, {"a": one.copy()}).changes] == [Fate.SAME]
    (change,) = diff({"a": one}, {"a": other}).changes
    if one.shape != other.shape:
        assert change.fate is Fate.RESHAPED
    else:
        assert (change.fate is Fate.SAME) == np.array_equal(one, other, equal_nan=True)
        assert (change.max_abs == 0.0) == (change.fate is Fate.SAME)


def test_large_tensors_are_compared_piece_by_piece_with_the_same_result() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=600_000).astype(np.float32)
    other = one + rng.normal(size=600_000).astype(np.float32) * (rng.random(600_000) < 0.5)
    (change,) = diff({"a": one}, {"a": other}).changes
    assert change.relative_l2 == pytest.approx(np.linalg.norm(other - one) / np.linalg.norm(one), rel=1e-5)
    assert change.max_abs == pytest.approx(np.abs(other - one).max(), rel=1e-6)
    assert change.equal_share == np.mean(one == other)


def test_versions_without_anything_in_common_have_no_figures() -> None:
    found = diff({"a": np.zeros(2)}, {"b": np.zeros(2)})
    assert (found.relative_l2, found.equal_share) == (None, None)
    assert "none of them in both" in found.sentence()
    assert diff({}, {}).sentence().startswith("Tensors: none")


def test_stored_versions_are_compared_by_their_hashes_with_the_same_result() -> None:
    store = TensorStore(MemoryBlobs())
    before, after = store.put(BEFORE), store.put(AFTER)
    assert diff_stored(store, before.content, after.content) == diff(BEFORE, AFTER)


def test_a_damaged_tensor_stops_the_diff(tmp_path: Path) -> None:
    store = TensorStore(FolderBlobs(tmp_path))
    before, after = store.put(BEFORE), store.put(AFTER)
    (path,) = tmp_path.rglob(f"{after.tensors['moved'].sha256}.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactRefused, match="'moved'"):
        diff_stored(store, before.content, after.content)
