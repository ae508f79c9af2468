import gc
import itertools
import traceback
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.catalogue import Catalogue
from planner.errors import NoPlan, TermsUnmet
from planner.goals import Terms
from planner.plan import plan
from planner.plan_cache import PlanCache, rounded
from tests.planner.worlds import card, wish, worlds

CARDS = [
    card("fast", "image", "label", p50_ms=1, accuracy=0.8, cost=0.01),
    card("good", "image", "label", p50_ms=10, accuracy=0.95, cost=0.2),
]
CATALOGUE = Catalogue.of(CARDS)


class Counting:
    """The planner, counted."""

    def __init__(self) -> None:
        self.requests = []

    def __call__(self, request, catalogue):
        self.requests.append(request)
        return plan(request, catalogue)


@pytest.fixture
def planner():
    return Counting()


@pytest.fixture
def cache(planner):
    return PlanCache(planner=planner)


def test_an_equal_request_is_planned_once(cache, planner):
    first = cache.get_or_plan(wish("image", "label"), CATALOGUE)
    assert cache.get_or_plan(wish("image", "label"), CATALOGUE) is first
    assert len(planner.requests) == 1
    assert (cache.hits, cache.misses) == (1, 1)


def test_terms_of_one_class_share_a_plan_that_honours_the_strictest(cache, planner):
    for deadline_ms in (30.4, 30.0, 29.9, 29.0):
        found = cache.get_or_plan(wish("image", "label", terms=Terms(deadline_ms=deadline_ms)), CATALOGUE)
        assert found.best.prediction.p99_ms <= deadline_ms
    assert len(planner.requests) == 1
    assert planner.requests[0].terms.deadline_ms <= 29.0


def test_user_and_priority_do_not_part_requests(cache, planner):
    cache.get_or_plan(wish("image", "label", terms=Terms(user="a", priority=0)), CATALOGUE)
    cache.get_or_plan(wish("image", "label", terms=Terms(user="b", purpose="billing")), CATALOGUE)
    cache.get_or_plan(wish("image", "label", terms=Terms(partial=True, min_confidence=0.9)), CATALOGUE)
    assert len(planner.requests) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"terms": Terms(tags=frozenset({"pii"}))},
        {"terms": Terms(deadline_ms=100.0)},
        {"terms": Terms(max_cost=0.0)},
        {"n_rows": 100},
        {"kilo": 3.0},
        {"avoid": frozenset({"fast@1"})},
        {"must_use": "good@1"},
        {"goal": "read"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_changes_the_plan_parts_requests(cache, planner, other):
    cache.get_or_plan(wish("image", "label"), CATALOGUE)
    try:
        cache.get_or_plan(replace(wish("image", "label"), **other), CATALOGUE)
    except NoPlan:
        assert other == {"terms": Terms(max_cost=0.0)}
    assert len(planner.requests) > 1


def test_a_new_epoch_is_planned_anew(cache, planner):
    cache.get_or_plan(wish("image", "label"), CATALOGUE)
    cache.get_or_plan(wish("image", "label"), Catalogue.of(CARDS, epoch=2))
    assert len(planner.requests) == 2


def test_rows_are_planned_for_the_next_power_of_two(cache, planner):
    for n_rows in (5, 6, 7, 8):
        cache.get_or_plan(wish("image", "label", n_rows=n_rows), CATALOGUE)
    assert [request.n_rows for request in planner.requests] == [8]


def test_terms_that_only_rounding_makes_impossible_are_planned_exactly(cache, planner):
    request = wish("image", "label", terms=Terms(deadline_ms=2.0))  # the fast one's p99 to the dot
    for _ in range(3):
        assert cache.get_or_plan(request, CATALOGUE).best.extensions() == ("fast@1",)
    assert len(planner.requests) == 2
    with pytest.raises(TermsUnmet, match=r"deadline_ms 1\.99"):
        cache.get_or_plan(wish("image", "label", terms=Terms(deadline_ms=1.99)), CATALOGUE)


def test_refusals_are_kept_and_raised_again(cache, planner):
    for _ in range(3):
        with pytest.raises(NoPlan, match="nothing produces `verdict` from `image`"):
            cache.get_or_plan(wish("image", "verdict"), CATALOGUE)
    assert len(planner.requests) == 1


def test_a_refusal_that_is_raised_often_does_not_grow(cache):
    request = wish("image", "unheard")
    for _ in range(1000):
        with pytest.raises(NoPlan) as refused:
            cache.get_or_plan(request, CATALOGUE)
    assert len(traceback.extract_tb(refused.value.__traceback__)) == 2  # of this raising alone
    assert refused.value.__context__ is None
    del refused
    gc.collect()
    errors = [kept for kept in gc.get_objects() if issubclass(type(kept), NoPlan)]  # isinstance would wake lazy modules
    assert not [error for error in errors if "unheard" in str(error)]


def test_a_kept_refusal_says_all_that_the_first_one_said(cache):
    refusals = []
    for _ in range(2):
        with pytest.raises(NoPlan) as refused:
            cache.get_or_plan(wish("image", "label", terms=Terms(max_cost=1e-3)), CATALOGUE)
        refusals.append(refused.value)
    first, again = refusals
    assert first is not again
    assert (type(first), first.message, first.hint) == (type(again), again.message, again.hint)
    assert type(first) is TermsUnmet
    assert first.hint


def test_the_least_recently_used_plan_goes_first(planner):
    cache = PlanCache(capacity=2, planner=planner)
    for n_rows in (1, 2, 1, 4, 1, 2):
        cache.get_or_plan(wish("image", "label", n_rows=n_rows), CATALOGUE)
    assert [request.n_rows for request in planner.requests] == [1, 2, 4, 2]
    assert len(cache) == 2


positive = st.floats(1e-6, 1e6)


@settings(max_examples=300, deadline=None)
@given(positive, positive, st.floats(1e-6, 1.0), st.integers(1, 10_000), positive)
def test_a_class_is_rounded_to_the_strict_side_by_little(deadline_ms, max_cost, min_accuracy, n_rows, kilo):
    terms = Terms(deadline_ms=deadline_ms, max_cost=max_cost, min_accuracy=min_accuracy)
    strict = rounded(wish("image", "label", terms=terms, n_rows=n_rows, kilo=kilo))
    assert deadline_ms / 1.051 <= strict.terms.deadline_ms <= deadline_ms
    assert max_cost / 1.051 <= strict.terms.max_cost <= max_cost
    assert min_accuracy <= strict.terms.min_accuracy <= 1.0
    assert n_rows <= strict.n_rows < 2 * n_rows
    assert kilo <= strict.kilo
    assert strict.kilo <= kilo * 1.051


EDGES = {
    "deadline_ms": (None, 5e-324, 1e-300, 0.5, 1.0, 2.0, 30.0, 1e250, 1e290),
    "max_cost": (None, 0.0, 5e-324, 1e-300, 0.01, 0.2, 0.5, 1.0, 1e250, 1e290),
    "min_accuracy": (None, 0.0, 1e-300, 1e-17, 0.5, 0.8, 0.95, 1.0 - 1e-16, 1.0),
}


@pytest.mark.parametrize("name", EDGES)
def test_no_limit_the_ends_and_classes_are_told_apart(name):
    """Each value gets the plan or the refusal that it would get alone, whichever came before."""
    never = card("never", "image", "label", p50_ms=0.1, accuracy=0.0, cost=0.0)
    catalogue = Catalogue.of([*CARDS, never])
    values = EDGES[name]
    assert len(
        {str(getattr(rounded(wish("image", "label", terms=Terms(**{name: v}))).terms, name)) for v in values}
    ) == len(values)

    def outcome(planner, value):
        try:
            return planner(wish("image", "label", terms=Terms(**{name: value})), catalogue).best.extensions()
        except TermsUnmet:
            return "refused"

    alone = {value: outcome(PlanCache().get_or_plan, value) for value in values}
    assert {v for v in values if alone[v] == "refused"} == {v for v in values if outcome(plan, v) == "refused"}
    assert len(set(alone.values())) > 1
    for first, second in itertools.permutations(values, 2):
        cache = PlanCache()
        outcome(cache.get_or_plan, first)
        assert outcome(cache.get_or_plan, second) == alone[second], (first, second)


def limits(*ends, most):
    return st.none() | st.sampled_from(ends) | st.floats(0.0, most)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    worlds(),
    st.lists(
        st.builds(
            Terms,
            deadline_ms=limits(5e-324, 1e-300, 1.0, 1e290, most=30.0).map(lambda v: v or None),
            max_cost=limits(0.0, 1e-300, 1.0, 1e290, most=1.5),
            min_accuracy=limits(0.0, 1e-300, 1e-17, 1.0 - 1e-16, 1.0, most=1.0),
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_a_plan_from_the_cache_keeps_the_exact_terms(world, asked):
    request, catalogue = world
    cache = PlanCache()
    for terms in [*asked, *asked]:
        try:
            found = cache.get_or_plan(replace(request, terms=terms), catalogue)
        except NoPlan:
            continue
        for p in found.plans:
            promised = p.prediction
            assert terms.deadline_ms is None or promised.p99_ms <= terms.deadline_ms * (1 + 1e-9) + 1e-12
            assert terms.max_cost is None or promised.cost <= terms.max_cost * (1 + 1e-9) + 1e-12
            assert terms.min_accuracy is None or promised.accuracy >= terms.min_accuracy * (1 - 1e-9) - 1e-12
