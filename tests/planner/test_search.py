import time

import pytest
from hypothesis import HealthCheck, assume, given, settings

from planner.catalogue import Catalogue
from planner.errors import NoPlan
from planner.index import index_of
from planner.plan import plan
from planner.plans import PlanRequest
from planner.search import Budget, Limits, Problem
from tests.planner.exhaustive import TooMany, Whole, all_plans, check
from tests.planner.worlds import worlds

slow = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
)


def best_by_extensions(wholes: list[Whole]) -> list[Whole]:
    best: dict[frozenset, Whole] = {}
    for whole in sorted(wholes, key=lambda w: w.score):
        best.setdefault(whole.extensions, whole)
    return list(best.values())


def try_all(request: PlanRequest, catalogue: Catalogue) -> list[Whole]:
    try:
        return best_by_extensions(all_plans(request, catalogue, most=4000))
    except TooMany:
        assume(False)
        raise


@slow
@given(worlds())
def test_the_k_best_plans_are_those_of_exhaustive_search(world):
    request, catalogue = world
    expected = try_all(request, catalogue)
    try:
        found = plan(request, catalogue, k=4, budget=Budget())
    except NoPlan:
        assert not expected
        return
    assert found.complete
    assert [p.score for p in found.plans] == pytest.approx([w.score for w in expected[:4]])
    assert len({frozenset(p.extensions()) for p in found.plans}) == len(found.plans)
    for p in found.plans:
        check(p, request, catalogue)


@slow
@given(worlds())
def test_the_usual_budget_proves_the_best_plan_of_a_small_catalogue(world):
    request, catalogue = world
    expected = try_all(request, catalogue)
    assume(expected)
    found = plan(request, catalogue, clock=time.thread_time)  # what else the machine does takes no budget
    assert found.complete
    assert found.best.score == pytest.approx(expected[0].score)
    assert [p.score for p in found.plans] == sorted(p.score for p in found.plans)
    for p in (*found.plans, *[r.plan for r in found.rejected]):
        if not any(not catalogue.cards[id_].sees(request.terms.tags) for id_ in p.extensions()):
            check(p, request, catalogue)


@slow
@given(worlds())
def test_the_bound_never_exceeds_the_best_completion(world):
    request, catalogue = world
    expected = try_all(request, catalogue)
    assume(expected)
    problem = Problem(index_of(catalogue), request, Limits.of(request))
    root = problem.root()
    assert root is not None
    assert root.bound <= min(expected[0].score, 1e300) + 1e-9
    # Along the way: no child promises less than its parent is sure of, and a complete plan costs what it promised.
    stack, visited = [root], 0
    while stack and visited < 200:
        visited += 1
        state = stack.pop()
        if not state.open:
            extensions = frozenset(problem.index.names[c] for c in state.cards())
            same = [w for w in expected if w.extensions == extensions]
            assert same
            assert state.bound >= same[0].score - 1e-9 or same[0].score > 1e300
            continue
        rivals = [w.score for w in expected if {problem.index.names[c] for c in state.cards()} <= w.extensions]
        done = search_from(problem, state)
        if done is not None:
            assert rivals
            assert state.bound <= done + 1e-9
        entry = problem.next_need(state)
        stack += problem.from_there(state, entry)
        for giver in problem.givers(entry[2])[0]:
            stack += problem.with_card(state, entry, giver)


def search_from(problem: Problem, state) -> float | None:
    """The best score below a state, by trying everything; None when nothing is below it or there is too much."""
    best, stack, visited = None, [state], 0
    while stack:
        visited += 1
        if visited > 300:
            return None
        state = stack.pop()
        if not state.open:
            best = state.bound if best is None else min(best, state.bound)
            continue
        entry = problem.next_need(state)
        stack += problem.from_there(state, entry)
        for giver in problem.givers(entry[2])[0]:
            stack += problem.with_card(state, entry, giver)
    return best
