"""Detached actors of the cluster and how other processes call them: the catalogue, the board, the steward."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from planner.errors import ClusterDown

NAMESPACE = "fenix"


def start_actor(kind: type, name: str, *arguments: Any, max_concurrency: int = 1_000) -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    ray.remote(kind).options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=-1,
        max_concurrency=max_concurrency,
    ).remote(*arguments)


class ActorHandle:
    """An actor by its name. A call is made once: trying again is the caller's."""

    def __init__(self, name: str, what: str) -> None:
        """`what` is how errors name it."""
        self._name = name
        self._what = what
        self._actor: Any = None

    async def call(self, method: str, *arguments: Any, timeout_s: float) -> Any:
        """What the method returns. Raises ClusterDown when the actor does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                if self._actor is None:  # on a thread: it asks Ray's head, and blocks while that is away
                    self._actor = await asyncio.to_thread(ray.get_actor, self._name, NAMESPACE)
                return await getattr(self._actor, method).remote(*arguments)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            self._actor = None
            raise ClusterDown(
                f"{self._what} does not answer ({type(error).__name__}).", hint="Look at `fenix status`."
            ) from None
