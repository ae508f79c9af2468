from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from cluster.jobs.launchers import Look, ProcessLauncher
from cluster.jobs.records import Job


def job(*command: str, name: str = "a") -> Job:
    return Job(name, command, attempts=1)


async def ended(launcher: ProcessLauncher, one: Job) -> Look:
    for _ in range(1_000):
        look = await launcher.look(one)
        if look.state != "running":
            break
        await asyncio.sleep(0.02)
    return look


def test_a_process_runs_with_one_thread_behind_serving_and_its_end_is_told(tmp_path: Path) -> None:
    async def run() -> None:
        launcher = ProcessLauncher(tmp_path / "logs", {"SAID": "so"})
        code = (
            "import os; print(os.nice(0) - int(os.environ['BASE']), os.environ['OMP_NUM_THREADS'], os.environ['SAID'])"
        )
        one = job("env", f"BASE={os.nice(0)}", sys.executable, "-c", code)
        await launcher.start(one)
        assert (await ended(launcher, one)).state == "succeeded"
        assert (tmp_path / "logs" / "a.log").read_text() == "10 1 so\n"
        assert (await launcher.look(one)).state == "lost"

    asyncio.run(run())


def test_what_fails_says_why(tmp_path: Path) -> None:
    async def run() -> None:
        launcher = ProcessLauncher(tmp_path, {})
        one = job(sys.executable, "-c", "import sys; print('x'); sys.exit('no rows')")
        await launcher.start(one)
        assert await ended(launcher, one) == Look("failed", "exit status 1: x | no rows")
        missing = job("no-such-command", name="b")
        await launcher.start(missing)
        found = await ended(launcher, missing)
        assert found.state == "failed"
        assert "no-such-command cannot be run" in found.said

    asyncio.run(run())


def test_a_job_that_does_not_want_to_end_is_ended(tmp_path: Path) -> None:
    async def run() -> None:
        launcher = ProcessLauncher(tmp_path, {})
        one = job(sys.executable, "-c", "import time; print('there', flush=True); time.sleep(600)")
        await launcher.start(one)
        process = launcher._running["a"]
        await launcher.stop(one)
        assert process.poll() is not None

    asyncio.run(run())


def test_jobs_end_with_whoever_started_them(tmp_path: Path) -> None:
    code = f"""
import asyncio, sys, time
from pathlib import Path
from cluster.jobs.launchers import ProcessLauncher
from cluster.jobs.records import Job
launcher = ProcessLauncher(Path({str(tmp_path)!r}), {{}})
sleeper = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
asyncio.run(launcher.start(Job("a", (sys.executable, "-c", sleeper))))
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", code]) as starter:
        log = tmp_path / "a.log"
        until_s = time.monotonic() + 20.0
        while not (log.exists() and log.read_text().endswith("\n")):
            assert time.monotonic() < until_s
            time.sleep(0.05)
        pid = int(log.read_text())
        starter.send_signal(signal.SIGKILL)
    until_s = time.monotonic() + 5.0
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until_s
        time.sleep(0.02)
