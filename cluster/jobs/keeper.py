"""Makes jobs of ticks, starts them lane by lane, and looks after them until they are over.

Everything is written before it is done: a job that was started counts as an attempt even if whoever started it dies in
that moment, and a tick that was made a job of is never made one of again. Not more than `most` jobs run at once.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from cluster.jobs.due import due, next_tick_s
from cluster.jobs.launchers import Launcher
from cluster.jobs.records import Job, Schedule
from cluster.jobs.store import JobStore
from planner.errors import BadRequest, Conflict, FenixError, NotFound, near

MOST_ATTEMPTS = 5  # of a job whose process is lost again and again
MOST_WAITING = 1_000
KEPT_S = 30 * 86_400.0
_log = logging.getLogger("fenix.jobs")


@dataclass(frozen=True, slots=True)
class Planned:
    """A schedule with its next tick, in seconds since 1970; None while it is paused, or where there is none."""

    schedule: Schedule
    next_s: float | None


class Keeper:
    """One event loop, one instance. The store is asked on a thread."""

    def __init__(
        self, store: JobStore, launcher: Launcher, clock: Callable[[], float] = time.time, most: int = 1
    ) -> None:
        """`clock` is since 1970."""
        self._store, self._launcher, self._clock, self._most = store, launcher, clock, most
        self._turn = asyncio.Lock()

    # ------------------------------------------------------------------------------------------------- schedules

    async def add(self, schedule: Schedule) -> Planned:
        """Adds a schedule, whose ticks count from now on. Raises Conflict where there is one of its name."""
        async with self._turn:
            if any(known.name == schedule.name for known in await asyncio.to_thread(self._store.schedules)):
                raise Conflict(f"there is a schedule {schedule.name!r} already.", hint="Remove it first.")
            schedule = replace(schedule, since_s=self._clock())
            await asyncio.to_thread(self._store.put_schedule, schedule)
        return self._planned(schedule)

    async def remove(self, name: str) -> Planned:
        """Forgets a schedule; its jobs stay. Raises NotFound."""
        async with self._turn:
            schedule = await self._schedule(name)
            await asyncio.to_thread(self._store.remove_schedule, name)
        return self._planned(replace(schedule, paused=True))

    async def pause(self, name: str) -> Planned:
        """Makes no jobs from now on. Raises NotFound."""
        return await self._change(name, lambda schedule: replace(schedule, paused=True))

    async def resume(self, name: str) -> Planned:
        """Makes jobs again, of ticks from now on. Raises NotFound."""
        return await self._change(name, lambda schedule: replace(schedule, paused=False, since_s=self._clock()))

    async def run_now(self, name: str) -> Job:
        """Makes a job of a schedule at once, beside its ticks. Raises NotFound."""
        schedule = await self._schedule(name)
        now_s = self._clock()
        job = schedule.job_at(now_s, now_s)
        return await self.submit(replace(job, id=f"{name}-now-{int(now_s * 1e3)}", by="operator"))

    async def schedules(self) -> tuple[Planned, ...]:
        """All schedules, by name."""
        return tuple(self._planned(one) for one in await asyncio.to_thread(self._store.schedules))

    # ------------------------------------------------------------------------------------------------------ jobs

    async def submit(self, job: Job) -> Job:
        """Takes a job; durable when this returns. One that is known already is returned as it stands.
        Raises Conflict where too many wait."""
        async with self._turn:
            unfinished = await asyncio.to_thread(self._store.unfinished)
            if len(unfinished) >= MOST_WAITING and job.id not in {known.id for known in unfinished}:
                raise Conflict(f"{len(unfinished)} jobs wait already.", hint="Stop some: `fenix jobs stop ID`.")
            job = replace(job, submitted_s=self._clock(), state="waiting", attempts=0, started_s=None, ended_s=None)
            return await asyncio.to_thread(self._store.submit, job)

    async def stop(self, id: str) -> Job:
        """Ends a job, whether it runs or waits. Raises NotFound, and Conflict where it is over."""
        async with self._turn:
            job = await self.job(id)
            if job.is_over:
                raise Conflict(f"job {id} is over: {job.state}.")
            stopped = replace(job, state="stopped", ended_s=self._clock(), said="by hand")
            await asyncio.to_thread(self._store.update, stopped)
            if job.state == "running":
                await self._launcher.stop(job)
            return stopped

    async def job(self, id: str) -> Job:
        """A job by its id. Raises NotFound."""
        found = await asyncio.to_thread(self._store.job, id)
        if found is None:
            raise NotFound(f"there is no job {id[:140]!r}.", hint="`fenix jobs list` shows the latest.")
        return found

    async def jobs(self, most: int) -> tuple[Job, ...]:
        """The latest jobs, those first. Raises BadRequest for a number below 1."""
        if most < 1:
            raise BadRequest(f"there are no {most} jobs to show.")
        return await asyncio.to_thread(self._store.latest, min(most, 10_000))

    # ------------------------------------------------------------------------------------------------- what is done

    async def step(self) -> None:
        """Does what is to be done now; to be called every second or so. What fails is logged, and tried again in the
        next step; nothing of the rest waits for it."""
        async with self._turn:
            now_s = self._clock()
            for schedule in await asyncio.to_thread(self._store.schedules):
                try:
                    await self._tick(schedule, now_s)
                except FenixError as error:
                    _log.warning("schedule %s: %s", schedule.name, error.text())
            jobs = await asyncio.to_thread(self._store.unfinished)
            lanes = set()
            n_running = 0
            for job in jobs:
                if job.state == "running" and await self._looked(job):
                    lanes.add(job.lane or job.id)
                    n_running += 1
            for job in await asyncio.to_thread(self._store.unfinished):
                if n_running >= self._most:
                    break
                if job.state == "waiting" and (job.lane or job.id) not in lanes and await self._started(job):
                    lanes.add(job.lane or job.id)
                    n_running += 1

    async def clean_up(self) -> int:
        """Forgets jobs that were over `KEPT_S` ago; returns how many."""
        async with self._turn:
            return await asyncio.to_thread(self._store.forget, self._clock() - KEPT_S)

    async def _tick(self, schedule: Schedule, now_s: float) -> None:
        ticks = due(schedule, now_s)
        if not ticks:
            return
        jobs = [schedule.job_at(tick_s, now_s) for tick_s in ticks]
        for job in await asyncio.to_thread(self._store.tick, replace(schedule, since_s=ticks[-1]), jobs):
            _log.info("%s: job %s", schedule.name, job.id)

    async def _looked(self, job: Job) -> bool:
        """Whether a job that was started still runs."""
        try:
            look = await self._launcher.look(job)
        except FenixError as error:
            _log.warning("job %s: %s", job.id, error.text())
            return True
        if look.state == "running":
            return True
        now_s = self._clock()
        if look.state != "lost":
            new = replace(job, state=look.state, ended_s=now_s, said=look.said)
        elif job.attempts >= MOST_ATTEMPTS:
            new = replace(job, state="failed", ended_s=now_s, said=f"its process was lost {job.attempts} times")
        else:
            new = replace(job, state="waiting")
        await asyncio.to_thread(self._store.update, new)
        _log.info("job %s: %s %s", job.id, new.state, new.said)
        return False

    async def _started(self, job: Job) -> bool:
        running = replace(job, state="running", attempts=job.attempts + 1, started_s=self._clock())
        await asyncio.to_thread(self._store.update, running)
        try:
            await self._launcher.start(running)
        except (FenixError, OSError) as error:
            failed = replace(running, state="failed", ended_s=self._clock(), said=str(error))
            await asyncio.to_thread(self._store.update, failed)
            return False
        return True

    async def _change(self, name: str, change: Callable[[Schedule], Schedule]) -> Planned:
        async with self._turn:
            schedule = change(await self._schedule(name))
            await asyncio.to_thread(self._store.put_schedule, schedule)
        return self._planned(schedule)

    async def _schedule(self, name: str) -> Schedule:
        known = {schedule.name: schedule for schedule in await asyncio.to_thread(self._store.schedules)}
        if name not in known:
            raise NotFound(f"there is no schedule {name[:80]!r}.", hint=near(name, known))
        return known[name]

    def _planned(self, schedule: Schedule) -> Planned:
        return Planned(schedule, None if schedule.paused else next_tick_s(schedule, self._clock()))
