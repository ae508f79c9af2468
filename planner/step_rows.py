"""Rows as the step cache knows them: a key from the inputs of a row, and the outputs of a row as bytes of its own.

Kept rows are `bytes`, so nobody can change them, no matter what becomes of the arrays they came from, and no large
batch is held in memory because one of its rows is kept.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from hashlib import sha256
from sys import getsizeof
from typing import Any, NamedTuple, NewType

import numpy as np

from planner.calls import Part, Produced
from planner.features import Array

# SHA-256, whole: no two inputs with one digest are known or expected, even by who looks for them, so that equal keys
# mean equal inputs between users who do not trust each other. Of what the standard library has it is also the fastest
# where the processor helps (1.3 GB/s here; BLAKE2b 0.7).
Key = NewType("Key", bytes)
Cell = bytes | tuple[bytes, ...]  # a row of one column: raw numbers, or the elements of BYTES


class Column(NamedTuple):
    """An output, or (`sure`) the confidence in it: `shape` is that of one row."""

    output: str
    sure: bool
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


Layout = tuple[Column, ...]


class KeptRow(NamedTuple):
    """The outputs of one row. `n_bytes` is the memory it takes, what surrounds it in the store apart."""

    layout: Layout
    cells: tuple[Cell, ...]
    n_bytes: int


_ROW_BYTES = 88 + 56  # the record and its tuple of cells: `sys.getsizeof` with the collector's header
_CELL_BYTES = 8 + 33 + 8  # the place in the tuple, the head of `bytes`, rounding up by the allocator
_LAYOUT_BYTES = 600


def row_keys(space: bytes, inputs: Mapping[str, Part], n_rows: int) -> list[Key] | None:
    """A key per row, from all input ports: their names, dtypes, row shapes and the bytes of the row.

    `space` tells apart what must not be shared (extension, options, user). None where rows cannot be told by their
    bytes: remote arrays, objects other than bytes, no rows.
    """
    head: list[tuple[str, str, tuple[int, ...]]] = []
    columns: list[list[bytes]] = []
    for port in sorted(inputs):
        part = inputs[port]
        if not isinstance(part, np.ndarray) or len(part) != n_rows or n_rows == 0:
            return None
        cells = _objects_as_bytes(part) if part.dtype.kind == "O" else _raw_rows(part)
        if cells is None:
            return None
        head.append((port, part.dtype.str, part.shape[1:]))
        columns.append(cells)
    seed = sha256(space + repr(head).encode())  # fixes where each port's bytes begin and end
    keys = []
    for row in zip(*columns, strict=True):
        digest = seed.copy()
        for cell in row:
            digest.update(cell)
        keys.append(Key(digest.digest()))
    return keys


def kept_rows(outputs: Mapping[str, Produced], n_rows: int) -> list[KeptRow] | None:
    """The rows of a call one by one. None where they cannot be kept: remote arrays, objects other than bytes."""
    layout: list[Column] = []
    cells: list[Sequence[Cell]] = []
    fixed = _ROW_BYTES
    loose: list[Sequence[Cell]] = []  # columns whose rows differ in size
    for name, made in outputs.items():
        for sure, values in ((False, made.values), (True, made.confidence)):
            if values is None:
                continue
            if not isinstance(values, np.ndarray) or len(values) != n_rows:
                return None
            layout.append(Column(name, sure, values.dtype, values.shape[1:]))
            if values.dtype.kind == "O":
                texts = _object_rows(values)
                if texts is None:
                    return None
                cells.append(texts)
                loose.append(texts)
            else:
                cells.append(_raw_rows(values))
                fixed += values.itemsize * math.prod(values.shape[1:])
            fixed += _CELL_BYTES
    mine = tuple(layout)
    shared = _interned(mine)
    if shared is mine:
        fixed += _LAYOUT_BYTES  # whoever brings a layout pays for it
    rows = list(zip(*cells, strict=True))
    if not loose:
        return [KeptRow(shared, row, fixed) for row in rows]
    extra = [sum(map(_size_of_objects, row)) for row in zip(*loose, strict=True)]
    return [KeptRow(shared, row, fixed + more) for row, more in zip(rows, extra, strict=True)]


def joined_rows(rows: Sequence[KeptRow]) -> dict[str, Produced] | None:
    """Read-only arrays of these rows in order, as one call would have given them. None where they do not lie in one
    array, because their shapes differ or some have a confidence and others not."""
    layout = rows[0].layout
    if any(row.layout is not layout and row.layout != layout for row in rows):
        return None
    found: dict[str, Array] = {}
    sure: dict[str, Array] = {}
    for at, column in enumerate(layout):
        shape = (len(rows), *column.shape)
        values: Array
        if column.dtype.kind == "O":
            values = np.empty(shape, dtype=object)
            flat = values.reshape(-1)
            flat[:] = [text for row in rows for text in row.cells[at]]
            values.flags.writeable = False
        else:
            # Over immutable `bytes`: read-only by nature, and without a copy where there is one row.
            raw: Any = rows[0].cells[at] if len(rows) == 1 else b"".join([row.cells[at] for row in rows])  # type: ignore[misc]
            values = np.ndarray(shape, column.dtype, raw)
        (sure if column.sure else found)[column.output] = values
    return {name: Produced(values, sure.get(name)) for name, values in found.items()}


@lru_cache(maxsize=1024)
def _interned(layout: Layout) -> Layout:
    return layout


def _raw_rows(values: Array) -> list[bytes]:
    """The bytes of each row in C order."""
    raw = values.tobytes()
    if len(values) == 1:
        return [raw]
    size = len(raw) // len(values) if len(values) else 0
    return [raw[at * size : (at + 1) * size] for at in range(len(values))]


def _object_rows(values: Array) -> list[tuple[bytes, ...]] | None:
    """The elements of each row; None unless all are bytes."""
    width = math.prod(values.shape[1:])
    flat = values.reshape(-1).tolist()
    if any(type(element) is not bytes for element in flat):
        return None
    return [tuple(flat[at * width : (at + 1) * width]) for at in range(len(values))]


def _objects_as_bytes(values: Array) -> list[bytes] | None:
    """Each row as bytes from which its elements could be told: every length goes before its element."""
    rows = _object_rows(values)
    if rows is None:
        return None
    return [b"".join([part for text in row for part in (len(text).to_bytes(8, "little"), text)]) for row in rows]


def _size_of_objects(texts: Cell) -> int:
    return 56 + 8 * len(texts) + sum(getsizeof(text) + 8 for text in texts)
