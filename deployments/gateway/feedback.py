"""The desk where feedback is given and outcomes are asked for, between the gateway's routes and the ledger.

A gateway writes its outcomes up to a second late, so a request that is not found is asked for again for a moment before
it counts as unknown. What is acknowledged here was committed by the ledger.
"""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

from deployments.gateway.uploads import MOST_ROWS, read_upload
from lineage.bulk import Format
from lineage.errors import FenixError, RequestNotFound
from lineage.feedback import Feedback
from lineage.journal import MOST_TOLD, Given, Refusal
from lineage.outcomes import Outcome, Setting, split_trace_id
from planner.choice.posteriors import Belief
from planner.errors import BodyTooLarge, Overloaded

MOST_DOCUMENTS = 10_000  # of JSON at once
MANY = 100  # from here on it is an upload, of which a few run at a time
MOST_UPLOADS = 4
MOST_WAITING = 256  # who wait for a request to be written
PIECE_ITEMS = 5_000  # to the ledger at once: pickling them holds up the event loop for 40 ms
GATHER_S, FLUSH_S = 0.05, 0.15
PAUSES_S = (0.0, 0.15, 0.4, 0.6, 0.65)  # 2 s with the flush, which takes the place of the first
SOURCE = "gateway"

Flush = Callable[[float], Awaitable[bool]]


class Ledger(Protocol):
    """What the desk needs of the ledger; see `deployments/ledger.py`."""

    async def find(self, trace_id: str) -> Outcome | None: ...

    async def feedback(self, items: Sequence[Feedback], source: str = "") -> Given: ...


class FeedbackDesk:
    """One per gateway process, for its event loop. Every method raises what the ledger raises, and Overloaded when too
    many want the same; giving feedback again is always safe."""

    def __init__(
        self,
        ledger: Ledger,
        flush: Flush,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        clock: Callable[[], float] = time.time,
        beliefs: Callable[[Setting], Mapping[str, Belief]] = lambda setting: {},
    ) -> None:
        """`flush` has the gateway's own recorder write what it has, within so many seconds. `clock` is since 1970.
        `beliefs` are about the plans that were considered for a request, as far as there are any."""
        self._ledger = ledger
        self._flush = flush
        self._sleep = sleep
        self._clock = clock
        self.beliefs = beliefs
        self._flushing: asyncio.Task[None] | None = None
        self._n_uploads = self._n_waiting = 0

    async def find(self, trace_id: str) -> Outcome:
        """What became of a request. Raises RequestNotFound."""
        trace_id = trace_id.lower()
        try:
            split_trace_id(trace_id)
        except ValueError as error:
            raise RequestNotFound(f"{error}.", hint="It has 32 hex digits; the answer's parameters have it.") from None
        pauses = iter(PAUSES_S)
        while (outcome := await self._ledger.find(trace_id)) is None:
            if not await self._waited(pauses):
                raise RequestNotFound(
                    f"the journal knows no request {trace_id}.", hint="It may have been forgotten since."
                )
        return outcome

    async def give(self, items: Sequence[Feedback]) -> Given:
        """Hands feedback to the ledger; see `JournalStore.give`."""
        with self._upload(len(items)):
            tally = _Tally()
            await self._give(items, range(len(items)), iter(PAUSES_S), tally)
            return tally.given()

    async def give_one(self, document: Any) -> Given:
        """Takes feedback as JSON has it. Raises what it is refused for."""
        given = await self.give([Feedback.parse(document, self._clock())])
        for refusal in given.refused:
            raise refusal.error
        return given

    async def give_documents(self, documents: Sequence[Any]) -> Given:
        """Takes a list as JSON has it: each that is wrong is refused, the others count. Raises BodyTooLarge for more
        than `MOST_DOCUMENTS`."""
        if len(documents) > MOST_DOCUMENTS:
            raise BodyTooLarge(
                f"{len(documents)} items of feedback at once.", hint=f"Send at most {MOST_DOCUMENTS}, or a file."
            )
        with self._upload(len(documents)):
            tally = _Tally()
            items, places = await asyncio.to_thread(_parsed, documents, self._clock(), tally)
            await self._give(items, places, iter(PAUSES_S), tally)
            return tally.given()

    async def give_file(self, body: bytes, format: Format) -> Given:
        """Takes a file of CSV or Parquet (`lineage/bulk.py`); the first row has position 0.

        Raises FeedbackRefused for a file that cannot be read to its end and BodyTooLarge for one with too many rows;
        the message says what was taken before.
        """
        with self._upload(MANY):
            tally, pauses, begin = _Tally(), iter(PAUSES_S), 0
            pieces = read_upload(body, format, self._clock(), MOST_ROWS)
            try:
                while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
                    for fault in piece.errors:
                        tally.refuse(fault.row - 1, "", fault.error)
                    tally.n_refused += piece.n_errors - len(piece.errors)
                    await self._give(piece.feedback, [row - 1 for row in piece.rows], pauses, tally)
                    begin += len(piece.feedback) + piece.n_errors
            except FenixError as error:
                if begin:
                    error.hint = f"Of {begin} rows before that {tally.said()}. {error.hint}".strip()
                raise
            finally:
                with suppress(ValueError):  # a thread still reads for a client that has left; then it ends with that
                    pieces.close()
            return tally.given()

    async def _give(
        self, items: Sequence[Feedback], places: Sequence[int], pauses: Iterator[float], tally: _Tally
    ) -> None:
        """Gives items that stand in these places of the upload."""
        for at in range(0, len(items), PIECE_ITEMS):
            given = await self._give_piece(items[at : at + PIECE_ITEMS], pauses)
            tally.add(given, places[at : at + PIECE_ITEMS])

    async def _give_piece(self, items: Sequence[Feedback], pauses: Iterator[float]) -> Given:
        given = await self._ledger.feedback(items, SOURCE)
        while (unknown := _perhaps_unknown(given, len(items))) and await self._waited(pauses):
            again = await self._ledger.feedback([items[k] for k in unknown], SOURCE)
            given = _after(given, unknown, again, len(items))
        return given

    async def _waited(self, pauses: Iterator[float]) -> bool:
        """Waits until asking again may help; False when that has been done often enough."""
        pause_s = next(pauses, None)
        if pause_s is None:
            return False
        if self._n_waiting >= MOST_WAITING:
            raise Overloaded(
                f"{self._n_waiting} wait for requests that the journal does not know.", hint="Retry.", retry_after_s=2.0
            )
        self._n_waiting += 1
        try:
            await (self._sleep(pause_s) if pause_s else self._flushed())
        finally:
            self._n_waiting -= 1
        return True

    async def _flushed(self) -> None:
        """Has the own recorder write what it has. Who comes at about the same time shares one, for each closes a chunk
        of the journal."""
        if self._flushing is None or self._flushing.done():
            self._flushing = asyncio.get_running_loop().create_task(
                self._flush_soon(), name="feedback-flush", context=contextvars.Context()
            )
        await asyncio.shield(self._flushing)

    async def _flush_soon(self) -> None:
        await self._sleep(GATHER_S)
        await self._flush(FLUSH_S)

    @contextmanager
    def _upload(self, n_items: int) -> Iterator[None]:
        """Raises Overloaded for many items while enough uploads run already."""
        if n_items < MANY:
            yield
            return
        if self._n_uploads >= MOST_UPLOADS:
            raise Overloaded(
                f"{self._n_uploads} uploads of feedback are under way.",
                hint="Nothing was taken; retry.",
                retry_after_s=2.0,
            )
        self._n_uploads += 1
        try:
            yield
        finally:
            self._n_uploads -= 1


class _Tally:
    """What became of an upload so far; positions are those in the upload."""

    def __init__(self) -> None:
        self.new = self.repeated = self.changed = self.n_refused = 0
        self._refused: list[Refusal] = []

    def add(self, given: Given, places: Sequence[int]) -> None:
        self.new += given.new
        self.repeated += given.repeated
        self.changed += given.changed
        self.n_refused += given.n_refused - len(given.refused)
        for refusal in given.refused:
            self.refuse(places[refusal.position], refusal.trace_id, refusal.error)

    def refuse(self, place: int, trace_id: str, error: FenixError) -> None:
        self.n_refused += 1
        self._refused.append(Refusal(place, trace_id, error))
        if len(self._refused) > 10 * MOST_TOLD:
            self._cut()

    def given(self) -> Given:
        self._cut()
        return Given(self.new, self.repeated, self.changed, self.n_refused, tuple(self._refused))

    def said(self) -> str:
        return f"{self.new} were new, {self.repeated} repeated, {self.changed} changed and {self.n_refused} refused"

    def _cut(self) -> None:
        self._refused = sorted(self._refused, key=lambda refusal: refusal.position)[:MOST_TOLD]


def _parsed(documents: Sequence[Any], now_s: float, tally: _Tally) -> tuple[list[Feedback], list[int]]:
    """The good ones with their places; the others are refused."""
    items, places = [], []
    for place, document in enumerate(documents):
        try:
            items.append(Feedback.parse(document, now_s))
            places.append(place)
        except FenixError as error:
            told = document.get("trace_id") if isinstance(document, Mapping) else None
            tally.refuse(place, told[:32] if isinstance(told, str) else "", error.with_traceback(None))
    return items, places


def _perhaps_unknown(given: Given, n_items: int) -> Sequence[int]:
    """Which items may be about requests that are not written yet: all, where not every refusal is told."""
    if given.n_refused > len(given.refused):
        return range(n_items)
    return [refusal.position for refusal in given.refused if isinstance(refusal.error, RequestNotFound)]


def _after(given: Given, positions: Sequence[int], again: Given, n_items: int) -> Given:
    """What became of `n_items`, those at `positions` having been given again. Where that were all of them, what counted
    before counts as repeated the second time, so only the sum tells how many were repeated at first."""
    new, changed = given.new + again.new, given.changed + again.changed
    given_again = set(positions)
    refused = [refusal for refusal in given.refused if refusal.position not in given_again]
    n_refused = again.n_refused + len(refused)
    refused += [Refusal(positions[r.position], r.trace_id, r.error) for r in again.refused]
    repeated = max(0, n_items - n_refused - new - changed)
    return Given(new, repeated, changed, n_refused, tuple(sorted(refused, key=lambda refusal: refusal.position)))
