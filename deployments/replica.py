"""What Ray Serve runs for one extension version: the extension behind a thread, and the batches that come to it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import ray
from ray import serve

from deployments.board import BoardClient
from deployments.contract import check_contract
from deployments.extension import Extension, execute
from deployments.loading import load
from deployments.vitals import Publishing, Vitals
from planner.calls import RemoteArray, join
from planner.cards import Card
from planner.errors import ContractBroken, ExtensionUnavailable, FenixError
from planner.features import Array

BY_REFERENCE_BYTES = 1 << 20  # from here on an array travels through the object store instead of the call
HUNG_AFTER_S = 120.0  # a batch that takes longer than this makes the replica unhealthy: Serve replaces it

T = TypeVar("T")


class StoredArray(RemoteArray):
    """Rows in Ray's object store. Travels by reference; whoever computes on it fetches it once."""

    def __init__(self, ref: ray.ObjectRef[Any], array: Array) -> None:
        self._ref = ref
        self._start = 0
        self.shape = array.shape
        self.dtype = array.dtype

    def __getitem__(self, rows: slice) -> StoredArray:
        start, stop, _ = rows.indices(self.shape[0])
        view: StoredArray = object.__new__(StoredArray)
        view._ref = self._ref
        view._start = self._start + start
        view.shape = (stop - start, *self.shape[1:])
        view.dtype = self.dtype
        return view

    async def fetch(self) -> Array:
        try:
            whole: Array = await self._ref
        except ray.exceptions.RayError as error:
            raise ExtensionUnavailable(
                f"an intermediate result was lost with its replica ({type(error).__name__}).", hint="Send it again."
            ) from None
        return whole[self._start : self._start + self.shape[0]]


# What `Replica.infer` returns: outputs by name, the confidence per row, the time inside the extension in ms; or the
# error as a value, which is cheaper than raising through Serve and carries no trace to the client.
Computed = tuple[dict[str, Array | StoredArray], Array | None, float]
Reply = Computed | FenixError


class Replica:
    """Hosts one extension version. One batch computes at a time, on a thread, so that the event loop stays awake for
    health checks and cancellation."""

    def __init__(self, card: Card, mlflow_uri: str, cache_dir: str) -> None:
        self._card = card
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=card.name)
        self._busy_since_s: float | None = None
        self._name = serve.get_replica_context().replica_id.unique_id
        self._vitals = Vitals(card, self._name)
        self._board = BoardClient()
        self._publishing = Publishing(self._vitals, self._board)
        self._extension: Extension = load(card, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
        self._extension.setup()
        self._publishing.start()

    async def infer(
        self, parts: Mapping[str, Sequence[Array | StoredArray]], by_reference: bool, pair: str = ""
    ) -> Reply:
        """One batch: per port the arrays of the waiting requests, concatenated here.

        `by_reference` allows large outputs to stay in the object store; `pair` is for the router (`routing.py`).
        """
        n_rows = sum(len(array) for array in next(iter(parts.values()), ()))
        arrived_s = self._vitals.arrived(n_rows)
        try:
            rows = {port: await join(arrays) for port, arrays in parts.items()}
            outputs, confidence, ran_ms = await self._on_thread(lambda: self._compute(rows, n_rows, by_reference))
        except FenixError as error:
            self._vitals.left(n_rows, error)
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)
        except BaseException as error:
            self._vitals.left(n_rows, error)
            raise
        self._vitals.answered(arrived_s, n_rows, confidence)
        return outputs, confidence, ran_ms

    def _compute(self, rows: Mapping[str, Array], n_rows: int, by_reference: bool) -> Computed:
        started_s = self._busy_since_s = time.perf_counter()
        self._vitals.computing_rows = n_rows
        try:
            made = execute(self._extension, rows)
        finally:
            self._busy_since_s = None
            self._vitals.computing_rows = 0
        ran_ms = (time.perf_counter() - started_s) * 1e3
        confidence = next((rows.confidence for rows in made.values()), None)
        outputs = {name: _stored_if_large(r.values) if by_reference else r.values for name, r in made.items()}
        return outputs, confidence, ran_ms

    async def check(self, seed: int) -> FenixError | None:
        """Runs the behaviour contract on sample rows; the error that says what is broken, None when it holds."""
        try:
            rng = np.random.default_rng(seed)
            report = await self._on_thread(lambda: check_contract(self._extension, rng))
        except FenixError as error:
            return error.with_traceback(None)
        if report.passed:
            return None
        broken = " ".join(f"{check.name}: {check.reason}" for check in report.failures)
        return ContractBroken(f"{self._card.id} does not behave as an extension must. {broken}")

    async def samples(self, n_rows: int, seed: int) -> dict[str, Array]:
        """Sample rows as the extension makes them."""
        return await self._on_thread(lambda: self._extension.samples(n_rows, np.random.default_rng(seed)))

    async def _on_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def check_health(self) -> None:
        """Called by Serve, which replaces the replica when this raises: a batch hangs, or nobody sees how it fares."""
        if not self._publishing.alive:
            raise RuntimeError(f"the task that publishes how {self._card.id} fares has ended")
        since_s = self._busy_since_s
        if since_s is not None and time.perf_counter() - since_s > HUNG_AFTER_S:
            raise RuntimeError(f"{self._card.id} has been busy with one batch for over {HUNG_AFTER_S:.0f} s")

    async def __del__(self) -> None:
        """Called by Serve when the replica ends."""
        await self._publishing.stop()
        await self._on_thread(self._extension.close)
        with contextlib.suppress(FenixError):  # it runs out there anyway
            await self._board.withdraw(self._name)


def _stored_if_large(values: Array) -> Array | StoredArray:
    return values if values.nbytes < BY_REFERENCE_BYTES else StoredArray(ray.put(values), values)
