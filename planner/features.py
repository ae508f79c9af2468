"""Features: what flows along an edge of a plan. A semantic type, a tensor spec and, at run time, rows.

A semantic type is a path (`image/digit`); a longer path is-a shorter one, so `image/digit` serves whoever wants
an `image`. A tensor spec is an Open Inference datatype and the shape of *one row* (-1 is any length); the batch
dimension is never part of a feature.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.errors import BadCard, BadInput, near

Array = npt.NDArray[Any]

# Open Inference Protocol datatypes -> numpy. FP16 is numpy's half; BYTES are Python `bytes` in an object array.
DATATYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}
_TYPE = re.compile(r"[a-z0-9][a-z0-9_.-]*(/[a-z0-9][a-z0-9_.-]*)*")


def datatype_of(values: Array) -> str:
    """The Open Inference datatype of an array. Raises BadInput for a dtype the protocol does not have."""
    try:
        return _NAMES[values.dtype]
    except KeyError:
        raise BadInput(f"dtype {values.dtype} has no Open Inference datatype.", hint="Cast it first.") from None


@dataclass(frozen=True, slots=True)
class Feature:
    """A semantic type and a tensor spec. `shape` is that of one row, without the batch dimension; -1 is free."""

    type: str
    datatype: str = "FP32"
    shape: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", tuple(self.shape))
        if not _TYPE.fullmatch(self.type):
            raise BadCard(
                f"{self.type!r} is not a feature type.",
                hint="Use lower-case words joined by '/', such as 'image/digit'.",
            )
        if self.datatype not in DATATYPES:
            raise BadCard(f"{self.datatype!r} is not a datatype.", hint=near(self.datatype.upper(), DATATYPES))
        if any(not isinstance(d, int) or d < -1 or d == 0 for d in self.shape):
            raise BadCard(f"shape {list(self.shape)} of {self.type}: each dimension is a positive number or -1.")

    def accepts(self, other: Feature) -> bool:
        """Whether rows of `other` can go where this feature is wanted: is-a, same datatype, shapes unify."""
        return self.datatype == other.datatype and is_a(other.type, self.type) and shapes_unify(self.shape, other.shape)

    def __str__(self) -> str:
        return f"{self.type}:{self.datatype}{list(self.shape)}"


@dataclass(frozen=True, slots=True)
class Port:
    """A named feature of an extension or goal.

    `many` > 1 marks a combiner's input: it takes 2 to `many` different sources of the same feature, stacked on
    axis 1, so the extension sees an array of shape (n_rows, n_sources, *feature.shape).
    """

    name: str
    feature: Feature
    many: int = 1

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 128:
            raise BadCard("a port needs a name of 1 to 128 characters.")
        if self.many < 1:
            raise BadCard(f"port {self.name!r}: many is 1 or more, not {self.many}.")


@dataclass(frozen=True, slots=True)
class Rows:
    """A feature at run time: `values` of shape (n_rows, *feature.shape) and, where the extension is a judge of
    itself, a confidence in [0, 1] per row, shape (n_rows,), float32."""

    values: Array
    confidence: npt.NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.values)


def is_a(type_: str, wanted: str) -> bool:
    """Whether semantic type `type_` may stand in for `wanted`: equal, or `wanted` is a prefix by whole words.

    >>> is_a("image/digit", "image"), is_a("image", "image/digit"), is_a("imagery", "image")
    (True, False, False)
    """
    return type_ == wanted or type_.startswith(wanted + "/")


def shapes_unify(a: Sequence[int], b: Sequence[int]) -> bool:
    """Whether two row shapes agree: same rank, and each pair of dimensions equal or one of them -1."""
    return len(a) == len(b) and all(x == y or x == -1 or y == -1 for x, y in zip(a, b, strict=True))


def check_rows(name: str, values: Array, feature: Feature, n_rows: int | None = None) -> None:
    """Raises BadInput unless `values` is (n_rows, *feature.shape) of the feature's datatype.

    `n_rows` None accepts any number of rows from 1. Values are not looked at: see `check_finite`.
    """
    if values.dtype != DATATYPES[feature.datatype]:
        given = _NAMES.get(values.dtype, str(values.dtype))
        raise BadInput(f"input {name!r} has datatype {given}.", hint=f"It takes {feature.datatype}.")
    if values.ndim == 0 or not shapes_unify(feature.shape, values.shape[1:]):
        raise BadInput(
            f"input {name!r} has shape {list(values.shape)}.",
            hint=f"It takes {[-1, *feature.shape]}, the first dimension being the rows.",
        )
    if n_rows is not None and len(values) != n_rows:
        raise BadInput(f"input {name!r} has {len(values)} rows, another input has {n_rows}.")
    if len(values) == 0:
        raise BadInput(f"input {name!r} has no rows.", hint="Send at least one.")


def check_finite(name: str, values: Array) -> None:
    """Raises BadInput, naming the first bad row, when a float array holds NaN or infinity. `values` is (n, ...)."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        row = int(np.argmax(~np.isfinite(values.reshape(len(values), -1)).all(axis=1)))
        raise BadInput(f"input {name!r} has NaN or infinity in row {row}.", hint="Impute or drop it first.")
