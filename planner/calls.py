"""The seam between deciding and the cluster: how a batch of rows reaches an extension version and comes back.

`deployments/serve_calls.py` implements it over Ray Serve; `LocalCalls` runs functions in this process.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np

from planner.cards import ExtensionId
from planner.errors import ExtensionBroken, ExtensionRaised, ExtensionTimeout, ExtensionUnavailable, FenixError
from planner.features import Array, Rows


class RemoteArray(ABC):
    """Rows too large to travel through the gateway: they lie in an object store and are passed on by reference.

    Slicing by rows is free and gives another RemoteArray over the same object.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    def __len__(self) -> int:
        return self.shape[0]

    @abstractmethod
    def __getitem__(self, rows: slice) -> RemoteArray:
        """A view of `rows`, which has a start and a stop and no step."""

    @abstractmethod
    async def fetch(self) -> Array:
        """The rows themselves. Raises ExtensionUnavailable when the object is lost with its owner."""


# One batch: per input port, the arrays of the waiting requests in order, each (n_rows_i, *row shape). The callee
# concatenates them, so the gateway does not copy rows.
Part = Array | RemoteArray
Parts = Mapping[str, Sequence[Part]]


@dataclass(frozen=True, slots=True)
class Produced:
    """One output of a call, for the whole batch: like Rows, but the values may still lie in the object store."""

    values: Part
    confidence: Array | None = None


@dataclass(frozen=True, slots=True)
class Ran:
    """What one call brought back: output rows for the whole batch, the time inside the extension in ms, and whether
    it was sent a second time because the first took long."""

    outputs: Mapping[str, Produced]
    run_ms: float
    hedged: bool = False


class Calls(ABC):
    """Sends batches to extension versions. Implementations hold no rows after `infer` returns or raises, but for those
    of a second call that lost, until that ends."""

    @abstractmethod
    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        """Runs one batch. Inputs are not modified. Calls of the same `pair` that are under way at the same time go to
        different replicas, where there are several.

        Raises ExtensionTimeout after `timeout_s`, ExtensionRaised, ExtensionBroken or ExtensionUnavailable.
        Cancelling the task cancels the call as far as the transport can.
        """


class LocalCalls(Calls):
    """Extensions as plain functions in this process, each call on a thread. For tests and for use as a library."""

    def __init__(self, functions: Mapping[ExtensionId, Callable[[dict[str, Array]], Mapping[str, Rows]]]) -> None:
        self._functions = functions

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        function = self._functions.get(extension)
        if function is None:
            raise ExtensionUnavailable(f"{extension} is not deployed.")
        rows = {port: await join(arrays) for port, arrays in parts.items()}
        started_s = perf_counter()
        try:
            async with asyncio.timeout(timeout_s):
                outputs = await asyncio.to_thread(function, rows)
        except TimeoutError:
            raise ExtensionTimeout(f"{extension} passed its budget of {timeout_s * 1e3:.0f} ms.") from None
        except FenixError:
            raise
        except Exception as error:
            raise ExtensionRaised(f"{extension} raised {type(error).__name__}: {error}") from error
        produced = {name: Produced(rows.values, rows.confidence) for name, rows in outputs.items()}
        return Ran(produced, (perf_counter() - started_s) * 1e3)


def concatenated(extension: ExtensionId, arrays: Sequence[Array]) -> Array:
    """One array of all the rows. Raises ExtensionBroken, naming who gave them, when rows differ in shape."""
    try:
        return np.concatenate(arrays)
    except ValueError:
        shapes = ", ".join(sorted({str(list(array.shape[1:])) for array in arrays}))
        raise ExtensionBroken(
            f"{extension} gives rows of different shapes ({shapes}) for one request.",
            hint="Rows of one request have one shape: pad them, or send them one by one.",
        ) from None


async def local(part: Part) -> Array:
    """The rows of a part in this process."""
    return await part.fetch() if isinstance(part, RemoteArray) else part


async def join(parts: Sequence[Part]) -> Array:
    """One array of all the rows, in order; no copy when there is a single local part."""
    arrays = [await local(part) for part in parts]
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
