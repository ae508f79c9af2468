from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from repair.artifacts import Artifacts, FolderArtifacts, MemoryArtifacts
from repair.errors import RepairRefused, WeightsBroken


@pytest.fixture(params=["memory", "folder"])
def artifacts(request: pytest.FixtureRequest, tmp_path: Path) -> Artifacts:
    return MemoryArtifacts() if request.param == "memory" else FolderArtifacts(tmp_path / "kept")


def test_parameters_come_back_as_they_were_put(artifacts: Artifacts) -> None:
    given = {"weight": np.arange(6, dtype=np.float32).reshape(2, 3).T, "n": np.array(7)}
    artifacts.put("r-0-start", given)
    found = artifacts.get("r-0-start")
    for name, tensor in given.items():
        np.testing.assert_array_equal(found[name], tensor)
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
    found["weight"][:] = 0.0
    np.testing.assert_array_equal(artifacts.get("r-0-start")["weight"], given["weight"])


def test_what_is_put_again_replaces_what_was_there(artifacts: Artifacts) -> None:
    artifacts.put("key", {"a": np.zeros(2)})
    artifacts.put("key", {"b": np.ones(2)})
    assert set(artifacts.get("key")) == {"b"}


@pytest.mark.parametrize("key", ["", "../up", ".hidden", "a/b"])
def test_a_key_cannot_lead_elsewhere(artifacts: Artifacts, key: str) -> None:
    with pytest.raises(RepairRefused):
        artifacts.put(key, {"a": np.zeros(1)})


def test_what_was_not_put_is_not_there(artifacts: Artifacts) -> None:
    with pytest.raises(RepairRefused, match="has kept no 'missing'"):
        artifacts.get("missing")


def test_a_damaged_file_is_refused_and_no_half_of_one_is_left(tmp_path: Path) -> None:
    artifacts = FolderArtifacts(tmp_path)
    artifacts.put("key", {"a": np.zeros(2)})
    assert [path.name for path in tmp_path.iterdir()] == ["key.safetensors"]
    (tmp_path / "key.safetensors").write_bytes(b"not these")
    with pytest.raises(WeightsBroken):
        artifacts.get("key")
