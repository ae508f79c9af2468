"""Rows get keys by all that they are, and come back from the store as they were."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from planner.calls import Produced, RemoteArray
from planner.features import DATATYPES, Array
from planner.step_rows import joined_rows, kept_rows, row_keys

SPACE = b"space"
numeric = st.sampled_from(sorted(name for name in DATATYPES if name != "BYTES")).map(DATATYPES.__getitem__)
row_shapes = st.lists(st.integers(0, 3), max_size=2).map(tuple)


def columns(n_rows: int) -> st.SearchStrategy[Array]:
    numbers = st.tuples(numeric, row_shapes).flatmap(lambda t: arrays.arrays(t[0], (n_rows, *t[1])))
    texts = row_shapes.flatmap(
        lambda shape: arrays.arrays(np.object_, (n_rows, *shape), elements=st.binary(max_size=5))
    )
    return numbers | texts


batches = st.integers(1, 4).flatmap(
    lambda n: st.dictionaries(st.sampled_from("abc"), columns(n), min_size=1).map(lambda parts: (n, parts))
)
outputs = st.integers(1, 4).flatmap(
    lambda n: st.dictionaries(
        st.sampled_from("abc"),
        st.builds(Produced, columns(n), st.none() | arrays.arrays(np.float32, n, elements=st.floats(0, 1, width=32))),
        min_size=1,
    ).map(lambda made: (n, made))
)


def same(one: Array | None, other: Array | None) -> bool:
    if one is None or other is None:
        return one is other
    alike = one.dtype == other.dtype and one.shape == other.shape
    if one.dtype.kind == "O":
        return alike and one.tolist() == other.tolist()
    return alike and one.tobytes() == other.tobytes()  # NaN equals itself here, and -0 is not 0


def keys_of(values: Any, space: bytes = SPACE, port: str = "x") -> Any:
    return row_keys(space, {port: values}, len(values))


@given(batches, batches)
def test_rows_have_the_same_key_exactly_if_all_their_ports_are_the_same(
    one: tuple[int, dict[str, Array]], other: tuple[int, dict[str, Array]]
) -> None:
    rows = []
    for n_rows, parts in (one, other):
        keys = row_keys(SPACE, parts, n_rows)
        assert keys is not None
        rows += [(key, {name: part[at : at + 1] for name, part in parts.items()}) for at, key in enumerate(keys)]
    for key, row in rows:
        for key2, row2 in rows:
            alike = row.keys() == row2.keys() and all(same(row[name], row2[name]) for name in row)
            assert (key == key2) == alike


@pytest.mark.parametrize(
    "other",
    [
        np.array([[1, 2]], np.uint32),
        np.array([[1, 2]], np.float32),
        np.array([1 + (2 << 32)], np.int64),
        np.array([[[1, 2]]], np.int32),
        np.array([[2, 1]], np.int32),
    ],
)
def test_equal_bytes_of_another_type_or_shape_are_another_row(other: Array) -> None:
    assert keys_of(np.array([[1, 2]], np.int32)) != keys_of(other)


def test_texts_that_are_cut_elsewhere_are_other_rows() -> None:
    assert keys_of(np.array([[b"ab", b"c"]], object)) != keys_of(np.array([[b"a", b"bc"]], object))


def test_space_and_port_are_part_of_the_key_and_the_order_of_ports_is_not() -> None:
    x, y = np.ones(1), np.zeros(1)
    assert len({*keys_of(x), *keys_of(x, space=b"other"), *keys_of(x, port="y")}) == 3
    assert row_keys(SPACE, {"x": x, "y": y}, 1) == row_keys(SPACE, {"y": y, "x": x}, 1)
    assert row_keys(SPACE, {"x": x, "y": y}, 1) != row_keys(SPACE, {"x": y, "y": x}, 1)


def test_a_view_with_strides_has_the_keys_of_its_copy() -> None:
    values = np.arange(24.0).reshape(4, 6)
    view = values[::-2, ::3]
    assert keys_of(view) == keys_of(view.copy())


class Far(RemoteArray):
    shape = (1,)
    dtype = np.dtype(np.float32)

    def __getitem__(self, rows: slice) -> RemoteArray:
        return self

    async def fetch(self) -> Array:
        return np.ones(1, np.float32)


@pytest.mark.parametrize("values", [Far(), np.array(["text"], object), np.array([1], object)])
def test_remote_arrays_and_objects_that_are_no_bytes_have_no_keys_and_are_not_kept(values: Any) -> None:
    assert row_keys(SPACE, {"x": values}, 1) is None
    assert kept_rows({"y": Produced(values)}, 1) is None


def test_no_rows_have_no_keys() -> None:
    assert keys_of(np.empty((0, 3))) is None


@given(outputs, st.randoms())
def test_kept_rows_in_any_order_are_those_rows_bit_for_bit(made: tuple[int, dict[str, Produced]], rng: Any) -> None:
    n_rows, produced = made
    rows = kept_rows(produced, n_rows)
    assert rows is not None
    assert len(rows) == n_rows
    order = [rng.randrange(n_rows) for _ in range(rng.randint(1, 5))]
    joined = joined_rows([rows[at] for at in order])
    assert joined is not None
    assert list(joined) == list(produced)
    for name, whole in produced.items():
        assert isinstance(whole.values, np.ndarray)
        assert same(np.asarray(joined[name].values), whole.values[order])
        assert same(joined[name].confidence, None if whole.confidence is None else whole.confidence[order])


@pytest.mark.parametrize("values", [np.ones((2, 3)), np.array([b"a", b"b"], object)])
def test_nobody_can_change_what_is_kept(values: Array) -> None:
    rows = kept_rows({"y": Produced(values, np.ones(2, np.float32))}, 2)
    assert rows is not None
    before = values.tolist()
    values[:] = values[::-1] if values.dtype.kind == "O" else 7.0
    for some in (rows, rows[:1]):
        joined = joined_rows(some)
        assert joined is not None
        array, sure = joined["y"].values, joined["y"].confidence
        assert isinstance(array, np.ndarray)
        assert sure is not None
        assert array.tolist() == before[: len(some)]
        for each in (array, sure):
            assert not each.flags.writeable
            with pytest.raises(ValueError, match="read-only"):
                each[0] = each[0]


def test_rows_that_do_not_fit_into_one_array_are_not_joined() -> None:
    short, long = (kept_rows({"y": Produced(np.ones((1, n)))}, 1) for n in (2, 3))
    unsure = kept_rows({"y": Produced(np.ones((1, 2)), np.ones(1))}, 1)
    assert short is not None
    assert long is not None
    assert unsure is not None
    assert joined_rows(short + short) is not None
    assert joined_rows(short + long) is None
    assert joined_rows(short + unsure) is None


def test_a_row_says_at_least_what_its_outputs_weigh() -> None:
    texts = np.array([[b"x" * 1000, b""]], object)
    rows = kept_rows({"y": Produced(np.ones((1, 500))), "t": Produced(texts)}, 1)
    assert rows is not None
    assert 5000 < rows[0].n_bytes < 7000
