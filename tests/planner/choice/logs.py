"""Synthetic logs whose truth is known: what was chosen at random, and what came of it."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.choice.evaluation import Logged
from planner.choice.policy import Arm, Choice, Context, Policy, Result, drawn

ARMS = (Arm("first", 0.95, 200, 10.0, 0.0), Arm("second", 0.9, 200, 20.0, 0.01), Arm("third", 0.85, 200, 5.0, 0.0))

# Right shares per segment; the planner's first is the best nowhere.
RIGHT: Mapping[str, tuple[float, ...]] = {"clinic": (0.7, 0.95, 0.6), "school": (0.75, 0.7, 0.95)}
_SPREAD = 0.3


@dataclass(frozen=True, slots=True)
class Stochastic:
    """Chooses with the same probabilities always."""

    propensities: tuple[float, ...]
    name: str = "stochastic"

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        return Choice(drawn(self.propensities, rng), self.propensities)

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        pass


def drawn_log(
    n: int,
    seed: int,
    propensities: Sequence[float] = (0.6, 0.2, 0.2),
    known: Mapping[str, float] | None = None,
    right_shares: Mapping[str, tuple[float, ...]] = RIGHT,
) -> list[Logged]:
    """A log of `n` outcomes; the truth of a plan's outcomes becomes known with probability `known`, by default 1."""
    rng = random.Random(seed)
    contexts = [Context("goal", segment) for segment in RIGHT]
    log = []
    for i in range(n):
        context = contexts[rng.randrange(len(contexts))]
        choice = Choice(drawn(propensities, rng), tuple(propensities))
        arm = ARMS[choice.arm]
        right = float(rng.random() < right_shares[context.segment][choice.arm])
        heard = known is None or rng.random() < known[arm.plan]
        result = Result.answered(
            arm.p50_ms * math.exp(rng.gauss(0.0, _SPREAD)),
            arm.cost,
            right=right if heard else None,
            propensity=choice.propensity,
            at_s=float(i),
        )
        log.append(Logged(context, ARMS, choice, result))
    return log


def true_value(policy: Policy) -> float:
    """The expected reward of a policy, as it stands."""
    total = 0.0
    for segment, shares in RIGHT.items():
        chances = policy.choose(Context("goal", segment), ARMS, random.Random(0), 0.0).propensities
        for p, right, arm in zip(chances, shares, ARMS, strict=True):
            latency_s = arm.p50_ms * math.exp(_SPREAD**2 / 2) / 1e3
            total += p * -(1.0 - right + latency_s + arm.cost) / len(RIGHT)
    return total
