"""A cluster of one's own for a drill: brought up with extensions on it, looked into, wounded, and taken down again."""

from __future__ import annotations

import os
import random
import signal
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from cluster import lifecycle
from cluster.settings import Settings
from planner.cards import Card
from planner.goals import Goal

ROOT = Path(__file__).parents[2]
_REPLICA = b"ray::ServeReplica:"


def _quiet(text: str) -> None:
    return


@contextmanager
def own_cluster(
    sources: Sequence[str | Card],
    goals: Sequence[Goal],
    overrides: Mapping[str, Any] | None = None,
    report: lifecycle.Report = _quiet,
) -> Iterator[Settings]:
    """A private cluster with these extensions and goals, and this process connected to it; `overrides` are settings.
    Ended with all its processes."""
    with tempfile.TemporaryDirectory(prefix="fenix", ignore_cleanup_errors=True) as folder:
        settings = lifecycle.private_settings(Path(folder), {"import_paths": [str(ROOT)], **(overrides or {})})
        lifecycle.up(settings, report)
        try:
            with lifecycle.connected(settings):
                from deployments.deployer import deploy

                deploy(sources, goals, lifecycle.installation(settings), report)
                # Inside, as what deploying leaves in this process would bring up another Ray to talk to.
                yield settings
        finally:
            lifecycle.down(settings, report)


def replicas(name: str) -> list[int]:
    """Process ids of the replicas whose deployment's name begins so; replicas name themselves after it."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if command.startswith(_REPLICA + name.encode()):
                found.append(int(entry.name))
    return found


def serving(name: str) -> list[int]:
    """Process ids of the replicas that answer, of deployments whose name begins so. Needs a connection."""
    from ray.serve.context import _get_global_client

    details = _get_global_client().get_serve_details()
    return sorted(
        replica["pid"]
        for application in details["applications"].values()
        for deployment in application["deployments"].values()
        if deployment["name"].startswith(name)
        for replica in deployment["replicas"]
        if replica["state"] == "RUNNING" and replica["pid"] is not None
    )


def kill_one(alive: Sequence[int], rng: random.Random) -> int | None:
    """Kills a random one of these processes, and says which; None where there is none."""
    if not alive:
        return None
    victim = rng.choice(sorted(alive))
    try:
        os.kill(victim, signal.SIGKILL)
    except ProcessLookupError:
        return None
    return victim


def gateway(settings: Settings) -> psutil.Process:
    """The process of the cluster's gateway. There is one."""
    found = [psutil.Process(pid) for pid in replicas("gateway")]
    (ours,) = [
        process
        for process in found
        if any(c.status == psutil.CONN_LISTEN and c.laddr.port == settings.http_port for c in process.net_connections())
    ]
    return ours
