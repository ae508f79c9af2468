"""How extensions fare, as the board, its followers and `fenix status` tell it on a real local cluster."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from cluster import lifecycle
from planner.cards import ExtensionId
from planner.envelopes import Envelope
from tests import faulty
from tests.test_end_to_end import quiet, tensor, wait_until

pytestmark = pytest.mark.cluster

MOODY = ExtensionId("moody-double@1")


@pytest.fixture(scope="module")
def http(running_cluster: lifecycle.Running) -> Iterator[httpx.Client]:
    """A client of the cluster with the moody doubler, this process being connected to Ray."""
    from deployments.deployer import deploy

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        deploy(["tests.faulty:moody_double"], [], lifecycle.installation(settings), quiet)
        with httpx.Client(base_url=settings.http_url, timeout=60.0) as client:
            yield client


def double(http: httpx.Client, value: float) -> int:
    body = {"inputs": [tensor("x", np.array([value]))], "parameters": {"deadline_ms": 30_000}}
    return http.post("/v2/models/moody-double/infer", json=body).status_code


def on_the_board() -> dict[str, Envelope]:
    from deployments.board import BoardClient

    envelopes = asyncio.run(BoardClient().snapshot()).envelopes
    return {one.replica: one for one in envelopes if one.extension == MOODY}


def told() -> tuple[int, int]:
    """The calls and failures that the replicas tell of."""
    found = on_the_board().values()
    return sum(one.n_calls for one in found), sum(one.n_failed for one in found)


def test_a_replica_tells_of_its_calls_and_failures(http: httpx.Client) -> None:
    wait_until(lambda: len(on_the_board()) == 1, within_s=15.0)
    assert [double(http, value) for value in (1.0, 2.0, faulty.RAISE)] == [200, 200, 502]
    wait_until(lambda: told()[0] >= 3 and told()[1] >= 1, within_s=5.0)
    (envelope,) = on_the_board().values()
    assert envelope.success_rate < 1.0
    assert envelope.latency_mean_ms > 0.0
    assert envelope.memory_mib > 10.0


def test_a_replica_that_dies_leaves_the_board_and_its_successor_takes_its_place(http: httpx.Client) -> None:
    wait_until(lambda: len(on_the_board()) == 1, within_s=15.0)
    (before,) = on_the_board()
    assert double(http, faulty.DIE) >= 500
    wait_until(lambda: before not in on_the_board(), within_s=30.0)
    wait_until(lambda: len(on_the_board()) == 1, within_s=60.0)


def test_a_board_that_dies_is_filled_again_and_its_followers_find_it(http: httpx.Client) -> None:
    import ray

    from deployments.actors import NAMESPACE
    from deployments.board import ACTOR_NAME, BoardClient, BoardFollower

    async def scenario() -> None:
        changed = asyncio.Event()
        follower = BoardFollower(BoardClient(), lambda extensions: changed.set())
        follower.start()

        async def wait_until_known(failures: int) -> None:
            async with asyncio.timeout(30.0):
                while MOODY not in follower.extensions or follower.extensions[MOODY].n_failed < failures:
                    await changed.wait()
                    changed.clear()

        await wait_until_known(0)
        ray.kill(await asyncio.to_thread(ray.get_actor, ACTOR_NAME, NAMESPACE), no_restart=False)
        for _ in range(3):
            assert await asyncio.to_thread(double, http, faulty.RAISE) == 502
        await wait_until_known(3)
        assert follower.alive()
        await follower.stop()

    asyncio.run(scenario())


def test_status_shows_how_each_extension_fares_and_goes_on_until_it_is_stopped(
    http: httpx.Client, running_cluster: lifecycle.Running
) -> None:
    wait_until(lambda: len(on_the_board()) == 1, within_s=15.0)
    fenix = [sys.executable, "-c", "from fenix.cli import main; main()", "status"]
    environment = {**os.environ, "FENIX_STATE_DIR": str(running_cluster.settings.state_dir), "COLUMNS": "200"}
    table = subprocess.run(fenix, env=environment, capture_output=True, text=True, timeout=100)
    assert table.returncode == 0, table.stderr
    # What the extension does poorly, which is a line of its own, begins with its name too.
    rows = [line for line in table.stdout.splitlines() if line.lstrip().startswith(MOODY) and "MiB" in line]
    assert len(rows) == 1
    assert "1 of 1" in rows[0]

    watching = subprocess.Popen(
        [*fenix, "--watch", "-o", "json"], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert watching.stdout is not None
        first: dict[str, Any] = json.loads(watching.stdout.readline())
        assert double(http, 3.0) == 200
        looks = [json.loads(watching.stdout.readline()) for _ in range(3)]
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=30.0)
    finally:
        watching.kill()
    assert (watching.returncode, "Traceback" in said) == (0, False), said
    assert {one["id"] for one in first["extensions"]} >= {MOODY}
    (last,) = [one for one in looks[-1]["extensions"] if one["id"] == MOODY]
    assert last["n_calls"] >= 1
    assert last["gpu_share"] is None
