"""Outcomes as the tests of rollouts need them."""

from __future__ import annotations

from planner.rollout.latencies import Latencies, bins_in
from planner.rollout.records import Observation, Pairs, Rollout, RolloutPlan, RolloutStep
from planner.rollout.rollout import start

TOOK = 100  # the bin of usual latencies

QUICK = RolloutPlan(
    steps=(
        RolloutStep(0.0, 1.0, min_outcomes=100, min_s=10.0),
        RolloutStep(0.05, 0.5, min_outcomes=50, min_s=10.0),
        RolloutStep(0.5, min_outcomes=50, min_s=10.0),
    )
)


def spread(n: int, slower: float = 1.0) -> Latencies:
    """`n` latencies, spread over 20 bins, times `slower`."""
    least = TOOK + (bins_in(slower) if slower != 1.0 else 0)
    return Latencies({least + i: n // 20 + (i < n % 20) for i in range(20) if n // 20 + (i < n % 20)})


def served(
    version: str, n: int, failed: int = 0, wrong: int = 0, judged: int | None = None, slower: float = 1.0
) -> Observation:
    judged = n - failed if judged is None else judged
    return Observation(version, n, failed, spread(n - failed, slower), judged, judged - wrong)


def mirrored(
    n: int,
    failed: int = 0,
    wrong: int = 0,
    agreed: int | None = None,
    judged: int | None = None,
    slower: float = 1.0,
    checked: bool = False,
) -> Pairs:
    """Pairs in which the champion does no harm."""
    answered = n - failed
    judged = answered if judged is None else judged
    return Pairs(
        n=n,
        n_failed=failed,
        n_compared=answered,
        n_agreed=answered if agreed is None else agreed,
        n_judged=judged,
        n_champion_right=wrong,
        n_both_right=judged - wrong,
        latencies=spread(answered, slower),
        champion_latencies=spread(n),
        served=checked,
    )


def begun(plan: RolloutPlan = QUICK, former: tuple[str, ...] = ("1",)) -> Rollout:
    return start("digits", "2", "3", plan, 1000.0, former=former)
