"""How far a request has come on a plan, what is left of it, and what another plan could take over. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from itertools import pairwise

from planner.plans import REQUEST, Plan, Step, StepId


def needs(step: Step) -> set[StepId]:
    """The steps (or the request) that have to be done before this one."""
    before = {source.step for binding in step.inputs for source in binding.sources}
    if step.guard is not None:
        before.add(step.guard.step)
    return before


def is_chain(steps: Sequence[Step]) -> bool:
    """Whether each step needs the one just before: then there is nothing to run in parallel."""
    return all(before.id in needs(step) for before, step in pairwise(steps))


def path_ms(plan: Plan, took_ms: Callable[[Step], float]) -> float:
    """The longest path through the plan, when each step takes `took_ms`."""
    ends_ms = {REQUEST: 0.0}
    for step in plan.steps:
        ends_ms[step.id] = max([ends_ms[before] for before in needs(step)], default=0.0) + took_ms(step)
    return max(ends_ms.values())


def left_ms(plan: Plan, done: Collection[StepId]) -> float:
    """What the steps that are not done are predicted to take."""
    return path_ms(plan, lambda step: 0.0 if step.id in done else step.p50_ms)


def after_ms(plan: Plan, took_ms: Callable[[Step], float]) -> dict[StepId, float]:
    """Per step, what comes after it until the end of the plan, when each step takes `took_ms`."""
    after: dict[StepId, float] = {step.id: 0.0 for step in plan.steps}
    for step in reversed(plan.steps):
        rest_ms = after[step.id] + took_ms(step)
        for before in needs(step):
            if before != REQUEST and after[before] < rest_ms:
                after[before] = rest_ms
    return after


def shared(old: Plan, new: Plan) -> dict[StepId, StepId]:
    """Steps of `new`, and the steps of `old` that give the same: one extension on the same sources, behind the same
    guard."""
    known: dict[Hashable, StepId] = {}
    same: dict[StepId, StepId] = {REQUEST: REQUEST}
    own: dict[StepId, StepId] = {REQUEST: REQUEST}
    for step in old.steps:
        own[step.id] = known.setdefault(_work(step, own), step.id)
    for step in new.steps:
        if needs(step) <= same.keys():
            twin = known.get(_work(step, same))
            if twin is not None:
                same[step.id] = twin
    del same[REQUEST]
    return same


def _work(step: Step, names: Mapping[StepId, StepId]) -> Hashable:
    """What a step does, with its sources under the names they have in one plan."""
    bindings = tuple(
        [(b.port, tuple([(names[source.step], source.port) for source in b.sources])) for b in step.inputs]
    )
    guard = None if step.guard is None else (names[step.guard.step], step.guard.below)
    return step.extension, bindings, guard
