"""Inputs as they are written on the command line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fenix.commands.tensors import as_given, fit, read_inputs
from planner.errors import BadInput

IMAGE = [{"name": "image", "datatype": "FP32", "shape": [-1, 2, 2]}]
TWO = [*IMAGE, {"name": "text", "datatype": "BYTES", "shape": [-1]}]


def test_json_with_and_without_a_name(tmp_path: Path) -> None:
    for written in ("image=[[[1, 2], [3, 4]]]", "[[[1, 2], [3, 4]]]", '{"image": [[[1, 2], [3, 4]]]}'):
        arrays = fit(read_inputs([written]), IMAGE)
        assert arrays["image"].dtype == np.float32
        assert arrays["image"].shape == (1, 2, 2)


def test_several_inputs_each_of_its_datatype() -> None:
    arrays = fit(read_inputs(["image=[[[1, 2], [3, 4]]]", 'text=["a=b:c"]']), TWO)
    assert arrays["text"].tolist() == ["a=b:c"]


def test_rows_of_a_table_take_the_shape_of_the_input(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b,c,d\n1,2,3,4\n5,6,7,8\n")
    for written in (f"@{path}", f"image=@{path}"):
        arrays = fit(read_inputs([written]), IMAGE)
        np.testing.assert_array_equal(arrays["image"], [[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    words = tmp_path / "words.csv"
    words.write_text("red\ngreen\n")
    arrays = fit(read_inputs([f"text=@{words}"]), TWO)
    assert arrays["text"].tolist() == ["red", "green"]


def test_one_array_of_an_npz_by_name(tmp_path: Path) -> None:
    path = tmp_path / "rows.npz"
    np.savez(path, image=np.ones((1, 2, 2)), other=np.zeros(3))
    assert fit(read_inputs([f"image=@{path}"]), IMAGE)["image"].shape == (1, 2, 2)
    with pytest.raises(BadInput, match="no array 'images'") as caught:
        read_inputs([f"images=@{path}"])
    assert "image" in caught.value.hint


def test_a_stated_datatype_holds_where_no_goal_says_one() -> None:
    assert as_given(read_inputs(["x:FP16=[[1]]"]))["x"].dtype == np.float16
    assert as_given(read_inputs(["x=[[1]]"]))["x"].dtype == np.int64
    with pytest.raises(BadInput, match="no name"):
        as_given(read_inputs(["[[1]]"]))


@pytest.mark.parametrize("content", ["", "1,2\n3\n"])
def test_a_table_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "rows.csv"
    path.write_text(content)
    with pytest.raises(BadInput):
        read_inputs([f"@{path}"])


def test_pickles_and_unknown_files_are_refused(tmp_path: Path) -> None:
    pickled = tmp_path / "rows.npy"
    np.save(pickled, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput):
        read_inputs([f"@{pickled}"])
    with pytest.raises(BadInput, match="ending"):
        read_inputs(["@rows.txt"])
    broken = tmp_path / "rows.npz"
    broken.write_bytes(b"PK no zip")
    with pytest.raises(BadInput):
        read_inputs([f"@{broken}"])


def test_an_input_without_a_name_needs_a_goal_with_one() -> None:
    with pytest.raises(BadInput, match="which input"):
        fit(read_inputs(["[1]"]), TWO)
