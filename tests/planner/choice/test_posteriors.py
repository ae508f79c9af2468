from __future__ import annotations

import json
import math
import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice.policy import Arm, Context, Result
from planner.choice.posteriors import COMMON, Belief, Delta, Memory, Posteriors, Tally, merge
from planner.errors import BadRequest
from planner.goals import Objective

A, B = Arm("a", 0.9, 200, 10.0, 0.5), Arm("b", 0.8, 0, 20.0, 0.0)
ANN, BOB = Context("digits", "ann"), Context("digits", "bob")


def teach(
    posteriors: Posteriors,
    accuracy: float,
    n: int,
    context: Context = ANN,
    arm: Arm = A,
    ms: float = 10.0,
    at_s: float = 0.0,
) -> None:
    for i in range(n):
        right = float(math.floor((i + 1) * accuracy) > math.floor(i * accuracy))
        posteriors.learn(context, arm, Result.answered(ms, arm.cost, right=right, at_s=at_s))


def belief(posteriors: Posteriors, context: Context = ANN, arm: Arm = A, now_s: float = 0.0) -> Belief:
    return posteriors.beliefs(context, (arm,), now_s)[0]


def test_beliefs_begin_with_what_the_planner_predicts() -> None:
    found = belief(Posteriors())
    assert found.accuracy == pytest.approx(0.9, abs=0.04)
    assert (found.p50_ms, found.cost) == (10.0, 0.5)


def test_a_prediction_weighs_no_more_than_is_allowed_and_a_guess_less() -> None:
    memory = Memory(prior_rows=16.0, guess_rows=4.0)
    weights = [belief(Posteriors(memory), arm=replace(A, n_rows=n)).accuracy_weight for n in (0, 10, 200, 100_000)]
    assert weights == [5.0, 11.0, 17.0, 17.0]


def test_outcomes_outweigh_a_wrong_prediction() -> None:
    posteriors = Posteriors()
    teach(posteriors, 0.6, 300, ms=30.0)
    found = belief(posteriors)
    assert found.accuracy == pytest.approx(0.6, abs=0.03)
    assert found.p50_ms == pytest.approx(30.0, rel=0.05)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        rng, posteriors = random.Random(seed), Posteriors()
        right = sum(rng.random() < 0.85 for _ in range(150))
        posteriors.learn(ANN, A, Result.judged(right, 150))
        low, high = belief(posteriors).accuracy_interval()
        held += low <= 0.85 <= high
    assert held >= 180


def test_nothing_is_ever_certain() -> None:
    posteriors = Posteriors()
    teach(posteriors, 1.0, 100)
    assert belief(posteriors).worth(Objective())[1] > 0.0
    assert belief(Posteriors(), arm=replace(A, accuracy=1.0)).worth(Objective())[1] > 0.0


def test_latencies_of_small_requests_teach_of_large_ones() -> None:
    posteriors = Posteriors()
    teach(posteriors, 0.9, 200, ms=20.0)
    assert belief(posteriors, arm=replace(A, p50_ms=100.0)).p50_ms == pytest.approx(200.0, rel=0.05)


def test_failures_make_a_plan_worth_less() -> None:
    posteriors = Posteriors()
    before = belief(posteriors).worth(Objective())[0]
    posteriors.learn(ANN, A, Result(n=100, n_failed=30, log_ms=math.log(10.0), cost=A.cost))
    found = belief(posteriors)
    assert found.failures == pytest.approx(0.2, abs=0.01)
    assert found.worth(Objective())[0] < before - 0.15


def test_truth_may_come_apart_and_late() -> None:
    together, apart = Posteriors(), Posteriors()
    together.learn(ANN, A, Result.answered(10.0, 0.5, right=1.0))
    apart.learn(ANN, A, Result.answered(10.0, 0.5))
    apart.learn(ANN, A, Result.judged(1.0))
    assert belief(together) == belief(apart)


def test_what_was_learned_fades_with_time() -> None:
    posteriors = Posteriors(Memory(prior_rows=16.0, half_life=1e9, half_life_s=100.0))
    teach(posteriors, 0.5, 100)
    weights = [belief(posteriors, now_s=now_s).accuracy_weight for now_s in (0.0, 100.0, 1e6)]
    assert weights == pytest.approx([117.0, 67.0, 17.0], abs=0.5)


def test_what_was_learned_fades_with_the_outcomes_of_other_plans() -> None:
    posteriors = Posteriors(Memory(half_life=1000.0))
    teach(posteriors, 0.5, 100)
    before = belief(posteriors).accuracy_weight
    teach(posteriors, 0.8, 1000, arm=B)
    assert belief(posteriors).accuracy_weight == pytest.approx(17.0 + (before - 17.0) / 2.0, rel=0.1)


def test_outcomes_that_contradict_make_it_forget_faster_than_it_fades() -> None:
    changed, slow = Posteriors(), Posteriors(Memory(alarm=math.inf))
    for posteriors in (changed, slow):
        teach(posteriors, 0.95, 1000)
        teach(posteriors, 0.5, 60)
    assert belief(changed).accuracy < 0.7 < belief(slow).accuracy
    assert changed.state_of("digits", "ann")[1] == 1


def test_after_a_sudden_change_the_other_plans_are_doubted_and_all_fades_faster() -> None:
    steady, shaken = Posteriors(Memory(alarm=math.inf, half_life=1000.0)), Posteriors(Memory(half_life=1000.0))
    for posteriors in (steady, shaken):
        teach(posteriors, 0.8, 400, arm=B)
        teach(posteriors, 0.95, 400)
        teach(posteriors, 0.4, 60)
    doubted = [belief(posteriors, arm=B).accuracy_weight for posteriors in (steady, shaken)]
    assert doubted[1] < 0.6 * doubted[0]
    for posteriors in (steady, shaken):
        teach(posteriors, 0.4, 200)
    later = [belief(posteriors, arm=B).accuracy_weight for posteriors in (steady, shaken)]
    assert later[1] / doubted[1] < 0.95 * later[0] / doubted[0]


def test_a_new_segment_starts_from_what_the_others_know() -> None:
    posteriors = Posteriors()
    for user in range(6):
        teach(posteriors, 0.6, 200, Context("digits", f"user{user}"))
    found = belief(posteriors, BOB)
    assert found.accuracy == pytest.approx(0.6, abs=0.05)
    assert belief(posteriors, Context("letters", "bob")).accuracy > 0.85


def test_segments_that_differ_tell_a_new_one_less_than_segments_that_do_not() -> None:
    alike, unlike = Posteriors(), Posteriors()
    for user in range(6):
        teach(alike, 0.7, 200, Context("digits", f"user{user}"))
        teach(unlike, 0.5 if user % 2 else 0.9, 200, Context("digits", f"user{user}"))
    assert belief(unlike, BOB).accuracy_weight < 20.0 < 100.0 < belief(alike, BOB).accuracy_weight


def test_own_outcomes_do_not_count_again_as_those_of_others() -> None:
    posteriors = Posteriors()
    teach(posteriors, 0.5, 1000)
    assert belief(posteriors).accuracy_weight == pytest.approx(1017.0, rel=0.05)


def test_a_segment_that_is_given_up_goes_on_in_the_common_one() -> None:
    posteriors = Posteriors()
    teach(posteriors, 0.5, 100)
    posteriors.give_up("digits", "ann")
    assert posteriors.known("digits", "ann") == 0.0
    assert posteriors.known("digits", COMMON) == pytest.approx(100.0, rel=0.01)


def test_segments_and_plans_are_bounded_and_the_common_segment_stays() -> None:
    posteriors = Posteriors(Memory(segments=3, plans=2))
    for i in range(50):
        teach(posteriors, 0.5, 2, Context("digits", f"user{i}"), replace(A, plan=f"plan{i % 5}"), at_s=i)
    rows = posteriors.to_json()["plans"]
    assert len({segment for _, segment, *_ in rows}) <= 3
    assert COMMON in {segment for _, segment, *_ in rows}
    assert len(rows) <= 6


NUMBERS = st.floats(0.0, 1e3)


@st.composite
def tallies(draw: st.DrawFn) -> Tally:
    n, judged = draw(NUMBERS), draw(NUMBERS)
    failed, right = n * draw(st.floats(0.0, 1.0)), judged * draw(st.floats(0.0, 1.0))
    mean, answered = draw(st.floats(-2.0, 2.0)), n - failed
    return Tally(n, failed, answered, judged, right, answered * mean, answered * (mean * mean + 0.1), draw(NUMBERS))


KEYS = st.tuples(st.sampled_from(["digits", "letters"]), st.sampled_from(["", "ann"]), st.sampled_from(["a", "b"]))
DELTAS = st.builds(Delta, st.dictionaries(KEYS, tallies(), max_size=5))


def same(a: Delta, b: Delta) -> bool:
    return a.tallies.keys() == b.tallies.keys() and all(
        tally.numbers() == pytest.approx(b.tallies[key].numbers()) for key, tally in a.tallies.items()
    )


@settings(max_examples=40)
@given(DELTAS, DELTAS)
def test_merging_is_commutative(a: Delta, b: Delta) -> None:
    assert same(merge(a, b), merge(b, a))


@settings(max_examples=40)
@given(DELTAS, DELTAS, DELTAS)
def test_merging_is_associative_and_nothing_is_neutral(a: Delta, b: Delta, c: Delta) -> None:
    assert same(merge(merge(a, b), c), merge(a, merge(b, c)))
    assert same(merge(a, Delta()), a)


@settings(max_examples=40)
@given(DELTAS)
def test_a_delta_reads_as_it_was_written(delta: Delta) -> None:
    assert Delta.from_json(json.loads(json.dumps(delta.to_json()))) == delta


@settings(max_examples=30)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(1.0, 100.0), st.booleans()), max_size=40))
def test_gateways_that_exchange_deltas_believe_what_one_that_saw_all_believes(
    outcomes: list[tuple[bool, bool, float, bool]],
) -> None:
    whole, one, two = Posteriors(), Posteriors(), Posteriors()
    for first, right, ms, of_a in outcomes:
        result, arm = Result.answered(ms, 0.1, right=float(right)), A if of_a else B
        whole.learn(ANN, arm, result)
        (one if first else two).learn(ANN, arm, result)
    of_one, of_two = one.take_delta(), two.take_delta()
    one.absorb(of_two, 0.0)
    two.absorb(of_one, 0.0)
    for arm in (A, B):
        for found in (belief(one, arm=arm), belief(two, arm=arm)):
            expected = belief(whole, arm=arm)
            assert found.accuracy == pytest.approx(expected.accuracy, rel=2e-3)
            assert found.p50_ms == pytest.approx(expected.p50_ms, rel=1e-2)
            assert found.accuracy_weight == pytest.approx(expected.accuracy_weight, rel=5e-3)


def test_a_delta_holds_what_was_learned_here_since_the_last() -> None:
    one, two = Posteriors(), Posteriors()
    teach(one, 0.5, 10)
    two.absorb(one.take_delta(), 0.0)
    assert one.take_delta() == two.take_delta() == Delta()


def test_a_restart_forgets_nothing() -> None:
    before = Posteriors()
    teach(before, 0.6, 300, ms=30.0, at_s=5.0)
    teach(before, 0.7, 50, BOB, B, at_s=9.0)
    after = Posteriors.from_json(json.loads(json.dumps(before.to_json())))
    for context, arm in ((ANN, A), (BOB, B)):
        then, now = belief(before, context, arm, 9.0), belief(after, context, arm, 9.0)
        assert now.accuracy == pytest.approx(then.accuracy, abs=1e-3)
        assert now.p50_ms == pytest.approx(then.p50_ms, rel=1e-3)
        assert now.accuracy_weight == pytest.approx(then.accuracy_weight, rel=0.01)


@pytest.mark.parametrize(
    "given", [{}, {"plans": 3}, {"plans": [[1]]}, {"plans": [["g", "s", "p", 0.0, 1.0]]}, {"plans": [["g"] * 12]}]
)
def test_what_was_kept_wrongly_is_a_clear_error(given: dict[str, object]) -> None:
    with pytest.raises(BadRequest, match="cannot be read"):
        Posteriors.from_json(given)


def test_results_that_cannot_be_are_left_out() -> None:
    posteriors = Posteriors()
    for result in (
        Result(n_judged=1, right=2.0),
        Result(n_judged=1, right=-1.0),
        Result(n=1, n_failed=2),
        Result.answered(math.nan, 0.0),
        Result(n=1, log_ms=math.inf),
    ):
        posteriors.learn(ANN, A, result)
    assert posteriors.take_delta() == Delta()
    assert posteriors.state_of("digits", "ann") == (0.0, 0)
