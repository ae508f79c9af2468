"""Simulated rollouts with known truth: what becomes of a challenger that is worse, slower, failing, alike or better.

Requests come at a steady rate, each with a difficulty and a size that both versions share, so that the versions err on
the same requests more often than by chance. Latencies are lognormal with a Pareto tail. Truths come late, or not at
all. The controller decides every few seconds. The same world, plan and seed give the same result.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from planner.rollout.latencies import Latencies
from planner.rollout.records import Observation, Pairs, Rollout, RolloutPlan
from planner.rollout.rollout import decide, follow, observe, start

CHAMPION, CHALLENGER = "1", "2"
_LATEST = 6.0  # mean delays that a run goes on after its last request
_WORST_TAIL = 30.0

_Bools = NDArray[np.bool_]
_Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class World:
    """What is true, unknown to the controller. Wrong and failing are shares of the requests; the challenger takes
    `slower` times as long; `alike` is the share of requests whose difficulty decides for both versions. `fails_served`
    and `wrong_served` are added to its failures and errors where its answers count (nothing of it is seen in the
    shadow). Of the answers, `judged` get a truth, after `delay_s` on average (exponential). With `n_users`, these stay
    with a version each, and are unlike in how hard, risky and large their requests are; else each request is drawn."""

    name: str
    wrong: float = 0.10
    challenger_wrong: float = 0.10
    fails: float = 0.001
    challenger_fails: float = 0.001
    fails_served: float = 0.0
    wrong_served: float = 0.0
    slower: float = 1.0
    alike: float = 0.7
    judged: float = 0.95
    delay_s: float = 20.0
    n_users: int = 0
    per_s: int = 100
    n_requests: int = 100_000


WORLDS = (
    World("5 points worse", challenger_wrong=0.15),
    World("2 times slower", slower=2.0),
    World("fails 1 %", challenger_fails=0.011),
    World("5 points worse when served", wrong_served=0.05),
    World("fails 1 % when served", fails_served=0.01),
    World("equally good"),
    World("equally good, 200 users", n_users=200),
    World("3 points better", challenger_wrong=0.07),
)


@dataclass(frozen=True, slots=True)
class Result:
    """How a rollout ended, or stood when the requests did: after `n_requests`, of which the challenger served `n_hurt`
    (hurt if it is a bad one). `most_share` is the largest share it had."""

    stage: str
    n_requests: int
    n_hurt: int
    most_share: float
    reason: str

    @property
    def hurt(self) -> float:
        """The share of the requests, until it was decided, that the challenger served."""
        return self.n_hurt / self.n_requests if self.n_requests else 0.0


@dataclass(slots=True)
class _Truths:
    """What becomes known in one span of time of the versions' answers: served alone, and mirrored."""

    champion: tuple[int, int] = (0, 0)  # judged, right
    challenger: tuple[int, int] = (0, 0)
    mirrored: tuple[int, int, int, int] = (0, 0, 0, 0)  # judged, challenger alone right, champion alone, both
    checked: tuple[int, int, int, int] = (0, 0, 0, 0)


class _Traffic:
    """The requests of a world, span by span, and the truths that are still to come."""

    def __init__(self, world: World, rng: np.random.Generator, every_s: float) -> None:
        self._world, self._rng, self._every_s = world, rng, every_s
        self._truths: defaultdict[int, _Truths] = defaultdict(_Truths)
        self._span = 0
        self.n_requests = 0
        self.n_hurt = 0
        self._users = rng.gamma(1.0, 1.0, (3, world.n_users))  # how hard, risky and large their requests are
        self._drawn = rng.random(world.n_users)

    def next(self, rollout: Rollout) -> list[Observation | Pairs]:
        """What is seen in the next span."""
        world, rng = self._world, self._rng
        n = min(round(world.per_s * self._every_s), world.n_requests - self.n_requests)
        now = self._truths.pop(self._span, _Truths())
        self._span += 1
        drawn, hard, risky, large = rng.random(n), 1.0, 1.0, 1.0
        if world.n_users:
            user = rng.integers(0, world.n_users, n)
            drawn, (hard, risky, large) = self._drawn[user], self._users[:, user]
        tried = drawn < rollout.share
        mirrored = ~tried & (rng.random(n) < rollout.mirrored)
        checked = tried & (rng.random(n) < rollout.checked)
        alone, alone_tried = ~tried & ~mirrored, tried & ~checked
        difficulty, other = rng.random((2, n))
        other = np.where(rng.random(n) < world.alike, difficulty, other)
        right = difficulty >= world.wrong * hard
        challenger_right = other >= (world.challenger_wrong + world.wrong_served * tried) * hard
        ok = rng.random(n) >= world.fails * risky
        challenger_ok = rng.random(n) >= (world.challenger_fails + world.fails_served * tried) * risky
        size = 10.0 * large * np.exp(rng.normal(0.0, 0.5, n))
        took_ms, challenger_ms = size * _noise(n, rng), world.slower * size * _noise(n, rng)
        agree = (right & challenger_right) | (~right & ~challenger_right & (rng.random(n) < 0.5))
        both_ok = ok & challenger_ok
        judged = rng.random(n) < world.judged
        late = np.floor((rng.random(n) * self._every_s + rng.exponential(world.delay_s, n)) / self._every_s)
        kinds = np.select([alone & ok, alone_tried & challenger_ok, mirrored & both_ok, checked & both_ok], range(4), 4)
        codes = 4 * kinds + 2 * right + challenger_right
        known = judged & (kinds < 4)
        self._file(late[known], codes[known])
        self.n_requests += n
        self.n_hurt += int(tried.sum())

        def served(version: str, of: _Bools, well: _Bools, ms: _Floats, truths: tuple[int, int]) -> Observation:
            return Observation(version, int(of.sum()), int((of & ~well).sum()), Latencies.of(ms[of & well]), *truths)

        def pairs(of: _Bools, truths: tuple[int, int, int, int], served: bool) -> Pairs:
            n_judged, n_right, n_champion_right, n_both_right = truths
            if not of.any() and not n_judged:
                return Pairs(served=served)
            return Pairs(
                n=int(of.sum()),
                n_failed=int((of & ~challenger_ok & ok).sum()),
                n_champion_failed=int((of & ~ok & challenger_ok).sum()),
                n_both_failed=int((of & ~ok & ~challenger_ok).sum()),
                n_compared=int((of & both_ok).sum()),
                n_agreed=int((of & both_ok & agree).sum()),
                n_judged=n_judged,
                n_right=n_right,
                n_champion_right=n_champion_right,
                n_both_right=n_both_right,
                latencies=Latencies.of(challenger_ms[of & challenger_ok]),
                champion_latencies=Latencies.of(took_ms[of & ok]),
                served=served,
            )

        return [
            served(CHAMPION, alone, ok, took_ms, now.champion),
            served(CHALLENGER, alone_tried, challenger_ok, challenger_ms, now.challenger),
            pairs(mirrored, now.mirrored, served=False),
            pairs(checked, now.checked, served=True),
        ]

    def _file(self, late: NDArray[np.float64], codes: NDArray[np.int_]) -> None:
        """Puts the truths of this span where they will come: `late` spans after the next, one of 16 kinds each."""
        spans, where = np.unique(late.astype(int), return_inverse=True)
        counts = np.bincount(where * 16 + codes, minlength=16 * len(spans)).reshape(-1, 4, 4)
        for span, of_span in zip(spans.tolist(), counts, strict=True):
            # Columns: both wrong, the challenger alone right, the champion alone, both right.
            alone, tried, mirrored, checked = of_span
            entry = self._truths[self._span + span]
            entry.champion = _sum(entry.champion, (alone.sum(), alone[2] + alone[3]))
            entry.challenger = _sum(entry.challenger, (tried.sum(), tried[1] + tried[3]))
            entry.mirrored = _sum(entry.mirrored, (mirrored.sum(), *mirrored[1:]))
            entry.checked = _sum(entry.checked, (checked.sum(), *checked[1:]))


def _sum(one: tuple[int, ...], other: tuple[Any, ...]) -> Any:
    return tuple(a + int(b) for a, b in zip(one, other, strict=True))


def simulate(world: World, plan: RolloutPlan, seed: int, every_s: float = 5.0) -> Result:
    """Runs one rollout, deciding every `every_s`, until it ends or the requests and their truths do."""
    rollout = start("simulated", CHAMPION, CHALLENGER, plan, 0.0)
    traffic = _Traffic(world, np.random.default_rng(seed), every_s)
    most_share, reason, now_s = rollout.share, "", 0.0
    until_s = world.n_requests / world.per_s + _LATEST * world.delay_s
    while rollout.running and now_s < until_s:
        seen = traffic.next(rollout)
        now_s += every_s
        rollout = observe(rollout, seen)
        decision = decide(rollout, now_s)
        reason = decision.reason
        rollout = follow(rollout, decision, now_s)
        most_share = max(most_share, rollout.share)
    return Result(rollout.stage, traffic.n_requests, traffic.n_hurt, most_share, reason)


def _noise(n: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Lognormal, and one in a hundred much longer: a Pareto tail without a variance."""
    tail = np.minimum(_WORST_TAIL, 1.0 + rng.pareto(1.5, n))
    return np.exp(rng.normal(0.0, 0.3, n)) * np.where(rng.random(n) < 0.01, 3.0 * tail, 1.0)
