"""The keeper of jobs and schedules as a detached Ray actor, and how others call it.

It begins when the first job or schedule is added, or with the cluster where there are any; without, it costs nothing.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import os
import sys
from pathlib import Path
from typing import Any

from cluster.jobs.keeper import Keeper, Planned
from cluster.jobs.launchers import Launcher, ProcessLauncher, RayLauncher
from cluster.jobs.records import Job, Schedule
from cluster.jobs.store import SqlJobStore
from cluster.settings import Settings
from deployments.actors import ActorHandle, start_actor
from planner.errors import ClusterDown, FenixError

ACTOR_NAME = "fenix-jobs"
PACE_S = 1.0
CLEAN_UP_EVERY = 3_600  # steps
_log = logging.getLogger("fenix.jobs")


class JobsActor:
    """What it must know is in the database."""

    def __init__(self, database_url: str, state_dir: str, dashboard: str, most: int) -> None:
        """`dashboard` is the address of Ray's, empty where it is off."""
        _log.setLevel(logging.INFO)  # in an actor nobody else sets logging up
        _log.addHandler(logging.StreamHandler())
        self._database_url, self._most = database_url, most
        # A job finds the cluster by its state_dir, and `fenix` beside the Python that runs here.
        environment = {
            "FENIX_STATE_DIR": state_dir,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        }
        self._launcher: Launcher = (
            RayLauncher(dashboard, environment)
            if dashboard
            else ProcessLauncher(log_folder(Path(state_dir)), environment)
        )
        self._opening = asyncio.Lock()
        self._keeper: Keeper | None = None
        # Ray runs this on the actor's loop. After a restart nobody may ask for anything, and ticks come all the same.
        self._tending = asyncio.get_running_loop().create_task(
            self._tend(), name="tend-jobs", context=contextvars.Context()
        )

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Runs one method of Keeper. A FenixError is returned, not raised, so that it keeps its type."""
        if method not in _METHODS:
            raise ValueError(method)
        try:
            return await getattr(await self._opened(), method)(*arguments)
        except FenixError as error:
            return error.with_traceback(None)

    async def _opened(self) -> Keeper:
        async with self._opening:
            if self._keeper is None:
                store = await asyncio.to_thread(SqlJobStore, self._database_url)
                self._keeper = Keeper(store, self._launcher, most=self._most)
        return self._keeper

    async def _tend(self) -> None:
        """Steps for ever; what fails is tried again."""
        n = 0
        while True:
            try:
                keeper = await self._opened()
                await keeper.step()
                if n % CLEAN_UP_EVERY == 0:
                    await keeper.clean_up()
                n += 1
            except FenixError as error:
                _log.warning("jobs: %s", error.text())
            except Exception:
                _log.exception("jobs")
            await asyncio.sleep(PACE_S)


_METHODS = frozenset({"add", "remove", "pause", "resume", "run_now", "schedules", "submit", "stop", "job", "jobs"})


def log_folder(state_dir: Path) -> Path:
    """Where jobs print to, each to ID.log, if they run as processes of our own."""
    return state_dir / "logs" / "jobs"


def start_jobs(settings: Settings) -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    ray = settings.ray
    dashboard = f"http://{ray.node_ip}:{ray.dashboard_port}" if ray.dashboard else ""
    start_actor(JobsActor, ACTOR_NAME, settings.database_url, str(settings.state_dir), dashboard, settings.jobs.most)


def resume_jobs(settings: Settings) -> bool:
    """Starts the actor where there is something for it to do. Raises StoreUnavailable. This process is connected."""
    store = SqlJobStore(settings.database_url)
    try:
        if not (store.schedules() or store.unfinished()):
            return False
    finally:
        store.close()
    start_jobs(settings)
    return True


_WHAT = "the keeper of jobs"


class JobsClient:
    """Jobs and schedules as seen from another process that is connected to Ray. Every method raises ClusterDown when
    the actor does not answer; asking again is safe for all but `run_now`."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, _WHAT)

    async def add(self, schedule: Schedule) -> Planned:
        """See `Keeper.add`."""
        planned: Planned = await self._ask("add", schedule)
        return planned

    async def remove(self, name: str) -> Planned:
        """See `Keeper.remove`."""
        planned: Planned = await self._ask("remove", name)
        return planned

    async def pause(self, name: str) -> Planned:
        """See `Keeper.pause`."""
        planned: Planned = await self._ask("pause", name)
        return planned

    async def resume(self, name: str) -> Planned:
        """See `Keeper.resume`."""
        planned: Planned = await self._ask("resume", name)
        return planned

    async def run_now(self, name: str) -> Job:
        """See `Keeper.run_now`."""
        job: Job = await self._ask("run_now", name)
        return job

    async def schedules(self) -> tuple[Planned, ...]:
        """See `Keeper.schedules`."""
        found: tuple[Planned, ...] = await self._ask("schedules")
        return found

    async def submit(self, job: Job) -> Job:
        """See `Keeper.submit`."""
        taken: Job = await self._ask("submit", job)
        return taken

    async def stop(self, id: str) -> Job:
        """See `Keeper.stop`."""
        stopped: Job = await self._ask("stop", id)
        return stopped

    async def job(self, id: str) -> Job:
        """See `Keeper.job`."""
        found: Job = await self._ask("job", id)
        return found

    async def jobs(self, most: int = 20) -> tuple[Job, ...]:
        """See `Keeper.jobs`."""
        found: tuple[Job, ...] = await self._ask("jobs", most)
        return found

    async def _ask(self, method: str, *arguments: Any) -> Any:
        try:
            reply = await self._actor.call("call", method, arguments, timeout_s=self._timeout_s)
        except ClusterDown as error:
            raise ClusterDown(error.message, hint="It may have been done; look before you try again.") from None
        if isinstance(reply, FenixError):
            raise reply
        return reply
