"""What any plan must pay at least, per need and per card: the bounds that guide the search.

The settling of prices is compiled by numba: over 100,000 extensions it takes about 12 ms. It is compiled when this
module is first imported after an installation and cached from then on.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np
from numba import njit

from planner.index import Bools, Floats, Index, Ints, Narrow

N_BUCKETS = 16_384
FEW = 64  # needs of a bucket that are sorted by insertion; a heap takes the others
SPAN = 20.0  # how far the buckets reach, in mean weights; what is dearer shares the last one
_Function = TypeVar("_Function", bound=Callable[..., Any])


def lower_bounds(index: Index, weights: Floats, given: Ints, most: Floats) -> tuple[Floats, Floats]:
    """Per criterion, the least that any plan pays for a need, and for a need met by a given card.

    `weights` is (n_criteria, n_cards), at least 0, infinite where a card must not be used; `given` are the needs that
    the request itself meets, at price 0; prices above `most`, (n_criteria,), are left infinite. Returns h,
    (n_criteria, n_needs), and v, (n_criteria, n_cards), with

        h(need) = min over cards that give it: v(card),    v(card) = weight(card) + max over its needs: h(need)

    infinite where no plan exists. Taking the dearest input alone, not the sum, is what keeps the bound admissible
    when plans share sub-results: h_max of Bonet and Geffner 2001, Artificial Intelligence 129.
    """
    n_criteria, n_cards = weights.shape
    h = np.full((n_criteria, len(index.needs)), np.inf)
    v = np.full((n_criteria, n_cards), np.inf)
    finite = np.isfinite(weights[0])
    mean = weights[:, finite].mean(axis=1) if finite.any() else np.ones(n_criteria)
    n_buckets = min(N_BUCKETS, len(index.needs) + 1)
    for row in range(n_criteria):
        per_price = n_buckets / (SPAN * float(mean[row]) or 1.0)
        _settle(*index.links, weights[row], given, float(most[row]), n_buckets, per_price, h[row], v[row])
    return h, v


def _compiled(signature: str) -> Callable[[_Function], _Function]:
    """`njit` that keeps the type of what it compiles."""
    return cast(Callable[[_Function], _Function], njit(signature, cache=True))


@_compiled("void(float64[::1], int32[::1], int64, float64, int64)")
def _push(prices: Floats, needs: Narrow, n: int, price: float, need: int) -> None:
    """Adds to a heap of `n` prices, smallest first, four children to a parent: half the depth of a binary one."""
    while n > 0:
        parent = (n - 1) >> 2
        if prices[parent] <= price:
            break
        prices[n], needs[n] = prices[parent], needs[parent]
        n = parent
    prices[n], needs[n] = price, need


@_compiled("void(float64[::1], int32[::1], int64)")
def _pop(prices: Floats, needs: Narrow, n: int) -> None:
    """Takes the first away from a heap of `n`."""
    n -= 1
    price, need, hole = prices[n], needs[n], 0
    while 4 * hole + 1 < n:
        least = 4 * hole + 1
        for child in range(least + 1, min(4 * hole + 5, n)):
            if prices[child] < prices[least]:
                least = child
        if prices[least] >= price:
            break
        prices[hole], needs[hole] = prices[least], needs[least]
        hole = least
    prices[hole], needs[hole] = price, need


@_compiled(f"void({'int32[::1], ' * 7} float64[::1], int64[::1], float64, int64, float64, float64[::1], float64[::1])")
def _settle(
    cards_of_need_ptr: Narrow,
    cards_of_need: Narrow,
    n_needs_of_card: Narrow,
    outs_of_card_ptr: Narrow,
    outs_of_card: Narrow,
    needs_of_out_ptr: Narrow,
    needs_of_out: Narrow,
    weight: Floats,
    given: Ints,
    most: float,
    n_buckets: int,
    buckets_per_price: float,
    h: Floats,
    v: Floats,
) -> None:
    """Fills h and v, all infinite before, for one criterion.

    Needs are settled in the order of their prices, as by Dijkstra, and a card is priced when the last of its needs is,
    which is its dearest: Knuth 1977, Information Processing Letters 6. What is not due yet waits unsorted in buckets
    of equal width. Of the bucket at hand the first few are sorted by insertion and the others, like what falls due
    while it is being settled, go to a heap: with 100,000 cards that saves a sixth of the time that heaps alone take.
    """
    lacking = n_needs_of_card.copy()
    cheapest = np.full(len(needs_of_out_ptr) - 1, np.inf)  # per out
    settled = np.zeros(len(h), np.bool_)
    # A need waits again whenever one more card makes it cheaper. Room that is not used is never touched.
    room = len(given)
    for out in outs_of_card:
        room += needs_of_out_ptr[out + 1] - needs_of_out_ptr[out]
    heap_prices, heap_needs, n_heap = np.empty(room), np.empty(room, np.int32), 0
    first = np.full(n_buckets, -1, np.int32)  # linked lists of entries
    entry_need, entry_next, n_entries = np.empty(room, np.int32), np.empty(room, np.int32), 0
    few, n_few, at = np.empty(FEW, np.int32), 0, 0  # sorted, settled up to `at`
    for need in given:
        h[need] = 0.0
        _push(heap_prices, heap_needs, n_heap, 0.0, need)
        n_heap += 1
    bucket = 0
    while True:
        if n_heap == 0 and at == n_few:
            bucket += 1
            while bucket < n_buckets and first[bucket] < 0:
                bucket += 1
            if bucket >= n_buckets:
                return
            n_few, at, entry = 0, 0, first[bucket]
            while entry >= 0:
                need = entry_need[entry]
                if not settled[need]:
                    if n_few < FEW:
                        hole = n_few
                        while hole > 0 and h[few[hole - 1]] > h[need]:
                            few[hole] = few[hole - 1]
                            hole -= 1
                        few[hole] = need
                        n_few += 1
                    else:
                        _push(heap_prices, heap_needs, n_heap, h[need], need)
                        n_heap += 1
                entry = entry_next[entry]
            continue
        if at < n_few and (n_heap == 0 or h[few[at]] <= heap_prices[0]):
            need = few[at]
            at += 1
        else:
            need = heap_needs[0]
            _pop(heap_prices, heap_needs, n_heap)
            n_heap -= 1
        if settled[need]:
            continue
        price = h[need]
        settled[need] = True
        for i in range(cards_of_need_ptr[need], cards_of_need_ptr[need + 1]):
            card = cards_of_need[i]
            lacking[card] -= 1
            value = price + weight[card]
            if lacking[card] > 0 or value == np.inf:
                continue
            v[card] = value
            if value > most:
                continue
            for j in range(outs_of_card_ptr[card], outs_of_card_ptr[card + 1]):
                out = outs_of_card[j]
                if value >= cheapest[out]:
                    continue
                cheapest[out] = value
                for k in range(needs_of_out_ptr[out], needs_of_out_ptr[out + 1]):
                    met = needs_of_out[k]
                    if value < h[met]:
                        h[met] = value
                        due = min(value * buckets_per_price, n_buckets - 1.0)
                        if due < bucket + 1:
                            _push(heap_prices, heap_needs, n_heap, value, met)
                            n_heap += 1
                        else:
                            entry_need[n_entries], entry_next[n_entries] = met, first[int(due)]
                            first[int(due)] = n_entries
                            n_entries += 1


def lower_bounds_through(index: Index, weight: Floats, v: Floats, card: int) -> tuple[Floats, Floats]:
    """The least that any plan pays for a need, and for a need met by a given card, with `card` at or above it.

    `weight` and `v` are one criterion's row of what `lower_bounds` takes and gives. Shapes (n_needs,), (n_cards,).
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
