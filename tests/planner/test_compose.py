import functools
import itertools
import random

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner import plan as planning
from planner.cards import Accuracy, Card, Evidence, LatencyProfile, Threshold
from planner.catalogue import Catalogue
from planner.drafts import Draft
from planner.errors import NoPlan, TermsUnmet
from planner.estimates import predict
from planner.features import Feature, Port
from planner.goals import Objective, Terms
from planner.index import thresholds_of
from planner.plans import REQUEST, Binding, Guard, Plan, PlanRequest, Source, Step, StepId
from planner.search import Budget
from tests.planner.exhaustive import check
from tests.planner.worlds import card, port, wish, world

N_ROWS = 2000


def measured(name: str, inputs: str, accuracy: float, seed: int, **more) -> Card:
    """A classifier into `probs` with evidence: surer of what it gets right than of what it does not."""
    rng = np.random.default_rng(seed)
    correct = rng.random(N_ROWS) < accuracy
    confidence = np.where(correct, rng.beta(8, 1, N_ROWS), rng.beta(2, 3, N_ROWS)).astype(np.float16)
    thresholds = tuple(
        Threshold(t, float((confidence >= t).mean()), float(correct[confidence >= t].mean())) for t in (0.5, 0.7, 0.9)
    )
    return card(
        name,
        inputs,
        "probs",
        accuracy=float(correct.mean()),
        evidence=Evidence.of("digits", correct, confidence),
        thresholds=thresholds,
        **more,
    )


CLEAN = card("clean", "image", "image/clean", p50_ms=1, cost=0.1)
CHEAP = measured("cheap", "image", 0.9, seed=1, p50_ms=1, cost=0.01)
DEAR = measured("dear", "image/clean", 0.98, seed=2, p50_ms=30, cost=1.0)
LABEL = card("label", "probs", "label", p50_ms=0.5)
VOTE = Card(
    "vote",
    "1",
    (Port("votes", Feature("probs"), 5),),
    (Port("out0", Feature("probs/voted")),),
    profile=LatencyProfile(0.2, 0.0),
)
# Without a limit in time, which would make what is found depend on the machine.
plan = functools.partial(planning.plan, budget=Budget(max_expansions=20_000))
PRECISE = Objective(accuracy=20.0, latency=1.0, cost=0.1)


def of_kind(kind: str, request: PlanRequest, *cards: Card) -> Plan:
    catalogue = Catalogue.of(cards)
    found = plan(request, catalogue, k=20)
    plans = [p for p in found.plans if p.kind == kind]
    assert plans, [p.reason for p in found.plans]
    check(plans[0], request, catalogue)
    return plans[0]


def test_a_cascade_asks_the_dear_extension_only_for_unsure_rows():
    request = wish("image", "label", objective=PRECISE)
    cascade = plan(request, Catalogue.of([CLEAN, CHEAP, DEAR, LABEL])).best
    assert cascade.kind == "cascade"
    check(cascade, request, Catalogue.of([CLEAN, CHEAP, DEAR, LABEL]))
    steps = {step.extension: step for step in cascade.steps}
    assert steps["cheap@1"].guard is None
    # What only the dear branch needs is guarded with it.
    assert steps["clean@1"].guard == steps["dear@1"].guard
    assert steps["dear@1"].guard.step == steps["cheap@1"].id
    (joined,) = steps["label@1"].inputs
    assert [source.step for source in joined.sources] == [steps["cheap@1"].id, steps["dear@1"].id]


def test_a_cascade_is_as_accurate_and_as_cheap_as_the_evidence_says():
    cascade = of_kind("cascade", wish("image", "label", objective=PRECISE), CLEAN, CHEAP, DEAR, LABEL)
    below = next(step.guard.below for step in cascade.steps if step.guard)
    kept = CHEAP.evidence.confidence_rows() >= below
    right = np.where(kept, CHEAP.evidence.correct_rows(), DEAR.evidence.correct_rows()).mean()
    assert right - 0.003 < cascade.prediction.accuracy < right  # less a little for luck
    assert cascade.prediction.cost == pytest.approx(0.01 + (1 - kept.mean()) * 1.1)
    assert 2 < cascade.prediction.p50_ms < 20 < 31 < cascade.prediction.p99_ms


def test_a_cascade_does_not_win_when_the_cheap_extension_is_never_sure():
    unsure = CHEAP.but(thresholds=(Threshold(0.5, 0.01, 0.9),), evidence=None)
    best = plan(wish("image", "label", objective=PRECISE), Catalogue.of([CLEAN, unsure, DEAR, LABEL])).best
    assert best.kind == "graph"


def test_an_extension_without_thresholds_starts_no_cascade():
    blind = CHEAP.but(thresholds=())
    found = plan(wish("image", "label"), Catalogue.of([CLEAN, blind, DEAR.but(thresholds=()), LABEL]), k=20)
    assert all(p.kind == "graph" for p in found.plans)


def test_the_author_s_threshold_is_the_one_that_is_used():
    own = CHEAP.but(confidence_threshold=0.9)
    cascade = of_kind("cascade", wish("image", "label", objective=PRECISE), CLEAN, own, DEAR, LABEL)
    assert {step.guard.below for step in cascade.steps if step.guard} == {0.9}


def readers(seed: int) -> list[tuple[Card, Card | None]]:
    """Six classifiers, most with a helper of their own that is as dear as themselves."""
    rng = random.Random(seed)
    found: list[tuple[Card, Card | None]] = []
    for i in range(6):
        accuracy = rng.uniform(0.85, 0.99)
        cost = rng.uniform(0.5, 2.0) * (accuracy - 0.84) ** 2 * 50
        helper = None if rng.random() < 0.3 else card(f"helper{i}", "image", f"image/h{i}", p50_ms=1, cost=cost)
        own = cost if helper is None else 0.01
        reader = measured(f"reader{i}", f"image/h{i}" if helper else "image", accuracy, seed * 10 + i, cost=own)
        found.append((reader, helper))
    return found


def best_cascade(made: list[tuple[Card, Card | None]], objective: Objective) -> float:
    """The best score of all pairs and thresholds."""
    known = {c.id: c for pair in made for c in pair if c is not None}
    scores = []
    for (first, helps_first), (second, helps_second) in itertools.permutations(made, 2):
        for below in thresholds_of(first):
            steps: list[Step] = []
            for one, helper in ((first, helps_first), (second, helps_second)):
                guard = Guard(steps[-1].id, below) if one is second else None
                source = Source(REQUEST, "in0")
                if helper is not None:
                    steps.append(Step(StepId(len(steps)), helper.id, (Binding("in0", (source,)),), guard=guard))
                    source = Source(steps[-1].id, "out0")
                steps.append(Step(StepId(len(steps)), one.id, (Binding("in0", (source,)),), guard=guard))
            first_id = next(step.id for step in steps if step.extension == first.id)
            ends = (Binding("out0", (Source(first_id, "out0"), Source(steps[-1].id, "out0"))),)
            p = predict(steps, ends, known)
            scores.append(objective.score(p.accuracy, p.p50_ms, p.cost))
    return min(scores)


@pytest.mark.parametrize("seed", range(25))
def test_no_pair_of_ways_makes_a_better_cascade(seed):
    made = readers(seed)
    objective = Objective(5.0, 1.0, 1.0)
    catalogue = Catalogue.of([c for pair in made for c in pair if c is not None])
    best = plan(wish("image", "probs", objective=objective), catalogue).best
    assert best.score <= best_cascade(made, objective) + 1e-9


def test_a_dear_branch_may_be_worse_on_the_whole_if_it_is_better_on_the_unsure_rows():
    rng = np.random.default_rng(5)
    sure = np.linspace(0, 1, N_ROWS).astype(np.float16)
    first, second = (sure > 0.2) | (rng.random(N_ROWS) < 0.5), (sure < 0.4) | (rng.random(N_ROWS) < 0.8)
    judge = measured("judge", "image", 0.9, seed=1).but(
        evidence=Evidence.of("digits", first, sure), thresholds=(Threshold(0.2, 0.8, 1.0),)
    )
    judge = judge.but(accuracy=Accuracy(float(first.mean()), N_ROWS))
    other = measured("other", "image", 0.9, seed=2, cost=0.1).but(evidence=Evidence.of("digits", second, sure))
    other = other.but(accuracy=Accuracy(float(second.mean()), N_ROWS), thresholds=())
    assert other.accuracy.mean < judge.accuracy.mean
    assert plan(wish("image", "probs", objective=PRECISE), Catalogue.of([judge, other])).best.kind == "cascade"


def test_a_cascade_can_give_the_answer_itself():
    cascade = of_kind("cascade", wish("image", "probs", objective=PRECISE), CLEAN, CHEAP, DEAR)
    assert len(cascade.outputs[0].sources) == 2


def test_a_cascade_serves_every_taker_of_the_result():
    other = card("other", "probs", "rank")
    request = wish("image", "label rank", objective=PRECISE)
    cascade = of_kind("cascade", request, CLEAN, CHEAP, DEAR, LABEL, other)
    takers = [step for step in cascade.steps if step.extension in ("label@1", "other@1")]
    assert all(len(step.inputs[0].sources) == 2 for step in takers)


def test_two_results_of_one_extension_stay_together():
    more = {"outputs": (port("probs", "out0"), port("mask", "out1"))}
    request, catalogue = (
        wish("image", "probs mask", objective=PRECISE),
        Catalogue.of([CHEAP.but(**more), DEAR.but(**more), CLEAN]),
    )
    found = plan(request, catalogue, k=20)
    assert found.plans
    for p in found.plans:
        check(p, request, catalogue)
        assert p.kind == "graph"


def test_a_cascade_may_be_all_that_keeps_the_terms():
    catalogue = Catalogue.of([CLEAN, CHEAP, DEAR, LABEL])
    request = wish("image", "label", terms=Terms(min_accuracy=0.93, max_cost=0.9))
    found = plan(request, catalogue)
    assert [p.kind for p in found.plans] == ["cascade"]
    with pytest.raises(TermsUnmet, match="max_cost"):
        plan(wish("image", "label", terms=Terms(min_accuracy=0.93, max_cost=0.02)), catalogue)


def test_an_ensemble_joins_several_ways_when_it_pays():
    members = [measured(f"m{i}", "image", 0.9, seed=10 + i, p50_ms=2, cost=0.02) for i in range(4)]
    members = [m.but(thresholds=()) for m in members]
    request = wish("image", "label", objective=PRECISE)
    catalogue = Catalogue.of([*members, VOTE, LABEL])
    best = plan(request, catalogue).best
    assert best.kind == "ensemble"
    check(best, request, catalogue)
    assert sum(id_.startswith("m") for id_ in best.extensions()) >= 3
    assert best.prediction.accuracy > max(m.accuracy.mean for m in members) + 0.02


def test_an_ensemble_does_not_win_when_a_vote_costs_too_much():
    members = [measured(f"m{i}", "image", 0.9, seed=10 + i, cost=5.0).but(thresholds=()) for i in range(4)]
    best = plan(wish("image", "label"), Catalogue.of([*members, VOTE, LABEL])).best
    assert best.kind == "graph"


def test_members_that_err_together_make_no_ensemble():
    twins = [CHEAP.but(name=f"twin{i}", thresholds=()) for i in range(4)]
    best = plan(wish("image", "label", objective=PRECISE), Catalogue.of([*twins, VOTE, LABEL])).best
    assert best.kind == "graph"


def test_a_combiner_is_never_used_with_one_source():
    with pytest.raises(NoPlan):
        plan(wish("image", "probs/voted"), Catalogue.of([CHEAP, VOTE]))


def test_a_combiner_that_alone_gives_what_is_wanted_gets_two_sources():
    request = wish("image", "probs/voted")
    catalogue = Catalogue.of([CHEAP, DEAR, CLEAN, VOTE])
    best = plan(request, catalogue).best
    assert best.kind == "ensemble"
    check(best, request, catalogue)


SCORERS = [card(f"scorer{i}", "image", "scores", p50_ms=1, accuracy=0.8, cost=0.001) for i in range(5)]
POLL = Card("poll", "1", (Port("votes", Feature("scores"), 5),), (Port("out0", Feature("label")),))


def scorers_at_work(found: Plan) -> int:
    return sum(id_.startswith("scorer") for id_ in found.extensions())


def test_a_combiner_is_tried_beside_the_only_direct_way():
    one = card("one", "image", "label", p50_ms=1, accuracy=0.5)
    request, catalogue = wish("image", "label"), Catalogue.of([*SCORERS, POLL, one])
    best = plan(request, catalogue).best
    assert best.kind == "ensemble"
    assert scorers_at_work(best) >= 3
    check(best, request, catalogue)


def test_a_combiner_that_alone_gives_what_is_wanted_gets_as_many_members_as_pay():
    request, catalogue = wish("image", "label"), Catalogue.of([*SCORERS, POLL])
    best = plan(request, catalogue).best
    assert scorers_at_work(best) == 5
    check(best, request, catalogue)
    dear = Catalogue.of([*[scorer.but(cost=1.0) for scorer in SCORERS], POLL])
    assert scorers_at_work(plan(request, dear).best) == 2


def test_a_combiner_deep_in_a_plan_gets_more_members_too():
    request = wish("image", "verdict")
    catalogue = Catalogue.of([*SCORERS, POLL, card("judge", "label", "verdict")])
    best = plan(request, catalogue).best
    assert scorers_at_work(best) == 5
    check(best, request, catalogue)


def test_more_members_may_be_all_that_keeps_the_terms():
    one = card("one", "image", "label", p50_ms=1, accuracy=0.5)
    for cards in ([*SCORERS, POLL, one], [*SCORERS, POLL]):
        request = wish("image", "label", terms=Terms(min_accuracy=0.85))
        best = plan(request, Catalogue.of(cards)).best
        assert best.prediction.accuracy >= 0.85
        check(best, request, Catalogue.of(cards))


def test_members_of_another_kind_than_the_combiner_s_result_are_chosen_by_score():
    mixed = [scorer.but(name=f"scorer{i}", accuracy=Accuracy(0.5 + i / 20)) for i, scorer in enumerate(SCORERS * 2)]
    one = card("one", "image", "label", p50_ms=1, accuracy=0.5)
    request, catalogue = wish("image", "label"), Catalogue.of([*mixed, POLL, one])
    best = plan(request, catalogue).best
    assert {"scorer9@1", "scorer8@1", "scorer7@1"} <= set(best.extensions())
    assert "scorer0@1" not in best.extensions()
    check(best, request, catalogue)


def test_a_combiner_that_has_to_be_used_is_used():
    request = wish("image", "label", must_use=VOTE.id)
    catalogue = Catalogue.of([CHEAP, DEAR, CLEAN, VOTE, LABEL])
    best = plan(request, catalogue).best
    assert VOTE.id in best.extensions()
    check(best, request, catalogue)


def enriched(seed: int) -> tuple[PlanRequest, Catalogue]:
    """A random world in which many extensions judge themselves, and two combiners."""
    rng = random.Random(seed)
    request, catalogue = world(rng)
    cards = []
    for one in catalogue.cards.values():
        if rng.random() < 0.5:
            points = (Threshold(0.5, 0.9, min(1.0, one.accuracy.mean + 0.02)), Threshold(0.9, 0.5, 0.99))
            one = one.but(thresholds=points)
        cards.append(one)
    for i, type_ in enumerate(rng.sample(["b", "c", "c/x", "d"], 2)):
        cards.append(
            Card(f"vote{i}", "1", (Port("v", Feature(type_), rng.randint(2, 4)),), (port(type_ + "/v", "out0"),))
        )
    return request, Catalogue.of(cards)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_composites_of_random_catalogues_can_be_run_and_keep_the_terms(seed):
    request, catalogue = enriched(seed)
    try:
        found = plan(request, catalogue, k=20, budget=Budget(max_expansions=300))
    except NoPlan:
        return
    for p in found.plans:
        check(p, request, catalogue)
        terms, given = request.terms, p.prediction
        assert terms.deadline_ms is None or given.p99_ms <= terms.deadline_ms * (1 + 1e-6)
        assert terms.max_cost is None or given.cost <= terms.max_cost * (1 + 1e-6)
        assert terms.min_accuracy is None or given.accuracy >= terms.min_accuracy * (1 - 1e-6)
        assert 0.0 <= given.accuracy <= 1.0
        assert given.p50_ms <= given.p99_ms * (1 + 1e-9)
    scores = [p.score for p in found.plans]
    assert scores == pytest.approx(sorted(scores), rel=1e-8)
    assert len({p.id for p in found.plans}) == len(found.plans)


def test_helpers_that_two_ways_wire_differently_leave_no_idle_step():
    # Card 3 needs 2 in both drafts, but 2 is fed by 1 in one of them and by 0 in the other.
    here = Draft({2: [("in0", ((0, 0),))], 0: [("in0", ((-1, 0),))]})
    there = Draft({3: [("in0", ((2, 0),))], 2: [("in0", ((1, 0),))], 1: [("in0", ((-1, 0),))]})
    assert here.adopt(there, 3) == {3}
    assert sorted(here.inputs) == [0, 2, 3]
    assert here.order() == [0, 2, 3]
