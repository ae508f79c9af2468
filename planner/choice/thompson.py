"""Thompson sampling over the values of plans: each is tried as often as it is likely to be the best.

Sources: Thompson 1933, Biometrika 25; Chapelle and Li 2011, NIPS. Instead of drawing values, the probability of each
plan to be the best is computed when beliefs have changed, and plans are drawn with it: a choice costs little, and its
propensity is exact.
"""

from __future__ import annotations

import math
import random
from bisect import bisect
from collections import OrderedDict
from collections.abc import Sequence

from planner.choice.best import chances_to_be_best
from planner.choice.policy import Arm, Choice, Context, Result, open_arms
from planner.choice.posteriors import STALE, Posteriors
from planner.goals import Objective

_MOST_TABLES = 4096
_WIDE = 0.75  # the boldness with which it is decided what is tried
_STALE_S = 30.0  # beliefs fade with time too


class Purse:
    """The requests of a goal that may still go to plans that are believed to be worse than the best."""

    __slots__ = ("left",)

    def __init__(self, left: float) -> None:
        self.left = left


class _Table:
    """What is drawn from while beliefs stay as they are."""

    __slots__ = (
        "arms",
        "best",
        "best_sums",
        "changes",
        "choices",
        "fresh_until",
        "fresh_until_s",
        "objective",
        "purse",
        "sums",
        "worse",
    )

    def __init__(self, arms: Sequence[Arm], objective: Objective, purse: Purse) -> None:
        self.arms, self.objective, self.purse = arms, objective, purse
        self.choices: list[Choice] = []  # while there is something to spend
        self.sums: list[float] = []
        self.best: list[Choice] = []  # while there is not
        self.best_sums: list[float] = []
        self.worse: list[bool] = []
        self.fresh_until, self.fresh_until_s, self.changes = 0.0, 0.0, 0


class Thompson:
    """Draws plans by their probability to be the best, within a budget.

    At most `share` of a goal's requests, and `burst` for each of its plans once, go to plans whose expected value is
    below that of the best; what is not spent is saved, up to `saved` requests, for when something changes. `boldness`
    scales how unsure beliefs are taken to be when it comes to how often something is tried: at 1, which is Thompson's
    own rule, two to four times as much was lost in the simulated worlds, and Chapelle and Li report the like. Which
    plan is tried is decided nearer to that rule, so that one with bad luck at first is not passed over. `least` keeps
    looking: at least `least / sqrt(outcomes known)` of a segment's requests, and 5 % at most, go to plans in proportion
    to the variance of what is believed of them, so that one that has become better is noticed.
    """

    name = "thompson"

    def __init__(
        self,
        posteriors: Posteriors | None = None,
        share: float = 0.1,
        burst: float = 12.0,
        least: float = 0.2,
        boldness: float = 0.5,
        saved: float = 500.0,
    ) -> None:
        self.posteriors = Posteriors() if posteriors is None else posteriors
        self._share, self._burst, self._least, self._boldness = share, burst, least, boldness
        self._saved = saved
        self._purses: dict[str, Purse] = {}
        self._tables: OrderedDict[tuple[str, str, int], _Table] = OrderedDict()

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`. 3 us while beliefs are fresh, 200 us when they are not (3 plans)."""
        goal, segment = context.goal, context.segment
        table = self._tables.get((goal, segment, id(arms)))
        n_outcomes, changes = self.posteriors.state_of(goal, segment)
        if (
            table is None
            or n_outcomes >= table.fresh_until
            or now_s >= table.fresh_until_s
            or changes != table.changes
            or (table.objective is not context.objective and table.objective != context.objective)
        ):
            table = self._renewed(context, arms, now_s)
        purse, n = table.purse, context.n_requests
        left = purse.left + self._share * n
        if left < n:
            purse.left = left
            return table.best[bisect(table.best_sums, rng.random())]
        chosen = bisect(table.sums, rng.random())
        if table.worse[chosen]:
            purse.left = left - n
        else:
            most = self._saved if self._saved > n else n
            purse.left = left if left < most else most
        return table.choices[chosen]

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """As `Policy.learn`."""
        self.posteriors.learn(context, arm, result)

    def _renewed(self, context: Context, arms: Sequence[Arm], now_s: float) -> _Table:
        goal, segment = context.goal, context.segment
        open_ = open_arms(arms)
        purse = self._purses.get(goal)
        if purse is None:
            purse = self._purses[goal] = Purse(self._burst * len(open_))
        table = _Table(arms, context.objective, purse)
        beliefs = self.posteriors.beliefs(context, arms, now_s)
        n_outcomes, table.changes = self.posteriors.state_of(goal, segment)
        table.fresh_until = n_outcomes + max(1.0, STALE * self.posteriors.known(goal, segment))
        table.fresh_until_s = now_s + _STALE_S
        worths = [beliefs[i].worth(context.objective) for i in open_]
        chances = self._chances([mean for mean, _ in worths], [sd for _, sd in worths])
        looking = min(0.05, self._least / math.sqrt(1.0 + self.posteriors.known(goal, segment)))
        propensities, best = [0.0] * len(arms), [0.0] * len(arms)
        top = max(mean for mean, _ in worths) - 1e-12
        table.worse = [True] * len(arms)
        unsure = sum(sd * sd for _, sd in worths)
        for i, (mean, sd), chance in zip(open_, worths, chances, strict=True):
            propensities[i] = (1.0 - looking) * chance + looking * sd * sd / unsure
            table.worse[i] = mean < top
        n_best = table.worse.count(False)
        best = [0.0 if worse else 1.0 / n_best for worse in table.worse]
        leader = table.worse.index(False)
        table.sums, table.best_sums = _running(propensities), _running(best)
        whole, alone = tuple(propensities), tuple(best)
        table.choices = [Choice(i, whole, self._why(i, leader, arms, whole)) for i in range(len(arms))]
        table.best = [Choice(i, alone, "the best so far; enough was tried of late") for i in range(len(arms))]
        self._tables[goal, segment, id(arms)] = table
        self._tables.move_to_end((goal, segment, id(arms)))
        if len(self._tables) > _MOST_TABLES:
            self._tables.popitem(last=False)
        return table

    def _chances(self, means: Sequence[float], deviations: Sequence[float]) -> list[float]:
        """With which probability each plan is to be drawn, as far as the budget allows."""
        bold = chances_to_be_best(means, [self._boldness * sd for sd in deviations])
        if len(means) < 3:
            return bold
        wide = chances_to_be_best(means, [_WIDE * sd for sd in deviations])
        first = max(range(len(means)), key=means.__getitem__)
        if wide[first] > 1.0 - 1e-9:
            return bold
        tried = (1.0 - bold[first]) / (1.0 - wide[first])
        return [bold[first] if i == first else tried * chance for i, chance in enumerate(wide)]

    @staticmethod
    def _why(i: int, leader: int, arms: Sequence[Arm], propensities: Sequence[float]) -> str:
        if i == leader:
            return "the best so far"
        return f"tried: it may be better than {arms[leader].plan} ({100.0 * propensities[i]:.2g} % of requests)"


def _running(propensities: Sequence[float]) -> list[float]:
    """Running sums to look a random number up in; beyond the last possible arm they are out of its reach."""
    sums, total = [], 0.0
    for p in propensities:
        total += p
        sums.append(total)
    last = max(i for i, p in enumerate(propensities) if p > 0.0)
    sums[last:] = [2.0] * (len(sums) - last)
    return sums
