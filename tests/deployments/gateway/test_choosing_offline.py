"""The whole way round: a gateway's journal is read, a controller is trained from it, and serves in the gateway."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from random import Random

import numpy as np
import pytest

from deployments.applications import ChoiceOptions
from lineage.database import open_database
from lineage.journal import JournalStore
from planner.catalogue import Catalogue
from planner.choice.controller import save, untrained
from planner.choice.journaled import Journaled, read
from planner.choice.offline import compared, trained
from planner.choice.policy import FEATURES, Arm, Choice, Context, Policy, Result
from tests.deployments.gateway.test_choosing import CARDS, GOAL, House, house


def journaled(path: Path) -> Journaled:
    store = JournalStore(open_database(f"sqlite:///{path}/fenix.db"))
    try:
        return read(store, Catalogue.of(CARDS, (GOAL,)), GOAL.name, 0.0, time.time())
    finally:
        store.close()


class Watched:
    """A policy, and what it was asked."""

    def __init__(self, policy: Policy) -> None:
        self.name, self._policy = policy.name, policy
        self.asked: list[tuple[Context, Sequence[Arm], Choice]] = []

    def choose(self, context: Context, arms: Sequence[Arm], rng: Random, now_s: float) -> Choice:
        choice = self._policy.choose(context, arms, rng, now_s)
        if context.n_requests:
            self.asked.append((context, arms, choice))
        return choice

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        self._policy.learn(context, arm, result)


def test_what_is_read_from_the_journal_is_what_the_gateway_chose_by(tmp_path: Path) -> None:
    weights = tmp_path / "weights"
    save(untrained(["neat@1"], [], np.random.default_rng(0)), weights)

    async def scenario(house: House) -> None:
        house.choosing.policy = watched = Watched(house.choosing.policy)
        await house.served(25, "ann", deadline_ms=500.0)
        await house.learn()
        first = len(watched.asked)
        await house.served(15, "ann", deadline_ms=500.0)
        for _ in range(10):
            await house.ask(tags=["pii"])
        assert await house.recorder.flush(5.0)
        found = journaled(tmp_path)
        assert len(found.log) == len(watched.asked) == 50
        ways = {}
        for number, (one, (context, arms, choice)) in enumerate(zip(found.log, watched.asked, strict=True)):
            seen = dict(zip(FEATURES, context.features, strict=True))
            assert seen.pop("load") == 0.5
            mine = dict(zip(FEATURES, one.context.features, strict=True))
            assert mine.pop("load") == 0.0  # it is not journaled
            assert mine == seen
            assert (one.context.goal, one.context.objective, one.context.n_requests) == (
                context.goal,
                context.objective,
                context.n_requests,
            )
            if number >= first:
                assert one.context.segment == context.segment
            assert one.choice.arm == choice.arm
            assert one.choice.propensities == pytest.approx(choice.propensities)
            assert [arm.plan for arm in one.arms] == [arm.plan for arm in arms]
            served = arms[choice.arm]
            assert one.arms[choice.arm].accuracy == pytest.approx(served.accuracy)
            assert one.arms[choice.arm].cost == pytest.approx(served.cost)
            assert one.arms[choice.arm].p50_ms == pytest.approx(served.p50_ms, rel=0.5)  # profiles follow the traffic
            if served.plan not in ways:
                way, true = found.way_of(one.arms[choice.arm]), house.choosing.way_of(served)
                ways[served.plan] = [step.name for step in way.steps]
                assert ways[served.plan] == [step.name for step in true.steps]
                assert [step.accuracy for step in way.steps] == [step.accuracy for step in true.steps]
        assert len(ways) > 1

    house(tmp_path, scenario, ChoiceOptions("controller", share=0.5, weights=str(weights)))


def test_a_controller_that_was_trained_from_a_gateways_journal_serves_users_by_what_serves_them_best(
    tmp_path: Path,
) -> None:
    async def tried(house: House) -> None:
        for _ in range(3):
            await house.served(40, "ann")
            await house.served(40, "bob", truth=4)
        await house.learn()

    house(tmp_path, tried, ChoiceOptions("greedy", share=0.8))
    found = journaled(tmp_path)
    weights = trained(found)
    rows = {row.policy: row for row in compared(found, ("first",), weights=weights).table.rows}
    assert rows["controller"].doubly_robust.low > rows["first"].doubly_robust.high
    save(weights, tmp_path / "weights")

    async def serving(house: House) -> None:
        assert (await house.served(40, "ann"))["plain@1"] >= 34
        assert (await house.served(40, "bob", truth=4))["neat@1"] >= 34

    house(tmp_path, serving, ChoiceOptions("controller", share=0.1, weights=str(tmp_path / "weights")))
