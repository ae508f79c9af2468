"""The seam to Ray Serve handles: the only module that knows how a call travels to another deployment.

An extension version `name@version` is a Serve application of that id with one deployment, `name`.
"""

from __future__ import annotations

import asyncio

import ray
from ray import serve
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from deployments.replica import BY_REFERENCE_BYTES, StoredArray
from planner.calls import Calls, Part, Parts, Produced, Ran
from planner.cards import ExtensionId
from planner.errors import ExtensionTimeout, ExtensionUnavailable, FenixError


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
        try:
            async with asyncio.timeout(timeout_s):
                handle = self._handle(extension)
                reply = await handle.infer.remote({port: [_by_reference(p) for p in ps] for port, ps in parts.items()})
        except TimeoutError:
            raise ExtensionTimeout(f"{extension} did not answer within {timeout_s * 1e3:.0f} ms.") from None
        except (ray.exceptions.RayError, RayServeException) as error:
            self._handles.pop(extension, None)
            raise ExtensionUnavailable(
                f"{extension} lost its replica ({type(error).__name__}).", hint="It is being restarted: send it again."
            ) from None
        if isinstance(reply, FenixError):
            raise reply
        outputs, confidence, run_ms = reply
        return Ran({name: Produced(values, confidence) for name, values in outputs.items()}, run_ms)

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
