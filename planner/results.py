"""What the steps of a plan brought so far, and the rows that later steps take from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from planner.calls import Part, Produced, local
from planner.cards import Card, ExtensionId
from planner.errors import ExtensionBroken
from planner.features import Array, Rows, shapes_unify
from planner.plans import NO_FLAGS, REQUEST, Binding, Plan, Source, Step, StepRecord

Index = npt.NDArray[np.intp]  # which rows of the request a result holds, ascending; None stands for all of them

_HINT = "State the shape in the cards, so that they are not put together."


@dataclass(frozen=True, slots=True)
class Result:
    """What a step (or the request itself) brought, and for which rows. `record` is None where nothing had to run;
    `flags` are those that it brings to an answer: `fallback` and `degraded`, `cached`, `hedged`."""

    outputs: Mapping[str, Produced]
    index: Index | None = None
    record: StepRecord | None = None
    flags: frozenset[str] = NO_FLAGS


class Results:
    """The results of one request on one plan. `guilty` gathers the extensions whose rows did not fit."""

    def __init__(self, plan: Plan, inputs: Mapping[str, Array], guilty: set[ExtensionId]) -> None:
        self.n_rows = len(next(iter(inputs.values())))
        self.by_step = {REQUEST: Result({name: Produced(values) for name, values in inputs.items()})}
        self._plan = plan
        self._guilty = guilty

    async def outputs(self) -> dict[str, Rows]:
        """The outputs of the plan by name. Raises ExtensionBroken when stages of a cascade do not fit together."""
        return {binding.port: await self.output(binding) for binding in self._plan.outputs}

    async def output(self, binding: Binding) -> Rows:
        """One output of the plan; raises as `outputs` does."""
        made = await self.gather(binding, None)
        return Rows(await local(made.values), made.confidence)

    def rows_of(self, step: Step) -> Index | None:
        """The rows a step runs for: all its sources have, or behind a guard those that are unsure."""
        if step.guard is None:
            return None
        judged = self.by_step[step.guard.step]
        sure = least([made.confidence for made in judged.outputs.values()])
        if sure is None:  # no opinion is not a low one: nothing is passed on
            return np.empty(0, dtype=np.intp)
        unsure = np.flatnonzero(sure < step.guard.below)
        return unsure if judged.index is None else judged.index[unsure]

    async def gather(self, binding: Binding, index: Index | None) -> Produced:
        """The rows of `index` for one port; where several sources hold a row, the last of them gives it."""
        if len(binding.sources) == 1:
            return await self._from(binding.sources[0], index)
        later = [self.by_step[source.step].index for source in binding.sources[1:]]
        if not any(rows is None or len(rows) for rows in later):
            return await self._from(binding.sources[0], index)
        made = await self._from(binding.sources[0], index)
        values = np.array(await local(made.values))
        sure = None if made.confidence is None else np.array(made.confidence)
        positions = np.arange(self.n_rows) if index is None else index
        for source in binding.sources[1:]:
            result = self.by_step[source.step]
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

    async def stack(self, step: Step, inputs: Sequence[tuple[str, Produced]]) -> dict[str, Part]:
        """Values by port; several bindings of one port (a combiner's) are stacked on axis 1, in their order."""
        if len(inputs) == 1:
            return {inputs[0][0]: inputs[0][1].values}
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

    def check_fit(self, step: Step, card: Card, inputs: Mapping[str, Part]) -> None:
        """Raises ExtensionBroken, naming the giver, when rows of a free shape turn out not to fit their taker."""
        for port in card.inputs:
            given = inputs[port.name].shape[1 if port.many == 1 else 2 :]
            if given == port.feature.shape or shapes_unify(port.feature.shape, given):
                continue
            names = self._blame(source for b in step.inputs if b.port == port.name for source in b.sources)
            raise ExtensionBroken(
                f"{', '.join(names)} gave rows of shape {list(given)}, but {card.id} takes {list(port.feature.shape)}.",
                hint=_HINT,
            )

    def _ragged(self, binding: Binding, shapes: Sequence[tuple[int, ...]]) -> ExtensionBroken:
        """Several sources of one port that gave rows of different shapes."""
        names = self._blame(binding.sources)
        told = ", ".join(str(list(shape)) for shape in shapes)
        return ExtensionBroken(
            f"{' and '.join(names)} give rows of different shapes ({told}) for {binding.port!r}.", hint=_HINT
        )

    def _blame(self, sources: Iterable[Source]) -> list[ExtensionId]:
        """The extensions behind these sources, noted as guilty."""
        steps = {source.step for source in sources}
        names = [step.extension for step in self._plan.steps if step.id in steps]
        self._guilty.update(names)
        return names

    async def _from(self, source: Source, index: Index | None) -> Produced:
        """The rows of `index` of one source, which holds them all."""
        result = self.by_step[source.step]
        made = result.outputs[source.port]
        if index is None or (result.index is not None and len(result.index) == len(index)):
            return made
        where = index if result.index is None else np.searchsorted(result.index, index)
        values = (await local(made.values))[where]
        return Produced(values, None if made.confidence is None else made.confidence[where])


def least(confidences: Sequence[Array | None]) -> Array | None:
    """Row by row the lowest of the confidences that are given; None where none is."""
    given = [c for c in confidences if c is not None]
    if len(given) <= 1:
        return given[0] if given else None
    lowest: Array = np.minimum.reduce(given)
    return lowest


def with_confidence(outputs: Mapping[str, Produced], inherited: Array | None) -> Mapping[str, Produced]:
    """Outputs of an extension that does not judge itself are as sure as the least sure of its inputs."""
    if inherited is None or all(made.confidence is not None for made in outputs.values()):
        return outputs
    return {
        name: made if made.confidence is not None else Produced(made.values, inherited)
        for name, made in outputs.items()
    }
