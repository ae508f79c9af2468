"""What a choice among plans is made on, what comes back, and what every policy of choosing can do.

The planner gives the arms, best first; all of them are within the terms. A policy chooses one for a group of requests
and says with which probability it would have chosen each: those are what offline evaluation weighs with, so they are
the probabilities by which the arm was really drawn. Later it hears what came of it, in parts: latency, cost and
failures at once, the truth when it is known.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from planner.errors import NoPlan
from planner.goals import Objective

FEATURES: Final = ("log_rows", "log_kilo", "mean", "deviation", "log_slack", "load")  # of `Context.features`, in order

_LEAST_ACCURACY = 1e-4  # what is never right is as bad as this, so that values stay finite


@dataclass(frozen=True, slots=True)
class Context:
    """What is known of requests when their plan is chosen.

    `segment` is the kind of user or data that they belong to (`segments.py`); empty: nothing is known. `features` are
    numbers around -3..3 as in FEATURES, or none: ln(1 + rows), ln(1 + kilo), mean and standard deviation of the input
    (0 where that is not cheap), ln(1 + ms until the deadline) (0: none), load in 0..1. `n_requests` travel together
    and get the same plan.
    """

    goal: str
    segment: str = ""
    features: tuple[float, ...] = ()
    objective: Objective = Objective()
    n_requests: int = 1


@dataclass(frozen=True, slots=True)
class Arm:
    """A plan that may be chosen, with what the planner predicts of it.

    `accuracy` is the predicted share of right rows, and `n_rows` on how many rows it was measured (0: a guess).
    `p50_ms` and `cost` (per row) are as in the plan's prediction. Rules of a user pin or exclude plans: where arms are
    `pinned` only those may be chosen, and an `excluded` one never (`rules.py`).
    """

    plan: str
    accuracy: float
    n_rows: int
    p50_ms: float
    cost: float
    pinned: bool = False
    excluded: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """The number of the chosen arm, the probability with which each arm was to be drawn (they sum to 1), and why."""

    arm: int
    propensities: tuple[float, ...]
    reason: str = ""

    @property
    def propensity(self) -> float:
        """That of the chosen arm."""
        return self.propensities[self.arm]


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one or many requests on an arm, or what became known of them later.

    `n` requests ended, `n_failed` of them without an answer. `log_ms` and `log_ms_var` are mean and variance of
    ln(latency in ms) of those that were answered; `cost` is the mean per row. Of `n_judged` rows or requests the truth
    (or a rating in 0..1) has become known, and `right` is its sum; truth that comes late comes in a result of its own
    with `n` 0. `propensity` is that of the arm when it was chosen. `at_s` is when it became known.
    """

    n: int = 0
    n_failed: int = 0
    log_ms: float = 0.0
    log_ms_var: float = 0.0
    cost: float = 0.0
    n_judged: int = 0
    right: float = 0.0
    propensity: float = 1.0
    at_s: float = 0.0

    @classmethod
    def answered(
        cls, latency_ms: float, cost: float, *, right: float | None = None, propensity: float = 1.0, at_s: float = 0.0
    ) -> Result:
        """One request that was answered, with its truth where that is known."""
        judged = right is not None
        return cls(1, 0, math.log(max(latency_ms, 1e-3)), 0.0, cost, int(judged), right or 0.0, propensity, at_s)

    @classmethod
    def failed(cls, *, propensity: float = 1.0, at_s: float = 0.0) -> Result:
        """One request that got no answer."""
        return cls(n=1, n_failed=1, propensity=propensity, at_s=at_s)

    @classmethod
    def judged(cls, right: float, n: int = 1, *, propensity: float = 1.0, at_s: float = 0.0) -> Result:
        """Truth that came late: `right` of `n` were right."""
        return cls(n_judged=n, right=right, propensity=propensity, at_s=at_s)

    def reward(self, objective: Objective, assumed: float) -> float:
        """The mean value of a request, at most 0: what evaluation averages, because it is linear in what happened.

        -(accuracy * share that was not right + latency * seconds + cost * cost): the objective with -ln(a) replaced by
        1 - a, which is infinite for no single wrong answer. A failure is a wrong answer. Where no truth is known the
        accuracy is `assumed`.
        """
        right = self.right / self.n_judged if self.n_judged else assumed
        answered = 1.0 - self.n_failed / self.n if self.n else 1.0
        latency_s = math.exp(self.log_ms) / 1e3 if self.n > self.n_failed else 0.0
        lost = objective.accuracy * (1.0 - right * answered)
        return -(lost + objective.latency * latency_s + objective.cost * self.cost)


class Policy(Protocol):
    """Chooses plans, and learns which are good. Not thread-safe; `rng` and `now_s` are given, so runs can be repeated.

    `name` is unique and in lower case.
    """

    name: str

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """One of the arms; never an excluded one, and only pinned ones where there are any.

        Called for every group of requests: some microseconds. Give the same sequence again while the arms are the
        same, it is recognised. Raises NoPlan when there is no arm, or all are excluded.
        """

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """Hears what came of an arm in a context; in any order, any number of times."""


def value(objective: Objective, accuracy: float, p50_ms: float, cost: float, failures: float = 0.0) -> float:
    """What a plan is worth, at most 0 and finite: the objective's score, negated. A failure is a wrong answer."""
    return -objective.score(max(accuracy * (1.0 - failures), _LEAST_ACCURACY), p50_ms, cost)


def open_arms(arms: Sequence[Arm]) -> list[int]:
    """The numbers of the arms that the rules leave open. Raises NoPlan when there is none."""
    pinned = [i for i, arm in enumerate(arms) if arm.pinned and not arm.excluded]
    left = pinned or [i for i, arm in enumerate(arms) if not arm.excluded]
    if not left:
        raise NoPlan(
            "all plans are excluded by rule." if arms else "there is no plan to choose from.",
            hint="Take back a rule that excludes plans, or loosen the terms." if arms else "",
        )
    return left


def drawn(propensities: Sequence[float], rng: random.Random) -> int:
    """A number drawn with these probabilities, which sum to 1; never one whose probability is 0."""
    left, last = rng.random(), 0
    for i, p in enumerate(propensities):
        if p > 0.0:
            left -= p
            last = i
            if left < 0.0:
                return i
    return last  # what rounding left over
