"""Who runs the command of a job: processes of our own, or Ray's jobs API."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.jobs.records import Job
from planner.errors import ClusterDown

# A job is to leave the cores to serving: the libraries that compute take one thread each.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
STOP_S = 5.0  # for ending by itself, before it is killed
ANSWER_S = 30.0
_LOG_END = 400  # characters of a log that say why


@dataclass(frozen=True, slots=True)
class Look:
    """How a job stands: `lost` where nobody knows of it any more. `said` is the end of what it printed."""

    state: Literal["running", "succeeded", "failed", "lost"]
    said: str = ""


class Launcher(ABC):
    """Runs commands. Every method raises ClusterDown when whoever runs them does not answer."""

    @abstractmethod
    async def start(self, job: Job) -> None:
        """Starts an attempt of a job; `job.attempts` counts it already."""

    @abstractmethod
    async def look(self, job: Job) -> Look:
        """How its last attempt stands."""

    @abstractmethod
    async def stop(self, job: Job) -> None:
        """Ends its last attempt, if it runs."""


class ProcessLauncher(Launcher):
    """Each job as a process, which ends when this process does. What it prints goes to `folder`/ID.log.

    For one event loop, on a thread that lives as long as the process: Linux ends a child with the thread that began it.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        """`environment` is added to this process's."""
        self._folder = folder
        self._environment = dict(os.environ) | ONE_THREAD | dict(environment)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, job: Job) -> None:
        self._running[job.id] = self._begun(job)

    def _begun(self, job: Job) -> subprocess.Popen[bytes]:
        self._folder.mkdir(parents=True, exist_ok=True)
        begin = [sys.executable, "-m", "cluster.jobs.run", str(os.getpid()), *job.command]
        with self.log_of(job).open("ab") as log:
            return subprocess.Popen(
                begin,
                env=self._environment | {"JOB_ID": job.id},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def look(self, job: Job) -> Look:
        process = self._running.get(job.id)
        if process is None:
            return Look("lost")
        status = process.poll()
        if status is None:
            return Look("running")
        del self._running[job.id]
        if status == 0:
            return Look("succeeded")
        how = f"ended by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
        return Look("failed", f"{how}: {self._end_of_log(job)}")

    async def stop(self, job: Job) -> None:
        process = self._running.pop(job.id, None)
        if process is None or process.poll() is not None:
            return
        for number, wait_s in ((signal.SIGTERM, STOP_S), (signal.SIGKILL, STOP_S)):
            os.killpg(process.pid, number)
            until_s = time.monotonic() + wait_s
            while time.monotonic() < until_s:
                if process.poll() is not None:
                    return
                await asyncio.sleep(0.02)

    def log_of(self, job: Job) -> Path:
        """Where what it prints goes."""
        return self._folder / f"{job.id}.log"

    def _end_of_log(self, job: Job) -> str:
        try:
            text = self.log_of(job).read_bytes()[-4 * _LOG_END :].decode(errors="replace")
        except OSError:
            return ""
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return " | ".join(lines[-3:])[-_LOG_END:]


_STATES: Mapping[str, Literal["running", "succeeded", "failed"]] = {
    "PENDING": "running",
    "RUNNING": "running",
    "SUCCEEDED": "succeeded",
    "FAILED": "failed",
    "STOPPED": "failed",
}


class RayLauncher(Launcher):
    """Each attempt as a Ray job named ID.ATTEMPT, to be seen in Ray's dashboard."""

    def __init__(self, address: str, environment: Mapping[str, str]) -> None:
        """`address` is the dashboard's, such as http://127.0.0.1:8265; `environment` is added to a job's."""
        self._address = address
        self._environment = ONE_THREAD | dict(environment)
        self._client: Any = None

    async def start(self, job: Job) -> None:
        await self._asked(
            "submit_job",
            entrypoint=shlex.join(job.command),
            submission_id=_attempt(job),
            entrypoint_num_cpus=0,
            metadata={"fenix_job": job.id, "by": job.by},
            runtime_env={"env_vars": self._environment | {"JOB_ID": job.id}},
        )

    async def look(self, job: Job) -> Look:
        try:
            info = await self._asked("get_job_info", _attempt(job))
        except ClusterDown as error:
            if "does not exist" in error.message:
                return Look("lost")
            raise
        return Look(_STATES[str(info.status)], (info.message or "")[-_LOG_END:])

    async def stop(self, job: Job) -> None:
        await self._asked("stop_job", _attempt(job))

    async def _asked(self, method: str, *arguments: Any, **named: Any) -> Any:
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.to_thread(self._ask, method, arguments, named)
        except (RuntimeError, OSError) as error:  # ConnectionError and TimeoutError are OSErrors
            self._client = None
            raise ClusterDown(
                f"Ray's jobs API at {self._address} refused: {(str(error) or 'no answer').splitlines()[0]}",
                hint="It runs where ray.dashboard is on.",
            ) from None

    def _ask(self, method: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        if self._client is None:
            from ray.job_submission import JobSubmissionClient

            self._client = JobSubmissionClient(self._address)
        return getattr(self._client, method)(*arguments, **named)


def _attempt(job: Job) -> str:
    return f"{job.id}.{job.attempts}"
