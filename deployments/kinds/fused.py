"""Several extensions in one deployment, run one after the other: no ways between them, and the same answers.

The parts are loaded as they are in deployments of their own (`deployments.loading.load`) and run by the same `execute`.
What the dispatcher does between two steps is done here in the same way: rows are stacked for combiners, and a part that
does not judge itself is as sure as the least sure of its inputs. So for one batch the answers are the same bit for bit.
Guards and the choice among stages of a cascade stay with the dispatcher: see `planner/wiring.py`. `compiled.py` runs
the same parts in processes of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from deployments.extension import Extension, Result, Scored, execute
from planner.cards import Card, Kind
from planner.errors import ExtensionBroken
from planner.features import Array, Rows, shapes_unify
from planner.plans import REQUEST, Step, StepId
from planner.results import least
from planner.wiring import Group, fused_card

Made = dict[StepId, Mapping[str, Rows]]  # what each step made, by output; REQUEST made what came in


class FusedExtension(Extension):
    """A group of parts as one extension. `parts[i]` is that of `group.cards[i]`."""

    kind: Kind = "fused"

    def __init__(self, group: Group, parts: Sequence[Extension]) -> None:
        self._group = group
        self._parts = tuple(parts)
        self.inputs = {port.name: port for port in group.inputs}
        self.outputs = {port.name: port.feature for port in group.outputs}

    def card(self) -> Card:
        """The card that the parts give; what is measured of them is not in it."""
        return fused_card(self._group)

    def setup(self) -> None:
        for part in self._parts:
            part.setup()

    def close(self) -> None:
        """Closes every part, even if one raises; then raises what the last one did."""
        failure: Exception | None = None
        for part in self._parts:
            try:
                part.close()
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    def infer(self, *_: Any, **inputs: Any) -> Result:
        made: Made = {REQUEST: {name: Rows(values) for name, values in inputs.items()}}
        for step, part in zip(self._group.steps, self._parts, strict=True):
            made[step.id] = run_part(self._group, step, part, made)
        return answer(made[self._group.steps[-1].id])

    def samples(self, n_rows: int, rng: np.random.Generator) -> dict[str, Array]:
        """What the parts at the front make. They get the same seed, so that free dimensions get the same length."""
        seed = int(rng.integers(2**32))
        samples: dict[str, Array] = {}
        for step in self._group.steps:
            outside = [binding for binding in step.inputs if binding.sources[0].step == REQUEST]
            rows = self._samples_of(step.id, n_rows, seed) if outside else {}
            for binding in outside:
                samples.setdefault(binding.sources[0].port, rows[binding.port])
        return samples

    def _samples_of(self, part: StepId, n_rows: int, seed: int) -> dict[str, Array]:
        return self._parts[part].samples(n_rows, np.random.default_rng(seed))


def run_part(group: Group, step: Step, part: Extension, made: Mapping[StepId, Mapping[str, Rows]]) -> dict[str, Rows]:
    """What a part makes of what was made before it, by step; REQUEST made what comes from outside.

    Raises what `execute` raises, and ExtensionBroken, naming the giver, when rows of a free shape do not fit.
    """
    given = [(b.port, made[b.sources[0].step][b.sources[0].port]) for b in step.inputs]
    outputs = execute(part, _stacked(group, step, [(port, rows.values) for port, rows in given]))
    inherited = least([rows.confidence for _, rows in given])
    return {
        name: Rows(_as_sent(rows.values), inherited if rows.confidence is None else rows.confidence)
        for name, rows in outputs.items()
    }


def answer(last: Mapping[str, Rows]) -> Result:
    """What the last part made, as what the whole returns."""
    values = {name: rows.values for name, rows in last.items()}
    confidence = next(iter(last.values())).confidence  # that of a part is the same for all its outputs
    return values if confidence is None else Scored(values, confidence)


def _stacked(group: Group, step: Step, given: Sequence[tuple[str, Array]]) -> dict[str, Array]:
    """The inputs of a part; several sources of one port are stacked on axis 1."""
    by_port: dict[str, list[Array]] = {}
    for port, values in given:
        by_port.setdefault(port, []).append(values)
    for taken in group.cards[step.id].inputs:
        shapes = {values.shape[1:] for values in by_port[taken.name]}
        if len(shapes) > 1 or not shapes_unify(taken.feature.shape, next(iter(shapes))):
            _refuse(group, step, taken.name, shapes)
    return {name: values[0] if len(values) == 1 else np.stack(values, axis=1) for name, values in by_port.items()}


def _refuse(group: Group, step: Step, port: str, shapes: set[tuple[int, ...]]) -> None:
    givers = {b.sources[0].step for b in step.inputs if b.port == port} - {REQUEST}
    if givers:  # what comes from outside is checked by the part itself
        names = " and ".join(group.cards[giver].id for giver in sorted(givers))
        told = ", ".join(sorted(str(list(shape)) for shape in shapes))
        raise ExtensionBroken(
            f"{names} gave rows of shape {told} for {port!r} of {step.extension}.",
            hint="State the shape in the cards, so that they are not put together.",
        )


def _as_sent(values: Array) -> Array:
    """As the values would arrive in another process: strides do not travel, and they can change the last bits."""
    return values if values.flags.c_contiguous or values.flags.f_contiguous else np.ascontiguousarray(values)
