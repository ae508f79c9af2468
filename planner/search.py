"""Base plans: the k best graphs of extensions from the request's features to the wanted ones, by A*.

The search goes backwards. A state is a plan in the making: steps, what feeds them so far, and the needs that nothing
feeds yet. Expanding a state takes one need and tries every source for it: an input of the request, a step that is
there already (a shared sub-result, paid once), or a new extension. Each plan is reached in exactly one way.

The bound of a state is the largest of several prices that every completion must pay: for each open need, the sum
along the steps behind it plus `h(need)` (`planner/bounds.py`); all steps so far plus the longest path through an open
need; and, while `must_use` is missing, the cheapest way to bring it in. So the bound is admissible, the first k
complete plans that beat the frontier are the k best, and on a chain the search walks straight to the goal.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np

from planner.bounds import Prices, lower_bounds_through
from planner.features import Port
from planner.goals import Objective
from planner.index import Bools, Floats, Index, Ints
from planner.plans import PlanRequest

Entry = tuple[int, int, int]  # an open need: position of the step, number of its input port, number of the need
GOAL = 0  # the step that stands for the wanted features in every state
FROM_REQUEST = -1
MOST_DEAD_ENDS = 6  # at which a greedy completion turns back
# How far the bounds reach where not all are settled: first to NEAR times the least price; four requests in five need no
# more. For the others to FAR times, so that dives choose among enough: over 100,000 extensions 235 plans of 240 are
# then as good as with all bounds or better, with 1.2 only 227. What lies behind is found out for one need in BEHIND:
# for twice as many it takes as much more time as it saves.
NEAR, FAR, BEHIND = 1.1, 1.3, 32
LEAST_EXPANSIONS = 32  # before time alone ends a search without a plan: a machine that hesitates must refuse nobody

# Placed, Bind and State are made by the thousand in a search: as named tuples in a third of the time of dataclasses.


@dataclass(frozen=True, slots=True)
class Budget:
    """How long planning may take; None is without limit. It returns the best plan found when any of these ends."""

    max_ms: float | None = None
    max_expansions: int | None = None
    max_more: int | None = None  # expansions for the runners-up, once the best plan is proven

    def part(self, share: float) -> Budget:
        """The same with a share of the time."""
        return self if self.max_ms is None else replace(self, max_ms=share * self.max_ms)


@dataclass(frozen=True, slots=True)
class Limits:
    """The hard terms in the form the search adds them up: p99 in ms, cost per row, -ln(accuracy)."""

    p99_ms: float = math.inf
    cost: float = math.inf
    loss: float = math.inf

    @classmethod
    def of(cls, request: PlanRequest) -> Limits:
        terms = request.terms
        return cls(
            math.inf if terms.deadline_ms is None else _loosely(terms.deadline_ms),
            math.inf if terms.max_cost is None else _loosely(terms.max_cost),
            _loosely(-math.log(terms.min_accuracy)) if terms.min_accuracy else math.inf,
        )

    def kept(self, state: State) -> bool:
        return state.p99_ms <= self.p99_ms and state.cost <= self.cost and state.loss <= self.loss


def _loosely(limit: float) -> float:
    # Sums of the same numbers in another order may differ in the last digits; that alone must not miss a term.
    return limit * (1 + 1e-9) + 1e-12


class Placed(NamedTuple):
    """One step of a state: its card and what lies between its start and the end of the plan.

    `below` are the steps that depend on it (bits by position); the sums are over those steps and itself, the times
    are the longest path from its start to the end.
    """

    card: int  # -1 for the goal
    below: int
    p50_ms: float
    p99_ms: float
    score: float
    cost: float
    loss: float


class Bind(NamedTuple):
    """Input `port` of the step at position `taker` is fed by output `out` of step `giver` (or of the request)."""

    taker: int
    port: int
    giver: int
    out: int


class State(NamedTuple):
    """A plan in the making; complete when no need is open."""

    steps: tuple[Placed, ...]
    binds: tuple[Bind, ...]
    open: tuple[Entry, ...]
    score: float  # summed over the steps, without latency
    cost: float
    loss: float
    p50_ms: float  # longest path so far
    p99_ms: float
    bound: float = 0.0
    hope: float = 0.0  # an estimate of the final score, not a bound; guides dives

    def cards(self) -> frozenset[int]:
        return frozenset([step.card for step in self.steps[1:]])

    def signature(self) -> tuple[frozenset[int], frozenset[tuple[int, int]]]:
        """The extensions and the open ports: states that share it differ in wiring alone."""
        return self.cards(), frozenset([(self.steps[taker].card, port) for taker, port, _ in self.open])

    def dominates(self, other: State) -> bool:
        """Whether whatever completes `other` completes this one too, at a score and a p99 that are no worse.

        Both have the same signature. True if no step lies further from the end or has more behind it (so that no
        sharing is barred here and allowed there), and no open step has used up other sources.
        """
        cards = [step.card for step in self.steps]
        place = {step.card: i for i, step in enumerate(other.steps)}
        for step in self.steps:
            twin = other.steps[place[step.card]]
            if step.p50_ms > twin.p50_ms or step.p99_ms > twin.p99_ms:
                return False
            if any(step.below >> i & 1 and not twin.below >> place[card] & 1 for i, card in enumerate(cards)):
                return False
        for taker in {taker for taker, _, _ in self.open} - {GOAL}:
            if not self._sources(taker) <= other._sources(place[cards[taker]]):
                return False
        return True

    def _sources(self, taker: int) -> set[tuple[int, int]]:
        """The sources that a step has used up, by card."""
        return {
            (FROM_REQUEST if bind.giver == FROM_REQUEST else self.steps[bind.giver].card, bind.out)
            for bind in self.binds
            if bind.taker == taker
        }


@dataclass(slots=True)
class Found:
    """What a search brings: complete states with different extensions, best first.

    `complete` says that the first is proven best (all k are, unless the budget ended while looking for the others).
    """

    states: list[State]
    complete: bool
    stopped: str  # why the search ended early, "" when it did not
    expanded: int
    root_bound: float


class _Need(NamedTuple):
    """What is known of a need: its lower bounds (that of the score up to the reach), and the request inputs that meet
    it."""

    score: float
    p50_ms: float
    p99_ms: float
    cost: float
    loss: float
    via: float
    given: tuple[int, ...]


class _Card(NamedTuple):
    score: float
    p50_ms: float
    p99_ms: float
    cost: float
    loss: float
    needs: tuple[int, ...]


@dataclass(slots=True)
class _Caches:
    needs: dict[int, _Need] = field(default_factory=dict)
    cards: dict[int, _Card] = field(default_factory=dict)
    givers: dict[int, tuple[list[int], list[float]]] = field(default_factory=dict)
    ports: dict[tuple[int, int], tuple[int, ...]] = field(default_factory=dict)


class Problem:
    """One request over one index: criteria, lower bounds, and the moves of the search."""

    def __init__(
        self,
        index: Index,
        request: PlanRequest,
        limits: Limits,
        *,
        tags: bool = True,
        combiners: bool = False,
        slow: bool = False,
        thorough: bool = True,
    ) -> None:
        """`tags` False forgets who may see the data; `combiners` lets the search use them, with two sources each;
        `slow` counts p99 as if it were the latency to be minimised; `thorough` False bounds the score alone and only
        as far as the search asks, which is admissible all the same and takes a fraction of the time, but sees late
        that a term will be missed."""
        self.index = index
        self.request = request
        self.limits = limits
        self.objective = request.objective
        self.slow = slow
        self.usable = self._usable(tags, combiners)
        self.must_use = -1 if request.must_use is None else index.position.get(request.must_use, -2)

        self._given: dict[int, list[int]] = {}
        for i, port in enumerate(request.inputs):
            for need in index.needs_met_by(port.feature):
                self._given.setdefault(need, []).append(i)
        self._goal_outs = [index.outs_for(port.feature) for port in request.wanted]
        self._goal_given = [
            tuple([i for i, port in enumerate(request.inputs) if wanted.feature.accepts(port.feature)])
            for wanted in request.wanted
        ]
        self._cache = _Caches()
        self._prices: dict[str, Prices] = {}
        self._bound(thorough)

    @property
    def latency_weight(self) -> float:
        """The objective's weight of a millisecond."""
        return self.objective.latency / 1e3

    @property
    def reach(self) -> float:
        """Up to which score the bounds of states are right. A state with a bound beyond may cost less than that, but
        more than the reach."""
        return self._prices["score"].reach

    def widen(self, reach: float) -> None:
        """Makes the bounds right up to a score."""
        self._prices["score"].settle(reach)
        self._cache.needs.clear()
        self._cache.givers.clear()

    def without_limits(self) -> Problem:
        """The same problem without deadline, cost and accuracy; shares all that was computed."""
        other = copy(self)
        other.limits = Limits()
        return other

    def without_must_use(self) -> Problem:
        """The same problem without the extension that has to be in the plan."""
        other = copy(self)
        other.must_use = -1
        return other

    def _usable(self, tags: bool, combiners: bool) -> Bools:
        index, request = self.index, self.request
        usable = np.ones(len(index.cards), np.bool_)
        if not combiners:
            usable[list(index.combiners)] = False
        seen = index.seen(request.terms.tags) if tags else None
        if seen is not None:
            usable &= seen
        usable[[index.position[id_] for id_ in request.avoid if id_ in index.position]] = False
        return usable

    def _bound(self, thorough: bool) -> None:
        if not thorough and self.must_use < 0:
            self._prices["score"] = self._near("score")
        else:
            self._prices["score"] = self._up_to("score", math.inf)  # an extension may be brought in from anywhere
        if thorough:
            if self.latency_weight:
                self._prices["p50_ms"] = self._up_to("p50_ms", math.inf)
            for name, limit in asdict(self.limits).items():
                if limit < math.inf:
                    self._prices[name] = self._up_to(name, limit)
        self._via = self._bound_via() if self.must_use >= 0 else None

    def sharpen(self, state: State) -> None:
        """Adds the bound on the limit that this state breaks most, so that the search keeps clear of it."""
        broken = {
            name: getattr(state, name) / limit
            for name, limit in asdict(self.limits).items()
            if name not in self._prices and limit < math.inf
        }
        worst = max(broken, key=lambda name: broken[name], default="")
        if worst and broken[worst] > 1.0:
            self._prices[worst] = self._near(worst)
            self._cache.needs.clear()

    def toward(self, limit: str) -> Problem | None:
        """The problem without limits in which only what this limit is on counts; None where that takes new bounds."""
        prices = self._prices.get(limit)
        if prices is None or self.must_use != -1:
            return None
        other = self.without_limits()
        other._prices, other._cache = {"score": prices}, _Caches()
        other.slow = limit == "p99_ms"
        other.objective = {
            "p99_ms": Objective(0.0, 1e3, 0.0),
            "cost": Objective(0.0, 0.0, 1.0),
            "loss": Objective(1.0, 0.0, 0.0),
        }[limit]
        return other

    def _rates(self, criterion: str) -> Floats:
        """By what a card's row of `Index.parts` is to be multiplied."""
        n_rows, kilo, objective = self.request.n_rows, self.request.kilo, self.objective
        p50_ms = np.array([1.0, n_rows, kilo, 0.0, 0.0, 0.0, 0.0, 0.0])
        p99_ms = np.array([0.0, 0.0, 0.0, 1.0, n_rows, kilo, 0.0, 0.0])
        cost = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0])
        loss = np.array([0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0])
        if self.slow:
            p50_ms = p99_ms
        if criterion == "score":
            return objective.accuracy * loss + objective.cost * cost + self.latency_weight * p50_ms
        return {"p50_ms": p50_ms, "p99_ms": p99_ms, "cost": cost, "loss": loss}[criterion]

    def _up_to(self, criterion: str, price: float) -> Prices:
        prices = self._unsettled(criterion)
        prices.settle(price)
        return prices

    def _near(self, criterion: str) -> Prices:
        """Prices of what plans need that cost little more than the least."""
        prices = self._unsettled(criterion, 1 + len(self.index.needs) // BEHIND)
        prices.settle(0.0, NEAR)
        return prices

    def _unsettled(self, criterion: str, n_behind: int = 0) -> Prices:
        given = np.fromiter(self._given, np.int64, len(self._given))
        met = [bool(inputs) for inputs in self._goal_given]
        return Prices(self.index, self._rates(criterion), self.usable, given, self._goal_outs, met, n_behind)

    def _bound_via(self) -> tuple[Floats, Floats]:
        """Lower bounds on the score of meeting a need, or of using a card, with `must_use` at or above it."""
        weight = np.where(self.usable, self.index.weights(self._rates("score")), np.inf)
        return lower_bounds_through(self.index, weight, self._prices["score"].of_cards(slice(None)), self.must_use)

    # What the search asks again and again is looked up once and kept as plain Python numbers.

    def need(self, need: int) -> _Need:
        found = self._cache.needs.get(need)
        if found is None:
            found = self._cache.needs[need] = self._wanted(need) if need >= len(self.index.needs) else self._asked(need)
        return found

    def _asked(self, need: int) -> _Need:
        """A need of extensions."""

        prices = self._prices
        p50_ms, p99_ms, cost, loss = [
            prices[name].at_least(need) if name in prices else 0.0 for name in ("p50_ms", "p99_ms", "cost", "loss")
        ]
        via = float(self._via[0][need]) if self._via else math.inf
        given = tuple(self._given.get(need, ()))
        return _Need(prices["score"].of_need(need), p50_ms, p99_ms, cost, loss, via, given)

    def _wanted(self, need: int) -> _Need:
        """A need of the request itself."""
        given = self._goal_given[need - len(self.index.needs)]
        cards = self.cards_giving(need)

        def least(criterion: str) -> float:
            prices = self._prices.get(criterion)
            if prices is None or given:
                return 0.0
            price = float(prices.of_cards(cards).min(initial=math.inf))
            return price if criterion == "score" else min(price, prices.reach)

        via = float(self._via[1][cards].min(initial=math.inf)) if self._via else math.inf
        return _Need(least("score"), least("p50_ms"), least("p99_ms"), least("cost"), least("loss"), via, given)

    def card(self, card: int) -> _Card:
        found = self._cache.cards.get(card)
        if found is None:
            call, row, kilo, slow_call, slow_row, slow_kilo, cost, loss = self.index.parts[:, card].tolist()
            request, objective = self.request, self.objective
            p99_ms = slow_call + slow_row * request.n_rows + slow_kilo * request.kilo
            p50_ms = p99_ms if self.slow else call + row * request.n_rows + kilo * request.kilo
            score = objective.accuracy * loss + objective.cost * cost
            found = self._cache.cards[card] = _Card(score, p50_ms, p99_ms, cost, loss, self.index.card_needs[card])
        return found

    def cards_giving(self, need: int) -> Ints:
        n = len(self.index.needs)
        outs = self.index.outs_of_need.of_node(need) if need < n else np.array(self._goal_outs[need - n], np.int64)
        cards = np.sort(self.index.cards_of_out.gather(outs)[0])
        new = np.ones(len(cards), np.bool_)  # a card may give a need by several outs; np.unique takes thrice the time
        np.not_equal(cards[1:], cards[:-1], out=new[1:])
        return cards[new]

    def givers(self, need: int) -> tuple[list[int], list[float]]:
        """The usable cards that give a need, and the lower bound of meeting it with each, ascending."""
        found = self._cache.givers.get(need)
        if found is None:
            cards = self.cards_giving(need)
            value = self._prices["score"].of_cards(cards)
            reachable = np.isfinite(value)
            cards, value = cards[reachable], value[reachable]
            order = np.argsort(value, kind="stable")
            found = self._cache.givers[need] = (cards[order].tolist(), value[order].tolist())
        return found

    def ports(self, need: int, card: int) -> tuple[int, ...]:
        """The output ports of a card that may meet a need."""
        key = (need, card)
        found = self._cache.ports.get(key)
        if found is None:
            n = len(self.index.needs)
            giver = self.index.cards[card]
            if need < n:
                feature, rule = self.index.needs[need]
                permitted = rule.permits(giver.name, giver.version)
            else:
                feature, permitted = self.request.wanted[need - n].feature, True
            found = tuple([i for i, p in enumerate(giver.outputs) if permitted and feature.accepts(p.feature)])
            self._cache.ports[key] = found
        return found

    def may_run(self, state: State) -> bool:
        """Whether the tags, what is avoided and what this problem leaves out permit all steps of a state."""
        return all(bool(self.usable[step.card]) for step in state.steps[1:])

    # Moves.

    def root(self) -> State | None:
        """The empty plan; None when its bound says that nothing can come of it."""
        n = len(self.index.needs)
        open_ = tuple([(GOAL, i, n + i) for i in range(len(self.request.wanted))])
        return self.bounded((Placed(-1, 0, 0.0, 0.0, 0.0, 0.0, 0.0),), (), open_, 0.0, 0.0, 0.0, 0.0, 0.0)

    def next_need(self, state: State) -> Entry:
        """The open need whose price is highest: what is decided first raises the bound most."""
        if len(state.open) == 1:
            return state.open[0]
        weight = self.latency_weight
        worst, chosen = -1.0, state.open[0]
        for entry in state.open:
            step = state.steps[entry[0]]
            price = step.score + weight * step.p50_ms + self.need(entry[2]).score
            if price > worst:
                worst, chosen = price, entry
        return chosen

    def from_there(self, state: State, entry: Entry) -> list[State]:
        """The states in which the need is fed by the request or by a step that is there already."""
        taker, _, need = entry
        used = {(b.giver, b.out) for b in state.binds if b.taker == taker} if taker != GOAL else set()
        children: list[State | None] = []
        given = self.need(need).given
        if given:
            name = self.port(state, entry).name
            # Among equals, the input that bears the port's own name is the likely one.
            for i in sorted(given, key=lambda i: self.request.inputs[i].name != name):
                if (FROM_REQUEST, i) not in used:
                    children.append(self.feed(state, entry, FROM_REQUEST, i))
        below = state.steps[taker].below | 1 << taker
        for giver in range(1, len(state.steps)):
            if not below >> giver & 1:
                for out in self.ports(need, state.steps[giver].card):
                    if (giver, out) not in used:
                        children.append(self.feed(state, entry, giver, out))
        return [child for child in children if child is not None]

    def port(self, state: State, entry: Entry) -> Port:
        """The input port (or wanted port) behind an open need."""
        card = state.steps[entry[0]].card
        return self.request.wanted[entry[1]] if card < 0 else self.index.ports(card)[entry[1]]

    def with_card(self, state: State, entry: Entry, card: int) -> list[State]:
        """The states in which the need is fed by a new step of that card; none when it is in the plan already."""
        if any(step.card == card for step in state.steps):
            return []
        children = [self.place(state, entry, card, out) for out in self.ports(entry[2], card)]
        return [child for child in children if child is not None]

    def place(self, state: State, entry: Entry, card: int, out: int) -> State | None:
        """The state in which output `out` of a new step of that card feeds the need."""
        taker, port, _ = entry
        after, new = state.steps[taker], self.card(card)
        position = len(state.steps)
        placed = Placed(
            card,
            after.below | 1 << taker,
            after.p50_ms + new.p50_ms,
            after.p99_ms + new.p99_ms,
            after.score + new.score,
            after.cost + new.cost,
            after.loss + new.loss,
        )
        open_ = tuple([e for e in state.open if e is not entry])
        return self.bounded(
            (*state.steps, placed),
            (*state.binds, Bind(taker, port, position, out)),
            open_ + tuple([(position, i, need) for i, need in enumerate(new.needs)]),
            state.score + new.score,
            state.cost + new.cost,
            state.loss + new.loss,
            max(state.p50_ms, placed.p50_ms),
            max(state.p99_ms, placed.p99_ms),
        )

    def feed(self, state: State, entry: Entry, giver: int, out: int) -> State | None:
        """The state in which a step that is there (or the request) feeds the need."""
        taker, port, _ = entry
        steps, binds = state.steps, (*state.binds, Bind(taker, port, giver, out))
        open_ = tuple([e for e in state.open if e is not entry])
        p50_ms, p99_ms = state.p50_ms, state.p99_ms
        if giver != FROM_REQUEST:
            moved = list(steps)
            self._lift(moved, binds, giver, taker)
            steps = tuple(moved)
            p50_ms = max(p50_ms, *[step.p50_ms for step in steps])
            p99_ms = max(p99_ms, *[step.p99_ms for step in steps])
        return self.bounded(steps, binds, open_, state.score, state.cost, state.loss, p50_ms, p99_ms)

    def _lift(self, steps: list[Placed], binds: tuple[Bind, ...], giver: int, taker: int) -> None:
        """Step `giver` now feeds `taker` too: brings what lies behind it, and behind what feeds it, up to date."""
        old, after, own = steps[giver], steps[taker], self.card(steps[giver].card)
        below = old.below | after.below | 1 << taker
        p50_ms = max(old.p50_ms, own.p50_ms + after.p50_ms)
        p99_ms = max(old.p99_ms, own.p99_ms + after.p99_ms)
        if (below, p50_ms, p99_ms) == (old.below, old.p50_ms, old.p99_ms):
            return
        score, cost, loss = own.score, own.cost, own.loss
        for i in range(1, len(steps)):
            if below >> i & 1:
                one = self.card(steps[i].card)
                score, cost, loss = score + one.score, cost + one.cost, loss + one.loss
        steps[giver] = Placed(old.card, below, p50_ms, p99_ms, score, cost, loss)
        for bind in binds:
            if bind.taker == giver and bind.giver != FROM_REQUEST:
                self._lift(steps, binds, bind.giver, giver)

    def bounded(
        self,
        steps: tuple[Placed, ...],
        binds: tuple[Bind, ...],
        open_: tuple[Entry, ...],
        score: float,
        cost: float,
        loss: float,
        p50_ms: float,
        p99_ms: float,
    ) -> State | None:
        """The state with its bound; None when no completion can exist or keep within the limits."""
        weight, limits = self.latency_weight, self.limits
        longest_ms, most, via = p50_ms, 0.0, math.inf
        hope = 0.0
        for taker, _, need in open_:
            step, known = steps[taker], self.need(need)
            if known.score == math.inf:
                return None
            if step.p99_ms + known.p99_ms > limits.p99_ms:
                return None
            if step.cost + known.cost > limits.cost or step.loss + known.loss > limits.loss:
                return None
            behind = step.score + weight * step.p50_ms
            most = max(most, behind + known.score)
            via = min(via, behind + known.via)
            longest_ms = max(longest_ms, step.p50_ms + known.p50_ms)
            hope += known.score - weight * known.p50_ms
        if p99_ms > limits.p99_ms or cost > limits.cost or loss > limits.loss:
            return None
        through = score + weight * longest_ms
        bound = max(most, through)
        if self.must_use != -1 and all(step.card != self.must_use for step in steps):
            if via == math.inf:
                return None
            bound = max(bound, via)
        return State(steps, binds, open_, score, cost, loss, p50_ms, p99_ms, bound, max(bound, through + hope))

    def completed(self, state: State, width: int, ended: Callable[[], bool]) -> State | None:
        """A completion of a state, found greedily by `State.hope` among the first `width` cards at each need.

        None after a few dead ends, or when `ended` says so.
        """
        stack, dead_ends = [state], 0
        while stack and dead_ends < MOST_DEAD_ENDS and not ended():
            state = stack.pop()
            if not state.open:
                return state
            entry = self.next_need(state)
            children = self.from_there(state, entry)
            if not children or self.must_use != -1:
                cards = self.givers(entry[2])[0]
                if self.must_use == -1:
                    cards = cards[: width if len(state.open) > 1 else max(2, width // 2)]
                for card in cards:
                    children += self.with_card(state, entry, card)
            dead_ends += not children
            children.sort(key=lambda child: child.hope)
            stack += reversed(children[:4])
        return None


def search(problem: Problem, k: int, budget: Budget, clock: Callable[[], float]) -> Found:
    """The k best plans with different extensions; of the same extensions only the best wiring counts.

    `clock` gives seconds. Beyond the k best, `states` holds the other complete plans that were met on the way.
    """
    return Search(problem, k, budget, clock).run()


class Search:
    """One A* over the states of a problem. Plans found on the way prune what cannot beat them."""

    def __init__(self, problem: Problem, k: int, budget: Budget, clock: Callable[[], float]) -> None:
        self._problem = problem
        self._k = k
        self._budget = budget
        self._clock = clock
        self._stop_s = math.inf if budget.max_ms is None else clock() + budget.max_ms / 1e3
        self._best: dict[frozenset[int], State] = {}
        self._met: dict[tuple[frozenset[int], frozenset[tuple[int, int]]], list[State]] = {}
        self._least = math.inf  # the score of the best plan so far
        self._beat = math.inf  # the score of the k-th best plan so far
        self._expanded = 0
        self._proven_at = -1  # how many states had been expanded when the best plan was proven
        self._pushed = 0
        # (bound, open needs, order of arrival, state, need to feed next, rank of the next card to try or -1)
        self._frontier: list[tuple[float, int, int, State, Entry, int]] = []

    def run(self) -> Found:
        root = self._problem.root()
        if root is None:
            return Found([], True, "", 0, math.inf)
        stopped = self._explore(root)
        while self._wants_wider(root, stopped):
            self._problem.widen(self._wider(root))
            stopped = self._explore(root)
        found = sorted(self._best.values(), key=lambda s: s.bound)
        return Found(found, not stopped, stopped, self._expanded, root.bound)

    def _explore(self, root: State) -> str:
        """Expands states as long as that is worth it; returns why it stopped with the best plan unproven, if so."""
        self._frontier, self._met = [], {}
        self._take(root)
        began = dive_at = self._expanded
        while self._frontier and self._frontier[0][0] < self._beat:
            bound = self._frontier[0][0]
            if self._proven_at < 0 and min(bound, self._problem.reach) >= self._least:
                self._proven_at = self._expanded
            if self._enough():
                return ""
            if self._expanded > began:
                if bound >= self._problem.reach and self._wants_wider(root, ""):
                    return ""
                if stopped := self._exhausted(began):
                    return stopped if self._proven_at < 0 else ""
            _, _, _, state, entry, rank = heapq.heappop(self._frontier)
            self._expanded += 1
            if self._expanded > dive_at:
                self._dive(state, hurried=dive_at > began)
                dive_at = 2 * self._expanded
                if bound >= self._beat:
                    continue
            if rank < 0:
                for child in self._problem.from_there(state, entry):
                    self._take(child)
                self._push_card(state, entry, 0)
            else:
                for child in self._problem.with_card(state, entry, self._problem.givers(entry[2])[0][rank]):
                    self._take(child)
                self._push_card(state, entry, rank + 1)
        return ""

    def _wants_wider(self, root: State, stopped: str) -> bool:
        """Whether plans beyond the reach of the bounds are asked for: any plan, a better one, or the k best."""
        reach = self._problem.reach
        if not self._best:
            return reach < math.inf
        wanted = self._beat if self._budget.max_more is None else self._least
        # Up to FAR it is worth more than the time that it takes: the better dive counts for more than a longer search.
        return wanted > reach and (not stopped or reach < FAR * root.bound)

    def _wider(self, root: State) -> float:
        reach = self._problem.reach
        if reach < FAR * root.bound:
            return min(self._beat, FAR * root.bound)
        # Without any plan nothing says how far to look. With k, only what is cheaper than the last of them counts.
        return min(self._beat, 2.0 * reach) if self._best else math.inf

    def _enough(self) -> bool:
        most = self._budget.max_more
        return self._proven_at >= 0 and most is not None and self._expanded - self._proven_at >= most

    def _exhausted(self, began: int) -> str:
        most = self._budget.max_expansions
        if most is not None and self._expanded >= most:
            return f"its budget of {most} expansions ended"
        if (self._best or self._expanded - began >= LEAST_EXPANSIONS) and self._clock() >= self._stop_s:
            return "its budget of time ended"
        return ""

    def _take(self, state: State) -> None:
        """Keeps a state: as a plan when it is complete, else in the frontier when it can still beat the k-th best."""
        if state.bound >= self._beat:
            return
        if state.open:
            if self._seen_better(state):
                return
            self._pushed += 1
            entry = self._problem.next_need(state)
            heapq.heappush(self._frontier, (state.bound, len(state.open), self._pushed, state, entry, -1))
            return
        cards = state.cards()
        known = self._best.get(cards)
        if known is None or state.bound < known.bound:
            self._best[cards] = state
            self._least = min(self._least, state.bound)
            if len(self._best) >= self._k:
                self._beat = heapq.nsmallest(self._k, [s.bound for s in self._best.values()])[-1]

    def _seen_better(self, state: State) -> bool:
        """Whether a state with the same extensions and needs was met whose every completion is at least as good."""
        rivals = self._met.setdefault(state.signature(), [])
        if any(rival.dominates(state) for rival in rivals):
            return True
        rivals.append(state)
        return False

    def _push_card(self, state: State, entry: Entry, rank: int) -> None:
        """Cards are tried one by one in the order of their bounds; the rest waits as one entry of the frontier."""
        _, bounds = self._problem.givers(entry[2])
        if rank < len(bounds):
            step = state.steps[entry[0]]
            bound = max(state.bound, step.score + self._problem.latency_weight * step.p50_ms + bounds[rank])
            if bound < self._beat:
                self._pushed += 1
                heapq.heappush(self._frontier, (bound, len(state.open), self._pushed, state, entry, rank))

    def _dive(self, state: State, hurried: bool) -> None:
        """Completes a state greedily, so that there is a plan early."""
        done = self._problem.completed(state, 6, lambda: hurried and bool(self._best) and self._clock() >= self._stop_s)
        if done is not None:
            self._take(done)
