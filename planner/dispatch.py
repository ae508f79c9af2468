"""The dispatcher: runs a plan.

A request's way through this file: `dispatch` walks the plan; every step waits for its sources, picks its rows
(`_gather`: all of them, or behind a guard only the unsure ones), goes into its extension's batch (`_attempt`), and on
failure to its fallbacks; if those fail too, the next plan that avoids the guilty extension takes over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter

import numpy as np
import numpy.typing as npt

from planner.batching import Done
from planner.calls import Part, Produced, local
from planner.cards import Card, ExtensionId
from planner.errors import (
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionTimeout,
    ExtensionUnavailable,
    FenixError,
    Overloaded,
    StepFailed,
)
from planner.features import Array, Rows, shapes_unify
from planner.placed import Queues
from planner.plans import REQUEST, Answer, Binding, Plan, Source, Step, StepId, StepRecord
from planner.tokens import Token

Index = npt.NDArray[np.intp]  # which rows of the request a result holds, ascending; None stands for all of them
CardOf = Callable[[ExtensionId], Card | None]


@dataclass(frozen=True, slots=True)
class _Result:
    """What a step (or the request itself) brought, and for which rows."""

    outputs: Mapping[str, Produced]
    index: Index | None = None


class Dispatcher:
    """Runs plans over the extensions of one catalogue. Belongs to one event loop."""

    def __init__(self, queues: Queues, card_of: CardOf, at_once: Callable[[Plan], bool] = lambda plan: False) -> None:
        """`at_once` tells whether nothing in a plan waits: its steps then run one after the other, without tasks."""
        self._queues = queues
        self.at_once = at_once
        self._card_of = card_of

    async def dispatch(
        self,
        plan: Plan,
        inputs: Mapping[str, Array],
        token: Token,
        alternatives: Sequence[Plan] = (),
    ) -> Answer:
        """Runs `plan` on `inputs` (arrays of (n_rows, *row shape), the request's ports) until the token's deadline.

        When a step and its fallbacks fail, the first of `alternatives` without the
        guilty extensions is run instead, and the answer is flagged `fallback` (`degraded` too where it predicts less
        accuracy). Raises DeadlineExceeded, Overloaded, BadInput from an extension, or the StepFailed of the last try.
        """
        started_s = perf_counter()
        guilty: set[ExtensionId] = set()
        left = [other for other in alternatives if other is not plan]
        current = plan
        while True:
            run = _Run(self, current, inputs, started_s, token, spare=bool(left))
            try:
                outputs = await run.answer()
            except asyncio.CancelledError:
                token.gone = True
                raise
            except (StepFailed, Overloaded) as failure:
                guilty |= run.failed
                left = [other for other in left if guilty.isdisjoint(other.extensions())]
                if not left or asyncio.get_running_loop().time() >= token.until_s:
                    raise _as_deadline(failure, token) from None
                current = left.pop(0)
                continue
            return Answer(outputs, current, tuple(run.records), self._flags(plan, current, run))

    @staticmethod
    def _flags(wanted: Plan, ran: Plan, run: _Run) -> frozenset[str]:
        flags = set()
        if ran is not wanted or run.fell_back:
            flags.add("fallback")
        if run.worse or ran.prediction.accuracy < wanted.prediction.accuracy:
            flags.add("degraded")
        return frozenset(flags)

    def is_worse(self, stand_in: Card, wanted: ExtensionId) -> bool:
        """Whether the stand-in is known to be less accurate."""
        card = self._card_of(wanted)
        return card is not None and stand_in.accuracy.mean < card.accuracy.mean

    def queue(self, extension: ExtensionId) -> tuple[Card, Queues]:
        """The card of a deployed extension and the queues. Raises ExtensionUnavailable when it is gone."""
        card = self._card_of(extension)
        if card is None:
            raise ExtensionUnavailable(f"{extension} was removed while the request ran.", hint="Send it again.")
        return card, self._queues


class _Run:
    """One try at one plan for one request."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        plan: Plan,
        inputs: Mapping[str, Array],
        started_s: float,
        token: Token,
        spare: bool,
    ) -> None:
        self._dispatcher = dispatcher
        self._plan = plan
        self._started_s = started_s
        self._token = token
        self._spare = spare  # another plan could take over: a step that is late is given up at its own budget
        self._loop = asyncio.get_running_loop()
        self._n_rows = len(next(iter(inputs.values())))
        self._results = {REQUEST: _Result({name: Produced(values) for name, values in inputs.items()})}
        self.records: list[StepRecord] = []
        self.fell_back = False
        self.worse = False  # a stand-in is less accurate than the extension that failed
        self.failed: set[ExtensionId] = set()

    async def answer(self) -> dict[str, Rows]:
        """All steps, then the outputs by name."""
        steps = self._plan.steps
        if _is_chain(steps) or self._dispatcher.at_once(self._plan):
            for step in steps:
                self._results[step.id] = await self._step(step)
        else:
            await self._graph(steps)
        outputs = {}
        for binding in self._plan.outputs:
            made = await self._gather(binding, None)
            outputs[binding.port] = Rows(await local(made.values), made.confidence)
        return outputs

    async def _graph(self, steps: Sequence[Step]) -> None:
        """Runs every step as soon as its sources are there; the first failure cancels the others and is raised."""
        tasks: dict[StepId, asyncio.Task[None]] = {}

        async def after(step: Step) -> None:
            for source in _needs(step):
                if source in tasks:
                    await tasks[source]
            self._results[step.id] = await self._step(step)

        try:
            async with asyncio.TaskGroup() as group:
                for step in steps:  # topological order: the sources of a step have their tasks already
                    tasks[step.id] = group.create_task(after(step))
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None

    async def _step(self, step: Step) -> _Result:
        index = self._rows_of(step)
        if index is not None and len(index) == 0:
            return _Result({}, index)
        inputs_list = [(binding.port, await self._gather(binding, index)) for binding in step.inputs]
        inputs = await self._stack(step, inputs_list)
        n_rows = self._n_rows if index is None else len(index)
        done = await self._attempt(step, inputs, n_rows)
        inherited = _least([made.confidence for _, made in inputs_list])
        return _Result(_with_confidence(done.outputs, inherited), index)

    def _rows_of(self, step: Step) -> Index | None:
        """The rows this step runs for: all its sources have, or behind a guard those that are unsure."""
        if step.guard is None:
            return None
        judged = self._results[step.guard.step]
        sure = _least([made.confidence for made in judged.outputs.values()])
        if sure is None:  # no opinion is not a low one: nothing is passed on
            return np.empty(0, dtype=np.intp)
        unsure = np.flatnonzero(sure < step.guard.below)
        return unsure if judged.index is None else judged.index[unsure]

    async def _gather(self, binding: Binding, index: Index | None) -> Produced:
        """The rows of `index` for one port; where several sources hold a row, the last of them gives it."""
        first = self._from(binding.sources[0], index)
        later = [self._results[source.step].index for source in binding.sources[1:]]
        if not any(rows is None or len(rows) for rows in later):
            return await first
        made = await first
        values = np.array(await local(made.values))
        sure = None if made.confidence is None else np.array(made.confidence)
        positions = np.arange(self._n_rows) if index is None else index
        for source in binding.sources[1:]:
            result = self._results[source.step]
            held = positions if result.index is None else np.intersect1d(positions, result.index)
            if len(held) == 0:
                continue
            newer = await self._from(source, held)
            into = np.searchsorted(positions, held)
            rows = await local(newer.values)
            if rows.shape[1:] != values.shape[1:]:
                raise self._ragged(binding, [values.shape[1:], rows.shape[1:]])
            values[into] = rows
            if sure is not None and newer.confidence is not None:
                sure[into] = newer.confidence
        return Produced(values, sure)

    async def _stack(self, step: Step, inputs: Sequence[tuple[str, Produced]]) -> dict[str, Part]:
        """Values by port; several bindings of one port (a combiner's) are stacked on axis 1, in their order."""
        by_port: dict[str, list[Part]] = {}
        for port, made in inputs:
            by_port.setdefault(port, []).append(made.values)
        stacked: dict[str, Part] = {}
        for port, values in by_port.items():
            if len(values) == 1:
                stacked[port] = values[0]
                continue
            members = [await local(v) for v in values]
            if len({member.shape for member in members}) > 1:
                sources = tuple(source for b in step.inputs if b.port == port for source in b.sources)
                raise self._ragged(Binding(port, sources), [member.shape[1:] for member in members])
            stacked[port] = np.stack(members, axis=1)
        return stacked

    def _ragged(self, binding: Binding, shapes: Sequence[tuple[int, ...]]) -> ExtensionBroken:
        """Several sources of one port that gave rows of different shapes."""
        steps = {source.step for source in binding.sources}
        names = [step.extension for step in self._plan.steps if step.id in steps]
        self.failed.update(names)
        told = ", ".join(str(list(shape)) for shape in shapes)
        return ExtensionBroken(
            f"{' and '.join(names)} give rows of different shapes ({told}) for {binding.port!r}.",
            hint="State the shape in the cards, so that they are not put together.",
        )

    async def _from(self, source: Source, index: Index | None) -> Produced:
        """The rows of `index` of one source, which holds them all."""
        result = self._results[source.step]
        made = result.outputs[source.port]
        if index is None or (result.index is not None and len(result.index) == len(index)):
            return made
        where = index if result.index is None else np.searchsorted(result.index, index)
        values = (await local(made.values))[where]
        return Produced(values, None if made.confidence is None else made.confidence[where])

    async def _attempt(self, step: Step, inputs: Mapping[str, Part], n_rows: int) -> Done:
        """The step's extension, then its fallbacks in order. Raises the last failure; `self.failed` names them all."""
        note = ""
        tries = (step.extension, *step.fallbacks)
        for i, extension in enumerate(tries):
            begun_s = perf_counter()
            until_s = self._token.until_s
            if self._spare or i + 1 < len(tries):
                until_s = min(until_s, self._loop.time() + _budget_s(step))
            try:
                card, queues = self._dispatcher.queue(extension)
                self._check_fit(step, card, inputs)
                done = await queues.of(card).submit(inputs, n_rows, self._token, until_s)
            except (StepFailed, Overloaded) as failure:
                self.failed.add(extension)
                if i + 1 == len(tries) or self._loop.time() >= self._token.until_s:
                    raise
                note = f"fallback for {extension}: {failure.message}"
                self.fell_back = True
                continue
            if i > 0:
                self.worse = self.worse or self._dispatcher.is_worse(card, step.extension)
            now_s = perf_counter()
            self.records.append(
                StepRecord(
                    step=step.id,
                    extension=extension,
                    n_rows=n_rows,
                    batch_rows=done.batch_rows,
                    started_ms=(begun_s - self._started_s) * 1e3,
                    waited_ms=done.waited_ms,
                    ran_ms=done.ran_ms,
                    took_ms=(now_s - begun_s) * 1e3,
                    note=note,
                )
            )
            return done
        raise AssertionError("unreachable: the loop returns or raises")

    def _check_fit(self, step: Step, card: Card, inputs: Mapping[str, Part]) -> None:
        """Raises ExtensionBroken, naming the giver, when rows of a free shape turn out not to fit their taker."""
        for port in card.inputs:
            given = inputs[port.name].shape[1 if port.many == 1 else 2 :]
            if shapes_unify(port.feature.shape, given):
                continue
            givers = {source.step for b in step.inputs if b.port == port.name for source in b.sources} - {REQUEST}
            names = [other.extension for other in self._plan.steps if other.id in givers]
            self.failed.update(names)
            raise ExtensionBroken(
                f"{', '.join(names)} gave rows of shape {list(given)}, but {card.id} takes {list(port.feature.shape)}.",
                hint="State the shape in the cards, so that they are not put together.",
            )


def _budget_s(step: Step) -> float:
    """How long a step may take while something else could stand in: its share of the deadline, or without one many
    times what it is predicted to take."""
    return step.budget_ms / 1e3 if step.budget_ms is not None else max(1.0, 50.0 * step.p50_ms / 1e3)


def _is_chain(steps: Sequence[Step]) -> bool:
    """Whether each step needs only the request and the steps before it, and the one just before: no parallelism."""
    return all(before.id in _needs(step) for before, step in pairwise(steps))


def _needs(step: Step) -> set[StepId]:
    needs = {source.step for binding in step.inputs for source in binding.sources}
    if step.guard is not None:
        needs.add(step.guard.step)
    return needs


def _least(confidences: Sequence[Array | None]) -> Array | None:
    """Row by row the lowest of the confidences that are given; None where none is."""
    given = [c for c in confidences if c is not None]
    if len(given) <= 1:
        return given[0] if given else None
    lowest: Array = np.minimum.reduce(given)
    return lowest


def _with_confidence(outputs: Mapping[str, Produced], inherited: Array | None) -> Mapping[str, Produced]:
    """Outputs of an extension that does not judge itself are as sure as the least sure of its inputs."""
    if inherited is None or all(made.confidence is not None for made in outputs.values()):
        return outputs
    return {
        name: made if made.confidence is not None else Produced(made.values, inherited)
        for name, made in outputs.items()
    }


def _as_deadline(failure: StepFailed | Overloaded, token: Token) -> FenixError:
    """A step that ran into the request's own deadline is the deadline's doing, not the extension's."""
    if token.late(asyncio.get_running_loop().time()) and isinstance(failure, ExtensionTimeout):
        return DeadlineExceeded(f"the deadline passed: {failure.message}", hint="Allow more time, or plan for less.")
    return failure
