"""Convoys: requests for the same plan that travel together, so that what a plan costs is paid once for all of them.

Requests whose plan and row shapes are equal join one convoy. A group of them leaves at the end of the event loop's
turn, with all that came in that turn; while as many groups as are allowed are on their way, the others wait for the
next one to come back. So nobody waits where waiting cannot help: a lone request leaves at once, and a full house
leaves in large groups. A group that fails is split in halves down to the guilty request. Who would be late by the time
that those before it have left is refused at once, and told when to come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import chain
from time import perf_counter  # the loop of uvloop counts whole milliseconds
from typing import Any

import numpy as np

from planner.errors import (
    BadRequest,
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionUnavailable,
    FenixError,
    Overloaded,
)
from planner.features import Array, Rows
from planner.plans import Answer, Plan, PlanSet
from planner.tokens import Token

MOST_UNDER_WAY = 4  # groups of one convoy: the steps of a chain work on different groups at the same time
MOST_ROWS = 256  # of one group
MOST_WAITING_ROWS = 65_536

# Plan, inputs, token, alternative plans -> what `Dispatcher.dispatch` gives.
Dispatch = Callable[[Plan, Mapping[str, Array], Token, Sequence[Plan]], Coroutine[Any, Any, Answer]]


class Rider(ABC):
    """One request in a convoy: its rows, and what to do when it hears of its answer. Only the first word counts."""

    __slots__ = ("group", "inputs", "n_rows", "token")

    inputs: Mapping[str, Array]  # all have `n_rows` rows
    n_rows: int
    token: Token
    group: _Group | None

    @abstractmethod
    def arrive(self, answer: Answer, start: int, stop: int) -> None:
        """The answer of the whole group is there; this request's rows are `start` to `stop`."""

    @abstractmethod
    def fail(self, error: FenixError) -> None:
        """There is no answer for this request."""


class Passenger(Rider):
    """A rider that a coroutine waits for."""

    __slots__ = ("future",)

    def __init__(self, inputs: Mapping[str, Array], n_rows: int, token: Token) -> None:
        self.inputs, self.n_rows, self.token, self.group = inputs, n_rows, token, None
        self.future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def arrive(self, answer: Answer, start: int, stop: int) -> None:
        if not self.future.done():
            self.future.set_result(share_of(answer, start, stop))

    def fail(self, error: FenixError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def share_of(answer: Answer, start: int, stop: int) -> Answer:
    """The answer for the rows `start` to `stop` of a group."""
    outputs = {
        name: Rows(rows.values[start:stop], None if rows.confidence is None else rows.confidence[start:stop])
        for name, rows in answer.outputs.items()
    }
    return Answer(outputs, answer.plan, answer.steps, answer.flags)


class _Group:
    """Riders that left together, and what brings them."""

    __slots__ = ("riders", "task", "timer")

    def __init__(self, riders: list[Rider]) -> None:
        self.riders = riders
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        for rider in riders:
            rider.group = self


class _Pace:
    """How fast a convoy gets on while others wait, and how long a group is on its way. Both forget slowly."""

    __slots__ = ("_last_s", "rows_per_s", "trip_s")

    def __init__(self) -> None:
        self.rows_per_s = self.trip_s = 0.0  # 0 is unknown
        self._last_s: float | None = None  # when the last group came back, if somebody waited then

    def back(self, n_rows: int, left_s: float, now_s: float, others_wait: bool) -> None:
        """A group of `n_rows` that left at `left_s` is back."""
        since_s = left_s if self._last_s is None else self._last_s
        rate = n_rows / max(now_s - since_s, 1e-4)
        self.rows_per_s += 0.2 * (rate - self.rows_per_s) if self.rows_per_s else rate
        took_s = now_s - left_s
        self.trip_s += 0.2 * (took_s - self.trip_s) if self.trip_s else took_s
        self._last_s = now_s if others_wait else None

    def wait_s(self, rows_ahead: int) -> float:
        """How long one waits for its answer behind so many rows."""
        return (rows_ahead / self.rows_per_s if self.rows_per_s else 0.0) + self.trip_s


class Convoy:
    """Where the requests for one plan gather. Belongs to one event loop."""

    def __init__(self, plans: PlanSet, dispatch: Dispatch, at_once: Callable[[Plan], bool]) -> None:
        """`at_once` tells whether a plan can be run within this turn of the loop, without waiting for anything."""
        self.plans = plans
        self._dispatch = dispatch
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Rider] = deque()
        self._waiting_rows = 0
        self._pace = _Pace()
        self._halves: deque[list[Rider]] = deque()  # of groups that failed: they leave before all others
        self._called = False  # `_leave` comes at the end of this turn
        self._soonest_s = math.inf  # no deadline of those that wait is earlier
        self._timer: asyncio.TimerHandle | None = None  # looks at them, at `_looks_s`
        self._looks_s = math.inf
        self._under_way: set[asyncio.Task[None]] = set()

    def join(self, rider: Rider) -> None:
        """Takes a request along with the next group. Returns at once; the rider is told later, or now if it is refused
        (Overloaded)."""
        if self._waiting:
            refusal = self._refusal(rider)
            if refusal is not None:
                rider.fail(refusal)
                return
        self._waiting.append(rider)
        self._waiting_rows += rider.n_rows
        if rider.token.hard and rider.token.until_s < self._soonest_s:
            self._soonest_s = rider.token.until_s
        if self._called:
            return
        if len(self._under_way) < MOST_UNDER_WAY:
            self._call()
        else:
            self._watch_waiting()

    def abandon(self, rider: Rider) -> None:
        """The rider's client has gone: it is left behind, and a group of which nobody is left is called back."""
        rider.token.gone = True
        if rider.group is not None:
            _call_back_if_empty(rider.group)

    def _refusal(self, rider: Rider) -> Overloaded | None:
        """Why a rider cannot be taken along with those that wait already."""
        wait_s = self._pace.wait_s(self._waiting_rows)
        if self._waiting_rows + rider.n_rows > MOST_WAITING_ROWS:
            return Overloaded(f"{self._waiting_rows} rows wait already.", hint="Come back later.", retry_after_s=wait_s)
        late_s = self._loop.time() + wait_s - rider.token.until_s
        if not rider.token.hard or late_s <= 0.0:
            return None
        return Overloaded(
            f"{self._waiting_rows} rows wait: an answer would come {late_s * 1e3:.0f} ms after the deadline.",
            hint="Come back later, or allow more time.",
            retry_after_s=late_s,
        )

    def _call(self) -> None:
        self._called = True
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._called = False
        if self._at_once(self.plans.best):
            self._go_now(self._next())
            if (self._waiting or self._halves) and not self._called:  # others want a turn of the loop too
                self._call()
            return
        while (self._waiting or self._halves) and len(self._under_way) < MOST_UNDER_WAY:
            self._start(self._next())
        self._watch_waiting()

    def _start(self, riders: list[Rider]) -> None:
        if not riders:
            return
        group = _Group(riders)
        # A context of its own: the request that happens to be first may be cancelled, the group must not be.
        group.task = self._loop.create_task(self._go(group), context=contextvars.Context())
        self._under_way.add(group.task)
        group.task.add_done_callback(self._returned)

    def _returned(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if (self._waiting or self._halves) and not self._called:
            self._call()

    def _next(self) -> list[Rider]:
        """The riders to leave now. Whose client has gone stays behind, and so does who is late already."""
        riders: list[Rider] = []
        n_rows = 0
        now_s = self._loop.time()
        if self._halves:
            for rider in self._halves.popleft():
                if rider.token.late(now_s):
                    rider.fail(_late())
                elif not rider.token.gone:
                    riders.append(rider)
            return riders
        while self._waiting and (not riders or n_rows + self._waiting[0].n_rows <= MOST_ROWS):
            rider = self._waiting.popleft()
            self._waiting_rows -= rider.n_rows
            if rider.token.gone:
                continue
            if rider.token.late(now_s):
                rider.fail(_late())
                continue
            riders.append(rider)
            n_rows += rider.n_rows
        return riders

    def _go_now(self, riders: list[Rider]) -> None:
        if not riders:
            return
        left_s = perf_counter()
        try:
            running = self._run(riders)
            running.send(None)
        except StopIteration as end:
            _tell(riders, end.value, self._loop.time())
            self._pace.back(sum([rider.n_rows for rider in riders]), left_s, perf_counter(), bool(self._waiting))
        except FenixError as error:
            if _may_be_one(riders, error):
                half = len(riders) // 2
                self._go_now(riders[:half])
                self._go_now(riders[half:])
            else:
                _refuse(riders, error)
        except Exception as error:
            _refuse(riders, ExtensionRaised(f"the plan failed: {error!r}"))
        else:  # it waits for something after all: an extension moved away from here just now
            running.close()
            self._start(riders)

    async def _go(self, group: _Group) -> None:
        riders = group.riders
        left_s = perf_counter()
        self._watch(group)
        try:
            answer = await self._run(riders)
            _tell(riders, answer, self._loop.time())
            self._pace.back(sum([rider.n_rows for rider in riders]), left_s, perf_counter(), bool(self._waiting))
        except FenixError as error:
            if _may_be_one(riders, error):
                half = len(riders) // 2
                self._halves += (riders[:half], riders[half:])
                for rider in riders:
                    if rider.token.hard:
                        self._soonest_s = min(self._soonest_s, rider.token.until_s)
            else:
                _refuse(riders, error)
        except asyncio.CancelledError:
            # Either all of them have gone, or something on the way was ended for reasons of its own.
            _refuse(riders, ExtensionUnavailable("the call was ended before its answer came.", hint="Send it again."))
            raise
        except Exception as error:  # whatever happens, nobody may wait for ever
            _refuse(riders, ExtensionRaised(f"the plan failed: {error!r}"))
        finally:
            if group.timer is not None:
                group.timer.cancel()

    def _run(self, riders: Sequence[Rider]) -> Coroutine[Any, Any, Answer]:
        first = riders[0]
        inputs, token = first.inputs, first.token
        if len(riders) > 1:
            inputs = {name: np.concatenate([rider.inputs[name] for rider in riders]) for name in inputs}
            token = _token_of(riders)
        return self._dispatch(self.plans.best, inputs, token, self.plans.plans[1:])

    def _watch(self, group: _Group) -> None:
        """Fails the riders of a group that are late, now and whenever the next one will be."""
        now_s = self._loop.time()
        until_s = math.inf
        for rider in group.riders:
            if rider.token.hard and not rider.token.gone:
                if rider.token.late(now_s):
                    rider.fail(_late())
                    rider.token.gone = True
                else:
                    until_s = min(until_s, rider.token.until_s)
        group.timer = self._loop.call_at(until_s, self._watch, group) if until_s < math.inf else None
        _call_back_if_empty(group)

    def _watch_waiting(self) -> None:
        """Sees to it that those that wait hear of it when they are late."""
        if not self._waiting and not self._halves:
            self._soonest_s = math.inf
        if self._soonest_s == self._looks_s:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._looks_s = self._soonest_s
        waits = self._soonest_s < math.inf
        self._timer = self._loop.call_at(self._soonest_s, self._look_at_waiting) if waits else None

    def _look_at_waiting(self) -> None:
        self._timer, self._looks_s, self._soonest_s = None, math.inf, math.inf
        now_s = self._loop.time()
        for rider in chain(self._waiting, *self._halves):
            if rider.token.hard and not rider.token.gone:
                if rider.token.late(now_s):
                    rider.fail(_late())
                    rider.token.gone = True  # it stays behind when the others leave
                else:
                    self._soonest_s = min(self._soonest_s, rider.token.until_s)
        self._watch_waiting()


def _call_back_if_empty(group: _Group) -> None:
    """Ends what is under way for a group of which nobody waits for an answer any more."""
    if group.task is not None and all(rider.token.gone for rider in group.riders):
        group.task.cancel()


def _tell(riders: Sequence[Rider], answer: Answer, now_s: float) -> None:
    start = 0
    for rider in riders:
        stop = start + rider.n_rows
        if rider.token.hard and now_s > rider.token.until_s:
            rider.fail(_late())
        else:
            rider.arrive(answer, start, stop)
        start = stop


def _refuse(riders: Sequence[Rider], error: FenixError) -> None:
    for rider in riders:
        rider.fail(error)


def _may_be_one(riders: Sequence[Rider], error: FenixError) -> bool:
    """Whether the rows of one of several riders may be what the others fail for."""
    return len(riders) > 1 and isinstance(error, ExtensionRaised | ExtensionBroken | BadRequest)


def _token_of(riders: Sequence[Rider]) -> Token:
    """The group's own: as patient as the most patient rider. Class, user and tags are those of all of them."""
    first = riders[0].token
    patient = max((rider.token for rider in riders), key=lambda token: token.until_s)
    hard = all(rider.token.hard for rider in riders)
    return Token(patient.until_s, first.priority, first.user, first.tags, hard, shared=True)


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before there was an answer.", hint="Allow more time, or send less.")
