"""Words for what planning found: why a plan won, why another lost, and what is missing where there is none."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.errors import NoPlan, TermsUnmet
from planner.features import Feature, is_a
from planner.goals import Objective, Terms
from planner.index import Index
from planner.plans import Plan, PlanRequest, Prediction
from planner.search import Problem

MOST_NAMED = 4  # extensions of a plan in a sentence


def figures(prediction: Prediction) -> str:
    """`97.1 % accuracy at 3.2 ms and cost 1.2`."""
    return (
        f"{percent(prediction.accuracy)} accuracy at {number(prediction.p50_ms)} ms and cost {number(prediction.cost)}"
    )


def percent(share: float, digits: int = 4) -> str:
    return f"{100 * share:.{max(digits, 4)}g} %"


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}" if abs(value) < 10**digits else f"{value:.0f}"


def chain_of(plan: Plan) -> str:
    """The extensions of a plan in the order in which they run; the middle of a long one is only counted."""
    names: list[str] = list(plan.extensions())
    if len(names) > MOST_NAMED + 1:
        half = MOST_NAMED // 2
        names[half:-half] = [f"({len(names) - 2 * half} more)"]
    return " -> ".join(names) or "nothing to run"


def listed(facts: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(facts[:-1]), facts[-1]] if len(facts) > 1 else facts)


def reason(plan: Plan, good: Sequence[Plan], n_found: int, stopped: str) -> str:
    """Why a plan among the good ones (best first) has its place; `stopped` says why the search ended early, if so."""
    best, text = good[0], figures(plan.prediction)
    if plan is not best:
        return f"{text}: beside the best, it {difference(plan, best)}"
    if n_found == 1:
        text += ": the only plan found" if stopped else ": the only plan"
    elif len(good) == 1:
        text += f": the only one of {n_found} plans within the terms"
    else:
        text += f": best of {n_found}; next best {difference(good[1], best)}"
    return f"{text}; the search was not finished: {stopped}" if stopped else text


def difference(loser: Plan, winner: Plan) -> str:
    """In what a plan falls behind another, and what one gets for it: `costs 3.1 more for 0.2 points of accuracy`.

    Of equals, in what they differ all the same: `scores the same: 2.1 ms slower at p99, 0.08 cheaper`.
    """
    if math.isclose(loser.score, winner.score, rel_tol=1e-9, abs_tol=1e-12):
        return f"scores the same{_apart(loser, winner)}"
    a, b = loser.prediction, winner.prediction
    worse, better = list[str](), list[str]()
    for now, then, more, less in (
        (a.cost, b.cost, "costs {} more", "{} less cost"),
        (a.p50_ms, b.p50_ms, "takes {} ms more", "{} ms less"),
        (100 * b.accuracy, 100 * a.accuracy, "is {} points less accurate", "{} points of accuracy"),
    ):
        if _differ(now, then):
            (worse if now > then else better).append((more if now > then else less).format(number(abs(now - then))))
    if not worse:
        return f"scores {number(loser.score - winner.score)} worse"
    return listed(worse) + (f" for {listed(better)}" if better else "")


def _apart(loser: Plan, winner: Plan) -> str:
    """In what two plans with the same score differ."""
    a, b = loser.prediction, winner.prediction
    late = _differ(a.p99_ms, b.p99_ms)
    facts = [
        (up if now > then else down).format(number(abs(now - then)))
        for now, then, up, down in (
            (a.p99_ms, b.p99_ms, "{} ms slower at p99", "{} ms faster at p99"),
            (b.p50_ms if late else a.p50_ms, b.p50_ms, "{} ms slower", "{} ms faster"),
            (a.cost, b.cost, "{} dearer", "{} cheaper"),
            (100 * a.accuracy, 100 * b.accuracy, "{} points more accurate", "{} points less accurate"),
        )
        if _differ(now, then)
    ]
    more = len(loser.steps) - len(winner.steps)
    if more:
        facts.append(f"{abs(more)} step{'s' if abs(more) > 1 else ''} {'longer' if more > 0 else 'shorter'}")
    if facts:
        return f": {listed(facts)}"
    others = [id_ for id_ in loser.extensions() if id_ not in winner.extensions()]
    instead = [id_ for id_ in winner.extensions() if id_ not in loser.extensions()]
    return f" with {listed(others)} instead of {listed(instead)}" if others and instead else ", wired another way"


def _differ(a: float, b: float) -> bool:
    return not math.isclose(a, b, rel_tol=1e-4, abs_tol=1e-9)


def breach(plan: Plan, request: PlanRequest, index: Index) -> str:
    """Which of the request's terms a plan breaks, with figures; "" when it keeps them all."""
    terms, p = request.terms, plan.prediction
    for id_ in plan.extensions():
        card = index.cards[index.position[id_]]
        if not card.sees(terms.tags):
            hidden = sorted(tag for tag in terms.tags if not card.sees(frozenset({tag})))
            return f"{id_} is not allowed to see tag {', '.join(hidden)}"
    return next((term.breach(p, terms) for term in TERMS if not term.kept(p, terms)), "")


@dataclass(frozen=True, slots=True)
class Term:
    """One hard term: how a prediction is held against it, and the objective that comes nearest to it."""

    name: str  # in Terms
    superlative: str
    objective: Objective
    limit_name: str  # in Limits
    amount: Callable[[Prediction], float]  # the smaller the better
    said: Callable[[float, int], str]  # an amount with so many digits
    breach_of: str
    slow: bool = False  # whether p99 counts instead of p50

    def limit(self, terms: Terms) -> float | None:
        """The limit on `amount`; None when the term is not given."""
        value: float | None = getattr(terms, self.name)
        return -value if value is not None and self.name == "min_accuracy" else value

    def kept(self, prediction: Prediction, terms: Terms) -> bool:
        limit = self.limit(terms)
        # Sums of the same numbers in another order may differ in the last digits; that alone breaks no term.
        return limit is None or self.amount(prediction) <= limit + 1e-9 * abs(limit) + 1e-12

    def breach(self, prediction: Prediction, terms: Terms) -> str:
        amount, limit = self.beside(prediction, terms)
        return f"{self.breach_of} {amount} {'<' if self.name == 'min_accuracy' else '>'} {limit}"

    def beside(self, prediction: Prediction, terms: Terms) -> tuple[str, str]:
        """The amount that breaks the limit and the limit, with as many digits as it takes to tell them apart."""
        limit = self.limit(terms)
        assert limit is not None
        texts = [(self.said(self.amount(prediction), digits), self.said(limit, digits)) for digits in (3, 5, 7, 9)]
        return next((pair for pair in texts if pair[0] != pair[1]), texts[-1])


TERMS = (
    Term(
        "deadline_ms",
        "fastest",
        Objective(0.0, 1.0, 0.0),
        "p99_ms",
        lambda p: p.p99_ms,
        lambda ms, digits: f"{number(ms, digits)} ms",
        "misses the deadline: p99",
        slow=True,
    ),
    Term(
        "max_cost",
        "cheapest",
        Objective(0.0, 0.0, 1.0),
        "cost",
        lambda p: p.cost,
        number,
        "costs too much:",
    ),
    Term(
        "min_accuracy",
        "most accurate",
        Objective(1.0, 0.0, 0.0),
        "loss",
        lambda p: -p.accuracy,
        lambda share, digits: percent(-share, digits),
        "is not accurate enough:",
    ),
)


def unreachable(term: Term, terms: Terms, best: Plan, others: Sequence[Term], proven: bool) -> TermsUnmet:
    """The error that names a term, the best value that can be had (within the other terms) and its plan."""
    within = f" within {listed([_asked(other, terms) for other in others])}" if others else ""
    reached = f"{'a p99 of ' if term.slow else ''}{term.beside(best.prediction, terms)[0]}"
    which = f"{term.superlative}{'' if proven else ' found'}"
    return TermsUnmet(
        f"no plan keeps {_asked(term, terms)}{within}: the {which} reaches {reached} "
        f"({chain_of(best)}; {figures(best.prediction)}).",
        hint=f"Loosen {' or '.join([term.name, *[other.name for other in others]])}.",
    )


def unreachable_together(terms: Terms, asked: Sequence[Term], plans: Sequence[Plan], stopped: str) -> TermsUnmet:
    """The error for terms of which each can be kept alone, but not all (or not all but one) at once."""
    best = plans[0]
    keeps = "was found that keeps" if stopped else "keeps"
    early = f" (the search was not finished: {stopped})" if stopped else ""
    together = f"{listed([_asked(term, terms) for term in asked])}{' together' if len(asked) > 1 else ''}"
    broken = next((term for term in asked if not term.kept(best.prediction, terms)), asked[0])
    return TermsUnmet(
        f"no plan {keeps} {together}{early}: the best plan without terms {broken.breach(best.prediction, terms)} "
        f"({chain_of(best)}; {figures(best.prediction)}).",
        hint=f"Loosen {' or '.join(term.name for term in asked)}.",
    )


def _asked(term: Term, terms: Terms) -> str:
    return f"{term.name} {getattr(terms, term.name):g}"


def no_plan(problem: Problem) -> NoPlan:
    """The error for a request that no plan answers, terms aside: what is missing, and what comes near."""
    index, request = problem.index, problem.request
    if request.must_use is not None and request.must_use not in index.position:
        return NoPlan(f"no plan can use {request.must_use}: the catalogue does not have it.")
    have = ", ".join(f"`{port.feature.type}`" for port in request.inputs) or "nothing"
    n = len(index.needs)
    for i, port in enumerate(request.wanted):
        if problem.need(n + i).score < math.inf:
            continue
        near = _near(problem, port.feature, n + i)
        message = f"nothing produces `{port.feature.type}` from {have}"
        return NoPlan(
            f"{message}; nearest: {near}." if near else f"{message}.",
            hint="Register an extension that gives it, or send more inputs.",
        )
    if request.must_use is not None:
        return NoPlan(
            f"no plan from {have} can use {request.must_use}.",
            hint="It is avoided, may not be reached from these inputs, or leads to nothing that is wanted.",
        )
    wanted = ", ".join(f"`{port.feature.type}`" for port in request.wanted)
    return NoPlan(
        f"nothing produces {wanted} from {have}: some extension needs the same feature from two different sources.",
        hint="Send more inputs, or register another extension that gives the feature.",
    )


def _near(problem: Problem, feature: Feature, need: int) -> str:
    """The nearest thing to a feature that cannot be made: an extension that lacks an input, or a similar type."""
    index = problem.index
    lacking = _lacking(problem, need)
    if lacking:
        return lacking
    if not index.outs_for(feature):
        shaped = sorted({str(out) for out in index.outs_of_type(feature.type)})
        if shaped:
            return f"{', '.join(f'`{s}`' for s in shaped[:3])}, where `{feature}` is wanted"
    near = index.types.near(feature.type, [port.feature.type for port in problem.request.inputs])
    return ", ".join(f"`{type_}`" for type_ in near)


def _lacking(problem: Problem, need: int) -> str:
    """Follows the extensions that would give a need down to the first thing that is really missing."""
    index = problem.index
    first = barred = ""
    seen: set[int] = set()
    while True:
        seen.add(need)
        short: list[tuple[bool, int, int, int]] = []
        for card in problem.cards_giving(need):
            if not problem.usable[card]:
                barred = barred or _barred(problem, int(card))
                continue
            missing = [m for m in index.card_needs[card] if problem.need(m).score == math.inf]
            if missing:
                deeper = any(problem.usable[problem.cards_giving(missing[0])])
                short.append((deeper, len(missing), int(card), missing[0]))
        if not short:
            return barred
        deeper, _, card, lacked = min(short)
        if not first:
            first = f"{index.names[card]} would produce it but lacks {_lacked(problem, lacked)}"
        elif (not deeper or lacked in seen) and index.needs[lacked][0].type not in first:
            first += f", for which {index.names[card]} lacks {_lacked(problem, lacked)}"
        if not deeper or lacked in seen:
            return f"{first}; {barred}" if barred else first
        need = lacked


def _lacked(problem: Problem, need: int) -> str:
    """A need that nothing meets, and what comes close: a chain rule or a shape that stands in the way."""
    feature, rule = problem.index.needs[need]
    for out in problem.index.outs_for(feature):
        giver = problem.index.cards[problem.index.cards_of_out.of_node(out)[0]]
        if not rule.permits(giver.name, giver.version):
            return f"`{feature.type}` (it may not follow {giver.id}, which gives it)"
    for port in problem.request.inputs:
        if is_a(port.feature.type, feature.type):
            return f"`{feature}` (the request brings `{port.feature}`)"
    return f"`{feature.type}`"


def _barred(problem: Problem, card: int) -> str:
    name, request = problem.index.names[card], problem.request
    if name in request.avoid:
        return f"{name} would, but is to be avoided"
    if card in problem.index.combiners:
        return f"{name} would, but needs two different sources of its inputs"
    return f"{name} would, but is not allowed to see tag {', '.join(sorted(request.terms.tags))}"
