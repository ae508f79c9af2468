"""Convoys: requests for the same plan that travel together, so that what a plan costs is paid once for all of them.

Requests whose plan and row shapes are equal join one convoy. A group of them leaves at the end of the event loop's
turn, with all that came in that turn, unless rows of this convoy still stand in line before an extension: to stand
there too would bring nobody forward. Then those that come wait here, until they are twice as many as stand there, of
which there are never more than a call takes; so the next call finds enough to do, and who could still be refused or
left behind has not begun. The earliest deadline leaves first, as in the lines. A lone request leaves at once, and a
full house leaves in groups of what goes in one call, which stay together from step to step. A group that fails is split
in halves down to the guilty request. Who would be late, as fast as those before it get on, is refused at once, and told
when to come back.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from itertools import chain
from random import getrandbits
from time import perf_counter  # the loop of uvloop counts whole milliseconds
from typing import Any, Protocol

import numpy as np

from planner.choosing import Chooser, Chosen, FirstPlan
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
from planner.line import FAR_S
from planner.pace import CALM_S, Pace
from planner.plans import Answer, Plan, PlanSet
from planner.tokens import PATIENCE_S, Escort, LineAhead, Token

MOST_UNDER_WAY = 64  # groups of one convoy; far fewer are, where they stand in lines
MOST_ROWS = 256  # of one group
MOST_WAITING_ROWS = 65_536
TAKEN_IN_S = 0.015  # whoever has waited for longer is not refused any more, but late
MOST_WAIT_S = PATIENCE_S / 2  # that who has no deadline is let in for: the way takes time too
MOST_RETRY_S = 30.0  # an estimate of hours only says that nobody gets on just now
CROWD = 2  # rows that leave, for each that stands in line already: each group costs the gateway something

# Plan, inputs, token, alternative plans -> what `Dispatcher.dispatch` gives.
Dispatch = Callable[[Plan, Mapping[str, Array], Token, Sequence[Plan]], Coroutine[Any, Any, Answer]]


class Notes(Protocol):
    """Takes down what became of requests."""

    def answered(self, riders: Sequence[Rider], answer: Answer, chosen: Chosen) -> Sequence[str]:
        """The riders' rows, in their order, are those of the answer. Returns the trace id of each."""

    def failed(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None) -> None:
        """There is no answer for these, all for the same reason; where they have not left, no plan was chosen. Not told
        of those that were refused at once."""


class Unnoted:
    """Takes nothing down."""

    def answered(self, riders: Sequence[Rider], answer: Answer, chosen: Chosen) -> Sequence[str]:
        return [f"{getrandbits(128):032x}" for _ in riders]

    def failed(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None) -> None:
        pass


class Rider(ABC):
    """One request in a convoy: its rows, and what to do when it hears of its answer. Only the first word counts."""

    __slots__ = ("group", "inputs", "n_rows", "token")

    inputs: Mapping[str, Array]  # all have `n_rows` rows
    n_rows: int
    token: Token
    group: _Group | None

    @abstractmethod
    def arrive(self, answer: Answer, start: int, stop: int, trace_id: str) -> None:
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

    def arrive(self, answer: Answer, start: int, stop: int, trace_id: str) -> None:
        if not self.future.done():
            self.future.set_result(share_of(answer, start, stop, trace_id))

    def fail(self, error: FenixError) -> None:
        if not self.future.done():
            self.future.set_exception(error)


def share_of(answer: Answer, start: int, stop: int, trace_id: str = "") -> Answer:
    """The answer for the rows `start` to `stop` of a group."""
    outputs = {
        name: Rows(rows.values[start:stop], None if rows.confidence is None else rows.confidence[start:stop])
        for name, rows in answer.outputs.items()
    }
    return Answer(outputs, answer.plan, answer.steps, answer.flags, trace_id=trace_id)


class _Group(Escort):
    """Riders that left together, and what brings them."""

    __slots__ = ("_first", "_lines", "chosen", "left_s", "n_rows", "riders", "task", "timer", "token")

    def __init__(self, riders: list[Rider], chosen: Chosen, lines: _Lines) -> None:
        self.riders = riders
        self.chosen = chosen
        self.left_s = perf_counter()
        self.n_rows = sum([rider.n_rows for rider in riders])
        self.token = riders[0].token
        self._lines = lines
        self._first: frozenset[LineAhead] | None = lines.set_out(self.n_rows, self.token)  # until it stands in a line
        self.task: asyncio.Task[None] | None = None
        self.timer: asyncio.TimerHandle | None = None
        for rider in riders:
            rider.group = self

    def waits(self, line: LineAhead, n_rows: int, batch_rows: int) -> None:
        if self._first is not None:
            self._lines.first = self._lines.first | {line}
            self.stood()
        self._lines.waits(line, n_rows, batch_rows)

    def goes(self, line: LineAhead, n_rows: int) -> None:
        self._lines.goes(line, n_rows)

    def stood(self) -> None:
        """It has come to a line, or never will."""
        if self._first is not None:
            self._lines.came(self.n_rows, self.token, self._first)
            self._first = None


class _Lines:
    """Where the rows of a convoy stand, with those of others, and how many may join them."""

    __slots__ = ("_call_rows", "_fit_rows", "_full", "_known", "_moved", "_setting_out", "_standing", "_went", "first")

    def __init__(self, moved: Callable[[], None]) -> None:
        """`moved` is called when there is room again."""
        self._moved = moved
        self._known: dict[LineAhead, None] = {}  # lines that rows of ours have stood in
        self.first: frozenset[LineAhead] = frozenset()  # those that groups came to first
        self._full = False  # one of them is, and will tell when it is not
        self._standing: dict[LineAhead, int] = {}
        self._went: dict[LineAhead, tuple[int, int]] = {}  # in this turn of the loop; and how many were left behind
        self._call_rows = MOST_ROWS
        self._fit_rows = float(MOST_ROWS)  # of ours that go in one call, beside those of others
        self._setting_out = 0  # rows of groups that have left, and came to no line yet

    def set_out(self, n_rows: int, token: Token) -> frozenset[LineAhead]:
        """A group leaves. Returns the lines that expect it."""
        self._setting_out += n_rows
        for line in self.first:
            line.expect(n_rows, token)
        return self.first

    def came(self, n_rows: int, token: Token, expecting: frozenset[LineAhead]) -> None:
        """A group is at its first line, or done without having stood in one."""
        self._setting_out -= n_rows
        for line in expecting:
            line.expect(-n_rows, token)

    def waits(self, line: LineAhead, n_rows: int, batch_rows: int) -> None:
        self._known[line] = None
        self._standing[line] = self._standing.get(line, 0) + n_rows
        self._call_rows = min(self._call_rows, batch_rows)

    def goes(self, line: LineAhead, n_rows: int) -> None:
        left = self._standing.get(line, 0) - n_rows
        if left > 0:
            self._standing[line] = left
        else:
            self._standing.pop(line, None)
        self._went[line] = self._went.get(line, (0, 0))[0] + n_rows, left
        self._moved()

    def learn(self) -> None:
        """At the end of a turn: a group should be what goes in one call, so that nobody in it waits for the others."""
        for went, left_behind in self._went.values():
            if left_behind > 0:
                self._fit_rows += 0.2 * (went - self._fit_rows)
            elif went > 0.5 * self._fit_rows:
                self._fit_rows = 1.5 * self._fit_rows
        self._fit_rows = min(max(self._fit_rows, 1.0), self._call_rows)
        self._went.clear()

    def clear(self) -> None:
        """Nothing is on its way any more."""
        self._standing.clear()

    def room(self, n_waiting: int, token: Token) -> int:
        """How many of so many rows, all with tokens like this one, may leave now in one group."""
        standing = self._setting_out + max(self._standing.values(), default=0)
        if self._full or CROWD * standing > n_waiting or standing >= self._call_rows:
            return 0
        room = self._call_rows - standing if standing else self._call_rows
        for line in self._known:
            room = min(room, line.room(token))
            if room <= 0:
                self._full = True
                line.when_moved(token, self._unblock)
                return 0
        return min(room, MOST_ROWS, math.ceil(self._fit_rows))

    def _unblock(self) -> None:
        self._full = False
        self._moved()


class Convoy:
    """Where the requests for one plan gather. Belongs to one event loop."""

    def __init__(
        self,
        plans: PlanSet,
        dispatch: Dispatch,
        at_once: Callable[[Plan], bool],
        notes: Notes | None = None,
        chooser: Chooser | None = None,
    ) -> None:
        """`at_once` tells whether a plan can be run within this turn of the loop, without waiting for anything.
        `chooser` says by which plan a group is run, the first of `plans` by default."""
        self.plans = plans
        self.notes = notes or Unnoted()
        self.chooser = chooser or FirstPlan(plans)
        self._dispatch = dispatch
        self._at_once = at_once
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Rider] = deque()
        self._waiting_rows = 0
        self._pace = Pace()
        self._calm_pace = Pace(CALM_S)  # by which those without a deadline are told: a replica that starts anew is no
        # reason to send them away
        self._lines = _Lines(self._look)
        self._halves: deque[list[Rider]] = deque()  # of groups that failed: they leave before all others
        self._called = False  # `_leave` comes at the end of this turn
        self._soonest_s = math.inf  # no deadline of those that wait is earlier
        self._timer: asyncio.TimerHandle | None = None  # looks at them, at `_looks_s`
        self._looks_s = math.inf
        self._under_way: set[asyncio.Task[None]] = set()

    def join(self, rider: Rider) -> None:
        """Takes a request along with the next group. Returns at once; the rider is told later, or now if it is refused
        (Overloaded)."""
        place = n_waiting = len(self._waiting)
        if n_waiting and _due_s(rider) < _due_s(self._waiting[-1]):
            place = bisect_right(self._waiting, _due_s(rider), key=_due_s)
        if n_waiting or self._under_way:
            refusal = self._refusal(rider, self._waiting_rows * place // n_waiting if n_waiting else 0)
            if refusal is not None:
                rider.fail(refusal)
                return
        self._waiting.insert(place, rider)
        self._waiting_rows += rider.n_rows
        if rider.token.hard and rider.token.until_s < self._soonest_s:
            self._soonest_s = rider.token.until_s
        if self._called:
            return
        if self._may_leave():
            self._call()
        else:
            now_s = perf_counter()
            self._pace.waits(now_s)
            self._calm_pace.waits(now_s)
            self._watch_waiting()

    def abandon(self, rider: Rider) -> None:
        """The rider's client has gone: it is left behind, and a group of which nobody is left is called back."""
        rider.token.gone = True
        if rider.group is not None:
            _call_back_if_empty(rider.group)

    def _refusal(self, rider: Rider, rows_ahead: int) -> Overloaded | None:
        """Why a rider cannot be taken along behind so many rows of those that wait already."""
        pace = self._pace if rider.token.hard else self._calm_pace
        wait_s = pace.wait_s(rows_ahead, perf_counter())
        if self._waiting_rows + rider.n_rows > MOST_WAITING_ROWS:
            return Overloaded(
                f"{self._waiting_rows} rows wait already.",
                hint="Come back later.",
                retry_after_s=min(wait_s, MOST_RETRY_S),
            )
        if not rider.token.hard:
            if wait_s <= MOST_WAIT_S:
                return None
            return Overloaded(
                f"{rows_ahead} rows wait: an answer would take more than {MOST_WAIT_S:.0f} s.",
                hint="Come back later.",
                retry_after_s=min(wait_s - MOST_WAIT_S, MOST_RETRY_S),
            )
        late_s = self._loop.time() + wait_s - rider.token.until_s
        if late_s <= 0.0:
            return None
        return Overloaded(
            f"{rows_ahead} rows wait: an answer would come {late_s * 1e3:.0f} ms after the deadline.",
            hint="Come back later, or allow more time.",
            retry_after_s=min(late_s, MOST_RETRY_S),
        )

    def _may_leave(self) -> bool:
        """Whether anybody may, now."""
        if len(self._under_way) >= MOST_UNDER_WAY:
            return False
        return bool(self._halves) or (bool(self._waiting) and self._room() > 0)

    def _room(self) -> int:
        return self._lines.room(self._waiting_rows, self._waiting[0].token) if self._waiting else 0

    def _look(self) -> None:
        """Things have moved."""
        if (self._waiting or self._halves) and not self._called:
            self._call()

    def _call(self) -> None:
        self._called = True
        self._loop.call_soon(self._leave)

    def _leave(self) -> None:
        self._called = False
        self._lines.learn()
        if self._at_once(self.chooser.usual):
            self._go_now(self._next(MOST_ROWS))
            self._look()  # others want a turn of the loop too
            return
        while self._may_leave():
            self._start(self._next(self._room()))
        self._watch_waiting()

    def _start(self, riders: list[Rider], chosen: Chosen | None = None) -> None:
        if not riders:
            return
        chosen = chosen or _chosen_before(riders) or self.chooser.choose(len(riders))
        group = _Group(riders, chosen, self._lines)
        # A context of its own: the request that happens to be first may be cancelled, the group must not be.
        group.task = self._loop.create_task(self._go(group), context=contextvars.Context())
        self._under_way.add(group.task)
        group.task.add_done_callback(lambda task: self._returned(group, task))

    def _returned(self, group: _Group, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        group.stood()
        if not self._under_way:
            self._lines.clear()
        self._look()

    def _next(self, most_rows: int) -> list[Rider]:
        """The riders to leave now, with so many rows together, unless the first has more. Whose client has gone stays
        behind, and so does who is late already."""
        riders: list[Rider] = []
        n_rows = 0
        now_s = self._loop.time()
        if self._halves:
            for rider in self._halves.popleft():
                if rider.token.late(now_s):
                    self._refuse([rider], _late())
                elif not rider.token.gone:
                    riders.append(rider)
            return riders
        # Where nobody is on the way, trying shows how long it takes now.
        soonest_s = now_s + self._pace.trip_s(perf_counter(), 0.5) if self._under_way else now_s
        while self._waiting and (not riders or n_rows + self._waiting[0].n_rows <= most_rows):
            rider = self._waiting.popleft()
            self._waiting_rows -= rider.n_rows
            if rider.token.gone:
                continue
            if rider.token.late(soonest_s):
                self._refuse([rider], _late() if rider.token.late(now_s) else _too_late())
                continue
            riders.append(rider)
            n_rows += rider.n_rows
        # More could have left, had they been there.
        could = n_rows if self._waiting else max(n_rows, most_rows)
        left_s, others_wait = perf_counter(), bool(self._waiting)
        self._pace.left(could, left_s, others_wait)
        self._calm_pace.left(could, left_s, others_wait)
        return riders

    def _go_now(self, riders: list[Rider], chosen: Chosen | None = None) -> None:
        if not riders:
            return
        chosen = chosen or _chosen_before(riders) or self.chooser.choose(len(riders))
        if chosen.plan is not self.chooser.usual and not self._at_once(chosen.plan):
            self._start(riders, chosen)
            return
        left_s = perf_counter()
        try:
            running = self._run(riders, chosen)
            running.send(None)
        except StopIteration as end:
            self._tell(riders, end.value, chosen, left_s)
            now_s = perf_counter()
            self._pace.took(now_s - left_s, now_s)
        except FenixError as error:
            if _may_be_one(riders, error):
                half = len(riders) // 2
                self._go_now(riders[:half], chosen)
                self._go_now(riders[half:], chosen)
            else:
                self._refuse(riders, error, chosen, left_s)
        except Exception as error:
            self._refuse(riders, ExtensionRaised(f"the plan failed: {error!r}"), chosen, left_s)
        else:  # it waits for something after all: an extension moved away from here just now
            running.close()
            self._start(riders, chosen)

    async def _go(self, group: _Group) -> None:
        riders, chosen = group.riders, group.chosen
        left_s = perf_counter()
        self._watch(group)
        try:
            answer = await self._run(riders, chosen, group)
            self._tell(riders, answer, chosen, left_s)
            now_s = perf_counter()
            self._pace.took(now_s - left_s, now_s)
        except FenixError as error:
            if _may_be_one(riders, error):
                half = len(riders) // 2
                self._halves += (riders[:half], riders[half:])
                for rider in riders:
                    if rider.token.hard:
                        self._soonest_s = min(self._soonest_s, rider.token.until_s)
            else:
                self._refuse(riders, error)
        except asyncio.CancelledError:
            # Either all of them have gone, or something on the way was ended for reasons of its own.
            now_s = perf_counter()
            self._pace.took(now_s - left_s, now_s)
            self._refuse(
                riders, ExtensionUnavailable("the call was ended before its answer came.", hint="Send it again.")
            )
            raise
        except Exception as error:  # whatever happens, nobody may wait for ever
            self._refuse(riders, ExtensionRaised(f"the plan failed: {error!r}"))
        finally:
            if group.timer is not None:
                group.timer.cancel()

    def _run(
        self, riders: Sequence[Rider], chosen: Chosen, escort: Escort | None = None
    ) -> Coroutine[Any, Any, Answer]:
        first = riders[0]
        token = first.token if len(riders) == 1 else _token_of(riders)
        token.escort = escort
        return self._dispatch(chosen.plan, _inputs_of(riders), token, chosen.alternatives)

    def _tell(self, riders: Sequence[Rider], answer: Answer, chosen: Chosen, left_s: float) -> None:
        now_s = self._loop.time()
        if any(rider.token.gone or (rider.token.hard and now_s > rider.token.until_s) for rider in riders):
            self._tell_each(riders, answer, now_s, chosen, left_s)
            return
        start = 0
        trace_ids = self.notes.answered(riders, answer, chosen)
        for rider, trace_id in zip(riders, trace_ids, strict=True):
            stop = start + rider.n_rows
            rider.arrive(answer, start, stop, trace_id)
            start = stop
        if chosen.then is not None:
            chosen.then(trace_ids, _inputs_of(riders), answer, (perf_counter() - left_s) * 1e3)

    def _tell_each(self, riders: Sequence[Rider], answer: Answer, now_s: float, chosen: Chosen, left_s: float) -> None:
        """Some of them have gone, or been told that they are late, or the answer comes too late for them."""
        start = 0
        for rider in riders:
            stop = start + rider.n_rows
            if rider.token.hard and now_s > rider.token.until_s and not rider.token.gone:
                self._refuse([rider], _late(), chosen, left_s)
            elif not rider.token.gone:
                share = share_of(answer, start, stop)
                trace_ids = self.notes.answered([rider], share, chosen)
                rider.arrive(answer, start, stop, trace_ids[0])
                if chosen.then is not None:
                    chosen.then(trace_ids, rider.inputs, share, (perf_counter() - left_s) * 1e3)
            start = stop

    def _refuse(
        self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None, left_s: float = 0.0
    ) -> None:
        """There is no answer. Who left in a group left by its plan; else `chosen` and `left_s` say by which, and when;
        those who have not left are nobody's fault, and nor is a line that was too long."""
        now_s = self._loop.time()
        group = riders[0].group
        if group is not None:
            chosen, left_s = group.chosen, group.left_s
        there = [rider for rider in riders if not rider.token.gone]
        taken_in: list[Rider] = []
        if isinstance(error, Overloaded):
            taken_in = [one for one in riders if one.token.hard and now_s - one.token.came_s > TAKEN_IN_S]
        if taken_in:
            self._fail(taken_in, _too_late(), None)
        if len(taken_in) < len(riders):
            self._fail([rider for rider in riders if rider not in taken_in], error, chosen)
        if there and chosen is not None and chosen.then is not None:
            chosen.then((), _inputs_of(there), error, (perf_counter() - left_s) * 1e3)

    def _fail(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None) -> None:
        for rider in riders:
            rider.fail(error)
        self.notes.failed(riders, error, chosen)

    def _watch(self, group: _Group) -> None:
        """Fails the riders of a group that are late, now and whenever the next one will be."""
        now_s = self._loop.time()
        until_s = math.inf
        for rider in group.riders:
            if rider.token.hard and not rider.token.gone:
                if rider.token.late(now_s):
                    self._refuse([rider], _late())
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
                    self._refuse([rider], _late())
                    rider.token.gone = True  # it stays behind when the others leave
                else:
                    self._soonest_s = min(self._soonest_s, rider.token.until_s)
        self._watch_waiting()


def _call_back_if_empty(group: _Group) -> None:
    """Ends what is under way for a group of which nobody waits for an answer any more."""
    if group.task is not None and all(rider.token.gone for rider in group.riders):
        group.task.cancel()


def _due_s(rider: Rider) -> float:
    """By which those that wait are put in order. What is far away counts as `FAR_S`, so that nobody is overtaken for
    ever."""
    token = rider.token
    return min(token.until_s, token.came_s + FAR_S) if token.came_s else token.until_s


def _chosen_before(riders: Sequence[Rider]) -> Chosen | None:
    """Of what is left of a group that failed, the plan of that group: another would hide who is guilty."""
    group = riders[0].group
    return None if group is None else group.chosen


def _may_be_one(riders: Sequence[Rider], error: FenixError) -> bool:
    """Whether the rows of one of several riders may be what the others fail for."""
    return len(riders) > 1 and isinstance(error, ExtensionRaised | ExtensionBroken | BadRequest)


def _inputs_of(riders: Sequence[Rider]) -> Mapping[str, Array]:
    """The rows of all of them, in their order."""
    first = riders[0].inputs
    if len(riders) == 1:
        return first
    return {name: np.concatenate([rider.inputs[name] for rider in riders]) for name in first}


def _token_of(riders: Sequence[Rider]) -> Token:
    """The group's own: as patient as the most patient rider, and as sparing as the one who may spend least. Class, user
    and tags are those of all of them."""
    first = riders[0].token
    patient = max((rider.token for rider in riders), key=lambda token: token.until_s)
    hard = all(rider.token.hard for rider in riders)
    max_cost = min([rider.token.max_cost for rider in riders if rider.token.max_cost is not None], default=None)
    came_s = min([rider.token.came_s for rider in riders])
    return Token(
        patient.until_s,
        first.priority,
        first.user,
        first.tags,
        hard,
        shared=True,
        max_cost=max_cost,
        came_s=came_s,
    )


def _late() -> DeadlineExceeded:
    return DeadlineExceeded("the deadline passed before there was an answer.", hint="Allow more time, or send less.")


def _too_late() -> DeadlineExceeded:
    return DeadlineExceeded("an answer could not come before the deadline any more.", hint="Allow more time.")
