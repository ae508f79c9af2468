"""Where jobs and schedules lie: a contract, a store in memory and the store in SQL."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from sqlalchemy import Column, Connection, Float, MetaData, String, Table, Text, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from cluster.jobs.records import Job, Schedule
from lineage.database import open_database, transaction


class JobStore(ABC):
    """Keeps jobs and schedules. Every method raises StoreUnavailable when the store fails; then nothing was written."""

    @abstractmethod
    def schedules(self) -> tuple[Schedule, ...]:
        """All of them, by name."""

    @abstractmethod
    def put_schedule(self, schedule: Schedule) -> None:
        """Adds it, or replaces the one of its name."""

    @abstractmethod
    def remove_schedule(self, name: str) -> None:
        """Forgets it, if there is one; its jobs stay."""

    @abstractmethod
    def tick(self, schedule: Schedule, jobs: Sequence[Job]) -> tuple[Job, ...]:
        """Notes how far a schedule has come together with the jobs of its ticks. Returns those that are new: of a tick
        there is never a second one."""

    @abstractmethod
    def submit(self, job: Job) -> Job:
        """Adds a job; where there is one of its id, that is returned and nothing changes."""

    @abstractmethod
    def update(self, job: Job) -> None:
        """Replaces what is known of a job."""

    @abstractmethod
    def job(self, id: str) -> Job | None:
        """The job of that id."""

    @abstractmethod
    def unfinished(self) -> tuple[Job, ...]:
        """Those that are not over, in the order in which they were submitted."""

    @abstractmethod
    def latest(self, most: int) -> tuple[Job, ...]:
        """The latest submitted, those first."""

    @abstractmethod
    def forget(self, before_s: float) -> int:
        """Removes jobs that were over before that time; returns how many."""


class MemoryJobStore(JobStore):
    """For tests."""

    def __init__(self) -> None:
        self._schedules: dict[str, Schedule] = {}
        self._jobs: dict[str, Job] = {}

    def schedules(self) -> tuple[Schedule, ...]:
        return tuple(self._schedules[name] for name in sorted(self._schedules))

    def put_schedule(self, schedule: Schedule) -> None:
        self._schedules[schedule.name] = schedule

    def remove_schedule(self, name: str) -> None:
        self._schedules.pop(name, None)

    def tick(self, schedule: Schedule, jobs: Sequence[Job]) -> tuple[Job, ...]:
        self._schedules[schedule.name] = schedule
        new = tuple(job for job in jobs if job.id not in self._jobs)
        self._jobs.update((job.id, job) for job in new)
        return new

    def submit(self, job: Job) -> Job:
        return self._jobs.setdefault(job.id, job)

    def update(self, job: Job) -> None:
        self._jobs[job.id] = job

    def job(self, id: str) -> Job | None:
        return self._jobs.get(id)

    def unfinished(self) -> tuple[Job, ...]:
        return tuple(sorted((job for job in self._jobs.values() if not job.is_over), key=_order))

    def latest(self, most: int) -> tuple[Job, ...]:
        return tuple(sorted(self._jobs.values(), key=_order, reverse=True)[:most])

    def forget(self, before_s: float) -> int:
        gone = [job.id for job in self._jobs.values() if job.is_over and (job.ended_s or 0.0) < before_s]
        for id_ in gone:
            del self._jobs[id_]
        return len(gone)


def _order(job: Job) -> tuple[float, str]:
    return job.submitted_s, job.id


_METADATA = MetaData()
_SCHEDULES = Table(
    "schedules", _METADATA, Column("name", String(64), primary_key=True), Column("body", Text, nullable=False)
)
_JOBS = Table(
    "jobs",
    _METADATA,
    Column("id", String(128), primary_key=True),
    Column("state", String(16), nullable=False, index=True),
    Column("submitted_s", Float(53), nullable=False, index=True),
    Column("ended_s", Float(53)),
    Column("body", Text, nullable=False),
)
_OVER = ("succeeded", "failed", "stopped")


class SqlJobStore(JobStore):
    """A row per schedule and per job."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)

    def schedules(self) -> tuple[Schedule, ...]:
        with transaction(self._engine) as connection:
            bodies = connection.execute(select(_SCHEDULES.c.body).order_by(_SCHEDULES.c.name)).scalars().all()
        return tuple(_schedule(body) for body in bodies)

    def put_schedule(self, schedule: Schedule) -> None:
        with transaction(self._engine) as connection:
            _put_schedule(connection, schedule)

    def remove_schedule(self, name: str) -> None:
        with transaction(self._engine) as connection:
            connection.execute(delete(_SCHEDULES).where(_SCHEDULES.c.name == name))

    def tick(self, schedule: Schedule, jobs: Sequence[Job]) -> tuple[Job, ...]:
        with transaction(self._engine) as connection:
            _put_schedule(connection, schedule)
            return tuple(job for job in jobs if _add(connection, job))

    def submit(self, job: Job) -> Job:
        with transaction(self._engine) as connection:
            if _add(connection, job):
                return job
            body = connection.execute(select(_JOBS.c.body).where(_JOBS.c.id == job.id)).scalar_one()
        return _job(body)

    def update(self, job: Job) -> None:
        with transaction(self._engine) as connection:
            connection.execute(update(_JOBS).where(_JOBS.c.id == job.id).values(_row(job)))

    def job(self, id: str) -> Job | None:
        with transaction(self._engine) as connection:
            body = connection.execute(select(_JOBS.c.body).where(_JOBS.c.id == id)).scalar_one_or_none()
        return None if body is None else _job(body)

    def unfinished(self) -> tuple[Job, ...]:
        wanted = select(_JOBS.c.body).where(_JOBS.c.state.not_in(_OVER)).order_by(_JOBS.c.submitted_s, _JOBS.c.id)
        with transaction(self._engine) as connection:
            bodies = connection.execute(wanted).scalars().all()
        return tuple(_job(body) for body in bodies)

    def latest(self, most: int) -> tuple[Job, ...]:
        wanted = select(_JOBS.c.body).order_by(_JOBS.c.submitted_s.desc(), _JOBS.c.id.desc()).limit(most)
        with transaction(self._engine) as connection:
            bodies = connection.execute(wanted).scalars().all()
        return tuple(_job(body) for body in bodies)

    def forget(self, before_s: float) -> int:
        over = _JOBS.c.state.in_(_OVER) & (_JOBS.c.ended_s < before_s)
        with transaction(self._engine) as connection:
            return connection.execute(delete(_JOBS).where(over)).rowcount

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _add(connection: Connection, job: Job) -> bool:
    """Whether the job is new; another process may add it at the same moment."""
    try:
        with connection.begin_nested():
            connection.execute(insert(_JOBS).values(_row(job)))
    except IntegrityError:
        return False
    return True


def _put_schedule(connection: Connection, schedule: Schedule) -> None:
    body = json.dumps(asdict(schedule))
    changed = connection.execute(update(_SCHEDULES).where(_SCHEDULES.c.name == schedule.name).values(body=body))
    if not changed.rowcount:
        connection.execute(insert(_SCHEDULES).values(name=schedule.name, body=body))


def _row(job: Job) -> dict[str, Any]:
    body = json.dumps(asdict(job))
    return {"id": job.id, "state": job.state, "submitted_s": job.submitted_s, "ended_s": job.ended_s, "body": body}


def _job(body: str) -> Job:
    found = json.loads(body)
    return Job(**{**found, "command": tuple(found["command"])})


def _schedule(body: str) -> Schedule:
    found = json.loads(body)
    return Schedule(**{**found, "command": tuple(found["command"])})
