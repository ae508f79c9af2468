"""A replica's own measurements, and the task that puts them on the board.

A replica that has something to do publishes every 500 ms; one that has nothing publishes that once, then sleeps until
work arrives or its heartbeat is due, so that many idle replicas cost next to nothing. Publishing is best effort: what
does not reach the board within its deadline is dropped, and the next envelope says it better.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import Protocol

import numpy as np
import numpy.typing as npt
import psutil

from planner.cards import Card
from planner.envelopes import EDGES, Confidences, Envelope, Window, count_confidence
from planner.errors import FenixError, StepFailed
from planner.features import Array

REFRESH_S = 0.5
BUSY_TTL_S = 3.0  # a busy replica that dies leaves the board this soon
HEARTBEAT_S = 10.0
IDLE_TTL_S = 25.0  # two heartbeats may be lost
DEADLINE_S = 2.0  # of one publication
WINDOW_S = 10.0

_log = logging.getLogger("fenix.vitals")


class Publisher(Protocol):
    """Where envelopes go: `BoardClient`, or a list in a test."""

    async def publish(self, envelope: Envelope, ttl_s: float) -> None:
        """Shows an envelope for `ttl_s`. Raises FenixError where the board does not take it."""


class Vitals:
    """Counts what one replica does. Its methods are called on the replica's event loop."""

    def __init__(self, card: Card, replica: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._card = card
        self._replica = replica
        self._clock = clock
        self._calls = Window(WINDOW_S)
        self._halves = [_no_counts(), _no_counts()]
        self._half = -1  # number of the newer
        self._rows_here = 0
        self.computing_rows = 0  # set by the thread that computes
        self._in_flight = 0
        self._process = psutil.Process()
        self._cpu_at = (clock(), time.process_time())
        self._gpu = _gpu_memory_share if card.resources.num_gpus > 0 else _no_gpu
        self.n_calls = 0  # ever
        self.work = asyncio.Event()  # set while there is or was something to tell

    @property
    def idle(self) -> bool:
        """Whether no call is here."""
        return self._in_flight == 0

    def arrived(self, n_rows: int) -> float:
        """A batch has come; the time that `answered` wants back. Each batch ends in `answered` or `left`."""
        self._in_flight += 1
        self._rows_here += n_rows
        self.n_calls += 1
        self.work.set()
        return self._clock()

    def answered(self, arrived_s: float, n_rows: int, confidence: Array | None) -> None:
        """The batch is done. `confidence` is that of its rows, (n_rows,), raw."""
        now_s = self._gone(n_rows)
        self._calls.succeeded(now_s, (now_s - arrived_s) * 1e3)
        if confidence is not None:
            self._turn(now_s)
            self._halves[1] += count_confidence(confidence)

    def left(self, n_rows: int, error: BaseException) -> None:
        """The batch ended in an error. Only what the extension did wrong counts against it, not what it was sent."""
        now_s = self._gone(n_rows)
        if isinstance(error, StepFailed):
            self._calls.failed(now_s)

    def _gone(self, n_rows: int) -> float:
        self._in_flight -= 1
        self._rows_here -= n_rows
        return self._clock()

    def envelope(self) -> Envelope:
        """The state of the replica now; its CPU share is that since the envelope before."""
        now_s, cpu_s = self._clock(), time.process_time()
        before_s, before_cpu_s = self._cpu_at
        self._cpu_at = (now_s, cpu_s)
        calls = self._calls.total(now_s)
        self._turn(now_s)
        return Envelope(
            extension=self._card.id,
            replica=self._replica,
            at_s=time.time(),
            queue_rows=max(0, self._rows_here - self.computing_rows),
            in_flight=self._in_flight,
            n_calls=calls.n_calls,
            n_failed=calls.n_failed,
            latency_mean_ms=calls.took_ms.mean if calls.took_ms.n else math.nan,
            latency_var_ms2=calls.took_ms.variance,
            confidences=Confidences(tuple((self._halves[0] + self._halves[1]).tolist())),
            cpu_share=(cpu_s - before_cpu_s) / (now_s - before_s) if now_s > before_s else 0.0,
            memory_mib=self._process.memory_info().rss / 2**20,
            gpu_share=self._gpu(),
            tags=self._card.may_see,
        )

    def _turn(self, now_s: float) -> None:
        """Confidences are kept in two halves of the window, so that those of long ago go."""
        number = int(now_s / (WINDOW_S / 2))
        if number > self._half:
            self._halves = [self._halves[1] if number == self._half + 1 else _no_counts(), _no_counts()]
            self._half = number


class Publishing:
    """The task that keeps a replica's envelope on the board. Whoever owns it asks `alive` in its health check."""

    def __init__(self, vitals: Vitals, board: Publisher) -> None:
        self._vitals = vitals
        self._board = board
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begins, on the running event loop."""
        # A context of its own: Serve cancels what the context of a request has started when the client goes away.
        self._task = asyncio.get_running_loop().create_task(
            self._publish(), name="publish-vitals", context=contextvars.Context()
        )

    @property
    def alive(self) -> bool:
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Ends the publishing; the envelope on the board runs out."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _publish(self) -> None:
        work = self._vitals.work
        while True:
            told = self._vitals.n_calls
            await self._tell(BUSY_TTL_S if work.is_set() else IDLE_TTL_S)
            await asyncio.sleep(REFRESH_S)
            if self._vitals.idle and self._vitals.n_calls == told:
                if work.is_set():  # the calls are over: once more, and for longer
                    work.clear()
                    continue
                try:
                    async with asyncio.timeout(HEARTBEAT_S - REFRESH_S):
                        await work.wait()
                except TimeoutError:
                    pass

    async def _tell(self, ttl_s: float) -> None:
        try:
            async with asyncio.timeout(DEADLINE_S):
                await self._board.publish(self._vitals.envelope(), ttl_s)
        except (FenixError, TimeoutError) as error:
            _log.debug("the board did not take an envelope: %r", error)


def _no_counts() -> npt.NDArray[np.intp]:
    return np.zeros(len(EDGES) + 1, np.intp)


def _no_gpu() -> float:
    return math.nan


def _gpu_memory_share() -> float:
    """Share of the memory of this process's GPU that is taken, by whomever; nan before torch uses one."""
    if "torch" not in sys.modules:
        return math.nan
    from torch import cuda

    if not cuda.is_initialized():  # type: ignore[no-untyped-call]  # asking would start it, which takes seconds
        return math.nan
    free, total = cuda.mem_get_info()
    return 1.0 - free / total
