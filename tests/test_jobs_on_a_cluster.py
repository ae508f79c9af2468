"""Jobs and schedules on a real local cluster: what was taken is run, once, whoever dies."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster import lifecycle
from cluster.jobs.records import Job
from tests.test_end_to_end import wait_until

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def connected(running_cluster: lifecycle.Running) -> Iterator[lifecycle.Running]:
    """The cluster, with its keeper of jobs."""
    from cluster.jobs.actor import start_jobs

    with lifecycle.connected(running_cluster.settings):
        start_jobs(running_cluster.settings)
        yield running_cluster


def ask(method: str, *arguments: Any) -> Any:
    from cluster.jobs.actor import JobsClient

    return asyncio.run(getattr(JobsClient(), method)(*arguments))


def is_gone(pid: int) -> bool:
    """Whether a process has ended; whoever inherited it may not have taken note yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_a_job_whose_keeper_dies_runs_again_and_its_first_process_is_gone(
    connected: lifecycle.Running, tmp_path: Path
) -> None:
    import ray

    from cluster.jobs.actor import ACTOR_NAME
    from deployments.actors import NAMESPACE

    place = tmp_path / "pids"
    code = f"import os, time; open({str(place)!r}, 'a').write(f'{{os.getpid()}}\\n'); time.sleep(300)"
    ask("submit", Job("sleeper", (sys.executable, "-c", code)))

    def pids() -> list[int]:
        return [int(line) for line in place.read_text().splitlines()] if place.exists() else []

    try:
        wait_until(lambda: len(pids()) == 1, within_s=30.0)
        ray.kill(ray.get_actor(ACTOR_NAME, NAMESPACE), no_restart=False)
        wait_until(lambda: len(pids()) == 2, within_s=60.0)
        wait_until(lambda: is_gone(pids()[0]), within_s=10.0)
    finally:
        job = ask("stop", "sleeper")  # the only one that may run; the next test has one too
    assert (job.state, job.attempts) == ("stopped", 2)
    wait_until(lambda: is_gone(pids()[1]), within_s=10.0)


def test_a_job_finds_the_cluster_and_a_schedule_is_told_on_the_command_line(connected: lifecycle.Running) -> None:
    environment = {**os.environ, "FENIX_STATE_DIR": str(connected.settings.state_dir), "COLUMNS": "200"}

    def fenix(*words: str) -> Any:
        command = [sys.executable, "-c", "from fenix.cli import main; main()", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    # --no-replicas: it looks at processes alone; and `head`, for what it prints is long.
    looking = ("--", "sh", "-c", "fenix status --no-replicas -o json | head -3")
    (taken,) = fenix("schedule", "add", "looking", "0 3 * * *", "-o", "json", *looking)
    assert taken["next_s"] is not None
    ask("run_now", "looking")
    (job,) = [one for one in ask("jobs", 20) if one.id.startswith("looking-now")]
    wait_until(lambda: ask("job", job.id).is_over, within_s=60.0)
    shown = fenix("jobs", "show", job.id, "-o", "json")
    assert (shown["state"], shown["said"]) == ("succeeded", "")
    assert any('"state": "up"' in line for line in shown["printed"])
