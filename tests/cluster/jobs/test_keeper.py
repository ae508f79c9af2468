from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from cluster.jobs.keeper import MOST_ATTEMPTS, Keeper
from cluster.jobs.launchers import Launcher, Look
from cluster.jobs.records import Job, Schedule
from cluster.jobs.store import MemoryJobStore
from lineage.errors import StoreUnavailable
from planner.errors import ClusterDown, Conflict, NotFound


class Desk(Launcher):
    """A launcher whose jobs end when the test says so."""

    def __init__(self) -> None:
        self.states: dict[str, Look] = {}
        self.started: list[str] = []
        self.stopped: list[str] = []
        self.is_down = False

    async def start(self, job: Job) -> None:
        if self.is_down:
            raise ClusterDown("no jobs today")
        self.started.append(job.id)
        self.states[job.id] = Look("running")

    async def look(self, job: Job) -> Look:
        if self.is_down:
            raise ClusterDown("no jobs today")
        return self.states.get(job.id, Look("lost"))

    async def stop(self, job: Job) -> None:
        self.stopped.append(job.id)


class House:
    def __init__(self, most: int = 1) -> None:
        self.now_s = 1_000_000.0
        self.store, self.desk, self.most = MemoryJobStore(), Desk(), most
        self.keeper = self.anew()

    def anew(self) -> Keeper:
        """After a restart."""
        return Keeper(self.store, self.desk, lambda: self.now_s, self.most)

    async def submit(self, name: str, lane: str = "") -> None:
        await self.keeper.submit(Job(name, ("true",), lane))
        self.now_s += 1.0


def drive(scenario: Callable[[House], Coroutine[Any, Any, None]], most: int = 1) -> None:
    async def run() -> None:
        await scenario(House(most))

    asyncio.run(run())


def test_a_job_runs_once_and_its_end_is_kept() -> None:
    async def scenario(house: House) -> None:
        await house.submit("a")
        await house.submit("a")
        await house.keeper.step()
        await house.keeper.step()
        assert house.desk.started == ["a"]
        house.desk.states["a"] = Look("failed", "exit status 3: no rows")
        await house.keeper.step()
        job = await house.keeper.job("a")
        assert (job.state, job.said, job.attempts, job.ended_s) == ("failed", "exit status 3: no rows", 1, house.now_s)
        await house.submit("a")
        await house.keeper.step()
        assert house.desk.started == ["a"]

    drive(scenario)


def test_jobs_of_a_lane_run_one_after_the_other_and_others_beside_them() -> None:
    async def scenario(house: House) -> None:
        await house.submit("first", "repair:digits")
        await house.submit("second", "repair:digits")
        await house.submit("other")
        await house.keeper.step()
        assert house.desk.started == ["first", "other"]
        house.desk.states["first"] = Look("succeeded")
        await house.keeper.step()
        assert house.desk.started == ["first", "other", "second"]

    drive(scenario, most=5)


def test_not_more_than_so_many_run_at_once() -> None:
    async def scenario(house: House) -> None:
        for name in "abc":
            await house.submit(name)
        await house.keeper.step()
        assert house.desk.started == ["a", "b"]

    drive(scenario, most=2)


def test_a_job_whose_process_is_lost_is_started_again_but_not_for_ever() -> None:
    async def scenario(house: House) -> None:
        await house.submit("a")
        for _ in range(MOST_ATTEMPTS + 2):
            await house.keeper.step()
            house.desk.states.clear()
            house.keeper = house.anew()
        job = await house.keeper.job("a")
        assert house.desk.started == ["a"] * MOST_ATTEMPTS
        assert (job.state, job.said) == ("failed", f"its process was lost {MOST_ATTEMPTS} times")

    drive(scenario)


def test_a_schedule_makes_one_job_a_tick_also_over_restarts() -> None:
    async def scenario(house: House) -> None:
        planned = await house.keeper.add(Schedule("quarterly", "*/15 * * * *", ("true",), missed="all"))
        assert planned.next_s == 1_000_800.0
        with pytest.raises(Conflict):
            await house.keeper.add(Schedule("quarterly", "* * * * *", ("true",)))
        for _ in range(40):
            house.now_s += 100.0
            house.keeper = house.anew()
            await house.keeper.step()
            await house.keeper.step()
            for name in house.desk.started:
                house.desk.states[name] = Look("succeeded")
        assert len(house.desk.started) == len(set(house.desk.started)) == 4  # of the five, the last only just came

    drive(scenario)


def test_a_tick_that_could_not_be_written_comes_again() -> None:
    async def scenario(house: House) -> None:
        await house.keeper.add(Schedule("quarterly", "*/15 * * * *", ("true",)))
        house.now_s += 900.0
        tick = house.store.tick

        def refused(schedule: Schedule, jobs: Any) -> Any:
            raise StoreUnavailable("disk full")

        house.store.tick = refused  # type: ignore[method-assign]
        await house.keeper.step()
        assert not await house.keeper.jobs(10)
        house.store.tick = tick  # type: ignore[method-assign]
        await house.keeper.step()
        assert len(await house.keeper.jobs(10)) == 1

    drive(scenario)


def test_a_paused_schedule_makes_no_jobs_and_does_not_catch_up() -> None:
    async def scenario(house: House) -> None:
        await house.keeper.add(Schedule("quarterly", "*/15 * * * *", ("true",), missed="all"))
        assert (await house.keeper.pause("quarterly")).next_s is None
        house.now_s += 9_000.0
        await house.keeper.step()
        await house.keeper.resume("quarterly")
        await house.keeper.step()
        assert not await house.keeper.jobs(10)
        house.now_s += 900.0
        await house.keeper.step()
        assert len(await house.keeper.jobs(10)) == 1

    drive(scenario)


def test_a_schedule_can_be_run_now_and_removed() -> None:
    async def scenario(house: House) -> None:
        await house.keeper.add(Schedule("quarterly", "*/15 * * * *", ("fenix", "status")))
        job = await house.keeper.run_now("quarterly")
        assert (job.command, job.lane, job.state) == (("fenix", "status"), "quarterly", "waiting")
        await house.keeper.remove("quarterly")
        assert await house.keeper.schedules() == ()
        for question in (house.keeper.run_now, house.keeper.remove, house.keeper.pause, house.keeper.resume):
            with pytest.raises(NotFound):
                await question("quarterly")

    drive(scenario)


def test_a_job_can_be_stopped_whether_it_waits_or_runs_but_not_when_it_is_over() -> None:
    async def scenario(house: House) -> None:
        await house.submit("a")
        await house.submit("b")
        await house.keeper.step()
        assert (await house.keeper.stop("b")).state == "stopped"
        assert (await house.keeper.stop("a")).state == "stopped"
        assert house.desk.stopped == ["a"]
        await house.keeper.step()
        assert house.desk.started == ["a"]
        with pytest.raises(Conflict):
            await house.keeper.stop("a")
        with pytest.raises(NotFound):
            await house.keeper.stop("never")

    drive(scenario)


def test_while_nobody_can_run_jobs_what_runs_is_left_and_what_cannot_start_says_so() -> None:
    async def scenario(house: House) -> None:
        await house.submit("a")
        await house.keeper.step()
        house.desk.is_down = True
        await house.keeper.step()
        assert (await house.keeper.job("a")).state == "running"
        await house.submit("b")
        house.desk.is_down = False
        house.desk.states["a"] = Look("succeeded")
        await house.keeper.step()
        assert house.desk.started == ["a", "b"]

    drive(scenario)
