"""Competition: which steps a fallback runs beside, from when on, who wins, and within which budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.batching import Batchers
from planner.cards import Accuracy, Card, LatencyProfile
from planner.competition import URGENT, Competition, delay_s
from planner.dispatch import Dispatcher
from planner.errors import ExtensionUnavailable
from planner.goals import Terms
from planner.hedging import HedgeSettings
from planner.plans import REQUEST, Answer, Plan
from planner.tokens import Token
from tests.planner.doubles import Lines, SlowCalls, bind, card, jump, plan_of, step

X = np.array([1, 2], np.float32)
GENEROUS = HedgeSettings(most_share=1.0, burst=10)
MS = 1e-3


def timed_card(name: str, p50_ms: float, accuracy: float = 1.0) -> Card:
    """Its p99 is twice its p50."""
    return card(name).but(profile=LatencyProfile(p50_ms, 0.0), accuracy=Accuracy(accuracy))


def dispatcher(lines: Lines, cards: Sequence[Card], settings: HedgeSettings = GENEROUS) -> Dispatcher:
    made = Dispatcher(lines, {c.id: c for c in cards}.get, competition=Competition(settings))
    for _ in range(10):  # earn something to spend
        made.competition.budget.observe(cards[0].id, 1, 1.0)
    return made


CARDS = (timed_card("a", 10.0), timed_card("spare", 15.0), timed_card("third", 1.0))
PLAN = plan_of(step(0, "a", fallbacks=["spare"]))


def ask(
    lines: Lines,
    terms: Terms,
    plan: Plan = PLAN,
    cards: Sequence[Card] = CARDS,
    settings: HedgeSettings = GENEROUS,
    alternatives: Sequence[Plan] = (),
) -> Answer:
    async def scenario() -> Answer:
        token = Token.of(terms, asyncio.get_running_loop().time())
        return await dispatcher(lines, cards, settings).dispatch(plan, {"x": X}, token, alternatives)

    return jump(scenario())


def by(answer: Answer) -> str:
    return chr(int(answer.outputs["y"].values[0] - X[0]))


URGENTLY = Terms(deadline_ms=200.0, priority=0)


def test_a_fallback_starts_at_the_last_moment_that_leaves_it_its_p99_and_wins_where_it_is_first() -> None:
    lines = Lines(a=1_000.0, spare=15.0)
    answer = ask(lines, URGENTLY)
    assert by(answer) == "s"
    assert (lines.when("a", "began"), lines.when("spare", "began")) == ([0.0], [170.0])
    assert (lines.when("spare", "done"), lines.when("a", "cancelled")) == ([185.0], [185.0])
    assert answer.flags == {"fallback"}
    assert [(r.extension, r.note) for r in answer.steps] == [("spare@1", "fallback for a@1: it took too long")]


def test_a_stand_in_that_wins_and_is_less_accurate_degrades_the_answer() -> None:
    cards = (timed_card("a", 10.0, 0.9), timed_card("spare", 15.0, 0.8))
    assert ask(Lines(a=1_000.0, spare=15.0), URGENTLY, cards=cards).flags == {"fallback", "degraded"}


def test_the_own_answer_wins_where_it_comes_first_and_the_fallback_is_cancelled() -> None:
    lines = Lines(a=180.0, spare=15.0)
    answer = ask(lines, URGENTLY)
    assert (by(answer), answer.flags) == ("a", frozenset())
    assert lines.when("spare", "cancelled") == [180.0]
    assert answer.steps[0].note == "spare@1 ran too, and came later"


def test_a_step_that_is_as_quick_as_usual_runs_alone() -> None:
    lines = Lines(a=20.0, spare=15.0)
    assert by(ask(lines, URGENTLY)) == "a"
    assert lines.when("spare", "began") == []


@pytest.mark.parametrize(
    "terms",
    [
        Terms(deadline_ms=200.0, priority=URGENT + 1),
        Terms(deadline_ms=200.0),
        Terms(priority=0),
    ],
    ids=["less urgent", "of ordinary priority", "without a deadline"],
)
def test_no_other_request_runs_in_competition(terms: Terms) -> None:
    lines = Lines(a=190.0, spare=15.0)
    assert by(ask(lines, terms)) == "a"
    assert lines.when("spare", "began") == []


def test_the_least_urgent_priority_that_still_competes_is_the_one_with_that_name() -> None:
    assert by(ask(Lines(a=1_000.0, spare=15.0), Terms(deadline_ms=200.0, priority=URGENT))) == "s"


def test_a_fallback_that_is_ill_is_not_set_beside_a_step() -> None:
    async def scenario() -> None:
        lines = Lines(a=190.0, spare=15.0)
        known = {c.id: c for c in CARDS}
        made = Dispatcher(lines, known.get, is_healthy=lambda e: e != "spare@1", competition=Competition(GENEROUS))
        made.competition.budget.observe(CARDS[0].id, 1, 1.0)
        answer = await made.dispatch(PLAN, {"x": X}, Token.of(URGENTLY, 0.0))
        assert (by(answer), lines.when("spare", "began")) == ("a", [])

    jump(scenario())


def test_what_comes_after_the_step_is_left_its_time() -> None:
    cards = (timed_card("a", 10.0), timed_card("spare", 15.0), timed_card("b", 40.0))
    plan = plan_of(replace(step(0, "a", fallbacks=["spare"]), p50_ms=10.0), replace(step(1, "b"), p50_ms=40.0))
    lines = Lines(a=1_000.0, spare=15.0, b=40.0)
    ask(lines, URGENTLY, plan, cards)
    assert lines.when("spare", "began") == [130.0]
    assert lines.when("b", "done") == [185.0]


def test_a_step_that_fails_early_goes_to_its_fallback_at_once_as_ever() -> None:
    lines = Lines(a=5.0, spare=15.0)
    lines.failures["a"] = ExtensionUnavailable("gone")
    answer = ask(lines, URGENTLY)
    assert (by(answer), lines.when("spare", "began")) == ("s", [5.0])
    assert answer.steps[0].note == "fallback for a@1: gone"


def test_where_both_fail_the_next_fallback_answers_and_nobody_is_asked_twice() -> None:
    lines = Lines(a=175.0, spare=2.0, third=1.0)
    lines.failures = {"a": ExtensionUnavailable("gone"), "spare": ExtensionUnavailable("gone too")}
    answer = ask(lines, URGENTLY, plan_of(step(0, "a", fallbacks=["spare", "third"])))
    assert (by(answer), lines.when("third", "done")) == ("t", [176.0])
    assert [name for name, what, _ in lines.told if what == "began"] == ["a", "spare", "third"]


def test_a_fallback_that_fails_leaves_the_step_to_its_own_extension() -> None:
    lines = Lines(a=190.0, spare=2.0)
    lines.failures["spare"] = ExtensionUnavailable("gone")
    assert by(ask(lines, URGENTLY)) == "a"


def budgeted(budget_ms: float, fallbacks: Sequence[str] = ("spare",)) -> Plan:
    return plan_of(replace(step(0, "a", fallbacks=fallbacks), budget_ms=budget_ms))


@pytest.mark.parametrize("budget_ms", [60.0, 100.0, 175.0, 200.0])
def test_an_urgent_step_keeps_waiting_past_its_share_of_the_deadline(budget_ms: float) -> None:
    lines = Lines(a=180.0, spare=15.0)
    assert (by(ask(lines, URGENTLY, budgeted(budget_ms))), lines.when("spare", "began")) == ("a", [170.0])
    lines = Lines(a=1_000.0, spare=15.0)
    assert (by(ask(lines, URGENTLY, budgeted(budget_ms))), lines.when("spare", "began")) == ("s", [170.0])
    lines = Lines(a=150.0, spare=15.0)
    assert (by(ask(lines, URGENTLY, budgeted(budget_ms))), lines.when("spare", "began")) == ("a", [])


def test_where_the_budget_of_competition_is_spent_a_step_gives_way_at_its_share_as_others_do() -> None:
    lines = Lines(a=1_000.0, spare=15.0)
    answer = ask(lines, URGENTLY, budgeted(100.0), settings=HedgeSettings(most_share=0.01, burst=1))
    assert (by(answer), lines.when("spare", "began")) == ("s", [100.0])


@pytest.mark.parametrize(("budget_ms", "second_ms"), [(100.0, 170.0), (180.0, 180.0)])
def test_of_two_steps_that_wait_for_one_place_in_competition_the_other_gives_way(
    budget_ms: float, second_ms: float
) -> None:
    async def scenario() -> None:
        lines = Lines(a=1_000.0, spare=15.0)
        made = Dispatcher(
            lines, {c.id: c for c in CARDS}.get, competition=Competition(HedgeSettings(most_share=1.0, burst=1))
        )
        made.competition.budget.observe(CARDS[0].id, 1, 1.0)
        plan = budgeted(budget_ms)
        both = [made.dispatch(plan, {"x": X}, Token.of(URGENTLY, 0.0)) for _ in range(2)]
        assert [by(answer) for answer in await asyncio.gather(*both)] == ["s", "s"]
        assert lines.when("spare", "began") == [170.0, second_ms]

    jump(scenario())


def test_a_stand_in_that_fails_leaves_what_time_there_is_to_the_next_one() -> None:
    lines = Lines(a=1_000.0, spare=2.0, third=1.0)
    lines.failures["spare"] = ExtensionUnavailable("gone")
    answer = ask(lines, URGENTLY, budgeted(100.0, ["spare", "third"]))
    assert (by(answer), lines.when("a", "cancelled"), lines.when("third", "began")) == ("t", [172.0], [172.0])
    lines = Lines(a=190.0, spare=2.0)
    lines.failures["spare"] = ExtensionUnavailable("gone")
    assert by(ask(lines, URGENTLY, budgeted(100.0))) == "a"


def test_an_extension_that_fails_while_its_stand_in_runs_is_named_and_not_asked_again() -> None:
    lines = Lines(a=171.0, spare=2.0, c=1.0)
    lines.failures = {"a": ExtensionUnavailable("a is gone"), "b": ExtensionUnavailable("gone too")}
    answer = ask(lines, URGENTLY)
    assert (by(answer), answer.steps[0].note) == ("s", "fallback for a@1: a is gone")
    # The next step fails, too: a plan with the one that failed is no way out.
    cards = (*CARDS, timed_card("b", 1.0), timed_card("c", 1.0))
    again = plan_of(step(0, "spare"), step(1, "a"), id_="again")
    other = plan_of(step(0, "spare"), step(1, "c"), id_="other")
    answer = ask(
        lines, URGENTLY, plan_of(step(0, "a", fallbacks=["spare"]), step(1, "b")), cards, GENEROUS, [again, other]
    )
    assert answer.plan.id == "other"


def test_a_stand_in_that_failed_is_no_part_of_another_plan_either() -> None:
    lines = Lines(a=175.0, spare=2.0, third=1.0)
    lines.failures = {"a": ExtensionUnavailable("gone"), "spare": ExtensionUnavailable("gone too")}
    others = [plan_of(step(0, name), id_=name) for name in ("spare", "third")]
    answer = ask(lines, URGENTLY, alternatives=others)
    assert (by(answer), answer.plan.id) == ("t", "third")
    assert [name for name, what, _ in lines.told if what == "began"] == ["a", "spare", "third"]


def test_steps_in_competition_side_by_side_each_say_what_comes_after_them() -> None:
    names = ("a", "b", "spare", "third")
    cards = (*[timed_card(name, 10.0) for name in names], card("join", ("l", "r")), timed_card("c", 40.0))
    request = bind("x", (REQUEST, "x"))
    left = replace(step(0, "a", request, fallbacks=["spare"]), p50_ms=10.0)
    right = replace(step(1, "b", request, fallbacks=["third"]), p50_ms=10.0)
    more = replace(step(2, "c", bind("x", (1, "y"))), p50_ms=40.0)
    join = step(3, "join", bind("l", (0, "y")), bind("r", (2, "y")))
    lines = Lines(a=10.0, b=10.0, c=40.0)
    ask(lines, URGENTLY, plan_of(left, right, more, join), cards)
    assert lines.rests_s[:2] == [0.0, 0.04]


@pytest.mark.parametrize(("max_cost", "who"), [(None, "s"), (3.0, "s"), (2.9, "a")])
def test_no_stand_in_is_set_beside_a_step_that_the_terms_do_not_pay_for(max_cost: float | None, who: str) -> None:
    cards = (CARDS[0].but(cost=1.0), CARDS[1].but(cost=2.0))
    plan = replace(PLAN, prediction=replace(PLAN.prediction, cost=1.0))
    lines = Lines(a=190.0, spare=15.0)
    assert by(ask(lines, replace(URGENTLY, max_cost=max_cost), plan, cards)) == who
    # Who runs alone gives way at its share of the deadline.
    hurried = replace(budgeted(100.0), prediction=plan.prediction)
    lines = Lines(a=1_000.0, spare=15.0)
    ask(lines, replace(URGENTLY, max_cost=max_cost), hurried, cards)
    assert lines.when("spare", "began") == [170.0 if who == "s" else 100.0]


def test_steps_side_by_side_pay_for_their_stand_ins_out_of_one_purse() -> None:
    cards = tuple(timed_card(name, 15.0).but(cost=1.0) for name in ("a", "b", "spare", "third"))
    request = bind("x", (REQUEST, "x"))
    plan = plan_of(step(0, "a", request, fallbacks=["spare"]), step(1, "b", request, fallbacks=["third"]))
    plan = replace(plan, outputs=(bind("y", (0, "y")), bind("z", (1, "y"))))
    plan = replace(plan, prediction=replace(plan.prediction, cost=2.0))
    lines = Lines(a=190.0, b=190.0, spare=15.0, third=15.0)
    ask(lines, replace(URGENTLY, max_cost=3.5), plan, cards)
    assert (lines.when("spare", "began"), lines.when("third", "began")) == ([170.0], [])


def test_a_client_that_leaves_ends_both() -> None:
    async def scenario() -> None:
        lines = Lines(a=1_000.0, spare=100.0)
        running = asyncio.ensure_future(dispatcher(lines, CARDS).dispatch(PLAN, {"x": X}, Token.of(URGENTLY, 0.0)))
        await asyncio.sleep(180 * MS)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await asyncio.sleep(0)
        assert lines.when("a", "cancelled") == lines.when("spare", "cancelled") == [180.0]

    jump(scenario())


def test_behind_real_queues_the_call_that_loses_is_ended_where_no_other_request_waits_for_it() -> None:
    async def scenario() -> None:
        calls = SlowCalls(a=1_000.0, spare=15.0)
        made = Dispatcher(Batchers(calls), {c.id: c for c in CARDS}.get, competition=Competition(GENEROUS))
        made.competition.budget.observe(CARDS[0].id, 1, 1.0)
        answer = await made.dispatch(PLAN, {"x": X}, Token.of(URGENTLY, 0.0))
        assert (by(answer), answer.flags) == ("s", {"fallback"})
        assert asyncio.get_running_loop().time() == pytest.approx(0.185)
        await asyncio.sleep(0.001)
        assert calls.cancelled == ["a"]

    jump(scenario())


def test_only_a_small_share_of_urgent_steps_runs_in_competition_however_many_are_slow() -> None:
    async def scenario() -> None:
        lines = Lines(a=190.0, spare=15.0)
        made = Dispatcher(lines, {c.id: c for c in CARDS}.get)
        for _ in range(400):
            token = Token.of(URGENTLY, asyncio.get_running_loop().time())
            await made.dispatch(PLAN, {"x": X}, token)
        assert 9 <= len(lines.when("spare", "began")) <= 0.03 * 400

    jump(scenario())


times_ms = st.floats(0.1, 1e4)


@given(times_ms, times_ms, st.floats(-10.0, 20.0))
def test_a_rival_starts_as_late_as_it_may_never_before_the_own_p99_and_not_in_vain(
    own_ms: float, rival_ms: float, left_s: float
) -> None:
    own, rival = timed_card("a", own_ms), timed_card("b", rival_ms)
    start_s = delay_s(own, rival, 1, 0.0, left_s)
    unusual_s = own.profile.p99_ms(1) / 1e3
    if start_s is None:
        assert max(0.0, unusual_s) + rival_ms / 1e3 > left_s
        return
    assert start_s >= unusual_s
    assert start_s + rival_ms / 1e3 <= left_s
    assert start_s == pytest.approx(max(unusual_s, left_s - 2 * rival_ms * MS))
