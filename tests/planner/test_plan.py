import itertools
import re
from dataclasses import replace

import pytest

from planner.cards import ChainRule, LatencyProfile, Threshold
from planner.catalogue import Catalogue
from planner.errors import NoPlan, TermsUnmet
from planner.features import Feature, Port
from planner.goals import Objective, Terms
from planner.plan import EXPLAINING, plan, usual_budget
from planner.plans import REQUEST
from planner.search import Budget
from tests.benchmarks import bench_planning
from tests.planner.exhaustive import check
from tests.planner.worlds import card, wish

CLEAN = card("clean", "image", "image/clean", p50_ms=1, cost=0.1)
EDGES = card("edges", "image/clean", "edges", p50_ms=2, accuracy=0.99, cost=0.1)
BLOBS = card("blobs", "image/clean", "blobs", p50_ms=3, accuracy=0.98, cost=0.1)
JOIN = card("join", "edges blobs", "label/digit", p50_ms=1, cost=0.1)
CHEAP = card("cheap", "image", "label/digit", p50_ms=1, accuracy=0.8, cost=0.05)
DEAR = card("dear", "image/clean", "label/digit", p50_ms=20, accuracy=0.999, cost=3)
DIGITS = Catalogue.of([CLEAN, EDGES, BLOBS, JOIN, CHEAP, DEAR])
PRECISE = Objective(accuracy=100.0)


@pytest.fixture(scope="module")
def huge():
    """A catalogue so large that bounds on the terms are computed only where they are needed, and requests for it."""
    return bench_planning.world(20_500, seed=3)


def names(found):
    return [step.extension.split("@")[0] for step in found.steps]


def test_a_shared_result_is_computed_once_and_feeds_two_steps():
    request = wish("image", "label/digit", objective=Objective(accuracy=10.0))
    best = plan(request, DIGITS).best
    assert sorted(names(best)) == ["blobs", "clean", "edges", "join"]
    check(best, request, DIGITS)
    assert best.prediction.p50_ms == pytest.approx(1 + 3 + 1)
    assert best.prediction.cost == pytest.approx(0.4)
    assert best.prediction.accuracy == pytest.approx(0.99 * 0.98)


def test_what_is_wanted_may_be_there_already():
    best = plan(wish("image/clean", "image"), DIGITS).best
    assert best.steps == ()
    assert best.outputs[0].sources[0].step == REQUEST
    assert best.prediction.cost == 0.0


def test_several_wanted_features_share_their_steps():
    request = wish("image", "edges blobs")
    best = plan(request, DIGITS).best
    check(best, request, DIGITS)
    assert sorted(names(best)) == ["blobs", "clean", "edges"]


def test_an_extension_that_needs_a_feature_twice_gets_two_sources():
    same = card("same", "face face", "verdict")
    request = wish("face face", "verdict")
    best = plan(request, Catalogue.of([same])).best
    check(best, request, Catalogue.of([same]))
    with pytest.raises(NoPlan, match="two different sources"):
        plan(wish("face", "verdict"), Catalogue.of([same]))


def test_inputs_go_to_the_ports_that_bear_their_names():
    same = card("same", "face face", "verdict")
    request = wish("face face", "verdict")
    (step,) = plan(request, Catalogue.of([same])).best.steps
    assert {binding.port: binding.sources[0].port for binding in step.inputs} == {"in0": "in0", "in1": "in1"}


def test_cyclic_producers_do_not_feed_each_other():
    cards = [card("there", "a", "b"), card("back", "b", "a")]
    with pytest.raises(NoPlan):
        plan(wish("c", "b"), Catalogue.of(cards))
    assert names(plan(wish("a", "b"), Catalogue.of(cards)).best) == ["there"]


def test_an_extension_that_is_never_right_is_used_only_when_there_is_no_other():
    never = card("never", "image", "label/digit", accuracy=0.0)
    best = plan(wish("image", "label/digit"), Catalogue.of([never])).best
    assert names(best) == ["never"]
    assert best.score == float("inf")
    assert names(plan(wish("image", "label/digit"), Catalogue.of([never, CHEAP])).best) == ["cheap"]


def test_an_empty_catalogue_has_no_plan():
    with pytest.raises(NoPlan, match="nothing produces `label` from `image`"):
        plan(wish("image", "label"), Catalogue.of([]))


def test_an_extension_that_has_to_be_used_is_in_every_plan():
    request = wish("image", "label/digit", must_use="dear@1")
    found = plan(request, DIGITS)
    assert all("dear" in names(p) for p in found.plans)
    with pytest.raises(NoPlan, match="can use edges@2: the catalogue does not have it"):
        plan(wish("image", "label/digit", must_use="edges@2"), DIGITS)


def test_an_extension_to_be_avoided_is_in_no_plan_and_no_fallback():
    twin = CHEAP.but(name="twin")
    request = wish("image", "label/digit", avoid=frozenset({"cheap@1"}))
    found = plan(request, Catalogue.of([*DIGITS.cards.values(), twin]))
    assert all("cheap" not in names(p) for p in found.plans)
    assert all("cheap@1" not in step.fallbacks for p in found.plans for step in p.steps)


def test_a_chain_rule_keeps_extensions_apart():
    picky = JOIN.but(after=ChainRule(deny=("blob*",)))
    catalogue = Catalogue.of([CLEAN, EDGES, BLOBS, picky])
    with pytest.raises(NoPlan, match="may not follow blobs@1"):
        plan(wish("image", "label/digit"), catalogue)


def test_size_counts_only_where_the_shape_is_open():
    def reader(name, shape):
        return card(name, "a", "b").but(
            inputs=(Port("text", Feature("text", "FP32", shape)),), profile=LatencyProfile(1.0, 0.0, 10.0)
        )

    request = wish("a", "b", kilo=2.0)
    request = request.__class__((Port("text", Feature("text", "FP32", (8,))),), request.wanted, kilo=2.0)
    assert plan(request, Catalogue.of([reader("open", (-1,))])).best.prediction.p50_ms == pytest.approx(21.0)
    assert plan(request, Catalogue.of([reader("fixed", (8,))])).best.prediction.p50_ms == pytest.approx(1.0)


# Reasons.


def test_the_best_plan_says_why_it_won():
    found = plan(wish("image", "label/digit"), DIGITS)
    assert found.best.reason.startswith("80 % accuracy at 1 ms and cost 0.05: best of ")
    assert "next best costs 0.1 more and takes 1 ms more" in found.best.reason


def test_losers_say_what_they_cost_and_bring():
    found = plan(wish("image", "label/digit"), DIGITS, k=1)
    reasons = {tuple(sorted(names(r.plan))): r.reason for r in found.rejected}
    assert reasons["blobs", "clean", "edges", "join"] == "costs 0.35 more and takes 4 ms more for 17 points of accuracy"


def test_losers_with_the_same_score_say_in_what_they_differ():
    slow = CHEAP.but(name="slow", cost=0.03, profile=LatencyProfile(21.0, 0.0, 0.0, 2.0))  # 20 ms for 0.02
    found = plan(wish("image", "label/digit"), Catalogue.of([slow, CHEAP]), k=1)
    assert names(found.best) == ["cheap"]
    assert found.rejected[0].reason == "scores the same: 40 ms slower at p99 and 0.02 cheaper"


def test_twins_are_told_apart_by_their_names():
    found = plan(wish("image", "label/digit"), Catalogue.of([CHEAP, CHEAP.but(name="twin")]))
    first, second = found.plans
    assert f"scores the same with {names(second)[0]}@1 instead of {names(first)[0]}@1" in second.reason


def test_of_equals_the_steadier_then_the_shorter_then_the_cheaper_plan_is_best():
    objective = Objective(accuracy=1.0, latency=0.0, cost=0.0)
    request = wish("a", "c", objective=objective)
    # 0.9 * 0.7 * 0.7 and 0.7 * 0.7 * 0.9 differ in the last digit.
    accuracies = {"p": 0.9, "q": 0.7, "r": 0.7}

    def chain(prefix, order, **more):
        types = ["a", f"{prefix}1", f"{prefix}2", "c"]
        return [
            card(f"{prefix}{i}", types[i], types[i + 1], accuracy=accuracies[which], **more)
            for i, which in enumerate(order)
        ]

    def best(*cards):
        return names(plan(request, Catalogue.of(cards)).best)

    for one, other in (("pqr", "rqp"), ("rqp", "pqr")):
        steady = chain("s", one, p99_ratio=1.5)
        assert best(*steady, *chain("t", other)) == best(*chain("t", other), *steady) == ["s0", "s1", "s2"]
        cheap = chain("s", one, cost=0.1)
        assert best(*cheap, *chain("t", other, cost=0.2)) == ["s0", "s1", "s2"]
    short = [card("u0", "a", "u1", accuracy=0.9, p50_ms=1.5), card("u1", "u1", "c", accuracy=0.49, p50_ms=1.5)]
    assert best(*chain("t", "pqr"), *short) == ["u0", "u1"]


def test_long_plans_are_named_in_short():
    links = [card(f"link{i}", f"t{i}", f"t{i + 1}") for i in range(9)]
    with pytest.raises(TermsUnmet, match=r"\(link0@1 -> link1@1 -> \(5 more\) -> link7@1 -> link8@1; 100 % accuracy"):
        plan(wish("t0", "t9", terms=Terms(deadline_ms=1.0)), Catalogue.of(links))


def test_a_term_that_is_missed_by_little_is_told_with_all_digits_that_matter():
    with pytest.raises(TermsUnmet, match=r"no plan keeps max_cost 0.04999: the cheapest reaches 0.05 \("):
        plan(wish("image", "label/digit", terms=Terms(max_cost=0.04999)), DIGITS)
    with pytest.raises(TermsUnmet, match=r"no plan keeps deadline_ms 1.99999: the fastest reaches a p99 of 2 ms \("):
        plan(wish("image", "label/digit", terms=Terms(deadline_ms=1.99999)), DIGITS)
    found = plan(wish("image", "label/digit", terms=Terms(max_cost=0.39999), objective=PRECISE), DIGITS)
    assert "costs too much: 0.4 > 0.39999" in [r.reason for r in found.rejected]


def test_a_cascade_counts_when_terms_are_asked_for_together():
    terms = Terms(min_accuracy=0.95, max_cost=0.1)
    judge = CHEAP.but(thresholds=(Threshold(0.9, 0.9, 0.99),))
    with pytest.raises(TermsUnmet, match=r"max_cost 0.1 within min_accuracy 0.95: the cheapest reaches 0.36 "):
        plan(wish("image", "label/digit", terms=terms), Catalogue.of([CLEAN, judge, DEAR]))


@pytest.mark.parametrize("terms", [Terms(deadline_ms=4.0), Terms(max_cost=0.05)], ids=["deadline_ms", "max_cost"])
def test_plans_for_a_huge_catalogue_keep_the_term_and_refusals_say_that_less_cannot_be_had(huge, terms):
    catalogue, request = huge
    reached = []
    for _ in range(15):
        try:
            found = plan(replace(request(), terms=terms), catalogue)
        except TermsUnmet as refusal:
            reached += re.findall(r"reaches (?:a p99 of )?([\d.]+)", str(refusal))
        else:
            given = found.best.prediction
            assert given.p99_ms <= 4.0 if terms.deadline_ms else given.cost <= 0.05
    assert len(reached) > 5
    assert min(map(float, reached)) > (terms.deadline_ms or terms.max_cost)


def test_a_misspelt_feature_brings_the_nearest_ones_in_a_huge_catalogue_too(huge):
    catalogue, request = huge
    asked = request()
    feature = asked.wanted[0].feature
    misspelt = replace(feature, type=feature.type.replace("type", "tpye"))
    with pytest.raises(NoPlan, match=f"nearest: .*`{feature.type}`"):
        plan(replace(asked, wanted=(Port("out0", misspelt),), terms=Terms()), catalogue)


def test_losers_say_which_term_they_miss():
    terms = Terms(deadline_ms=30.0, tags=frozenset({"pii"}))
    blind = CHEAP.but(may_see=frozenset())
    catalogue = Catalogue.of([CLEAN, EDGES, BLOBS, JOIN, blind, DEAR])
    found = plan(wish("image", "label/digit", terms=terms, objective=PRECISE), catalogue)
    reasons = {tuple(sorted(names(r.plan))): r.reason for r in found.rejected}
    assert reasons["clean", "dear"] == "misses the deadline: p99 42 ms > 30 ms"
    assert reasons["cheap",] == "cheap@1 is not allowed to see tag pii"
    assert all("cheap@1" not in step.fallbacks for p in found.plans for step in p.steps)


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (Terms(deadline_ms=1.0), r"no plan keeps deadline_ms 1: the fastest reaches a p99 of 2 ms \(cheap@1; "),
        (Terms(max_cost=0.01), r"no plan keeps max_cost 0.01: the cheapest reaches 0.05 \(cheap@1; "),
        (
            Terms(min_accuracy=0.9999),
            r"no plan keeps min_accuracy 0.9999: the most accurate reaches 99.9 % \(clean@1 -> dear@1; ",
        ),
        (
            Terms(min_accuracy=0.9, deadline_ms=9.0),
            r"no plan keeps deadline_ms 9 within min_accuracy 0.9: the fastest reaches a p99 of 10 ms \(clean@1 -> ",
        ),
    ],
)
def test_unmet_terms_are_named_with_the_best_that_can_be_had(terms, message):
    with pytest.raises(TermsUnmet, match=message) as refused:
        plan(wish("image", "label/digit", terms=terms), DIGITS, budget=Budget())  # a slow machine must not cut it short
    assert "Loosen" in refused.value.hint


def test_tags_that_no_plan_may_see_are_named():
    catalogue = Catalogue.of([CHEAP.but(may_see=frozenset({"medical"}))])
    with pytest.raises(TermsUnmet, match="cheap@1 is not allowed to see tag pii"):
        plan(wish("image", "label/digit", terms=Terms(tags=frozenset({"pii", "medical"}))), catalogue)


def test_a_missing_input_is_named_with_the_extension_that_lacks_it():
    with pytest.raises(NoPlan) as refused:
        plan(wish("text/en", "label/digit"), DIGITS)
    message = str(refused.value)
    assert message.startswith("nothing produces `label/digit` from `text/en`; nearest: ")
    assert "cheap@1 would produce it but lacks `image`" in message


def test_a_misspelt_feature_brings_the_nearest_ones():
    with pytest.raises(NoPlan, match="nothing produces `label/digits` from `image`; nearest: `label/digit`"):
        plan(wish("image", "label/digits"), DIGITS)


def test_a_feature_of_another_shape_is_named():
    request = wish("image", "label/digit")
    request = request.__class__(request.inputs, (Port("out0", Feature("label/digit", "INT64", (3,))),))
    with pytest.raises(NoPlan, match=r"`label/digit:FP32\[\]`, where `label/digit:INT64\[3\]` is wanted"):
        plan(request, DIGITS)


# Budgets, fallbacks, step budgets.


def tangle(n_levels=12, width=8):
    """Many ways to the same end, and joins that make the bound weak."""
    cards = [
        card(
            f"e{level}-{i}",
            f"t{level}/a t{level}/b",
            f"t{level + 1}/a t{level + 1}/b",
            p50_ms=1 + i / 10,
            cost=(i + 1) / 100,
        )
        for level in range(n_levels)
        for i in range(width)
    ]
    cards += [
        card(f"half{level}-{i}-{side}", f"t{level}/{side}", f"t{level + 1}/{side}", p50_ms=0.5, cost=0.003 + i / 500)
        for level in range(n_levels)
        for i in range(width)
        for side in "ab"
    ]
    return Catalogue.of(cards), wish("t0/a t0/b", f"t{n_levels}/a t{n_levels}/b", objective=Objective(1, 0.1, 1))


@pytest.mark.parametrize(
    ("budget", "what"),
    [(Budget(max_expansions=5), "5 expansions"), (Budget(max_ms=5.0), "time")],
    ids=["count", "time"],
)
def test_a_search_that_runs_out_of_budget_gives_its_best_and_says_so(budget, what):
    catalogue, request = tangle()
    ticks = itertools.count()
    found = plan(request, catalogue, budget=budget, clock=lambda: next(ticks) * 1e-3)
    assert not found.complete
    assert f"the search was not finished: its budget of {what} ended" in found.best.reason
    check(found.best, request, catalogue)


class Ticking:
    """A clock on which each look takes a tenth of a millisecond."""

    def __init__(self):
        self.looks = 0

    def __call__(self):
        self.looks += 1
        return self.looks * 1e-4


def test_the_usual_budget_ends_in_time_in_a_dense_small_catalogue_and_says_so():
    (catalogue, request), clock = tangle(width=5), Ticking()
    assert len(catalogue.cards) <= 200
    found = plan(request, catalogue, clock=clock)
    assert not found.complete
    assert "its budget of time ended" in found.best.reason
    assert clock() * 1e3 <= 2.0 * usual_budget(len(catalogue.cards)).max_ms


def test_a_dense_small_catalogue_refuses_in_time_and_says_what_is_not_proven():
    (catalogue, request), clock = tangle(width=5), Ticking()
    terms = Terms(max_cost=0.03, deadline_ms=13.0, min_accuracy=0.999)
    with pytest.raises(TermsUnmet, match="found reaches"):
        plan(replace(request, terms=terms), catalogue, clock=clock)
    assert clock() * 1e3 <= (EXPLAINING + 1.0) * usual_budget(len(catalogue.cards)).max_ms


@pytest.mark.parametrize("n_extensions", [0, 1, 200, 201, 100_000])
def test_the_usual_budget_is_always_bounded_in_time(n_extensions):
    assert 0.5 <= usual_budget(n_extensions).max_ms <= 50.0


def test_the_same_request_gets_the_same_plans():
    request = wish("image", "label/digit")
    first, again = plan(request, DIGITS), plan(request, Catalogue.of(DIGITS.cards.values()))
    assert first.plans == again.plans


def test_fallbacks_have_the_same_ports_and_come_best_first():
    twin, better = CHEAP.but(name="twin", cost=0.2), CHEAP.but(name="better", cost=0.06)
    other_port = CHEAP.but(name="other", cost=0.055, inputs=(Port("picture", Feature("image")),))
    barred = CHEAP.but(name="barred", may_see=frozenset())
    catalogue = Catalogue.of([CHEAP, twin, better, other_port, barred])
    request = wish("image", "label/digit", terms=Terms(tags=frozenset({"pii"})))
    (step,) = plan(request, catalogue).best.steps
    assert step.extension == "cheap@1"
    assert step.fallbacks == ("better@1", "twin@1")


def test_fallbacks_respect_chain_rules_on_both_sides():
    shy = BLOBS.but(name="shy", after=ChainRule(deny=("clean",)))
    unwanted = BLOBS.but(name="unwanted")
    good = BLOBS.but(name="good")
    join = JOIN.but(after=ChainRule(deny=("unwanted",)))
    catalogue = Catalogue.of([CLEAN, EDGES, BLOBS, join, shy, unwanted, good])
    best = plan(wish("image", "label/digit"), catalogue).best
    (blobs,) = [step for step in best.steps if step.extension in ("blobs@1", "good@1")]
    assert set(blobs.fallbacks) == {"blobs@1", "good@1"} - {blobs.extension}


def test_a_deadline_is_shared_out_in_proportion_to_the_predicted_times():
    request = wish("image", "label/digit", must_use="dear@1", terms=Terms(deadline_ms=84.0))
    best = plan(request, DIGITS).best
    assert {s.extension: s.budget_ms for s in best.steps} == pytest.approx({"clean@1": 4.0, "dear@1": 80.0})
    assert [s.p50_ms for s in best.steps] == pytest.approx([1.0, 20.0])
    assert all(s.budget_ms is None for s in plan(wish("image", "label/digit"), DIGITS).best.steps)
