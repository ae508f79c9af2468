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
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import asdict, dataclass, field, replace
from typing import NamedTuple

import numpy as np

from planner.bounds import lower_bounds, lower_bounds_through
from planner.features import Port
from planner.index import Bools, Floats, Index, Ints
from planner.plans import PlanRequest

Entry = tuple[int, int, int]  # an open need: position of the step, number of its input port, number of the need
GOAL = 0  # the step that stands for the wanted features in every state
FROM_REQUEST = -1
MOST_DEAD_ENDS = 6  # at which a greedy completion turns back
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


@dataclass(frozen=True, slots=True)
class _Need:
    """What is known of a need: its lower bounds, the request inputs that meet it, the cards that do, best first."""

    score: float
    p50_ms: float
    p99_ms: float
    cost: float
    loss: float
    via: float
    given: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Card:
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
    """One request over one index: weights, lower bounds, and the moves of the search."""

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
        `slow` counts p99 as if it were the latency to be minimised; `thorough` False bounds the score alone, which
        is admissible all the same and takes a fraction of the time, but sees late that a term will be missed."""
        self.index = index
        self.request = request
        self.limits = limits
        objective = request.objective
        self.latency_weight = objective.latency / 1e3
        self.p50_ms = index.p50_ms(request.n_rows, request.kilo)
        self.p99_ms = index.p99_ms(self.p50_ms)
        if slow:
            self.p50_ms = self.p99_ms
        self.score = objective.accuracy * index.loss + objective.cost * index.cost
        self.usable = self._usable(tags, combiners)
        self.must_use = -1 if request.must_use is None else index.position.get(request.must_use, -2)

        self._given: dict[int, list[int]] = {}
        for i, port in enumerate(request.inputs):
            for need in index.needs_met_by(port.feature):
                self._given.setdefault(need, []).append(i)
        self._goal_outs = [index.outs_for(port.feature) for port in request.wanted]
        self._bound(thorough)
        self._cache = _Caches()

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
        criteria = {"score": self.score + self.latency_weight * self.p50_ms}
        if thorough:
            if self.latency_weight:
                criteria["p50_ms"] = self.p50_ms
            criteria |= {name: self._weight(name) for name, limit in asdict(self.limits).items() if limit < math.inf}
        self._h, self.v = self._lower_bounds(criteria, asdict(self.limits))
        self._rows = {name: i for i, name in enumerate(criteria)}
        self._via = self._bound_via() if self.must_use >= 0 else None

    def sharpen(self, state: State) -> None:
        """Adds the bound on the limit that this state breaks most, so that the search keeps clear of it."""
        limits = asdict(self.limits)
        broken = {name: getattr(state, name) / limit for name, limit in limits.items() if name not in self._rows}
        worst = max(broken, key=lambda name: broken[name], default="")
        if worst and broken[worst] > 1.0:
            # Up to what this state has, not to the limit: should nothing keep it, `toward` leads to what comes nearest.
            h, v = self._lower_bounds({worst: self._weight(worst)}, {worst: _loosely(getattr(state, worst))})
            self._h, self.v = np.concatenate([self._h, h]), np.concatenate([self.v, v])
            self._rows[worst] = len(self._rows)
            self._cache.needs.clear()

    def toward(self, limit: str) -> Problem | None:
        """The problem without limits in which only what this limit is on counts; None where that takes new bounds."""
        row = self._rows.get(limit)
        if row is None or self.must_use != -1:
            return None
        other = self.without_limits()
        other._rows, other._cache = {"score": 0}, _Caches()
        other._h, other.v = self._h[[row]], self.v[[row]]
        timed = limit == "p99_ms"
        other.latency_weight = float(timed)
        other.score = np.zeros_like(self.score) if timed else self._weight(limit)
        if timed:
            other.p50_ms = self.p99_ms
        return other

    def _weight(self, limit: str) -> Floats:
        return {"p99_ms": self.p99_ms, "cost": self.index.cost, "loss": self.index.loss}[limit]

    def _lower_bounds(self, criteria: Mapping[str, Floats], most: Mapping[str, float]) -> tuple[Floats, Floats]:
        weights = np.where(self.usable, np.stack(list(criteria.values())), np.inf)
        given = np.fromiter(self._given, np.int64, len(self._given))
        return lower_bounds(self.index, weights, given, np.array([most.get(name, math.inf) for name in criteria]))

    def _bound_via(self) -> tuple[Floats, Floats]:
        """Lower bounds on the score of meeting a need, or of using a card, with `must_use` at or above it."""
        weight = np.where(self.usable, self.score + self.latency_weight * self.p50_ms, np.inf)
        return lower_bounds_through(self.index, weight, self.v[0], self.must_use)

    # What the search asks again and again is looked up once and kept as plain Python numbers.

    def need(self, need: int) -> _Need:
        found = self._cache.needs.get(need)
        if found is None:
            n = len(self.index.needs)
            if need < n:
                given = tuple(self._given.get(need, ()))
                columns = {name: float(self._h[row, need]) for name, row in self._rows.items()}
                via = float(self._via[0][need]) if self._via else math.inf
            else:
                port = self.request.wanted[need - n]
                given = tuple([i for i, p in enumerate(self.request.inputs) if port.feature.accepts(p.feature)])
                cards = self.cards_giving(need)
                best = [0.0] * len(self.v) if given else self.v[:, cards].min(axis=1, initial=math.inf)
                columns = {name: float(best[row]) for name, row in self._rows.items()}
                via = float(self._via[1][cards].min(initial=math.inf)) if self._via else math.inf
            found = _Need(
                columns["score"],
                columns.get("p50_ms", 0.0),
                columns.get("p99_ms", 0.0),
                columns.get("cost", 0.0),
                columns.get("loss", 0.0),
                via,
                given,
            )
            self._cache.needs[need] = found
        return found

    def card(self, card: int) -> _Card:
        found = self._cache.cards.get(card)
        if found is None:
            found = self._cache.cards[card] = _Card(
                float(self.score[card]),
                float(self.p50_ms[card]),
                float(self.p99_ms[card]),
                float(self.index.cost[card]),
                float(self.index.loss[card]),
                self.index.card_needs[card],
            )
        return found

    def cards_giving(self, need: int) -> Ints:
        n = len(self.index.needs)
        outs = self.index.outs_of_need.of_node(need) if need < n else np.array(self._goal_outs[need - n], np.int64)
        cards = np.sort(self.index.cards_of_out.gather(outs)[0])
        return cards[np.diff(cards, prepend=-1) > 0]

    def givers(self, need: int) -> tuple[list[int], list[float]]:
        """The usable cards that give a need, and the lower bound of meeting it with each, ascending."""
        found = self._cache.givers.get(need)
        if found is None:
            cards = self.cards_giving(need)
            value = self.v[0][cards]
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
        self._pushed = 0
        # (bound, open needs, order of arrival, state, need to feed next, rank of the next card to try or -1)
        self._frontier: list[tuple[float, int, int, State, Entry, int]] = []

    def run(self) -> Found:
        root = self._problem.root()
        if root is None:
            return Found([], True, "", 0, math.inf)
        self._take(root)
        stopped, dive_at = "", 0
        proven_at = -1
        while self._frontier and self._frontier[0][0] < self._beat:
            if proven_at < 0 and self._frontier[0][0] >= self._least:
                proven_at = self._expanded
            if proven_at >= 0 and self._enough(proven_at):
                break
            if stopped := self._exhausted():
                break
            bound, _, _, state, entry, rank = heapq.heappop(self._frontier)
            self._expanded += 1
            if self._expanded > dive_at:
                self._dive(state)
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
        found = sorted(self._best.values(), key=lambda s: s.bound)
        if proven_at >= 0:
            stopped = ""
        return Found(found, not stopped, stopped, self._expanded, root.bound)

    def _enough(self, proven_at: int) -> bool:
        most = self._budget.max_more
        return most is not None and self._expanded - proven_at >= most

    def _exhausted(self) -> str:
        most = self._budget.max_expansions
        if most is not None and self._expanded >= most:
            return f"its budget of {most} expansions ended"
        if (self._best or self._expanded >= LEAST_EXPANSIONS) and self._clock() >= self._stop_s:
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

    def _dive(self, state: State) -> None:
        """Completes a state greedily, so that there is a plan early."""
        done = self._problem.completed(state, 6, lambda: bool(self._best) and self._clock() >= self._stop_s)
        if done is not None:
            self._take(done)
