"""Simulated worlds whose truth is known: where policies of choosing are measured.

A world has plans, each with a true accuracy, latency and cost per segment and moment, and arms with what the planner
predicts of them, which may be wrong. Requests of several segments come evenly mixed; latency is heard of at once, the
truth late and not always. The same world, policy and seed give the same run.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush

from planner.choice.policy import Arm, Choice, Context, Policy, Result, value
from planner.goals import Objective


@dataclass(frozen=True, slots=True)
class Truth:
    """What a plan really is. Latencies are lognormal around `p50_ms` with a sigma of `spread`."""

    accuracy: float
    p50_ms: float
    cost: float = 0.0
    failures: float = 0.0
    spread: float = 0.2


@dataclass(frozen=True, slots=True)
class World:
    """`truth(arm, segment, step, n)` says what arm number `arm` is to segment number `segment` at `step` of `n`.

    Truth becomes known `delay` requests later, and never for a share `missing`. `fixed` says that nothing changes.
    `outcome` says what an arm does with a request where that is not drawn from the truth, but known: given arm,
    segment, step, n and a source of randomness, whether it fails, how many ms it takes and whether it is right (0..1).
    What is lost is counted in values of the objective, or where it is `counted` in rewards (`Result.reward`): there a
    request on a plan that is never right loses one answer, by the logarithm nine times as much.
    """

    name: str
    arms: tuple[Arm, ...]
    n_segments: int
    truth: Callable[[int, int, int, int], Truth]
    delay: int = 0
    missing: float = 0.0
    fixed: bool = True
    objective: Objective = Objective()
    outcome: Callable[[int, int, int, int, random.Random], tuple[bool, float, float]] | None = None
    counted: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """What came of a policy in a world.

    `regret[i]` is what was lost until request `at[i]` against the plan that is the best for its segment over the whole
    run, by true values; below 0 where changing with the world paid. `lost[i]` is the same against the best plan of the
    moment. `share_on_best` is that of requests on the best plan of their segment and moment after the first
    `settled`; `share_worse` that of requests on a plan that is not.
    """

    at: tuple[int, ...]
    regret: tuple[float, ...]
    lost: tuple[float, ...]
    share_on_best: float
    choices: tuple[int, ...]

    @property
    def slope(self) -> float:
        """Of ln(regret) over ln(n), by least squares over the second half of the points; below 1: it falls per
        request. -inf where regret is not above 0 at the end."""
        return slope(self.at, self.regret)


def slope(at: Sequence[int], regret: Sequence[float]) -> float:
    """As `Run.slope`."""
    if regret[-1] <= 0.0:
        return -math.inf
    points = [(math.log(n), math.log(r)) for n, r in zip(at, regret, strict=True) if r > 0.0]
    points = points[len(points) // 2 :] if len(points) > 3 else points
    if len(points) < 2:
        return 0.0
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread


def run(world: World, policy: Policy, n: int, seed: int, settled: int = 2000) -> Run:
    """`n` requests, one after the other, 100 in a second. `settled` requests are left out of `share_on_best`."""
    rng, choosing = random.Random(seed), random.Random(seed + 1)
    n_arms, objective = len(world.arms), world.objective
    contexts = [
        Context("goal", f"s{i}" if world.n_segments > 1 else "", (), objective) for i in range(world.n_segments)
    ]
    sums = [[0.0] * n_arms for _ in contexts]  # value of each plan for each segment, had it answered all
    values: list[list[float]] = [[] for _ in contexts]
    marks = sorted({max(1, round(n * 1.25**-i)) for i in range(40)})
    at, gained, ideal, hindsight_at = [], [], [], []
    got = could = 0.0
    on_best = counted = 0
    late: list[tuple[int, int, int, int, Result]] = []
    chosen = [0] * n_arms
    for step in range(n):
        now_s = step / 100.0
        while late and late[0][0] <= step:
            _, _, segment, arm, result = heappop(late)
            policy.learn(contexts[segment], world.arms[arm], result)
        segment = rng.randrange(world.n_segments)
        if not (world.fixed and values[segment]):
            values[segment] = [_worth(world, world.truth(i, segment, step, n)) for i in range(n_arms)]
        choice = policy.choose(contexts[segment], world.arms, choosing, now_s)
        now = values[segment]
        for i, v in enumerate(now):
            sums[segment][i] += v
        got += now[choice.arm]
        best = max(now)
        could += best
        chosen[choice.arm] += 1
        if step >= settled:
            counted += 1
            on_best += now[choice.arm] >= best - 1e-9
        _tell(world, policy, contexts[segment], choice, rng, step, n, segment, late)
        if marks and step + 1 == marks[0]:
            marks.pop(0)
            at.append(step + 1)
            gained.append(got)
            ideal.append(could)
            hindsight_at.append([list(row) for row in sums])
    winners = [max(range(n_arms), key=row.__getitem__) for row in sums]
    regret = [
        sum(row[winner] for row, winner in zip(rows, winners, strict=True)) - value_
        for rows, value_ in zip(hindsight_at, gained, strict=True)
    ]
    lost = [a - b for a, b in zip(ideal, gained, strict=True)]
    return Run(tuple(at), tuple(regret), tuple(lost), on_best / max(1, counted), tuple(chosen))


def _worth(world: World, truth: Truth) -> float:
    if world.counted:
        answered = Result.answered(truth.p50_ms, truth.cost)
        return answered.reward(world.objective, truth.accuracy * (1.0 - truth.failures))
    return value(world.objective, truth.accuracy, truth.p50_ms, truth.cost, truth.failures)


def _tell(
    world: World,
    policy: Policy,
    context: Context,
    choice: Choice,
    rng: random.Random,
    step: int,
    n: int,
    segment: int,
    late: list[tuple[int, int, int, int, Result]],
) -> None:
    """What is heard of a request: latency now, truth later or never."""
    arm, p, now_s = world.arms[choice.arm], choice.propensity, step / 100.0
    truth = world.truth(choice.arm, segment, step, n)
    if world.outcome is None:
        failed = rng.random() < truth.failures
        latency_ms = truth.p50_ms * math.exp(rng.gauss(0.0, truth.spread))
        right = float(rng.random() < truth.accuracy)
    else:
        failed, latency_ms, right = world.outcome(choice.arm, segment, step, n, rng)
    heard = rng.random() >= world.missing
    if failed:
        policy.learn(context, arm, Result.failed(propensity=p, at_s=now_s))
    elif world.delay == 0 and heard:
        policy.learn(context, arm, Result.answered(latency_ms, truth.cost, right=right, propensity=p, at_s=now_s))
    else:
        policy.learn(context, arm, Result.answered(latency_ms, truth.cost, propensity=p, at_s=now_s))
        if heard:
            due = step + 1 + rng.randrange(2 * world.delay + 1)
            heappush(late, (due, step, segment, choice.arm, Result.judged(right, propensity=p, at_s=due / 100.0)))


Believed = tuple[float, float]  # what the planner predicts: accuracy, p50 in ms


def _arms(believed: Sequence[Believed], n_rows: int = 200) -> tuple[tuple[Arm, ...], list[int]]:
    """Arms as the planner gives them, best predicted value first, and which of `believed` each one is."""
    order = sorted(range(len(believed)), key=lambda i: -value(Objective(), believed[i][0], believed[i][1], 0.0))
    return tuple([Arm(f"plan{i}", believed[i][0], n_rows, believed[i][1], 0.0) for i in order]), order


def _world(
    name: str,
    believed: Sequence[Believed],
    truth: Callable[[int, int, int, int], Truth],
    n_segments: int = 1,
    delay: int = 0,
    missing: float = 0.0,
    fixed: bool = True,
) -> World:
    arms, order = _arms(believed)
    return World(name, arms, n_segments, lambda i, s, step, n: truth(order[i], s, step, n), delay, missing, fixed)


def _plans(rng: random.Random, n: int, low: float = 0.7, high: float = 0.95) -> list[Truth]:
    """Plans of which the first is clearly the best; slower ones tend to be better, as models are."""
    found = []
    for i in range(n):
        accuracy = high if i == 0 else rng.uniform(low, high - 0.08)
        found.append(Truth(accuracy, rng.uniform(4.0, 40.0), failures=rng.choice((0.0, 0.0, 0.01))))
    return found


def _misjudged(rng: random.Random, plans: Sequence[Truth], off: float = 0.08) -> list[Believed]:
    """What is predicted of plans: latencies off by a third, accuracies by `off`, and one of the others first."""
    believed = [
        (min(0.99, max(0.5, plan.accuracy + rng.gauss(0.0, off))), plan.p50_ms * math.exp(rng.gauss(0.0, 0.3)))
        for plan in plans
    ]
    wrong = rng.randrange(1, len(plans))
    believed[wrong] = (0.98, believed[wrong][1])
    believed[0] = (min(believed[0][0], 0.93), believed[0][1])
    return believed


def stationary(seed: int) -> World:
    """Five plans, the planner's first is not the best, and nothing changes."""
    rng = random.Random(seed)
    plans = _plans(rng, 5)
    return _world("stationary", _misjudged(rng, plans), lambda i, s, step, n: plans[i])


def many(seed: int) -> World:
    """20 candidates."""
    rng = random.Random(seed)
    plans = _plans(rng, 20)
    return _world("20 candidates", _misjudged(rng, plans), lambda i, s, step, n: plans[i])


def late(seed: int) -> World:
    """Truth comes 200 requests late on average, and never for 5 %."""
    rng = random.Random(seed)
    plans = _plans(rng, 5)
    return _world(
        "delayed, 5 % missing", _misjudged(rng, plans), lambda i, s, step, n: plans[i], delay=200, missing=0.05
    )


def segmented(seed: int) -> World:
    """Four segments with five plans; each segment has its own best."""
    rng = random.Random(seed)
    plans = _plans(rng, 5, 0.75, 0.88)
    better = rng.sample(range(5), 4)
    by_segment = [
        [Truth(0.96 if i == better[s] else plan.accuracy - 0.05, plan.p50_ms) for i, plan in enumerate(plans)]
        for s in range(4)
    ]
    return _world("per segment", _misjudged(rng, plans), lambda i, s, step, n: by_segment[s][i], n_segments=4)


def smooth(seed: int) -> World:
    """Five plans; the best becomes the worst over the run, and another one the best."""
    rng = random.Random(seed)
    plans = _plans(rng, 5)

    def truth(i: int, s: int, step: int, n: int) -> Truth:
        t, plan = step / n, plans[i]
        change = -0.25 * t if i == 0 else (0.96 - plan.accuracy) * t if i == 1 else 0.0
        return Truth(plan.accuracy + change, plan.p50_ms, failures=plan.failures)

    return _world("smooth drift", _misjudged(rng, plans), truth, fixed=False)


def abrupt(seed: int) -> World:
    """Five plans; at a third of the run the best breaks, at two thirds another becomes twice as slow."""
    rng = random.Random(seed)
    plans = _plans(rng, 5)

    def truth(i: int, s: int, step: int, n: int) -> Truth:
        plan, accuracy, p50_ms = plans[i], plans[i].accuracy, plans[i].p50_ms
        if i == 0 and step > n / 3:
            accuracy -= 0.3
        if i == 1:
            accuracy = 0.93
            p50_ms = p50_ms if step < 2 * n / 3 else p50_ms + 200.0
        return Truth(accuracy, p50_ms, failures=plan.failures)

    return _world("abrupt change", _misjudged(rng, plans), truth, fixed=False)


def adversarial(seed: int) -> World:
    """Three plans that take turns at being good, at moments that differ from run to run."""
    rng = random.Random(seed)
    turns = [rng.uniform(0.08, 0.2) for _ in range(20)]
    lead: list[int] = []
    for _ in turns:
        lead.append(rng.choice([i for i in range(3) if not lead or i != lead[-1]]))

    def truth(i: int, s: int, step: int, n: int) -> Truth:
        t, turn = step / n, 0
        while t > turns[turn]:
            t -= turns[turn]
            turn += 1
        return Truth(0.95 if lead[turn] == i else 0.75, 10.0)

    return _world("adversarial", [(0.9, 10.0), (0.88, 10.0), (0.86, 10.0)], truth, fixed=False)


WORLDS: tuple[Callable[[int], World], ...] = (
    stationary,
    many,
    late,
    segmented,
    smooth,
    abrupt,
    adversarial,
)
