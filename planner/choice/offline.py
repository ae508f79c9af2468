"""Compares policies on what is journaled, and trains the controller from it.

Every policy hears the first half of the outcomes and is evaluated on the second; the controller is trained on the same
half. So what is said of the trained weights is said of outcomes that they have not seen.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

from planner.choice.controller import Controller, Weights
from planner.choice.controller_training import examples_of, train
from planner.choice.evaluation import Evaluation, Table, compare
from planner.choice.exp3 import Exp3, Exp4
from planner.choice.greedy import EpsilonGreedy, Prior
from planner.choice.journaled import Journaled
from planner.choice.policy import Policy
from planner.choice.thompson import Thompson
from planner.errors import BadRequest

LEARNED_FROM: Final = 0.5  # of the outcomes, the first in time
_FEW = 100.0  # effective outcomes, below which nothing can be told
_LEAST = 40  # outcomes that are trained from and evaluated on

# As `choice.policy` names them, with `choice.share` and `choice.burst`.
POLICIES: Final[Mapping[str, Callable[[float, float], Policy]]] = {
    "first": lambda share, burst: Prior(),
    "greedy": lambda share, burst: EpsilonGreedy(epsilon=share),
    "thompson": lambda share, burst: Thompson(share=share, burst=burst),
    "exp3": lambda share, burst: Exp3(mixing=share),
    "exp4": lambda share, burst: Exp4(mixing=share),
}
CONTROLLER: Final = Controller.name


@dataclass(frozen=True, slots=True)
class Comparison:
    """Policies by the names that `choice.policy` has for them, best first; evaluated on outcomes from `from_s` on."""

    table: Table
    n_learned_from: int
    from_s: float
    warnings: tuple[str, ...]

    def row(self, policy: str) -> Evaluation | None:
        return next((row for row in self.table.rows if row.policy == policy), None)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether it pays to let the controller choose, and why, in sentences."""

    is_better: bool
    said: tuple[str, ...]


def compared(
    journaled: Journaled,
    policies: Sequence[str] = tuple(POLICIES),
    share: float = 0.1,
    burst: float = 12.0,
    weights: Weights | None = None,
    seed: int = 0,
) -> Comparison:
    """Policies by name, and the controller where there are weights for it, with `choice.share` and `choice.burst`.

    Raises BadRequest where no truth is known although the goal's objective asks for it, and for too few outcomes.
    """
    _check(journaled, 4)
    made = [POLICIES[name](share, burst) for name in policies if name in POLICIES]
    if weights is not None:
        made.append(Controller(weights, journaled.way_of, mixing=share))
    if not made:
        raise BadRequest("there is no policy to compare.", hint="Name one, or give weights for the controller.")
    table = compare(made, journaled.log, random.Random(seed), LEARNED_FROM)
    rows = tuple([replace(row, policy="first") if row.policy == Prior.name else row for row in table.rows])
    n_learned_from = int(LEARNED_FROM * len(journaled.log))
    from_s = journaled.log[n_learned_from].result.at_s
    warnings = list(journaled.warnings())
    if weights is not None and weights.goal == journaled.goal and weights.until_s >= from_s:
        warnings.append(
            "the controller was trained on outcomes that it is evaluated on here: it looks better than it is."
        )
    if weights is not None and weights.goal not in ("", journaled.goal):
        warnings.append(f"the controller was trained on another goal, {weights.goal}.")
    return Comparison(Table(table.logged, rows), n_learned_from, from_s, tuple(warnings))


def trained(journaled: Journaled, seed: int = 0) -> Weights:
    """The controller's weights, from the first half of the outcomes. Raises BadRequest as `compared` does."""
    _check(journaled, _LEAST)
    first = journaled.log[: int(LEARNED_FROM * len(journaled.log))]
    found = train(examples_of(first, journaled.way_of), seed)
    return replace(found, goal=journaled.goal, until_s=first[-1].result.at_s)


def _check(journaled: Journaled, least: int) -> None:
    n = len(journaled.log)
    if n < least:
        raise BadRequest(
            f"there are {n} outcomes of goal {journaled.goal!r}, and at least {least} are needed.",
            hint="Look further back, or wait for more.",
        )
    if not journaled.n_judged and journaled.objective.accuracy > 0.0:
        raise BadRequest(
            f"of {n:,} outcomes of goal {journaled.goal!r} none has a truth or a rating: what was right is not known.",
            hint="Give some by `fenix feedback` or POST /v1/feedback.",
        )


def verdict(comparison: Comparison) -> Verdict:
    """What the comparison says of the controller, which is in it, beside the others."""
    ours = comparison.row(CONTROLLER)
    if ours is None:
        raise BadRequest("the controller is not among the policies that were compared.")
    said = ours.doubly_robust
    others = [row for row in comparison.table.rows if row is not ours]
    if ours.effective_n < _FEW:
        return Verdict(
            False,
            (
                f"Nothing can be told: of {ours.n:,} outcomes only {ours.effective_n:.0f} count for the controller.",
                "Let the policy that serves try more (choice.share), or wait for more outcomes.",
            ),
        )
    gain = f"{ours.gain.value:+.4f} ({ours.gain.low:+.4f} to {ours.gain.high:+.4f}) a request"
    if ours.gain.high < 0.0:
        return Verdict(False, (f"The controller is worse than what served: {gain}.",))
    if ours.gain.low <= 0.0:
        return Verdict(False, (f"No difference to what served can be told: {gain}.",))
    found = [f"The controller is better than what served: {gain}."]
    above = [row.policy for row in others if row.doubly_robust.value >= said.value]
    level = [row.policy for row in others if said.low <= row.doubly_robust.value < said.value]
    if above:
        found.append(f"But estimated as good or better: {', '.join(above)}.")
    elif level:
        found.append(f"But too near to be told apart from it: {', '.join(level)}.")
    return Verdict(not above and not level, tuple(found))
