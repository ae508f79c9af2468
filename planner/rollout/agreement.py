"""Whether two versions gave the same answer: labels are equal, scores have the same best, numbers are close."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from planner.features import Array, Rows

RELATIVE, ABSOLUTE = 0.02, 1e-3  # how far numbers may be apart


def same_rows(one: Mapping[str, Rows], other: Mapping[str, Rows]) -> Array | None:
    """Row by row whether all outputs are the same, shape (n_rows,), bool. None where they cannot be compared: the
    outputs or their shapes are others.

    Of a vector of floating-point numbers per row the place of the greatest counts, of one such number that it is within
    2 % or 0.001; everything else has to be equal.
    """
    if one.keys() != other.keys() or not one:
        return None
    same: Array | None = None
    for name, rows in one.items():
        values, others = rows.values, other[name].values
        if values.shape != others.shape or values.dtype.kind != others.dtype.kind:
            return None
        equal = _same(values, others)
        same = equal if same is None else same & equal
    return same


def _same(values: Array, others: Array) -> Array:
    n = len(values)
    if values.dtype.kind != "f":
        equal: Array = np.asarray(values == others, bool).reshape(n, -1)
    elif values.ndim == 2 and values.shape[1] > 1:
        equal = (values.argmax(axis=1) == others.argmax(axis=1)).reshape(n, 1)
    else:
        equal = np.isclose(values, others, rtol=RELATIVE, atol=ABSOLUTE, equal_nan=True).reshape(n, -1)
    same: Array = np.asarray(equal.all(axis=1))
    return same


def of_requests(same: Array, n_rows: Sequence[int]) -> list[bool]:
    """By request whether all of its rows are the same; `n_rows` are those of each."""
    if len(n_rows) == len(same):
        whole: list[bool] = same.tolist()
        return whole
    ends = np.cumsum(n_rows)
    return [bool(part.all()) for part in np.split(same, ends[:-1])]
