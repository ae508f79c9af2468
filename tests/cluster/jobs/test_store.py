"""One suite for every store of jobs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.jobs.records import Job, Schedule
from cluster.jobs.store import JobStore, MemoryJobStore, SqlJobStore
from lineage.errors import StoreUnavailable

NIGHTLY = Schedule("nightly", "0 3 * * *", ("fenix", "drift"), "drift", "Europe/Vienna", "all", True, 5.0, "ann")


@pytest.fixture(params=["memory", "sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[JobStore]:
    if request.param == "memory":
        yield MemoryJobStore()
        return
    is_lite = request.param == "sqlite"
    url = f"sqlite:///{tmp_path}/fenix.db" if is_lite else request.getfixturevalue("postgres").database()
    made = SqlJobStore(url)
    yield made
    made.close()


def test_schedules_come_back_as_they_were_put(store: JobStore) -> None:
    store.put_schedule(NIGHTLY)
    store.put_schedule(Schedule("a", "* * * * *", ("true",)))
    assert store.schedules() == (Schedule("a", "* * * * *", ("true",)), NIGHTLY)
    store.put_schedule(replace(NIGHTLY, since_s=9.0))
    store.remove_schedule("a")
    store.remove_schedule("never there")
    assert store.schedules() == (replace(NIGHTLY, since_s=9.0),)


def test_a_tick_makes_its_jobs_once(store: JobStore) -> None:
    job = NIGHTLY.job_at(600.0, 601.0)
    assert store.tick(replace(NIGHTLY, since_s=600.0), [job]) == (job,)
    assert store.schedules()[0].since_s == 600.0
    done = replace(job, state="succeeded", ended_s=700.0)
    store.update(done)
    assert store.tick(NIGHTLY, [job]) == ()
    assert store.job(job.id) == done


def test_a_job_is_submitted_once(store: JobStore) -> None:
    job = Job("repair-1", ("fenix", "repair"), submitted_s=1.0)
    assert store.submit(job) == job
    running = replace(job, state="running", attempts=1, started_s=2.0)
    store.update(running)
    assert store.submit(replace(job, submitted_s=9.0)) == running
    assert store.job("other") is None


def test_unfinished_jobs_come_in_the_order_of_their_submission_and_the_latest_first(store: JobStore) -> None:
    jobs = [Job(name, ("true",), submitted_s=at_s) for name, at_s in (("b", 1.0), ("a", 1.0), ("c", 0.5))]
    for job in jobs:
        store.submit(job)
    assert [job.id for job in store.unfinished()] == ["c", "a", "b"]
    store.update(replace(jobs[0], state="failed", ended_s=3.0))
    assert [job.id for job in store.unfinished()] == ["c", "a"]
    assert [job.id for job in store.latest(2)] == ["b", "a"]


def test_jobs_that_were_over_long_ago_are_forgotten_and_no_others(store: JobStore) -> None:
    for name, ended_s in (("old", 1.0), ("new", 9.0), ("open", None)):
        job = Job(name, ("true",))
        store.submit(job)
        store.update(replace(job, state="waiting" if ended_s is None else "stopped", ended_s=ended_s))
    assert store.forget(5.0) == 1
    assert {job.id for job in store.latest(10)} == {"new", "open"}


def test_what_is_in_sql_is_there_for_the_next_process(database_url: str) -> None:
    first = SqlJobStore(database_url)
    first.tick(NIGHTLY, [NIGHTLY.job_at(600.0, 601.0)])
    first.close()
    second = SqlJobStore(database_url)
    assert second.schedules() == (NIGHTLY,)
    assert [job.id for job in second.unfinished()] == ["nightly-19700101T0010Z"]
    second.close()


def test_a_database_that_does_not_answer_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreUnavailable):
        SqlJobStore(f"sqlite:///{tmp_path}/file/under.db")
