from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy import stats

from lineage.errors import LineageRefused
from lineage.graph.records import Moments
from lineage.graph.signatures import describe_data, moments_of


def test_columns_are_described_as_they_are() -> None:
    data = describe_data(
        {
            "pixels": np.ones((3, 8, 8), np.float32),
            "label": np.array([1, 2, 3]),
            "ok": np.array([True, False, True]),
            "small": np.array([1, 2, 3], np.uint8),
            "text": np.array(["a", None, "c"], object),
            "word": ["a", "bc", ""],
        },
        {"label": b"sketch"},
    )
    assert data.n_rows == 3
    assert [(column.name, column.datatype, column.shape) for column in data.columns] == [
        ("pixels", "FP32", (8, 8)),
        ("label", "INT64", ()),
        ("ok", "BOOL", ()),
        ("small", "UINT8", ()),
        ("text", "BYTES", ()),
        ("word", "BYTES", ()),
    ]
    label, word = data.column("label"), data.column("word")
    assert label is not None
    assert word is not None
    assert label.sketch == b"sketch"
    assert label.moments is not None
    assert label.moments.values == pytest.approx((3, 0, 2.0, 2 / 3, 0.0, 1.5, 1.0, 3.0))
    assert (word.sketch, word.moments) == (b"", None)


@given(
    arrays.arrays(
        np.float64,
        arrays.array_shapes(max_dims=2, max_side=30),
        elements=st.floats(-1e6, 1e6).map(lambda x: round(x, 3)) | st.just(np.nan),
    )
)
def test_moments_are_those_of_scipy(values: Any) -> None:
    finite = values[np.isfinite(values)]
    found = moments_of(values)
    assert (found.n_values, found.n_missing) == (len(finite), values.size - len(finite))
    if not len(finite):
        assert found == Moments(0, values.size)
        return
    assert (found.minimum, found.maximum) == (finite.min(), finite.max())
    assert found.mean == pytest.approx(finite.mean(), abs=1e-6)
    assert found.variance == pytest.approx(finite.var(), rel=1e-9, abs=1e-9)
    if finite.min() == finite.max():
        assert (found.skewness, found.kurtosis) == (None, None)
    elif np.ptp(finite) > 1e-3 * np.abs(finite).max():  # scipy's own loses digits below
        assert found.skewness == pytest.approx(stats.skew(finite), rel=1e-6, abs=1e-6)
        assert found.kurtosis == pytest.approx(stats.kurtosis(finite, fisher=False), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(
    "values", [[1e308, -1e308, 1e308], [1e-320, 0.0, 2e-320], [5.0, np.inf, -np.inf], [3e38], [1.0, 1.0 + 1e-16 * 3]]
)
def test_moments_of_numbers_at_the_edge_are_finite_or_none(values: list[float]) -> None:
    found = moments_of(np.array(values))
    assert found.n_values + found.n_missing == len(values)
    assert found.minimum is not None


def test_no_rows_are_described_too() -> None:
    data = describe_data({"x": np.zeros((0, 4), np.float32), "t": np.array([], object)})
    assert data.n_rows == 0
    assert data.columns[0].moments == Moments(0)
    assert describe_data({}).n_rows == 0


def test_the_hash_is_that_of_the_rows() -> None:
    x, t = np.arange(6, dtype=np.float32).reshape(3, 2), ["ab", "c", None]
    same = describe_data({"x": x, "t": t}).dataset
    assert describe_data({"x": np.asfortranarray(x), "t": t}, {"x": b"s"}).dataset == same
    assert describe_data({"x": x.astype(">f4"), "t": np.array(t, object)}).dataset == same
    others = [
        {"x": x[::-1], "t": t},
        {"x": x.astype(np.float64), "t": t},
        {"x": x.reshape(3, 1, 2), "t": t},
        {"x": x + 1, "t": t},
        {"y": x, "t": t},
        {"x": x, "t": ["a", "bc", None]},
        {"x": x, "t": ["ab", "c", "None"]},
        {"x": x},
    ]
    assert len({same, *(describe_data(other).dataset for other in others)}) == len(others) + 1


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"x": [1, 2], "y": [1]}, "1 to 2 rows"),
        ({"x": 5}, "single value"),
        ({"x": [[1, 2], [3]]}, "different shapes"),
        ({"x": np.array([1j])}, "complex"),
        ({"x": np.array(["2020-01-01"], "datetime64[D]")}, "datetime64"),
        ({"x": np.array([{}], object)}, "holds a dict"),
    ],
)
def test_what_is_no_table_is_refused(columns: dict[str, Any], said: str) -> None:
    with pytest.raises(LineageRefused, match=said):
        describe_data(columns)


def test_a_sketch_of_no_column_is_refused() -> None:
    with pytest.raises(LineageRefused, match="'y'"):
        describe_data({"x": [1]}, {"y": b""})
