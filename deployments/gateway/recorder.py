"""The recorder: takes what became of requests off the gateway's hands, and brings it to the journal in the background.

Groups are gathered for a second or some thousands of requests, then encoded on a thread and written.
While writing fails, encoded chunks wait in memory, beyond that on disk, and only when that is nearly full are requests
left out; how many, the figures say.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deployments.gateway.spool import Spool
from lineage.chunks import ChunkBuilder, StepNumbers, head_of
from lineage.outcomes import Array, Setting

MOST_GATHERED = 16  # chunks that wait to be encoded; more would say that the thread does not keep up
WRITE_CHUNKS, WRITE_BYTES = 16, 4 << 20  # in one call
PAUSES_S = (0.1, 5.0)  # after a write that failed: at first, and at most
RESERVE = 0.75  # of the last room, from which on only every k-th group is recorded
_NOTHING: Mapping[str, Array] = {}
_log = logging.getLogger("fenix.recorder")

# Run, encoded chunks: returns when they are durable; may raise, and doing it again is safe.
Write = Callable[[str, Sequence[bytes]], Awaitable[None]]
OnThread = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(frozen=True, slots=True)
class Recording:
    """How the recorder records: a chunk is closed after `interval_s`, `chunk_requests` or `chunk_bytes` of arrays;
    `memory_bytes` and `spool_bytes` may wait; a write may take `write_timeout_s`; when there is hardly any room, one
    group of `every` is recorded."""

    interval_s: float = 1.0
    chunk_requests: int = 16_384
    chunk_bytes: int = 8 << 20
    memory_bytes: int = 32 << 20
    spool_bytes: int = 1 << 30
    write_timeout_s: float = 10.0
    every: int = 16


@dataclass(frozen=True, slots=True)
class RecorderFigures:
    """Requests that were `added`, are `written`, were `lost`, mostly because there was no room: the others wait. Bytes
    that wait in memory and on disk (those that other runs left there too). What the last write failed for, empty while
    all is well."""

    run: str
    added: int
    written: int
    lost: int
    memory_bytes: int
    spool_bytes: int
    failing: str


class Recorder:
    """One per gateway process. All methods belong to its event loop."""

    def __init__(
        self,
        write: Write,
        folder: Path | None = None,
        settings: Recording = Recording(),
        *,
        run: str = "",
        on_thread: OnThread = asyncio.to_thread,
    ) -> None:
        """`folder` is for what waits on disk, None for none; several gateways may share it. `run` is random unless it
        is given."""
        self.run = run or secrets.token_hex(10)
        self._write = write
        self._folder = folder
        self._settings = settings
        self._on_thread = on_thread
        self._next = 0
        self._builder = ChunkBuilder(self.run)
        self._gathered: deque[ChunkBuilder] = deque()
        self._memory: deque[tuple[bytes, int]] = deque()  # with the number of requests
        self._memory_bytes = 0
        self._spool: Spool | None = None
        self._spool_bytes = 0
        self._timer: asyncio.TimerHandle | None = None
        self._to_encode, self._to_write, self._moved = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._thin = self._closed = False
        self._turn = 0  # of those that are left out while there is hardly any room
        self._n_closed = self._n_settled = 0  # chunks of this run
        self._n_left_out = self._n_taken = self._n_written = self._n_lost = 0  # requests
        self._failing = ""

    def start(self) -> None:
        """Begins to write, first what earlier processes left on disk. Call it once, on the event loop."""
        loop = asyncio.get_running_loop()
        self._tasks = tuple(
            loop.create_task(work, name=name, context=contextvars.Context())
            for name, work in (("recorder-encode", self._encode_all()), ("recorder-write", self._write_all()))
        )

    def health(self) -> None:
        """Raises RuntimeError when nobody records any more; for the health check of the owner."""
        if not self._tasks:
            raise RuntimeError("the recorder was not started")
        for task in self._tasks:
            if task.done():
                error = None if task.cancelled() else task.exception()
                raise RuntimeError(f"{task.get_name()} has ended") from error

    def next(self, n: int) -> int:
        """Takes `n` numbers for requests; returns the first. Take them in the turn of the loop in which you `add`: then
        the ranges of chunks do not overlap."""
        first = self._next
        self._next = first + n
        return first

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
        """See `ChunkBuilder.add`. Never raises: a group that does not fit together is lost, with a word in the log."""
        if self._thin or self._closed:
            self._turn += 1
            if self._closed or self._turn % self._settings.every:
                self._n_left_out += len(latencies_ms)
                return
        builder = self._builder
        try:
            builder.add(setting, seqs, at_s, latencies_ms, n_rows, confidences, steps, outputs, inputs)
        except (ValueError, TypeError, AttributeError) as error:
            _log.error("a group of %s was not recorded: %s", setting.model, error)
            self._n_left_out += len(latencies_ms)
            return
        if builder.n_requests >= self._settings.chunk_requests or builder.n_bytes >= self._settings.chunk_bytes:
            self._swap()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(
                self._settings.interval_s, self._swap, context=contextvars.Context()
            )

    def figures(self) -> RecorderFigures:
        """How it goes."""
        return RecorderFigures(
            self.run,
            self._n_taken + self._builder.n_requests + self._n_left_out,
            self._n_written,
            self._n_lost + self._n_left_out,
            self._memory_bytes,
            self._spool_bytes,
            self._failing,
        )

    async def flush(self, timeout_s: float) -> bool:
        """Writes all that was added until now; whether that was done in time."""
        self._swap()
        until = self._n_closed
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._n_settled < until:
                    self._moved.clear()
                    await self._moved.wait()
        return self._n_settled >= until

    async def close(self, timeout_s: float) -> None:
        """Records nothing more and writes what there is; what is not written in time goes to disk, for the next
        process, and is lost where there is none."""
        await self.flush(timeout_s)
        self._swap()
        self._closed = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._folder is not None and self._spool is None:
            await self._open()
        while self._memory:
            chunk, n = self._memory.popleft()
            if not await self._to_disk(chunk):
                self._lose(n)
        while self._gathered:
            builder = self._gathered.popleft()
            chunk = await self._encoded(builder)
            if chunk and not await self._to_disk(chunk):
                self._lose(builder.n_requests)
        self._memory_bytes = 0
        self._look_at_room()
        if self._spool is not None:
            await self._on_thread(self._spool.close)

    def _swap(self) -> None:
        """Closes the chunk that is being gathered."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        builder = self._builder
        if not builder.n_requests:
            return
        self._builder = ChunkBuilder(self.run)
        self._n_taken += builder.n_requests
        if len(self._gathered) >= MOST_GATHERED:
            self._n_lost += builder.n_requests
            return
        self._gathered.append(builder)
        self._n_closed += 1
        self._to_encode.set()

    async def _encode_all(self) -> None:
        """Encodes one chunk after the other, and keeps it until it is written."""
        await self._open()
        self._to_write.set()
        while True:
            await self._to_encode.wait()
            self._to_encode.clear()
            while self._gathered:
                builder = self._gathered[0]
                chunk = await self._encoded(builder)
                if chunk:
                    await self._keep(chunk, builder.n_requests)
                self._gathered.popleft()

    async def _encoded(self, builder: ChunkBuilder) -> bytes:
        """The chunk; empty, and lost, when it cannot be."""
        try:
            return bytes(await self._on_thread(builder.encode))
        except Exception:
            _log.exception("a chunk of the journal could not be encoded")
            self._lose(builder.n_requests)
            return b""

    async def _keep(self, chunk: bytes, n: int) -> None:
        """Holds a chunk until it is written: in memory, behind that on disk; where there is no room it is lost."""
        fits = self._memory_bytes + len(chunk) <= self._settings.memory_bytes
        behind = self._spool is not None and self._spool.has_own
        if (behind or not fits) and await self._to_disk(chunk):
            pass
        elif fits:
            self._memory.append((chunk, n))
            self._memory_bytes += len(chunk)
        else:
            self._lose(n)
        self._look_at_room()
        self._to_write.set()

    async def _to_disk(self, chunk: bytes) -> bool:
        """Spools a chunk; False where that is impossible."""
        if self._spool is None:
            return False
        try:
            return bool(await self._on_thread(self._spool.append, chunk))
        except OSError as error:
            self._failed(f"the spool: {error}")
            return False

    async def _write_all(self) -> None:
        """Writes what waits, the oldest first: what earlier runs left on disk, then from memory, then from disk."""
        pause_s = PAUSES_S[0]
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            while True:
                try:
                    waiting = await self._front()
                    if waiting is None:
                        break
                    run, chunks, spooled = waiting
                    async with asyncio.timeout(self._settings.write_timeout_s):
                        await self._write(run, chunks)
                except Exception as error:
                    self._failed(f"{type(error).__name__}: {error}")
                    await asyncio.sleep(pause_s)
                    pause_s = min(PAUSES_S[1], 2.0 * pause_s)
                    continue
                pause_s = PAUSES_S[0]
                self._failing = ""
                await self._wrote(run, chunks, spooled)

    async def _front(self) -> tuple[str, list[bytes], bool] | None:
        """The run and the chunks to be written next, and whether they lie on disk."""
        spool = self._spool
        if self._memory and not (spool is not None and spool.has_others):
            chunks: list[bytes] = []
            n_bytes = 0
            for chunk, _ in self._memory:
                if chunks and (len(chunks) >= WRITE_CHUNKS or n_bytes + len(chunk) > WRITE_BYTES):
                    break
                chunks.append(chunk)
                n_bytes += len(chunk)
            return self.run, chunks, False
        if spool is None:
            return None
        found = await self._on_thread(spool.front, WRITE_BYTES)
        self._look_at_room()
        return None if found is None else (*found, True)

    async def _wrote(self, run: str, chunks: Sequence[bytes], spooled: bool) -> None:
        if spooled and self._spool is not None:
            await self._on_thread(self._spool.done, len(chunks))
            if run == self.run:
                self._n_written += sum([head_of(chunk).n_requests for chunk in chunks])
        else:
            for chunk in chunks:
                self._n_written += self._memory.popleft()[1]
                self._memory_bytes -= len(chunk)
        if run == self.run:
            self._n_settled += len(chunks)
            self._moved.set()
        self._look_at_room()

    async def _open(self) -> None:
        if self._folder is not None:
            try:
                self._spool = await self._on_thread(Spool, self._folder, self.run, self._settings.spool_bytes)
            except OSError as error:
                _log.error("nothing can be spooled in %s: %s", self._folder, error)
        self._look_at_room()

    def _look_at_room(self) -> None:
        if self._spool is not None:
            self._spool_bytes = self._spool.n_bytes
            thin = self._spool_bytes > RESERVE * self._settings.spool_bytes
        else:
            thin = self._memory_bytes > RESERVE * self._settings.memory_bytes
        if thin and not self._thin:
            _log.warning("hardly any room for the journal: one group of %d is recorded", self._settings.every)
        self._thin = thin

    def _lose(self, n: int) -> None:
        self._n_lost += n
        self._n_settled += 1
        self._moved.set()

    def _failed(self, why: str) -> None:
        if not self._failing:
            _log.warning("the journal cannot be written: %s", why)
        self._failing = why
