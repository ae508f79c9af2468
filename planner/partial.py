"""Partial answers: what can still be had of a plan, some of whose steps failed for good. Pure.

A request whose terms allow it (`Terms.partial`) goes on without the outputs that are lost, and its answer names them.
What it contains is what the whole answer would: an output is either there as planned, or it is not there at all.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from planner.admission import BacklogOf, admit
from planner.errors import Overloaded
from planner.plans import REQUEST, Plan, StepId
from planner.progress import needs, path_ms
from planner.tokens import Token

MARGIN_S = 0.005  # before the deadline, for the answer to be written
MOST_MARGIN = 0.1  # of the time there is


def early(token: Token, now_s: float) -> Token:
    """The token with a deadline a little earlier, at which what is there becomes the answer."""
    if not token.hard:
        return token
    return replace(token, until_s=token.until_s - min(MARGIN_S, MOST_MARGIN * max(0.0, token.until_s - now_s)))


def made_of(plan: Plan) -> dict[str, frozenset[StepId]]:
    """Per output of the plan, all steps that have a part in it."""
    behind: dict[StepId, frozenset[StepId]] = {REQUEST: frozenset()}
    for step in plan.steps:
        behind[step.id] = frozenset({step.id}).union(*[behind[before] for before in needs(step)])
    return {
        output.port: frozenset().union(*[behind[source.step] for source in output.sources]) for output in plan.outputs
    }


def cut_off(plan: Plan, step: StepId) -> set[str]:
    """The outputs that cannot be had without a step."""
    return {output for output, steps in made_of(plan).items() if step in steps}


def useless(plan: Plan, missing: Collection[str]) -> set[StepId]:
    """The steps that only the missing outputs have use for."""
    useful = [steps for output, steps in made_of(plan).items() if output not in missing]
    return {step.id for step in plan.steps} - set().union(*useful)


def some_in_time(plan: Plan, token: Token, now_s: float, backlog_of: BacklogOf) -> bool:
    """Whether one of several outputs would be in time, were it wanted alone."""
    return len(plan.outputs) > 1 and any(_is_in_time(part, token, now_s, backlog_of) for part in _parts(plan))


def _parts(plan: Plan) -> list[Plan]:
    """Per output, what a plan for it alone would be."""
    made = []
    for output, ids in zip(plan.outputs, made_of(plan).values(), strict=True):
        part = replace(plan, steps=tuple([step for step in plan.steps if step.id in ids]), outputs=(output,))
        p50_ms = path_ms(part, lambda step: step.p50_ms)
        made.append(replace(part, prediction=replace(plan.prediction, p50_ms=p50_ms)))
    return made


def _is_in_time(plan: Plan, token: Token, now_s: float, backlog_of: BacklogOf) -> bool:
    try:
        admit([plan], token, now_s, backlog_of)
    except Overloaded:
        return False
    return True
