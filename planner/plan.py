"""Planning: from a request and a catalogue to the best plans, with what they promise and why they won.

Base plans come from `planner/search.py`; cascades and ensembles around them from `planner/compose.py`; all of them
are predicted by `planner/estimates.py`, held against the terms, and ranked by the request's objective.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import blake2s

from planner import explain
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.compose import composites
from planner.drafts import Draft
from planner.errors import NoPlan, TermsUnmet
from planner.estimates import predict, shares_of_rows, step_p50_ms, step_p99_ms
from planner.features import Feature, Port
from planner.index import Index, index_of
from planner.plans import REQUEST, Binding, Plan, PlanKind, PlanRequest, PlanSet, Rejected, Step
from planner.search import Budget, Limits, Problem, State, search

__all__ = ["Budget", "plan", "usual_budget"]

MOST_REJECTED = 8
MOST_FALLBACKS = 3
EXPLAINING = 1.5  # budgets from the start, within which the search for the best reachable values of terms may begin
_SMALL = 200  # extensions; below, a search mostly ends by itself and is limited only as a precaution
_MEDIUM = 5000  # extensions; above, a second set of bounds just to explain the losers would cost too much
_LARGE = 20_000  # extensions; above, bounds on the terms are computed only where the search needs them


def usual_budget(n_extensions: int) -> Budget:
    """The default: enough to prove the best plans of an ordinary catalogue, and always bounded in time.

    In a small one with very many ways to the same end, or terms that nothing keeps, the proof could take a second.
    """
    if n_extensions <= _SMALL:
        return Budget(max_ms=50.0, max_expansions=20_000, max_more=200)
    return Budget(max_ms=0.8 + n_extensions / 50_000, max_more=50)


def plan(
    request: PlanRequest,
    catalogue: Catalogue,
    *,
    k: int = 3,
    budget: Budget | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> PlanSet:
    """The `k` best plans within the terms, best first, and the losers with why they lost.

    Base plans differ in the extensions they use; of the same extensions only the best wiring counts. `budget` None
    is `usual_budget`, `Budget()` is none: the search then runs until its plans are proven best. `clock` gives
    seconds. The first call for a snapshot also builds its index.

    Raises NoPlan when nothing leads from the inputs to what is wanted (naming what is missing) and TermsUnmet when
    plans exist, but none within the terms (naming the term, the best reachable value and the plan that reaches it).
    """
    index = index_of(catalogue)
    started_s = clock()
    planning = _Planning.of(index, request, catalogue.cards, budget or usual_budget(len(index.cards)), clock)
    problem = Problem(index, request, Limits.of(request), thorough=planning.thorough)
    stop_s = planning.from_now_s(1.0)
    wide = max(k, 3)  # a lone best plan could not say what it beat
    # What would win without the terms: mostly it keeps them. Else it shows what they cost, and a cascade may bring it
    # within them.
    free = problem.without_limits()
    found = unbound = search(free, wide, planning.budget.part(0.5), clock)
    expanded = found.expanded
    if not all(problem.limits.kept(state) for state in unbound.states):
        problem.sharpen(unbound.states[0])
        found = search(problem, wide, planning.budget.part(0.5), clock)
        expanded += found.expanded
    stopped = found.stopped
    unmarked = planning.without_tags(bool(found.states))
    if unmarked is not None:
        free = unmarked
        unbound = search(free, wide, planning.budget.part(0.2 if found.states else 0.5), clock)
        expanded += unbound.expanded
        stopped = stopped or ("" if found.states else unbound.stopped)
    known = {state.cards() for state in found.states}
    others = [state for state in unbound.states if state.cards() not in known]
    states = [*found.states, *others]
    if not states and index.combiners:
        # Perhaps only a combiner gives what is wanted; to the search it is an extension that takes two sources.
        free = Problem(index, request, Limits(), combiners=True, thorough=planning.thorough)
        joined = search(free, wide, planning.budget.part(0.5), clock)
        states, expanded, stopped = joined.states, expanded + joined.expanded, joined.stopped
    if not states:
        if stopped:
            raise NoPlan(f"the search found no plan before {stopped}.", hint="Give it a larger budget.")
        raise explain.no_plan(free)

    drafts = [(Draft.of(state, index, request), planning.kind_of(state)) for state in states]
    seeds = [state for state in (*found.states[:k], *others[:k]) if problem.may_run(state)]
    drafts += composites(problem if seeds else free, seeds or states[:k], problem.limits, lambda: clock() >= stop_s)
    made = {p.id: p for p in (planning.finished(*draft) for draft in drafts)}
    plans = sorted([p for p in made.values() if planning.serves(p)], key=_rank)
    breaches = {p.id: explain.breach(p, request, index) for p in plans}
    good = [p for p in plans if not breaches[p.id]]
    if not good:
        good = [planning.saved(problem, plans, stopped)]
        plans.append(good[0])
    best = good[0]
    rejected = [Rejected(p, breaches[p.id] or explain.difference(p, best)) for p in plans if p not in good[:k]]
    return PlanSet(
        plans=tuple(
            [
                planning.equipped(replace(p, reason=explain.reason(p, good, len(plans), stopped)), problem)
                for p in good[:k]
            ]
        ),
        rejected=tuple(rejected[:MOST_REJECTED]),
        epoch=catalogue.epoch,
        complete=not stopped,
        expanded=expanded,
        elapsed_ms=(clock() - started_s) * 1e3,
    )


def _rank(plan: Plan) -> tuple[float, float, int, float, str]:
    """By score; between equals by p99, then fewer steps, then cost."""
    p = plan.prediction
    return _about(plan.score), _about(p.p99_ms), len(plan.steps), _about(p.cost), plan.id


def _about(value: float) -> float:
    """To nine digits: sums of the same numbers in another order are equal."""
    return float(f"{value:.9g}")


@dataclass(frozen=True, slots=True)
class _Planning:
    """What the steps of one planning share."""

    index: Index
    request: PlanRequest
    cards: Mapping[ExtensionId, Card]
    budget: Budget
    clock: Callable[[], float]
    thorough: bool  # whether there is time to bound everything
    explain_until_s: float  # on the clock; later, a refusal says no more than what is known by then

    @classmethod
    def of(
        cls,
        index: Index,
        request: PlanRequest,
        cards: Mapping[ExtensionId, Card],
        budget: Budget,
        clock: Callable[[], float],
    ) -> _Planning:
        until_s = math.inf if budget.max_ms is None else clock() + EXPLAINING * budget.max_ms / 1e3
        return cls(index, request, cards, budget, clock, len(index.cards) <= _LARGE, until_s)

    def from_now_s(self, share: float) -> float:
        """When, on the clock, a share of the budget will have ended."""
        return math.inf if self.budget.max_ms is None else self.clock() + share * self.budget.max_ms / 1e3

    def without_tags(self, found: bool) -> Problem | None:
        """The problem without its terms; None when its tags do not restrict it, or it is not worth the time to know."""
        tags = self.request.terms.tags
        if tags and (not found or len(self.index.cards) <= _MEDIUM) and self.index.seen(tags) is not None:
            return Problem(self.index, self.request, Limits(), tags=False, thorough=self.thorough)
        return None

    def kind_of(self, state: State) -> PlanKind:
        return "ensemble" if any(step.card in self.index.combiners for step in state.steps) else "graph"

    def finished(self, draft: Draft, kind: PlanKind) -> Plan:
        """The plan of a draft, with its predictions and its score."""
        request = self.request
        steps, outputs = draft.steps(self.index, request)
        prediction = predict(steps, outputs, self.cards, request.n_rows, request.kilo)
        score = request.objective.score(prediction.accuracy, prediction.p50_ms, prediction.cost)
        wiring = repr([(s.extension, s.inputs, s.guard) for s in steps] + [outputs])
        return Plan(blake2s(wiring.encode(), digest_size=6).hexdigest(), steps, outputs, prediction, score, kind)

    def serves(self, plan: Plan) -> bool:
        """Whether a composite kept the extension that has to be in the plan."""
        return self.request.must_use is None or self.request.must_use in plan.extensions()

    def equipped(self, plan: Plan, problem: Problem) -> Plan:
        """The plan with what its steps need at run time: expected times, budgets, and fallbacks."""
        n_rows, kilo, deadline_ms = self.request.n_rows, self.request.kilo, self.request.terms.deadline_ms
        shares = shares_of_rows(plan.steps, self.cards)
        steps = []
        for step in plan.steps:
            card, share = self.cards[step.extension], shares[step.id]
            budget_ms = None
            if deadline_ms is not None and plan.prediction.p99_ms > 0.0:
                budget_ms = deadline_ms * step_p99_ms(card, n_rows, kilo, share) / plan.prediction.p99_ms
            steps.append(
                replace(
                    step,
                    p50_ms=step_p50_ms(card, n_rows, kilo, share),
                    budget_ms=budget_ms,
                    fallbacks=self._fallbacks(plan, step, share, problem),
                )
            )
        return replace(plan, steps=tuple(steps))

    def _fallbacks(self, plan: Plan, step: Step, share: float, problem: Problem) -> tuple[ExtensionId, ...]:
        """Other extensions with the same ports that could do this step in this plan, best first."""
        index, request, own = self.index, self.request, self.cards[step.extension]
        by_id = {s.id: s for s in plan.steps}
        fed: list[tuple[str, Feature, Card | None]] = []  # our port, what comes in, and from which extension
        for binding in step.inputs:
            for source in binding.sources:
                giver = None if source.step == REQUEST else self.cards[by_id[source.step].extension]
                fed.append((binding.port, _feature(giver.outputs if giver else request.inputs, source.port), giver))
        takers: list[tuple[str, Feature, Card | None, int]] = []  # our port, what is wanted, by which extension, need
        for taker, binding in _bindings(plan):
            for source in binding.sources:
                if source.step == step.id:
                    card = self.cards[taker.extension] if taker else None
                    ports = index.ports(index.position[card.id]) if card else request.wanted
                    at = next(i for i, port in enumerate(ports) if port.name == binding.port)
                    need = index.card_needs[index.position[card.id]][at] if card else len(index.needs) + at
                    takers.append((source.port, ports[at].feature, card, need))
        in_plan = set(plan.extensions())
        ports_fed = {port for port, _, _ in fed}

        def fits(card: Card) -> bool:
            if card.id in in_plan or len(card.inputs) != len(ports_fed):
                return False
            inputs = {port.name: port for port in card.inputs}
            outputs = {port.name: port.feature for port in card.outputs}
            return (
                inputs.keys() == ports_fed
                and all(port.many == 1 for port in card.inputs)
                and all(
                    inputs[port].feature.accepts(feature)
                    and (giver is None or card.after.permits(giver.name, giver.version))
                    for port, feature, giver in fed
                )
                and all(
                    port in outputs
                    and feature.accepts(outputs[port])
                    and (taker is None or taker.after.permits(card.name, card.version))
                    for port, feature, taker, _ in takers
                )
                and self._keeps_terms(plan, own, card, share)
            )

        candidates = problem.givers(takers[0][3])[0][:32]
        fitting = [c for c in candidates if fits(index.cards[c])]
        fitting.sort(key=lambda c: problem.card(c).score + problem.latency_weight * problem.card(c).p50_ms)
        return tuple([index.names[c] for c in fitting[:MOST_FALLBACKS]])

    def _keeps_terms(self, plan: Plan, own: Card, other: Card, share: float) -> bool:
        """Whether cost and accuracy stay within the terms when `other` does what `own` was to do."""
        terms, p = self.request.terms, plan.prediction
        if terms.max_cost is not None and p.cost + share * (other.cost - own.cost) > terms.max_cost * (1 + 1e-9):
            return False
        if terms.min_accuracy is None or own.accuracy.mean == 0.0:
            return True
        return p.accuracy * other.accuracy.mean / own.accuracy.mean >= terms.min_accuracy * (1 - 1e-9)

    def saved(self, problem: Problem, plans: Sequence[Plan], stopped: str) -> Plan:
        """A plan that keeps the terms after all, met on the way to the best that can be had of each term.

        `problem` is the one with all terms, `plans` are those that were found, each outside some term. Raises
        TermsUnmet, naming the term that stands in the way, when it meets none.
        """
        terms, index = self.request.terms, self.index
        visible = [p for p in plans if all(self.cards[id_].sees(terms.tags) for id_ in p.extensions())]
        if not visible:
            visible = self._plans(search(problem.without_limits(), 1, self.budget.part(0.5), self.clock).states)
        if not visible:
            plan = plans[0]
            raise TermsUnmet(
                f"plans exist, but none may see the tags of the data: {explain.breach(plan, self.request, index)} "
                f"(best plan without tags: {explain.chain_of(plan)}; {explain.figures(plan.prediction)}).",
                hint="Send the data without the tag, or register an extension that may see it.",
            )
        asked = [term for term in explain.TERMS if getattr(terms, term.name) is not None]
        for alone in (True, False) if len(asked) > 1 else (True,):
            for term in asked:
                others = [] if alone else [other for other in asked if other is not term]
                best, proven = self._reached(problem, term, others, visible)
                if best is None:
                    continue
                if all(other.kept(best.prediction, terms) for other in asked):
                    return best
                if not term.kept(best.prediction, terms):
                    raise explain.unreachable(term, terms, best, others, proven)
        raise explain.unreachable_together(terms, asked, visible, stopped)

    def _reached(
        self, problem: Problem, term: explain.Term, others: Sequence[explain.Term], known: Iterable[Plan]
    ) -> tuple[Plan | None, bool]:
        """The plan that is best by one term and keeps some others, if there was time to look for it, and whether it is
        proven that no plan without cascades is better."""
        terms, limit = self.request.terms, term.limit_name
        if self.thorough:
            if self.clock() > self.explain_until_s:
                return None, False
            request = replace(self.request, objective=term.objective)
            kept = {other.limit_name: getattr(problem.limits, other.limit_name) for other in others}
            extreme = Problem(self.index, request, Limits(**kept), slow=term.slow)
        else:
            toward = None if others else problem.toward(limit)
            if toward is None:
                return None, False
            extreme = toward
        found = search(extreme, 1, self.budget.part(0.2), self.clock)
        plans = self._plans(found.states)
        if found.states and len(self.index.cards) <= _SMALL:
            stop_s = self.from_now_s(0.2)
            drafts = composites(extreme, found.states, extreme.limits, lambda: self.clock() >= stop_s)
            plans += [p for p in (self.finished(*draft) for draft in drafts) if self.serves(p)]
        plans = [p for p in [*plans, *known] if all(other.kept(p.prediction, terms) for other in others)]
        best = min(plans, key=lambda p: term.amount(p.prediction), default=None)
        return best, found.complete and bool(found.states)

    def _plans(self, states: Iterable[State]) -> list[Plan]:
        return [self.finished(Draft.of(state, self.index, self.request), self.kind_of(state)) for state in states]


def _feature(ports: Iterable[Port], name: str) -> Feature:
    return next(port.feature for port in ports if port.name == name)


def _bindings(plan: Plan) -> Iterable[tuple[Step | None, Binding]]:
    """Every binding of a plan with the step that it feeds; None for the plan's own outputs."""
    for step in plan.steps:
        for binding in step.inputs:
            yield step, binding
    for binding in plan.outputs:
        yield None, binding
