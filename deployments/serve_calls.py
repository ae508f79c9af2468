"""The seam to Ray Serve handles: the only module that knows how a call travels to another deployment.

An extension version `name@version` is a Serve application of that id with one deployment, `name`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.replica import BY_REFERENCE_BYTES, StoredArray
from planner.calls import Calls, Part, Parts, Produced, Ran
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
    """Calls over Serve's deployment handles; arrays from 1 MiB on go by reference through the object store."""

    def __init__(self) -> None:
        self._handles: dict[ExtensionId, DeploymentHandle] = {}

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float) -> Ran:
        sent = {port: [_by_reference(part) for part in arrays] for port, arrays in parts.items()}
        outputs, confidence, run_ms = await self._call(extension, "infer", timeout_s, sent)
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

    async def _call(self, extension: ExtensionId, method: str, timeout_s: float, *arguments: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                reply = await getattr(self._handle(extension), method).remote(*arguments)
        except TimeoutError:
            raise ExtensionTimeout(f"{extension} did not answer within {timeout_s * 1e3:.0f} ms.") from None
        except (ray.exceptions.RayError, RayServeException) as error:
            self._handles.pop(extension, None)
            raise ExtensionUnavailable(
                f"{extension} lost its replica ({type(error).__name__}).", hint="It is being restarted: send it again."
            ) from None
        if isinstance(reply, FenixError):
            raise reply
        return reply

    def _handle(self, extension: ExtensionId) -> DeploymentHandle:
        handle = self._handles.get(extension)
        if handle is None:
            handle = serve.get_deployment_handle(deployment_of(extension), application_of(extension))
            self._handles[extension] = handle
        return handle


def _by_reference(part: Part) -> Part:
    if isinstance(part, StoredArray) or part.nbytes < BY_REFERENCE_BYTES:  # type: ignore[union-attr]
        return part
    return StoredArray(ray.put(part), part)  # type: ignore[arg-type]
