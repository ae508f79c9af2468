from __future__ import annotations

import numpy as np
import pytest

from planner.bounds import lower_bounds
from planner.index import Floats, Index, index_of
from planner.search import Limits, Problem
from tests.benchmarks.bench_planning import world


def _settled(index: Index, weight: Floats, given: list[int]) -> tuple[Floats, Floats]:
    """The definition, repeated until nothing changes."""
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


@pytest.mark.parametrize("n_extensions", [1, 5, 20, 300])
@pytest.mark.parametrize("seed", range(5))
def test_prices_are_those_of_the_definition(n_extensions: int, seed: int) -> None:
    catalogue, request = world(n_extensions, seed)
    index = index_of(catalogue)
    for _ in range(3):
        problem = Problem(index, request(), Limits())
        weight = np.where(problem.usable, problem.score + problem.latency_weight * problem.p50_ms, np.inf)
        given = list(problem._given)
        h, v = lower_bounds(index, weight[None], np.array(given, np.int64), np.array([np.inf]))
        expected_h, expected_v = _settled(index, weight, given)
        np.testing.assert_allclose(h[0], expected_h)
        np.testing.assert_allclose(v[0], expected_v)


def test_prices_above_the_limit_stay_infinite() -> None:
    catalogue, request = world(300, 1)
    index = index_of(catalogue)
    problem = Problem(index, request(), Limits())
    weight = problem.score + problem.latency_weight * problem.p50_ms
    given = np.fromiter(problem._given, np.int64)
    free, _ = lower_bounds(index, weight[None], given, np.array([np.inf]))
    most = float(np.median(free[np.isfinite(free) & (free > 0)]))
    limited, _ = lower_bounds(index, weight[None], given, np.array([most]))
    assert (limited[free <= most] == free[free <= most]).all()
    assert np.isinf(limited[free > most]).all()


def test_an_index_in_which_many_extensions_give_the_same_grows_its_queue() -> None:
    """Each of the extensions makes what all give cheaper once more, so that it waits many times over."""
    catalogue, request = world(20, 3)
    index = index_of(catalogue)
    problem = Problem(index, request(), Limits())
    rng = np.random.default_rng(0)
    for _ in range(200):
        weight = rng.random(len(index.cards)) * 100.0
        h, _ = lower_bounds(index, weight[None], np.fromiter(problem._given, np.int64), np.array([np.inf]))
        np.testing.assert_allclose(h[0], _settled(index, weight, list(problem._given))[0])
