"""What the journal has of the choices for one goal: read for evaluating policies and for training the controller.

An outcome is a choice: requests that travelled together were served by one plan, drawn once. Of each the journal has
which plans were considered, with their propensities, and of the plan that was taken what had been predicted. Of the
others it has that from requests of about the same size that they did serve; of plans that never served it has nothing:
they count as what is predicted of the others on average, and as a single step that nobody knows. How busy the gateway
was is not journaled, so that feature is 0.

Read from the latest on backwards, page by page; what is kept in memory is bounded by the number of outcomes wanted.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from lineage.chunks import Chunk
from lineage.journal import Page
from lineage.outcomes import Setting, split_trace_id
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.choice.controller import Candidate, Way
from planner.choice.controller import way_of as unknown_way_of
from planner.choice.evaluation import Logged
from planner.choice.judging import Judging, teaches
from planner.choice.learner import MOST_SEGMENTS
from planner.choice.policy import FEATURES, Arm, Choice, Context, Result
from planner.choice.segments import Segments
from planner.errors import BadRequest, NotFound, near
from planner.goals import Goal, Objective

PAGE = 1_000  # of feedback
AHEAD_S = 60.0  # how far the clocks of gateways and of the ledger may differ
_FIRST_WINDOW_S = 60.0  # that is looked into, backwards; each one after it is longer
_LONGER = 4.0
_TOLERANCE = 1e-3  # of propensities that should sum to 1
_GUESSED_ACCURACY = 0.9  # where neither the journal nor the catalogue says anything

NOT_DRAWN: Final = "not drawn: there was one plan, or the policy draws nothing"
NO_FAULT: Final = "failed through no fault of a plan, or without a prediction"
UNSOUND: Final = "propensities that are no probabilities of the plan that was taken"


class Journal(Protocol):
    """What this needs of `lineage.journal.JournalStore`."""

    def outcomes(self, from_s: float, to_s: float) -> Iterator[Chunk]: ...

    def joined(self, since_id: int = 0, limit: int = PAGE, since_s: float | None = None) -> Page: ...


@dataclass(frozen=True, slots=True)
class _Said:
    """What is predicted of a plan for requests of some size."""

    p50_ms: float
    cost: float


@dataclass(frozen=True, slots=True, eq=False)
class Journaled:
    """Choices for a goal in the order of time, with what became known of them.

    `n_requests` travelled with them, `n_judged` of the choices have a truth or a rating. `left_out` says of how many
    requests, and why, nothing can be learned. `never_taken` are plans that were considered, but have served nobody;
    `without_truth` those of which no answer was judged; `guessed` those of which no accuracy had been journaled.
    """

    goal: str
    objective: Objective
    log: tuple[Logged, ...]
    n_requests: int
    n_judged: int
    left_out: Mapping[str, int]
    never_taken: tuple[str, ...]
    without_truth: tuple[str, ...]
    guessed: tuple[str, ...]
    steps: Mapping[str, tuple[Candidate, ...]]

    def way_of(self, arm: Arm) -> Way:
        """The steps of a plan as it ran, their times to the scale of what is predicted; for the controller."""
        steps = self.steps.get(arm.plan)
        if not steps:
            return unknown_way_of(arm)
        scale = arm.p50_ms / max(sum(step.p50_ms for step in steps), 1e-6)
        own = tuple([Candidate(step.name, step.accuracy, step.p50_ms * scale, step.cost) for step in steps])
        return Way(arm.plan, own, arm.accuracy, arm.p50_ms, arm.cost)

    def warnings(self) -> tuple[str, ...]:
        """What limits trust in all that is made of them, in sentences."""
        found = []
        n = len(self.log)
        if 0 < self.n_judged < n / 10:
            found.append(f"the truth of {100 * self.n_judged / n:.1f} % of the outcomes is known: few to go by.")
        if self.without_truth and self.n_judged:
            found.append(
                f"no answer of {_listed(self.without_truth)} was judged; it counts as right as often as was predicted."
            )
        if self.never_taken:
            found.append(
                f"{_listed(self.never_taken)} never served: taken to be like the others, and of steps nobody knows."
            )
        if self.guessed:
            found.append(
                f"which accuracy was predicted for {_listed(self.guessed)} is not in the journal:"
                f" that of the cards counts, or {_GUESSED_ACCURACY:g}."
            )
        return tuple(found)


def goal_of(catalogue: Catalogue, name: str) -> Goal:
    """The goal of this name. Raises NotFound, with what is near."""
    goal = catalogue.goals.get(name)
    if goal is None:
        hint = near(name, catalogue.goals) or "`fenix get goals` lists what there is."
        raise NotFound(f"there is no goal {name[:80]!r}.", hint=hint)
    return goal


def read(
    journal: Journal, catalogue: Catalogue, name: str, since_s: float, now_s: float, limit: int = 10_000
) -> Journaled:
    """The latest choices for a goal since a time, at most `limit`. Times are since 1970.

    Raises NotFound for an unknown goal, BadRequest where the journal has no outcomes of it, or none with propensities,
    StoreUnavailable when the database fails.
    """
    goal = goal_of(catalogue, name)
    if limit < 1 or not since_s < now_s:
        raise BadRequest("at least one outcome is wanted, from before now.")
    groups, left_out = _gathered(journal, name, since_s, now_s, limit)
    if not groups:
        _refuse(name, left_out)
    judged = _judged(journal, name, groups)
    known = _Known(groups, catalogue.cards)
    log = tuple(_logged(name, goal.objective, groups, judged, known))
    served = {_chosen(group.setting) for group in groups}
    considered = {plan for logged in log for plan in (arm.plan for arm in logged.arms)}
    truths = {_chosen(group.setting) for group, found in zip(groups, judged, strict=True) if found[0]}
    return Journaled(
        goal=name,
        objective=goal.objective,
        log=log,
        n_requests=sum(group.n for group in groups),
        n_judged=sum(found[0] > 0 for found in judged),
        left_out=dict(left_out),
        never_taken=tuple(sorted(considered - served)),
        without_truth=tuple(sorted(served - truths)),
        guessed=tuple(sorted(plan for plan in served if plan not in known.accuracies)),
        steps=known.steps,
    )


def _refuse(name: str, left_out: Mapping[str, int]) -> None:
    n = sum(left_out.values())
    if not n:
        raise BadRequest(
            f"the journal has no outcomes of goal {name!r} from that time.",
            hint="Look further back, or ask for the goal first; what is answered is journaled a second later.",
        )
    why = "; ".join([f"{count:,} {reason}" for reason, count in left_out.items()])
    raise BadRequest(
        f"of {n:,} requests of goal {name!r} none tells with which probability its plan was chosen ({why}).",
        hint="Let choice.policy be thompson or greedy for a while, where the goal has several plans.",
    )


# ------------------------------------------------------------------------------------------------------- the outcomes


@dataclass(frozen=True, slots=True, eq=False)
class _Group:
    """Requests that were served by one choice. Numbers of requests are a range, or listed where they are none."""

    run: str
    at_s: float
    setting: Setting
    n: int
    log_ms: float
    log_ms_var: float
    n_rows: float  # of a request, the mean
    first: int
    last: int
    listed: tuple[int, ...]


def _chosen(setting: Setting) -> str:
    return setting.chosen or setting.plan


def _gathered(
    journal: Journal, goal: str, since_s: float, now_s: float, limit: int
) -> tuple[list[_Group], Counter[str]]:
    """The latest groups in the order of time, and how many requests of the same time are left out, by the reason."""
    kept: list[_Group] = []
    left_out: list[tuple[float, str, int]] = []  # when at the latest
    same: dict[Setting, Setting] = {}
    to_s, length_s = now_s + AHEAD_S, _FIRST_WINDOW_S
    while to_s > since_s and len(kept) < limit:
        from_s = max(since_s, to_s - length_s)
        older: list[_Group] = []
        for chunk in journal.outcomes(from_s, to_s):
            older += _groups_of(chunk, goal, from_s, to_s, left_out, same)
            if len(older) > 2 * limit:
                older = _latest(older, limit)
                left_out[:] = [one for one in left_out if one[0] >= older[0].at_s]
            if len(same) > 2 * limit:
                same.clear()
        kept = _latest(older, limit - len(kept)) + kept
        to_s, length_s = from_s, length_s * _LONGER
    earliest_s = kept[0].at_s if len(kept) >= limit else -math.inf
    counted: Counter[str] = Counter()
    for at_s, reason, n in left_out:
        if at_s >= earliest_s:
            counted[reason] += n
    return kept, counted


def _latest(groups: list[_Group], n: int) -> list[_Group]:
    return sorted(groups, key=lambda group: (group.at_s, group.run, group.first))[-n:]


def _groups_of(
    chunk: Chunk,
    goal: str,
    from_s: float,
    to_s: float,
    left_out: list[tuple[float, str, int]],
    same: dict[Setting, Setting],
) -> Iterator[_Group]:
    reasons = [_reason(setting, goal) for setting in chunk.settings]
    if all(reason is None for reason in reasons):
        return
    found = chunk.numbers()
    inside = (found.at_s >= from_s) & (found.at_s < to_s)
    for k, reason in enumerate(reasons):
        if reason:
            mine = inside & (found.which == k)
            if mine.any():
                left_out.append((float(found.at_s[mine].max()), reason, int(found.sizes[mine].sum())))
    usable = np.array([reason == "" for reason in reasons])[found.which]
    wanted = np.flatnonzero(inside & usable)
    if not len(wanted):
        return
    begins = np.concatenate([[0], np.cumsum(found.sizes[:-1], dtype=np.int64)])
    logs = np.log(np.maximum(np.nan_to_num(found.latencies_ms.astype(np.float64)), 1e-3))
    means = np.add.reduceat(logs, begins) / found.sizes
    spreads = np.maximum(np.add.reduceat(logs * logs, begins) / found.sizes - means * means, 0.0)
    rows = np.add.reduceat(found.n_rows.astype(np.float64), begins) / found.sizes
    firsts, lasts = np.minimum.reduceat(found.seqs, begins), np.maximum.reduceat(found.seqs, begins)
    for i in wanted.tolist():
        n, first, last, begin = int(found.sizes[i]), int(firsts[i]), int(lasts[i]), int(begins[i])
        listed = () if last - first + 1 == n else tuple(found.seqs[begin : begin + n].tolist())
        setting = chunk.settings[found.which[i]]
        setting = same.setdefault(setting, setting)
        yield _Group(
            chunk.head.run,
            float(found.at_s[i]),
            setting,
            n,
            float(means[i]),
            float(spreads[i]),
            float(rows[i]),
            first,
            last,
            listed,
        )


def _reason(setting: Setting, goal: str) -> str | None:
    """Why nothing can be learned of such requests; empty where something can, None for another goal's."""
    if setting.goal != goal:
        return None
    if not teaches(setting):
        return NO_FAULT
    if not setting.considered:
        return NOT_DRAWN
    names = [plan for plan, _ in setting.considered]
    total = sum(p for _, p in setting.considered)
    if not setting.propensity or len(set(names)) < len(names) or abs(total - 1.0) > _TOLERANCE:
        return UNSOUND
    return ""


# ------------------------------------------------------------------------------------------------------- the feedback


def _judged(journal: Journal, goal: str, groups: Sequence[_Group]) -> list[tuple[int, float]]:
    """Of each group how many rows were judged, and the sum of those that were right."""
    places = _Places(groups)
    judging = Judging()
    found = [(0, 0.0)] * len(groups)
    since_id, since_s = 0, groups[0].at_s - AHEAD_S
    while True:
        page = journal.joined(since_id, PAGE, since_s)
        for one in page.items:
            if one.outcome.setting.goal == goal:
                judged = judging.judged(one.outcome, one.feedback)
                place = places.of(one.outcome.trace_id)
                if judged is not None and place is not None:
                    found[place] = found[place][0] + judged[0], found[place][1] + judged[1]
        if page.next_id == since_id:
            return found
        since_id = page.next_id


class _Places:
    """To which group a request belongs."""

    def __init__(self, groups: Sequence[_Group]) -> None:
        ranges: dict[str, list[tuple[int, int, int]]] = {}
        for place, group in enumerate(groups):
            own = [(seq, seq, place) for seq in group.listed] or [(group.first, group.last, place)]
            ranges.setdefault(group.run, []).extend(own)
        self._ranges: dict[str, npt.NDArray[np.int64]] = {
            run: np.array(sorted(found), np.int64) for run, found in ranges.items()
        }

    def of(self, trace_id: str) -> int | None:
        run, seq = split_trace_id(trace_id)
        ranges = self._ranges.get(run)
        if ranges is None:
            return None
        at = int(np.searchsorted(ranges[:, 0], seq, side="right")) - 1
        return int(ranges[at, 2]) if at >= 0 and seq <= ranges[at, 1] else None


# ------------------------------------------------------------------------------------------------------------ the log


class _Known:
    """What groups tell of the plans: what was predicted of them, and their steps."""

    def __init__(self, groups: Iterable[_Group], cards: Mapping[ExtensionId, Card]) -> None:
        self._cards = cards
        sums: dict[tuple[str, int], list[float]] = {}
        accuracies: dict[str, list[float]] = {}
        steps: dict[str, tuple[tuple[int, str], ...]] = {}
        for group in groups:
            setting = group.setting
            plan = _chosen(setting)
            for key in ((plan, _size(group)), (plan, -1)):
                known = sums.setdefault(key, [0.0, 0.0, 0.0])
                for i, number in enumerate((1.0, setting.expected_ms, setting.expected_cost)):
                    known[i] += number
            if setting.expected_accuracy > 0.0:
                mean = accuracies.setdefault(plan, [0.0, 0.0])
                mean[0] += 1.0
                mean[1] += setting.expected_accuracy
            as_planned = not (setting.chosen or setting.error or setting.failed or "replanned" in setting.flags)
            if as_planned and len(setting.steps) > len(steps.get(plan, ())):  # guarded steps do not always run
                steps[plan] = setting.steps
        self._said = {key: _Said(ms / n, cost / n) for key, (n, ms, cost) in sums.items()}
        self.accuracies = {plan: total / n for plan, (n, total) in accuracies.items()}
        self.steps = {plan: tuple([self._candidate(id_) for _, id_ in sorted(ran)]) for plan, ran in steps.items()}

    def _candidate(self, extension: str) -> Candidate:
        """As the gateway has it for the controller, but for times: cards give those of a row."""
        card = self._cards.get(ExtensionId(extension))
        if card is None:
            return Candidate(extension, 1.0, 1.0, 0.0)
        return Candidate(extension, card.accuracy.mean, max(card.profile.p50_ms(1), 1e-3), card.cost)

    def arms(self, considered: Sequence[str], size: int, excluded: Sequence[bool]) -> tuple[Arm, ...]:
        """In the order of the planner, with what is predicted for requests of this size."""
        said = [self._said.get((plan, size)) or self._said.get((plan, -1)) for plan in considered]
        usual = [one for one in said if one is not None]
        accuracies = [self.accuracies.get(plan) for plan in considered]
        known = [one for one in accuracies if one is not None]
        found = []
        for plan, one, accuracy, out in zip(considered, said, accuracies, excluded, strict=True):
            p50_ms = _mean([each.p50_ms for each in usual]) if one is None else one.p50_ms
            cost = _mean([each.cost for each in usual]) if one is None else one.cost
            if accuracy is None:
                accuracy = self._by_cards(plan) or (_mean(known) if known else _GUESSED_ACCURACY)
            rows = [self._cards[ExtensionId(s.name)].accuracy.n_rows for s in self._with_cards(plan)]
            found.append(Arm(plan, accuracy, min(rows, default=0), p50_ms, cost, excluded=out))
        return tuple(found)

    def _with_cards(self, plan: str) -> list[Candidate]:
        return [step for step in self.steps.get(plan, ()) if ExtensionId(step.name) in self._cards]

    def _by_cards(self, plan: str) -> float | None:
        """Where all steps have cards: right is what is right at each step."""
        steps = self.steps.get(plan, ())
        if not steps or len(self._with_cards(plan)) < len(steps):
            return None
        return math.prod(step.accuracy for step in steps)


def _size(group: _Group) -> int:
    """Requests of about the same number of rows: within a factor of two."""
    return round(math.log2(max(group.n_rows, 1.0)))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _logged(
    goal: str,
    objective: Objective,
    groups: Sequence[_Group],
    judged: Sequence[tuple[int, float]],
    known: _Known,
) -> Iterator[Logged]:
    """What is alike is shared: policies know arms again by identity."""
    segments = Segments(MOST_SEGMENTS)
    contexts: dict[tuple[str, int, float | None], Context] = {}
    offers: dict[tuple[tuple[str, ...], int, tuple[bool, ...]], tuple[Arm, ...]] = {}
    choices: dict[tuple[int, tuple[float, ...]], Choice] = {}
    for group, (n_judged, right) in zip(groups, judged, strict=True):
        setting = group.setting
        segment = segments.of(goal, setting.user, setting.tags, n_requests=group.n)
        key = segment, group.n, setting.deadline_ms
        context = contexts.get(key)
        if context is None:
            seen = {"log_rows": math.log1p(group.n), "log_slack": math.log1p(setting.deadline_ms or 0.0)}
            features = tuple([seen.get(name, 0.0) for name in FEATURES])  # as the gateway makes them
            context = contexts[key] = Context(goal, segment, features, objective, group.n)
        names = tuple([plan for plan, _ in setting.considered])
        propensities = tuple([p for _, p in setting.considered])
        # What a rule left no chance could not have been chosen by any policy.
        ruled = setting.reason.startswith("by rule ")
        excluded = tuple([ruled and p == 0.0 for p in propensities])
        offer = names, _size(group), excluded
        arms = offers.get(offer) or offers.setdefault(offer, known.arms(*offer))
        number = names.index(_chosen(setting))
        choice = choices.setdefault((number, propensities), Choice(number, propensities))
        failed = bool(setting.error)
        result = Result(
            n=group.n,
            n_failed=group.n if failed else 0,
            log_ms=0.0 if failed else group.log_ms,
            log_ms_var=0.0 if failed else group.log_ms_var,
            cost=setting.expected_cost,
            n_judged=n_judged,
            right=right,
            propensity=choice.propensity,
            at_s=group.at_s,
        )
        yield Logged(context, arms, choice, result)


def _listed(plans: Sequence[str]) -> str:
    more = f" and {len(plans) - 3} others" if len(plans) > 3 else ""
    return f"plan{'s' * (len(plans) > 1)} {', '.join(plans[:3])}{more}"
