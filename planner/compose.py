"""Cascades and ensembles: plans in which several extensions answer the same question, built around base plans.

A *place* is a result that something in a base plan takes. Around it stand the *ways* to come by such a result: each
extension that gives it, with the extra steps that it needs beside the rest of the plan. A cascade tries one way first
and another only for the rows of low confidence; an ensemble lets a combiner join several. Candidates are estimated
in closed form, and only the most promising ones become drafts; the real predictions decide whether they win.

A cascade has two stages and stands around one result: where two results of the same extension are taken, no cascade
is built there, since each row of both would have to come from the same stage. A combiner is found where it gives what
a base plan needs, or where nothing else leads to what is wanted.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from planner.cards import Card
from planner.drafts import Draft, Giver
from planner.estimates import Stage, cascade_accuracy, comparable, coverage, ensemble_accuracy
from planner.index import loss_of, thresholds_of
from planner.plans import PlanKind
from planner.search import FROM_REQUEST, GOAL, Entry, Limits, Problem, State

MOST_SEEDS = 2  # base plans to build around
MOST_PLACES = 3  # per base plan
MOST_WAYS = 8  # per place
MOST_MEMBERS = 5  # of an ensemble
MOST_PAIRS = 16  # of ways to be worked out as cascades, per place
MOST_DRAFTS = 3  # that are predicted in full
SMALL = 200  # extensions


@dataclass(frozen=True, slots=True)
class _Way:
    """An extension that gives what a place needs, and the steps that it adds to the rest of the plan."""

    card: int
    out: int
    added: frozenset[int]  # the extension and its helpers, as far as the rest of the plan lacks them
    draft: Draft  # a whole plan with this way in place
    p50_ms: float  # of that plan


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A composite with its estimated score; `draft` is made only when it is worth it."""

    score: float
    kind: PlanKind
    place: _Place
    ways: tuple[_Way, ...]
    belows: tuple[float, ...] = ()  # cascade: the confidences below which rows go on, one per way but the last
    combiner: _Way | None = None


def composites(
    problem: Problem, seeds: Sequence[State], limits: Limits, ended: Callable[[], bool]
) -> list[tuple[Draft, PlanKind]]:
    """Drafts of cascades and ensembles around the seeds (best first) that may be worth it, within the limits.

    The effort is bounded whatever the size of the catalogue, and stops when `ended` says so. When none promises to
    beat the best seed, the one that comes nearest is drafted all the same, so that planning can say why it lost.
    """
    composer = _Composer(problem.without_must_use().without_limits(), limits, ended)
    # Only a small catalogue is worth the effort of explaining composites that lose.
    beat = seeds[0].bound if len(problem.index.cards) > SMALL else math.inf
    candidates: list[_Candidate] = []
    for place in composer.places(seeds[:MOST_SEEDS]):
        if ended():
            break
        candidates += composer.cascades(place, beat)
        candidates += composer.ensembles(place, beat)
    candidates.sort(key=lambda c: c.score)
    worth = [c for c in candidates[:MOST_DRAFTS] if c.score < seeds[0].bound] or candidates[:1]
    return [(composer.draft(c), c.kind) for c in worth]


@dataclass(frozen=True, slots=True)
class _Place:
    """A result in a plan, and the plan without what gives it."""

    rest: State  # its open needs are fed by one and the same result
    draft: Draft  # the same as a draft
    own: int  # the card that gives the result in the base plan


class _Composer:
    def __init__(self, problem: Problem, limits: Limits, ended: Callable[[], bool]) -> None:
        self._ended = ended
        self._problem = problem
        self._index = problem.index
        self._limits = limits
        self._objective = problem.request.objective
        self._points: dict[tuple[int, int], list[tuple[float, float, float]]] = {}  # of pairs of cards

    # Places.

    def places(self, seeds: Iterable[State]) -> Iterator[_Place]:
        """The places of the base plans where there is a choice, each once; of each plan first those where a combiner
        stands with its two sources, which more may join, then the weightiest."""
        known: set[object] = set()
        for seed in seeds:
            results = {(b.giver, b.out) for b in seed.binds if b.giver != FROM_REQUEST}
            found = 0
            for giver, out in sorted(results, key=lambda r: (self._rank(seed.steps[r[0]].card), r)):
                takers = [b for b in seed.binds if (b.giver, b.out) == (giver, out)]
                if found == MOST_PLACES or not self._choice(seed, giver, takers[0].taker, takers[0].port):
                    continue
                rest = self._rest(seed, giver, out)
                if rest is None:
                    continue
                found += 1
                key = rest.signature()
                if key not in known:
                    known.add(key)
                    draft = Draft.of(rest, self._index, self._problem.request)
                    yield _Place(rest, draft, seed.steps[giver].card)

    def _rank(self, card: int) -> tuple[bool, float]:
        known = self._problem.card(card)
        return card not in self._index.combiners, -(known.score + self._problem.latency_weight * known.p50_ms)

    def _choice(self, seed: State, giver: int, taker: int, port: int) -> bool:
        """Whether anything could be composed here: with a combiner, or of several ways with a judge among them."""
        if seed.steps[taker].card in self._index.combiners:
            return False
        n = len(self._index.needs)
        need = n + port if taker == GOAL else self._index.card_needs[seed.steps[taker].card][port]
        if any(True for _ in self._combiners(need)):
            return True  # its members may give something else than it gives, so one giver of this need is enough
        cards, _ = self._problem.givers(need)
        return len(cards) > 1 and not self._index.judges.isdisjoint(cards)

    def _combiners(self, need: int) -> Iterator[int]:
        request = self._problem.request
        for card in self._index.combiners:
            known = self._index.cards[card]
            if self._problem.ports(need, card) and known.id not in request.avoid and known.sees(request.terms.tags):
                yield card

    def _rest(self, seed: State, giver: int, out: int) -> State | None:
        """The plan again, without that result and without the steps that work for it alone."""
        binds = {(b.taker, b.port): b for b in seed.binds if (b.giver, b.out) != (giver, out)}
        problem = self._problem
        state, new = problem.root(), {GOAL: GOAL}
        old = {GOAL: GOAL}
        while state is not None:
            entry = next((e for e in state.open if (old[e[0]], e[1]) in binds), None)
            if entry is None:
                return state
            bind = binds[old[entry[0]], entry[1]]
            if bind.giver == FROM_REQUEST or bind.giver in new:
                state = problem.feed(state, entry, new.get(bind.giver, FROM_REQUEST), bind.out)
            else:
                position = new[bind.giver] = len(state.steps)
                old[position] = bind.giver
                state = problem.place(state, entry, seed.steps[bind.giver].card, bind.out)
        return None

    # Ways.

    def _way(self, rest: State, entries: Sequence[Entry], card: int) -> _Way | None:
        """How a card can feed the open needs, all with the same output; None when it cannot, or is in the plan."""
        out = next((o for o in self._problem.ports(entries[0][2], card) if self._fits(card, o, entries[1:])), None)
        if out is None or any(step.card == card for step in rest.steps):
            return None
        state = self._problem.place(rest, entries[0], card, out)
        state = self._fed(state, entries[1:], len(rest.steps), out)
        state = state and self._problem.completed(state, 3, self._ended)
        if state is None:
            return None
        draft = Draft.of(state, self._index, self._problem.request)
        added = draft.needed_by(card) - {step.card for step in rest.steps}
        return _Way(card, out, added, draft, state.p50_ms)

    def _fits(self, card: int, out: int, entries: Sequence[Entry]) -> bool:
        return all(out in self._problem.ports(entry[2], card) for entry in entries)

    def _fed(self, state: State | None, entries: Sequence[Entry], giver: int, out: int) -> State | None:
        for entry in entries:
            if state is None:
                return None
            state = self._problem.feed(state, entry, giver, out)
        return state

    def _some(self, need: int, own: int) -> list[int]:
        """Up to MOST_WAYS cards that give a need: the one in the plan, the best by bound, judges, the most accurate."""
        cards, _ = self._problem.givers(need)
        if len(cards) <= MOST_WAYS:
            return cards
        near = cards[:64]
        judges = [c for c in near if c in self._index.judges]
        sure = sorted(near, key=lambda c: self._problem.card(c).loss)
        mixed = [own, *[c for four in zip(near, judges or near, sure, strict=False) for c in four]]
        return [c for c in dict.fromkeys(mixed) if c in set(near) | {own}][:MOST_WAYS]

    # Estimates.

    def _score(self, loss: float, p50_ms: float, cost: float) -> float:
        """The score, or infinity outside the limits."""
        if cost > self._limits.cost or loss > self._limits.loss:
            return math.inf
        o = self._objective
        return o.accuracy * loss + o.latency * p50_ms / 1e3 + o.cost * cost

    def _sum(self, cards: Iterable[int]) -> tuple[float, float, float]:
        """Loss, latency and cost summed over cards."""
        known = [self._problem.card(card) for card in cards]
        return sum(c.loss for c in known), sum(c.p50_ms for c in known), sum(c.cost for c in known)

    def cascades(self, place: _Place, beat: float) -> list[_Candidate]:
        """For each pair of ways that may be worth it, the best threshold, when the first can judge itself.

        Pairs are worked out in the order of what they can reach at best, which is known better once the first way is,
        until no other can be among those that are drafted.
        """
        entries = place.rest.open
        cards = self._some(entries[0][2], place.own)
        ways: dict[int, _Way | None] = {}
        found: list[_Candidate] = []
        waiting: list[tuple[float, int, int, bool]] = []  # hope, the two cards, whether the first way is in the hope

        def wait(first: int, second: int, way: _Way | None) -> None:
            hope = self._hope(place, first, second, beat, way)
            if hope < beat:
                heapq.heappush(waiting, (hope, first, second, way is not None))

        def way_of(card: int) -> _Way | None:
            if card not in ways:
                ways[card] = self._way(place.rest, entries, card)
            return ways[card]

        for first in self._index.judges.intersection(cards):
            for second in cards:
                wait(first, second, None)
        tried = 0
        while waiting and tried < MOST_PAIRS and not self._ended():
            hope, first, second, known = heapq.heappop(waiting)
            if len(found) >= MOST_DRAFTS and hope >= sorted(c.score for c in found)[MOST_DRAFTS - 1]:
                break
            first_way = way_of(first)
            if first_way is None:
                continue
            if not known:
                wait(first, second, first_way)
                continue
            tried += 1
            second_way = way_of(second)
            candidate = None if second_way is None else self._cascade(place, first_way, second_way)
            if candidate is not None:
                found.append(candidate)
        return found

    def _hope(self, place: _Place, first: int, second: int, beat: float, way: _Way | None) -> float:
        """A score that no cascade of the two cards can undercut here, whatever helpers they need; those of the first
        are counted once its way is known."""
        problem, rest = self._problem, place.rest
        a, b = problem.card(first), problem.card(second)
        known = self._index.cards[first], self._index.cards[second]
        if first == second or (b.loss >= a.loss and comparable(known, confident=1) is None):
            return math.inf  # without evidence the estimate is such that only a surer one can help
        start_ms = rest.steps[rest.open[0][0]].p50_ms
        first_ms = start_ms + a.p50_ms if way is None else way.p50_ms
        first_cost = rest.cost + (a.cost if way is None else self._sum(way.added)[2])
        if self._score(rest.loss, max(rest.p50_ms, first_ms), first_cost) >= beat:
            return math.inf
        best = math.inf
        pair = first, second
        if pair not in self._points:
            self._points[pair] = list(_points(*known, 1.0, 1.0))
        for _, kept, accuracy in self._points[pair]:
            p50_ms = max(rest.p50_ms, first_ms + (1.0 - kept**problem.request.n_rows) * b.p50_ms)
            cost = first_cost + (1.0 - kept) * b.cost
            best = min(best, self._score(rest.loss + loss_of(accuracy), p50_ms, cost))
        return best

    def _cascade(self, place: _Place, first: _Way, second: _Way) -> _Candidate | None:
        """A cascade of two ways at its best threshold; None when it does not keep the limits, or is none."""
        extra = second.added - first.added
        if second.card not in extra or first.card in second.added:
            return None
        n_rows, rest = self._problem.request.n_rows, place.rest
        shared_loss, _, _ = self._sum((first.added & second.added) - {first.card})
        helper_loss, _, _ = self._sum(first.added - second.added - {first.card})
        first_cost = self._sum(first.added)[2]
        extra_loss, extra_ms, extra_cost = self._sum(extra)
        others = math.exp(-helper_loss), math.exp(self._problem.card(second.card).loss - extra_loss)
        best: tuple[float, float] | None = None
        for below, kept, accuracy in _points(self._index.cards[first.card], self._index.cards[second.card], *others):
            score = self._score(
                rest.loss + shared_loss + loss_of(accuracy),
                first.p50_ms + (1.0 - kept**n_rows) * extra_ms,
                rest.cost + first_cost + (1.0 - kept) * extra_cost,
            )
            if 0.0 < kept < 1.0 and score < math.inf and (best is None or score < best[0]):
                best = score, below
        return best and _Candidate(best[0], "cascade", place, (first, second), (best[1],))

    def ensembles(self, place: _Place, beat: float) -> list[_Candidate]:
        """For each combiner, the members that promise the best score: greedily, one more at a time."""
        found = []
        entries = place.rest.open
        for card in self._combiners(entries[0][2]):
            if self._ended():
                break
            outs = [o for o in self._problem.ports(entries[0][2], card) if self._fits(card, o, entries[1:])]
            stacking = [i for i, port in enumerate(self._index.ports(card)) if port.many > 1]
            if not outs or len(stacking) != 2 or any(step.card == card for step in place.rest.steps):
                continue  # combiners that stack at several ports are left to the search
            state = self._problem.place(place.rest, entries[0], card, outs[0])
            state = self._fed(state, entries[1:], len(place.rest.steps), outs[0])
            whole = state and self._problem.completed(state, 3, self._ended)
            if state is None or whole is None:
                continue
            draft = Draft.of(whole, self._index, self._problem.request)
            name = self._index.ports(card)[stacking[0]].name
            draft.inputs[card] = [wire for wire in draft.inputs[card] if wire[0] != name]
            draft = draft.without_idle()
            combiner = _Way(card, outs[0], frozenset(draft.inputs), draft, 0.0)
            least = self._score(self._sum(combiner.added)[0], place.rest.p50_ms, self._sum(combiner.added)[2])
            if least >= beat:
                continue
            entry = next(e for e in state.open if e[0] == len(place.rest.steps) and e[1] == stacking[0])
            ways = []
            for member in self._some(entry[2], place.own):
                way = self._way(state, [entry], member) if member not in draft.inputs else None
                if way is not None:
                    ways.append(way)
            candidate = self._members(place, combiner, ways, self._index.ports(card)[stacking[0]].many)
            if candidate is not None:
                found.append(candidate)
        return found

    def _members(self, place: _Place, combiner: _Way, ways: list[_Way], most: int) -> _Candidate | None:
        rest_loss, _, rest_cost = self._sum(combiner.added)
        chosen: list[_Way] = []
        best: _Candidate | None = None

        def score(members: Sequence[_Way]) -> float:
            added = frozenset[int]().union(*[m.added for m in members]) - combiner.added
            cards = [self._index.cards[m.card] for m in members]
            helpers = [math.exp(self._problem.card(m.card).loss - self._sum(m.added)[0]) for m in members]
            accuracy = ensemble_accuracy(cards, helpers)
            p50_ms = max(m.p50_ms for m in members)
            return self._score(rest_loss + loss_of(accuracy), p50_ms, rest_cost + self._sum(added)[2])

        # An even number of votes rarely helps, the next odd one may: so a member that brings nothing ends nothing.
        while len(chosen) < min(most, MOST_MEMBERS, len(ways)):
            step = min((score([*chosen, w]), i) for i, w in enumerate(ways) if w not in chosen)
            chosen.append(ways[step[1]])
            if len(chosen) >= 2 and step[0] < math.inf and (best is None or step[0] < best.score):
                best = _Candidate(step[0], "ensemble", place, tuple(chosen), combiner=combiner)
        return best

    # Drafts.

    def draft(self, candidate: _Candidate) -> Draft:
        """The draft of a candidate: the rest of the plan, the ways, and what joins them."""
        place = candidate.place
        if candidate.combiner is not None:
            draft = candidate.combiner.draft.copy()
            for way in candidate.ways:
                draft.adopt(way.draft, way.card)
            name = next(p.name for p in self._index.cards[candidate.combiner.card].inputs if p.many > 1)
            draft.inputs[candidate.combiner.card] += [(name, ((way.card, way.out),)) for way in candidate.ways]
            return draft
        draft = place.draft.copy()
        for i, way in enumerate(candidate.ways):
            new = draft.adopt(way.draft, way.card)
            if i:
                guard = candidate.ways[i - 1].card, candidate.belows[i - 1]
                draft.guards.update(dict.fromkeys(new, guard))
        givers = tuple([(way.card, way.out) for way in candidate.ways])
        self._join(draft, place, givers)
        return draft

    def _join(self, draft: Draft, place: _Place, givers: tuple[Giver, ...]) -> None:
        """Feeds the open needs of a place from the stages of a cascade."""
        for taker, port, _ in place.rest.open:
            card = place.rest.steps[taker].card
            if taker == GOAL:
                names = [p.name for p in self._problem.request.wanted]
                wires = draft.outputs
            else:
                names = [p.name for p in self._index.ports(card)]
                wires = draft.inputs[card]
            wires.append((names[port], givers))
            wires.sort(key=lambda wire: names.index(wire[0]))


def _points(first: Card, second: Card, helped: float, extra: float) -> Iterator[tuple[float, float, float]]:
    """Per threshold of `first`: its confidence, the share of rows kept, and the accuracy of the cascade."""
    for below in thresholds_of(first):
        stages = Stage(first, below, helped), Stage(second, None, extra)
        yield below, coverage(first, below)[0], cascade_accuracy(stages)
