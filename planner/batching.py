"""Batching: rows of many requests that need the same extension version travel as one call.

One `Batcher` per extension version holds a bounded queue. The policy is simple: a call starts at once while fewer
than `max_in_flight` are under way (an idle extension never waits); what arrives meanwhile goes together in the
next call. A batch that fails is split in halves down to the guilty request, so that neighbours keep their answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter  # uvloop's own clock counts whole milliseconds: good for deadlines only

import numpy as np

from planner.calls import Calls, Part, Produced, concatenated, local
from planner.cards import Card, ExtensionId
from planner.errors import BadRequest, ExtensionBroken, ExtensionRaised, ExtensionTimeout, FenixError, Overloaded
from planner.tokens import Token

# Extension, rows of the call, thousands of elements in inputs of free size, ms it took seen from here.
Observe = Callable[[ExtensionId, int, float, float], None]


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one extension's queue; what waits counts, not what is under way."""

    max_rows: int = 256
    max_waiting_rows: int = 65_536
    max_waiting_bytes: int = 256 << 20
    max_in_flight: int = 1


@dataclass(frozen=True, slots=True)
class Done:
    """A request's share of a call: its own rows, the size of the whole batch, and the times in ms."""

    outputs: Mapping[str, Produced]
    batch_rows: int
    waited_ms: float
    ran_ms: float


@dataclass(slots=True, eq=False)
class _Waiting:
    inputs: Mapping[str, Part]
    n_rows: int
    shapes: tuple[tuple[int, ...], ...]  # only rows of equal shape can lie in one array
    until_s: float  # on the event loop's clock
    since_s: float  # on perf_counter
    future: asyncio.Future[Done]
    n_bytes: int = 0
    timer: asyncio.TimerHandle | None = None
    batch: list[_Waiting] = field(default_factory=list)  # what it travels with, once it is on its way
    call: asyncio.Task[None] | None = None


class Batcher:
    """The queue before one extension version. Belongs to one event loop; not thread-safe."""

    def __init__(
        self,
        extension: ExtensionId,
        calls: Calls,
        limits: BatchLimits,
        observe: Observe,
        free_ports: Sequence[str] = (),
    ) -> None:
        self._extension = extension
        self._free_ports = free_ports
        self._calls = calls
        self._limits = limits
        self._observe = observe
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Waiting] = deque()
        self._waiting_rows = 0
        self._waiting_bytes = 0
        self._running: set[asyncio.Task[None]] = set()

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        """Runs these rows, together with others, before `until_s` (event loop time; None: the token's deadline).

        Raises Overloaded when the queue is full, ExtensionTimeout at `until_s`, and what the call raises. When the
        caller is cancelled its rows are dropped from the queue, or their result is thrown away.
        """
        until_s = token.until_s if until_s is None else until_s
        if n_rows > self._limits.max_rows:
            return await self._submit_in_pieces(inputs, n_rows, token, until_s)
        n_bytes = sum(part.nbytes for part in inputs.values() if isinstance(part, np.ndarray))
        self._check_room(n_rows, n_bytes)
        shapes = tuple(part.shape[1:] for part in inputs.values())
        item = _Waiting(inputs, n_rows, shapes, until_s, perf_counter(), self._loop.create_future(), n_bytes)
        item.timer = self._loop.call_at(until_s, self._expire, item)
        self._queue.append(item)
        self._waiting_rows += n_rows
        self._waiting_bytes += n_bytes
        self._pump()
        try:
            return await item.future
        except BaseException:
            self._leave(item)
            raise
        finally:
            item.timer.cancel()

    def _check_room(self, n_rows: int, n_bytes: int) -> None:
        rows, most_rows = self._waiting_rows, self._limits.max_waiting_rows
        size, most = self._waiting_bytes, self._limits.max_waiting_bytes
        if rows + n_rows > most_rows or (size and size + n_bytes > most):
            raise Overloaded(
                f"{self._extension} has {rows} rows waiting of {most_rows} at most, {size >> 20} of {most >> 20} MiB.",
                hint="Send less at once, or give the extension more replicas.",
            )

    def _leave(self, item: _Waiting) -> None:
        """Lets go of the rows of a request that nobody waits for; a call that only such requests wait for is ended."""
        if item.call is None:
            if item in self._queue:
                self._queue.remove(item)
                self._forget(item)
        elif not item.call.done() and all(other.future.done() for other in item.batch):
            item.call.cancel()

    def _forget(self, item: _Waiting) -> None:
        self._waiting_rows -= item.n_rows
        self._waiting_bytes -= item.n_bytes

    async def _submit_in_pieces(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float) -> Done:
        pieces: list[Done] = []
        step = self._limits.max_rows
        # A window of pieces at a time: enough to keep every slot busy, little enough to leave room for others.
        window = step * self._limits.max_in_flight
        for start in range(0, n_rows, window):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self.submit(
                                _cut(inputs, at, min(at + step, n_rows)), min(step, n_rows - at), token, until_s
                            )
                        )
                        for at in range(start, min(start + window, n_rows), step)
                    ]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            pieces += [task.result() for task in tasks]
        outputs: dict[str, Produced] = {}
        for name in pieces[0].outputs:
            values = concatenated(self._extension, [await local(piece.outputs[name].values) for piece in pieces])
            sure = [piece.outputs[name].confidence for piece in pieces]
            outputs[name] = Produced(values, None if any(c is None for c in sure) else np.concatenate(sure))  # type: ignore[arg-type]
        return Done(outputs, max(p.batch_rows for p in pieces), pieces[0].waited_ms, sum(p.ran_ms for p in pieces))

    def _pump(self) -> None:
        while self._queue and len(self._running) < self._limits.max_in_flight:
            batch = self._take()
            if not batch:
                return
            # A context of its own: Serve cancels whatever a request's context started when that client leaves,
            # and this call belongs to several clients.
            task = self._loop.create_task(self._run(batch), context=contextvars.Context())
            for item in batch:
                item.batch, item.call = batch, task
            self._running.add(task)
            task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._running.discard(task)
        self._pump()

    def _take(self) -> list[_Waiting]:
        """The next batch: from the head of the queue, rows of one shape, skipping those nobody waits for."""
        batch: list[_Waiting] = []
        n_rows = 0
        while self._queue:
            item = self._queue[0]
            if item.future.done():
                self._forget(self._queue.popleft())
                continue
            if batch and (n_rows + item.n_rows > self._limits.max_rows or item.shapes != batch[0].shapes):
                break
            batch.append(self._queue.popleft())
            n_rows += item.n_rows
            self._forget(item)
        return batch

    async def _run(self, batch: list[_Waiting]) -> None:
        try:
            await self._call(batch)
        except asyncio.CancelledError:
            for item in batch:
                item.future.cancel()
            raise
        except Exception as error:  # whatever happens, nobody may wait for ever
            failure = error if isinstance(error, FenixError) else ExtensionRaised(f"{self._extension}: {error!r}")
            for item in batch:
                if not item.future.done():
                    item.future.set_exception(failure)

    async def _call(self, batch: list[_Waiting]) -> None:
        started_s = perf_counter()
        n_rows = sum(item.n_rows for item in batch)
        parts = {port: [item.inputs[port] for item in batch] for port in batch[0].inputs}
        timeout_s = max(item.until_s for item in batch) - self._loop.time()
        try:
            ran = await self._calls.infer(self._extension, parts, timeout_s)
        except (ExtensionRaised, ExtensionBroken, BadRequest):
            waiting = [item for item in batch if not item.future.done()]
            if len(batch) == 1 or not waiting:
                raise
            half = len(batch) // 2
            await self._run(batch[:half])
            await self._run(batch[half:])
            return
        kilo = sum(math.prod(part.shape) for port in self._free_ports for part in parts[port]) / 1e3
        self._observe(self._extension, n_rows, kilo, (perf_counter() - started_s) * 1e3)
        start = 0
        for item in batch:
            stop = start + item.n_rows
            if not item.future.done():
                outputs = ran.outputs if len(batch) == 1 else _share(ran.outputs, start, stop)
                waited_ms = (started_s - item.since_s) * 1e3
                item.future.set_result(Done(outputs, n_rows, waited_ms, ran.run_ms))
            start = stop

    def _expire(self, item: _Waiting) -> None:
        if not item.future.done():
            waited_ms = (perf_counter() - item.since_s) * 1e3
            item.future.set_exception(ExtensionTimeout(f"{self._extension} did not answer within {waited_ms:.0f} ms."))


class Batchers:
    """One Batcher per extension version, made when first needed."""

    def __init__(self, calls: Calls, observe: Observe = lambda extension, n_rows, kilo, took_ms: None) -> None:
        self._calls = calls
        self._observe = observe
        self._by_extension: dict[ExtensionId, Batcher] = {}

    def of(self, card: Card) -> Batcher:
        batcher = self._by_extension.get(card.id)
        if batcher is None:
            # One call under way per replica. A second would hide the way there behind the computing, but it halves
            # the batches: the chain of three at 128 connections made 2,700 requests a second with one, 1,900 with two.
            slots = card.resources.max_replicas
            limits = BatchLimits(max_rows=card.resources.max_batch_rows, max_in_flight=slots)
            batcher = self._by_extension[card.id] = Batcher(
                card.id, self._calls, limits, self._observe, card.free_ports
            )
        return batcher

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets the queues of extensions that are gone; what is in them still runs to its end."""
        for id_ in [id_ for id_ in self._by_extension if id_ not in extensions]:
            del self._by_extension[id_]


def _cut(inputs: Mapping[str, Part], start: int, stop: int) -> dict[str, Part]:
    return {port: part[start:stop] for port, part in inputs.items()}


def _share(outputs: Mapping[str, Produced], start: int, stop: int) -> dict[str, Produced]:
    return {
        name: Produced(made.values[start:stop], None if made.confidence is None else made.confidence[start:stop])
        for name, made in outputs.items()
    }
