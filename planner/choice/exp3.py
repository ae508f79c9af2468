"""Exp3 and Exp4, for worlds in which outcomes need not follow any distribution.

Sources: Auer, Cesa-Bianchi, Freund and Schapire 2002, SIAM Journal on Computing 32, with a fixed share for every plan
so that a best one that changes is followed (Exp3.S there); as selection of models Crankshaw et al. 2017, Clipper, NSDI.
"""

from __future__ import annotations

import math
import random
from collections import OrderedDict
from collections.abc import Mapping, Sequence

from planner.choice.policy import Arm, Choice, Context, Result, drawn, open_arms, value

_MOST_KEPT = 4096
_MOST_STEP = 2.0
_BELIEF = 8.0  # how much a plan is preferred for each unit of value that the planner predicts it to be better by


class Weights:
    """Log-weights of some names that lose by their losses. No name falls below a share of the largest."""

    __slots__ = ("_kept", "_share")

    def __init__(self, share: float) -> None:
        self._kept: OrderedDict[str, float] = OrderedDict()
        self._share = math.log(share)

    def shares(self, names: Sequence[str], first: Sequence[float]) -> list[float]:
        """The weights of these names, summing to 1; `first` are the log-weights of those that are new."""
        kept = self._kept
        logs = [kept.get(name, start) for name, start in zip(names, first, strict=True)]
        top = max(logs)
        weights = [math.exp(max(log - top, self._share)) for log in logs]
        total = sum(weights)
        return [weight / total for weight in weights]

    def lose(self, names: Sequence[str], first: Sequence[float], losses: Mapping[str, float]) -> None:
        """Takes the losses off, after bringing all these names within the share."""
        kept = self._kept
        logs = [kept.get(name, start) for name, start in zip(names, first, strict=True)]
        top = max(logs)
        for name, log in zip(names, logs, strict=True):
            kept[name] = max(log - top, self._share) - losses.get(name, 0.0)
            kept.move_to_end(name)
        while len(kept) > _MOST_KEPT:
            kept.popitem(last=False)


class Exp3:
    """Draws plans by weights that fall with the losses of those that were drawn, each divided by its propensity.

    The loss of a request is the value that it lacks, in 0..1: what is worse counts as 1. `mixing` of the requests are
    spread evenly, `rate` is how fast weights fall, and none falls below `share` of the largest.
    """

    name = "exp3"

    def __init__(self, mixing: float = 0.05, rate: float = 0.06, share: float = 0.003) -> None:
        self._mixing, self._rate, self._share = mixing, rate, share
        self._weights: OrderedDict[tuple[str, str], Weights] = OrderedDict()
        self._arms: OrderedDict[tuple[str, str], tuple[list[str], list[float]]] = OrderedDict()

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`."""
        propensities = mixed(self.advice(context, arms), open_arms(arms), self._mixing)
        arm = drawn(propensities, rng)
        return Choice(arm, tuple(propensities), f"drawn by its weight, {100.0 * propensities[arm]:.2g} %")

    def advice(self, context: Context, arms: Sequence[Arm]) -> list[float]:
        """The weights of the arms, summing to 1; 0 for those that are not open."""
        open_ = open_arms(arms)
        key = (context.goal, context.segment)
        weights = self._weights.get(key)
        if weights is None:
            weights = self._weights[key] = Weights(self._share)
            if len(self._weights) > _MOST_KEPT:
                self._weights.popitem(last=False)
        names = [arms[i].plan for i in open_]
        first = _first([arms[i] for i in open_], context)
        self._arms[key] = (names, first)
        if len(self._arms) > _MOST_KEPT:
            self._arms.popitem(last=False)
        found = [0.0] * len(arms)
        for i, weight in zip(open_, weights.shares(names, first), strict=True):
            found[i] = weight
        return found

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """As `Policy.learn`. An arm that was never among those to choose from teaches nothing."""
        key = (context.goal, context.segment)
        weights, known = self._weights.get(key), self._arms.get(key)
        if weights is None or known is None or arm.plan not in known[0]:
            return
        weights.lose(*known, {arm.plan: step(self._rate, context, result)})


class Exp4:
    """Exp4: experts advise, and are weighted by how well their advice did.

    The experts are an Exp3 of the segment, one of the whole goal, and the planner's own ranking: so a segment of which
    little is known follows the goal, and a goal of which little is known the planner.
    """

    name = "exp4"

    def __init__(self, mixing: float = 0.05, rate: float = 0.06, share: float = 0.003) -> None:
        self._mixing, self._rate = mixing, rate
        self._own, self._common = Exp3(mixing, rate, share), Exp3(mixing, rate, share)
        self._trust: OrderedDict[tuple[str, str], Weights] = OrderedDict()
        self._advised: OrderedDict[tuple[str, str], dict[str, list[float]]] = OrderedDict()
        self._share = share

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`."""
        open_ = open_arms(arms)
        own, common = self._own.advice(context, arms), self._common.advice(_whole(context), arms)
        prior = [float(i == open_[0]) for i in range(len(arms))]
        key = (context.goal, context.segment)
        trust = self._trust.get(key)
        if trust is None:
            trust = self._trust[key] = Weights(self._share)
            if len(self._trust) > _MOST_KEPT:
                self._trust.popitem(last=False)
        a, b, c = trust.shares(_EXPERTS, _EVENLY)
        weights = [a * x + b * y + c * z for x, y, z in zip(own, common, prior, strict=True)]
        self._advised[key] = {
            arm.plan: [x, y, z] for arm, x, y, z in zip(arms, own, common, prior, strict=True) if not arm.excluded
        }
        if len(self._advised) > _MOST_KEPT:
            self._advised.popitem(last=False)
        propensities = mixed(weights, open_, self._mixing)
        arm = drawn(propensities, rng)
        trusted = _EXPERTS[max(range(3), key=(a, b, c).__getitem__)]
        return Choice(arm, tuple(propensities), f"drawn by the advice of experts, most by that of {trusted}")

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """As `Policy.learn`."""
        key = (context.goal, context.segment)
        trust, advised = self._trust.get(key), self._advised.get(key)
        if trust is None or advised is None or arm.plan not in advised:
            return
        loss = step(self._rate, context, result)
        losses = {name: loss * p for name, p in zip(_EXPERTS, advised[arm.plan], strict=True)}
        trust.lose(_EXPERTS, _EVENLY, losses)
        self._own.learn(context, arm, result)
        self._common.learn(_whole(context), arm, result)


_EXPERTS = ("the segment", "the goal", "the planner")
_EVENLY = (0.0, 0.0, 0.0)


def _whole(context: Context) -> Context:
    """The context without its segment; that of the goal has a name which no segment has."""
    return Context(context.goal, "\0whole", (), context.objective)


def _first(arms: Sequence[Arm], context: Context) -> list[float]:
    values = [value(context.objective, arm.accuracy, arm.p50_ms, arm.cost) for arm in arms]
    top = max(values)
    return [_BELIEF * max(v - top, -1.0) for v in values]


def lost(context: Context, result: Result) -> float:
    """The loss of a result: latency, cost and failures of its requests, and its wrong answers, each request in 0..1."""
    objective, at_once = context.objective, 0.0
    scale = max(1.0, objective.accuracy)
    if result.n:
        at_once = result.n_failed / result.n * objective.accuracy + objective.cost * result.cost
        at_once += objective.latency * math.exp(result.log_ms) / 1e3 if result.n > result.n_failed else 0.0
    return (result.n * min(1.0, at_once / scale)) + (result.n_judged - result.right) * objective.accuracy / scale


def step(rate: float, context: Context, result: Result) -> float:
    """By how much the log-weight of an arm falls for a result; bounded, so that one of many requests is not the end."""
    return min(rate * lost(context, result) / max(result.propensity, 1e-3), _MOST_STEP)


def mixed(weights: Sequence[float], open_: Sequence[int], mixing: float) -> list[float]:
    """The weights with a share of them spread evenly over the open arms."""
    evenly = mixing / len(open_)
    found = [0.0] * len(weights)
    for i in open_:
        found[i] = (1.0 - mixing) * weights[i] + evenly
    return found
