"""What a policy would have brought, from outcomes of another one: offline evaluation, by three methods.

Replay: the log is gone through, and where the policy chooses as was chosen, that outcome counts and the policy learns
from it. Outcomes are thinned out first, so that what is left looks as if plans had been drawn evenly. Source: Li, Chu,
Langford and Wang 2011, Unbiased Offline Evaluation of Contextual-bandit-based News Article Recommendation, WSDM.

Inverse propensity scores: each outcome counts by how much more often the policy would have chosen that plan than it
was chosen; weights are cut at the square root of the number of outcomes (Ionides 2008, Journal of Computational and
Graphical Statistics 17), or normalised (Swaminathan and Joachims 2015, NIPS). Rewards are counted from the mean of the
log, so that what is cut off draws an estimate to that mean and not to 0, which would be the best there is.

Doubly robust: a reward model says what each plan would have brought, and inverse propensity scores correct it; right if
either is, and less noisy than scores alone. Source: Dudik, Langford and Li 2011, ICML.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from lineage.quality.intervals import Estimate, mean
from planner.choice.policy import Arm, Choice, Context, Policy, Result
from planner.errors import BadRequest

Floats = npt.NDArray[np.float64]

_FEW = 100.0  # effective outcomes, below which an estimate is not to be relied on
_LITTLE = 0.01  # of the choices that the log could not have made, above which scores are biased
_LEAST_PROPENSITY = 0.02  # outcomes that were less likely do not thin out the others further in a replay
_PULL = 4.0  # outcomes that the less specific mean counts for in the more specific one
_TOLERANCE = 1e-3  # of propensities that should sum to 1


@dataclass(frozen=True, slots=True)
class Logged:
    """One outcome as the journal has it: among which arms was chosen, how, and all that became known of it.

    The choice's propensities may be missing (empty); then it cannot be evaluated with. Truth that came late is part of
    the result.
    """

    context: Context
    arms: Sequence[Arm]
    choice: Choice
    result: Result

    @classmethod
    def of(
        cls, context: Context, arms: Sequence[Arm], considered: Iterable[tuple[str, float]], chosen: str, result: Result
    ) -> Logged:
        """From the ids of the considered plans with their propensities, and of the chosen one.

        An arm that was not considered had no chance. Raises BadRequest where a plan with a chance is no arm.
        """
        chances = dict(considered)
        names = [arm.plan for arm in arms]
        lost = [plan for plan, p in chances.items() if p > 0.0 and plan not in names]
        if chosen not in names or lost:
            raise BadRequest(f"plan {(lost or [chosen])[0]!r} was considered, but is not among the arms.")
        propensities = tuple([chances.get(name, 0.0) for name in names]) if chances else ()
        return cls(context, arms, Choice(names.index(chosen), propensities), result)


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What a policy would have brought per request, in the units of `Result.reward` (at most 0): each with an interval.

    `gain` is by how much the doubly robust estimate exceeds what was earned on the same outcomes. `replay` goes on
    learning and has `n_replayed` outcomes; None where it has too few for an interval. `effective_n` is how many
    outcomes drawn by the policy itself would say as much as the weighted ones (Kong 1992); `cut` the share of outcomes
    whose weight was cut; `unseen` the share of the policy's choices that had no chance in the log. `warnings` say in
    words what limits trust.
    """

    policy: str
    n: int
    replay: Estimate | None
    n_replayed: int
    ips: Estimate
    snips: Estimate
    doubly_robust: Estimate
    gain: Estimate
    effective_n: float
    cut: float
    unseen: float
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Policies compared on the same outcomes, the best doubly robust estimate first; `logged` is what was earned."""

    logged: Estimate
    rows: tuple[Evaluation, ...]

    def text(self) -> str:
        """For people: a line per policy, and the warnings below."""
        lines = [
            f"{'policy':<16}{'doubly robust':>28}{'scores, normalised':>28}{'replay':>28}{'effective':>11}",
            f"{'(as logged)':<16}{_said(self.logged):>28}",
        ]
        for row in self.rows:
            replay = "-" if row.replay is None else _said(row.replay)
            lines.append(
                f"{row.policy:<16}{_said(row.doubly_robust):>28}{_said(row.snips):>28}{replay:>28}{row.effective_n:>11.0f}"
            )
        lines += [f"{row.policy}: {warning}" for row in self.rows for warning in row.warnings]
        return "\n".join(lines)


def _said(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} ({estimate.low:.4f}, {estimate.high:.4f})"


def earned_by(log: Sequence[Logged]) -> Floats:
    """The reward of each outcome, shape (n,), with truth that is missing filled in as `_Rewards` has it.

    Raises BadRequest as `evaluate` does.
    """
    return _Rewards(log).earned


def evaluate(policy: Policy, log: Sequence[Logged], rng: random.Random) -> Evaluation:
    """Evaluates one policy on a log in the order of time, as it stands; then replays the log, from which it learns.

    Raises BadRequest for an empty log and for outcomes without (sound) propensities.
    """
    return _evaluated(policy, log, _Rewards(log), rng)


def compare(policies: Sequence[Policy], log: Sequence[Logged], rng: random.Random, teach: float = 0.5) -> Table:
    """Evaluates policies on the same log, which is in the order of time.

    Each first hears the outcomes of the first `teach` of the log and is evaluated on the rest; a policy that was
    trained on the log before must have been trained on that part alone. Policies change by it: hand in new ones.
    Raises BadRequest as `evaluate` does, and where nothing is left to evaluate on.
    """
    if not 0.0 <= teach < 1.0:
        raise BadRequest(f"teach is a share of the log below 1, not {teach}.")
    _check(log)
    n_taught = int(teach * len(log))
    rest = log[n_taught:]
    rewards = _Rewards(rest)
    rows = []
    for policy in policies:
        for logged in log[:n_taught]:
            # Some policies take up arms when they choose, so they are asked before they are told.
            policy.choose(logged.context, logged.arms, rng, logged.result.at_s)
            policy.learn(logged.context, logged.arms[logged.choice.arm], logged.result)
        rows.append(_evaluated(policy, rest, rewards, rng))
    rows.sort(key=lambda row: -row.doubly_robust.value)
    return Table(_weighted_mean(rewards.earned, rewards.weights), tuple(rows))


def _check(log: Sequence[Logged]) -> None:
    if not log:
        raise BadRequest("there are no outcomes to evaluate on.")
    for number, logged in enumerate(log):
        choice, where = logged.choice, f"outcome {number + 1} of {len(log)}"
        if not choice.propensities:
            raise BadRequest(
                f"{where} has no propensities: with which probability each plan was to be chosen is not known.",
                hint="Leave such outcomes out; those that a policy of choosing made have them.",
            )
        if len(choice.propensities) != len(logged.arms):
            raise BadRequest(f"{where} has {len(choice.propensities)} propensities for {len(logged.arms)} arms.")
        if any(not 0.0 <= p <= 1.0 for p in choice.propensities) or abs(sum(choice.propensities) - 1.0) > _TOLERANCE:
            raise BadRequest(f"{where} has propensities that are no probabilities which sum to 1.")
        if not 0 <= choice.arm < len(logged.arms) or choice.propensities[choice.arm] <= 0.0:
            raise BadRequest(f"{where} chose a plan that by its propensities could not be chosen.")


class _Rewards:
    """The rewards of a log, and a simple model of them: a mean per segment and plan, drawn to that of the plan.

    Truth that is missing is filled in with the plan's share of right ones in the segment, and what is known weighs
    more in return, so that the mean is right where truth is missing by chance within segment and plan. Source: Robins,
    Rotnitzky and Zhao 1994, JASA 89.
    """

    def __init__(self, log: Sequence[Logged]) -> None:
        _check(log)
        self._log = log
        self.weights: Floats = np.array([max(1, logged.result.n) for logged in log], dtype=np.float64)
        self._cells: dict[tuple[str, str, str], list[float]] = {}  # of goal, segment, plan: weight, sum of rewards
        self._plans: dict[tuple[str, str], list[float]] = {}
        right = self._right()
        earned = []
        for i, logged in enumerate(log):
            known = Result(
                logged.result.n,
                logged.result.n_failed,
                logged.result.log_ms,
                logged.result.log_ms_var,
                logged.result.cost,
                1,
                right[i],
            )
            earned.append(known.reward(logged.context.objective, 0.0))
        self.earned: Floats = np.array(earned)
        for i, logged in enumerate(log):
            weight = float(self.weights[i])
            cell, plan = _keys(logged.context, logged.arms[logged.choice.arm])
            for sums in (self._cells.setdefault(cell, [0.0, 0.0]), self._plans.setdefault(plan, [0.0, 0.0])):
                sums[0] += weight
                sums[1] += weight * earned[i]

    def _right(self) -> list[float]:
        """How right each outcome was, with what is missing filled in."""
        judged: dict[tuple[str, str, str], list[float]] = {}
        for logged in self._log:
            cell, _ = _keys(logged.context, logged.arms[logged.choice.arm])
            sums = judged.setdefault(cell, [0.0, 0.0, 0.0])
            known = logged.result.n_judged > 0
            sums[0] += known or logged.result.n_failed < max(1, logged.result.n)  # without an answer nothing is judged
            sums[1] += known
            sums[2] += logged.result.right / logged.result.n_judged if known else 0.0
        found = []
        for logged in self._log:
            arm = logged.arms[logged.choice.arm]
            n, n_known, total = judged[_keys(logged.context, arm)[0]]
            usual = total / n_known if n_known else arm.accuracy
            result = logged.result
            if result.n_judged and n_known > 1:
                # Against the mean of the others: with its own in it, it would look nearer to it than it is.
                right = result.right / result.n_judged
                usual = (total - right) / (n_known - 1)
                usual += (right - usual) * n / n_known
            elif result.n_judged:
                usual = result.right / result.n_judged
            found.append(usual)
        return found

    def model(self, number: int) -> list[float]:
        """What each arm should have brought in the place of outcome `number`, told by all others."""
        logged = self._log[number]
        found = []
        for i, arm in enumerate(logged.arms):
            own = float(self.weights[number]) if i == logged.choice.arm else 0.0
            cell_key, plan_key = _keys(logged.context, arm)
            guess = Result.answered(arm.p50_ms, arm.cost).reward(logged.context.objective, arm.accuracy)
            for sums in (self._plans.get(plan_key), self._cells.get(cell_key)):
                if sums is not None:
                    weight, total = sums[0] - own, sums[1] - own * float(self.earned[number])
                    guess = (total + _PULL * guess) / (weight + _PULL)
            found.append(guess)
        return found


def _keys(context: Context, arm: Arm) -> tuple[tuple[str, str, str], tuple[str, str]]:
    return (context.goal, context.segment, arm.plan), (context.goal, arm.plan)


def _evaluated(policy: Policy, log: Sequence[Logged], rewards: _Rewards, rng: random.Random) -> Evaluation:
    n = len(log)
    ratios, expected, unseen = np.zeros(n), np.zeros(n), np.zeros(n)
    believed = np.zeros(n)  # of the chosen arm
    for i, logged in enumerate(log):
        wanted = policy.choose(logged.context, logged.arms, rng, logged.result.at_s).propensities
        model, had = rewards.model(i), logged.choice.propensities
        ratios[i] = wanted[logged.choice.arm] / had[logged.choice.arm]
        expected[i] = sum(p * m for p, m in zip(wanted, model, strict=True))
        unseen[i] = sum(p for p, q in zip(wanted, had, strict=True) if q <= 0.0)
        believed[i] = model[logged.choice.arm]
    most = math.sqrt(n)
    cut_ratios, earned, weights = np.minimum(ratios, most), rewards.earned, rewards.weights
    robust = expected + cut_ratios * (earned - believed)
    usual = float(weights @ earned / weights.sum())
    total = float(cut_ratios @ weights)
    effective = total**2 / float(cut_ratios**2 @ weights**2) if total else 0.0
    cut, never = float(np.mean(ratios > most)), float(weights @ unseen / weights.sum())
    replay, n_replayed = _replay(policy, log, rewards, rng)
    return Evaluation(
        policy=policy.name,
        n=n,
        replay=replay,
        n_replayed=n_replayed,
        ips=_weighted_mean(usual + cut_ratios * (earned - usual), weights),
        snips=_weighted_mean(earned, cut_ratios * weights) if total else Estimate(0.0, -math.inf, math.inf, 0),
        doubly_robust=_weighted_mean(robust, weights),
        gain=_weighted_mean(robust - earned, weights),
        effective_n=effective,
        cut=cut,
        unseen=never,
        warnings=tuple(_warnings(effective, cut, never, n, n_replayed)),
    )


def _warnings(effective: float, cut: float, never: float, n: int, n_replayed: int) -> Iterable[str]:
    if effective < _FEW:
        yield (
            f"of {n:,} outcomes only {effective:.0f} count: the policy chooses what was hardly tried;"
            " scores and their intervals are not to be relied on."
        )
    if never > _LITTLE:
        yield f"{100 * never:.1f} % of its choices had no chance in the log: only the reward model speaks for them."
    if cut > 0.0:
        yield f"{100 * cut:.2g} % of the outcomes had their weights cut, which draws estimates to the mean of the log."
    if n_replayed < _FEW:
        yield f"the replay has only {n_replayed} outcomes."


def _replay(
    policy: Policy, log: Sequence[Logged], rewards: _Rewards, rng: random.Random
) -> tuple[Estimate | None, int]:
    """The mean reward where the policy chose as was chosen, after thinning; and the number of such outcomes."""
    evenly = max(_LEAST_PROPENSITY, min(logged.choice.propensity for logged in log))
    kept: list[float] = []
    for i, logged in enumerate(log):
        if rng.random() * logged.choice.propensity >= evenly:
            continue
        choice = policy.choose(logged.context, logged.arms, rng, logged.result.at_s)
        if choice.arm == logged.choice.arm:
            kept.append(float(rewards.earned[i]))
            # To the policy it is an outcome of its own choice, which it made with its own probability.
            result = replace(logged.result, propensity=choice.propensity)
            policy.learn(logged.context, logged.arms[choice.arm], result)
    values = np.array(kept)
    return (mean(len(kept), float(values.sum()), float(values @ values)) if len(kept) > 1 else None), len(kept)


def _weighted_mean(values: Floats, weights: Floats) -> Estimate:
    """The mean with its interval by the delta method for a ratio of sums; both have shape (n,)."""
    n, whole = len(values), float(weights.sum())
    value = float(weights @ values) / whole
    off = weights * (values - value) * (n / whole)
    half = mean(n, float(off.sum()), float(off @ off))
    if half is None or n < 2:
        return Estimate(value, -math.inf, math.inf, n)
    return Estimate(value, value + half.low - half.value, value + half.high - half.value, n)
