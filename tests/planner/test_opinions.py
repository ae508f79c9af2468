"""Second opinions: which rows are asked for again, of whom, and whose answer is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.calls import Produced
from planner.cards import Accuracy, Card, Evidence, LatencyProfile
from planner.dispatch import Dispatcher
from planner.errors import BadInput, BadTerms, ExtensionUnavailable
from planner.features import Array
from planner.goals import Terms
from planner.opinions import LEAST_PATIENCE_MS, PATIENCE
from planner.plans import REQUEST, Answer, Guard, Plan, StepId
from planner.tokens import Token
from tests.planner.doubles import Lines, Work, bind, card, failing, jump, plan_of, plus, step

X = np.array([1, 2, 3], np.float32)


def sure(by: float, *confidence: float) -> Work:
    """Adds `by`; as sure of the row whose x is i as the i-th says, counted from 1."""
    return plus(by, lambda y: np.array([confidence[int(i) - 1] for i in y - by], np.float32))


def ask(
    work: dict[str, Work],
    plan: Plan,
    min_confidence: float | None = 0.8,
    *,
    deadline_ms: float | None = None,
    cards: Sequence[Card] = (),
    lines: Lines | None = None,
    is_healthy: Callable[[str], bool] | None = None,
    max_cost: float | None = None,
    partial: bool = False,
    alternatives: Sequence[Plan] = (),
) -> Answer:
    lines = lines or Lines()
    lines.work = work
    known = {c.id: c for c in map(card, work)} | {c.id: c for c in cards}

    async def scenario() -> Answer:
        token = Token.of(Terms(deadline_ms, max_cost, min_confidence=min_confidence, partial=partial), 0.0)
        made = Dispatcher(lines, known.get, is_healthy=is_healthy)
        answer = await made.dispatch(plan, {"x": X}, token, alternatives)
        lines.ended_s = asyncio.get_running_loop().time()
        return answer

    return jump(scenario())


def values(answer: Answer) -> list[float]:
    return answer.outputs["y"].values.tolist()


def confidences(answer: Answer) -> list[float]:
    rows = answer.outputs["y"].confidence
    assert rows is not None
    return [round(float(c), 3) for c in rows]


def asked(answer: Answer) -> list[tuple[str, int]]:
    return [(record.extension, record.n_rows) for record in answer.steps]


ONE = plan_of(step(0, "a", fallbacks=["b", "c"]))


def test_rows_that_are_not_sure_enough_come_from_a_fallback_that_is_surer_and_only_those() -> None:
    answer = ask({"a": sure(10, 0.9, 0.3, 0.9), "b": sure(20, 0.99, 0.85, 0.99), "c": sure(30, 1, 1, 1)}, ONE)
    assert (values(answer), confidences(answer)) == ([11, 22, 13], [0.9, 0.85, 0.9])
    assert answer.flags == {"fallback"}
    assert asked(answer) == [("a@1", 3), ("b@1", 1)]
    assert answer.steps[1].note == "asked for 1 unsure rows"


def test_a_fallback_that_is_less_sure_changes_nothing_and_what_stays_below_is_unsure() -> None:
    answer = ask({"a": sure(10, 0.9, 0.3, 0.9), "b": sure(20, 1, 0.2, 1), "c": sure(30, 1, 0.3, 1)}, ONE)
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})
    assert asked(answer) == [("a@1", 3), ("b@1", 1), ("c@1", 1)]


def test_the_next_fallback_gets_only_what_is_still_unsure() -> None:
    answer = ask({"a": sure(10, 0.1, 0.1, 0.9), "b": sure(20, 0.8, 0.5, 1), "c": sure(30, 1, 0.6, 1)}, ONE)
    assert (values(answer), answer.flags) == ([21, 32, 13], {"fallback", "unsure"})
    assert asked(answer) == [("a@1", 3), ("b@1", 2), ("c@1", 1)]


def test_without_the_term_and_where_all_rows_are_sure_nobody_is_asked() -> None:
    work = {"a": sure(10, 0.1, 0.8, 0.9), "b": sure(20, 1, 1, 1), "c": sure(30, 1, 1, 1)}
    unasked = ask(work, ONE, None)
    assert (values(unasked), unasked.flags, len(unasked.steps)) == ([11, 12, 13], frozenset(), 1)
    content = ask(work, ONE, 0.1)
    assert (values(content), content.flags, len(content.steps)) == ([11, 12, 13], frozenset(), 1)


def test_rows_that_nobody_judges_are_not_unsure() -> None:
    answer = ask({"a": plus(10), "b": sure(20, 1, 1, 1), "c": plus(30)}, ONE)
    assert (values(answer), answer.flags, asked(answer)) == ([11, 12, 13], frozenset(), [("a@1", 3)])
    mute = ask({"a": sure(10, 0.1, 0.9, 0.9), "b": plus(20), "c": sure(30, 1, 1, 1)}, ONE)
    assert (values(mute), mute.flags) == ([31, 12, 13], {"fallback"})


def test_a_fallback_that_fails_or_refuses_the_rows_is_passed_over() -> None:
    for failure in (ExtensionUnavailable("gone"), BadInput("row 0 is no digit")):
        answer = ask({"a": sure(10, 0.1, 0.9, 0.9), "b": failing(failure), "c": sure(30, 1, 1, 1)}, ONE)
        assert (values(answer), answer.flags) == ([31, 12, 13], {"fallback"})


def test_a_fallback_that_is_ill_or_would_be_late_is_not_asked() -> None:
    work = {"a": sure(10, 0.1, 0.9, 0.9), "b": sure(20, 1, 1, 1), "c": sure(30, 1, 1, 1)}
    spared = ask(work, ONE, is_healthy=lambda e: e != "b@1")
    assert (values(spared), asked(spared)) == ([31, 12, 13], [("a@1", 3), ("c@1", 1)])
    slow = [card(name).but(profile=LatencyProfile(60.0)) for name in "bc"]
    lines = Lines(a=50.0)
    hurried = ask(work, ONE, deadline_ms=100.0, cards=slow, lines=lines)
    assert (values(hurried), hurried.flags, asked(hurried)) == ([11, 12, 13], {"unsure"}, [("a@1", 3)])
    assert asked(ask(work, ONE, cards=slow, lines=lines)) == [("a@1", 3), ("b@1", 1)]


def test_an_opinion_that_does_not_come_in_time_does_not_keep_the_answer() -> None:
    work = {"a": sure(10, 0.1, 0.9, 0.9), "b": sure(20, 1, 1, 1), "c": sure(30, 1, 1, 1)}
    lines = Lines(a=10.0, b=1_000.0)
    usually_quick = card("b").but(profile=LatencyProfile(25.0))
    answer = ask(work, ONE, deadline_ms=100.0, lines=lines, cards=[usually_quick])
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})
    assert lines.when("c", "began") == []
    assert lines.ended_s == pytest.approx(0.095)


@pytest.mark.parametrize("deadline_ms", [None, 10_000.0])
def test_an_opinion_that_hangs_gives_way_to_the_next_after_a_few_times_what_it_should_take(
    deadline_ms: float | None,
) -> None:
    work = {"a": sure(10, 0.1, 0.9, 0.9), "b": sure(20, 1, 1, 1), "c": sure(30, 1, 1, 1)}
    lines = Lines(a=10.0, b=1e9)
    sized = card("b").but(profile=LatencyProfile(10.0, 0.0, p99_ratio=3.0))
    answer = ask(work, ONE, deadline_ms=deadline_ms, lines=lines, cards=[sized])
    assert (values(answer), answer.flags) == ([31, 12, 13], {"fallback"})
    assert lines.when("c", "began") == [10.0 + PATIENCE * 30.0]
    lines = Lines(a=10.0, b=1e9, c=1e9)
    answer = ask(work, ONE, deadline_ms=deadline_ms, lines=lines)
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})
    assert lines.ended_s == pytest.approx(0.01 + 2 * LEAST_PATIENCE_MS / 1e3)


def priced(**costs: float) -> list[Card]:
    return [card(name).but(cost=cost) for name, cost in costs.items()]


def costing(plan: Plan, cost: float) -> Plan:
    return replace(plan, prediction=replace(plan.prediction, cost=cost))


@pytest.mark.parametrize(
    ("max_cost", "answers"),
    [(None, ["a", "b", "c"]), (1.0, ["a"]), (1.3, ["a"]), (1.4, ["a", "b"]), (1.6, ["a", "b"]), (1.7, ["a", "b", "c"])],
)
def test_nobody_is_asked_whom_the_cost_does_not_leave_enough_for(max_cost: float | None, answers: list[str]) -> None:
    work = {name: sure(10, 0.1, 0.9, 0.9) for name in "abc"}  # one row of three: a third of the cost
    answer = ask(work, costing(ONE, 1.0), cards=priced(a=1.0, b=1.0, c=1.0), max_cost=max_cost)
    assert [name[0] for name, _ in asked(answer)] == answers


def test_a_cheaper_one_is_asked_where_a_dear_one_cannot_be_paid() -> None:
    work = {"a": sure(10, 0.1, 0.9, 0.9), "b": sure(20, 1, 1, 1), "c": sure(30, 1, 1, 1)}
    answer = ask(work, costing(ONE, 1.0), cards=priced(a=1.0, b=9.0, c=0.0), max_cost=1.0)
    assert (values(answer), answer.flags) == ([31, 12, 13], {"fallback"})


def test_what_a_dearer_stand_in_took_is_not_spent_again() -> None:
    work = {"a": failing(ExtensionUnavailable("gone")), "b": sure(20, 0.1, 1, 1), "c": sure(30, 1, 1, 1)}
    answer = ask(work, costing(ONE, 1.0), cards=priced(a=1.0, b=2.0, c=3.0), max_cost=2.5)
    assert (values(answer), asked(answer)) == ([21, 22, 23], [("b@1", 3)])
    answer = ask(work, costing(ONE, 1.0), cards=priced(a=1.0, b=2.0, c=3.0), max_cost=3.0)
    assert (values(answer), asked(answer)) == ([31, 22, 23], [("b@1", 3), ("c@1", 1)])


def test_who_came_to_another_plan_on_the_way_has_paid_for_what_the_first_one_began() -> None:
    work = {"a": failing(ExtensionUnavailable("gone")), "b": sure(20, 0.1, 1, 1), "c": sure(30, 1, 1, 1)}
    best, other = costing(plan_of(step(0, "a")), 1.0), costing(plan_of(step(0, "b", fallbacks=["c"]), id_="other"), 1.0)
    cards = priced(a=1.0, b=1.0, c=1.0)
    answer = ask(work, best, cards=cards, max_cost=2.0, alternatives=[other])
    assert (values(answer), "unsure" in answer.flags) == ([21, 22, 23], True)
    answer = ask(work, best, cards=cards, alternatives=[other])
    assert (values(answer), "unsure" in answer.flags) == ([31, 22, 23], False)


def test_an_answer_that_loses_an_output_at_the_end_is_not_judged_twice() -> None:
    def wide(n: int, *confidence: float) -> Work:
        return lambda rows: {"y": Produced(np.ones((len(confidence), n), np.float32), np.array(confidence, np.float32))}

    request = bind("x", (REQUEST, "x"))
    dear = step(1, "dear", request, guard=Guard(StepId(0), 0.5))
    best = plan_of(step(0, "cheap"), dear, step(2, "a", request, fallbacks=["b"]))
    best = replace(best, outputs=(bind("label", (0, "y"), (1, "y")), bind("y", (2, "y"))))
    work = {"a": sure(10, 0.5, 1, 1), "b": sure(20, 0.2, 1, 1), "cheap": wide(3, 0.1, 1, 1), "dear": wide(4, 1)}
    lines = Lines()
    answer = ask(work, best, lines=lines, partial=True)
    assert (answer.missing.keys(), values(answer)) == ({"label"}, [11, 12, 13])
    assert len(lines.when("b", "began")) == 1


def test_the_answer_of_a_less_accurate_fallback_is_degraded() -> None:
    cards = [card("a").but(accuracy=Accuracy(0.9)), card("b").but(accuracy=Accuracy(0.8))]
    answer = ask({"a": sure(10, 0.1, 1, 1), "b": sure(20, 1, 1, 1), "c": plus(0)}, ONE, cards=cards)
    assert answer.flags == {"fallback", "degraded"}


def evidence(claims: float) -> Evidence:
    """Of an extension whose log odds are `claims` times what they should be."""
    rng = np.random.default_rng(3)
    logits = rng.normal(1.0, 1.0, 20_000)
    right = rng.random(20_000) < 1.0 / (1.0 + np.exp(-logits))
    return Evidence.of("d", right, 1.0 / (1.0 + np.exp(-logits * claims)))


def test_confidences_are_compared_as_the_evidence_says_what_they_are_worth() -> None:
    boastful = card("b").but(evidence=evidence(3.0))
    # Its 0.9 is worth 0.68: less than the 0.7 that there is.
    answer = ask({"a": sure(10, 0.7, 1, 1), "b": sure(20, 0.9, 1, 1), "c": plus(0)}, ONE, cards=[boastful])
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})
    boastful = card("a").but(evidence=evidence(3.0))
    answer = ask({"a": sure(10, 0.9, 1, 1), "b": sure(20, 0.8, 1, 1), "c": plus(0)}, ONE, cards=[boastful])
    assert (values(answer), answer.flags) == ([21, 12, 13], {"fallback"})


def cascade() -> Plan:
    cheap = step(0, "cheap", fallbacks=["b"])
    dear = step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5), fallbacks=["c"])
    return plan_of(cheap, dear, output=bind("y", (0, "y"), (1, "y")))


def test_of_a_cascade_each_stage_is_asked_about_for_the_rows_that_are_left_to_it() -> None:
    work = {
        "cheap": sure(10, 0.1, 0.6, 0.9),
        "dear": sure(20, 0.7, 1, 1),
        "b": sure(30, 1, 1, 1),
        "c": sure(40, 1, 1, 1),
    }
    answer = ask(work, cascade())
    assert (values(answer), answer.flags) == ([41, 32, 13], {"fallback"})
    assert sorted(asked(answer)) == [("b@1", 1), ("c@1", 1), ("cheap@1", 3), ("dear@1", 1)]


def test_rows_that_other_steps_build_on_stay_as_they_are() -> None:
    best = plan_of(step(0, "a", fallbacks=["b"]), step(1, "end"))
    both = replace(best, outputs=(bind("y", (0, "y")), bind("z", (1, "y"))))
    answer = ask({"a": sure(10, 0.1, 1, 1), "b": sure(20, 1, 1, 1), "end": plus(100)}, both)
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})
    assert asked(answer) == [("a@1", 3), ("end@1", 3)]


def test_a_step_that_a_fallback_did_asks_the_other_ones() -> None:
    work = {"a": failing(ExtensionUnavailable("gone")), "b": sure(20, 0.1, 1, 1), "c": sure(30, 1, 1, 1)}
    answer = ask(work, ONE)
    assert (values(answer), asked(answer)) == ([31, 22, 23], [("b@1", 3), ("c@1", 1)])
    lines = Lines()
    answer = ask(work | {"b": failing(ExtensionUnavailable("gone")), "c": sure(30, 0.1, 1, 1)}, ONE, lines=lines)
    assert (values(answer), answer.flags) == ([31, 32, 33], {"fallback", "unsure"})
    assert len(lines.when("b", "began")) == 1


def test_an_opinion_of_another_shape_is_none() -> None:
    def wide(rows: dict[str, Array]) -> Mapping[str, Produced]:
        made = sure(20, 1, 1, 1)(rows)["y"]
        return {"y": replace(made, values=np.ones((len(rows["x"]), 4), np.float32))}

    answer = ask({"a": sure(10, 0.1, 1, 1), "b": wide, "c": plus(0)}, ONE)
    assert (values(answer), answer.flags) == ([11, 12, 13], {"unsure"})


levels = st.lists(st.sampled_from([0.0, 0.2, 0.4, 0.6, 0.8, 1.0]), min_size=3, max_size=3)


@given(levels, levels, levels, st.sampled_from([0.0, 0.3, 0.6, 0.9]))
def test_row_by_row_the_surest_of_those_that_were_asked_is_kept(
    a: list[float], b: list[float], c: list[float], below: float
) -> None:
    answer = ask({"a": sure(10, *a), "b": sure(20, *b), "c": sure(30, *c)}, ONE, below)
    wanted, certain = [], []
    for row, (own, *others) in enumerate(zip(a, b, c, strict=True)):
        value, best = 11 + row, own
        for i, other in enumerate(others):
            if best < below and other > best:
                value, best = 21 + 10 * i + row, other
        wanted.append(value)
        certain.append(best)
    assert values(answer) == wanted
    assert confidences(answer) == certain
    assert ("unsure" in answer.flags) == (min(certain) < below)
    assert ("fallback" in answer.flags) == any(value > 20 for value in wanted)


@pytest.mark.parametrize("bad", [-0.1, 1.1, True, "much"])
def test_a_confidence_lies_between_0_and_1(bad: object) -> None:
    with pytest.raises(BadTerms, match="min_confidence"):
        Terms.parse({"min_confidence": bad})
