from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lineage.columns import MOST_GROUP_BYTES, BrokenChunk, Column, Packer, Reader, count_of, held_of, sort_in


def test_arrays_come_back_in_the_order_in_which_they_were_put() -> None:
    packer = Packer()
    packer.put(np.array([1.5, 2.5], "<f4"))
    packer.put(np.array([7], "<i4"), tight=True)
    packer.put(np.array([3.5], "<f4"))
    body, (n_header, n_tight, n_packed, n_loose) = packer.end(b"head")
    assert (n_header, n_tight, n_loose, len(body)) == (4, 8, 12, n_packed + 12)
    loose = Reader(body, n_packed)
    assert (loose.array("<f4", 2).tolist(), loose.array("<f4", 1).tolist()) == ([1.5, 2.5], [3.5])
    loose.end()


def test_a_reader_gives_no_more_than_there_is_and_leaves_nothing() -> None:
    with pytest.raises(BrokenChunk, match="too soon"):
        Reader(b"1234", 1).array("<i4", 1)
    with pytest.raises(BrokenChunk, match="more in it"):
        Reader(b"1234", 1).end()


@pytest.mark.parametrize("value", [-1, 1.0, True, None, "3", 1 << 40])
def test_a_number_of_things_is_a_whole_number_within_reason(value: Any) -> None:
    with pytest.raises(BrokenChunk):
        count_of(value)


@pytest.mark.parametrize(
    ("values", "bytes_held"),
    [
        (np.zeros((2, 64), np.float32), 512),
        (np.zeros((2, 65), np.float32), 520),
        (np.zeros((2, 257), np.uint8), None),
        (np.zeros((2, 9, 9), np.float32), None),
        (np.array([b"ab", "cde"], object), 5),
        (np.array([b"x" * MOST_GROUP_BYTES, b"y"], object), None),
        (np.zeros(2, np.complex64), None),
        (np.array(["2001-01-01", "2001-01-02"], "datetime64[D]"), None),
    ],
)
def test_what_will_be_kept_is_held_and_its_bytes_are_counted(values: Any, bytes_held: int | None) -> None:
    held, n_bytes = held_of({"y": values}, 2, 256, scores=True)
    assert (held["y"] is None, n_bytes) == (bytes_held is None, bytes_held or 0)


def test_groups_with_the_same_form_share_a_column() -> None:
    columns: dict[Any, Column] = {}
    sort_in(columns, "out", 0, {"y": np.zeros(2), "z": None})
    sort_in(columns, "out", 1, {"y": np.zeros(3)})
    sort_in(columns, "out", 2, {"y": np.zeros((3, 2))})
    sort_in(columns, "in", 3, {"y": np.zeros(1)})
    assert [(c.side, c.name, c.kind, c.groups.tolist()) for c in columns.values()] == [
        ("out", "y", "full", [0, 1]),
        ("out", "z", "none", [0]),
        ("out", "y", "full", [2]),
        ("in", "y", "full", [3]),
    ]


def test_a_group_without_rows_says_as_well_how_its_column_is_kept() -> None:
    columns: dict[Any, Column] = {}
    sort_in(columns, "out", 0, {"y": np.zeros((0, 100)), "z": np.zeros((0, 100), np.int64)})
    sort_in(columns, "out", 1, {"y": np.zeros((2, 100))})
    assert [(c.kind, c.groups.tolist()) for c in columns.values()] == [("best", [0, 1]), ("none", [0])]
