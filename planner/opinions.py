"""Second opinions: rows of an answer that are not sure enough are given to the fallbacks of the step they come from.

For requests that ask for a confidence (`Terms.min_confidence`): the fallbacks are asked in their order, best first, as
long as there is time and `Terms.max_cost` leaves something to spend, each for the rows that are still unsure, and the
surer answer is kept row by row. As there is an answer already, none of them is waited for much longer than it should
take. Confidences are compared after temperature scaling, for models differ in how much they claim. Only steps that
nothing else of the plan builds on can have their rows replaced.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from planner.attempts import Attempt, Course, kilo_of
from planner.calibration import scaled_rows, temperature_of
from planner.calls import Produced, local
from planner.cards import Card, ExtensionId
from planner.errors import FenixError
from planner.features import Array
from planner.plans import NO_FLAGS, Binding, Plan, Step, StepId, StepRecord
from planner.results import Index, Result, Results, least

PATIENCE = 4.0  # how many times its predicted p99 an opinion is waited for
LEAST_PATIENCE_MS = 50.0  # it may have to stand in a line first


@dataclass(frozen=True, slots=True)
class Opinions:
    """What came of asking: the records of what ran, and whether rows are still unsure."""

    records: tuple[StepRecord, ...]
    unsure: bool


async def second_opinions(plan: Plan, course: Course, outputs: Sequence[Binding], below: float) -> Opinions:
    """Replaces, in the results of the course, rows of these outputs whose confidence is below `below` by surer ones.

    A fallback that fails is passed over: there is an answer already.
    """
    records: list[StepRecord] = []
    unsure = False
    for step in plan.steps:
        rows = shown_rows(step.id, outputs, course.results)
        if len(rows) == 0:
            continue
        asked = _Asked(course, step, rows, _ports(step.id, outputs), below)
        if len(asked.doubtful()) and not _builds_on(plan, step.id):
            for fallback in step.fallbacks:
                await asked.ask(fallback)
        records += asked.records
        unsure = unsure or len(asked.doubtful()) > 0
    return Opinions(tuple(records), unsure)


def shown_rows(step: StepId, outputs: Iterable[Binding], results: Results) -> Index:
    """The rows of the request for which one of these outputs comes from the step, ascending."""
    shown = np.zeros(results.n_rows, np.bool_)
    for binding in outputs:
        own = np.zeros(results.n_rows, np.bool_)
        for source in binding.sources:  # of those that have a row, the last one gives it
            index = results.by_step[source.step].index
            own[slice(None) if index is None else index] = source.step == step
        shown |= own
    return np.flatnonzero(shown)


class _Asked:
    """The rows of one step, how sure they are, and what the fallbacks think of them."""

    def __init__(self, course: Course, step: Step, rows: Index, ports: set[str], below: float) -> None:
        self._course = course
        self._step = step
        self._rows = rows  # of the request
        self._ports = ports
        self._below = below
        result = course.results.by_step[step.id]
        self._where = rows if result.index is None else np.searchsorted(result.index, rows)  # in the result
        given = step.extension if result.record is None else result.record.extension
        self._heard = {given}
        self._sure = self._confidence(result, given)
        self.records: list[StepRecord] = []

    def doubtful(self) -> Index:
        """Which of the rows are not sure enough; none where they are not judged at all."""
        return np.flatnonzero(np.empty(0) if self._sure is None else self._sure[self._where] < self._below)

    async def ask(self, extension: ExtensionId) -> None:
        """Asks an extension for the rows that are doubtful, and takes over those of which it is surer."""
        course, doubtful = self._course, self.doubtful()
        if len(doubtful) == 0 or extension in self._heard:
            return
        card = self._worth_asking(extension, len(doubtful))
        if card is None or not course.pays(card, len(doubtful)):
            return
        self._heard.add(extension)
        index = self._rows[doubtful]
        try:
            given = [(binding.port, await course.results.gather(binding, index)) for binding in self._step.inputs]
            inputs = await course.results.stack(self._step, given)
            p99_ms = card.profile.p99_ms(len(doubtful), kilo_of(card, inputs))
            budget_ms = max(LEAST_PATIENCE_MS, PATIENCE * p99_ms)
            step = replace(self._step, extension=extension, fallbacks=(), budget_ms=budget_ms)
            opinion = await Attempt(course, step, inputs, index).result(least([made.confidence for _, made in given]))
            await self._take_over(opinion, doubtful, extension)
        except FenixError:
            course.guilty.add(extension)

    def _worth_asking(self, extension: ExtensionId, n_rows: int) -> Card | None:
        """Its card, where it is healthy, did not fail this request, and is predicted to be in time."""
        course = self._course
        card = course.roster.card_of(extension)
        if card is None or extension in course.guilty or course.roster.is_ill(extension):
            return None
        return card if course.loop.time() + card.profile.p50_ms(n_rows) / 1e3 <= course.token.until_s else None

    async def _take_over(self, opinion: Result, doubtful: Index, extension: ExtensionId) -> None:
        """Puts the rows of which the opinion is surer in the place of those that there were."""
        assert opinion.record is not None
        self.records.append(replace(opinion.record, note=f"asked for {len(doubtful)} unsure rows"))
        sure, result = self._confidence(opinion, extension), self._course.results.by_step[self._step.id]
        if sure is None or self._sure is None or not _alike(result, opinion, self._ports):
            return
        where = self._where[doubtful]
        better = sure > self._sure[where]
        if not better.any():
            return
        where, outputs = where[better], dict(result.outputs)
        for port in self._ports:
            outputs[port] = await _merged(outputs[port], where, opinion.outputs[port], better)
        self._sure[where] = sure[better]
        worse = self._course.roster.is_worse(extension, self._step.extension)
        flags = result.flags | opinion.flags | {"fallback"} | ({"degraded"} if worse else NO_FLAGS)
        self._course.results.by_step[self._step.id] = replace(result, outputs=outputs, flags=flags)

    def _confidence(self, result: Result, extension: ExtensionId) -> Array | None:
        """How sure the extension is of each row of its result, in truth as far as its evidence tells."""
        sure = least([result.outputs[port].confidence for port in self._ports])
        card = self._course.roster.card_of(extension)
        return None if sure is None else scaled_rows(sure, 1.0 if card is None else temperature_of(card)).copy()


def _alike(result: Result, opinion: Result, ports: Iterable[str]) -> bool:
    """Whether the rows of both have the same shapes."""
    shapes = [(result.outputs[port].values.shape[1:], opinion.outputs[port].values.shape[1:]) for port in ports]
    return all(old == new for old, new in shapes)


async def _merged(old: Produced, where: Index, new: Produced, better: Array) -> Produced:
    """`old`, its rows at `where` replaced by those of `new` that are better."""
    values = np.array(await local(old.values))
    values[where] = (await local(new.values))[better]
    if old.confidence is None or new.confidence is None:
        return Produced(values, old.confidence)
    confidence = np.array(old.confidence)
    confidence[where] = new.confidence[better]
    return Produced(values, confidence)


def _ports(step: StepId, outputs: Iterable[Binding]) -> set[str]:
    """The ports of a step that these outputs come from."""
    return {source.port for binding in outputs for source in binding.sources if source.step == step}


def _builds_on(plan: Plan, step: StepId) -> bool:
    """Whether another step takes the rows of this one."""
    return any(source.step == step for other in plan.steps for binding in other.inputs for source in binding.sources)
