from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest

from planner.bounds import Prices
from planner.index import Floats, Index, index_of
from planner.plans import PlanRequest
from planner.search import Limits, Problem
from tests.benchmarks.bench_planning import world

N_CRITERIA = 8


def _definition(index: Index, weight: Floats, given: list[int]) -> tuple[Floats, Floats]:
    """Prices by their definition, repeated until nothing changes."""
    h, v = np.full(len(index.needs), np.inf), np.full(len(index.cards), np.inf)
    h[given] = 0.0
    while True:
        value = np.array([weight[card] + max(h[need] for need in index.card_needs[card]) for card in range(len(v))])
        cheaper = h.copy()
        for card, outs in enumerate(index.card_outs):
            for out in outs:
                for need in index.needs_of_out.of_node(out):
                    cheaper[need] = min(cheaper[need], value[card])
        if np.array_equal(cheaper, h) and np.array_equal(value, v):
            return h, v
        h, v = cheaper, value


def _behind(index: Index, weight: Floats, wanted: list[list[int]]) -> Floats:
    """The least that lies between a need and what is wanted, repeated until nothing changes."""
    behind = np.full(len(index.needs), np.inf)
    while True:
        less = behind.copy()
        for card, outs in enumerate(index.card_outs):
            after = [behind[need] for out in outs for need in index.needs_of_out.of_node(out)]
            after += [0.0 for out in outs for found in wanted if out in found]
            for need in index.card_needs[card]:
                less[need] = min(less[need], weight[card] + min(after, default=math.inf))
        if np.array_equal(less, behind):
            return behind
        behind = less


class _World:
    """A request over a random catalogue, with prices to be settled and what they should be."""

    def __init__(self, index: Index, request: PlanRequest, rates: Floats) -> None:
        problem = Problem(index, request, Limits())
        self.index, self.rates, self.usable = index, rates, problem.usable
        self.given, self.wanted = list(problem._given), problem._goal_outs
        self.met = [bool(inputs) for inputs in problem._goal_given]
        self.weight = np.where(problem.usable, index.weights(rates), np.inf)
        self.h, self.v = _definition(index, self.weight, self.given)
        self.goal = max(
            0.0 if met else min((self.v[c] for out in outs for c in index.cards_of_out.of_node(out)), default=math.inf)
            for outs, met in zip(self.wanted, self.met, strict=True)
        )

    def prices(self, n_behind: int = 0) -> Prices:
        given = np.array(self.given, np.int64)
        return Prices(self.index, self.rates, self.usable, given, self.wanted, self.met, n_behind)


def _worlds(n_extensions: int, seed: int, n: int = 3) -> list[_World]:
    catalogue, request = world(n_extensions, seed)
    rng = np.random.default_rng(seed)
    return [_World(index_of(catalogue), request(), rng.random(N_CRITERIA)) for _ in range(n)]


def _of_needs(prices: Prices, world: _World) -> Floats:
    return np.array([prices.of_need(need) for need in range(len(world.h))])


@pytest.mark.parametrize("n_extensions", [1, 5, 20, 300])
@pytest.mark.parametrize("seed", range(5))
def test_prices_are_those_of_the_definition(n_extensions: int, seed: int) -> None:
    for world_ in _worlds(n_extensions, seed):
        prices = world_.prices()
        prices.settle()
        assert prices.reach == math.inf
        np.testing.assert_allclose(_of_needs(prices, world_), world_.h)
        np.testing.assert_allclose(prices.of_cards(slice(None)), world_.v)


@pytest.mark.parametrize("n_behind", [0, 1, 10, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_prices_are_exact_within_the_reach_and_never_too_low_beyond(n_behind: int, seed: int) -> None:
    for world_ in _worlds(300, seed):
        prices = world_.prices(n_behind)
        prices.settle(0.0, 1.2)
        assert prices.reach >= 1.2 * world_.goal or prices.reach == math.inf
        found, cards = _of_needs(prices, world_), prices.of_cards(slice(None))
        behind = _behind(world_.index, world_.weight, world_.wanted)
        inside = world_.h + behind < prices.reach * (1 - 1e-9)
        np.testing.assert_allclose(found[inside], world_.h[inside])
        assert (found >= world_.h * (1 - 1e-9)).all()
        assert (cards >= world_.v * (1 - 1e-9)).all()
        # A card is priced as soon as all of its needs are.
        priced = [inside[list(needs)].all() for needs in world_.index.card_needs]
        np.testing.assert_allclose(cards[priced], world_.v[priced])


@pytest.mark.parametrize("n_behind", [0, 10, 10_000])
@pytest.mark.parametrize("seed", range(4))
def test_what_a_need_costs_at_least_is_never_too_high_where_it_is_of_use(n_behind: int, seed: int) -> None:
    for world_ in _worlds(300, seed):
        prices = world_.prices(n_behind)
        prices.settle(0.0, 1.1)
        useful = np.isfinite(_behind(world_.index, world_.weight, world_.wanted))
        least = np.array([prices.at_least(need) for need in range(len(world_.h))])
        assert (least[useful] <= world_.h[useful] * (1 + 1e-9)).all()


@pytest.mark.parametrize("n_behind", [0, 10])
@pytest.mark.parametrize("seed", range(4))
def test_settling_on_comes_to_the_same_as_settling_at_once(n_behind: int, seed: int) -> None:
    for world_ in _worlds(300, seed):
        prices = world_.prices(n_behind)
        reached = []
        for least in (0.0, 0.4 * world_.goal, world_.goal, 1.5 * world_.goal, 0.1, math.inf):
            prices.settle(least)
            reached.append(prices.reach)
        assert all(before <= after for before, after in pairwise(reached))
        assert prices.reach == math.inf
        useful = np.isfinite(_behind(world_.index, world_.weight, world_.wanted)) | (n_behind == 0)
        np.testing.assert_allclose(_of_needs(prices, world_)[useful], world_.h[useful])


def test_less_is_settled_when_it_is_known_what_lies_behind() -> None:
    counts = np.zeros((2, 12), np.int64)
    for i, world_ in enumerate(_worlds(1000, 1, n=12)):
        for j, n_behind in enumerate((0, 200)):
            prices = world_.prices(n_behind)
            prices.settle(0.0, 1.1)
            counts[j, i] = np.isfinite(prices.of_cards(slice(None))).sum()
    assert (counts[1] <= counts[0]).all()
    assert counts[1].sum() < 0.5 * counts[0].sum()


def test_an_index_in_which_many_extensions_give_the_same_grows_its_queue() -> None:
    """Each of the extensions makes what all give cheaper once more, so that it waits many times over."""
    catalogue, request = world(20, 3)
    index = index_of(catalogue)
    rng = np.random.default_rng(0)
    for _ in range(200):
        world_ = _World(index, request(), rng.random(N_CRITERIA) * 100.0)
        prices = world_.prices()
        prices.settle()
        np.testing.assert_allclose(_of_needs(prices, world_), world_.h)
