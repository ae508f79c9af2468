"""Fusion on a real local cluster: a hot chain becomes one extension, wins, and goes when a part gets a new version."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import numpy as np
import pytest

from cluster import lifecycle
from cluster.settings import Settings
from planner.features import Array, Port
from planner.fusion import Rules
from planner.goals import Goal
from tests.deployments.fusable import STAGES, WIDTH
from tests.test_end_to_end import quiet, tensor, wait_until

pytestmark = pytest.mark.cluster

HERE = "tests.deployments.fusable"
GOAL = Goal("stages", (Port("x", STAGES[0]),), (Port("x", STAGES[3]),))
SOON = Rules(min_per_s=5.0, window_s=4.0)


@pytest.fixture
def eager(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    """The cluster with a chain of three that may not run in the gateway, and a steward that waits for little."""
    import ray

    from deployments.actors import NAMESPACE
    from deployments.deployer import deploy, remove
    from deployments.loading import describe
    from deployments.steward import ACTOR_NAME, start_steward

    settings = running_cluster.settings
    installation = lifecycle.installation(settings)
    with lifecycle.connected(settings):
        ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE))
        wait_until(lambda: not _is_there(ACTOR_NAME, NAMESPACE), within_s=10.0)
        start_steward(replace(installation, fusion=SOON))
        deploy([describe(f"{HERE}:Stage{i}") for i in (1, 2, 3)], [GOAL], installation, quiet)
        try:
            yield settings
        finally:
            with httpx.Client(base_url=settings.http_url, timeout=30.0) as http:
                ours = [
                    card["id"]
                    for card in extensions(http)
                    if card["source"].startswith(HERE) or card["kind"] == "fused"
                ]
            remove(ours, [GOAL.name], quiet)
            ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE))
            wait_until(lambda: not _is_there(ACTOR_NAME, NAMESPACE), within_s=10.0)
            start_steward(installation)


def _is_there(name: str, namespace: str) -> bool:
    import ray

    try:
        ray.get_actor(name, namespace=namespace)
    except ValueError:
        return False
    return True


def extensions(http: httpx.Client) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = http.get("/v1/extensions").json()["extensions"]
    return found


def fused(http: httpx.Client) -> list[dict[str, Any]]:
    return [card for card in extensions(http) if card["kind"] == "fused"]


def ask(http: httpx.Client, rows: Array) -> tuple[list[str], Array, Array]:
    """The extensions that answered, the values and the confidences."""
    body = {
        "goal": GOAL.name,
        "inputs": [tensor("x", rows)],
        "outputs": ["x", "x.confidence"],
    }
    response = http.post("/v1/infer", json=body)
    assert response.status_code == 200, response.text
    answer = response.json()
    outputs = {output["name"]: np.array(output["data"], np.float32) for output in answer["outputs"]}
    return [step["extension"] for step in answer["steps"]], outputs["x"], outputs["x.confidence"]


def load(url: str, stop: threading.Event, turn: threading.Lock) -> None:
    with httpx.Client(base_url=url, timeout=30.0) as http:
        while not stop.wait(0.02):
            with turn:
                http.post("/v2/models/stages/infer", json={"inputs": [tensor("x", np.ones((1, WIDTH)))]})


def test_a_hot_chain_is_fused_wins_answers_the_same_and_goes_when_a_part_gets_a_new_version(eager: Settings) -> None:
    from deployments.deployer import deploy
    from deployments.live import look
    from deployments.loading import describe
    from deployments.steward import StewardClient

    rows = np.random.default_rng(0).normal(size=(9, WIDTH)).astype(np.float32)
    stop, turn = threading.Event(), threading.Lock()  # the same bits come of the same batch: nobody else is in it
    worker = threading.Thread(target=load, args=(eager.http_url, stop, turn))
    with httpx.Client(base_url=eager.http_url, timeout=30.0) as http:
        path, values, confidence = ask(http, rows)
        assert path == ["stage1@1", "stage2@1", "stage3@1"]
        worker.start()
        try:
            wait_until(lambda: ask(http, rows)[0][0].startswith("fused.stage1.stage2.stage3@"), within_s=60.0)
            (card,) = fused(http)
            assert "stage1@1, then stage2@1, then stage3@1" in card["description"]
            assert (card["placement"], card["parts"]) == ("fused", ["stage1@1", "stage2@1", "stage3@1"])
            with turn:
                _, same_values, same_confidence = ask(http, rows)
            assert same_values.tobytes() == values.tobytes()
            assert same_confidence.tobytes() == confidence.tobytes()
            newer = describe(f"{HERE}:Stage2").but(version="2", cost=9.0)
            deploy([newer], [], lifecycle.installation(eager), quiet)
            wait_until(lambda: card["id"] not in [other["id"] for other in fused(http)], within_s=30.0)
            with turn:
                assert ask(http, rows)[1].tobytes() == values.tobytes()
        finally:
            stop.set()
            worker.join()
    first, second = events = asyncio.run(StewardClient(10.0).events())[:2]
    assert (first.action, first.extension, first.parts) == ("fused", card["id"], ("stage1@1", "stage2@1", "stage3@1"))
    assert (second.action, second.why) == ("retired", "stage2@2 is newer than stage2@1")
    assert look().events[:2] == events
