"""Rollouts in the gateway: over a real engine and extensions in this process, without a cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest

from deployments.gateway.engine import Engine
from deployments.gateway.messages import InferRequest
from deployments.gateway.rollouts import GatewayRollouts
from deployments.rollouts import Seen
from lineage.chunks import Chunk
from planner.calls import LocalCalls
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.choosing import FirstPlan
from planner.errors import ClusterDown
from planner.features import Array, Feature, Port, Rows
from planner.goals import Goal
from planner.rollout.records import Observation, Pairs, Rollout, RolloutPlan, RolloutStep
from planner.rollout.rollout import promote, start
from planner.rollout.traffic import Rules, traffic_of

NUMBER, LABEL = Feature("number/plain", "FP32"), Feature("label/size", "INT64")


def version(number: str, **more: Any) -> Card:
    return Card("size", number, (Port("x", NUMBER),), (Port("y", LABEL),), **more)


CARDS = (version("1"), version("2"))
GOAL = Goal("measure", (Port("x", NUMBER),), (Port("y", LABEL),), description="How large?")
X = np.array([1.0, 2.0, 3.0], np.float32)


def whole(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    return {"y": Rows(rows["x"].astype(np.int64))}


def one_more(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    return {"y": Rows(rows["x"].astype(np.int64) + 1)}


def broken(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    raise ValueError("no")


def broken_above_2(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    if (rows["x"] > 2.0).any():
        raise ValueError("no")
    return whole(rows)


class Desk:
    """Takes reports, once it is open."""

    def __init__(self) -> None:
        self.is_open = True
        self.reports: dict[tuple[str, int], tuple[Sequence[Seen], Sequence[tuple[str, bytes]]]] = {}

    async def report(
        self, gateway: str, number: int, seen: Sequence[Seen], answers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        if not self.is_open:
            raise ClusterDown("away")
        self.reports[gateway, number] = seen, answers

    def all(self) -> tuple[dict[str, Observation], dict[bool, Pairs]]:
        alone: dict[str, Observation] = {}
        pairs: dict[bool, Pairs] = {}
        for seen, _ in self.reports.values():
            for _, one in seen:
                if isinstance(one, Pairs):
                    pairs[one.served] = pairs[one.served].plus(one) if one.served in pairs else one
                else:
                    alone[one.version] = alone[one.version].plus(one) if one.version in alone else one
        return alone, pairs


def rollout(share: float = 0.0, mirrored: float = 0.0, checked: float = 0.0) -> Rollout:
    plan = RolloutPlan(steps=(RolloutStep(share, mirrored, checked),))
    return start("size", "1", "2", plan, 100.0)


Work = Mapping[str, Callable[[Mapping[str, Array]], Mapping[str, Rows]]]


def house(scenario: Any, work: Work, *, cards: Sequence[Card] = CARDS) -> None:
    async def run() -> None:
        calls = LocalCalls({ExtensionId(id_): function for id_, function in work.items()})
        desk = Desk()
        rollouts = GatewayRollouts(
            lambda: engine, lambda goal, terms, plans, without: FirstPlan(plans), desk, Random(7), aside_per_s=1e6
        )
        engine = Engine(calls, chooser_for=rollouts.chooser_for)
        rollouts.foresee(Catalogue.of(cards, (GOAL,)))
        await engine.follow(Catalogue.of(cards, (GOAL,)))
        await scenario(engine, rollouts, desk)
        await rollouts.close()

    asyncio.run(run())


def rules(*rollouts: Rollout, version: int = 1, held: Sequence[str] = ()) -> Rules:
    return Rules("keeper", version, {one.extension: traffic_of(one) for one in rollouts}, frozenset(held))  # type: ignore[arg-type]


async def ask(engine: Engine, model: str = "measure", x: Array = X, **more: Any) -> tuple[str, list[int]]:
    """Which version answered, and what."""
    answer = await engine.infer(InferRequest(model=model, inputs={"x": x}, **more))
    ran = [record.extension for record in answer.steps]
    assert len(ran) == 1
    return ran[0].partition("@")[2], answer.outputs["y"].values.tolist()


async def told(rollouts: GatewayRollouts) -> None:
    """All that is under way has ended and is reported."""
    while rollouts._under_way:
        await asyncio.sleep(0)
    await rollouts.tell()


@pytest.mark.parametrize("model", ["measure", "size"])
def test_in_the_shadow_the_champion_answers_and_both_are_compared(model: str) -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        for i in range(20):
            assert await ask(engine, model, x=np.array([i], np.float32)) == ("1", [i])
        await told(rollouts)
        alone, pairs = desk.all()
        assert not alone
        assert (pairs[False].n, pairs[False].n_failed, pairs[False].n_compared, pairs[False].n_agreed) == (20, 0, 20, 0)
        assert pairs[False].latencies.n == pairs[False].champion_latencies.n > 0

    house(scenario, {"size@1": whole, "size@2": one_more})
