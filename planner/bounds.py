"""What any plan must pay at least, per need and per card: the bounds that guide the search.

Of 100,000 extensions a request concerns few. So prices are settled from both ends: first backwards, what lies
*behind* the needs that are nearest to what is wanted; then forwards from what is given, in the order of price plus
what lies behind. What can only be part of dearer plans than the *reach* is left alone, until the search asks for more:
of 52,000 needs mostly some hundred are settled, in 2 ms instead of 14. Both ways are compiled by numba, when this
module is first imported after an installation, and cached from then on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from planner.index import Bools, Floats, Index, Ints, Narrow, Ragged

N_BUCKETS = 16_384
FEW = 64  # needs of a bucket that are sorted by insertion; a heap takes the others
SPAN = 20.0  # how far the buckets reach, in usual weights; what is dearer shares the last one
WEIGHT, PAID = 0, 1  # of a card: its own weight, and its price, or that of the dearest of its needs so far
PRICE, BEHIND = 0, 1  # of a need. What is asked for together lies together: most of the time is waiting for memory
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Prices:
    """The least that any plan pays by one criterion, for each need, and for each need met by a given card.

    With the weights of the cards by that criterion, at least 0, the prices are

        h(need) = min over cards that give it: v(card),    v(card) = weight(card) + max over its needs: h(need)

    infinite where no plan exists. Taking the dearest input alone, not the sum, is what keeps the bound admissible
    when plans share sub-results: h_max of Bonet and Geffner 2001, Artificial Intelligence 129. They are settled in
    the order of price plus what lies behind, at least, on the way to what is wanted: A*LD of Felzenszwalb and
    McAllester 2007, Journal of Artificial Intelligence Research 29.

    A price is exact if with what lies behind it comes to less than `reach`. Beyond, it is what some way costs, hence
    never too low, or infinite where none was met yet. Nothing is settled before `settle` is called.
    """

    def __init__(
        self,
        index: Index,
        rates: Floats,
        usable: Bools,
        given: Ints,
        wanted: Sequence[Sequence[int]],
        met: Sequence[bool],
        n_behind: int = 0,
    ) -> None:
        """`rates` make the weights out of `Index.parts`; cards that are not `usable`, (n_cards,), are let alone.

        `given` are the needs that the request itself meets, at price 0; `wanted` are per wanted feature the outs that
        may be it, and `met` says whether the request brings it. `n_behind` is for how many needs it is found out what
        lies behind them; 0 is best where everything will be settled.
        """
        n_needs, n_outs, room = len(index.needs), len(index.outs), index.most_waiting
        self.reach = 0.0
        self._links = index.links
        self._is_wanted = np.zeros((len(wanted), n_outs), np.bool_)
        for i, outs in enumerate(wanted):
            self._is_wanted[i, outs] = True
        self._goal = np.where(met, 0.0, np.inf)  # per wanted feature, the least that it costs

        weight = index.weights(rates)
        self._cards = np.zeros((len(index.cards), 2))
        self._cards[:, WEIGHT] = np.where(usable, weight, np.inf)
        self._needs = np.zeros((n_needs, 2))
        self._needs[:, PRICE] = np.inf
        self._needs[given, PRICE] = 0.0
        if n_behind:
            barred = ~usable
            barred[list(index.combiners)] = False  # the search may not use them; ensembles ask what their members cost
            weight[barred] = np.inf
            self._needs[:, BEHIND] = np.inf
            _look_behind(*self._links, self._is_wanted, weight, n_behind, self._needs)

        self._lacking = np.diff(index.links.needs_of_card[0])  # per card, how many of its needs are not settled
        self._cheapest = np.full(n_outs, np.inf)
        self._settled = np.zeros(n_needs, np.bool_)
        # What waits to be settled: in the bucket of its price, as a linked list, or in the heap, once that is reached.
        # A need waits again whenever one more card makes it cheaper. Room that is not used is never touched.
        n_buckets = min(N_BUCKETS, n_needs + 1)
        self._buckets_per_price = n_buckets / (SPAN * index.usual_weight(rates) or 1.0)
        self._first = np.full(n_buckets, -1, np.int32)
        self._entries = np.empty(room, np.int32), np.empty(room, np.int32)  # the need, the next entry
        self._heap = np.empty(room), np.empty(room, np.int32)
        self._new = given
        self._at = (-1, 0, 0)  # the bucket that was reached, how many entries there are, how many in the heap

    def settle(self, least: float = math.inf, stretch: float = 1.0) -> None:
        """Settles on, up to `least`, or to `stretch` times the least price of what is wanted if that is more."""
        self.reach, *at = _settle(
            *self._links,
            self._is_wanted,
            least,
            stretch,
            self._new,
            *self._at,
            self._buckets_per_price,
            self._first,
            *self._entries,
            *self._heap,
            self._lacking,
            self._cheapest,
            self._settled,
            self._goal,
            self._needs,
            self._cards,
        )
        self._at = (at[0], at[1], at[2])
        self._new = self._new[:0]

    def of_need(self, need: int) -> float:
        return float(self._needs.item(need, PRICE))

    def of_cards(self, cards: Ints | slice) -> Floats:
        """The prices of a need met by these cards."""
        return np.where(self._lacking[cards] == 0, self._cards[cards, PAID], np.inf)

    def at_least(self, need: int) -> float:
        """What no plan undercuts for a need, also beyond the reach."""
        price = self.of_need(need)
        if self.reach == math.inf:
            return price
        return min(price, max(0.0, self.reach - float(self._needs.item(need, BEHIND))))


def _compiled(signature: str) -> Callable[[_Function], _Function]:
    """`njit` that keeps the type of what it compiles."""
    return cast(Callable[[_Function], _Function], njit(signature, cache=True))


_LINKS = "UniTuple(int32[::1], 2), " * 6
_WAITING = "int64, int64, int64, float64, int32[::1], int32[::1], int32[::1], float64[::1], int32[::1]"
_STATE = "int32[::1], float64[::1], boolean[::1], float64[::1], float64[:, ::1], float64[:, ::1]"


@_compiled("void(float64[::1], int32[::1], int64, float64, int64)")
def _push(prices: Floats, items: Narrow, n: int, price: float, item: int) -> None:
    """Adds to a heap of `n` prices, smallest first, four children to a parent: half the depth of a binary one."""
    while n > 0:
        parent = (n - 1) >> 2
        if prices[parent] <= price:
            break
        prices[n], items[n] = prices[parent], items[parent]
        n = parent
    prices[n], items[n] = price, item


@_compiled("void(float64[::1], int32[::1], int64)")
def _pop(prices: Floats, items: Narrow, n: int) -> None:
    """Takes the first away from a heap of `n`."""
    n -= 1
    price, item, hole = prices[n], items[n], 0
    while 4 * hole + 1 < n:
        least = 4 * hole + 1
        for child in range(least + 1, min(4 * hole + 5, n)):
            if prices[child] < prices[least]:
                least = child
        if prices[least] >= price:
            break
        prices[hole], items[hole] = prices[least], items[least]
        hole = least
    prices[hole], items[hole] = price, item


@_compiled(f"void({_LINKS} boolean[:, ::1], float64[::1], int64, float64[:, ::1])")
def _look_behind(
    cards_of_need: Ragged,
    needs_of_card: Ragged,
    outs_of_card: Ragged,
    needs_of_out: Ragged,
    outs_of_need: Ragged,
    cards_of_out: Ragged,
    is_wanted: Bools,
    weight: Floats,
    n_behind: int,
    needs: Floats,
) -> None:
    """Fills `needs[:, BEHIND]`, all infinite before: the least that the cards from a need to what is wanted weigh.

    Dijkstra against the arrows, each need of a card by itself. It stops after `n_behind` needs: all others have at
    least as much behind them as the next would have.
    """
    card_needs_ptr, card_needs = needs_of_card
    need_outs_ptr, need_outs = outs_of_need
    out_cards_ptr, out_cards = cards_of_out
    prices, cards, n = np.empty(len(out_cards)), np.empty(len(out_cards), np.int32), 0
    seen, done = np.zeros(len(out_cards_ptr) - 1, np.bool_), np.zeros(len(weight), np.bool_)
    for i in range(len(is_wanted)):
        for out in range(len(seen)):
            if is_wanted[i, out] and not seen[out]:
                seen[out] = True
                for j in range(out_cards_ptr[out], out_cards_ptr[out + 1]):
                    card = out_cards[j]
                    if weight[card] < np.inf:
                        _push(prices, cards, n, weight[card], card)
                        n += 1
    n_found = 0
    while n > 0 and n_found < n_behind:
        price, card = prices[0], cards[0]
        _pop(prices, cards, n)
        n -= 1
        if done[card]:
            continue
        done[card] = True
        for i in range(card_needs_ptr[card], card_needs_ptr[card + 1]):
            need = card_needs[i]
            if needs[need, BEHIND] < np.inf:
                continue
            needs[need, BEHIND] = price
            n_found += 1
            for j in range(need_outs_ptr[need], need_outs_ptr[need + 1]):
                out = need_outs[j]
                if seen[out]:
                    continue
                seen[out] = True
                for k in range(out_cards_ptr[out], out_cards_ptr[out + 1]):
                    giver = out_cards[k]
                    if weight[giver] < np.inf and not done[giver]:
                        _push(prices, cards, n, price + weight[giver], giver)
                        n += 1
    if n > 0:
        for need in range(len(needs)):
            needs[need, BEHIND] = min(needs[need, BEHIND], prices[0])


@_compiled(
    "Tuple((float64, int64, int64, int64))"
    f"({_LINKS} boolean[:, ::1], float64, float64, int64[::1], {_WAITING}, {_STATE})"
)
def _settle(
    cards_of_need: Ragged,
    needs_of_card: Ragged,
    outs_of_card: Ragged,
    needs_of_out: Ragged,
    outs_of_need: Ragged,
    cards_of_out: Ragged,
    is_wanted: Bools,
    least: float,
    stretch: float,
    new: Ints,
    bucket: int,
    n_entries: int,
    n_heap: int,
    buckets_per_price: float,
    first: Narrow,
    entry_need: Narrow,
    entry_next: Narrow,
    heap_prices: Floats,
    heap_needs: Narrow,
    lacking: Narrow,
    cheapest: Floats,
    settled: Bools,
    goal: Floats,
    needs: Floats,
    cards: Floats,
) -> tuple[float, int, int, int]:
    """Settles on from where it stopped; returns how far prices reach, and where it stopped this time.

    A need is due at its *total*, its price plus what lies behind. No total is below those settled before, so that a
    price is the least there is when its turn comes; and a card is priced when the last of its needs is settled: Knuth
    1977, Information Processing Letters 6. What is not due yet waits unsorted in buckets of equal width. Of the bucket
    at hand the first few are sorted by insertion and the others, like what falls due while it is being settled, go to
    a heap: where all 52,000 needs are settled, heaps alone take twice the time.
    """
    need_cards_ptr, need_cards = cards_of_need
    card_outs_ptr, card_outs = outs_of_card
    out_needs_ptr, out_needs = needs_of_out
    last = len(first) - 1.0
    for need in new:
        if needs[need, BEHIND] < np.inf:
            due = int(min(needs[need, BEHIND] * buckets_per_price, last))
            entry_need[n_entries], entry_next[n_entries] = need, first[due]
            first[due] = n_entries
            n_entries += 1
    few, few_totals, n_few, at = np.empty(FEW, np.int32), np.empty(FEW), 0, 0  # sorted, settled up to `at`
    most = max(least, stretch * goal.max())
    while True:
        if n_heap == 0 and at == n_few:
            bucket += 1
            while bucket < len(first) and first[bucket] < 0:
                bucket += 1
            if bucket >= len(first):
                return np.inf, bucket, n_entries, n_heap
            n_few, at, entry = 0, 0, first[bucket]
            while entry >= 0:
                need = entry_need[entry]
                if not settled[need]:
                    total = needs[need, PRICE] + needs[need, BEHIND]
                    if n_few < FEW:
                        hole = n_few
                        while hole > 0 and few_totals[hole - 1] > total:
                            few[hole], few_totals[hole] = few[hole - 1], few_totals[hole - 1]
                            hole -= 1
                        few[hole], few_totals[hole] = need, total
                        n_few += 1
                    else:
                        _push(heap_prices, heap_needs, n_heap, total, need)
                        n_heap += 1
                entry = entry_next[entry]
            continue
        is_few = at < n_few and (n_heap == 0 or few_totals[at] <= heap_prices[0])
        total = few_totals[at] if is_few else heap_prices[0]
        if total > most:
            for i in range(at, n_few):
                _push(heap_prices, heap_needs, n_heap, few_totals[i], few[i])
                n_heap += 1
            return total, bucket, n_entries, n_heap
        if is_few:
            need = few[at]
            at += 1
        else:
            need = heap_needs[0]
            _pop(heap_prices, heap_needs, n_heap)
            n_heap -= 1
        if settled[need]:
            continue
        settled[need] = True
        for i in range(need_cards_ptr[need], need_cards_ptr[need + 1]):
            card = need_cards[i]
            lacking[card] -= 1
            value = max(cards[card, PAID], needs[need, PRICE])
            if lacking[card] == 0:
                value += cards[card, WEIGHT]
            cards[card, PAID] = value
            if lacking[card] > 0 or value == np.inf:
                continue
            for j in range(card_outs_ptr[card], card_outs_ptr[card + 1]):
                out = card_outs[j]
                if value >= cheapest[out]:
                    continue
                cheapest[out] = value
                for k in range(len(goal)):
                    if is_wanted[k, out] and value < goal[k]:
                        goal[k] = value
                        most = max(least, stretch * goal.max())
                for k in range(out_needs_ptr[out], out_needs_ptr[out + 1]):
                    met = out_needs[k]
                    if value >= needs[met, PRICE] or needs[met, BEHIND] == np.inf:
                        continue
                    needs[met, PRICE] = value
                    total = value + needs[met, BEHIND]
                    due = min(total * buckets_per_price, last)
                    if due < bucket + 1:
                        _push(heap_prices, heap_needs, n_heap, total, met)
                        n_heap += 1
                    else:
                        entry_need[n_entries], entry_next[n_entries] = met, first[int(due)]
                        first[int(due)] = n_entries
                        n_entries += 1


def lower_bounds_through(index: Index, weight: Floats, v: Floats, card: int) -> tuple[Floats, Floats]:
    """The least that any plan pays for a need, and for a need met by a given card, with `card` at or above it.

    `weight` are the weights of all cards, infinite where one must not be used, `v` their prices with everything
    settled. Shapes (n_needs,), (n_cards,).
    """
    h = np.full(len(index.needs), np.inf)
    through = np.full(len(index.cards), np.inf)
    through[card] = v[card]
    need_marks, card_marks = np.zeros(len(h), np.bool_), np.zeros(len(through), np.bool_)
    cards = np.array([card] if np.isfinite(v[card]) else [], np.int64)
    while len(cards):
        outs, lengths, _ = index.outs_of_card.gather(cards)
        value = np.repeat(through[cards], lengths)
        needs, lengths, _ = index.needs_of_out.gather(outs)
        changed = _lower(h, needs, np.repeat(value, lengths), need_marks)
        takers, lengths, _ = index.cards_of_need.gather(changed)
        value = np.maximum(v[takers], weight[takers] + np.repeat(h[changed], lengths))
        cards = _lower(through, takers, value, card_marks)
    return h, through


def _lower(values: Floats, at: Ints, to: Floats, marks: Bools) -> Ints:
    """values[at] = min(values[at], to) in place; returns the places that went down. `marks` is all False, and stays."""
    lower = to < values[at]
    at = at[lower]
    np.minimum.at(values, at, to[lower])
    marks[at] = True  # marking and looking through all places beats sorting the changed ones
    changed = np.flatnonzero(marks)
    marks[changed] = False
    return changed
