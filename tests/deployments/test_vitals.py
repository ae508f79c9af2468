"""What a replica measures of itself, and when it says so."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from deployments.vitals import BUSY_TTL_S, HEARTBEAT_S, IDLE_TTL_S, Publishing, Vitals
from planner.envelopes import Envelope
from planner.errors import BadInput, ClusterDown, ExtensionRaised
from tests.clocks import Clock, JumpingLoop
from tests.planner.doubles import card


class Wall:
    """A board that writes down what it is told, and when."""

    def __init__(self) -> None:
        self.told: list[tuple[float, Envelope, float]] = []
        self.error: Exception | None = None
        self.hangs = False

    async def publish(self, envelope: Envelope, ttl_s: float) -> None:
        self.told.append((asyncio.get_running_loop().time(), envelope, ttl_s))
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error


def jumping(scenario: Coroutine[Any, Any, None]) -> None:
    loop = JumpingLoop()
    try:
        loop.run_until_complete(scenario)
    finally:
        loop.close()


def test_rows_wait_until_they_are_computed_and_calls_are_here_until_they_are_answered() -> None:
    vitals = Vitals(card("a").but(may_see=frozenset({"eu"})), "r", Clock())
    first = vitals.arrived(8)
    second = vitals.arrived(3)
    vitals.computing_rows = 8
    now = vitals.envelope()
    assert (now.extension, now.replica, now.tags) == ("a@1", "r", {"eu"})
    assert (now.queue_rows, now.in_flight, now.n_calls) == (3, 2, 0)
    assert math.isnan(now.latency_mean_ms)
    vitals.computing_rows = 0
    vitals.answered(first, 8, None)
    vitals.answered(second, 3, None)
    now = vitals.envelope()
    assert (now.queue_rows, now.in_flight, now.n_calls) == (0, 0, 2)
    assert vitals.idle


def test_latency_is_from_arrival_to_answer_with_its_spread() -> None:
    clock = Clock()
    vitals = Vitals(card("a"), "r", clock)
    for took_s in (0.1, 0.3):
        arrived_s = vitals.arrived(1)
        clock.now_s += took_s
        vitals.answered(arrived_s, 1, None)
    now = vitals.envelope()
    assert now.latency_mean_ms == pytest.approx(200.0)
    assert now.latency_sd_ms == pytest.approx(100.0)
    clock.now_s += 11.5
    assert vitals.envelope().n_calls == 0


def test_only_what_the_extension_did_wrong_counts_against_it() -> None:
    vitals = Vitals(card("a"), "r", Clock())
    for error in (ExtensionRaised("no"), BadInput("what?"), asyncio.CancelledError()):
        vitals.arrived(1)
        vitals.left(1, error)
    now = vitals.envelope()
    assert (now.n_calls, now.n_failed, now.in_flight, now.queue_rows) == (1, 1, 0, 0)
    assert now.success_rate == 0.0


def test_confidences_are_those_of_the_last_seconds() -> None:
    clock = Clock()
    vitals = Vitals(card("a"), "r", clock)
    for seconds, n_rows in ((0.0, 10), (4.0, 20), (4.0, 30)):
        clock.now_s += seconds
        vitals.answered(vitals.arrived(n_rows), n_rows, np.full(n_rows, 0.97))
    assert vitals.envelope().confidences.n_rows == 60
    clock.now_s += 2.1
    vitals.answered(vitals.arrived(1), 1, np.full(1, 0.97))
    assert vitals.envelope().confidences.n_rows == 31
    assert vitals.envelope().confidences.quantile(0.5) == pytest.approx(0.965, abs=0.015)
    clock.now_s += 60.0
    assert vitals.envelope().confidences.n_rows == 0


def test_the_process_is_measured() -> None:
    vitals = Vitals(card("a"), "r")
    until_s = vitals._clock() + 0.02
    while vitals._clock() < until_s:
        pass
    now = vitals.envelope()
    assert now.cpu_share > 0.0
    assert 10.0 < now.memory_mib < 1e6
    assert math.isnan(now.gpu_share)


def test_an_idle_replica_says_so_once_and_then_only_keeps_its_place() -> None:
    async def scenario() -> None:
        wall = Wall()
        publishing = Publishing(Vitals(card("a"), "r", asyncio.get_running_loop().time), wall)
        publishing.start()
        await asyncio.sleep(100.0)
        times = [at for at, _, _ in wall.told]
        assert len(times) == 10
        assert max(b - a for a, b in pairwise(times)) <= HEARTBEAT_S
        assert {ttl_s for _, _, ttl_s in wall.told} == {IDLE_TTL_S}
        assert 2 * HEARTBEAT_S < IDLE_TTL_S
        await publishing.stop()

    jumping(scenario())


def test_work_wakes_an_idle_replica_at_once_and_then_it_speaks_twice_a_second() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        wall = Wall()
        vitals = Vitals(card("a"), "r", loop.time)
        publishing = Publishing(vitals, wall)
        publishing.start()
        await asyncio.sleep(3.0)
        wall.told.clear()
        for _ in range(40):
            arrived_s = vitals.arrived(1)
            await asyncio.sleep(0.1)
            vitals.answered(arrived_s, 1, None)
        assert [round(at, 3) for at, _, _ in wall.told[:3]] == [3.0, 3.5, 4.0]
        assert {ttl_s for _, _, ttl_s in wall.told} == {BUSY_TTL_S}
        wall.told.clear()
        await asyncio.sleep(5.0)
        # The last calls, then the calm after them, for longer.
        assert [ttl_s for _, _, ttl_s in wall.told][-1] == IDLE_TTL_S
        assert len(wall.told) <= 3
        assert wall.told[-1][1].n_calls == 40
        await publishing.stop()

    jumping(scenario())


def test_a_call_that_hangs_is_told_again_and_again() -> None:
    async def scenario() -> None:
        wall = Wall()
        vitals = Vitals(card("a"), "r", asyncio.get_running_loop().time)
        publishing = Publishing(vitals, wall)
        publishing.start()
        vitals.arrived(1)
        await asyncio.sleep(60.0)
        assert len(wall.told) > 100
        assert wall.told[-1][1].in_flight == 1
        await publishing.stop()

    jumping(scenario())


def test_a_board_that_fails_or_hangs_does_not_end_the_publishing() -> None:
    async def scenario() -> None:
        wall = Wall()
        publishing = Publishing(Vitals(card("a"), "r", asyncio.get_running_loop().time), wall)
        assert not publishing.alive
        publishing.start()
        wall.error = ClusterDown("away")
        await asyncio.sleep(15.0)
        wall.error, wall.hangs = None, True
        await asyncio.sleep(15.0)
        wall.hangs = False
        wall.told.clear()
        await asyncio.sleep(15.0)
        assert len(wall.told) > 0
        assert publishing.alive
        await publishing.stop()
        assert not publishing.alive

    jumping(scenario())


def test_the_health_check_notices_when_the_publishing_has_ended() -> None:
    async def scenario() -> None:
        wall = Wall()
        wall.error = RuntimeError("a fault of ours")
        publishing = Publishing(Vitals(card("a"), "r", asyncio.get_running_loop().time), wall)
        publishing.start()
        await asyncio.sleep(1.0)
        assert not publishing.alive
        await publishing.stop()

    jumping(scenario())
