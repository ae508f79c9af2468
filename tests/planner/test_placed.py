from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Coroutine, Mapping
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from planner.batching import Batchers
from planner.breakers import Breakers
from planner.calls import Part, Produced, RemoteArray
from planner.cards import Card, ExtensionId, LatencyProfile, Resources
from planner.envelopes import Envelope
from planner.errors import BadInput, ExtensionBroken, ExtensionRaised, ExtensionUnavailable, FenixError
from planner.features import Array, Feature, Port, Rows
from planner.placed import Function, Placed
from planner.placement import PROVEN_CALLS, PROVEN_S, Placements
from planner.tokens import Token
from tests.planner.doubles import PacedCalls, plan_of, step
from tests.planner.test_batching import settle

FAR = Token(1e9)
NUMBERS = Feature("numbers", "FP32", (-1,))
TINY = Card("a", "1", (Port("x", NUMBERS),), (Port("y", NUMBERS),), deterministic=False)
SMALL = Card("a", "1", TINY.inputs, TINY.outputs, resources=Resources(max_batch_rows=2), deterministic=False)


class Lying(RemoteArray):
    """Rows that lie elsewhere."""

    def __init__(self, values: Array) -> None:
        self.values, self.shape, self.dtype = values, values.shape, values.dtype

    def __getitem__(self, rows: slice) -> Lying:
        return Lying(self.values[rows])

    async def fetch(self) -> Array:
        return self.values


class Bench:
    """Queues over calls that add 1 in the deployment; inline, 10 is added."""

    def __init__(self, error: FenixError | None = None) -> None:
        self.refuses = math.nan  # a value that it cannot bear

        def deployed(rows: dict[str, Array]) -> Mapping[str, Produced]:
            if error is not None:
                raise error
            if (rows["x"] == self.refuses).any():
                raise ExtensionRaised("it cannot bear these rows")
            return {"y": Produced(rows["x"] + 1)}

        self.calls = PacedCalls({TINY.id: deployed})
        self.placements = Placements()
        self.observed: list[tuple[str, int, float, float]] = []
        self.batchers = Batchers(self.calls)
        self.placed = Placed(
            self.batchers,
            self.placements,
            lambda *told: self.observed.append(told),
            Breakers(random.Random(0)),
        )

    async def submit(self, x: Part, card: Card = TINY, token: Token = FAR) -> list[list[float]]:
        done = await self.placed.of(card).submit({"x": x}, len(x), token)
        return np.asarray(done.outputs["y"].values).tolist()  # type: ignore[no-any-return]

    def would_be_inline(self) -> bool:
        wanted = Card("a", "1", TINY.inputs, TINY.outputs, resources=Resources(placement="inline"))
        return self.placements.inline(wanted, perf_counter())


def rows(*values: float) -> Array:
    return np.array(values, np.float32).reshape(-1, 1)


def plus_10(inputs: Mapping[str, Array]) -> dict[str, Rows]:
    return {"y": Rows(inputs["x"] + 10, np.full(len(inputs["x"]), 0.5, np.float32))}


def failing(error: FenixError) -> Function:
    def function(inputs: Mapping[str, Array]) -> dict[str, Rows]:
        raise error

    return function


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_an_extension_runs_in_its_deployment_until_it_is_placed_and_again_when_it_is_displaced() -> None:
    async def scenario() -> None:
        bench = Bench()
        plan = plan_of(step(0, "a"))
        assert await bench.submit(rows(1)) == [[2]]
        assert not bench.placed.at_once(plan)
        bench.placed.place(TINY, plus_10)
        assert bench.placed.inline() == {TINY.id}
        assert bench.placed.at_once(plan)
        assert not bench.placed.at_once(plan_of(step(0, "a"), step(1, "b")))
        assert await bench.submit(rows(1)) == [[11]]
        assert len(bench.calls.batches) == 1
        bench.placed.displace(TINY.id)
        bench.placed.displace(TINY.id)
        assert await bench.submit(rows(1)) == [[2]]
        assert not bench.placed.at_once(plan)

    run(scenario())


def test_what_runs_inline_is_done_without_waiting_and_tells_what_it_took() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.placed.place(TINY, plus_10)
        submitted = bench.placed.of(TINY).submit({"x": rows(1, 2)}, 2, FAR)
        with pytest.raises(StopIteration) as end:
            submitted.send(None)
        done = end.value.value
        assert done.outputs["y"].values.tolist() == [[11], [12]]
        assert done.outputs["y"].confidence.tolist() == [0.5, 0.5]
        assert (done.batch_rows, done.waited_ms) == (2, 0.0)
        ((extension, n_rows, kilo, ran_ms),) = bench.observed
        assert (extension, n_rows, kilo) == (TINY.id, 2, 0.002)
        assert ran_ms == done.ran_ms >= 0.0

    run(scenario())


def test_batches_that_are_too_large_go_to_the_deployment_in_pieces() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.placed.place(SMALL, plus_10)
        assert await bench.submit(rows(1, 2), SMALL) == [[11], [12]]
        assert await bench.submit(rows(1, 2, 3), SMALL) == [[2], [3], [4]]
        assert sorted(n_rows for _, n_rows in bench.calls.batches) == [1, 2]

    run(scenario())


def test_rows_that_lie_elsewhere_go_to_the_deployment() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.placed.place(TINY, plus_10)
        assert await bench.submit(Lying(rows(1))) == [[2]]

    run(scenario())


def test_what_has_to_wait_says_so_before_anything_begins() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.placed.place(SMALL, plus_10)
        submitted = bench.placed.of(SMALL).submit({"x": rows(1, 2, 3)}, 3, FAR)
        submitted.send(None)
        submitted.close()
        await settle()
        assert bench.calls.batches == []

    run(scenario())


@pytest.mark.parametrize("error", [ExtensionRaised("no"), ExtensionBroken("no")])
@pytest.mark.parametrize("inline", [False, True])
def test_an_extension_that_fails_by_its_own_fault_is_moved_back(error: FenixError, inline: bool) -> None:
    async def scenario() -> None:
        bench = Bench(error)
        if inline:
            bench.placed.place(TINY, failing(error))
        assert bench.would_be_inline()
        with pytest.raises(type(error)):
            await bench.submit(rows(1))
        assert not bench.would_be_inline()

    run(scenario())


@pytest.mark.parametrize("inline", [False, True])
def test_a_clients_mistake_is_not_the_extensions_fault(inline: bool) -> None:
    async def scenario() -> None:
        bench = Bench(BadInput("odd rows"))
        if inline:
            bench.placed.place(TINY, failing(BadInput("odd rows")))
        with pytest.raises(BadInput):
            await bench.submit(rows(1))
        assert bench.would_be_inline()
        assert bench.placed.is_healthy(TINY.id)

    run(scenario())


def test_calls_to_the_deployment_prove_an_extension() -> None:
    async def scenario() -> None:
        bench = Bench()
        auto = Card("a", "1", TINY.inputs, TINY.outputs)
        for i in range(PROVEN_CALLS):
            assert not bench.placements.inline(auto, perf_counter() + PROVEN_S)
            await bench.submit(rows(i), auto)
        assert bench.placements.inline(auto, perf_counter() + PROVEN_S)

    run(scenario())


def test_an_extension_that_keeps_failing_is_let_alone_and_inline_it_counts_as_healthy() -> None:
    async def scenario() -> None:
        bench = Bench(ExtensionUnavailable("gone"))
        n_calls = 0
        while bench.placed.is_healthy(TINY.id):
            with pytest.raises(ExtensionUnavailable, match="gone"):
                await bench.submit(rows(1))
            n_calls += 1
            assert n_calls < 100
        with pytest.raises(ExtensionUnavailable, match="let alone"):
            await bench.submit(rows(1))
        assert len(bench.calls.batches) == n_calls
        bench.placed.place(TINY, plus_10)
        assert bench.placed.is_healthy(TINY.id)
        assert await bench.submit(rows(1)) == [[11]]

    run(scenario())


@pytest.mark.parametrize("error", [ExtensionRaised("no"), ExtensionBroken("no")])
def test_an_extension_that_raises_for_everybody_is_let_alone_too(error: FenixError) -> None:
    async def scenario() -> None:
        bench = Bench(error)
        for i in range(5):
            assert bench.placed.is_healthy(TINY.id)
            with pytest.raises(type(error)):
                await bench.submit(rows(i))
        assert not bench.placed.is_healthy(TINY.id)
        with pytest.raises(ExtensionUnavailable, match="let alone"):
            await bench.submit(rows(1))

    run(scenario())


def test_one_users_bad_rows_take_an_extension_from_nobody() -> None:
    async def scenario() -> None:
        bench = Bench()
        bench.refuses = -1.0
        ann, ben = Token(1e9, user="ann"), Token(1e9, user="ben")
        assert await bench.submit(rows(1), token=ben) == [[2]]
        for _ in range(30):
            with pytest.raises(ExtensionRaised):
                await bench.submit(rows(-1), token=ann)
        assert bench.placed.is_healthy(TINY.id)
        assert await bench.submit(rows(1), token=ben) == [[2]]

    run(scenario())


def test_a_group_that_is_split_counts_for_nothing_and_who_is_left_of_it_once() -> None:
    async def scenario() -> None:
        bench = Bench(ExtensionRaised("no"))
        for _ in range(20):
            with pytest.raises(ExtensionRaised):
                await bench.submit(rows(1, 2), token=Token(1e9, shared=True))
        for i in range(5):
            assert bench.placed.is_healthy(TINY.id)
            with pytest.raises(ExtensionRaised):
                await bench.submit(rows(i))
        assert not bench.placed.is_healthy(TINY.id)

    run(scenario())


def test_what_replicas_tell_reaches_breakers_and_policies() -> None:
    async def scenario() -> None:
        bench = Bench()
        batcher = bench.batchers.of(TINY)
        all_failed = Envelope(TINY.id, "", 0.0, n_calls=40, n_failed=40, cpu_share=0.5)
        bench.placed.hear({TINY.id: all_failed}, perf_counter())
        assert not bench.placed.is_healthy(TINY.id)
        assert batcher.cpu_share == 0.5

    run(scenario())


def test_what_is_gone_is_forgotten() -> None:
    async def scenario() -> None:
        bench = Bench()
        await bench.submit(rows(1))
        bench.placed.place(TINY, plus_10)
        other = ExtensionId("other@1")
        bench.placed.keep_only(frozenset({TINY.id}))
        assert bench.placed.inline() == {TINY.id}
        queue = bench.placed.of(TINY)
        bench.placed.keep_only(frozenset({other}))
        assert bench.placed.inline() == frozenset()
        assert bench.placed.of(TINY) is not queue
        assert await bench.submit(rows(1)) == [[2]]

    run(scenario())


def test_what_is_known_is_not_asked_of_the_deployment_again() -> None:
    async def scenario() -> None:
        bench = Bench()
        same = Card("a", "1", TINY.inputs, TINY.outputs, profile=LatencyProfile(per_row_ms=50.0, n_calls=100))
        for _ in range(5):
            assert await bench.submit(rows(5), same) == [[6]]
        assert len(bench.calls.batches) == 1

    run(scenario())
