"""What a plan should bring: latency, cost and accuracy, for graphs, cascades and ensembles alike.

Latency is the critical path. The p99 of a path is the sum of its steps' p99: steps share machines, so their slow
moments come together, and quantiles of comonotonic times add up (Dhaene et al. 2002, Insurance: Mathematics and
Economics 31). Cost is the sum over steps, weighted with the share of rows that reaches them. Accuracies multiply,
each step counted once, except where several extensions answer the same question (a cascade's stages, an ensemble's
members): those are estimated jointly, row by row where their evidence is from the same data set.

What is estimated jointly is chosen among many (thresholds, stages, members) on the very rows that judge it, so the
chosen one was also lucky there: the optimizer's curse (Smith and Winkler 2006, Management Science 52). Therefore a
joint estimate is the lower quartile of how far it beats, or falls behind, the nearest of its parts alone, from the
rows on which the two differ (Agresti and Min 2005, Statistics in Medicine 24). So at equal evidence the part alone
has the better estimate, by about one row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from planner.cards import Card, Evidence, ExtensionId
from planner.features import Array
from planner.plans import REQUEST, Binding, Prediction, Source, Step, StepId

# Share of the votes of an ensemble's members that follow one another instead of being cast independently, where no
# joint evidence says better. Classifiers trained for the same task err together: correlations of 0.3 to 0.7 are usual
# (Tumer and Ghosh 1996, Connection Science 8).
VOTE_CORRELATION = 0.5

# Standard errors from the middle to the lower quartile. In simulations with known truth (tests/planner/
# test_estimates.py) the chosen cascade's estimate is then off by 0.1 points on average at 500 rows, instead of 0.3
# too high; half or all of a standard error are worse, and so are cross-fitting and pseudo-errors per stage.
CAUTION = 0.674


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a cascade. Rows with a confidence of at least `below` stay here; None: all that arrive do.

    `others` is the accuracy of the steps that work for this stage alone.
    """

    card: Card
    below: float | None = None
    others: float = 1.0


def predict(
    steps: Sequence[Step],
    outputs: Sequence[Binding],
    cards: Mapping[ExtensionId, Card],
    n_rows: int = 1,
    kilo: float = 0.0,
) -> Prediction:
    """The prediction for a plan of any kind. `steps` are in topological order; `kilo` as in PlanRequest."""
    shares = shares_of_rows(steps, cards)
    p50: dict[StepId, float] = {REQUEST: 0.0}
    p99: dict[StepId, float] = {REQUEST: 0.0}
    cost = 0.0

    def ready(binding: Binding) -> tuple[float, float]:
        first, *later = binding.sources
        at_p50, at_p99 = p50[first.step], p99[first.step]
        for source in later:
            # A later stage holds the answer up only if any row reaches it.
            any_row = 1.0 - (1.0 - shares[source.step]) ** n_rows
            at_p50 += any_row * max(0.0, p50[source.step] - at_p50)
            at_p99 = max(at_p99, p99[source.step])
        return at_p50, at_p99

    for step in steps:
        card = cards[step.extension]
        starts = [ready(binding) for binding in step.inputs]
        if step.guard is not None:
            starts.append((p50[step.guard.step], p99[step.guard.step]))
        share = shares[step.id]
        p50[step.id] = max(at for at, _ in starts) + step_p50_ms(card, n_rows, kilo, share)
        p99[step.id] = max(at for _, at in starts) + step_p99_ms(card, n_rows, kilo, share)
        cost += share * card.cost
    ends = [ready(binding) for binding in outputs]
    return Prediction(
        p50_ms=max([at for at, _ in ends], default=0.0),
        p99_ms=max([at for _, at in ends], default=0.0),
        cost=cost,
        accuracy=_accuracy(steps, outputs, cards),
    )


def step_p50_ms(card: Card, n_rows: int, kilo: float, share: float = 1.0) -> float:
    """Predicted median latency of one step that `share` of the rows reach, if any does."""
    return card.profile.p50_ms(_rows_passed(n_rows, share)[0], _kilo(card, kilo))


def step_p99_ms(card: Card, n_rows: int, kilo: float, share: float = 1.0) -> float:
    """Predicted p99 latency of one step that `share` of the rows reach."""
    return card.profile.p99_ms(_rows_passed(n_rows, share)[1], _kilo(card, kilo))


def _kilo(card: Card, kilo: float) -> float:
    """Elements count only where the shape leaves a row's size open."""
    return kilo if any(-1 in port.feature.shape for port in card.inputs) else 0.0


def _rows_passed(n_rows: int, share: float) -> tuple[int, int]:
    """How many of the rows reach a step when each does with probability `share`, given that any does: the expected
    number, and one that is exceeded in 1 % of cases (normal approximation)."""
    if share >= 1.0:
        return n_rows, n_rows
    any_row = 1.0 - (1.0 - share) ** n_rows
    expected = n_rows * share / any_row if any_row > 0.0 else 1.0
    most = n_rows * share + 2.33 * math.sqrt(n_rows * share * (1.0 - share))
    return max(1, round(expected)), min(n_rows, max(1, math.ceil(most)))


def shares_of_rows(steps: Sequence[Step], cards: Mapping[ExtensionId, Card]) -> dict[StepId, float]:
    """Per step, the share of rows that reaches it: 1 unless a guard stands before it."""
    shares: dict[StepId, float] = {REQUEST: 1.0}
    by_id = {step.id: step for step in steps}
    for step in steps:
        judges: list[tuple[Card, float]] = []
        guard = step.guard
        while guard is not None:
            before = by_id[guard.step]
            judges.append((cards[before.extension], guard.below))
            guard = before.guard
        judges.reverse()
        evidence = comparable([card for card, _ in judges], confident=len(judges)) if judges else None
        if evidence is not None:
            shares[step.id] = 1.0 - sum(kept for kept, _ in _kept(evidence, tuple([below for _, below in judges])))
        else:
            shares[step.id] = math.prod(1.0 - coverage(card, below)[0] for card, below in judges)
    return shares


def coverage(card: Card, below: float) -> tuple[float, float]:
    """Of the rows, the share whose confidence is at least `below`, and the share of those that are right.

    From the evidence where there is any, else from the next stricter point of `card.thresholds`; (0, 1) beyond them.
    """
    evidence = comparable([card], confident=1)
    if evidence is not None:
        kept, right = _kept(evidence, (below,))[0]
        return kept, right / kept if kept else 1.0
    points = [point for point in card.thresholds if point.confidence >= below - 1e-9]
    if not points:
        return 0.0, 1.0
    point = min(points, key=lambda p: p.confidence)
    return point.coverage, point.accuracy


def cascade_accuracy(stages: Sequence[Stage]) -> float:
    """Share of right rows of a cascade, cheapest stage first.

    Row by row, less what is put down to luck, where the stages' evidence is comparable. Else pessimistic: with a share
    c kept by the first stage, of which a are right, and a dear rest that is right on b of all rows, every error of the
    rest is taken to fall on the rows that it gets, so b - c(1 - a) are right, and never fewer than the c*a of the
    first stage.
    """
    evidence = comparable([stage.card for stage in stages], confident=len(stages) - 1)
    if evidence is not None:
        belows = tuple([stage.below for stage in stages])
        kept = _kept(evidence, belows)
        seen = sum(right * stage.others for (_, right), stage in zip(kept, stages, strict=True))
        return max(0.0, seen - _luck(evidence, belows))
    accuracy = stages[-1].card.accuracy.mean * stages[-1].others
    for stage in stages[-2::-1]:
        share, right = coverage(stage.card, stage.below or 0.0)
        kept_right = share * right * stage.others
        accuracy = max(accuracy - share + kept_right, kept_right)
    return accuracy


def ensemble_accuracy(members: Sequence[Card], others: Sequence[float]) -> float:
    """Share of right rows of a vote. `others[i]` is the accuracy of the steps that work for member i alone.

    With comparable evidence: a vote weighted with confidence, row by row, all wrong members taken to agree, a tie
    half right, less what is put down to luck. Without: a majority vote, of which VOTE_CORRELATION is cast by followers
    of one member (the leader model of Boland, Proschan and Tong 1989, Journal of Applied Probability 26) and the rest
    independently (Condorcet).
    """
    evidence = comparable(members, confident=0)
    if evidence is not None:
        return _vote(evidence, tuple([card.accuracy.mean for card in members])) * min(others)
    right = [card.accuracy.mean * other for card, other in zip(members, others, strict=True)]
    return VOTE_CORRELATION * sum(right) / len(right) + (1.0 - VOTE_CORRELATION) * majority(right)


def comparable(cards: Sequence[Card], confident: int) -> tuple[Evidence, ...] | None:
    """The evidence of the cards; None unless all is from one data set and the first `confident` give confidences."""
    found: list[Evidence] = []
    for i, card in enumerate(cards):
        evidence = card.evidence
        if evidence is None or not evidence.n_rows or (i < confident and not evidence.confidence):
            return None
        if found and (evidence.dataset, evidence.n_rows) != (found[0].dataset, found[0].n_rows):
            return None
        found.append(evidence)
    return tuple(found)


# The same extensions are weighed against each other in plan after plan; the rows behind the figures do not change.


@lru_cache(maxsize=4096)
def _kept(evidence: tuple[Evidence, ...], belows: tuple[float | None, ...]) -> tuple[tuple[float, float], ...]:
    """Per stage of a cascade, the share of rows that stays there and the share that stays there and is right."""
    stays = _stays(evidence, belows)
    return tuple(
        [
            (float(rows.mean()), float((rows & one.correct_rows()).mean()))
            for one, rows in zip(evidence, stays, strict=True)
        ]
    )


def _stays(evidence: Sequence[Evidence], belows: Sequence[float | None]) -> list[Array]:
    """Per stage of a cascade, which rows stay there, boolean (n_rows,)."""
    alive: Array = np.ones(evidence[0].n_rows, np.bool_)
    stays = []
    for one, below in zip(evidence, belows, strict=True):
        confidence = one.confidence_rows() if below is not None else None
        stays.append(alive if confidence is None else alive & (confidence >= below))
        alive = alive & ~stays[-1]
    return stays


@lru_cache(maxsize=4096)
def _luck(evidence: tuple[Evidence, ...], belows: tuple[float | None, ...]) -> float:
    """How much of a cascade's share of right rows is put down to luck."""
    right = [one.correct_rows() for one in evidence]
    joint = sum(stays & rows for stays, rows in zip(_stays(evidence, belows), right, strict=True))
    return _allowance(np.asarray(joint, np.float64), right)


def _allowance(joint: Array, parts: Sequence[Array]) -> float:
    """CAUTION standard errors of the difference between a joint answer and the nearest of its parts.

    All are rights per row, shape (n_rows,); where there is no difference, half a row is taken to be for and against.
    """
    n = len(joint) + 2
    differences = [joint - part for part in parts]
    return CAUTION * min(math.sqrt(float((d * d).sum()) + 1.0 - float(d.sum()) ** 2 / n) / n for d in differences)


@lru_cache(maxsize=4096)
def _vote(evidence: tuple[Evidence, ...], weights: tuple[float, ...]) -> float:
    """Share of rows on which the right voters outweigh the wrong, less what is put down to luck; a voter without
    confidence has its weight."""
    balance = np.zeros(evidence[0].n_rows)
    for one, weight in zip(evidence, weights, strict=True):
        confidence = one.confidence_rows()
        vote: Array = np.full(one.n_rows, weight) if confidence is None else confidence
        balance += np.where(one.correct_rows(), vote, -vote)
    joint = 0.5 * np.sign(balance) + 0.5
    return max(0.0, float(joint.mean()) - _allowance(joint, [one.correct_rows() for one in evidence]))


def majority(right: Sequence[float]) -> float:
    """Probability that more than half of independent voters are right (an even split counts half)."""
    chances = [1.0]  # chances[i]: i voters are right
    for p in right:
        chances = [
            (chances[i] * (1 - p) if i < len(chances) else 0.0) + (chances[i - 1] * p if i else 0.0)
            for i in range(len(chances) + 1)
        ]
    n = len(right)
    return sum(chance if 2 * i > n else 0.5 * chance if 2 * i == n else 0.0 for i, chance in enumerate(chances))


def _accuracy(steps: Sequence[Step], outputs: Sequence[Binding], cards: Mapping[ExtensionId, Card]) -> float:
    by_id = {step.id: step for step in steps}
    takers: dict[StepId, set[StepId]] = {step.id: set() for step in steps}
    bindings = [(step.id, binding) for step in steps for binding in step.inputs]
    bindings += [(REQUEST, binding) for binding in outputs]  # here REQUEST stands for the answer
    for taker, binding in bindings:
        for source in binding.sources:
            if source.step != REQUEST:
                takers[source.step].add(taker)

    def accuracy(ids: set[StepId]) -> float:
        return math.prod(cards[by_id[id_].extension].accuracy.mean for id_ in ids)

    def working_for(step: StepId) -> set[StepId]:
        """The steps whose results go to this step alone, through whatever lies between; unguarded, itself excluded."""
        found = {step}
        for other in reversed(steps):
            if other.guard is None and other.id != step and takers[other.id] and takers[other.id] <= found:
                found.add(other.id)
        return found - {step}

    total, counted = 1.0, set[StepId]()
    for _, binding in bindings:
        if len(binding.sources) > 1 and binding.sources[0].step not in counted:
            stages, members = _cascade(binding.sources, steps, by_id, cards, working_for, accuracy)
            total *= cascade_accuracy(stages)
            counted |= members
    for step in steps:
        stacked = {port.name for port in cards[step.extension].inputs if port.many > 1}
        voters = [b.sources[0].step for b in step.inputs if b.port in stacked and len(b.sources) == 1]
        voters = [v for v in voters if v != REQUEST and v not in counted]
        if len(voters) > 1:
            helpers = [working_for(v) - counted for v in voters]
            total *= ensemble_accuracy([cards[by_id[v].extension] for v in voters], [accuracy(h) for h in helpers])
            counted |= set(voters).union(*helpers)
    return total * accuracy({step.id for step in steps} - counted)


def _cascade(
    sources: Sequence[Source],
    steps: Sequence[Step],
    by_id: Mapping[StepId, Step],
    cards: Mapping[ExtensionId, Card],
    working_for: Callable[[StepId], set[StepId]],
    accuracy: Callable[[set[StepId]], float],
) -> tuple[list[Stage], set[StepId]]:
    """The stages behind a binding with several sources, and all the steps that they account for."""
    stages: list[Stage] = []
    members: set[StepId] = set()
    for i, source in enumerate(sources):
        guard = by_id[source.step].guard
        if guard is None:
            helpers = working_for(source.step)
        else:
            helpers = {step.id for step in steps if step.guard == guard} - {source.step}
        following = by_id[sources[i + 1].step].guard if i + 1 < len(sources) else None
        below = following.below if following is not None else None
        stages.append(Stage(cards[by_id[source.step].extension], below, accuracy(helpers)))
        members |= helpers | {source.step}
    return stages, members
