"""Detached actors of the cluster and how other processes call them: the catalogue, the board, the steward."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
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


class _Lookups:
    """Looks for actors by name. That asks Ray's head, and blocks while it is away, for longer than anybody waits: so
    each lookup has a daemon thread of its own, which keeps neither the process nor the threads of others, and who asks
    for a name that is being looked for waits for the same lookup."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending: dict[str, Future[Any]] = {}

    def of(self, name: str) -> Future[Any]:
        with self._lock:
            found = self._pending.get(name)
            if found is None:
                found = self._pending[name] = Future()
                found.set_running_or_notify_cancel()  # whoever gives up does not cancel it for the others
                threading.Thread(target=self._look, args=(name, found), name=f"look for {name}", daemon=True).start()
        return found

    def _look(self, name: str, found: Future[Any]) -> None:
        try:
            actor, error = ray.get_actor(name, NAMESPACE), None
        except Exception as failure:
            actor, error = None, failure
        with self._lock:
            del self._pending[name]
        if error is None:
            found.set_result(actor)
        else:
            found.set_exception(error)


_LOOKUPS = _Lookups()


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
                if self._actor is None:
                    self._actor = await asyncio.wrap_future(_LOOKUPS.of(self._name))
                return await getattr(self._actor, method).remote(*arguments)
        except (ray.exceptions.RayError, ValueError, TimeoutError) as error:
            self._actor = None
            raise ClusterDown(
                f"{self._what} does not answer ({type(error).__name__}).", hint="Look at `fenix status`."
            ) from None
