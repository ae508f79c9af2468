"""The columns of a chunk: one output or input of all groups that have it in the same form, and how arrays become bytes.

What is kept: rows of an output of at most `MOST_OUTPUT_BYTES` in full, of longer score vectors the best index, of other
longer rows nothing; rows of an input of at most `MOST_INPUT_BYTES`.
"""

from __future__ import annotations

import math
import zlib
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lineage.outcomes import Array

MOST_OUTPUT_BYTES = 256  # of one row of an output that is kept in full
MOST_INPUT_BYTES = 65_536  # of one row of an input that is kept
MOST_GROUP_BYTES = 1 << 20  # of one output or input of a whole group that is kept in full
MOST_RAW_BYTES = 1 << 28  # of a chunk, decompressed

_Kind = Literal["full", "best", "text", "none"]


class BrokenChunk(ValueError):
    """Bytes that are not a chunk of the journal, or not a whole one."""


class Packer:
    """Gathers the arrays of a chunk. Those that are `tight` are compressed, with the header; floats hardly become
    smaller, and compressing them takes longer (1.7 us a request) than all else."""

    def __init__(self) -> None:
        self._tight: list[memoryview | bytes] = []
        self._loose: list[memoryview | bytes] = []

    def put(self, part: Array | bytes, *, tight: bool = False) -> None:
        """Takes a little-endian, contiguous array. A `Reader` gets them in the same order, the tight ones and the
        others each from their own bytes."""
        (self._tight if tight else self._loose).append(part if isinstance(part, bytes) else part.data)

    def end(self, header: bytes) -> tuple[bytes, tuple[int, int, int, int]]:
        """The body of the chunk, and its sizes as the head says them. Raises ValueError when it is too large."""
        tight = b"".join([header, *self._tight])
        loose = b"".join(self._loose)
        if len(tight) + len(loose) > MOST_RAW_BYTES:
            raise ValueError(f"a chunk of {len(tight) + len(loose)} bytes is too large")
        packed = zlib.compress(tight, 1)
        return packed + loose, (len(header), len(tight), len(packed), len(loose))


class Reader:
    """Takes arrays off bytes, one after the other. Raises BrokenChunk where there are not enough, or too many."""

    def __init__(self, raw: bytes, at: int) -> None:
        self._raw = raw
        self.at = at

    def array(self, dtype: str, n: int) -> Array:
        n_bytes = np.dtype(dtype).itemsize * n
        if self.at + n_bytes > len(self._raw):
            raise BrokenChunk("the chunk ends too soon")
        found = np.frombuffer(self._raw, dtype, n, self.at)
        self.at += n_bytes
        return found

    def texts(self, n: int) -> Array:
        lengths = self.array("<i4", n).tolist()
        found = np.empty(n, object)
        for i, length in enumerate(lengths):
            if length >= 0:
                found[i] = self.array("u1", length).tobytes()
        found.flags.writeable = False
        return found

    def end(self) -> None:
        if self.at != len(self._raw):
            raise BrokenChunk("the chunk has more in it than it says")


class Column:
    """One output or input of several groups that have it in the same form, to be encoded.

    Rows that are kept in full are copied at once, into one piece of memory: thousands of small arrays that live for a
    second cost the allocator and the garbage collector more than their copies. Texts, and scores of which the best
    will be looked for, are held by reference.
    """

    __slots__ = ("arrays", "data", "dtype", "groups", "kind", "name", "shape", "side")

    def __init__(self, kind: _Kind, side: str, name: str, dtype: Any, shape: tuple[int, ...]) -> None:
        """`shape` is that of one row."""
        self.kind, self.side, self.name, self.dtype, self.shape = kind, side, name, dtype, shape
        self.groups = array("i")
        self.data = bytearray()
        self.arrays: list[Array] = []

    def fits(self, values: Array, rows: int) -> bool:
        """Whether this is the column for an output of a group with so many rows; False may mean: look closer."""
        return (
            (values.dtype is self.dtype or values.dtype == self.dtype)  # equal ones come from other processes
            and values.shape[1:] == self.shape
            and len(values) == rows
            and values.nbytes <= MOST_GROUP_BYTES
        )

    def take(self, group: int, values: Array | None) -> None:
        """Takes what a group has of it; None for what is not kept. Groups come in their order."""
        self.groups.append(group)
        if values is None:
            return
        if self.kind == "full":
            self.data += values.tobytes()
        elif self.kind != "none":
            self.arrays.append(values)

    def encode(self, packer: Packer) -> dict[str, Any]:
        """Puts the rows where they belong; what the header says of them."""
        dtype, shape = self.dtype, self.shape
        packer.put(np.diff(np.asarray(self.groups), prepend=0).astype("<i4"), tight=True)
        if self.kind == "none":
            dtype, shape = np.dtype("u1"), ()
        elif self.kind == "best":
            best = np.concatenate([np.argmax(values, axis=1) for values in self.arrays])
            packer.put(best.astype("<i4"), tight=True)
            dtype, shape = np.dtype("<i4"), ()
        elif self.kind == "text":
            most = MOST_OUTPUT_BYTES if self.side == "out" else MOST_INPUT_BYTES
            lengths, texts = _texts(self.arrays, math.prod(shape), most)
            packer.put(np.array(lengths, "<i4"), tight=True)
            packer.put(b"".join(texts), tight=True)
            dtype = np.dtype("u1")
        else:
            dtype = dtype.newbyteorder("<")
            values = np.frombuffer(self.data, self.dtype).astype(dtype, copy=False)
            packer.put(values, tight=dtype.kind != "f" or self.side == "in")
        return {
            "side": self.side,
            "name": self.name,
            "kind": self.kind,
            "dtype": dtype.str,
            "shape": shape,
            "n_groups": len(self.groups),
        }


@dataclass(frozen=True, slots=True, eq=False)
class StoredColumn:
    """A column as decoded: all its rows one after the other, and where those of each group begin."""

    side: str
    name: str
    kind: str
    groups: Array
    begins: list[int]
    data: Array
    n_bytes: int

    @classmethod
    def read(cls, found: Mapping[str, Any], rows_of: Array, tight: Reader, loose: Reader) -> StoredColumn:
        side, name, kind = found["side"], found["name"], found["kind"]
        dtype, shape = np.dtype(found["dtype"]), tuple(map(count_of, found["shape"]))
        if side not in ("out", "in") or kind not in ("full", "best", "text", "none") or dtype.kind not in "biuf":
            raise BrokenChunk("a column of the chunk is of no known kind")
        groups = np.cumsum(tight.array("<i4", count_of(found["n_groups"])), dtype=np.int64)
        if len(groups) and (groups.min() < 0 or groups.max() >= len(rows_of)):
            raise BrokenChunk("a column belongs to a group that is not there")
        rows = rows_of[groups] if len(groups) else np.zeros(0, np.int64)
        n_rows, n_each = int(rows.sum()), math.prod(shape)
        take = loose if dtype.kind == "f" and side == "out" else tight
        if kind == "none":
            data: Array = np.zeros(0, np.uint8)
        elif kind == "text":
            data = tight.texts(n_rows * n_each).reshape(n_rows, *shape)
        else:
            data = take.array(dtype.str, n_rows * n_each).reshape(n_rows, *shape)
        return cls(side, str(name), kind, groups, begins_of(rows)[:-1].tolist(), data, n_rows * n_each * dtype.itemsize)


def held_of(
    given: Mapping[str, Array], rows: int, most_row_bytes: int, *, scores: bool
) -> tuple[dict[str, Array | None], int]:
    """What is held until it is encoded, and its bytes; None for what will not be kept."""
    held: dict[str, Array | None] = {}
    n_bytes = 0
    for name, values in given.items():
        if len(values) != rows:
            raise ValueError(f"{name!r} has {len(values)} rows, the requests have {rows}")
        size = values.nbytes
        if values.dtype.hasobject:
            size = sum([len(item) for item in values.ravel().tolist() if isinstance(item, bytes | str)])
            fits = size <= MOST_GROUP_BYTES
        else:
            fits = (size <= most_row_bytes * rows and size <= MOST_GROUP_BYTES) or (scores and _is_scores(values))
        held[name] = values if fits and values.dtype.kind in "biufO" else None
        n_bytes += size if held[name] is not None else 0
    return held, n_bytes


def _is_scores(values: Array) -> bool:
    return values.dtype.kind == "f" and values.ndim == 2 and values.shape[1] > 1


def sort_in(columns: dict[Any, Column], side: str, group: int, held: Mapping[str, Array | None]) -> list[Column]:
    """Puts the outputs or inputs of a group into their columns, which are made where there are none yet, and returns
    these columns."""
    taken = []
    for name, values in held.items():
        key: Any = (side, name)
        if values is not None:
            key = (side, name, values.dtype, values.shape[1:], values.nbytes > MOST_GROUP_BYTES)
        column = columns.get(key)
        if column is None:
            dtype, shape = (None, ()) if values is None else (values.dtype, values.shape[1:])
            column = columns[key] = Column(_kind_of(side, values), side, name, dtype, shape)
        column.take(group, values)
        taken.append(column)
    return taken


def _kind_of(side: str, values: Array | None) -> _Kind:
    if values is None:
        return "none"
    if values.dtype.hasobject:
        return "text"
    row_bytes = values.dtype.itemsize * math.prod(values.shape[1:])
    fits = row_bytes <= MOST_OUTPUT_BYTES and values.nbytes <= MOST_GROUP_BYTES
    if fits or side == "in":
        return "full"
    return "best" if _is_scores(values) else "none"


def _texts(arrays: Sequence[Array], n_each: int, most_row_bytes: int) -> tuple[list[int], list[bytes]]:
    """Length of every item, -1 where it is not kept, and the items that are."""
    lengths: list[int] = []
    texts: list[bytes] = []
    items = [item for values in arrays for item in values.ravel().tolist()]
    for begin in range(0, len(items), max(1, n_each)):
        row = [
            item.encode("utf-8", "replace") if isinstance(item, str) else item for item in items[begin : begin + n_each]
        ]
        if all(isinstance(item, bytes) for item in row) and sum([len(item) for item in row]) <= most_row_bytes:
            lengths += [len(item) for item in row]
            texts += row
        else:
            lengths += [-1] * len(row)
    return lengths, texts


def begins_of(sizes: Array) -> Array:
    """Where each piece begins, and at the end where the last one ends."""
    found = np.zeros(len(sizes) + 1, np.int64)
    np.cumsum(sizes, out=found[1:])
    return found


def count_of(value: Any) -> int:
    """A number of things as the header says it. Raises BrokenChunk."""
    if type(value) is not int or not 0 <= value <= MOST_RAW_BYTES:
        raise BrokenChunk(f"{str(value)[:20]!r} is not a number of things")
    return value
