"""The journal in SQL: chunks of outcomes as gateways wrote them, and the feedback that was given on them.

Chunks are blobs that are found by the range of their numbers; feedback has a row each. Both also have a number in the
order of the commits, so that a reader can go on where it was; `learners.py` follows the journal by it. What was
acknowledged is durable.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    CompoundSelect,
    Connection,
    Engine,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    RowMapping,
    Select,
    String,
    Table,
    bindparam,
    delete,
    func,
    insert,
    select,
    tuple_,
    union_all,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from lineage.chunks import Chunk, head_of
from lineage.columns import BrokenChunk
from lineage.database import transaction
from lineage.errors import FenixError, RequestNotFound, StoreUnavailable
from lineage.feedback import Feedback, judge
from lineage.outcomes import Outcome, split_trace_id

BATCH_ROWS = 5_000  # of feedback in one transaction
SORTED_ROWS = 50_000  # that are put in order first: then neighbours share a chunk, and pages of the database
MOST_TOLD = 100  # refusals that are told in full; the others are counted
OVERLAP = 64  # chunks of a run whose ranges may overlap; the gateway's do not
MOST_DECODED_BYTES = 64 << 20
PAGE_CHUNKS = 8
PAGE_FEEDBACK = 1_000
FORGET_CHUNKS, FORGET_ROWS = 50, 5_000  # in one transaction

_log = logging.getLogger("fenix.journal")

_METADATA = MetaData()
_CHUNKS = Table(
    "journal_chunks",
    _METADATA,
    Column("run", String(20), primary_key=True),
    Column("first_seq", BigInteger, primary_key=True, autoincrement=False),
    Column("last_seq", BigInteger, nullable=False),
    Column("from_s", Float(53), nullable=False),
    Column("to_s", Float(53), nullable=False),
    Column("n_requests", Integer, nullable=False),
    Column("n_bytes", Integer, nullable=False),
    Column("number", BigInteger, nullable=False, unique=True),  # in the order of the commits
    Column("body", LargeBinary, nullable=False),  # last: SQLite then counts the rows without reading it
    Index("journal_chunks_from", "from_s", "run", "first_seq"),
    Index("journal_chunks_to", "to_s"),
)
_FEEDBACK = Table(
    "feedback",
    _METADATA,
    Column("trace_id", String(32), primary_key=True),
    Column("output", String(256), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("id", BigInteger, nullable=False, unique=True),  # in the order of the commits
    Column("value", JSON, nullable=False),
    Column("about_s", Float(53)),
    Column("received_s", Float(53), nullable=False),
    Column("user", String(256), nullable=False),
    Column("source", String(64), nullable=False),
    Column("before", JSON(none_as_null=True)),  # the value that this one replaced
    Index("feedback_received", "received_s"),
)
# Feedback that was changed, as it was: a reader that goes on where it was has heard every value that is replaced.
_REPLACED = Table(
    "feedback_replaced",
    _METADATA,
    Column("trace_id", String(32), nullable=False),
    Column("output", String(256), nullable=False),
    Column("kind", String(8), nullable=False),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("value", JSON, nullable=False),
    Column("about_s", Float(53)),
    Column("received_s", Float(53), nullable=False),
    Column("user", String(256), nullable=False),
    Column("source", String(64), nullable=False),
    Column("before", JSON(none_as_null=True)),
    Index("feedback_replaced_received", "received_s"),
)
_LEARNERS = Table(
    "journal_learners",
    _METADATA,
    Column("name", String(64), primary_key=True),
    Column("chunk_number", BigInteger, nullable=False),
    Column("feedback_number", BigInteger, nullable=False),
    Column("saved_s", Float(53), nullable=False),
    Column("state", LargeBinary, nullable=False),
)
_COUNTERS = Table(
    "journal_counters", _METADATA, Column("name", String(32), primary_key=True), Column("value", BigInteger)
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Feedback that was not taken: its place among what was given, from 0, and why."""

    position: int
    trace_id: str
    error: FenixError


@dataclass(frozen=True, slots=True)
class Given:
    """What became of feedback: `new`, `repeated` word for word, `changed` because it says something else than before.

    Of the `n_refused` the first are told in `refused`.
    """

    new: int = 0
    repeated: int = 0
    changed: int = 0
    n_refused: int = 0
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Joined:
    """An outcome with feedback on it, and when that was received, since 1970.

    `before` is what was said before of the same output, where this replaces it, else None.
    """

    outcome: Outcome
    feedback: Feedback
    received_s: float
    before: Feedback | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Page:
    """Feedback in the order of its writing. Go on with `next_id`; while it is what was asked for, there is no more."""

    items: tuple[Joined, ...]
    next_id: int


@dataclass(frozen=True, slots=True, eq=False)
class ChunkPage:
    """Chunks in the order of their commits. Go on with `next_number`; while it is what was asked for, there is no
    more."""

    chunks: tuple[Chunk, ...]
    next_number: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a learner knew, all chunks and feedback up to these numbers, and when that was saved, since 1970."""

    state: bytes
    chunk_number: int
    feedback_number: int
    saved_s: float


@dataclass(frozen=True, slots=True)
class JournalFigures:
    """How much the journal holds; the times are None while it holds nothing."""

    n_chunks: int
    n_requests: int
    n_bytes: int
    n_feedback: int
    from_s: float | None
    to_s: float | None


class JournalStore:
    """The journal in a database. Methods may be called from several threads; each raises StoreUnavailable when the
    database fails, and then nothing of its last transaction was written."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._decoded = _DecodedChunks(MOST_DECODED_BYTES)
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)
            counters = [{"name": "feedback", "value": 0}, {"name": "chunks", "value": 0}]
            connection.execute(_ignoring(connection, _COUNTERS), counters)

    @property
    def engine(self) -> Engine:
        """The database, for what else is kept there."""
        return self._engine

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()

    def append(self, run: str, chunks: Sequence[bytes]) -> None:
        """Takes encoded chunks of a run. When this returns they are durable; doing it again changes nothing.

        Raises BrokenChunk, with nothing written, for bytes that are not a whole chunk of this run.
        """
        rows = []
        for body in chunks:
            head = head_of(body)
            if head.run != run:
                raise BrokenChunk(f"the chunk is of run {head.run}, not {run}")
            rows.append(
                {
                    "run": run,
                    "first_seq": head.first_seq,
                    "last_seq": head.last_seq,
                    "from_s": head.from_s,
                    "to_s": head.to_s,
                    "n_requests": head.n_requests,
                    "n_bytes": len(body),
                    "body": body,
                }
            )
        if rows:
            with transaction(self._engine) as connection:
                first = _numbers(connection, "chunks", len(rows))
                numbered = [{**row, "number": number} for number, row in enumerate(rows, first)]
                connection.execute(_ignoring(connection, _CHUNKS), numbered)

    def find(self, trace_id: str) -> Outcome | None:
        """What became of a request; None when the journal does not know it."""
        try:
            run, seq = split_trace_id(trace_id)
        except ValueError:
            return None
        with transaction(self._engine) as connection:
            chunk = self._chunk_with(connection, run, seq)
        return None if chunk is None else chunk.find(seq)

    def give(self, items: Iterable[Feedback], now_s: float, source: str = "") -> Given:
        """Takes feedback: item by item the good is stored and the bad told. `now_s` is since 1970.

        When this returns, what counts as new, repeated or changed is durable. If it raises, some of it may be; giving
        it again is safe. The same for the same output counts once; another truth, or rating, for it replaces the last.
        Refused is what is about an unknown request (RequestNotFound), somebody else's (NotYourRequest), or does not fit
        the answer (FeedbackRefused). Bounded in memory, however many items there are.
        """
        total = Given()
        begin = 0
        left = iter(items)
        while window := list(islice(left, SORTED_ROWS)):
            numbered = sorted(enumerate(window, begin), key=lambda one: one[1].trace_id)
            given = Given()
            for at in range(0, len(numbered), BATCH_ROWS):
                given = _sum(given, self._give(numbered[at : at + BATCH_ROWS], now_s, source))
            total = _sum(total, given)
            begin += len(window)
        return total

    def joined(self, since_id: int = 0, limit: int = 1_000, since_s: float | None = None) -> Page:
        """Outcomes with the feedback that was written after `since_id` (and received from `since_s` on), in the order
        of its writing. Looks at no more than `limit` of it; what is about forgotten requests is left out. Feedback that
        was changed comes again."""
        wanted = select(_FEEDBACK).where(_FEEDBACK.c.id > since_id).order_by(_FEEDBACK.c.id).limit(limit)
        if since_s is not None:
            wanted = wanted.where(_FEEDBACK.c.received_s >= since_s)
        return self._page(wanted, since_id)

    def feedback_after(self, number: int, limit: int = PAGE_FEEDBACK) -> Page:
        """As `joined`, for readers that go on where they were: what was changed since comes too as it was, each value
        in the order of its writing."""
        every = union_all(*[select(table).where(table.c.id > number) for table in (_FEEDBACK, _REPLACED)])
        return self._page(every.order_by(every.selected_columns.id).limit(limit), number)

    def chunks_after(self, number: int, limit: int = PAGE_CHUNKS) -> ChunkPage:
        """Chunks that were committed after the one of this number, in the order of their commits. Looks at no more than
        `limit`; damaged ones are passed over, with a word in the log."""
        wanted = (
            select(_CHUNKS.c.number, _CHUNKS.c.run, _CHUNKS.c.first_seq)
            .where(_CHUNKS.c.number > number)
            .order_by(_CHUNKS.c.number)
            .limit(limit)
        )
        found = []
        with transaction(self._engine) as connection:
            rows = connection.execute(wanted).all()
            for _, run, first_seq in rows:
                chunk = self._decoded.get((run, first_seq))
                if chunk is None:
                    try:
                        chunk = self._decode(connection, run, first_seq)
                    except StoreUnavailable as error:  # the chunk is damaged
                        _log.error("%s", error.message)
                if chunk is not None:
                    found.append(chunk)
        return ChunkPage(tuple(found), rows[-1].number if rows else number)

    def place(self, learner: str) -> Place | None:
        """What was last saved of a learner; None when nothing was."""
        columns = [_LEARNERS.c[f.name] for f in fields(Place)]
        with transaction(self._engine) as connection:
            row = connection.execute(select(*columns).where(_LEARNERS.c.name == learner)).one_or_none()
        return None if row is None else Place(bytes(row.state), row.chunk_number, row.feedback_number, row.saved_s)

    def save_place(self, learner: str, place: Place) -> None:
        """Replaces what was saved of a learner, all at once. When this returns it is durable."""
        values = {f.name: getattr(place, f.name) for f in fields(Place)}
        with transaction(self._engine) as connection:
            changed = connection.execute(update(_LEARNERS).where(_LEARNERS.c.name == learner).values(values))
            if not changed.rowcount:
                connection.execute(insert(_LEARNERS), [{"name": learner, **values}])

    def outcomes(self, from_s: float, to_s: float) -> Iterator[Chunk]:
        """All chunks with requests that were answered from `from_s` until before `to_s`, by their beginnings. One that
        is damaged is passed over, with a word in the log."""
        key = tuple_(_CHUNKS.c.from_s, _CHUNKS.c.run, _CHUNKS.c.first_seq)
        wanted = (
            select(_CHUNKS.c.from_s, _CHUNKS.c.run, _CHUNKS.c.first_seq, _CHUNKS.c.body)
            .where(_CHUNKS.c.from_s < to_s, _CHUNKS.c.to_s >= from_s)
            .order_by(_CHUNKS.c.from_s, _CHUNKS.c.run, _CHUNKS.c.first_seq)
            .limit(PAGE_CHUNKS)
        )
        page = wanted
        while True:
            with transaction(self._engine) as connection:
                rows = connection.execute(page).all()
            for row in rows:
                try:
                    chunk = Chunk.decode(bytes(row.body))
                except BrokenChunk as error:
                    _log.error("chunk %s of run %s is damaged: %s", row.first_seq, row.run, error)
                else:
                    yield chunk
            if len(rows) < PAGE_CHUNKS:
                return
            last = rows[-1]
            page = wanted.where(key > tuple_(last.from_s, last.run, last.first_seq))

    def forget(self, before_s: float) -> tuple[int, int]:
        """Drops chunks that ended, and feedback that was received, before `before_s`; returns how many of each. In
        many small transactions, so that others get their turn."""
        n_chunks = self._forget(_CHUNKS, _CHUNKS.c.to_s, before_s, FORGET_CHUNKS)
        self._forget(_REPLACED, _REPLACED.c.received_s, before_s, FORGET_ROWS)
        return n_chunks, self._forget(_FEEDBACK, _FEEDBACK.c.received_s, before_s, FORGET_ROWS)

    def figures(self) -> JournalFigures:
        """How much there is."""
        chunks = select(
            func.count(),
            func.coalesce(func.sum(_CHUNKS.c.n_requests), 0),
            func.coalesce(func.sum(_CHUNKS.c.n_bytes), 0),
            func.min(_CHUNKS.c.from_s),
            func.max(_CHUNKS.c.to_s),
        )
        with transaction(self._engine) as connection:
            n_chunks, n_requests, n_bytes, from_s, to_s = connection.execute(chunks).one()
            n_feedback = connection.execute(select(func.count()).select_from(_FEEDBACK)).scalar_one()
        return JournalFigures(n_chunks, int(n_requests), int(n_bytes), n_feedback, from_s, to_s)

    def _give(self, batch: Sequence[tuple[int, Feedback]], now_s: float, source: str) -> Given:
        """One transaction's worth, each with its place among all."""
        with transaction(self._engine) as connection:
            found = self._outcomes(connection, [item.trace_id for _, item in batch])
        rows: list[dict[str, Any]] = []
        refused = []
        for (position, item), outcome in zip(batch, found, strict=True):
            try:
                if isinstance(outcome, FenixError):
                    raise outcome
                rows.append(_row_of(item, judge(outcome, item).output, now_s, source))
            except FenixError as error:
                refused.append(Refusal(position, item.trace_id, error.with_traceback(None)))
        counts = self._write(rows) if rows else (0, 0, 0)
        return Given(*counts, len(refused), tuple(refused))

    def _write(self, rows: Sequence[dict[str, Any]]) -> tuple[int, int, int]:
        """Stores feedback; returns how many rows were new, repeated and changed."""
        new: dict[tuple[str, str, str], dict[str, Any]] = {}
        changed: dict[tuple[str, str, str], dict[str, Any]] = {}
        n_changed = 0
        with transaction(self._engine) as connection:
            first = _numbers(connection, "feedback", len(rows))
            stored = self._stored(connection, {row["trace_id"] for row in rows})
            known = {key: row["value"] for key, row in stored.items()}
            for id_, row in enumerate(rows, first):
                key = _key_of(row)
                if key not in known:
                    new[key] = {**row, "id": id_, "before": None}
                elif known[key] != row["value"]:
                    n_changed += 1
                    if key in new:
                        new[key] = {**row, "id": id_, "before": None}
                    else:
                        changed[key] = {**row, "id": id_, "before": stored[key]["value"]}
                known[key] = row["value"]
            if new:
                connection.execute(insert(_FEEDBACK), list(new.values()))
            if changed:
                connection.execute(insert(_REPLACED), [stored[key] for key in changed])
                connection.execute(_CHANGE, [_as_change(row) for row in changed.values()])
        return len(new), len(rows) - len(new) - n_changed, n_changed

    def _stored(self, connection: Connection, trace_ids: Iterable[str]) -> dict[tuple[str, str, str], dict[str, Any]]:
        """All feedback on these requests."""
        wanted = select(_FEEDBACK).where(_FEEDBACK.c.trace_id.in_(sorted(trace_ids)))
        rows = [dict(row) for row in connection.execute(wanted).mappings()]
        return {_key_of(row): row for row in rows}

    def _page(self, wanted: Select[Any] | CompoundSelect[Any], since_id: int) -> Page:
        """The feedback that is wanted, with its outcomes."""
        with transaction(self._engine) as connection:
            rows = connection.execute(wanted).mappings().all()
            found = self._outcomes(connection, [row["trace_id"] for row in rows])
        items = []
        for row, outcome in zip(rows, found, strict=True):
            if isinstance(outcome, Outcome):
                items.append(Joined(outcome, _feedback_of(row, row["value"]), row["received_s"], _before_of(row)))
        return Page(tuple(items), rows[-1]["id"] if rows else since_id)

    def _outcomes(self, connection: Connection, trace_ids: Sequence[str]) -> list[Outcome | FenixError]:
        """The outcome of each request, or why it cannot be had. They are looked up in the order of their numbers, so
        that each chunk is decoded once."""
        found: dict[int, Outcome | FenixError] = {}
        chunk: Chunk | None = None
        for position in sorted(range(len(trace_ids)), key=trace_ids.__getitem__):
            trace_id = trace_ids[position]
            run, seq = split_trace_id(trace_id)
            try:
                if chunk is None or chunk.head.run != run or seq not in chunk:
                    chunk = self._chunk_with(connection, run, seq)
                found[position] = (None if chunk is None else chunk.find(seq)) or _unknown(trace_id)
            except StoreUnavailable as error:  # the chunk is damaged; others may not be
                found[position] = error
        return [found[position] for position in range(len(trace_ids))]

    def _chunk_with(self, connection: Connection, run: str, seq: int) -> Chunk | None:
        """The chunk with this request, decoded."""
        rows = connection.execute(
            select(_CHUNKS.c.first_seq, _CHUNKS.c.last_seq)
            .where(_CHUNKS.c.run == run, _CHUNKS.c.first_seq <= seq)
            .order_by(_CHUNKS.c.first_seq.desc())
            .limit(OVERLAP)
        ).all()
        for first_seq, last_seq in rows:
            if last_seq >= seq:
                chunk = self._decoded.get((run, first_seq)) or self._decode(connection, run, first_seq)
                if chunk is not None and seq in chunk:
                    return chunk
        return None

    def _decode(self, connection: Connection, run: str, first_seq: int) -> Chunk | None:
        where = _CHUNKS.c.run == run, _CHUNKS.c.first_seq == first_seq
        body = connection.execute(select(_CHUNKS.c.body).where(*where)).scalar_one_or_none()
        if body is None:  # forgotten just now
            return None
        try:
            chunk = Chunk.decode(bytes(body))
        except BrokenChunk as error:
            raise StoreUnavailable(f"chunk {first_seq} of run {run} in the journal is damaged: {error}.") from None
        self._decoded.put((run, first_seq), chunk)
        return chunk

    def _forget(self, table: Table, time_s: Column[Any], before_s: float, most: int) -> int:
        n_gone = 0
        while True:
            old = time_s < before_s
            with transaction(self._engine) as connection:
                until_s = connection.execute(
                    select(time_s).where(old).order_by(time_s).offset(most).limit(1)
                ).scalar_one_or_none()
                gone = connection.execute(delete(table).where(old if until_s is None else time_s <= until_s))
            n_gone += gone.rowcount
            if until_s is None:
                return n_gone


class _DecodedChunks:
    """Chunks that were decoded lately, up to so many bytes. For several threads."""

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[str, int], Chunk] = OrderedDict()
        self._n_bytes = 0

    def get(self, key: tuple[str, int]) -> Chunk | None:
        with self._lock:
            chunk = self._kept.get(key)
            if chunk is not None:
                self._kept.move_to_end(key)
            return chunk

    def put(self, key: tuple[str, int], chunk: Chunk) -> None:
        with self._lock:
            if key not in self._kept:
                self._kept[key] = chunk
                self._n_bytes += chunk.n_bytes
            while self._n_bytes > self._most_bytes and len(self._kept) > 1:
                self._n_bytes -= self._kept.popitem(last=False)[1].n_bytes


def _numbers(connection: Connection, counter: str, n: int) -> int:
    """The first of `n` new numbers. To be asked for first of all in a transaction: it locks out other writers, so that
    the numbers are in the order of the commits."""
    this = _COUNTERS.c.name == counter
    connection.execute(update(_COUNTERS).where(this).values(value=_COUNTERS.c.value + n))
    last: int = connection.execute(select(_COUNTERS.c.value).where(this)).scalar_one()
    return last - n + 1


def _key_of(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["trace_id"], row["output"], row["kind"]


_KEY = ("trace_id", "output", "kind")
_CHANGING = ("id", "value", "about_s", "received_s", "user", "source", "before")
_CHANGE = (
    update(_FEEDBACK)
    .where(*(_FEEDBACK.c[name] == bindparam(f"old_{name}") for name in _KEY))
    .values({name: bindparam(f"new_{name}") for name in _CHANGING})
)


def _as_change(row: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{'old' if name in _KEY else 'new'}_{name}": value for name, value in row.items()}


def _row_of(item: Feedback, output: str, now_s: float, source: str) -> dict[str, Any]:
    truth = list(item.truth) if isinstance(item.truth, tuple) else item.truth
    return {
        "trace_id": item.trace_id,
        "output": output,
        "kind": item.kind,
        "value": item.rating if truth is None else truth,
        "about_s": item.about_s,
        "received_s": now_s,
        "user": item.user,
        "source": source[:64],
    }


def _before_of(row: RowMapping) -> Feedback | None:
    return None if row["before"] is None else _feedback_of(row, row["before"])


def _feedback_of(row: RowMapping, value: Any) -> Feedback:
    truth, rating = (None, float(value)) if row["kind"] == "rating" else (value, None)
    if isinstance(truth, list):
        truth = tuple(truth)
    return Feedback(row["trace_id"], row["output"], truth, rating, row["about_s"], row["user"])


def _unknown(trace_id: str) -> RequestNotFound:
    return RequestNotFound(
        f"the journal knows no request {trace_id}.",
        hint="It is written a second after the answer, and forgotten when it is old.",
    )


def _sum(a: Given, b: Given) -> Given:
    return Given(
        a.new + b.new,
        a.repeated + b.repeated,
        a.changed + b.changed,
        a.n_refused + b.n_refused,
        tuple(sorted((*a.refused, *b.refused), key=lambda refusal: refusal.position)[:MOST_TOLD]),
    )


def _ignoring(connection: Connection, table: Table) -> Any:
    """An insert that passes over rows whose primary key is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
