"""A compiled graph on a real local cluster: it answers as its parts do, outlives their death, and leaves nothing."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import psutil
import pytest

from cluster import lifecycle
from deployments.extension import execute
from deployments.loading import describe, load
from planner.cards import Card, Resources
from planner.errors import ExtensionRaised, StepFailed
from planner.features import Array
from planner.wiring import Group, fused_card, groups_of
from tests import faulty
from tests.deployments.fusable import WIDTH
from tests.deployments.kinds.test_fused import chain_of
from tests.test_end_to_end import quiet, wait_until

pytestmark = pytest.mark.cluster

SHARE = 0.25  # of a core for each part: spinning or not, the test must fit on a small machine


@pytest.fixture(scope="module")
def group() -> Group:
    cards = [
        describe(f"tests.deployments.fusable:{name}").but(resources=Resources(num_cpus=SHARE))
        for name in ("Frail", "Stage2", "Stage3")
    ]
    (found,) = groups_of(chain_of(*cards), {card.id: card for card in cards})
    return found


@pytest.fixture
def graph(running_cluster: lifecycle.Running, group: Group) -> Iterator[Card]:
    """The chain as a compiled graph, deployed by hand; nothing of it is left when it is removed."""
    import ray

    from deployments.deployer import deploy, remove

    card = fused_card(replace(group, compiled=True)).but(name="graph")
    with lifecycle.connected(running_cluster.settings):
        before = ray.available_resources()["CPU"]
        deploy([card], [], lifecycle.installation(running_cluster.settings), quiet)
        yield card
        assert ray.available_resources()["CPU"] == before - 3 * SHARE
        remove([card.id], [], quiet)
        wait_until(lambda: actors(running_cluster) == {}, within_s=15.0)
        wait_until(lambda: ray.available_resources()["CPU"] == before, within_s=10.0)


def actors(running: lifecycle.Running) -> dict[int, str]:
    """Ray's processes of this cluster's compiled graphs, by id."""
    found = {}
    for process in psutil.process_iter(["cmdline", "environ"]):
        title = (process.info["cmdline"] or [""])[0]
        ours = running.run_id in (process.info["environ"] or {}).values()
        if ours and title.startswith(("ray::PartActor", "ray::DAGDriverProxyActor")):
            found[process.pid] = title
    return found


def rows(first: float = 0.0) -> Array:
    made = np.random.default_rng(0).normal(size=(32, WIDTH)).astype(np.float32)
    made[0, 0] = first
    return made


def bits(values: Array, confidence: Array | None) -> tuple[bytes, bytes]:
    assert confidence is not None
    return values.tobytes(), confidence.tobytes()


def one_by_one(group: Group) -> tuple[bytes, bytes]:
    """What the parts make in this process; Stage2 says how sure it is, and Stage3 inherits that."""
    values, confidence = rows(), None
    for card in group.cards:
        part = load(card)
        part.setup()
        made = execute(part, {"x": values})["x"]
        values, confidence = made.values, confidence if made.confidence is None else made.confidence
    return bits(values, confidence)


def fused(group: Group) -> tuple[bytes, bytes]:
    whole = load(fused_card(group))
    whole.setup()
    made = execute(whole, {"x": rows()})["x"]
    return bits(made.values, made.confidence)


def test_a_compiled_graph_answers_as_its_parts_tells_their_errors_and_outlives_their_death(
    running_cluster: lifecycle.Running, graph: Card, group: Group
) -> None:
    from deployments.serve_calls import ServeCalls

    async def ask(calls: ServeCalls, first: float = 0.0) -> tuple[bytes, bytes]:
        made = (await calls.infer(graph.id, {"x": [rows(first)]}, 20.0)).outputs["x"]
        assert isinstance(made.values, np.ndarray)
        return bits(made.values, made.confidence)

    async def answers(calls: ServeCalls) -> bool:
        try:
            await ask(calls)
        except StepFailed:
            return False
        return True

    async def work() -> None:
        calls = ServeCalls()
        expected = one_by_one(group)
        assert fused(group) == expected
        assert await ask(calls) == expected
        assert len(actors(running_cluster)) == 4  # one a part, and Ray's own at the end of the graph

        with pytest.raises(ExtensionRaised, match="frail@1 raised RuntimeError: told to raise"):
            await ask(calls, faulty.RAISE)
        assert await ask(calls) == expected

        before = actors(running_cluster)
        os.kill(min(pid for pid, title in before.items() if "PartActor" in title), signal.SIGKILL)
        await asyncio.to_thread(wait_until, lambda: len(actors(running_cluster).keys() - before.keys()) == 4, 20.0)
        until_s = asyncio.get_running_loop().time() + 15.0
        while not await answers(calls):  # the new parts are there before their graph
            assert asyncio.get_running_loop().time() < until_s
            await asyncio.sleep(0.1)
        assert await ask(calls) == expected

    asyncio.run(work())
