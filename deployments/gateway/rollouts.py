"""Rollouts in the gateway: who serves which group of requests, who answers it as well unseen, and what both did.

A version that is tried gets its share of the requests that would have gone to the champion: by user where there is
one, else group by group. Should it fail, the champion's plan takes over, so that nobody is hurt by it. Of the answers
that were given, some are asked for again from the other version, behind everybody's back: after the answer has left,
with the least priority, a few at a time. Tagged data stays among extensions that may see it, and nothing of it is kept.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import uuid
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from random import Random
from time import perf_counter, time
from typing import Any, Protocol

from deployments.gateway.metadata import parts_of
from deployments.rollouts import Seen
from lineage.chunks import ChunkBuilder
from lineage.outcomes import Setting, split_trace_id
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.choosing import Chooser, Chosen, PlansWithout
from planner.errors import (
    BadRequest,
    ClusterDown,
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    FenixError,
    NoPlan,
    Overloaded,
    StoreUnavailable,
)
from planner.features import Array
from planner.goals import Terms
from planner.placed import Placed
from planner.plans import Answer, Plan, PlanSet
from planner.rollout.agreement import of_requests, same_rows
from planner.rollout.latencies import Latencies
from planner.rollout.records import Observation, Pairs
from planner.rollout.traffic import Rules, Traffic, running, withheld
from planner.tokens import Token

ChooserFor = Callable[[str, Terms, PlanSet, PlansWithout], Chooser]
Heard = Callable[[Sequence[str], Mapping[str, Array], Answer | FenixError], None]

REPORT_EVERY_S = 1.0
MOST_ASIDE = 8  # groups that are answered unseen at the same time
ASIDE_PER_S = 200.0  # requests, at most; a burst may be as many as that
PATIENCE_S = 30.0  # of what nobody waits for
LEAST_URGENT = 9
NOBODY = "rollouts"  # in whose name it stands in lines
UNNOTICED_MS = 1.0  # is added to what versions take: below it nobody minds a difference
BLUR = 0.1  # and each is changed by about so much: times that hardly vary could not be told apart from none
MOST_LATENCIES = 20_000  # that wait for a report
MOST_ANSWERS = 20_000
_OF_ONE = (ExtensionRaised, ExtensionBroken, BadRequest)  # a group that fails so is split down to the guilty
_log = logging.getLogger("fenix.gateway")


class Engine(Protocol):
    """What this needs of the gateway's engine."""

    @property
    def catalogue(self) -> Catalogue: ...

    def withhold(self, extensions: frozenset[ExtensionId]) -> None: ...

    def choose_anew(self) -> None: ...

    @property
    def placed(self) -> Placed: ...

    def inline(self) -> frozenset[ExtensionId]: ...

    def aside(self, plan: Plan, inputs: Mapping[str, Array], token: Token) -> Coroutine[Any, Any, Answer]: ...


class Reports(Protocol):
    """Who takes reports; see `deployments/rollouts.py`."""

    async def report(
        self, gateway: str, number: int, seen: Sequence[Seen], answers: Sequence[tuple[str, bytes]] = ()
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class _Group:
    """Requests that travelled together, and what became of them; `n_rows` of each, or none where that is unknown."""

    n: int
    trace_ids: Sequence[str]
    n_rows: tuple[int, ...]
    inputs: Mapping[str, Array]
    outcome: Answer | FenixError


class _Tally:
    """What was seen of one rollout since the last report."""

    def __init__(self) -> None:
        self.alone: dict[str, list[int]] = {}  # version -> requests, failed
        self.pairs: dict[bool, dict[str, int]] = {True: {}, False: {}}
        self.took_ms: dict[tuple[str, bool | None], list[float]] = {}  # version, who served (None: alone)
        self.answers: dict[str, ChunkBuilder] = {}  # run -> what nobody heard

    def served(self, version: str, n: int, n_failed: int) -> None:
        counts = self.alone.setdefault(version, [0, 0])
        counts[0] += n
        counts[1] += n_failed

    def paired(self, served: bool, **counts: int) -> None:
        mine = self.pairs[served]
        for name, n in counts.items():
            mine[name] = mine.get(name, 0) + n

    def took(self, version: str, served: bool | None, ms: float) -> None:
        known = self.took_ms.setdefault((version, served), [])
        if len(known) < MOST_LATENCIES:
            known.append(ms)

    def seen(self, champion: str, challenger: str) -> list[Observation | Pairs]:
        """All of it, for a report."""

        def latencies(version: str, served: bool | None) -> Latencies:
            return Latencies.of(self.took_ms.get((version, served), ()))

        found: list[Observation | Pairs] = [
            Observation(version, n, n_failed, latencies(version, None)) for version, (n, n_failed) in self.alone.items()
        ]
        for served, counts in self.pairs.items():
            if counts:
                found.append(
                    Pairs(
                        **counts,
                        latencies=latencies(challenger, served),
                        champion_latencies=latencies(champion, served),
                        served=served,
                    )
                )
        return found


class Trial:
    """One rollout, as this gateway carries it out."""

    def __init__(self, traffic: Traffic) -> None:
        assert traffic.split is not None
        self.traffic = traffic
        self.split = traffic.split
        self.id = traffic.split.id
        self.champion, self.challenger = traffic.champion_id, traffic.challenger_id
        self.share = dict(traffic.split.challengers).get(traffic.challenger, 0.0)
        self.mirrored = dict(traffic.split.shadows).get(traffic.challenger, 0.0)
        self.checked = traffic.split.checked
        self.tally = _Tally()

    def version(self, is_challenger: bool) -> str:
        return self.traffic.challenger if is_challenger else self.traffic.champion


class GatewayRollouts:
    """Shares requests out as the rules say, and reports what came of it. Belongs to the gateway's event loop."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        inner: ChooserFor,
        reports: Reports,
        rng: Random | None = None,
        clock: Callable[[], float] = perf_counter,
        *,
        keeps_answers: bool = True,
        aside_per_s: float = ASIDE_PER_S,
    ) -> None:
        """`inner` chooses among the plans of one version. With `keeps_answers` what nobody heard is sent along, to be
        judged when the truth comes: trace ids must then be those of the journal."""
        self._engine = engine
        self._inner = inner
        self._reports = reports
        self._rng = rng or Random()
        self._clock = clock
        self._keeps_answers = keeps_answers
        self._aside_per_s = aside_per_s
        self._room, self._room_s = aside_per_s, clock()
        self._rules = Rules()
        self._trials: dict[str, Trial] = {}
        self._under_way: set[asyncio.Task[None]] = set()
        self._name = uuid.uuid4().hex
        self._number = 0
        self._unsent: tuple[list[Seen], list[tuple[str, bytes]]] | None = None

    # ------------------------------------------------------------------------------------------------ the rules

    def follow(self, rules: Rules) -> None:
        """From the next request on, these hold."""
        self._rules = rules
        self.renew()
        self._engine().choose_anew()

    def foresee(self, catalogue: Catalogue) -> None:
        """This catalogue is about to hold: nobody who is new in it serves before the rules allow it, and nobody who
        goes serves because of that. Call `renew` when it holds."""
        now = withheld(self._rules, self._engine().catalogue, parts_of)
        self._engine().withhold(now | withheld(self._rules, catalogue, parts_of))

    def renew(self) -> None:
        """Goes by the rules and the catalogue as they are now."""
        catalogue, trials = self._engine().catalogue, {}
        for traffic in running(self._rules, catalogue):
            trial = Trial(traffic)
            known = self._trials.get(trial.id)
            if known is not None:
                trial.tally = known.tally
            trials[trial.id] = trial
        self._trials = trials
        self._engine().withhold(withheld(self._rules, catalogue, parts_of))

    # ------------------------------------------------------------------------------------------------- choosing

    def chooser_for(self, goal: str, terms: Terms, plans: PlanSet, without: PlansWithout) -> Chooser:
        """See `deployments.gateway.engine.ChooserFor`."""
        usual = self._inner(goal, terms, plans, without)
        views = []
        if self._trials:
            hidden = withheld(self._rules, self._engine().catalogue, parts_of)
            for trial in self._trials.values():
                if any(trial.champion in plan.extensions() for plan in plans.plans):
                    view = self._view(trial, hidden, goal, terms, without)
                    if view is not None:
                        views.append((trial, view))
        return _Shared(self, usual, views, terms) if views else usual

    def _view(
        self, trial: Trial, hidden: frozenset[ExtensionId], goal: str, terms: Terms, without: PlansWithout
    ) -> Chooser | None:
        """Who chooses among the plans with the version that is tried; None where there is none within the terms."""

        def without_champion(avoid: frozenset[ExtensionId], must_use: ExtensionId | None = None) -> PlanSet | None:
            return without(avoid | {trial.champion}, must_use)

        try:
            found = without_champion(hidden - {trial.challenger})
            theirs = () if found is None else tuple(p for p in found.plans if trial.challenger in p.extensions())
            if found is None or not theirs:
                return None
            return self._inner(goal, terms, replace(found, plans=theirs), without_champion)
        except NoPlan:  # perhaps because of a rule
            return None

    def draw(self) -> float:
        """A random number in [0, 1)."""
        return self._rng.random()

    # -------------------------------------------------------------------------------------------------- hearing

    def heard(self, trial: Trial, by_challenger: bool, group: _Group, plan: Plan, other: Plan, terms: Terms) -> None:
        """A group was answered by one of the versions, or should have been. Returns at once."""
        share = trial.checked if by_challenger else trial.mirrored
        if share and self._rng.random() < share and self._has_room(group.n):
            task = asyncio.get_running_loop().create_task(
                self._compare(trial, by_challenger, group, plan, other, terms), context=contextvars.Context()
            )
            self._under_way.add(task)
            task.add_done_callback(self._under_way.discard)
        elif not (by_challenger and terms.user):  # users who stay with a version are compared in pairs alone
            self._alone(trial, by_challenger, group, plan)

    def _alone(self, trial: Trial, by_challenger: bool, group: _Group, plan: Plan) -> None:
        mine = trial.challenger if by_challenger else trial.champion
        went = self._went(mine, plan, group.outcome)
        if went is None:
            return
        version = trial.version(by_challenger)
        trial.tally.served(version, group.n, 0 if went else group.n)
        ms = self._ran_ms(trial, mine, group.outcome) if went else None
        if ms is not None and self._alike(trial):
            trial.tally.took(version, None, ms)

    def _has_room(self, n: int) -> bool:
        now_s = self._clock()
        self._room = min(self._aside_per_s, self._room + (now_s - self._room_s) * self._aside_per_s)
        self._room_s = now_s
        if self._room <= 0.0 or len(self._under_way) >= MOST_ASIDE:
            return False
        self._room -= n
        return True

    def _went(self, extension: ExtensionId, plan: Plan, outcome: Answer | FenixError) -> bool | None:
        """Whether the extension did what the plan wanted of it; None where it was not its turn, or nobody's fault."""
        if isinstance(outcome, FenixError):
            return None if isinstance(outcome, Overloaded) else False
        if any(record.extension == extension for record in outcome.steps):
            return True
        if any(f"fallback for {extension}:" in record.note for record in outcome.steps):
            return False
        if outcome.plan.id == plan.id:
            return None
        is_healthy = self._engine().placed.is_healthy(extension)
        return None if is_healthy and "fallback" not in outcome.flags else False

    def _alike(self, trial: Trial) -> bool:
        """Whether both versions run in the same sort of place, so that what they take can be compared."""
        inline = self._engine().inline()
        return (trial.champion in inline) == (trial.challenger in inline)

    def _ran_ms(self, trial: Trial, extension: ExtensionId, outcome: Answer | FenixError) -> float | None:
        """What the extension took for a group, as if it had been one row in a call of its own, going by how calls of
        the champion grow with their rows. None where it computed nothing."""
        if isinstance(outcome, FenixError):
            return None
        card: Card | None = self._engine().catalogue.cards.get(trial.champion)
        total_ms = 0.0
        for record in outcome.steps:
            if record.extension == extension:
                if record.cached or card is None:
                    return None
                profile = card.profile
                total_ms += record.ran_ms * profile.p50_ms(1) / max(profile.p50_ms(record.batch_rows), 1e-6)
        return (total_ms + UNNOTICED_MS) * self._rng.lognormvariate(0.0, BLUR) if total_ms > 0.0 else None

    # ------------------------------------------------------------------------------------------------ comparing

    async def _compare(
        self, trial: Trial, by_challenger: bool, group: _Group, plan: Plan, other: Plan, terms: Terms
    ) -> None:
        """Has the other version answer a group too, and holds both against each other."""
        try:
            await self._compared(trial, by_challenger, group, plan, other, terms)
        except (Overloaded, DeadlineExceeded):  # it waited behind everybody: that is not its fault
            self._alone(trial, by_challenger, group, plan)
        except Exception:
            _log.exception("versions were not compared")

    async def _compared(
        self, trial: Trial, by_challenger: bool, group: _Group, plan: Plan, other: Plan, terms: Terms
    ) -> None:
        mine, unseen = trial.challenger, trial.champion
        if not by_challenger:
            mine, unseen = unseen, mine
        went = self._went(mine, plan, group.outcome)
        if went is None:
            return
        token = Token(
            asyncio.get_running_loop().time() + PATIENCE_S, LEAST_URGENT, NOBODY, terms.tags, shared=group.n > 1
        )
        n_failed = 0
        answer: Answer | None = None
        try:
            answer = await self._engine().aside(other, group.inputs, token)
        except (Overloaded, DeadlineExceeded):
            raise
        except FenixError:
            parts = _halves(group)
            if parts:  # who of them is guilty?
                for part in parts:
                    await self._compared(trial, by_challenger, part, plan, other, terms)
                return
            n_failed = 1
        if answer is not None and self._went(unseen, other, answer) is not True:
            return
        n, served_failed = group.n, 0 if went else group.n
        if answer is None:
            n = 1
            served_failed = min(served_failed, 1)
        both = min(n_failed, served_failed)
        failed = {True: n_failed - both, False: served_failed - both}  # of the unseen alone, of the other alone
        trial.tally.paired(
            by_challenger,
            n=n,
            n_failed=failed[not by_challenger],
            n_champion_failed=failed[by_challenger],
            n_both_failed=both,
        )
        if answer is None or not went or isinstance(group.outcome, FenixError):
            return
        self._agreement(trial, by_challenger, group, group.outcome, answer)
        if self._alike(trial):
            took = self._ran_ms(trial, mine, group.outcome), self._ran_ms(trial, unseen, answer)
            if took[0] is not None and took[1] is not None:
                trial.tally.took(trial.version(by_challenger), by_challenger, took[0])
                trial.tally.took(trial.version(not by_challenger), by_challenger, took[1])
        if self._keeps_answers and not terms.tags:
            self._keep(trial, group, answer, terms)

    def _agreement(self, trial: Trial, by_challenger: bool, group: _Group, heard: Answer, unheard: Answer) -> None:
        same = same_rows(heard.outputs, unheard.outputs)
        if same is not None and group.n_rows and sum(group.n_rows) == len(same):
            alike = of_requests(same, group.n_rows)
            trial.tally.paired(by_challenger, n_compared=len(alike), n_agreed=sum(alike))

    def _keep(self, trial: Trial, group: _Group, answer: Answer, terms: Terms) -> None:
        """Remembers an answer that nobody heard under the trace ids of those that were given."""
        if not group.n_rows or len(group.trace_ids) != len(group.n_rows):
            return
        numbers = [split_trace_id(trace_id) for trace_id in group.trace_ids]
        run = numbers[0][0]
        builder = trial.tally.answers.get(run)
        if builder is None:
            builder = trial.tally.answers[run] = ChunkBuilder(run)
        if builder.n_requests >= MOST_ANSWERS:
            return
        n = group.n
        builder.add(
            Setting(model=trial.traffic.extension, plan=answer.plan.id, user=terms.user),
            [number for _, number in numbers],
            time(),
            [0.0] * n,
            list(group.n_rows),
            [math.nan] * n,
            outputs={name: rows.values for name, rows in answer.outputs.items()},
        )

    # ------------------------------------------------------------------------------------------------ reporting

    async def tend(self, every_s: float = REPORT_EVERY_S) -> None:
        """Reports once in `every_s`, for ever."""
        while True:
            await asyncio.sleep(every_s)
            try:
                await self.tell()
            except FenixError as error:  # it is sent again
                _log.debug("%s", error.text())
            except Exception:
                _log.exception("no report on rollouts")
                self._sent()

    async def tell(self) -> None:
        """Sends what was seen. What cannot be sent is sent again first the next time, and counts once; what is refused
        for good is dropped. Raises ClusterDown, StoreUnavailable and Overloaded."""
        if self._unsent is None:
            self._unsent = await self._gathered()
        if self._unsent is not None:
            try:
                await self._reports.report(self._name, self._number, *self._unsent)
            except (ClusterDown, StoreUnavailable, Overloaded):
                raise
            except FenixError as error:
                _log.error("a report on rollouts was refused, and is dropped: %s", error.text())
            self._sent()

    def _sent(self) -> None:
        self._unsent = None
        self._number += 1

    async def _gathered(self) -> tuple[list[Seen], list[tuple[str, bytes]]] | None:
        seen: list[Seen] = []
        builders = []
        for trial in self._trials.values():
            tally, trial.tally = trial.tally, _Tally()
            seen += [(trial.id, one) for one in tally.seen(trial.traffic.champion, trial.traffic.challenger)]
            builders += [(trial.id, builder) for builder in tally.answers.values() if builder.n_requests]
        answers = [(id_, await asyncio.to_thread(builder.encode)) for id_, builder in builders]
        return (seen, answers) if seen or answers else None

    async def close(self) -> None:
        """Ends what nobody waits for."""
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)


class _Shared:
    """Chooses for one convoy whose requests several versions share."""

    def __init__(
        self, rollouts: GatewayRollouts, usual: Chooser, views: Sequence[tuple[Trial, Chooser]], terms: Terms
    ) -> None:
        self._rollouts = rollouts
        self._chooser = usual
        self._views = views
        self._terms = terms
        user = terms.user
        self._users = {
            trial.id: user and trial.split.serves(user) == trial.traffic.challenger for trial, _ in views if trial.share
        }

    @property
    def usual(self) -> Plan:
        return self._chooser.usual

    def choose(self, n_requests: int) -> Chosen:
        """See `planner.choosing.Chooser`."""
        rollouts, terms = self._rollouts, self._terms
        chosen = self._chooser.choose(n_requests)
        mine = [(trial, view) for trial, view in self._views if trial.champion in chosen.plan.extensions()]
        for trial, view in mine:
            if not trial.share:
                continue
            drawn = self._users[trial.id] if terms.user else rollouts.draw() < trial.share
            if drawn:
                theirs = view.choose(n_requests)
                hearing = [(trial, True, chosen.plan)]
                others = tuple(plan for plan in (chosen.plan, *chosen.alternatives) if plan is not theirs.plan)
                return replace(
                    theirs,
                    alternatives=(*theirs.alternatives, *others),
                    considered=_considered(trial.share, chosen, theirs),
                    then=partial(_hear, rollouts, hearing, theirs.plan, n_requests, terms, theirs.then),
                )
        if not mine:
            return chosen
        hearing = [(trial, False, view.usual) for trial, view in mine]
        trial, view = mine[0]
        considered = _considered(trial.share, chosen, Chosen(view.usual)) if trial.share else chosen.considered
        then = partial(_hear, rollouts, hearing, chosen.plan, n_requests, terms, chosen.then)
        return replace(chosen, considered=considered, then=then)


def _considered(share: float, ours: Chosen, theirs: Chosen) -> tuple[tuple[str, float], ...]:
    """The plans of both versions, each with the probability that it was to be."""
    found: dict[str, float] = {}
    for weight, chosen in ((1.0 - share, ours), (share, theirs)):
        for plan, probability in chosen.considered or ((chosen.plan.id, 1.0),):
            found[plan] = min(1.0, found.get(plan, 0.0) + weight * probability)
    return tuple(found.items())


def _hear(
    rollouts: GatewayRollouts,
    hearing: Sequence[tuple[Trial, bool, Plan]],
    plan: Plan,
    n_requests: int,
    terms: Terms,
    also: Callable[..., None] | None,
    trace_ids: Sequence[str],
    inputs: Mapping[str, Array],
    outcome: Answer | FenixError,
    took_ms: float,
) -> None:
    if also is not None:
        also(trace_ids, inputs, outcome, took_ms)
    try:
        n_rows = len(next(iter(inputs.values())))
        n = len(trace_ids) or (1 if isinstance(outcome, _OF_ONE) else min(n_requests, n_rows))
        sizes = (n_rows,) if n == 1 else (1,) * n if n_rows == n else ()
        group = _Group(n, trace_ids, sizes, inputs, outcome)
        for trial, by_challenger, other in hearing:
            rollouts.heard(trial, by_challenger, group, plan, other, terms)
    except Exception:
        _log.exception("a group was not heard")


def _halves(group: _Group) -> list[_Group]:
    """A group in two, where it is known whose rows are whose; else nothing."""
    if group.n < 2 or not group.n_rows:
        return []
    middle = group.n // 2
    rows = sum(group.n_rows[:middle])
    parts = []
    for requests, of in ((slice(0, middle), slice(0, rows)), (slice(middle, None), slice(rows, None))):
        sizes = group.n_rows[requests]
        outcome = group.outcome
        if isinstance(outcome, Answer):
            outputs = {
                name: replace(
                    kept, values=kept.values[of], confidence=None if kept.confidence is None else kept.confidence[of]
                )
                for name, kept in outcome.outputs.items()
            }
            outcome = replace(outcome, outputs=outputs)
        inputs = {name: values[of] for name, values in group.inputs.items()}
        parts.append(_Group(len(sizes), group.trace_ids[requests], sizes, inputs, outcome))
    return parts
