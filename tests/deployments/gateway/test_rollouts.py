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
from planner.errors import BadRequest, ClusterDown, FenixError, StepFailed
from planner.features import Array, Feature, Port, Rows
from planner.goals import Goal
from planner.rollout.records import Observation, Pairs, Rollout, RolloutPlan, RolloutStep
from planner.rollout.rollout import promote, roll_back, start
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
        self.refusal: FenixError | None = None
        self.reports: dict[tuple[str, int], tuple[Sequence[Seen], Sequence[tuple[str, bytes]]]] = {}

    async def report(
        self, gateway: str, number: int, seen: Sequence[Seen], answers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        if not self.is_open:
            raise ClusterDown("away")
        if self.refusal is not None:
            raise self.refusal
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
        await follow(engine, rollouts, cards)
        await scenario(engine, rollouts, desk)
        await rollouts.close()

    asyncio.run(run())


async def follow(engine: Engine, rollouts: GatewayRollouts, cards: Sequence[Card]) -> None:
    catalogue = Catalogue.of(cards, (GOAL,))
    rollouts.foresee(catalogue)
    await engine.follow(catalogue)
    rollouts.renew()


def rules(*rollouts: Rollout, version: int = 1, held: Sequence[str] = ()) -> Rules:
    return Rules("keeper", version, {one.extension: traffic_of(one) for one in rollouts}, frozenset(held))  # type: ignore[arg-type]


async def ask(engine: Engine, model: str = "measure", x: Array = X, **more: Any) -> tuple[str, list[int]]:
    """Which version answered, and what."""
    answer = await engine.infer(InferRequest(model=model, inputs={"x": x}, **more))
    ran = [record.extension for record in answer.steps]
    assert len(ran) == 1
    return ran[0].partition("@")[2], answer.outputs["y"].values.tolist()


async def settled(rollouts: GatewayRollouts) -> None:
    """Nothing is under way unseen."""
    await asyncio.gather(*rollouts._under_way)


async def told(rollouts: GatewayRollouts) -> None:
    """All that is under way has ended and is reported."""
    await settled(rollouts)
    await rollouts.tell()


@pytest.mark.parametrize("model", ["measure", "size"])
def test_in_the_shadow_the_champion_answers_and_both_are_compared(model: str) -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        for i in range(20):
            assert await ask(engine, model, x=np.array([i], np.float32)) == ("1", [i])
            await settled(rollouts)
        await told(rollouts)
        alone, pairs = desk.all()
        assert not alone
        assert (pairs[False].n, pairs[False].n_failed, pairs[False].n_compared, pairs[False].n_agreed) == (20, 0, 20, 0)
        assert pairs[False].latencies.n == pairs[False].champion_latencies.n == 20

    house(scenario, {"size@1": whole, "size@2": one_more})


@pytest.mark.parametrize("model", ["measure", "size"])
def test_a_challenger_gets_its_share_and_only_that(model: str) -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.3)))
        served = Counter([(await ask(engine, model))[0] for _ in range(400)])
        assert 90 < served["2"] < 150
        await told(rollouts)
        alone, pairs = desk.all()
        assert {version: one.n for version, one in alone.items()} == served
        assert not pairs
        # With its version anything can be asked for, and nobody counts it.
        assert (await ask(engine, "size", version="2"))[0] == "2"
        assert (await ask(engine, "size@1"))[0] == "1"
        await rollouts.tell()
        assert len(desk.reports) == 1

    house(scenario, {"size@1": whole, "size@2": whole})


def test_the_journal_learns_with_which_probability_each_plan_was_to_run() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.3)))
        chooser = engine.route(InferRequest(model="measure", inputs={"x": X})).convoy.chooser
        chosen = [chooser.choose(1) for _ in range(50)]
        assert {one.plan.extensions() for one in chosen} == {("size@1",), ("size@2",)}
        for one in chosen:
            assert sorted(probability for _, probability in one.considered) == pytest.approx([0.3, 0.7])
            assert dict(one.considered)[one.plan.id] == pytest.approx(0.3 if "size@2" in one.plan.extensions() else 0.7)

    house(scenario, {"size@1": whole, "size@2": whole})


def test_nobody_is_hurt_by_a_challenger_that_fails_and_every_failure_counts() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.5)))
        answers = [await ask(engine, x=np.array([i], np.float32)) for i in range(60)]
        assert answers == [("1", [i]) for i in range(60)]
        await told(rollouts)
        alone, _ = desk.all()
        assert alone["2"].n == alone["2"].n_failed > 10
        assert (alone["1"].n, alone["1"].n_failed) == (60 - alone["2"].n, 0)

    house(scenario, {"size@1": whole, "size@2": broken})


def test_of_requests_that_a_challenger_serves_together_only_the_guilty_counts_as_failed() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.99)))
        numbers = [np.array([i], np.float32) for i in (0, 1, 2, 5)]
        answers = await asyncio.gather(*(ask(engine, x=x) for x in numbers))
        assert answers == [("2", [0]), ("2", [1]), ("2", [2]), ("1", [5])]
        await told(rollouts)
        alone, _ = desk.all()
        assert (alone["2"].n, alone["2"].n_failed) == (4, 1)

    house(scenario, {"size@1": whole, "size@2": broken_above_2})


def test_a_check_of_the_challenger_counts_a_failure_of_it_alone() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.5, checked=1.0)))
        for i in range(40):
            assert await ask(engine, x=np.array([i / 10], np.float32)) == ("1", [i // 10]) or i <= 20
            await settled(rollouts)
        await told(rollouts)
        _, pairs = desk.all()
        assert pairs[True].n_failed > 3
        assert pairs[True].n_champion_failed == pairs[True].n_both_failed == 0
        assert pairs[True].n_compared == pairs[True].n_agreed == pairs[True].n - pairs[True].n_failed > 3

    house(scenario, {"size@1": whole, "size@2": broken_above_2})


def test_of_requests_that_travel_together_only_the_guilty_counts_as_failed() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        numbers = [np.array([i], np.float32) for i in (0, 1, 2, 5)]
        await asyncio.gather(*(ask(engine, x=x) for x in numbers))
        await told(rollouts)
        _, pairs = desk.all()
        assert (pairs[False].n, pairs[False].n_failed) == (4, 1)
        assert pairs[False].n_compared == 3

    house(scenario, {"size@1": whole, "size@2": broken_above_2})


def test_a_user_stays_with_a_version_and_is_compared_in_pairs_alone() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        trial = rollout(share=0.5)
        rollouts.follow(rules(trial))
        split = traffic_of(trial).split
        assert split is not None
        by_user = {}
        for user in ("ann", "bob", "cid", "dora", "eve", "fay"):
            served = {(await ask(engine, terms={"user": user}))[0] for _ in range(5)}
            assert served == {split.serves(user)}
            by_user[user] = split.serves(user)
        assert set(by_user.values()) == {"1", "2"}
        await told(rollouts)
        alone, _ = desk.all()
        assert set(alone) == {"1"}

    house(scenario, {"size@1": whole, "size@2": whole})


def test_data_stays_among_extensions_that_may_see_it_and_nothing_of_it_is_kept() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(share=0.5, mirrored=1.0, checked=1.0)))
        for _ in range(20):
            assert (await ask(engine, terms={"tags": ["secret"]}))[0] == "1"
            assert (await ask(engine, terms={"tags": ["inner"]}))[0] in "12"
            await settled(rollouts)
        await told(rollouts)
        alone, pairs = desk.all()
        assert sum([one.n for one in alone.values()]) + sum([one.n for one in pairs.values()]) == 20
        assert not any(answers for _, answers in desk.reports.values())

    cards = (
        version("1", may_see=frozenset({"secret", "inner"})),
        version("2", may_see=frozenset({"inner"})),
    )
    house(scenario, {"size@1": whole, "size@2": whole}, cards=cards)


def test_what_nobody_heard_is_sent_under_the_trace_id_of_the_answer() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        trial = rollout(mirrored=1.0)
        rollouts.follow(rules(trial))
        answer = await engine.infer(InferRequest(model="measure", inputs={"x": X}, terms={"user": "ann"}))
        trace_id = str(answer.parameters["trace_id"])
        await told(rollouts)
        ((_, ((id_, body),)),) = desk.reports.values()
        assert id_ == trial.id
        unheard = Chunk.decode(body).find(int(trace_id[20:], 16))
        assert unheard is not None
        assert unheard.outputs.full["y"].tolist() == [2, 3, 4]
        assert unheard.trace_id == trace_id

    house(scenario, {"size@1": whole, "size@2": one_more})


def test_a_report_that_did_not_arrive_is_sent_again_under_its_number() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        await ask(engine)
        desk.is_open = False
        await settled(rollouts)
        with pytest.raises(ClusterDown):
            await rollouts.tell()
        await ask(engine)
        await settled(rollouts)
        desk.is_open = True
        await rollouts.tell()
        await rollouts.tell()
        assert sorted(number for _, number in desk.reports) == [0, 1]
        assert desk.all()[1][False].n == 2

    house(scenario, {"size@1": whole, "size@2": whole})


def test_a_report_that_is_refused_for_good_is_dropped_and_the_next_one_counts() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        await ask(engine)
        desk.refusal = BadRequest("no such version")
        await told(rollouts)
        desk.refusal = None
        await ask(engine)
        await told(rollouts)
        assert [number for _, number in desk.reports] == [1]
        assert desk.all()[1][False].n == 1

    house(scenario, {"size@1": whole, "size@2": whole})


def test_no_more_is_asked_unseen_than_there_is_room_for() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts._aside_per_s = rollouts._room = 5.0
        rollouts.follow(rules(rollout(mirrored=1.0)))
        for _ in range(50):
            await ask(engine)
            await settled(rollouts)
        await told(rollouts)
        alone, pairs = desk.all()
        assert 5 <= pairs[False].n <= 15
        assert alone["1"].n == 50 - pairs[False].n

    house(scenario, {"size@1": whole, "size@2": whole})


def test_after_the_end_only_the_champion_serves() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        trial = rollout(share=0.5)
        rollouts.follow(rules(trial))
        await ask(engine)
        rollouts.follow(rules(promote(trial, 200.0, by="me"), version=2))
        assert {(await ask(engine))[0] for _ in range(20)} == {"2"}
        assert {(await ask(engine, "size"))[0] for _ in range(20)} == {"2"}
        rollouts.follow(rules(roll_back(promote(trial, 200.0, by="me"), 300.0, by="me"), version=3))
        assert {(await ask(engine))[0] for _ in range(20)} == {"1"}

    house(scenario, {"size@1": whole, "size@2": whole})


def test_who_is_held_serves_nobody_and_stands_in_for_nobody() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(held=["size@2"]))
        assert {(await ask(engine, x=X[:1]))[0] for _ in range(10)} == {"1"}
        with pytest.raises(StepFailed):
            await ask(engine, x=np.array([5.0], np.float32))

    house(scenario, {"size@1": broken_above_2, "size@2": whole})


def test_versions_that_run_in_other_places_are_not_compared_by_what_they_take() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(rollout(mirrored=1.0)))
        card = engine.catalogue.cards[ExtensionId("size@1")]
        engine.placed.place(card, whole)
        await ask(engine)
        await told(rollouts)
        _, pairs = desk.all()
        assert (pairs[False].n, pairs[False].latencies.n, pairs[False].champion_latencies.n) == (1, 0, 0)

    house(scenario, {"size@1": whole, "size@2": whole})


def test_who_comes_and_goes_with_the_catalogue_serves_at_no_moment_in_between() -> None:
    async def scenario(engine: Engine, rollouts: GatewayRollouts, desk: Desk) -> None:
        rollouts.follow(rules(promote(rollout(mirrored=1.0), 200.0, by="me")))
        served: list[str] = []

        async def go_on() -> None:
            while True:
                served.append((await ask(engine, "size"))[0])
                served.append((await ask(engine))[0])
                await asyncio.sleep(0)

        asking = asyncio.create_task(go_on())
        for _ in range(5):
            await follow(engine, rollouts, CARDS[1:])  # who served before goes
            await follow(engine, rollouts, (*CARDS, version("3")))
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        assert asking.cancelled()
        assert set(served) == {"2"}

    house(scenario, {"size@1": whole, "size@2": whole, "size@3": whole})
