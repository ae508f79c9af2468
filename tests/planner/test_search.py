import time

import pytest
from hypothesis import HealthCheck, assume, given, settings

from planner.catalogue import Catalogue
from planner.errors import NoPlan
from planner.index import index_of
from planner.plan import plan
from planner.plans import PlanRequest
from planner.search import Budget, Limits, Problem, search
from tests.benchmarks import bench_planning
from tests.planner.exhaustive import TooMany, Whole, all_plans, check
from tests.planner.worlds import worlds

slow = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much, HealthCheck.too_slow]
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


@settings(slow, max_examples=30)
@given(worlds())
def test_bounds_that_reach_only_as_far_as_the_search_asks_lead_to_the_same_plans(world):
    request, catalogue = world
    expected = try_all(request, catalogue)
    problem = Problem(index_of(catalogue), request, Limits.of(request), thorough=False)
    for state in search(problem.without_limits(), 1, Budget(), time.perf_counter).states:
        problem.sharpen(state)
    found = search(problem, 4, Budget(), time.perf_counter)
    assert found.complete
    most = 1e5  # all that are never right are equal
    scores = [min(state.bound, most) for state in found.states[:4]]
    assert scores == pytest.approx([min(whole.score, most) for whole in expected[:4]])


@pytest.mark.parametrize("seed", range(6))
def test_the_best_plan_is_the_same_however_far_the_bounds_reach_at_first(seed):
    catalogue, request = bench_planning.world(400, seed)
    n_wider = 0
    for _ in range(10):
        asked = request()
        problems = [
            Problem(index_of(catalogue), asked, Limits.of(asked), thorough=thorough) for thorough in (True, False)
        ]
        reach = problems[1].reach
        found = [search(problem, 1, Budget(max_expansions=1500), time.perf_counter) for problem in problems]
        if found[0].complete and found[1].complete:
            best = [[state.bound for state in one.states[:1]] for one in found]
            assert best[0] == pytest.approx(best[1])
        n_wider += problems[1].reach > reach
    assert n_wider > 0


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
