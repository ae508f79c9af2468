"""What outcomes say of each plan for each segment: the beliefs that choosing rests on.

Per goal, segment and plan: a Beta posterior of the accuracy and one of the failures, a normal-gamma posterior of
ln(latency / what was predicted), so that requests of all sizes teach the same, and the mean cost. They start from what
the cards predict, with a bounded weight. A segment starts from what the other segments of the goal know, with a weight
that is small where segments differ and large where they do not (DerSimonian and Laird 1986, Controlled Clinical
Trials 7, for the variance between them). What was learned fades with time and with every outcome of the segment, and
is forgotten at once where what comes in contradicts it (`tracks.py`).

Gateways learn together: each takes the delta of what it saw itself since it last did, and absorbs those of the others.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from planner.choice.policy import Arm, Context, Result, value
from planner.choice.tracks import Level, Share
from planner.errors import BadRequest
from planner.goals import Objective

COMMON = ""  # the segment of requests of which nothing is known, and of segments that were given up

STALE = 0.02  # share of new outcomes after which what was computed from beliefs is computed anew

_FAILURES, _FAILURES_WEIGHT = 0.005, 50.0  # what is believed of failures before the first outcome
_SPREAD = 0.3  # standard deviation of ln(latency) before the first outcome, with the weight of four calls
_LATENCY_WEIGHT = 50.0  # most calls that what other segments know of latency counts for


@dataclass(frozen=True, slots=True)
class Memory:
    """How much the past counts.

    `prior_rows` is the most that the card's accuracy weighs, in judged rows, and `guess_rows` its weight when nothing
    was measured; `prior_calls` is that of the predicted latency. Other segments weigh `pool_least` to `pool_most`
    rows. What was learned counts half after `half_life` outcomes of the segment (judged ones for the accuracy), or
    `half_life_s`. `alarm` is that of `tracks.py`; where it is raised for one plan, what is known of the accuracy of
    the segment's others counts `shock` as much from then on, and everything fades `1 + unrest` times as fast for a
    while. A goal keeps at most `segments` segments and a segment `plans` plans.
    """

    prior_rows: float = 12.0
    guess_rows: float = 4.0
    prior_calls: float = 4.0
    pool_least: float = 4.0
    pool_most: float = 200.0
    half_life: float = 10_000.0
    half_life_s: float = 7 * 86_400.0
    alarm: float = 10.0
    shock: float = 0.5
    unrest: float = 2.0
    segments: int = 512
    plans: int = 64


@dataclass(frozen=True, slots=True)
class Belief:
    """What is believed of a plan. Weights are in outcomes; `log_sd` is how unsure ln(p50_ms) is."""

    accuracy: float
    accuracy_weight: float
    failures: float
    failures_weight: float
    p50_ms: float
    log_sd: float
    cost: float

    def worth(self, objective: Objective) -> tuple[float, float]:
        """Mean and standard deviation of the plan's value (`policy.value`), each part taken as normal."""
        mean = value(objective, self.accuracy, self.p50_ms, self.cost, self.failures)
        a, f = self.accuracy, self.failures
        lost = (1.0 - a) / (a * (self.accuracy_weight + 1.0)) + f / ((1.0 - f) * (self.failures_weight + 1.0))
        late_s = objective.latency * self.p50_ms / 1e3 * min(self.log_sd, 1.0)
        return mean, math.sqrt(objective.accuracy**2 * lost + late_s * late_s)

    def accuracy_interval(self, z: float = 1.96) -> tuple[float, float]:
        """About 95 % of the posterior of the accuracy lie in it."""
        half = z * math.sqrt(self.accuracy * (1.0 - self.accuracy) / (self.accuracy_weight + 1.0))
        return max(0.0, self.accuracy - half), min(1.0, self.accuracy + half)


@dataclass(frozen=True, slots=True)
class Tally:
    """Sums over outcomes; adding them is merging what was seen.

    Of `n` requests that ended `n_failed` failed. `log_total` and `log_square` sum ln(latency / predicted) and its
    square over the `n_answered`, `cost_total` their cost. `right` is the sum over the `n_judged`.
    """

    n: float = 0.0
    n_failed: float = 0.0
    n_answered: float = 0.0
    n_judged: float = 0.0
    right: float = 0.0
    log_total: float = 0.0
    log_square: float = 0.0
    cost_total: float = 0.0

    def __add__(self, other: Tally) -> Tally:
        return Tally(*[a + b for a, b in zip(self.numbers(), other.numbers(), strict=True)])

    def numbers(self) -> tuple[float, ...]:
        """In the order of the fields."""
        return (
            self.n,
            self.n_failed,
            self.n_answered,
            self.n_judged,
            self.right,
            self.log_total,
            self.log_square,
            self.cost_total,
        )

    @classmethod
    def of(cls, arm: Arm, result: Result) -> Tally:
        """What one result adds."""
        n_answered = result.n - result.n_failed
        ratio = result.log_ms - math.log(max(arm.p50_ms, 1e-3)) if n_answered else 0.0
        return cls(
            result.n,
            result.n_failed,
            n_answered,
            result.n_judged,
            result.right,
            n_answered * ratio,
            n_answered * (ratio * ratio + result.log_ms_var),
            n_answered * result.cost,
        )

    def sound(self) -> bool:
        """Whether the numbers can have come from outcomes."""
        return (
            all(map(math.isfinite, self.numbers()))
            and 0.0 <= self.n_failed <= self.n
            and self.n_answered >= 0.0
            and 0.0 <= self.right <= self.n_judged
            and self.log_square >= 0.0
        )


Key = tuple[str, str, str]  # goal, segment, plan


@dataclass(frozen=True, slots=True)
class Delta:
    """What was seen, by goal, segment and plan. Merging is commutative and associative, up to rounding."""

    tallies: Mapping[Key, Tally] = field(default_factory=dict)

    def to_json(self) -> list[list[Any]]:
        """Plain lists: goal, segment, plan, and the numbers of the tally."""
        return [[*key, *tally.numbers()] for key, tally in self.tallies.items()]

    @classmethod
    def from_json(cls, given: Iterable[Sequence[Any]]) -> Delta:
        """The delta that was written. Raises BadRequest for anything else."""
        tallies: dict[Key, Tally] = {}
        try:
            for goal, segment, plan, *numbers in given:
                tally = Tally(*map(float, numbers))
                if len(numbers) != 8 or not all(isinstance(k, str) for k in (goal, segment, plan)) or not tally.sound():
                    raise ValueError(numbers)
                tallies[goal, segment, plan] = tally
        except (TypeError, ValueError) as error:
            raise BadRequest(f"what was learned of plans cannot be read: {str(error)[:80]}.") from None
        return cls(tallies)


@dataclass(frozen=True, slots=True)
class SegmentRows:
    """All that is known of a segment as of `at_s`: per plan its id and the numbers of its Tally; maybe nothing."""

    goal: str
    segment: str
    at_s: float = 0.0
    n_changes: int = 0
    plans: tuple[tuple[Any, ...], ...] = ()


def merge(a: Delta, b: Delta) -> Delta:
    """What two gateways saw, together."""
    tallies = dict(a.tallies)
    for key, tally in b.tallies.items():
        known = tallies.get(key)
        tallies[key] = tally if known is None else known + tally
    return Delta(tallies)


class _Cell:
    """One plan in one segment. `seen`, `judged` and `at_s` say until when it has faded."""

    __slots__ = ("at_s", "cost_total", "failed", "judged", "ms", "pooled", "right", "seen")

    def __init__(self, seen: float, judged: float, at_s: float) -> None:
        self.right, self.failed, self.ms = Share(), Share(), Level()
        self.cost_total = 0.0  # over `ms.n`, with which it fades
        self.seen, self.judged, self.at_s = seen, judged, at_s
        self.pooled = _NOTHING  # its part in what the segments know together

    def tally(self) -> Tally:
        ms, failed, right = self.ms, self.failed, self.right
        return Tally(failed.n, failed.total, ms.n, right.n, right.total, ms.total, ms.square, self.cost_total)


_NOTHING = Tally()


class _Segment:
    """The plans of one segment, and how many outcomes it has had."""

    __slots__ = ("at_s", "cells", "judged", "n_changes", "n_outcomes", "seen", "unrest")

    def __init__(self) -> None:
        self.cells: dict[str, _Cell] = {}
        self.seen = self.judged = self.at_s = 0.0  # `seen` and `judged` run ahead of the outcomes in times of unrest
        self.unrest = 0.0  # sudden changes of late
        self.n_outcomes = 0.0
        self.n_changes = 0


class _Goal:
    """The segments of one goal, least recently taught first, and what they know together."""

    __slots__ = ("n_outcomes", "pool", "pool_at", "segments")

    def __init__(self) -> None:
        self.segments: OrderedDict[str, _Segment] = OrderedDict()
        self.n_outcomes = 0.0
        self.pool: dict[str, tuple[Tally, float]] = {}  # per plan: the sum, and the weight it has for one segment
        self.pool_at = 0.0  # outcomes when it is to be summed up again


class Posteriors:
    """Beliefs about plans, kept current. Bounded in memory; not thread-safe."""

    def __init__(self, memory: Memory = Memory()) -> None:
        self._memory = memory
        self._goals: dict[str, _Goal] = {}
        self._unsent: dict[Key, list[float]] = {}

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """Takes in what came of an arm. A result whose numbers make no sense is left out."""
        tally = Tally.of(arm, result)
        if not tally.sound():
            return
        key = (context.goal, context.segment, arm.plan)
        unsent = self._unsent.get(key)
        if unsent is None:
            self._unsent[key] = list(tally.numbers())
        else:
            for i, number in enumerate(tally.numbers()):
                unsent[i] += number
        self._take(key, tally, result.at_s)

    def state_of(self, goal: str, segment: str) -> tuple[float, int]:
        """How many outcomes a segment has had, and how many sudden changes: beliefs are as before while both are."""
        known = self._goals.get(goal)
        found = known.segments.get(segment) if known is not None else None
        return (found.n_outcomes, found.n_changes) if found is not None else (0.0, 0)

    def known(self, goal: str, segment: str) -> float:
        """How many outcomes of a segment are not forgotten."""
        found = self._goals.get(goal, _Goal()).segments.get(segment)
        return sum(max(cell.failed.n, cell.right.n) for cell in found.cells.values()) if found is not None else 0.0

    def beliefs(self, context: Context, arms: Sequence[Arm], now_s: float) -> list[Belief]:
        """One belief per arm, as of now."""
        goal = self._goals.get(context.goal)
        if goal is None:
            goal = self._goals[context.goal] = _Goal()
        if goal.n_outcomes >= goal.pool_at:
            self._sum_up(goal)
        segment = goal.segments.get(context.segment)
        found = []
        for arm in arms:
            cell = segment.cells.get(arm.plan) if segment is not None else None
            if cell is not None and segment is not None:
                self._fade(segment, cell, max(now_s, segment.at_s))
            found.append(self._belief(arm, cell, *goal.pool.get(arm.plan, (_NOTHING, 0.0))))
        return found

    def correct(self, goal: str, segment: str, plan: str, n: float, right: float) -> None:
        """Of what was judged of a plan, `n` more were, and `right` more of them right; fewer, where these are negative.
        As far as it is not forgotten."""
        known = self._goals.get(goal)
        found = known.segments.get(segment) if known is not None else None
        cell = found.cells.get(plan) if found is not None else None
        if known is None or found is None or cell is None:
            return
        cell.right.n = max(0.0, cell.right.n + n)
        cell.right.total = min(max(0.0, cell.right.total + right), cell.right.n)
        found.n_outcomes += max(abs(n), abs(right))
        known.pool_at = 0.0
        self._unsent.setdefault((goal, segment, plan), [0.0] * 8)

    def rows(self, goal: str, segment: str) -> SegmentRows:
        """All that is known of a segment, to be shown to others."""
        known = self._goals.get(goal)
        found = known.segments.get(segment) if known is not None else None
        if found is None:
            return SegmentRows(goal, segment)
        for cell in found.cells.values():
            self._fade(found, cell, found.at_s)
        rows = tuple([(plan, *cell.tally().numbers()) for plan, cell in found.cells.items()])
        return SegmentRows(goal, segment, found.at_s, found.n_changes, rows)

    def all_rows(self) -> list[SegmentRows]:
        """`rows` of every segment."""
        return [self.rows(goal, name) for goal, known in self._goals.items() for name in known.segments]

    def show(self, given: SegmentRows) -> None:
        """Knows of a segment what another knows of it, instead of what was known here."""
        goal = self._goals.setdefault(given.goal, _Goal())
        before = goal.segments.get(given.segment, _Segment())
        made = _Segment()
        made.at_s, made.n_changes = given.at_s, given.n_changes
        n_news = 0.0
        for plan, *numbers in given.plans:
            tally, old = Tally(*numbers), before.cells.get(plan)
            cell = made.cells[plan] = _Cell(0.0, 0.0, given.at_s)
            cell.right, cell.failed = Share(tally.n_judged, tally.right), Share(tally.n, tally.n_failed)
            cell.ms, cell.cost_total = Level(tally.n_answered, tally.log_total, tally.log_square), tally.cost_total
            cell.pooled = _NOTHING if old is None else old.pooled
            known = _NOTHING if old is None else old.tally()
            n_news += max(abs(tally.n - known.n), abs(tally.n_judged - known.n_judged), abs(tally.right - known.right))
        made.n_outcomes = before.n_outcomes + n_news
        goal.n_outcomes += n_news
        if given.plans:
            goal.segments[given.segment] = made
        else:
            goal.segments.pop(given.segment, None)
            goal.pool_at = 0.0

    def has(self, goal: str, segment: str) -> bool:
        """Whether anything is known of a segment."""
        known = self._goals.get(goal)
        return known is not None and segment in known.segments

    def take_delta(self) -> Delta:
        """What was learned here since the last one was taken; what was absorbed is not in it."""
        delta = Delta({key: Tally(*numbers) for key, numbers in self._unsent.items()})
        self._unsent = {}
        return delta

    def absorb(self, delta: Delta, now_s: float) -> None:
        """Takes in what another gateway saw. Absorbing the same delta twice counts it twice."""
        for key, tally in delta.tallies.items():
            if tally.sound():
                self._take(key, tally, now_s)

    def give_up(self, goal: str, segment: str) -> None:
        """Lets a segment go; what it knew goes on in the goal's common one."""
        known = self._goals.get(goal)
        gone = known.segments.pop(segment, None) if known is not None and segment != COMMON else None
        if known is None or gone is None:
            return
        for plan, cell in gone.cells.items():
            self._fade(gone, cell, gone.at_s)
            self._add(known, COMMON, plan, cell.tally(), gone.at_s)
        known.pool_at = 0.0

    def to_json(self) -> dict[str, Any]:
        """All that is known, as plain data, to be kept over a restart. What was not yet taken as a delta stays out."""
        rows = []
        for goal, known in self._goals.items():
            for name, segment in known.segments.items():
                for plan, cell in segment.cells.items():
                    self._fade(segment, cell, segment.at_s)
                    rows.append([goal, name, plan, segment.at_s, *cell.tally().numbers()])
        return {"plans": rows}

    @classmethod
    def from_json(cls, given: Mapping[str, Any], memory: Memory = Memory()) -> Posteriors:
        """As they were written. Raises BadRequest for anything else."""
        made = cls(memory)
        try:
            rows = [(row[:3], float(row[3]), row[4:]) for row in given["plans"]]
        except (TypeError, ValueError, KeyError, IndexError):
            raise BadRequest("what was learned of plans cannot be read.") from None
        for names, at_s, numbers in sorted(rows, key=lambda row: row[1]):
            for key, tally in Delta.from_json([[*names, *numbers]]).tallies.items():
                made._restore(key, tally, at_s)
        return made

    def _restore(self, key: Key, tally: Tally, at_s: float) -> None:
        """What was known counts as known; the outcomes after which things fade are not counted again."""
        goal = self._goals.setdefault(key[0], _Goal())
        self._add(goal, key[1], key[2], tally, at_s, fading=False)

    def _take(self, key: Key, tally: Tally, at_s: float) -> None:
        name, segment, plan = key
        goal = self._goals.get(name)
        if goal is None:
            goal = self._goals[name] = _Goal()
        self._add(goal, segment, plan, tally, at_s)

    def _add(self, goal: _Goal, name: str, plan: str, tally: Tally, at_s: float, fading: bool = True) -> None:
        segment = goal.segments.get(name)
        if segment is None:
            segment = goal.segments[name] = _Segment()
            segment.at_s = at_s
        else:
            goal.segments.move_to_end(name)
        segment.at_s = max(segment.at_s, at_s)
        cell = segment.cells.get(plan)
        if cell is None:
            cell = segment.cells[plan] = _Cell(segment.seen, segment.judged, segment.at_s)
            if len(segment.cells) > self._memory.plans:
                self._drop_a_plan(segment, plan)
        if fading:
            pace = 1.0
            if segment.unrest > 0.0:
                pace += self._memory.unrest * segment.unrest
                segment.unrest *= max(0.0, 1.0 - tally.n / self._memory.half_life)
            segment.seen += pace * tally.n
            segment.judged += pace * tally.n_judged
            self._fade(segment, cell, segment.at_s)
        n_outcomes = max(tally.n, tally.n_judged)
        segment.n_outcomes += n_outcomes
        goal.n_outcomes += n_outcomes
        memory = self._memory
        alarm, changed = memory.alarm, False
        if tally.n_judged > 0.0:
            changed = cell.right.add(tally.n_judged, tally.right, alarm)
        if tally.n > 0.0:
            changed |= cell.failed.add(tally.n, tally.n_failed, alarm)
            n_answered = tally.n_answered
            if n_answered > 0.0:
                mean = tally.log_total / n_answered
                spread = max(0.0, tally.log_square / n_answered - mean * mean)
                cost = (cell.cost_total + tally.cost_total) / (cell.ms.n + n_answered)
                changed |= cell.ms.add(n_answered, mean, spread, alarm)
                cell.cost_total = cost * cell.ms.n
        if changed:
            segment.n_changes += 1
            segment.unrest += 1.0
            for other in segment.cells.values():
                if other is not cell:
                    other.right.fade(memory.shock)
        if len(goal.segments) > self._memory.segments:
            self._give_up_one(goal)

    def _give_up_one(self, goal: _Goal) -> None:
        name = next(name for name in goal.segments if name != COMMON)
        gone = goal.segments.pop(name)
        for plan, cell in gone.cells.items():
            self._fade(gone, cell, gone.at_s)
            self._add(goal, COMMON, plan, cell.tally(), gone.at_s)

    def _drop_a_plan(self, segment: _Segment, but: str) -> None:
        least = min((plan for plan in segment.cells if plan != but), key=lambda plan: segment.cells[plan].at_s)
        del segment.cells[least]

    def _fade(self, segment: _Segment, cell: _Cell, now_s: float) -> None:
        memory = self._memory
        since = (now_s - cell.at_s) / memory.half_life_s
        if cell.seen != segment.seen or since > 0.0:
            factor = 0.5 ** ((segment.seen - cell.seen) / memory.half_life + since)
            cell.failed.fade(factor)
            cell.ms.fade(factor)
            cell.cost_total *= factor
            cell.seen = segment.seen
        if cell.judged != segment.judged or since > 0.0:
            cell.right.fade(0.5 ** ((segment.judged - cell.judged) / memory.half_life + since))
            cell.judged = segment.judged
        if since > 0.0:
            cell.at_s = now_s

    def _sum_up(self, goal: _Goal) -> None:
        """What the segments know together, and how alike they are."""
        by_plan: dict[str, list[_Cell]] = {}
        for segment in goal.segments.values():
            for plan, cell in segment.cells.items():
                self._fade(segment, cell, segment.at_s)
                by_plan.setdefault(plan, []).append(cell)
        goal.pool = {}
        for plan, cells in by_plan.items():
            for cell in cells:
                cell.pooled = cell.tally()
            goal.pool[plan] = (_sum(cell.pooled for cell in cells), self._alike(cells))
        goal.pool_at = goal.n_outcomes + max(8.0, min(0.05 * goal.n_outcomes, 20_000.0))

    def _alike(self, cells: Sequence[_Cell]) -> float:
        """How many rows what the other segments know of a plan's accuracy is worth to one."""
        memory = self._memory
        sizes = [cell.right.n for cell in cells if cell.right.n >= 2.0]
        if len(sizes) < 2:
            return memory.prior_rows
        shares = [cell.right.total / cell.right.n for cell in cells if cell.right.n >= 2.0]
        n = sum(sizes)
        mean = (sum(s * size for s, size in zip(shares, sizes, strict=True)) + 1.0) / (n + 2.0)
        variance = mean * (1.0 - mean)
        q = sum(size * (s - mean) ** 2 for s, size in zip(shares, sizes, strict=True)) / variance
        free = len(sizes) - 1.0
        excess = q - free + math.sqrt(2.0 * free)  # a standard deviation more, so that chance does not make them alike
        between = excess / (n - sum(size * size for size in sizes) / n)
        return (
            memory.pool_most if between <= 0.0 else min(max(1.0 / between - 1.0, memory.pool_least), memory.pool_most)
        )

    def _belief(self, arm: Arm, cell: _Cell | None, pool: Tally, alike: float) -> Belief:
        memory = self._memory
        own = cell.tally() if cell is not None else _NOTHING
        of_own = cell.pooled if cell is not None else _NOTHING

        weight = min(float(arm.n_rows), memory.prior_rows) if arm.n_rows else memory.guess_rows
        n, right = weight + 1.0, weight * arm.accuracy + 0.5  # half a row for and against: nothing is certain
        others = max(0.0, pool.n_judged - of_own.n_judged)
        if others > 0.0:
            n += others
            right += min(max(0.0, pool.right - of_own.right), others)
            cut = min(1.0, alike / n)
            n, right = cut * n, cut * right
        n, right = n + own.n_judged, right + own.right

        n_failed, failed = _FAILURES_WEIGHT, _FAILURES_WEIGHT * _FAILURES
        others = max(0.0, pool.n - of_own.n)
        if others > 0.0:
            n_failed += others
            failed += min(max(0.0, pool.n_failed - of_own.n_failed), others)
            cut = min(1.0, _LATENCY_WEIGHT / n_failed)
            n_failed, failed = cut * n_failed, cut * failed
        n_failed, failed = n_failed + own.n, failed + own.n_failed

        calls, log_mean = memory.prior_calls, 0.0
        others = max(0.0, pool.n_answered - of_own.n_answered)
        if others > 0.0:
            log_mean = (pool.log_total - of_own.log_total) / (calls + others)
            calls = min(calls + others, _LATENCY_WEIGHT)
        answered = own.n_answered
        kappa, alpha, beta = calls + answered, 2.0 + 0.5 * answered, 2.0 * _SPREAD * _SPREAD
        if answered > 0.0:
            mean = own.log_total / answered
            beta += 0.5 * max(0.0, own.log_square - answered * mean * mean)
            beta += 0.5 * calls * answered * (mean - log_mean) ** 2 / kappa
        log_mean = (calls * log_mean + own.log_total) / kappa
        p50_ms = arm.p50_ms * math.exp(max(-20.0, min(log_mean, 20.0)))
        cost = (memory.prior_calls * arm.cost + own.cost_total) / (memory.prior_calls + answered)
        return Belief(
            right / n, n, failed / n_failed, n_failed, p50_ms, math.sqrt(beta / ((alpha - 1.0) * kappa)), cost
        )


def _sum(tallies: Iterable[Tally]) -> Tally:
    return Tally(*map(sum, zip(*(tally.numbers() for tally in tallies), strict=True)))
