"""The seam between deciding and the cluster: how a batch of rows reaches an extension version and comes back.

`deployments/serve_calls.py` implements it over Ray Serve; `LocalCalls` runs functions in this process.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from planner.cards import ExtensionId
from planner.errors import ExtensionRaised, ExtensionTimeout, ExtensionUnavailable, FenixError
from planner.features import Array, Rows

# One batch: per input port, the arrays of the waiting requests in order, each (n_rows_i, *row shape). The callee
# concatenates them, so the gateway does not copy rows.
Parts = Mapping[str, Sequence[Array]]
Infer = Callable[[dict[str, Array]], dict[str, Rows]]


@dataclass(frozen=True, slots=True)
class Ran:
    """What one call brought back: output rows for the whole batch, and the time inside the extension in ms."""

    outputs: Mapping[str, Rows]
    run_ms: float


class Calls(ABC):
    """Sends batches to extension versions. Implementations hold no rows after `infer` returns or raises."""

    @abstractmethod
    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float) -> Ran:
        """Runs one batch. Inputs are not modified.

        Raises ExtensionTimeout after `timeout_s`, ExtensionRaised, ExtensionBroken or ExtensionUnavailable.
        Cancelling the task cancels the call as far as the transport can.
        """


class LocalCalls(Calls):
    """Extensions as plain functions in this process, run on a thread each call. For tests and for libraries."""

    def __init__(self, functions: Mapping[ExtensionId, Infer]) -> None:
        self._functions = functions

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float) -> Ran:
        function = self._functions.get(extension)
        if function is None:
            raise ExtensionUnavailable(f"{extension} is not deployed.")
        rows = {port: np.concatenate(arrays) if len(arrays) > 1 else arrays[0] for port, arrays in parts.items()}
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        try:
            async with asyncio.timeout(timeout_s):
                outputs = await asyncio.to_thread(function, rows)
        except TimeoutError:
            raise ExtensionTimeout(f"{extension} passed its budget of {timeout_s * 1e3:.0f} ms.") from None
        except FenixError:
            raise
        except Exception as error:
            raise ExtensionRaised(f"{extension} raised {type(error).__name__}: {error}") from error
        return Ran(outputs, (loop.time() - started_s) * 1e3)
