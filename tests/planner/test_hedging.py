"""Hedging: when a second call is sent, within which budget, who wins, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import planner.calls
from planner.calls import Parts, Ran
from planner.cards import ExtensionId
from planner.hedging import Hedged, HedgedCalls, HedgeSettings, Hedging, RecentQuantile, hedged
from tests.clocks import JumpingLoop

A, B = ExtensionId("a@1"), ExtensionId("b@1")


def seen(n_calls: int, took_ms: float = 10.0, settings: HedgeSettings | None = None) -> Hedging:
    hedging = Hedging(settings or HedgeSettings())
    for _ in range(n_calls):
        hedging.observe(A, 1, took_ms)
    return hedging


@given(st.lists(st.floats(0.0, 1e6), min_size=16, max_size=600))
def test_the_quantile_is_that_of_the_last_values(values: list[float]) -> None:
    recent = RecentQuantile(0.95, kept=64)
    for value in values:
        recent.add(value)
    upto = len(values) - len(values) % 16
    kept = values[max(0, upto - 64) : upto]
    assert sum(value < recent.value for value in kept) <= 0.95 * len(kept)
    assert sum(value <= recent.value for value in kept) > 0.95 * len(kept) - 1e-9


def test_a_call_is_sent_again_after_the_95th_percentile_of_its_like() -> None:
    hedging = Hedging()
    for took_ms in np.random.default_rng(1).permutation(np.arange(1.0, 257.0)).tolist():
        hedging.observe(A, 4, took_ms)
        hedging.observe(A, 32, 10 * took_ms)
    for _ in range(200):
        hedging.observe(B, 1, 1.0)
    assert hedging.delay_s(A, 4, n_replicas=2) == pytest.approx(0.244)
    assert hedging.delay_s(A, 7, n_replicas=2) == hedging.delay_s(A, 4, n_replicas=2)
    assert hedging.delay_s(A, 32, n_replicas=2) == pytest.approx(2.44)
    assert hedging.delay_s(A, 8, n_replicas=2) is None
    assert hedging.delay_s(B, 4, n_replicas=2) is None


def test_no_second_call_where_there_is_one_replica_or_no_budget_or_little_is_known() -> None:
    hedging = seen(200)
    assert hedging.delay_s(A, 1, n_replicas=2) == 0.0125
    assert hedging.delay_s(A, 1, n_replicas=1) is None
    assert seen(200, settings=HedgeSettings(most_share=0.0)).delay_s(A, 1, n_replicas=2) is None
    assert seen(31).delay_s(A, 1, n_replicas=2) is None


def test_the_delay_is_never_shorter_than_what_a_second_call_could_gain() -> None:
    assert seen(200, took_ms=0.01).delay_s(A, 1, n_replicas=2) == 0.001


@given(st.lists(st.booleans(), max_size=600), st.floats(0.0, 0.1), st.integers(1, 20))
def test_second_calls_are_never_more_than_their_share_of_the_calls(
    asks: list[bool], most_share: float, burst: int
) -> None:
    hedging = Hedging(HedgeSettings(most_share=most_share, burst=burst))
    for ask in asks:
        if ask:
            hedging.may_hedge()
        hedging.observe(A, 1, 1.0)
        assert hedging.n_hedges <= most_share * hedging.n_calls + 1e-9


def test_a_calm_time_saves_up_for_a_burst_and_no_more() -> None:
    hedging = seen(10_000)
    assert sum(hedging.may_hedge() for _ in range(100)) == 10
    assert hedging.n_hedges == 10


def test_while_the_budget_runs_short_only_slower_calls_are_sent_again() -> None:
    hedging = seen(1_000)
    usual_s = hedging.delay_s(A, 1, n_replicas=2)
    assert usual_s is not None
    stretches = []
    while hedging.may_hedge():
        delay_s = hedging.delay_s(A, 1, n_replicas=2)
        assert delay_s is not None
        stretches.append(delay_s / usual_s)
    assert stretches == pytest.approx([1, 1, 1, 1, 1, 5 / 4, 5 / 3, 5 / 2, 5, 16], rel=1e-6)
    for _ in range(200):
        hedging.observe(A, 1, 10.0)
    assert hedging.delay_s(A, 1, n_replicas=2) == usual_s


def test_what_comes_back_under_the_same_id_is_measured_anew() -> None:
    hedging = seen(100)
    hedging.keep_only(frozenset({B}))
    assert hedging.delay_s(A, 1, n_replicas=2) is None


class Calls:
    """Calls that take a while, then give their name or fail; it remembers who began, ended and was cancelled."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def call(self, name: str, took_s: float, fails: bool = False) -> Callable[[], Awaitable[str]]:
        async def run() -> str:
            self.events.append(f"{name} began")
            try:
                await asyncio.sleep(took_s)
            except asyncio.CancelledError:
                self.events.append(f"{name} cancelled")
                raise
            self.events.append(f"{name} ended")
            if fails:
                raise ValueError(name)
            return name

        return run


def run(scenario: Callable[[], Awaitable[Any]]) -> Any:
    """Runs it; afterwards no task may be left, and nobody may have complained to the loop."""
    complaints: list[dict[str, Any]] = []

    async def watched() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        try:
            return await scenario()
        finally:
            for _ in range(5):
                await asyncio.sleep(0)
            assert len(asyncio.all_tasks()) == 1
            gc.collect()

    try:
        return asyncio.run(watched())
    finally:
        gc.collect()
        assert complaints == []


LONG_S = 60.0


def test_a_call_that_is_quick_enough_is_alone() -> None:
    calls = Calls()
    answer = run(lambda: hedged(calls.call("one", 0.001), calls.call("two", 0.0), 30.0))
    assert answer == Hedged("one")
    assert calls.events == ["one began", "one ended"]


def test_a_slow_call_is_overtaken_and_cancelled() -> None:
    calls = Calls()
    answer = run(lambda: hedged(calls.call("one", LONG_S), calls.call("two", 0.001), 0.002))
    assert answer == Hedged("two", sent=True, won=True)
    assert calls.events == ["one began", "two began", "two ended", "one cancelled"]


def test_the_first_may_still_win_and_then_the_second_is_cancelled() -> None:
    calls = Calls()
    answer = run(lambda: hedged(calls.call("one", 0.02), calls.call("two", LONG_S), 0.002))
    assert answer == Hedged("one", sent=True)
    assert calls.events[-1] == "two cancelled"


def test_without_budget_or_without_delay_there_is_no_second() -> None:
    for delay_s, may in ((0.001, False), (None, True), (0.0, False)):
        calls = Calls()
        answer = run(lambda: hedged(calls.call("one", 0.01), calls.call("two", 0.0), delay_s, lambda: may))  # noqa: B023
        assert answer == Hedged("one")
        assert calls.events == ["one began", "one ended"]


def test_the_budget_is_asked_only_when_the_delay_has_passed() -> None:
    asked = []
    quick = Calls().call("one", 0.0)
    run(lambda: hedged(quick, quick, 30.0, lambda: bool(asked.append(1))))
    assert asked == []


def test_without_a_delay_both_compete_from_the_start() -> None:
    calls = Calls()
    answer = run(lambda: hedged(calls.call("one", LONG_S), calls.call("two", 0.001), 0.0))
    assert answer == Hedged("two", sent=True, won=True)


@pytest.mark.parametrize(("fails", "wins"), [("one", "two"), ("two", "one")])
def test_who_fails_leaves_it_to_the_other(fails: str, wins: str) -> None:
    calls = Calls()
    one = calls.call("one", 0.02 if fails == "two" else 0.005, fails == "one")
    two = calls.call("two", 0.02 if fails == "one" else 0.001, fails == "two")
    answer = run(lambda: hedged(one, two, 0.001))
    assert answer == Hedged(wins, sent=True, won=wins == "two")


def test_when_both_fail_the_first_error_is_told_and_none_is_left_unread() -> None:
    calls = Calls()
    with pytest.raises(ValueError, match="one"):
        run(lambda: hedged(calls.call("one", 0.01, True), calls.call("two", 0.001, True), 0.001))
    assert {"one ended", "two ended"} <= set(calls.events)


def test_a_first_that_fails_at_once_is_not_tried_again() -> None:
    calls = Calls()
    with pytest.raises(ValueError, match="one"):
        run(lambda: hedged(calls.call("one", 0.0, True), calls.call("two", 0.0), 30.0))
    assert calls.events == ["one began", "one ended"]


@pytest.mark.parametrize("both_run", [False, True])
def test_who_goes_away_takes_all_calls_along(both_run: bool) -> None:
    calls = Calls()

    async def scenario() -> None:
        delay_s = 0.001 if both_run else LONG_S
        task = asyncio.ensure_future(hedged(calls.call("one", LONG_S), calls.call("two", LONG_S), delay_s))
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario)
    assert calls.events.count("one cancelled") == 1
    assert calls.events.count("two cancelled") == both_run


def test_a_loser_that_raises_while_it_is_cancelled_disturbs_nobody() -> None:
    async def stubborn() -> str:
        try:
            await asyncio.sleep(LONG_S)
        finally:
            raise ValueError("not so fast")

    answer = run(lambda: hedged(stubborn, Calls().call("two", 0.001), 0.001))
    assert answer.value == "two"


def test_one_slow_replica_in_many_calls_is_felt_only_as_long_as_the_delay() -> None:
    """Every 25th call meets a slow replica; time is that of a loop which jumps to its next timer."""

    async def scenario() -> tuple[list[float], Hedging]:
        loop = asyncio.get_running_loop()
        hedging, took_s = Hedging(HedgeSettings(most_share=0.05)), []
        calls = Calls()
        for i in range(2_000):
            first = calls.call("one", 5.0 if i % 25 == 24 else 0.010)
            began_s = loop.time()
            delay_s = hedging.delay_s(A, 1, n_replicas=2)
            await hedged(first, calls.call("two", 0.010), delay_s, hedging.may_hedge)
            took_s.append(loop.time() - began_s)
            hedging.observe(A, 1, took_s[-1] * 1e3)
        return took_s, hedging

    loop = JumpingLoop()
    try:
        took_s, hedging = loop.run_until_complete(scenario())
    finally:
        loop.close()
    assert max(took_s[:24]) < 0.011
    assert max(took_s[100:]) < 0.1
    assert max(took_s[1000:]) < 0.025
    assert hedging.n_hedges <= 0.05 * hedging.n_calls


class SlowFirst(planner.calls.Calls):
    """Answers after 10 ms; the calls numbered in `slow` after a second. Counts who was cancelled."""

    def __init__(self, slow: set[int]) -> None:
        self._slow = slow
        self.pairs: list[str] = []
        self.n_cancelled = 0

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        self.pairs.append(pair)
        try:
            await asyncio.sleep(1.0 if len(self.pairs) - 1 in self._slow else 0.01)
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        return Ran({}, 1.0)


def ran_in_turn(inner: SlowFirst, n_calls: int, n_replicas: int) -> list[tuple[bool, float]]:
    """Whether each call was hedged, and after how many seconds it was answered."""

    async def main() -> list[tuple[bool, float]]:
        clock = asyncio.get_running_loop().time
        calls = HedgedCalls(inner, lambda extension: n_replicas, clock=clock)
        told = []
        for _ in range(n_calls):
            started_s = clock()
            ran = await calls.infer(A, {"x": [np.zeros(4)]}, 10.0)
            told.append((ran.hedged, clock() - started_s))
        await asyncio.sleep(2.0)  # losers come to their end
        return told

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


def test_a_call_that_takes_long_is_sent_again_as_its_pair_and_the_answer_says_so() -> None:
    inner = SlowFirst({200})
    told = ran_in_turn(inner, 250, n_replicas=2)
    assert [i for i, (was_hedged, _) in enumerate(told) if was_hedged] == [200]
    assert told[200][1] < 0.03
    assert inner.n_cancelled == 0
    assert len(inner.pairs) == 251
    assert [i for i, pair in enumerate(inner.pairs) if inner.pairs.count(pair) == 2] == [200, 201]


def test_an_extension_that_must_not_be_asked_twice_is_not() -> None:
    inner = SlowFirst({200})
    told = ran_in_turn(inner, 250, n_replicas=0)
    assert len(inner.pairs) == 250
    assert not any(was_hedged for was_hedged, _ in told)
    assert told[200][1] >= 1.0
