"""Chunks of the journal: some thousands of outcomes as one piece of bytes, column by column.

A gateway answers thousands of requests a second, so no object is kept per request or group: it hands a `ChunkBuilder`
one group at a time, whose numbers and rows are copied to the ends of columns, and `encode` does all the rest, on a
thread. A chunk is a head with its range of numbers and times and a checksum; then, compressed, a header in JSON and the
little-endian bytes of all arrays that become smaller; then those of the others. Nothing in it is a pickle.
"""

from __future__ import annotations

import math
import struct
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import orjson

from lineage.columns import (
    MOST_INPUT_BYTES,
    MOST_OUTPUT_BYTES,
    MOST_RAW_BYTES,
    BrokenChunk,
    Column,
    Packer,
    Reader,
    StoredColumn,
    begins_of,
    count_of,
    held_of,
    sort_in,
)
from lineage.outcomes import RUN, Array, Group, Kept, Outcome, Setting, StepTimes, trace_id_of

MOST_SEQ = (1 << 48) - 1

_NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class ChunkHead:
    """What a chunk says of itself without being decoded. The numbers and times are the least and the greatest in it."""

    run: str
    first_seq: int
    last_seq: int
    from_s: float
    to_s: float
    n_requests: int


# waited_ms, ran_ms, took_ms, batch_rows
StepNumbers = tuple[float, float, float, int]

# As they are gathered.
_GROUP = struct.Struct("<dqii")
_GROUPS = np.dtype([("at_s", "<f8"), ("first", "<i8"), ("which", "<i4"), ("n", "<i4")])
_STEP = struct.Struct("<fffi")
_STEPS = np.dtype([("waited_ms", "<f4"), ("ran_ms", "<f4"), ("took_ms", "<f4"), ("batch_rows", "<i4")])


class _Known:
    """A setting of the chunk, and the columns that its outputs mostly go to, by name."""

    __slots__ = ("index", "setting", "usual")

    def __init__(self, setting: Setting, index: int) -> None:
        self.setting = setting  # so that its identity stays its own
        self.index = index
        self.usual: dict[str, Column] = {}


class ChunkBuilder:
    """Gathers groups, in columns. Filled by one thread.

    Nothing that was handed in is held, but texts and score vectors of which only the best is kept: those must not be
    changed afterwards.
    """

    __slots__ = (
        "_by_id",
        "_columns",
        "_confidences",
        "_groups",
        "_index_of",
        "_latencies_ms",
        "_listed",
        "_n_groups",
        "_n_rows",
        "_steps",
        "_with_inputs",
        "n_bytes",
        "n_requests",
        "run",
    )

    def __init__(self, run: str) -> None:
        """`run` is 20 lower-case hex digits, else ValueError."""
        if not RUN.fullmatch(run):
            raise ValueError(f"{run[:40]!r} is not the name of a run")
        self.run = run
        self.n_requests = 0
        self.n_bytes = 0  # of the arrays that are held
        self._index_of: dict[Setting, int] = {}
        self._by_id: dict[int, _Known] = {}
        self._groups = bytearray()
        self._steps = bytearray()
        self._n_groups = 0
        self._listed: dict[
            int, Sequence[int]
        ] = {}  # the numbers of all requests, of groups that have them not in a row
        self._latencies_ms, self._n_rows, self._confidences = array("f"), array("i"), array("f")
        self._columns: dict[Any, Column] = {}
        self._with_inputs: list[int] = []

    def add(
        self,
        setting: Setting,
        seqs: int | Sequence[int],
        at_s: float,
        latencies_ms: list[float],
        n_rows: list[int],
        confidences: list[float],
        steps: Sequence[StepNumbers] = (),
        outputs: Mapping[str, Array] = _NOTHING,
        inputs: Mapping[str, Array] | None = None,
    ) -> None:
        """Takes a group of answered, or failed, requests.

        `seqs` is the number of the first, when they are in a row, or has one for each. `latencies_ms`, `n_rows` and
        `confidences` (NaN where there is none) have one entry per request, `steps` one per step of the setting;
        `outputs` and `inputs` have the rows of all requests in that order. Raises ValueError, with nothing taken, when
        these do not fit each other.
        """
        n = len(latencies_ms)
        rows = sum(n_rows)
        if not n or len(n_rows) != n or len(confidences) != n or len(steps) != len(setting.steps):
            raise ValueError("a group has at least one request, and an entry for each request and step")
        if type(seqs) is not int and len(seqs) != n:  # type: ignore[arg-type]
            raise ValueError(f"{n} requests have {len(seqs)} numbers")  # type: ignore[arg-type]
        known = self._by_id.get(id(setting)) or self._know(setting)
        usual = known.usual
        n_bytes = 0
        held: Mapping[str, Array | None] | None = None  # unless all outputs are as usual
        for name, values in outputs.items():
            column = usual.get(name)
            if column is None or not column.fits(values, rows):
                held, n_bytes = held_of(outputs, rows, MOST_OUTPUT_BYTES, scores=True)
                break
            n_bytes += values.nbytes
        held_inputs, more = (None, 0) if inputs is None else held_of(inputs, rows, MOST_INPUT_BYTES, scores=False)
        group = self._n_groups
        self._put(known.index, seqs, at_s, latencies_ms, n_rows, confidences, steps)
        if held is None:
            for name, values in outputs.items():
                usual[name].take(group, values)
        else:
            for column in sort_in(self._columns, "out", group, held):
                if column.kind == "full":
                    usual[column.name] = column
        if held_inputs is not None:
            self._with_inputs.append(group)
            sort_in(self._columns, "in", group, held_inputs)
        self.n_requests += n
        self.n_bytes += n_bytes + more

    def _know(self, setting: Setting) -> _Known:
        index = self._index_of.setdefault(setting, len(self._index_of))
        known = self._by_id[id(setting)] = _Known(setting, index)
        return known

    def _put(
        self,
        index: int,
        seqs: int | Sequence[int],
        at_s: float,
        latencies_ms: list[float],
        n_rows: list[int],
        confidences: list[float],
        steps: Sequence[StepNumbers],
    ) -> None:
        """Puts the numbers of a group at the ends of their columns; all of them, or with ValueError none. Packing and
        `fromlist` take half as long as appending one by one."""
        n_groups, n = self._n_groups, len(latencies_ms)
        try:
            listed = None if type(seqs) is int else array("q", seqs)  # type: ignore[arg-type]
            packed = _GROUP.pack(at_s, seqs if listed is None else 0, index, n)
            times = [_STEP.pack(*numbers) for numbers in steps]
            self._latencies_ms.fromlist(latencies_ms)
            self._n_rows.fromlist(n_rows)
            self._confidences.fromlist(confidences)
        except (TypeError, ValueError, OverflowError, struct.error) as error:
            for column in (self._latencies_ms, self._n_rows, self._confidences):
                del column[self.n_requests :]
            raise ValueError(f"a group of requests has something else than its numbers ({error})") from None
        self._groups += packed
        for numbers in times:
            self._steps += numbers
        if listed is not None:
            self._listed[n_groups] = listed
        self._n_groups = n_groups + 1

    def encode(self) -> bytes:
        """The chunk as bytes; call it once, on any thread, when nobody adds to it any more.

        Raises ValueError when nothing was added or when the numbers of requests are not distinct numbers of 48 bits.
        """
        n = self.n_requests
        if not n:
            raise ValueError("a chunk has at least one request")
        seqs = self._seqs()
        first, last = int(seqs.min()), int(seqs.max())
        in_a_row = last - first + 1 == n and (n == 1 or bool((seqs[1:] > seqs[:-1]).all()))
        if first < 0 or last > MOST_SEQ or (not in_a_row and len(np.unique(seqs)) != n):
            raise ValueError("the requests of a chunk have distinct numbers of at most 48 bits")
        groups = np.frombuffer(self._groups, _GROUPS)
        steps = np.frombuffer(self._steps, _STEPS)
        at_s = _little(groups["at_s"], "<f8")
        packer = Packer()
        packer.put(_little(groups["which"], "<i4"), tight=True)
        packer.put(at_s)
        packer.put(_little(groups["n"], "<i4"), tight=True)
        packer.put(_little(self._latencies_ms, "<f4"))
        packer.put(_little(self._n_rows, "<i4"), tight=True)
        packer.put(_little(self._confidences, "<f4"))
        for name in ("waited_ms", "ran_ms", "took_ms"):
            packer.put(_little(steps[name], "<f4"))
        packer.put(_little(steps["batch_rows"], "<i4"), tight=True)
        if not in_a_row:
            packer.put(_little(np.diff(seqs, prepend=first), "<i8"), tight=True)
        header = {
            "settings": [_setting_to_dict(setting) for setting in self._index_of],
            "with_inputs": self._with_inputs,
            "n_groups": self._n_groups,
            "in_a_row": in_a_row,
            "columns": [column.encode(packer) for column in self._columns.values()],
        }
        body, sizes_of_body = packer.end(orjson.dumps(header))
        head = _HEAD.pack(
            _MAGIC, bytes.fromhex(self.run), first, last, float(at_s.min()), float(at_s.max()), n, *sizes_of_body, 0
        )
        crc = zlib.crc32(body, zlib.crc32(head))
        return head[: -_LENGTH.size] + _LENGTH.pack(crc) + body

    def _seqs(self) -> Array:
        """The number of every request, int64 of shape (n_requests,)."""
        groups = np.frombuffer(self._groups, _GROUPS)
        begins = begins_of(groups["n"])
        found: Array = np.repeat(groups["first"] - begins[:-1], groups["n"]) + np.arange(self.n_requests)
        for group, seqs in self._listed.items():
            found[begins[group] : begins[group + 1]] = seqs
        return found


_MAGIC = b"FXJ1"
# magic, run, first and last number, from and to (s), requests; bytes of the header, of all that is tight, of that when
# packed, of what is loose; checksum of the head without it and of the rest
_HEAD = struct.Struct("<4s10sQQddIIIIII")
_LENGTH = struct.Struct("<I")


def head_of(data: bytes) -> ChunkHead:
    """What an encoded chunk is. Checks that it is whole, without decoding it. Raises BrokenChunk."""
    return _open(data)[0]


def _open(data: bytes) -> tuple[ChunkHead, tuple[int, int, int, int]]:
    if len(data) < _HEAD.size:
        raise BrokenChunk("too short for a chunk of the journal")
    magic, run, first, last, from_s, to_s, n, n_header, n_tight, n_packed, n_loose, crc = _HEAD.unpack_from(data)
    if magic != _MAGIC:
        raise BrokenChunk("not a chunk of the journal")
    empty = data[: _HEAD.size - _LENGTH.size] + _LENGTH.pack(0)
    if zlib.crc32(memoryview(data)[_HEAD.size :], zlib.crc32(empty)) != crc:
        raise BrokenChunk("the checksum of the chunk is wrong")
    if len(data) != _HEAD.size + n_packed + n_loose or n_tight + n_loose > MOST_RAW_BYTES or n_header > n_tight:
        raise BrokenChunk("the chunk has another size than it says")
    return ChunkHead(run.hex(), first, last, from_s, to_s, n), (n_header, n_tight, n_packed, n_loose)


@dataclass(frozen=True, slots=True, eq=False)
class Numbers:
    """The numbers of a chunk, for who adds up thousands of requests at once. Read-only.

    One entry per group: `which` of the chunk's settings, `at_s`, how many requests (`sizes`), and where its steps begin
    (`first_step`); one per request, group after group: `seqs`, `latencies_ms`, `n_rows`, `confidences` (NaN: none); one
    per step: `took_ms`, `batch_rows`, in the order of the setting's steps.
    """

    which: Array
    at_s: Array
    sizes: Array
    first_step: Array
    seqs: Array
    latencies_ms: Array
    n_rows: Array
    confidences: Array
    took_ms: Array
    batch_rows: Array


class Chunk:
    """Some thousands of outcomes of one run, decoded. The arrays it gives are read-only."""

    def __init__(
        self,
        head: ChunkHead,
        settings: Sequence[Setting],
        groups: tuple[Array, Array, Array],
        requests: tuple[Array, Array, Array, Array],
        steps: tuple[Array, Array, Array, Array],
        columns: Sequence[StoredColumn],
        with_inputs: frozenset[int],
    ) -> None:
        """For `decode`. `groups`: setting, time, requests of each; `requests`: number, latency, rows, confidence."""
        self.head = head
        self.settings = tuple(settings)
        self._which, self._at_s, self._sizes = groups
        self._seqs, self._latencies_ms, self._n_rows, self._confidences = requests
        self._steps = steps
        self._with_inputs = with_inputs
        self._begins = begins_of(self._sizes).tolist()
        self._row_begins = begins_of(self._n_rows).tolist()
        n_steps = np.array([len(setting.steps) for setting in self.settings], np.int64)
        self._step_begins = begins_of(n_steps[self._which]).tolist()
        self._last: tuple[int, tuple[StepTimes, ...], Kept, Kept | None] | None = None
        self._data_bytes = sum([column.n_bytes for column in columns])
        self._columns: dict[int, list[tuple[StoredColumn, int]]] = {}
        for column in columns:
            for group, begin in zip(column.groups.tolist(), column.begins, strict=True):
                self._columns.setdefault(group, []).append((column, begin))
        self._in_a_row = head.last_seq - head.first_seq + 1 == head.n_requests and bool(
            (self._seqs[1:] > self._seqs[:-1]).all()
        )
        self._order: Array | None = None

    @classmethod
    def decode(cls, data: bytes) -> Chunk:
        """The chunk that `ChunkBuilder.encode` wrote. Raises BrokenChunk for anything else."""
        head, (n_header, n_tight, n_packed, _) = _open(data)
        begin = _HEAD.size + n_packed
        try:
            unpacker = zlib.decompressobj()
            tight = unpacker.decompress(memoryview(data)[_HEAD.size : begin], n_tight + 1)
            if len(tight) != n_tight or not unpacker.eof or unpacker.unused_data:
                raise BrokenChunk("the chunk has another size than it says")
            return cls._of(head, orjson.loads(tight[:n_header]), Reader(tight, n_header), Reader(data, begin))
        except BrokenChunk:
            raise
        except (zlib.error, ValueError, LookupError, TypeError, OverflowError) as error:
            raise BrokenChunk(f"the chunk does not decode ({type(error).__name__}: {error})") from None

    @classmethod
    def _of(cls, head: ChunkHead, header: Mapping[str, Any], tight: Reader, loose: Reader) -> Chunk:
        settings = [_parse_setting(found) for found in header["settings"]]
        n_groups, n = count_of(header["n_groups"]), head.n_requests
        groups = tight.array("<i4", n_groups), loose.array("<f8", n_groups), tight.array("<i4", n_groups)
        which, _, sizes = groups
        if not n_groups or which.min() < 0 or which.max() >= len(settings) or sizes.min() < 1 or sizes.sum() != n:
            raise BrokenChunk("the groups of the chunk do not fit")
        latencies, n_rows, confidences = loose.array("<f4", n), tight.array("<i4", n), loose.array("<f4", n)
        if n_rows.min() < 0:
            raise BrokenChunk("a request has less than no rows")
        n_steps = sum([len(settings[k].steps) for k in which.tolist()])
        steps = (
            loose.array("<f4", n_steps),
            loose.array("<f4", n_steps),
            loose.array("<f4", n_steps),
            tight.array("<i4", n_steps),
        )
        seqs = (
            np.arange(head.first_seq, head.first_seq + n, dtype=np.int64)
            if header["in_a_row"]
            else head.first_seq + np.cumsum(tight.array("<i8", n))
        )
        seqs.flags.writeable = False
        if int(seqs.min()) != head.first_seq or int(seqs.max()) != head.last_seq:
            raise BrokenChunk("the numbers of the requests are not those of the head")
        rows_of = np.add.reduceat(n_rows.astype(np.int64), begins_of(sizes)[:-1])
        columns = [StoredColumn.read(found, rows_of, tight, loose) for found in header["columns"]]
        tight.end()
        loose.end()
        return cls(
            head,
            settings,
            groups,
            (seqs, latencies, n_rows, confidences),
            steps,
            columns,
            frozenset(map(count_of, header["with_inputs"])),
        )

    @property
    def n_bytes(self) -> int:
        """About as much memory as it takes."""
        return self._data_bytes + 32 * self.head.n_requests + 200 * len(self._sizes)

    def __contains__(self, seq: int) -> bool:
        return self._position(seq) is not None

    def numbers(self) -> Numbers:
        """All that is counted, without an object per group."""
        _, _, took_ms, batch_rows = self._steps
        first_step = np.array(self._step_begins[:-1], np.int64)
        return Numbers(
            self._which,
            self._at_s,
            self._sizes,
            first_step,
            self._seqs,
            self._latencies_ms,
            self._n_rows,
            self._confidences,
            took_ms,
            batch_rows,
        )

    def groups(self) -> Iterator[Group]:
        """All groups, in the order in which they were added."""
        for i, (begin, end) in enumerate(pairwise(self._begins)):
            steps, outputs, inputs = self._group(i)
            yield Group(
                self.settings[self._which[i]],
                float(self._at_s[i]),
                self._seqs[begin:end],
                self._latencies_ms[begin:end],
                self._n_rows[begin:end],
                self._confidences[begin:end],
                steps,
                outputs,
                inputs,
            )

    def find(self, seq: int) -> Outcome | None:
        """What became of the request with this number; None when it is not in this chunk."""
        position = self._position(seq)
        if position is None:
            return None
        i = bisect_right(self._begins, position) - 1
        start = self._row_begins[position] - self._row_begins[self._begins[i]]
        stop = start + int(self._n_rows[position])
        last = self._last  # who looks for one often looks for its neighbours, maybe on several threads
        if last is None or last[0] != i:
            self._last = last = i, *self._group(i)
        _, steps, outputs, inputs = last
        sure = float(self._confidences[position])
        return Outcome(
            trace_id_of(self.head.run, seq),
            self.settings[self._which[i]],
            float(self._at_s[i]),
            float(self._latencies_ms[position]),
            stop - start,
            None if math.isnan(sure) else sure,
            steps,
            outputs.rows(start, stop),
            None if inputs is None else inputs.rows(start, stop),
        )

    def _position(self, seq: int) -> int | None:
        if not self.head.first_seq <= seq <= self.head.last_seq:
            return None
        if self._in_a_row:
            return seq - self.head.first_seq
        order = self._order
        if order is None:
            self._order = order = np.argsort(self._seqs)
        position = int(order[np.searchsorted(self._seqs, seq, sorter=order)])
        return position if int(self._seqs[position]) == seq else None

    def _group(self, i: int) -> tuple[tuple[StepTimes, ...], Kept, Kept | None]:
        """Steps, outputs and inputs of the group `i`."""
        waited, ran, took, batch_rows = self._steps
        steps = tuple(
            StepTimes(step, extension, float(waited[k]), float(ran[k]), float(took[k]), int(batch_rows[k]))
            for k, (step, extension) in enumerate(self.settings[self._which[i]].steps, self._step_begins[i])
        )
        n_rows = self._row_begins[self._begins[i + 1]] - self._row_begins[self._begins[i]]
        full: dict[str, dict[str, Array]] = {"out": {}, "in": {}}
        best: dict[str, Array] = {}
        left_out: dict[str, list[str]] = {"out": [], "in": []}
        for column, begin in self._columns.get(i, ()):
            if column.kind == "none":
                left_out[column.side].append(column.name)
            elif column.kind == "best":
                best[column.name] = column.data[begin : begin + n_rows]
            else:
                full[column.side][column.name] = column.data[begin : begin + n_rows]
        outputs = Kept(full["out"], best, frozenset(left_out["out"]))
        inputs = Kept(full["in"], {}, frozenset(left_out["in"])) if i in self._with_inputs else None
        return steps, outputs, inputs


def _little(numbers: Any, dtype: str) -> Array:
    return np.ascontiguousarray(numbers, dtype)


_SETTING_FIELDS = tuple(f.name for f in fields(Setting))


def _setting_to_dict(setting: Setting) -> dict[str, Any]:
    found = {name: getattr(setting, name) for name in _SETTING_FIELDS}
    return {**found, "tags": sorted(setting.tags), "flags": sorted(setting.flags)}


def _parse_setting(found: Mapping[str, Any]) -> Setting:
    return Setting(
        **{
            **found,
            "steps": tuple((int(step), str(extension)) for step, extension in found["steps"]),
            "considered": tuple((str(plan), float(propensity)) for plan, propensity in found["considered"]),
            "tags": frozenset(found["tags"]),
            "flags": frozenset(found["flags"]),
            "failed": tuple(map(str, found.get("failed", ()))),
        }
    )
