"""Tests that may be looked at after every outcome, and stopped at any time, without more false alarms than promised.

Each test is a bet against what it would disprove. The bet is fair, so that its wealth stays below `1 / alpha` for ever
with probability `1 - alpha` where there is nothing to disprove (Ville 1939); where there is, it grows exponentially.
Several bets run side by side, from cautious to bold, and the mean of their wealths is the evidence, an e-value.
Sources: Waudby-Smith and Ramdas 2024, JRSS-B 86(1) for pairs; Turner, Ly and Grünwald 2024, Statistica Sinica 34 for
two groups; Ramdas, Grünwald, Vovk and Shafer 2023, Statistical Science 38 for the whole.

An outcome is a *harm* (a failure, a wrong answer, a slow one) or none. Tests have two sides:

- worse: the challenger does harm more often than the champion, by more than `margin`
- not worse: it does not do harm more often by more than `margin`

Wealth adds up (as logarithms), so outcomes may come in batches of any size, and the evidence of several gateways may
be merged. The bound on false alarms holds as well where the champion's rate drifts, since both versions drift together.
Two groups are compared as if who serves a request were drawn anew for each: where users stay with a version, few or
unlike users make groups unlike. Pairs are not troubled by that.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from planner.errors import BadRequest

Bets = tuple[float, ...]  # the logarithm of each bet's wealth
Verdict = Literal["worse", "not worse", "open"]

# How much each bet expects the odds of harm to differ, as the logarithm of their ratio. What is worse by so much that
# it matters soon is bet on boldly; that nothing is worse shows in small differences.
_WORSE = (0.2, 0.4, 0.8, 1.6, 3.2)
_NOT_WORSE = (-0.1, -0.2, -0.4, -0.8, -1.6)
NO_BETS: Bets = (0.0,) * len(_WORSE)
_TINY = 1e-9
_PRIOR = 10.0  # outcomes that the guess of the champion's rate is worth


def mean_wealth(bets: Bets) -> float:
    """The logarithm of the mean wealth of the bets: the evidence, in nats."""
    most = max(bets)
    return most + math.log(sum([math.exp(bet - most) for bet in bets]) / len(bets))


def _plus(one: Bets, other: Bets) -> Bets:
    return tuple([a + b for a, b in zip(one, other, strict=True)])


def pair_bets(n: int, only_challenger: int, only_champion: int, margin: float, *, worse: bool) -> Bets:
    """What bets on `n` pairs win: requests that both versions answered.

    `only_challenger` of them were harms of the challenger alone, `only_champion` of the champion alone. Against the
    claim that the difference of the rates is at most `margin` (`worse`), or at least that (not `worse`).
    """
    alike = n - only_challenger - only_champion
    most = 1.0 / (1.0 + margin if worse else 1.0 - margin)  # a bolder bet could lose more than all
    won = []
    for tilt in _WORSE if worse else _NOT_WORSE:
        stake = most * math.tanh(tilt / 2.0)
        won.append(
            only_challenger * math.log1p(stake * (1.0 - margin))
            + only_champion * math.log1p(-stake * (1.0 + margin))
            + alike * math.log1p(-stake * margin)
        )
    return tuple(won)


@dataclass(frozen=True, slots=True)
class Tally:
    """`k` harms among `n` outcomes."""

    n: int = 0
    k: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.k <= self.n:
            raise BadRequest(f"There are {self.k} among {self.n} outcomes: counts lie between 0 and the whole.")

    def plus(self, other: Tally) -> Tally:
        return Tally(self.n + other.n, self.k + other.k)

    @property
    def rate(self) -> float:
        """The share of harms; 0 where there was no outcome."""
        return self.k / self.n if self.n else 0.0


def group_bets(champion: Tally, challenger: Tally, rate: float, margin: float, *, worse: bool) -> Bets:
    """What bets on two groups of requests win, each served by one version.

    `rate` is the champion's rate of harms as it was estimated without these outcomes: a wrong one costs power, never
    validity. Each bet is the likelihood of these outcomes where the challenger's odds differ by the bet's tilt, over
    that in the nearest world where there is nothing to disprove. Nearest in Kullback-Leibler divergence, so that in
    every such world the expected win is at most 1, and it is so for the mean rates of the group if they vary.
    """
    if not champion.n or not challenger.n:
        return NO_BETS
    rate = min(max(rate, _TINY), 1.0 - margin - _TINY)
    odds = (rate + margin) / (1.0 - rate - margin)
    won = []
    for tilt in _WORSE if worse else _NOT_WORSE:
        other = odds * math.exp(tilt)
        other = min(max(other / (1.0 + other), _TINY), 1.0 - _TINY)
        null = _nearest(rate, other, champion.n, challenger.n, margin)
        won.append(_log_ratio(champion, rate, null) + _log_ratio(challenger, other, null + margin))
    return tuple(won)


def level_bets(tally: Tally, limit: float, *, worse: bool) -> Bets:
    """What bets win against the claim that the rate of harms is at most `limit` (`worse`), or at least that."""
    odds = limit / (1.0 - limit)
    tilted = (odds * math.exp(tilt) for tilt in (_WORSE if worse else _NOT_WORSE))
    return tuple(_log_ratio(tally, other / (1.0 + other), limit) for other in tilted)


def _log_ratio(tally: Tally, rate: float, null: float) -> float:
    """The logarithm of the likelihood of the outcomes at one rate over that at another."""
    return tally.k * math.log(rate / null) + (tally.n - tally.k) * math.log((1.0 - rate) / (1.0 - null))


def _nearest(champion: float, challenger: float, n_champion: int, n_challenger: int, margin: float) -> float:
    """The champion's rate in the world nearest to these two rates where they differ by exactly `margin`."""
    if margin == 0.0:
        return (n_champion * champion + n_challenger * challenger) / (n_champion + n_challenger)
    low = max(min(champion, challenger - margin), _TINY)
    high = min(max(champion, challenger - margin), 1.0 - margin - _TINY)
    # Begin where the two parabolas of the divergences have their least sum.
    weight = n_champion / (champion * (1.0 - champion))
    other = n_challenger / (challenger * (1.0 - challenger))
    at = min(max((weight * champion + other * (challenger - margin)) / (weight + other), low), high)
    for _ in range(100):  # Newton's steps, halving where they leave the bracket; some 5
        up, left, left_up = at + margin, 1.0 - at, 1.0 - at - margin
        slope = n_champion * (at - champion) / (at * left) + n_challenger * (up - challenger) / (up * left_up)
        if slope > 0.0:
            high = at
        else:
            low = at
        bend = n_champion * (champion / (at * at) + (1.0 - champion) / (left * left))
        bend += n_challenger * (challenger / (up * up) + (1.0 - challenger) / (left_up * left_up))
        then = at - slope / bend
        if not low <= then <= high:
            then = (low + high) / 2.0
        if abs(then - at) <= 1e-14 * at:
            return then
        at = then
    return at


@dataclass(frozen=True, slots=True)
class Wealth:
    """The bets of one side of a test: on the challenger in the shadow, and on what it served. They bet on different
    outcomes in turn, so the product of both wealths is a fair bet as well."""

    shadow: Bets = NO_BETS
    served: Bets = NO_BETS

    def plus(self, other: Wealth) -> Wealth:
        return Wealth(_plus(self.shadow, other.shadow), _plus(self.served, other.served))

    @property
    def log_e(self) -> float:
        return mean_wealth(self.shadow) + mean_wealth(self.served)


def _slot(bets: Bets, served: bool) -> Wealth:
    return Wealth(served=bets) if served else Wealth(shadow=bets)


@dataclass(frozen=True, slots=True)
class Sides:
    """Both sides of a test. `lately` bets on worse as `worse` does, but began anew when the share last changed: what
    goes wrong only then would else have to make up for all that was right before. For the same reason what was served
    counts by itself as well, without what was mirrored."""

    worse: Wealth = Wealth()
    lately: Wealth = Wealth()
    not_worse: Wealth = Wealth()

    def plus(self, worse: Wealth, not_worse: Wealth) -> Sides:
        return Sides(self.worse.plus(worse), self.lately.plus(worse), self.not_worse.plus(not_worse))

    def restarted(self) -> Sides:
        return replace(self, lately=Wealth())

    def merged(self, other: Sides) -> Sides:
        return Sides(self.worse.plus(other.worse), self.lately.plus(other.lately), self.not_worse.plus(other.not_worse))

    def log_e_worse(self, n_starts: int) -> float:
        """Evidence that it is worse. A third of the money is bet from the start, a third on what is served, the rest in
        equal parts at each of the `n_starts` steps."""
        served = mean_wealth(self.worse.served)
        return mean_wealth((self.worse.log_e, served, self.lately.log_e - math.log(n_starts)))

    @property
    def log_e_not_worse(self) -> float:
        return self.not_worse.log_e

    def verdict(self, alpha: float, n_starts: int = 1) -> Verdict:
        """What is shown at level `alpha`: each side is wrongly shown, ever, with at most that probability."""
        if self.log_e_worse(n_starts) >= -math.log(alpha):
            return "worse"
        return "not worse" if self.log_e_not_worse >= -math.log(alpha) else "open"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Does the challenger do more harm than the champion? `margin` is in [0, 1), a difference of rates; `guess` what
    the champion's rate may be, before anything is known. `waiting` are outcomes of one group until the other has some.
    Where `only_not_worse` is set, nothing is bet on the other side.
    """

    margin: float
    guess: float
    champion: Tally = Tally()
    challenger: Tally = Tally()
    waiting: tuple[Tally, Tally] = (Tally(), Tally())
    sides: Sides = Sides()
    only_not_worse: bool = False

    def update_pairs(
        self, n: int, only_challenger: int, only_champion: int, both: int = 0, *, served: bool = False
    ) -> Comparison:
        """Takes in requests that both versions answered: harms of one alone, and of both. `served` says that the
        challenger's answers counted."""
        if not n:
            return self
        if min(n, only_challenger, only_champion, both) < 0 or only_challenger + only_champion + both > n:
            raise BadRequest(f"Of {n} pairs, {only_challenger}, {only_champion} and {both} cannot all be harms.")
        champion, challenger = Tally(n, only_champion + both), Tally(n, only_challenger + both)
        bets = (pair_bets(n, only_challenger, only_champion, self.margin, worse=worse) for worse in self._played)
        return self._with(champion, challenger, [_slot(one, served) for one in bets])

    def update(self, champion: Tally, challenger: Tally) -> Comparison:
        """Takes in requests that one version served. None of them may be in a pair as well."""
        if not champion.n and not challenger.n:
            return self
        served, tried = self.waiting[0].plus(champion), self.waiting[1].plus(challenger)
        if not served.n or not tried.n:
            return replace(self, waiting=(served, tried))
        bets = self._group_bets(served, tried)
        return replace(self._with(served, tried, [_slot(one, True) for one in bets]), waiting=(Tally(), Tally()))

    def update_mirrored(self, champion: Tally, challenger: Tally, *, served: bool = False) -> Comparison:
        """Takes in requests that both versions answered, where it was not kept which harms were of the same request.
        That harms go together makes the bets a little worse, never unfair."""
        if not champion.n or not challenger.n:
            return self
        bets = self._group_bets(champion, challenger)
        return self._with(champion, challenger, [_slot(one, served) for one in bets])

    @property
    def _played(self) -> tuple[bool, ...]:
        return (False,) if self.only_not_worse else (False, True)

    def _group_bets(self, champion: Tally, challenger: Tally) -> list[Bets]:
        rate = (self.champion.k + _PRIOR * self.guess) / (self.champion.n + _PRIOR)
        return [group_bets(champion, challenger, rate, self.margin, worse=worse) for worse in self._played]

    def _with(self, champion: Tally, challenger: Tally, won: list[Wealth]) -> Comparison:
        worse = won[1] if len(won) > 1 else Wealth()
        return replace(
            self,
            champion=self.champion.plus(champion),
            challenger=self.challenger.plus(challenger),
            sides=self.sides.plus(worse, won[0]),
        )

    def restarted(self) -> Comparison:
        """Bets on worse begin anew beside the old ones."""
        return replace(self, sides=self.sides.restarted())

    def merged(self, other: Comparison) -> Comparison:
        """This and what another gateway saw in the same rollout, since the same restart."""
        waiting = (self.waiting[0].plus(other.waiting[0]), self.waiting[1].plus(other.waiting[1]))
        together = replace(
            self,
            champion=self.champion.plus(other.champion),
            challenger=self.challenger.plus(other.challenger),
            waiting=(Tally(), Tally()),
            sides=self.sides.merged(other.sides),
        )
        return together.update(*waiting)

    def verdict(self, alpha: float, n_starts: int = 1) -> Verdict:
        return self.sides.verdict(alpha, n_starts)


@dataclass(frozen=True, slots=True)
class Level:
    """Does harm happen in more than the share `limit` of the outcomes? `limit` is in (0, 1)."""

    limit: float
    tally: Tally = Tally()
    sides: Sides = Sides()

    def update(self, tally: Tally) -> Level:
        if not tally.n:
            return self
        worse, not_worse = (Wealth(shadow=level_bets(tally, self.limit, worse=worse)) for worse in (True, False))
        return replace(self, tally=self.tally.plus(tally), sides=self.sides.plus(worse, not_worse))

    def restarted(self) -> Level:
        """Bets on worse begin anew beside the old ones."""
        return replace(self, sides=self.sides.restarted())

    def merged(self, other: Level) -> Level:
        """This and what another gateway saw."""
        return replace(self, tally=self.tally.plus(other.tally), sides=self.sides.merged(other.sides))

    def verdict(self, alpha: float, n_starts: int = 1) -> Verdict:
        return self.sides.verdict(alpha, n_starts)
