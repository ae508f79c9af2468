"""Journals whose truth is known: what was chosen at random for two users, through the real chunks."""

from __future__ import annotations

import math
import random
from collections.abc import Mapping

import numpy as np

from lineage.chunks import ChunkBuilder
from lineage.feedback import Feedback
from lineage.journal import JournalStore
from lineage.outcomes import Setting, trace_id_of
from planner.cards import Accuracy, Card
from planner.catalogue import Catalogue
from planner.features import Feature, Port
from planner.goals import Goal

RUN = "0123456789abcdef0123"
NOW_S = 1_700_000_000.0
GOAL = "read"
PLANS = ("plan-a", "plan-b", "plan-c")
BEST = {"ann": "plan-b", "bob": "plan-c"}  # right in 95 %, the others in 60 %
STEPS = {
    "plan-a": ((0, "scale@1"), (1, "small@1")),
    "plan-b": ((0, "scale@1"), (1, "large@1")),
    "plan-c": ((0, "whole@1"),),
}
SAID = {"plan-a": (4.0, 0.0, 0.9), "plan-b": (9.0, 0.01, 0.88), "plan-c": (6.0, 0.0, 0.86)}  # ms, cost, accuracy

_X, _Y = (Port("x", Feature("image/digit", "FP32")),), (Port("y", Feature("label/digit", "INT64")),)
CATALOGUE = Catalogue.of(
    [
        Card("scale", "1", _X, _X, accuracy=Accuracy(1.0, 500)),
        Card("small", "1", _X, _Y, accuracy=Accuracy(0.9, 200)),
        Card("large", "1", _X, _Y, accuracy=Accuracy(0.88, 200)),
        Card("whole", "1", _X, _Y, accuracy=Accuracy(0.86, 300)),
    ],
    [Goal(GOAL, _X, _Y), Goal("other", _X, _Y)],
)


def setting(
    plan: str, user: str = "ann", propensities: tuple[float, ...] = (0.5, 0.25, 0.25), **more: object
) -> Setting:
    """Of requests that were served by a plan which was drawn among PLANS."""
    expected_ms, expected_cost, expected_accuracy = SAID[plan]
    given = {
        "model": GOAL,
        "goal": GOAL,
        "plan": plan,
        "steps": STEPS[plan],
        "user": user,
        "considered": tuple(zip(PLANS, propensities, strict=True)),
        "expected_ms": expected_ms,
        "expected_cost": expected_cost,
        "expected_accuracy": expected_accuracy,
        **more,
    }
    return Setting(**given)  # type: ignore[arg-type]


def journal_world(
    store: JournalStore,
    n: int,
    seed: int = 0,
    *,
    propensities: tuple[float, ...] = (0.5, 0.25, 0.25),
    judged: float = 0.9,
    per_chunk: int = 400,
    now_s: float = NOW_S,
    best: Mapping[str, str] = BEST,
) -> None:
    """`n` requests, ten a second, the last one just before `now_s`. Every answer is 1, and right where the truth is."""
    rng = random.Random(seed)
    made = {(plan, user): setting(plan, user, propensities) for plan in PLANS for user in best}
    users = sorted(best)
    truths = []
    for begin in range(0, n, per_chunk):
        builder = ChunkBuilder(RUN)
        for seq in range(begin, min(n, begin + per_chunk)):
            user = rng.choice(users)
            plan = rng.choices(PLANS, propensities)[0]
            one, at_s = made[plan, user], now_s - (n - seq) / 10.0
            latency_ms = one.expected_ms * math.exp(rng.gauss(0.0, 0.1))
            steps = [(0.1, 0.2, 0.4, 1)] * len(one.steps)
            builder.add(one, seq, at_s, [latency_ms], [1], [math.nan], steps, {"y": np.array([1])})
            right = rng.random() < (0.95 if plan == best[user] else 0.6)
            if rng.random() < judged:
                truths.append(Feedback(trace_id_of(RUN, seq), truth=int(right)))
        store.append(RUN, [builder.encode()])
    store.give(truths, now_s)
