"""Admission: whether a request can be answered in time as things stand, and by which of its plans. Pure.

A plan is forecast along its longest path: at each step, what stands before the request in the line of the extension,
and what the step itself takes. The first plan that meets the deadline is taken; where none does, the request is
refused before anything was started for it, with the time after which the lines will have become short enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.cards import ExtensionId
from planner.errors import Overloaded, ShareExceeded
from planner.line import Ahead
from planner.plans import Plan, Step
from planner.progress import path_ms
from planner.tokens import Token

LEAST_RETRY_S = 0.05


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a request would find before an extension: the rows ahead of it; ms until a call can start; rows and ms of
    a full call; ms that calls took lately; how many calls run at a time."""

    ahead: Ahead
    busy_ms: float
    batch_rows: int
    batch_ms: float
    recent_ms: float
    n_slots: int

    def delay_ms(self, step: Step, rows_ahead: float) -> float:
        """From joining the line to the answer of the step, with that many rows ahead."""
        full_calls = rows_ahead // self.batch_rows
        share = min(1.0, rows_ahead / self.batch_rows)  # of a full call, that travels with us
        return self.busy_ms + full_calls * self.batch_ms / self.n_slots + max(self.run_ms(step), share * self.batch_ms)

    def run_ms(self, step: Step) -> float:
        """What a call takes while others wait too."""
        return max(step.p50_ms, self.recent_ms)


# What a request would find before an extension; None where it would go at once.
BacklogOf = Callable[[ExtensionId, Token], Backlog | None]


def admit(plans: Sequence[Plan], token: Token, now_s: float, backlog_of: BacklogOf) -> Plan:
    """The first of `plans` (best first, at least one) that will be done by the token's deadline.

    Where nothing stands before the first plan it is taken in any case: trying costs nobody else anything, and the
    predictions may be wrong. Raises ShareExceeded when the user's own waiting rows are what is in the way while others
    wait too, else Overloaded.
    """
    best = plans[0]
    left_ms = (token.until_s - now_s) * 1e3
    if best.prediction.p50_ms <= left_ms:
        for step in best.steps:
            if backlog_of(step.extension, token) is not None:
                break
        else:
            return best
    backlogs = _backlogs(best, token, backlog_of)
    excess_ms = []
    for plan in plans:
        excess_ms.append(_forecast_ms(plan, _backlogs(plan, token, backlog_of)) - left_ms)
        if excess_ms[-1] <= 0.0:
            return plan
    if not backlogs:
        return best
    # Lines grow shorter by whole calls: one more, to be sure.
    retry_after_s = (min(excess_ms) + max([backlog.batch_ms for backlog in backlogs.values()])) / 1e3
    retry_after_s = max(LEAST_RETRY_S, retry_after_s)
    told = f"the request would be {min(excess_ms):.0f} ms late, with what waits before it"
    if any(b.ahead.shared for b in backlogs.values()) and _forecast_ms(best, backlogs, own=False) <= left_ms:
        raise ShareExceeded(
            f"{told}; it is the user's own rows that wait.", hint="Send slower.", retry_after_s=retry_after_s
        )
    raise Overloaded(f"{told}.", hint="Retry later, or allow more time.", retry_after_s=retry_after_s)


def _backlogs(plan: Plan, token: Token, backlog_of: BacklogOf) -> dict[ExtensionId, Backlog]:
    found = {}
    for step in plan.steps:
        backlog = backlog_of(step.extension, token)
        if backlog is not None:
            found[step.extension] = backlog
    return found


def _forecast_ms(plan: Plan, backlogs: dict[ExtensionId, Backlog], own: bool = True) -> float:
    """When the plan would be done, from now on; with `own` False, were nothing of the same user in the lines."""

    def delay_ms(step: Step) -> float:
        backlog = backlogs.get(step.extension)
        if backlog is None:
            return step.p50_ms
        return backlog.delay_ms(step, backlog.ahead.n_rows if own else backlog.ahead.n_rows_of_others)

    return path_ms(plan, delay_ms)
