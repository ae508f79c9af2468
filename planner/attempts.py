"""One step of one request: the try of its extension, then those of its fallbacks, the healthy ones first.

A try that fails or passes its budget leaves the rows to the next. At a step of an urgent request that takes unusually
long, the next is set beside it (`competition.py`), where the terms can pay for both.
"""

from __future__ import annotations

import asyncio
import math
from asyncio import AbstractEventLoop
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter

from planner.batching import Done
from planner.calls import Part
from planner.cards import Card, ExtensionId
from planner.competition import Competition, Entrant
from planner.errors import (
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionTimeout,
    FenixError,
    Overloaded,
    StepFailed,
)
from planner.features import Array
from planner.placed import Queue
from planner.plans import NO_FLAGS, Step, StepId, StepRecord
from planner.results import Index, Result, Results, with_confidence
from planner.roster import Roster
from planner.tokens import Token

Winner = tuple[ExtensionId, Done]

FAILURES = (StepFailed, Overloaded, DeadlineExceeded)  # after which something else may be tried


@dataclass(slots=True, eq=False)
class Course:
    """What all steps of a request on one plan have in common.

    `after_ms` is what comes after each step, where that matters; `is_last` says that no other plan could take over;
    `competition` is there where the request is urgent. `spare_cost` is what may be spent per row of the request on
    more than the plan; None: without limit.
    """

    roster: Roster
    loop: AbstractEventLoop
    token: Token
    results: Results
    guilty: set[ExtensionId]
    after_ms: Mapping[StepId, float]
    is_last: bool
    competition: Competition | None
    started_s: float  # on perf_counter
    spare_cost: float | None = None

    def affords(self, card: Card, n_rows: int) -> bool:
        """Whether an extension may be run on so many rows beside what the plan says."""
        return self.spare_cost is None or self._cost(card, n_rows) <= self.spare_cost

    def pays(self, card: Card, n_rows: int) -> bool:
        """The same, and takes what it costs from what is left."""
        if self.spare_cost is None:
            return True
        if not self.affords(card, n_rows):
            return False
        self.spare_cost -= self._cost(card, n_rows)
        return True

    def pays_more(self, card: Card, instead_of: ExtensionId, n_rows: int) -> None:
        """A stand-in may be dearer than what the plan counts on: that is left no more for others."""
        if self.spare_cost is not None:
            planned = self.roster.card_of(instead_of)
            more = self._cost(card, n_rows) - (0.0 if planned is None else self._cost(planned, n_rows))
            self.spare_cost = max(0.0, self.spare_cost - max(0.0, more))

    def _cost(self, card: Card, n_rows: int) -> float:
        """Per row of the whole request."""
        return card.cost * n_rows / max(1, self.results.n_rows)


class Attempt:
    """The rows of a request at one step. `index` says which they are, as in `Result`."""

    __slots__ = ("_course", "_index", "_inputs", "_n_rows", "_note", "_step", "_tries")

    def __init__(self, course: Course, step: Step, inputs: Mapping[str, Part], index: Index | None) -> None:
        self._course = course
        self._step = step
        self._inputs = inputs
        self._index = index
        self._n_rows = course.results.n_rows if index is None else len(index)
        self._note = ""
        self._tries = [step.extension]
        if step.fallbacks:
            self._tries = sorted((step.extension, *step.fallbacks), key=course.roster.is_ill)

    async def result(self, inherited: Array | None) -> Result:
        """What the first brings that can do the step; what it does not judge is as sure as `inherited`.

        Raises the last failure, or at once what is the client's fault.
        """
        course = self._course
        while True:
            extension = self._tries.pop(0)
            begun_s = perf_counter()
            until_s = course.token.until_s
            if self._tries or not course.is_last:  # there is something to give way to
                until_s = min(until_s, course.loop.time() + _budget_s(self._step))
            try:
                card, queue = self._queue(extension)
                if extension != self._step.extension:
                    course.pays_more(card, self._step.extension, self._n_rows)
                if course.competition is not None and self._tries:
                    extension, done = await self._compete(course.competition, card, queue, until_s)
                else:
                    done = await queue.submit(self._inputs, self._n_rows, course.token, until_s)
            except FAILURES as failure:
                course.guilty.add(extension)
                is_late = course.loop.time() >= course.token.until_s
                if is_late or not self._tries or may_be_one(course.token, failure):
                    raise
                self._note = f"fallback for {extension}: {failure.message}"
                continue
            outputs = with_confidence(done.outputs, inherited)
            return Result(outputs, self._index, self._record(extension, done, begun_s), self._flags(extension, done))

    def _queue(self, extension: ExtensionId) -> tuple[Card, Queue]:
        """An extension and the queue that the rows may join now. Raises ExtensionBroken where they do not fit it."""
        course = self._course
        card, queue = course.roster.queue(extension)
        course.results.check_fit(self._step, card, self._inputs)
        course.token.rest_s = course.after_ms.get(self._step.id, 0.0) / 1e3
        return card, queue

    async def _compete(self, competition: Competition, own: Card, queue: Queue, until_s: float) -> Winner:
        """Has the step done by `own`, and beside it by the next when there is no time to wait, if that is healthy and
        can be paid for. `until_s` is when `own` has to give way where nothing runs beside it."""
        course, next_ = self._course, self._tries[0]
        rest_s = course.token.rest_s
        rival = None if course.roster.is_ill(next_) else course.roster.card_of(next_)
        if rival is None or not course.affords(rival, self._n_rows):
            return own.id, await queue.submit(self._inputs, self._n_rows, course.token, until_s)
        left_s = course.token.until_s - rest_s - course.loop.time()
        wait_s = competition.wait_s(own, rival, self._n_rows, kilo_of(own, self._inputs), left_s)
        patience = asyncio.timeout(None)
        ended: list[FenixError | None] = []  # of the own try: its failure, or None

        async def run_own() -> Winner:
            course.token.rest_s = rest_s  # another step may have been begun since
            failure: FenixError | None = None
            try:
                async with patience:
                    own_until_s = until_s if wait_s is None else course.token.until_s
                    return own.id, await queue.submit(self._inputs, self._n_rows, course.token, own_until_s)
            except TimeoutError:
                failure = ExtensionTimeout(f"{own.id} took too long.", hint="Allow more time.")
                raise failure from None
            except FenixError as error:
                failure = error
                raise
            finally:
                ended.append(failure)

        def give_way() -> None:
            if not ended:
                patience.reschedule(max(until_s, course.loop.time()))

        async def run_rival() -> Winner:
            try:
                _, queue = self._queue(next_)
                return next_, await queue.submit(self._inputs, self._n_rows, course.token, course.token.until_s)
            except FAILURES:
                course.guilty.add(next_)
                self._tries.remove(next_)
                if self._tries or not course.is_last:
                    give_way()
                raise

        entrants = Entrant(own, run_own), Entrant(rival, run_rival)
        ran = await competition.between(
            *entrants, self._n_rows, wait_s, lambda: course.pays(rival, self._n_rows), give_way
        )
        if ran.sent:
            failure = ended[0] if ended else None
            if isinstance(failure, FAILURES):
                course.guilty.add(own.id)
            why = "it took too long" if failure is None else failure.message
            told = f"fallback for {own.id}: {why}" if ran.won else f"{next_} ran too, and came later"
            self._note = f"{self._note}; {told}" if self._note else told
        return ran.value

    def _flags(self, extension: ExtensionId, done: Done) -> frozenset[str]:
        """What is to be said of a step that this extension did."""
        wanted = self._step.extension
        if done.batch_rows and not done.hedged and extension == wanted:
            return NO_FLAGS
        said = {
            "cached": not done.batch_rows,
            "hedged": done.hedged,
            "fallback": extension != wanted,
            "degraded": extension != wanted and self._course.roster.is_worse(extension, wanted),
        }
        return frozenset([flag for flag, holds in said.items() if holds])

    def _record(self, extension: ExtensionId, done: Done, begun_s: float) -> StepRecord:
        return StepRecord(
            step=self._step.id,
            extension=extension,
            n_rows=self._n_rows,
            batch_rows=done.batch_rows,
            started_ms=(begun_s - self._course.started_s) * 1e3,
            waited_ms=done.waited_ms,
            ran_ms=done.ran_ms,
            took_ms=(perf_counter() - begun_s) * 1e3,
            note=self._note,
            hedged=done.hedged,
        )


def kilo_of(card: Card, inputs: Mapping[str, Part]) -> float:
    """The size of rows for an extension, as for `LatencyProfile`."""
    return sum([math.prod(inputs[port].shape) for port in card.free_ports if port in inputs]) / 1e3


def may_be_one(token: Token, failure: Exception) -> bool:
    """Whether the rows of one of several requests may be what all of them fail for: they are told apart first, and
    only then does anything stand in, for the guilty one alone."""
    return token.shared and isinstance(failure, ExtensionRaised | ExtensionBroken)


def _budget_s(step: Step) -> float:
    """How long a step may take while something else could stand in: its share of the deadline, or without one many
    times what it is predicted to take."""
    return step.budget_ms / 1e3 if step.budget_ms is not None else max(1.0, 50.0 * step.p50_ms / 1e3)
