from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.batching import Batchers
from planner.calls import LocalCalls, Produced
from planner.cards import Card, ExtensionId, Resources
from planner.choosing import Chosen
from planner.convoys import (
    MOST_RETRY_S,
    MOST_ROWS,
    MOST_UNDER_WAY,
    MOST_WAITING_ROWS,
    TAKEN_IN_S,
    Convoy,
    Passenger,
    Rider,
    Unnoted,
    _Lines,
)
from planner.dispatch import Dispatcher
from planner.errors import (
    BadInput,
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionUnavailable,
    FenixError,
    Overloaded,
)
from planner.features import Array, Rows
from planner.line import FAR_S
from planner.pace import SPREAD, TRIPS
from planner.placed import Placed
from planner.placement import Placements
from planner.plans import Answer, Plan, PlanSet, Step
from planner.tokens import Escort, Token
from tests.clocks import JumpingLoop
from tests.planner.doubles import PacedCalls, card, plan_of, step
from tests.planner.test_batching import settle

PLAN = plan_of(step(0, "a"))
LONG_S = 1e6


def drive(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario)


def now_s() -> float:
    return asyncio.get_running_loop().time()


class Counter:
    """A line with room for so many rows, whoever asks."""

    def __init__(self, free: int = 1000) -> None:
        self.free = free
        self.expected: list[int] = []
        self.watchers: list[Callable[[], None]] = []

    def room(self, token: Token) -> int:
        return self.free

    def expect(self, n_rows: int, token: Token) -> None:
        self.expected.append(n_rows)

    def when_moved(self, token: Token, tell: Callable[[], None]) -> None:
        self.watchers.append(tell)


class Road:
    """What a convoy dispatches to: adds 1 to every row. While `gate` is closed, groups are on their way."""

    def __init__(self, error_of: Callable[[list[float]], Exception | None] = lambda rows: None) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.groups: list[list[float]] = []  # the rows of every group that left
        self.tokens: list[Token] = []
        self.escorts: list[Escort] = []
        self.under_way = self.most_under_way = self.cancelled = 0
        self._error_of = error_of

    async def dispatch(
        self, plan: Plan, inputs: Mapping[str, Array], token: Token, alternatives: Sequence[Plan]
    ) -> Answer:
        x = inputs["x"]
        self.groups.append(x.tolist())
        self.tokens.append(token)
        if token.escort is not None:
            self.escorts.append(token.escort)
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if not self.gate.is_set():
                await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.under_way -= 1
        error = self._error_of(x.tolist())
        if error is not None:
            raise error
        return Answer({"y": Rows(x + 1, x / np.float32(1000))}, plan, ())

    def convoy(self, at_once: bool = False) -> Convoy:
        return Convoy(plans_of(PLAN), self.dispatch, lambda plan: at_once)


def plans_of(*plans: Plan) -> PlanSet:
    return PlanSet(plans, (), 1, True, 1, 0.0)


def rows(*values: float) -> Array:
    return np.array(values, np.float32)


def passenger(*values: float, deadline_s: float | None = None) -> Passenger:
    """Somebody with these rows, and a deadline this far away."""
    hard = deadline_s is not None
    token = Token(now_s() + deadline_s if deadline_s is not None else LONG_S, hard=hard)
    return Passenger({"x": rows(*values)}, len(values), token)


def board(convoy: Convoy, *riders: Passenger) -> list[Passenger]:
    for rider in riders:
        convoy.join(rider)
    return list(riders)


async def full_house(convoy: Convoy) -> None:
    """Eight rows are on their way, so that fewer wait."""
    board(convoy, *map(passenger, range(8)))
    await settle()


def got(rider: Passenger) -> list[float]:
    return rider.future.result().outputs["y"].values.tolist()


def heard(rider: Passenger) -> type[BaseException] | None:
    """What a rider was refused with by now; None for one that waits or has its answer."""
    return type(rider.future.exception()) if rider.future.done() and rider.future.exception() else None


def is_idle(convoy: Convoy) -> bool:
    """Whether nothing is left of what a convoy had to do."""
    left: list[Any] = [convoy._waiting, convoy._halves, convoy._under_way, convoy._waiting_rows, convoy._called]
    return not any(left) and (convoy._timer is None or convoy._timer.cancelled())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_lone_request_leaves_in_the_same_turn_with_its_own_rows_and_token(at_once: bool) -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy(at_once)
        (rider,) = board(convoy, passenger(1, 2))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert road.groups == [[1, 2]]
        assert road.tokens == [rider.token]
        assert not rider.token.shared
        assert got(rider) == [2, 3]

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_requests_of_one_turn_travel_together_and_everyone_gets_the_own_rows_and_confidence(at_once: bool) -> None:
    async def scenario() -> None:
        road = Road()
        riders = board(road.convoy(at_once), passenger(1), passenger(2, 3), passenger(4))
        await settle()
        assert road.groups == [[1, 2, 3, 4]]
        assert [got(rider) for rider in riders] == [[2], [3, 4], [5]]
        sure = riders[1].future.result().outputs["y"].confidence
        assert sure is not None
        assert sure.tolist() == pytest.approx([0.002, 0.003])
        assert road.tokens[0].shared

    drive(scenario())


def test_an_answer_without_confidence_is_shared_out_too() -> None:
    async def scenario() -> None:
        async def dispatch(plan: Plan, inputs: Mapping[str, Array], *_: object) -> Answer:
            return Answer({"y": Rows(inputs["x"])}, plan, (), frozenset({"degraded"}))

        riders = board(Convoy(plans_of(PLAN), dispatch, lambda plan: False), passenger(1), passenger(2))
        await settle()
        assert got(riders[1]) == [2]
        assert riders[1].future.result().outputs["y"].confidence is None
        assert riders[1].future.result().flags == {"degraded"}

    drive(scenario())


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(1, MOST_ROWS), min_size=1, max_size=12), at_once=st.booleans())
def test_no_group_is_larger_than_allowed_and_nobody_is_passed_over(sizes: list[int], at_once: bool) -> None:
    async def scenario() -> None:
        road = Road()
        riders = board(road.convoy(at_once), *[passenger(*[float(i)] * size) for i, size in enumerate(sizes)])
        for _ in sizes:  # a group a turn
            await settle()
        assert [value for group in road.groups for value in group] == [i for i, n in enumerate(sizes) for _ in range(n)]
        assert all(len(group) <= MOST_ROWS for group in road.groups)
        assert [got(rider) for rider in riders] == [[i + 1.0] * size for i, size in enumerate(sizes)]

    drive(scenario())


def test_while_rows_are_on_their_way_others_leave_when_they_are_many_and_all_of_them_when_those_are_back() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        riders: list[Passenger] = []
        for i in range(12):
            riders += board(convoy, passenger(i))
            await settle()
        assert road.groups == [[0], [1, 2], [3, 4, 5, 6, 7, 8]]
        road.gate.set()
        await settle()
        assert road.groups[3:] == [[9, 10, 11]]
        assert [got(rider) for rider in riders] == [[i + 1] for i in range(12)]
        assert is_idle(convoy)

    drive(scenario())


def test_who_waits_leaves_as_soon_as_the_rows_before_it_stand_in_no_line_any_more() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        await full_house(convoy)
        (first,) = road.escorts
        counter = Counter()
        first.waits(counter, 8, 256)
        board(convoy, passenger(8))
        await settle()
        assert len(road.groups) == 1
        first.goes(counter, 3)
        await settle()
        assert len(road.groups) == 1
        first.goes(counter, 5)
        await settle()
        assert road.groups[1:] == [[8]]

    drive(scenario())


ANYBODY = Token(LONG_S)


def test_no_more_rows_stand_in_a_line_than_a_call_takes_and_a_group_is_what_goes_in_one() -> None:
    moved: list[bool] = []
    lines, counter = _Lines(lambda: moved.append(True)), Counter()
    assert lines.room(1000, ANYBODY) == MOST_ROWS
    lines.waits(counter, 16, 16)
    assert lines.room(1000, ANYBODY) == 0
    for _ in range(30):  # the rows of others fill the calls: four of ours go in each
        lines.goes(counter, 4)
        lines.learn()
        assert lines.room(1000, ANYBODY) <= 4
        lines.waits(counter, 4, 16)
    lines.goes(counter, 16)
    assert 4 <= lines.room(1000, ANYBODY) <= 5
    for _ in range(10):  # all that stand there go: there is room for more
        lines.learn()
        n_rows = lines.room(1000, ANYBODY)
        lines.waits(counter, n_rows, 16)
        lines.goes(counter, n_rows)
    assert lines.room(1000, ANYBODY) == 16
    assert moved


def test_who_joins_a_line_after_a_call_has_begun_was_not_left_behind_by_it() -> None:
    lines, counter = _Lines(lambda: None), Counter()
    for _ in range(50):
        lines.waits(counter, 3, 16)
        lines.goes(counter, 3)
        lines.waits(counter, 5, 16)
        lines.learn()
        lines.goes(counter, 5)
        lines.learn()
    assert lines.room(1000, ANYBODY) == 16


def test_a_convoy_fills_what_others_leave_free_and_waits_to_be_told_when_that_is_nothing() -> None:
    moved: list[bool] = []
    lines, counter = _Lines(lambda: moved.append(True)), Counter()
    lines.waits(counter, 8, 16)
    lines.goes(counter, 8)
    lines.learn()
    moved.clear()
    counter.free = 3
    assert lines.room(1000, ANYBODY) == 3
    counter.free = 0
    assert lines.room(1000, ANYBODY) == 0
    counter.free = 16
    assert lines.room(1000, ANYBODY) == 0  # it asks no more
    (tell,) = counter.watchers
    tell()
    assert moved == [True]
    assert lines.room(1000, ANYBODY) > 0


def test_the_line_that_groups_come_to_first_knows_of_those_on_their_way() -> None:
    async def scenario() -> None:
        road, counter = Road(), Counter()
        convoy = road.convoy()
        for _ in range(3):
            road.gate.clear()
            board(convoy, *map(passenger, range(4)))
            await settle()
            road.escorts[-1].waits(counter, 4, 16)
            road.escorts[-1].goes(counter, 4)
            road.gate.set()
            await settle()
        road.gate.clear()
        board(convoy, passenger(1))
        await settle()
        assert counter.expected == [4, -4, 4, -4, 1]
        road.gate.set()  # it is done without having stood there
        await settle()
        assert counter.expected[5:] == [-1]
        assert is_idle(convoy)

    drive(scenario())


def test_one_slow_trip_does_not_keep_requests_out_for_good() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy()
        convoy._pace.took(0.3, perf_counter())
        for _ in range(3):  # shorter deadlines than that trip took; but nobody is on the way, so trying shows how it is
            (rider,) = board(convoy, passenger(1, deadline_s=0.2))
            await settle()
            assert got(rider) == [2]

    drive(scenario())


ROWS_FAULTS = [ExtensionRaised("no"), ExtensionBroken("no"), BadInput("no")]


@pytest.mark.parametrize("error", ROWS_FAULTS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("at_once", [False, True])
@settings(max_examples=15, deadline=None)
@given(guilty=st.sets(st.integers(0, 15)), n_riders=st.integers(2, 16))
def test_a_group_that_fails_is_split_down_to_the_guilty(
    at_once: bool, error: FenixError, guilty: set[int], n_riders: int
) -> None:
    async def scenario() -> None:
        road = Road(lambda rows: error if guilty.intersection(map(int, rows)) else None)
        convoy = road.convoy(at_once)
        riders = board(convoy, *map(passenger, range(n_riders)))
        for _ in range(6):
            await settle()
        for i, rider in enumerate(riders):
            if i in guilty:
                assert rider.future.exception() is error
            else:
                assert got(rider) == [i + 1]
        assert road.most_under_way <= MOST_UNDER_WAY
        assert is_idle(convoy)

    drive(scenario())


class InTurn:
    """Chooses one plan after the other."""

    def __init__(self, *plans: Plan) -> None:
        self.usual = plans[0]
        self._plans = plans
        self.n_requests: list[int] = []

    def choose(self, n_requests: int) -> Chosen:
        self.n_requests.append(n_requests)
        return Chosen(self._plans[(len(self.n_requests) - 1) % len(self._plans)])


@pytest.mark.parametrize("at_once", [False, True])
def test_what_is_left_of_a_group_that_failed_is_tried_again_by_the_plan_that_was_chosen(at_once: bool) -> None:
    async def scenario() -> None:
        other = replace(PLAN, id="other")
        ran: list[tuple[str, list[float]]] = []

        async def dispatch(
            plan: Plan, inputs: Mapping[str, Array], token: Token, alternatives: Sequence[Plan]
        ) -> Answer:
            ran.append((plan.id, inputs["x"].tolist()))
            if plan is other and 2 in inputs["x"]:
                raise ExtensionRaised("no")
            return Answer({"y": Rows(inputs["x"])}, plan, ())

        chooser = InTurn(other, PLAN)
        convoy = Convoy(plans_of(PLAN, other), dispatch, lambda plan: at_once, None, chooser)
        riders = board(convoy, *map(passenger, range(4)))
        for _ in range(4):
            await settle()
        assert [heard(rider) for rider in riders] == [None, None, ExtensionRaised, None]
        assert {plan for plan, _ in ran} == {"other"}
        assert chooser.n_requests == [4]

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("error", [ExtensionUnavailable("gone"), Overloaded("full"), DeadlineExceeded("late")])
def test_what_is_nobodys_fault_is_told_to_all_without_another_try(at_once: bool, error: FenixError) -> None:
    async def scenario() -> None:
        road = Road(lambda rows: error)
        riders = board(road.convoy(at_once), passenger(1), passenger(2))
        await settle()
        assert [rider.future.exception() for rider in riders] == [error, error]
        assert len(road.groups) == 1

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_who_was_kept_waiting_is_late_and_not_refused(at_once: bool) -> None:
    async def scenario() -> None:
        road = Road(lambda rows: Overloaded("full"))
        waited, patient, new = passenger(1, deadline_s=5.0), passenger(2), passenger(3, deadline_s=5.0)
        for rider in (waited, patient):
            rider.token.came_s = now_s() - 2 * TAKEN_IN_S
        new.token.came_s = now_s()
        board(road.convoy(at_once), waited, patient, new)
        await settle()
        assert [heard(rider) for rider in (waited, patient, new)] == [DeadlineExceeded, Overloaded, Overloaded]

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_an_exception_that_is_none_of_ours_is_told_to_all_as_a_failure(at_once: bool) -> None:
    async def scenario() -> None:
        riders = board(Road(lambda rows: KeyError("lost")).convoy(at_once), passenger(1), passenger(2))
        await settle()
        for rider in riders:
            with pytest.raises(ExtensionRaised, match="the plan failed: KeyError"):
                got(rider)

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_a_dispatch_that_cannot_even_begin_leaves_nobody_waiting(at_once: bool) -> None:
    def broken(*_: object) -> Coroutine[Any, Any, Answer]:
        raise MemoryError("no room")

    async def scenario() -> None:
        convoy = Convoy(plans_of(PLAN), broken, lambda plan: at_once)
        (rider,) = board(convoy, passenger(1))
        await settle()
        assert heard(rider) is ExtensionRaised
        assert is_idle(convoy)

    drive(scenario())


@pytest.mark.parametrize("at_once", [False, True])
def test_who_is_late_or_gone_before_the_group_leaves_is_not_run(at_once: bool) -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy(at_once)
        late, gone, there = board(convoy, passenger(1, deadline_s=0.0), passenger(2), passenger(3))
        convoy.abandon(gone)
        await settle()
        assert road.groups == [[3]]
        assert heard(late) is DeadlineExceeded
        assert not gone.future.done()
        assert got(there) == [4]
        assert is_idle(convoy)

    drive(scenario())


def test_who_gets_late_on_the_way_hears_of_it_then_and_the_others_travel_on() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        soon, later, never = board(
            road.convoy(), passenger(1, deadline_s=0.5), passenger(2, deadline_s=0.7), passenger(3)
        )
        begun_s = now_s()
        with pytest.raises(DeadlineExceeded):
            await soon.future
        assert now_s() - begun_s == pytest.approx(0.5)
        assert not later.future.done()
        with pytest.raises(DeadlineExceeded):
            await later.future
        assert now_s() - begun_s == pytest.approx(0.7)
        road.gate.set()
        await never.future
        assert got(never) == [4]
        assert road.cancelled == 0

    drive(scenario())


def test_who_gets_late_while_waiting_hears_of_it_then_even_if_it_came_when_the_house_was_full() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        await full_house(convoy)
        (patient,) = board(convoy, passenger(8))
        far, near = board(convoy, passenger(9, deadline_s=0.9), passenger(10, deadline_s=0.3))
        begun_s = now_s()
        with pytest.raises(DeadlineExceeded):
            await near.future
        assert now_s() - begun_s == pytest.approx(0.3)
        with pytest.raises(DeadlineExceeded):
            await far.future
        assert now_s() - begun_s == pytest.approx(0.9)
        road.gate.set()
        await patient.future
        assert road.groups[1:] == [[8]]
        await settle()
        assert is_idle(convoy)

    drive(scenario())


def test_waiting_longer_than_our_patience_does_not_keep_the_loop_busy() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        await full_house(convoy)
        rider = Passenger({"x": rows(7)}, 1, Token(now_s() + 0.1))
        board(convoy, rider)
        await asyncio.sleep(1.0)
        assert convoy._timer is None
        road.gate.set()
        await rider.future
        assert got(rider) == [8]

    drive(scenario())


def test_an_answer_after_the_deadline_is_none() -> None:
    async def scenario() -> None:
        async def slow(plan: Plan, inputs: Mapping[str, Array], *_: object) -> Answer:
            asyncio.get_running_loop()._now_s += 1.0  # type: ignore[attr-defined]  # an extension that holds the loop
            return Answer({"y": Rows(inputs["x"])}, plan, ())

        hurried, patient = board(
            Convoy(plans_of(PLAN), slow, lambda plan: True), passenger(1, deadline_s=0.5), passenger(2)
        )
        await settle()
        assert heard(hurried) is DeadlineExceeded
        assert got(patient) == [2]

    drive(scenario())


def test_a_group_is_called_back_when_nobody_is_left_in_it_and_not_before() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        one, other, late = board(convoy, passenger(1), passenger(2), passenger(3, deadline_s=0.5))
        await settle()
        convoy.abandon(one)
        await settle()
        assert road.cancelled == 0
        with pytest.raises(DeadlineExceeded):
            await late.future
        convoy.abandon(other)
        await settle()
        assert road.cancelled == 1
        assert is_idle(convoy)

    drive(scenario())


def test_a_group_of_which_all_are_late_is_called_back() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        riders = board(convoy, passenger(1, deadline_s=0.3), passenger(2, deadline_s=0.5))
        await asyncio.wait([rider.future for rider in riders])
        await settle()
        assert [heard(rider) for rider in riders] == [DeadlineExceeded] * 2
        assert road.cancelled == 1
        assert is_idle(convoy)

    drive(scenario())


def test_cancelling_the_first_passenger_does_not_cancel_the_others() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy()
        riders = [passenger(1), passenger(2)]

        async def ride(rider: Passenger) -> Answer:
            convoy.join(rider)
            try:
                return await rider.future
            except asyncio.CancelledError:
                convoy.abandon(rider)
                raise

        first, second = (asyncio.create_task(ride(rider)) for rider in riders)
        await settle()
        first.cancel()
        await settle()
        road.gate.set()
        assert (await second).outputs["y"].values.tolist() == [3]
        assert first.cancelled()

    drive(scenario())


def test_a_call_that_is_cancelled_from_below_leaves_nobody_waiting() -> None:
    async def scenario() -> None:
        async def ended(*_: object) -> Answer:
            await asyncio.sleep(0)
            raise asyncio.CancelledError

        riders = board(Convoy(plans_of(PLAN), ended, lambda plan: False), passenger(1), passenger(2))
        await settle()
        assert [heard(rider) for rider in riders] == [ExtensionUnavailable] * 2

    drive(scenario())


def test_who_goes_while_a_failed_group_is_split_is_left_behind() -> None:
    async def scenario() -> None:
        riders: list[Passenger] = []

        def error_of(rows: list[float]) -> Exception | None:
            if len(rows) == 4:
                convoy.abandon(riders[3])
            return ExtensionRaised("no") if 1 in rows else None

        road = Road(error_of)
        convoy = road.convoy()
        riders += board(convoy, *map(passenger, range(4)))
        await settle()
        assert road.groups == [[0, 1, 2, 3], [0, 1], [2], [0], [1]]

    drive(scenario())


def test_plans_that_run_at_once_need_no_task() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy(at_once=True)
        riders = board(convoy, passenger(1), passenger(2))
        before = asyncio.all_tasks()
        await asyncio.sleep(0)
        assert [got(rider) for rider in riders] == [[2], [3]]
        assert asyncio.all_tasks() == before

    drive(scenario())


def test_a_plan_that_has_to_wait_after_all_still_brings_its_answer() -> None:
    async def scenario() -> None:
        road = Road()
        road.gate.clear()
        convoy = road.convoy(at_once=True)
        riders = board(convoy, passenger(1), passenger(2, deadline_s=0.5))
        await settle()
        assert road.groups == [[2, 1]] * 2  # the earlier deadline first
        assert road.under_way == 1
        with pytest.raises(DeadlineExceeded):
            await riders[1].future
        road.gate.set()
        await riders[0].future
        assert got(riders[0]) == [2]

    drive(scenario())


def test_an_inline_group_that_is_too_large_for_its_extension_is_answered_by_the_deployment() -> None:
    async def scenario() -> None:
        small = Card("a", "1", card("a").inputs, card("a").outputs, resources=Resources(max_batch_rows=4))
        calls = PacedCalls({"a@1": lambda rows: {"y": Produced(rows["x"] + 1)}})
        observe = lambda extension, n_rows, kilo, took_ms: None  # noqa: E731
        placed = Placed(Batchers(calls), Placements(), observe)
        placed.place(small, lambda rows: {"y": Rows(rows["x"] + 1)})
        dispatcher = Dispatcher(placed, {small.id: small}.get, placed.at_once)
        convoy = Convoy(plans_of(PLAN), dispatcher.dispatch, placed.at_once)
        riders = board(convoy, *map(passenger, range(10)))
        for _ in range(5):
            await settle()
        assert [got(rider) for rider in riders] == [[i + 1] for i in range(10)]
        assert calls.batches
        assert is_idle(convoy)

    drive(scenario())


def test_who_would_be_late_behind_those_that_wait_is_refused_at_once() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy()
        for _ in range(3):
            convoy._pace.waits(perf_counter() - 1.0)
            convoy._pace.left(10, perf_counter(), others_wait=False)  # ten rows a second
        for _ in range(TRIPS):
            convoy._pace.took(0.2, perf_counter())
        road.gate.clear()
        await full_house(convoy)
        board(convoy, passenger(1, 2, 3, deadline_s=0.3))
        refused, kept = board(convoy, passenger(4, deadline_s=0.5), passenger(5, deadline_s=0.8))
        error = refused.future.exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == pytest.approx((3 + SPREAD * 3**0.5) / 10 + 0.2 - 0.5, abs=0.05)
        assert not kept.future.done()
        road.gate.set()
        await kept.future
        assert road.groups[1:] == [[1, 2, 3, 5]]

    drive(scenario())


def test_who_has_no_deadline_waits_while_a_replica_starts_anew_and_is_refused_when_nobody_gets_on() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy()
        road.gate.clear()
        await full_house(convoy)
        for pace in (convoy._pace, convoy._calm_pace):
            pace.waits(perf_counter() - 11.0)
            pace.left(1_000, perf_counter() - 1.0, others_wait=True)  # a hundred rows a second, until a second ago
        (patient,) = board(convoy, passenger(*[0.0] * 200, deadline_s=0.9))
        hasty, waits = board(convoy, passenger(1, deadline_s=1.0), passenger(2))
        assert heard(hasty) is Overloaded
        convoy._calm_pace._since_s = perf_counter() - 20.0
        (refused,) = board(convoy, passenger(3))
        error = refused.future.exception()
        assert isinstance(error, Overloaded)
        assert error.retry_after_s == MOST_RETRY_S
        assert not patient.future.done()
        assert not waits.future.done()
        road.gate.set()
        await asyncio.gather(patient.future, waits.future)

    drive(scenario())


class Charged(Unnoted):
    """Remembers to which plan failures were charged."""

    def __init__(self) -> None:
        self.failures: list[tuple[int, type[FenixError], str | None]] = []

    def failed(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None) -> None:
        there = [rider for rider in riders if not rider.token.gone]
        if there:
            self.failures.append((len(there), type(error), None if chosen is None else chosen.plan.id))


class Always:
    """Chooses one plan, and hears what becomes of it."""

    def __init__(self, plan: Plan) -> None:
        self.usual = plan
        self.heard: list[tuple[int, list[float], str]] = []

    def choose(self, n_requests: int) -> Chosen:
        return Chosen(self.usual, then=self._hear)

    def _hear(
        self, trace_ids: Sequence[str], inputs: Mapping[str, Array], came: Answer | FenixError, took_ms: float
    ) -> None:
        self.heard.append((len(trace_ids), inputs["x"].tolist(), type(came).__name__))


def test_who_is_late_on_the_way_is_charged_to_the_plan_and_who_never_left_to_nobody() -> None:
    async def scenario() -> None:
        road, notes, chooser = Road(), Charged(), Always(PLAN)
        convoy = Convoy(plans_of(PLAN), road.dispatch, lambda plan: False, notes, chooser)
        road.gate.clear()
        late, patient = board(convoy, passenger(1, deadline_s=0.5), passenger(2))
        await settle()
        await full_house(convoy)
        (waiting,) = board(convoy, passenger(3, deadline_s=0.7))
        for rider in (late, waiting):
            with pytest.raises(DeadlineExceeded):
                await rider.future
        assert notes.failures == [(1, DeadlineExceeded, PLAN.id), (1, DeadlineExceeded, None)]
        assert chooser.heard == [(0, [1.0], "DeadlineExceeded")]
        road.gate.set()
        await patient.future
        assert (1, [2.0], "Answer") in chooser.heard

    drive(scenario())


def test_the_earliest_deadline_leaves_first_but_overtakes_nobody_for_ever() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy()
        road.gate.clear()
        await full_house(convoy)
        old, new, lax, tight, as_tight = (
            passenger(1),
            passenger(2),
            passenger(3, deadline_s=4.0),
            passenger(4, deadline_s=2.0),
            passenger(5, deadline_s=2.0),
        )
        as_tight.token.until_s = tight.token.until_s
        old.token.came_s, new.token.came_s = now_s() - FAR_S, now_s()
        board(convoy, new, lax, old, tight, as_tight)
        road.gate.set()
        await asyncio.gather(*[rider.future for rider in (old, new, lax, tight, as_tight)])
        assert road.groups[-1] == [1, 4, 5, 3, 2]

    drive(scenario())


def test_a_convoy_does_not_take_in_more_than_its_rows() -> None:
    async def scenario() -> None:
        road = Road()
        convoy = road.convoy()
        full = [passenger(*[0.0] * MOST_ROWS) for _ in range(MOST_WAITING_ROWS // MOST_ROWS)]
        *_, one_more = board(convoy, *full, passenger(1))
        assert heard(one_more) is Overloaded
        await asyncio.wait([rider.future for rider in full])
        assert all(heard(rider) is None for rider in full)
        (later,) = board(convoy, passenger(1))
        await settle()
        assert got(later) == [2]

    drive(scenario())


def test_a_groups_token_is_as_patient_as_its_most_patient_rider() -> None:
    async def scenario() -> None:
        road = Road()
        board(road.convoy(), passenger(1, deadline_s=1.0), passenger(2, deadline_s=3.0))
        board(road.convoy(), passenger(1, deadline_s=1.0), passenger(2))
        await settle()
        hard, soft = road.tokens
        assert (hard.until_s, hard.hard) == (pytest.approx(3.0), True)
        assert (soft.until_s, soft.hard) == (LONG_S, False)

    drive(scenario())


def test_a_group_may_spend_what_its_most_sparing_rider_may() -> None:
    async def scenario() -> None:
        road = Road()
        riders = [passenger(i) for i in range(3)]
        riders[1].token.max_cost, riders[2].token.max_cost = 2.0, 1.5
        board(road.convoy(), *riders)
        board(road.convoy(), passenger(1), passenger(2))
        await settle()
        assert [token.max_cost for token in road.tokens] == [1.5, None]

    drive(scenario())


class Seen(Passenger):
    """A passenger of whom one can tell whether it is still remembered."""

    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("at_once", [False, True])
def test_nothing_is_left_behind_after_many_requests(at_once: bool) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        road = Road(lambda rows: ExtensionRaised("no") if 3 in rows else None)
        convoy = road.convoy(at_once)
        seen: weakref.WeakSet[Seen] = weakref.WeakSet()
        for turn in range(300):
            riders = board(
                convoy, *(Seen({"x": rows(i % 9)}, 1, Token(2.0 + i, hard=True)) for i in range(turn % 7 + 1))
            )
            seen.update(riders)
            for future in [rider.future for rider in riders]:  # or exceptions would be logged, and kept with the log
                future.add_done_callback(lambda future: future.cancelled() or future.exception())
            if turn % 5 == 0:
                convoy.abandon(riders[0])
                riders[0].future.cancel()
            if turn % 11 == 0:
                await settle()
        for _ in range(100):
            await settle()
        assert is_idle(convoy)
        assert len(asyncio.all_tasks()) == 1
        assert [handle for handle in loop._scheduled if not handle.cancelled()] == []  # type: ignore[attr-defined]
        del riders, future
        road.escorts.clear()
        road.tokens.clear()
        gc.collect()
        assert not seen

    drive(scenario())


def guarded(*fallbacks: str) -> Step:
    return step(0, "a", fallbacks=fallbacks)


def raising_on_2(rows: dict[str, Array]) -> Mapping[str, Rows]:
    if 2 in rows["x"]:
        raise ValueError("a two")
    return {"y": Rows(rows["x"] + 1)}


def adding_100(rows: dict[str, Array]) -> Mapping[str, Rows]:
    return {"y": Rows(rows["x"] + 100)}


@pytest.mark.parametrize("as_alternative", [False, True])
def test_only_the_guilty_rider_of_a_group_goes_to_the_fallback(as_alternative: bool) -> None:
    async def scenario() -> None:
        cards = {c.id: c for c in (card("a"), card("b"))}
        work = {ExtensionId("a@1"): raising_on_2, ExtensionId("b@1"): adding_100}
        dispatcher = Dispatcher(Batchers(LocalCalls(work)), cards.get)
        plans = (
            (plan_of(step(0, "a")), plan_of(step(0, "b"), id_="other")) if as_alternative else (plan_of(guarded("b")),)
        )
        riders = board(Convoy(plans_of(*plans), dispatcher.dispatch, lambda plan: False), *map(passenger, range(5)))
        await asyncio.wait([rider.future for rider in riders], timeout=10)
        assert [got(rider) for rider in riders] == [[1], [2], [102], [4], [5]]
        flags = [rider.future.result().flags for rider in riders]
        assert flags == [frozenset(), frozenset(), {"fallback"}, frozenset(), frozenset()]

    asyncio.run(scenario())
