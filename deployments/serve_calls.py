"""The seam to Ray Serve handles: the only module that knows how a call travels to another deployment.

An extension version `name@version` is a Serve application of that id with one deployment, `name`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.replica import BY_REFERENCE_BYTES, StoredArray
from planner.calls import Calls, Part, Parts, Produced, Ran, RemoteArray, join
from planner.cards import ExtensionId
from planner.errors import ExtensionTimeout, ExtensionUnavailable, FenixError
from planner.features import Array


def application_of(extension: ExtensionId) -> str:
    """The Serve application of an extension version."""
    return str(extension)


def deployment_of(extension: ExtensionId) -> str:
    """The name of the one deployment in it."""
    return extension.rpartition("@")[0]


class ServeCalls(Calls):
    """Calls over Serve's deployment handles.

    Small batches travel inside the call, over Serve's gRPC between replicas. A batch from 1 MiB on goes as an actor
    call instead, its arrays by reference through the object store: references do not survive a gRPC payload.
    """

    def __init__(self) -> None:
        self._handles: dict[tuple[ExtensionId, bool], DeploymentHandle] = {}

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        large = any(_is_large(arrays) for arrays in parts.values())
        if large:
            parts = {port: await _by_reference(arrays) for port, arrays in parts.items()}
        outputs, confidence, run_ms = await self._call(
            extension, "infer", timeout_s, parts, large, pair, by_reference=large
        )
        return Ran({name: Produced(values, confidence) for name, values in outputs.items()}, run_ms)

    async def check(self, extension: ExtensionId, seed: int, timeout_s: float = 120.0) -> None:
        """Has a replica run the behaviour contract on itself. Raises ContractBroken, or what `infer` raises."""
        await self._call(extension, "check", timeout_s, seed)

    async def samples(
        self, extension: ExtensionId, n_rows: int, seed: int, timeout_s: float = 60.0
    ) -> dict[str, Array]:
        """Sample rows as the extension makes them, an array (n_rows, ...) per input port."""
        rows: dict[str, Array] = await self._call(extension, "samples", timeout_s, n_rows, seed)
        return rows

    async def _call(
        self, extension: ExtensionId, method: str, timeout_s: float, *arguments: Any, by_reference: bool = False
    ) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                reply = await getattr(self._handle(extension, by_reference), method).remote(*arguments)
        except TimeoutError:
            raise ExtensionTimeout(f"{extension} did not answer within {timeout_s * 1e3:.0f} ms.") from None
        except (ray.exceptions.RayError, RayServeException) as error:
            self._handles.pop((extension, by_reference), None)
            raise ExtensionUnavailable(
                f"{extension} lost its replica ({type(error).__name__}).", hint="It is being restarted: send it again."
            ) from None
        if isinstance(reply, FenixError):
            raise reply
        return reply

    def _handle(self, extension: ExtensionId, by_reference: bool) -> DeploymentHandle:
        handle = self._handles.get((extension, by_reference))
        if handle is None:
            handle = serve.get_deployment_handle(deployment_of(extension), application_of(extension))
            if by_reference:
                handle = handle.options(_by_reference=True)
            self._handles[extension, by_reference] = handle
        return handle


def _is_large(parts: Sequence[Part]) -> bool:
    return any(isinstance(part, RemoteArray) for part in parts) or (
        sum(part.nbytes for part in parts if not isinstance(part, RemoteArray)) >= BY_REFERENCE_BYTES
    )


async def _by_reference(parts: Sequence[Part]) -> Sequence[Part]:
    """The same rows with all large local arrays in the object store, put there in one piece where there are many."""
    if all(isinstance(part, StoredArray) for part in parts) or not _is_large(parts):
        return parts
    whole = await join(parts)
    return [StoredArray(ray.put(whole), whole)]
