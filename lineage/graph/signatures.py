"""What training data are like, from the arrays: schema, rows, moments, and the hash of the rows.

>>> data = describe_data({"length": [1.0, 2.0, 3.0], "word": ["a", "b", None]})
>>> data.n_rows, [(column.name, column.datatype) for column in data.columns], data.columns[0].moments.mean
(3, [('length', 'FP64'), ('word', 'BYTES')], 2.0)
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.errors import LineageRefused
from lineage.graph.records import Column, DatasetId, DataSignature, Moments

Array = npt.NDArray[Any]

_KINDS = {"b": "BOOL", "i": "INT", "u": "UINT", "f": "FP"}


def describe_data(columns: Mapping[str, npt.ArrayLike], sketches: Mapping[str, bytes] | None = None) -> DataSignature:
    """The signature of training data: arrays by column, each with a row along its first axis.

    Numbers and booleans have moments. Texts and bytes are of datatype BYTES; among them None and NaN are missing.
    `sketches` are by column. For the hash of the rows their order counts, that of the columns and the types of numbers;
    memory layout and byte order do not.
    Raises LineageRefused for columns of different lengths, a sketch of no column, and other values.
    """
    sketches = sketches or {}
    arrays = {name: _array(name, values) for name, values in columns.items()}
    lengths = {len(array) for array in arrays.values()}
    if len(lengths) > 1:
        raise LineageRefused(f"columns of the training data have {min(lengths)} to {max(lengths)} rows.")
    if odd := sorted(set(sketches) - set(arrays)):
        raise LineageRefused(f"there is a sketch of {odd[0]!r}, but no such column.")
    whole = hashlib.sha256()
    described = []
    for name, array in arrays.items():
        datatype = datatype_of(array)
        shape = tuple(int(size) for size in array.shape[1:])
        moments = None if datatype == "BYTES" else moments_of(array)
        described.append(Column(name, datatype, shape, moments, sketches.get(name, b"")))
        whole.update(f"{name}\0{datatype}\0{array.shape}\0".encode())
        _hash_values(whole, name, array)
    n_rows = lengths.pop() if lengths else 0
    return DataSignature(DatasetId(whole.hexdigest()), n_rows, tuple(described))


def moments_of(values: Array) -> Moments:
    """The moments of all finite elements of an array of any shape.

    Central moments in two passes over float64, which loses nothing to cancellation.
    """
    every = np.asarray(values, np.float64).ravel()
    finite = every[np.isfinite(every)]
    n_missing = len(every) - len(finite)
    if not len(finite):
        return Moments(0, n_missing)
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        return Moments(len(finite), n_missing, low, 0.0, None, None, low, high)
    scale = max(abs(low), abs(high))  # so that no power overflows
    scaled = finite / scale
    mean = float(scaled.mean())
    off = scaled - mean
    variance, third, fourth = (float(np.mean(off**k)) for k in (2, 3, 4))
    if not variance:
        return Moments(len(finite), n_missing, mean * scale, 0.0, None, None, low, high)
    spread = variance * scale * scale
    return Moments(
        len(finite),
        n_missing,
        mean * scale,
        spread if np.isfinite(spread) else None,
        third / variance**1.5,
        fourth / variance**2,
        low,
        high,
    )


def datatype_of(array: Array) -> str:
    """Open Inference's name for an array's type; BYTES for texts, bytes and objects."""
    kind = _KINDS.get(array.dtype.kind)
    if kind is None:
        return "BYTES"
    return kind if kind == "BOOL" else f"{kind}{array.dtype.itemsize * 8}"


def _array(name: str, values: npt.ArrayLike) -> Array:
    try:
        array = np.asarray(values)
    except ValueError:
        raise LineageRefused(f"the rows of column {name!r} have different shapes.") from None
    if not array.ndim:
        raise LineageRefused(f"column {name!r} is a single value, not rows.")
    if array.dtype.kind not in "biufOSU":
        raise LineageRefused(f"column {name!r} is of {array.dtype}, which is neither numbers nor texts.")
    return array


def _hash_values(whole: Any, name: str, array: Array) -> None:
    if array.dtype.kind in _KINDS:
        whole.update(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).data)
        return
    for value in array.ravel().tolist():
        if value is None or value != value:
            whole.update(b"n")
            continue
        if not isinstance(value, str | bytes):
            raise LineageRefused(f"column {name!r} holds a {type(value).__name__}, which is neither text nor bytes.")
        body = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else value
        whole.update(b"t%d:" % len(body) + body)
