"""What Ray Serve runs for one extension version: the extension behind a thread, and the batches that come to it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray

from deployments.contract import ContractReport, check_contract
from deployments.extension import Extension, execute
from deployments.loading import load
from planner.calls import RemoteArray, join
from planner.cards import Card, LatencyProfile
from planner.errors import ExtensionUnavailable, FenixError
from planner.features import Array

BY_REFERENCE_BYTES = 1 << 20  # from here on an array travels through the object store instead of the call
HUNG_AFTER_S = 120.0  # a batch that takes longer than this makes the replica unhealthy: Serve replaces it
PROBE_ROWS = (1, 8, 32, 128)


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
Reply = tuple[dict[str, Array | StoredArray], Array | None, float] | FenixError


@dataclass(frozen=True, slots=True)
class Probe:
    """What a new replica finds out about its own extension before it gets traffic."""

    report: ContractReport
    profile: LatencyProfile  # inside the replica, without the way there


class Replica:
    """Hosts one extension version. One batch computes at a time, on a thread, so that the event loop stays awake for
    health checks and cancellation."""

    def __init__(self, card: Card, mlflow_uri: str, cache_dir: str) -> None:
        self._card = card
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=card.name)
        self._busy_since_s: float | None = None
        self._extension: Extension = load(card, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
        self._extension.setup()

    async def infer(self, parts: Mapping[str, Sequence[Array | StoredArray]]) -> Reply:
        """One batch: per port the arrays of the waiting requests, concatenated here."""
        try:
            rows = {port: await join(arrays) for port, arrays in parts.items()}
            return await asyncio.get_running_loop().run_in_executor(self._thread, self._compute, rows)
        except FenixError as error:
            error.__cause__ = error.__context__ = None
            return error.with_traceback(None)

    def _compute(self, rows: Mapping[str, Array]) -> Reply:
        started_s = self._busy_since_s = time.perf_counter()
        try:
            made = execute(self._extension, rows)
        finally:
            self._busy_since_s = None
        ran_ms = (time.perf_counter() - started_s) * 1e3
        confidence = next((rows.confidence for rows in made.values()), None)
        return {name: _stored_if_large(rows.values) for name, rows in made.items()}, confidence, ran_ms

    async def probe(self, seed: int) -> Probe | FenixError:
        """Runs the contract and measures the latency profile on the extension's own sample rows."""
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._thread, self._probe, np.random.default_rng(seed))
        except FenixError as error:
            return error.with_traceback(None)

    def _probe(self, rng: np.random.Generator) -> Probe:
        report = check_contract(self._extension, rng)
        most = self._card.resources.max_batch_rows
        profile = measure_profile(self._extension, [n for n in PROBE_ROWS if n <= most] or [1], rng)
        return Probe(report, profile)

    def check_health(self) -> None:
        """Called by Serve. Raises when a batch hangs, so that the replica is replaced."""
        since_s = self._busy_since_s
        if since_s is not None and time.perf_counter() - since_s > HUNG_AFTER_S:
            raise RuntimeError(f"{self._card.id} has been busy with one batch for over {HUNG_AFTER_S:.0f} s")


def measure_profile(
    extension: Extension, sizes: Sequence[int], rng: np.random.Generator, repeats: int = 7
) -> LatencyProfile:
    """Fits `fixed_ms + per_row_ms * n` to the median of `repeats` runs per batch size in `sizes`."""
    medians, ratios = [], []
    for n_rows in sizes:
        rows = extension.samples(n_rows, rng)
        execute(extension, rows)  # the first run pays for lazy initialisation
        took_ms = []
        for _ in range(repeats):
            started_s = time.perf_counter()
            execute(extension, rows)
            took_ms.append((time.perf_counter() - started_s) * 1e3)
        medians.append(float(np.median(took_ms)))
        ratios.append(max(took_ms) / max(medians[-1], 1e-6))
    if len(sizes) == 1:
        return LatencyProfile(medians[0], 0.0, p99_ratio=max(1.0, ratios[0]), n_calls=repeats)
    per_row_ms = max(0.0, float(np.polyfit(sizes, medians, 1)[0]))
    fixed_ms = max(0.0, float(np.median(np.array(medians) - per_row_ms * np.array(sizes))))
    return LatencyProfile(
        fixed_ms, per_row_ms, p99_ratio=max(1.0, float(np.median(ratios))), n_calls=len(sizes) * repeats
    )


def _stored_if_large(values: Array) -> Array | StoredArray:
    return values if values.nbytes < BY_REFERENCE_BYTES else StoredArray(ray.put(values), values)
