"""Simple policies to compare with: the planner's first, a fixed plan, and the best known with chance trials."""

from __future__ import annotations

import random
from collections.abc import Sequence

from planner.choice.policy import Arm, Choice, Context, Result, drawn, open_arms
from planner.choice.posteriors import STALE, Posteriors


def _certain(n_arms: int, arm: int, reason: str) -> Choice:
    return Choice(arm, tuple([float(i == arm) for i in range(n_arms)]), reason)


class Prior:
    """Always the plan that the planner ranks first."""

    name = "prior"

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`."""
        return _certain(len(arms), open_arms(arms)[0], "the planner ranks it first")

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """Learns nothing."""


class Fixed:
    """Always the same plan; where it is not among the arms, the planner's first."""

    name = "fixed"

    def __init__(self, plan: str = "") -> None:
        self._plan = plan

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`."""
        open_ = open_arms(arms)
        for i in open_:
            if arms[i].plan == self._plan:
                return _certain(len(arms), i, "it is set to be taken")
        return _certain(len(arms), open_[0], "the planner ranks it first")

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """Learns nothing."""


class EpsilonGreedy:
    """The plan of the best expected value, and any plan with probability `epsilon`. The baseline.

    It rests on the same beliefs as Thompson sampling and differs in what it tries alone.
    """

    name = "greedy"

    def __init__(self, posteriors: Posteriors | None = None, epsilon: float = 0.1) -> None:
        self.posteriors = Posteriors() if posteriors is None else posteriors
        self._epsilon = epsilon
        self._kept: dict[tuple[str, str], tuple[Sequence[Arm], float, int, int]] = {}

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`."""
        open_ = open_arms(arms)
        best = self._best(context, arms, open_, now_s)
        propensities = [0.0] * len(arms)
        for i in open_:
            propensities[i] = self._epsilon / len(open_)
        propensities[best] += 1.0 - self._epsilon
        arm = drawn(propensities, rng)
        return Choice(arm, tuple(propensities), "the best so far" if arm == best else "tried by chance")

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """As `Policy.learn`."""
        self.posteriors.learn(context, arm, result)

    def _best(self, context: Context, arms: Sequence[Arm], open_: Sequence[int], now_s: float) -> int:
        key = (context.goal, context.segment)
        n_outcomes, changes = self.posteriors.state_of(*key)
        kept = self._kept.get(key)
        if kept is not None and kept[0] is arms and n_outcomes < kept[1] and changes == kept[2]:
            return kept[3]
        beliefs = self.posteriors.beliefs(context, arms, now_s)
        best = max(open_, key=lambda i: beliefs[i].worth(context.objective)[0])
        if len(self._kept) > 4096:
            self._kept.clear()
        until = n_outcomes + max(1.0, STALE * self.posteriors.known(*key))
        self._kept[key] = (arms, until, changes, best)
        return best
