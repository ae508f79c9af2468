"""Which plan serves whom, as this gateway decides it: a policy over what the cluster has learned, and the rules.

What is learned of plans comes from the ledger, once a second, and so do the rules. The gateway learns nothing by
itself, so all gateways know the same, and one that starts anew does too. Without news it goes on with what it knows.

With Thompson sampling a choice among three plans costs 1.2 us a group while nothing new is known, and 0.15 ms when
there is, at most once a second for each segment of a goal; 3.4 us with the greedy policy. Groups that are chosen alike
get the same `Chosen`, so that the journal finds what it knows of them by identity.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakSet

from deployments.applications import ChoiceOptions
from deployments.gateway.metadata import parts_of
from lineage.outcomes import Setting
from planner.cards import ExtensionId
from planner.catalogue import Catalogue
from planner.choice import DEFAULT_POLICY
from planner.choice.controller import Candidate, Controller, Way, Weights
from planner.choice.controller import load as load_weights
from planner.choice.exp3 import Exp3, Exp4
from planner.choice.greedy import EpsilonGreedy, Prior
from planner.choice.learner import MOST_RESULTS, ChoiceLearner, Heard, News, Results
from planner.choice.policy import Arm, Choice, Context, Policy
from planner.choice.posteriors import Belief, Posteriors, SegmentRows
from planner.choice.rule_store import StoredRule
from planner.choice.rules import Rule, Rules, marked
from planner.choice.segments import of_tags, of_user
from planner.choice.thompson import Thompson
from planner.choosing import Chooser, Chosen, FirstPlan, PlansWithout
from planner.errors import ArtifactRefused, FenixError, NoPlan
from planner.goals import Objective, Terms
from planner.plans import Plan, PlanSet

POLL_S = 1.0
MOST_ARMS = 4_096
MOST_CHOSEN = 64  # of one convoy, before they are made anew
MOST_PINNED = 8  # extensions that one rule pins, and that plans are looked for with
MOST_ROUNDS = 16  # of planning without what the rules exclude
SLICE = 50  # segments that are taken in before others get a turn
_log = logging.getLogger("fenix.gateway")


class Ledger(Protocol):
    """What this needs of the ledger; see `deployments/ledger.py`."""

    async def learned(self, name: str, question: str, *arguments: Any) -> Any: ...

    async def rules(self) -> tuple[StoredRule, ...]: ...


class Engine(Protocol):
    """What this needs of the gateway's engine."""

    @property
    def catalogue(self) -> Catalogue: ...

    @property
    def withheld(self) -> frozenset[ExtensionId]: ...

    def choose_anew(self) -> None: ...


class Choosing:
    """Makes the choosers of a gateway, and follows what they go by. Belongs to the gateway's event loop."""

    def __init__(
        self,
        engine: Callable[[], Engine],
        ledger: Ledger,
        policy: Policy,
        posteriors: Posteriors,
        rng: random.Random | None = None,
        clock: Callable[[], float] = time.time,
        load: Callable[[], float] | None = None,
    ) -> None:
        """`policy` goes by `posteriors`, which are kept up to date here. `clock` is since 1970. `load` in 0..1 is for
        policies that look at requests' features."""
        self._engine = engine
        self._ledger = ledger
        self.policy = policy
        self.posteriors = posteriors
        self.rng = rng or random.Random()
        self.clock = clock
        self.load = load
        self.version = 0  # grows with what is known
        self._heard = News("", -1)
        # What came of plans, for policies that learn from each result; until there is somebody to choose by it.
        self._results = Results("", 0, ())
        self._unheard: deque[Heard] = deque(maxlen=MOST_RESULTS)
        self._stored: tuple[StoredRule, ...] = ()
        self._rules = Rules()
        self._learns = isinstance(policy, Exp3 | Exp4)  # the others go by the posteriors
        self._taught: set[tuple[str, str]] = set()
        self._arms: dict[tuple[Arm, ...], tuple[Arm, ...]] = {}
        self._by_plan: dict[str, tuple[Arm, Plan]] = {}
        self._choosers: WeakSet[_PolicyChooser] = WeakSet()
        self._task: asyncio.Task[None] | None = None
        self._failing: type[Exception] | None = None

    # -------------------------------------------------------------------------------------------------- choosing

    def chooser_for(self, goal: str, terms: Terms, plans: PlanSet, without: PlansWithout) -> Chooser:
        """See `deployments.gateway.engine.ChooserFor`. Raises NoPlan when the rules leave no plan."""
        rules = self._concerning(goal, terms)
        if rules:
            plans = self._allowed(plans, rules, without)
        # Of requests that name no goal nothing is learned, so trying would be for nothing.
        policy = self.policy if goal in self._engine().catalogue.goals else _FIRST
        if not rules and (len(plans.plans) == 1 or isinstance(policy, Prior)):
            return FirstPlan(plans)
        cards = self._engine().catalogue.cards
        arms = []
        for plan in plans.plans:
            measured = [cards[id_].accuracy.n_rows for id_ in plan.extensions() if id_ in cards]
            said = plan.prediction
            arms.append(Arm(plan.id, said.accuracy, min(measured, default=0), said.p50_ms, said.cost))
        found = marked(arms, [self._ids(plan) for plan in plans.plans], rules)
        made = _PolicyChooser(self, policy, goal, terms, plans.plans, self._same(found, plans.plans), rules)
        self._choosers.add(made)
        return made

    def segment_of(self, goal: str, terms: Terms) -> str:
        """The user's own, as soon as the user is known for one; else that of the data's tags."""
        own = of_user(terms.user)
        return own if terms.user and self.posteriors.has(goal, own) else of_tags(terms.tags)

    def objective_of(self, goal: str) -> Objective:
        known = self._engine().catalogue.goals.get(goal)
        return Objective() if known is None else known.objective

    def beliefs(self, setting: Setting) -> dict[str, Belief]:
        """What is believed now of the plans that were considered for a request, for requests like it; of those that
        are planned at present."""
        arms = [self._by_plan[plan][0] for plan, _ in setting.considered if plan in self._by_plan]
        terms = Terms(user=setting.user, tags=setting.tags)
        context = Context(setting.goal, self.segment_of(setting.goal, terms))
        found = self.posteriors.beliefs(context, arms, self.clock()) if arms else []
        return {arm.plan: belief for arm, belief in zip(arms, found, strict=True)}

    def way_of(self, arm: Arm) -> Way:
        """The steps of a plan, by extension, for the controller."""
        cards = self._engine().catalogue.cards
        steps = []
        for step in self._by_plan[arm.plan][1].steps:
            card = cards.get(step.extension)
            accuracy, cost = (1.0, 0.0) if card is None else (card.accuracy.mean, card.cost)
            steps.append(Candidate(step.extension, accuracy, step.p50_ms, cost))
        return Way(arm.plan, tuple(steps), arm.accuracy, arm.p50_ms, arm.cost)

    def _same(self, arms: tuple[Arm, ...], plans: Sequence[Plan]) -> tuple[Arm, ...]:
        """The tuple that equal arms had before: policies recognise them by identity."""
        if len(self._arms) >= MOST_ARMS + 2 * len(self._choosers):
            offers = [chooser.offer for chooser in self._choosers]  # these may be asked for still
            self._arms = {theirs: theirs for theirs, _ in offers}
            self._by_plan = {arm.plan: (arm, plan) for offer in offers for arm, plan in zip(*offer, strict=True)}
        for arm, plan in zip(arms, plans, strict=True):
            self._by_plan[arm.plan] = arm, plan
        return self._arms.setdefault(arms, arms)

    # ------------------------------------------------------------------------------------------------- the rules

    def _concerning(self, goal: str, terms: Terms) -> tuple[Rule, ...]:
        """Rules at a segment concern who would be in it, by user or by tags, whether or not it is learned of yet."""
        if not self._rules.rules:
            return ()
        found: dict[Rule, None] = {}
        for segment in (of_tags(terms.tags), *([of_user(terms.user)] if terms.user else [])):
            found.update(dict.fromkeys(self._rules.concerning(goal, segment, terms.user)))
        return tuple(found)

    def _allowed(self, plans: PlanSet, rules: Sequence[Rule], without: PlansWithout) -> PlanSet:
        """Plans without the extensions that are excluded, also as stand-ins; and with one that is pinned, where there
        are such. Raises NoPlan."""
        used = {id_ for plan in plans.plans for step in plan.steps for id_ in (step.extension, *step.fallbacks)}
        hidden = self._engine().withheld - used
        pins = [rule for rule in rules if rule.verb == "pin" and rule.of_extensions]
        wanted: list[ExtensionId] = []
        if pins and not any(rule.matches("", self._ids(plan)) for rule in pins for plan in plans.plans):
            cards = self._engine().catalogue.cards
            wanted = [id_ for id_ in cards if id_ not in hidden and any(rule.matches("", (id_,)) for rule in pins)]
        for must_use in wanted[:MOST_PINNED]:
            found = without(hidden, must_use)
            if found is not None:
                with suppress(NoPlan):
                    return self._without_excluded(found, rules, hidden, without, must_use)
        return self._without_excluded(plans, rules, hidden, without)

    def _without_excluded(
        self,
        plans: PlanSet,
        rules: Sequence[Rule],
        hidden: frozenset[ExtensionId],
        without: PlansWithout,
        must_use: ExtensionId | None = None,
    ) -> PlanSet:
        excluding = [rule for rule in rules if rule.verb == "exclude" and rule.of_extensions]
        avoid = hidden
        for _ in range(MOST_ROUNDS):
            hit = {
                id_
                for plan in plans.plans
                for step in plan.steps
                for id_ in (step.extension, *step.fallbacks)
                if any(rule.matches("", self._with_parts(id_)) for rule in excluding)
            }
            if not hit:
                return plans
            avoid |= hit
            others = without(avoid, must_use)
            if others is None:
                break
            plans = others
        said = ", ".join([f"'{rule}'" for rule in excluding])
        raise NoPlan(f"all plans are excluded by rule: {said[:400]}.", hint="Take back one of the rules.")

    def _ids(self, plan: Plan) -> tuple[ExtensionId, ...]:
        return tuple([id_ for used in plan.extensions() for id_ in self._with_parts(used)])

    def _with_parts(self, id_: ExtensionId) -> tuple[ExtensionId, ...]:
        card = self._engine().catalogue.cards.get(id_)
        return (id_,) if card is None else (id_, *parts_of(card))

    # --------------------------------------------------------------------------------------------------- following

    async def start(self) -> None:
        """Fetches what is known, if the ledger answers, and follows it until `stop`."""
        await self._try_to_hear()
        self._task = asyncio.get_running_loop().create_task(
            self._follow(), name="choice-follower", context=contextvars.Context()
        )

    def alive(self) -> bool:
        """Whether somebody keeps this up to date."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Ends the following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def hear(self) -> None:
        """Takes in what is new: what was learned, and the rules. Raises what the ledger raises."""
        await self.hear_rules()
        heard = self._heard
        news: News = await self._ledger.learned(ChoiceLearner.name, "since", heard.life, heard.version)
        gone = self._unknown_to(news.segments) if news.whole else []
        for k, rows in enumerate([*gone, *news.segments]):
            self.posteriors.show(rows)
            if k % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        if gone or news.segments:
            self.version += 1
        self._heard = News(news.life, news.version)
        if self._learns:
            results = self._results
            results = await self._ledger.learned(ChoiceLearner.name, "results", results.life, results.number)
            self._results = Results(results.life, results.number, ())
            self._unheard.extend(results.heard)
            self.teach()

    def teach(self) -> None:
        """Lets the policy learn from the results that it can: those of plans and segments it has chosen for."""
        for _ in range(len(self._unheard)):
            one = self._unheard.popleft()  # first, so that what the policy fails at does not come again
            known = self._by_plan.get(one.plan)
            if known is None or (one.goal, one.segment) not in self._taught:
                self._unheard.append(one)
            else:
                context = Context(one.goal, one.segment, (), self.objective_of(one.goal))
                self.policy.learn(context, known[0], one.result)

    def begin(self, context: Context, arms: tuple[Arm, ...]) -> None:
        """There are choices for a segment from now on."""
        key = context.goal, context.segment
        if not self._learns or key in self._taught:
            return
        if len(self._taught) >= MOST_ARMS:
            self._taught.clear()
        self.policy.choose(context, arms, self.rng, self.clock())  # only now does it know the arms
        self._taught.add(key)
        self.teach()

    async def hear_rules(self) -> None:
        """From the next request on, the rules hold as the ledger has them. Raises what the ledger raises."""
        stored = await self._ledger.rules()
        if stored != self._stored:
            self._stored, self._rules = stored, Rules(tuple([one.rule for one in stored]))
            self._engine().choose_anew()

    def _unknown_to(self, segments: Iterable[SegmentRows]) -> list[SegmentRows]:
        """The segments that are not among those, with nothing in them."""
        known = {(rows.goal, rows.segment) for rows in segments}
        mine = [(rows.goal, rows.segment) for rows in self.posteriors.all_rows()]
        return [SegmentRows(*key) for key in mine if key not in known]

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(POLL_S)
            await self._try_to_hear()

    async def _try_to_hear(self) -> None:
        """Without news, for whatever reason, what is known goes on counting; that is logged once while it lasts."""
        try:
            await self.hear()
            self._failing = None
        except Exception as error:
            if type(error) is not self._failing:
                is_ours = isinstance(error, FenixError)
                _log.warning("no news of what serves best: %r", error, exc_info=not is_ours)
            self._failing = type(error)


_FIRST = Prior()


class _PolicyChooser:
    """Chooses for one convoy."""

    __slots__ = (
        "__weakref__",
        "_arms",
        "_because",
        "_chosen",
        "_contexts",
        "_goal",
        "_home",
        "_objective",
        "_plans",
        "_policy",
        "_segment",
        "_terms",
        "_version",
        "usual",
    )

    def __init__(
        self,
        home: Choosing,
        policy: Policy,
        goal: str,
        terms: Terms,
        plans: tuple[Plan, ...],
        arms: tuple[Arm, ...],
        rules: Sequence[Rule],
    ) -> None:
        """`arms[k]` is `plans[k]`; one of them at least is open."""
        self._home, self._policy, self._goal, self._terms = home, policy, goal, terms
        self._plans, self._arms = plans, arms
        self._because = f"by rule {', '.join([str(rule) for rule in rules])[:200]}: " if rules else ""
        self._objective = home.objective_of(goal)
        self._chosen: dict[tuple[int, tuple[float, ...]], Chosen] = {}
        self._contexts: dict[tuple[int, float], Context] = {}
        self._segment, self._version = "", -1
        pinned = [k for k, arm in enumerate(arms) if arm.pinned and not arm.excluded]
        self.usual = plans[(pinned or [k for k, arm in enumerate(arms) if not arm.excluded])[0]]
        self.choose(0)  # so that `usual` is what serves mostly

    @property
    def offer(self) -> tuple[tuple[Arm, ...], tuple[Plan, ...]]:
        """What it chooses among."""
        return self._arms, self._plans

    def choose(self, n_requests: int) -> Chosen:
        """See `planner.choosing.Chooser`."""
        home = self._home
        try:
            if home.version != self._version:
                self._renew()
            load = 0.0 if home.load is None else round(home.load(), 1)
            context = self._contexts.get((n_requests, load)) or self._context(n_requests, load)
            choice = self._policy.choose(context, self._arms, home.rng, home.clock())
            return self._chosen.get((choice.arm, choice.propensities)) or self._made(choice)
        except Exception:
            _log.exception("the %s policy could not choose; the planner's first plan is taken", self._policy.name)
            return Chosen(self.usual, self._others(self._plans.index(self.usual)))

    def _renew(self) -> None:
        """Something new is known; perhaps of this user for the first time."""
        self._version = self._home.version
        segment = self._home.segment_of(self._goal, self._terms)
        if segment != self._segment:
            self._segment = segment
            self._contexts.clear()
        if self._policy is self._home.policy:
            self._home.begin(self._context(0, 0.0), self._arms)

    def _context(self, n_requests: int, load: float) -> Context:
        features: tuple[float, ...] = ()
        if self._home.load is not None:
            slack = 0.0 if self._terms.deadline_ms is None else math.log1p(self._terms.deadline_ms)
            features = math.log1p(n_requests), 0.0, 0.0, 0.0, slack, load
        made = Context(self._goal, self._segment, features, self._objective, n_requests)
        self._contexts[n_requests, load] = made
        return made

    def _made(self, choice: Choice) -> Chosen:
        if len(self._chosen) >= MOST_CHOSEN:
            self._chosen.clear()
        propensities = choice.propensities
        considered = tuple([(plan.id, min(1.0, p)) for plan, p in zip(self._plans, propensities, strict=True)])
        self.usual = self._plans[max(range(len(propensities)), key=propensities.__getitem__)]
        made = Chosen(
            self._plans[choice.arm], self._others(choice.arm), considered, reason=self._because + choice.reason
        )
        self._chosen[choice.arm, propensities] = made
        return made

    def _others(self, arm: int) -> tuple[Plan, ...]:
        """Who may take over: never what is excluded, and first what is pinned."""
        others = [k for k in range(len(self._arms)) if k != arm and not self._arms[k].excluded]
        return tuple([self._plans[k] for k in sorted(others, key=lambda k: not self._arms[k].pinned)])


def choosing_of(
    options: ChoiceOptions,
    engine: Callable[[], Engine],
    ledger: Ledger,
    load: Callable[[], float],
) -> Choosing:
    """As the settings want it. Where the controller's weights cannot be read it is the default policy, with a warning:
    a file that is gone is no reason not to serve."""
    posteriors = Posteriors()
    weights: Weights | None = None
    if options.policy == "controller":
        try:
            weights = load_weights(Path(options.weights))
        except ArtifactRefused as error:
            _log.warning("%s The %s policy chooses instead, until a gateway starts anew.", error.text(), DEFAULT_POLICY)
    policy: Policy
    if options.policy == "thompson" or (options.policy == "controller" and weights is None):
        policy = Thompson(posteriors, share=options.share, burst=options.burst)
    elif options.policy == "greedy":
        policy = EpsilonGreedy(posteriors, epsilon=options.share)
    elif options.policy == "exp3":
        policy = Exp3(mixing=options.share)
    elif options.policy == "exp4":
        policy = Exp4(mixing=options.share)
    elif weights is not None:
        policy = Controller(weights, lambda arm: made.way_of(arm), mixing=options.share)
    else:
        policy = Prior()
    made = Choosing(engine, ledger, policy, posteriors, load=None if weights is None else load)
    return made
