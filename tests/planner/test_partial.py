"""Partial answers: what is left of a plan, that it is what the whole answer would hold, and when it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.admission import Backlog
from planner.batching import Batchers
from planner.calls import Produced
from planner.cards import ExtensionId
from planner.dispatch import Dispatcher
from planner.errors import BadInput, DeadlineExceeded, ExtensionRaised, ExtensionUnavailable, Overloaded, StepFailed
from planner.goals import Terms
from planner.line import Ahead
from planner.partial import MARGIN_S, cut_off, early, made_of, useless
from planner.plans import REQUEST, Answer, Binding, Guard, Plan, Prediction, Source, Step, StepId
from planner.tokens import Token
from tests.planner.doubles import Lines, SlowCalls, Work, bind, card, failing, jump, plus, step

X = np.array([1, 2], np.float32)
GONE = ExtensionUnavailable("gone")


def plan(*steps: Step, id_: str = "plan", **outputs: int | tuple[int, ...]) -> Plan:
    """Outputs by name, each with the steps that give it."""
    bindings = tuple(
        Binding(name, tuple(Source(StepId(s), "y") for s in ([given] if isinstance(given, int) else given)))
        for name, given in outputs.items()
    )
    return Plan(id_, steps, bindings, Prediction(1.0, 2.0, 0.0, 1.0), score=0.0)


def on_request(id_: int, name: str, fallbacks: Sequence[str] = ()) -> Step:
    return step(id_, name, bind("x", (REQUEST, "x")), fallbacks=fallbacks)


def ask(
    lines: Lines,
    best: Plan,
    alternatives: Sequence[Plan] = (),
    *,
    partial: bool = True,
    deadline_ms: float | None = None,
) -> Answer:
    async def scenario() -> Answer:
        plans = [best, *alternatives]
        names = {e.partition("@")[0] for p in plans for s in p.steps for e in (s.extension, *s.fallbacks)}
        ports = {s.extension: [b.port for b in s.inputs] for p in plans for s in p.steps}
        cards = [card(name, ports.get(ExtensionId(f"{name}@1"), ("x",))) for name in names]
        token = Token.of(Terms(deadline_ms, partial=partial), 0.0)
        return await Dispatcher(lines, {c.id: c for c in cards}.get).dispatch(best, {"x": X}, token, alternatives)

    return jump(scenario())


def failing_lines(*names: str, **takes_ms: float) -> Lines:
    lines = Lines(**takes_ms)
    lines.failures = dict.fromkeys(names, GONE)
    return lines


def outputs(answer: Answer) -> dict[str, list[float]]:
    return {name: rows.values.tolist() for name, rows in answer.outputs.items()}


TWO = plan(on_request(0, "a"), on_request(1, "b"), left=0, right=1)


@pytest.mark.parametrize("a_ms", [0.0, 1.0, 9.0])
def test_an_output_that_cannot_be_had_is_named_and_the_others_are_there(a_ms: float) -> None:
    answer = ask(failing_lines("b", a=a_ms, b=5.0), TWO)
    assert outputs(answer) == {"left": [98.0, 99.0]}
    assert (answer.flags, answer.missing) == ({"partial"}, {"right": "gone"})
    assert [record.extension for record in answer.steps] == ["a@1"]


def test_without_the_term_it_stays_an_error() -> None:
    with pytest.raises(StepFailed, match="gone"):
        ask(failing_lines("b"), TWO, partial=False)


def test_an_answer_that_lacks_nothing_is_not_partial() -> None:
    answer = ask(Lines(), TWO)
    assert (answer.flags, answer.missing, len(answer.outputs)) == (frozenset(), {}, 2)


def test_where_no_output_is_left_the_failure_is_raised() -> None:
    with pytest.raises(StepFailed, match="gone"):
        ask(failing_lines("a", "b"), TWO)
    with pytest.raises(StepFailed, match="gone"):
        ask(failing_lines("a"), plan(on_request(0, "a"), step(1, "b"), left=0, right=1))


def test_fallbacks_and_other_plans_come_first() -> None:
    spared = plan(on_request(0, "a"), on_request(1, "b", fallbacks=["spare"]), left=0, right=1)
    answer = ask(failing_lines("b"), spared)
    assert (answer.flags, set(answer.outputs)) == ({"fallback"}, {"left", "right"})
    other = plan(on_request(0, "a"), on_request(1, "c"), id_="other", left=0, right=1)
    answer = ask(failing_lines("b"), TWO, [other])
    assert (answer.plan.id, answer.flags, answer.missing) == ("other", {"fallback"}, {})
    answer = ask(failing_lines("b", "c"), TWO, [other])
    assert (answer.plan.id, answer.flags, answer.missing) == ("other", {"fallback", "partial"}, {"right": "gone"})


def test_a_chain_whose_end_fails_still_gives_what_came_before() -> None:
    answer = ask(failing_lines("b"), plan(on_request(0, "a"), step(1, "b"), left=0, right=1))
    assert (outputs(answer), answer.missing) == ({"left": [98.0, 99.0]}, {"right": "gone"})


def test_steps_that_only_lost_outputs_need_are_ended_or_never_begun() -> None:
    join = step(2, "join", bind("l", (0, "y")), bind("r", (1, "y")))
    best = plan(on_request(0, "a"), on_request(1, "slow"), join, on_request(3, "c"), joined=2, other=3)
    lines = failing_lines("a", a=1.0, slow=1_000.0, c=5.0)
    answer = ask(lines, best)
    assert (set(answer.outputs), answer.missing) == ({"other"}, {"joined": "gone"})
    assert lines.when("slow", "cancelled") == [1.0]
    assert lines.when("join", "began") == []
    assert lines.when("c", "done") == [5.0]


def test_an_answer_that_gave_up_an_output_keeps_to_its_plan() -> None:
    first, failed, third = on_request(0, "a"), on_request(1, "b"), on_request(2, "c", fallbacks=["spare"])
    best = plan(first, failed, third, replace(step(3, "e"), p50_ms=95.0), left=0, right=1, third=3)
    # It has what is missing and would be quicker, and all that failed in it has a stand-in by then.
    other = plan(first, on_request(1, "d"), third, step(3, "quick"), id_="other", left=0, right=1, third=3)
    lines = failing_lines("b", "c", b=5.0, c=1.0, spare=9.0, e=20.0)
    answer = ask(lines, best, [other], deadline_ms=100.0)
    assert (answer.plan.id, answer.missing, set(answer.outputs)) == ("plan", {"right": "gone"}, {"left", "third"})


def test_the_first_reason_is_told_for_each_missing_output() -> None:
    lines = Lines(b=1.0, c=2.0)
    lines.failures = {"b": ExtensionRaised("b raised"), "c": ExtensionRaised("c raised")}
    answer = ask(lines, plan(*[on_request(i, n) for i, n in enumerate("abc")], left=0, middle=1, right=2))
    assert answer.missing == {"middle": "b raised", "right": "c raised"}
    both = step(3, "both", bind("l", (1, "y")), bind("r", (2, "y")))
    answer = ask(lines, plan(*[on_request(i, n) for i, n in enumerate("abc")], both, left=0, middle=3, right=2))
    assert answer.missing == {"middle": "b raised", "right": "c raised"}


def test_a_branch_that_is_late_does_not_keep_the_others_from_leaving_in_time() -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        lines = Lines(a=10.0, b=1_000.0)
        token = Token.of(Terms(100.0, partial=True), loop.time())
        known = {c.id: c for c in map(card, "ab")}
        answer = await Dispatcher(lines, known.get).dispatch(TWO, {"x": X}, token)
        assert loop.time() == pytest.approx(0.095)
        assert answer.missing == {"right": "b was not done in time."}
        assert loop.time() < token.until_s

    jump(scenario())


def test_behind_real_queues_too() -> None:
    async def scenario() -> None:
        calls = SlowCalls(a=10.0, b=1_000.0)
        token = Token.of(Terms(100.0, partial=True), 0.0)
        answer = await Dispatcher(Batchers(calls), {c.id: c for c in map(card, "ab")}.get).dispatch(
            TWO, {"x": X}, token
        )
        assert asyncio.get_running_loop().time() == pytest.approx(0.095)
        assert (set(answer.outputs), answer.flags) == ({"left"}, {"partial"})
        assert "was not done in time by b@1" in answer.missing["right"]
        await asyncio.sleep(0.001)
        assert calls.cancelled == ["b"]

    jump(scenario())


def test_without_the_term_a_late_branch_is_late_for_all() -> None:
    with pytest.raises(DeadlineExceeded):
        ask(Lines(a=10.0, b=1_000.0), TWO, partial=False, deadline_ms=100.0)


def test_a_request_of_which_nothing_is_there_in_time_is_late() -> None:
    with pytest.raises(DeadlineExceeded):
        ask(Lines(a=1_000.0, b=1_000.0), TWO, deadline_ms=100.0)


def test_a_step_that_gives_an_output_is_not_dropped_for_what_comes_after_it() -> None:
    best = plan(on_request(0, "a"), replace(step(1, "b"), p50_ms=80.0), left=0, right=1)
    lines = Lines(a=50.0, b=80.0)
    answer = ask(lines, best, deadline_ms=100.0)
    assert (set(answer.outputs), set(answer.missing)) == ({"left"}, {"right"})
    assert lines.rests_s == [0.0, 0.0]
    with pytest.raises(DeadlineExceeded):
        ask(lines, best, partial=False, deadline_ms=100.0)
    assert lines.rests_s[2:] == [0.08, 0.0]


def test_an_output_whose_stages_do_not_fit_together_is_missing_alone() -> None:
    def wide(n: int) -> Work:
        return lambda rows: {"y": Produced(np.ones((2, n), np.float32), np.array([0.9, 0.1], np.float32))}

    dear = replace(on_request(1, "dear"), guard=Guard(StepId(0), 0.5))
    best = plan(on_request(0, "cheap"), dear, on_request(2, "a"), label=(0, 1), other=2)
    lines = Lines({"cheap": wide(3), "dear": wide(4)})
    with pytest.raises(StepFailed, match="different shapes"):
        ask(lines, best, partial=False)
    answer = ask(lines, best)
    assert set(answer.outputs) == {"other"}
    assert "different shapes" in answer.missing["label"]


def test_rows_that_are_the_clients_fault_stay_an_error() -> None:
    with pytest.raises(BadInput):
        ask(Lines({"b": failing(BadInput("row 0 is no digit"))}), TWO)


@pytest.mark.parametrize(("partial", "deadline_ms"), [(True, 100.0), (False, 100.0)])
def test_a_crowd_before_one_branch_is_no_reason_to_refuse_what_can_be_had_without_it(
    partial: bool, deadline_ms: float
) -> None:
    async def scenario() -> Answer:
        crowd = Backlog(Ahead(1000, 1000), 0.0, 100, 50.0, 0.0, 1)
        known = {c.id: c for c in map(card, "ab")}
        made = Dispatcher(Lines(a=1.0, b=1_000.0), known.get, backlog_of=lambda e, token: crowd if e == "b@1" else None)
        return await made.dispatch(TWO, {"x": X}, Token.of(Terms(deadline_ms, partial=partial), 0.0))

    if not partial:
        with pytest.raises(Overloaded):
            jump(scenario())
    else:
        assert set(jump(scenario()).outputs) == {"left"}


def test_a_crowd_before_all_branches_is_refused_as_ever() -> None:
    async def scenario() -> None:
        crowd = Backlog(Ahead(1000, 1000), 0.0, 100, 50.0, 0.0, 1)
        known = {c.id: c for c in map(card, "ab")}
        made = Dispatcher(Lines(), known.get, backlog_of=lambda e, token: crowd)
        await made.dispatch(TWO, {"x": X}, Token.of(Terms(100.0, partial=True), 0.0))

    with pytest.raises(Overloaded):
        jump(scenario())


@given(st.floats(0.0, 1e5), st.floats(-1.0, 1e3))
def test_the_margin_is_small_and_never_eats_the_time(now_s: float, left_s: float) -> None:
    token = Token(now_s + left_s, hard=True, partial=True)
    sooner = early(token, now_s)
    assert token.until_s - MARGIN_S - 1e-9 <= sooner.until_s <= token.until_s
    assert sooner.until_s - now_s >= 0.9 * (token.until_s - now_s) - 1e-9 or left_s < 0.0
    patient = Token(now_s + left_s, partial=True)
    assert early(patient, now_s).until_s == patient.until_s


@st.composite
def graphs(draw: st.DrawFn) -> Plan:
    """Up to six steps, each on what came before it; some pairs are cascades, whose rows rejoin behind them."""
    ends: list[tuple[tuple[int, str], ...]] = [((REQUEST, "x"),)]
    steps: list[Step] = []
    for _ in range(draw(st.integers(1, 5))):
        taken = draw(st.lists(st.sampled_from(ends), min_size=1, max_size=2, unique=True))
        inputs = [bind(port, *end) for port, end in zip("xz", taken, strict=False)]
        made = step(len(steps), f"s{len(steps)}", *inputs)
        steps.append(made)
        if draw(st.booleans()):
            guard = Guard(made.id, draw(st.sampled_from([0.0, 0.5, 1.1])))
            steps.append(step(len(steps), f"s{len(steps)}", *inputs, guard=guard))
            ends.append(((made.id, "y"), (made.id + 1, "y")))
        else:
            ends.append(((made.id, "y"),))
    chosen = draw(st.lists(st.sampled_from(ends), min_size=1, max_size=4, unique=True))
    bindings = tuple(bind(f"out{i}", *end) for i, end in enumerate(chosen))
    return Plan("plan", tuple(steps), bindings, Prediction(1.0, 2.0, 0.0, 1.0), score=0.0)


def unsure_of_the_first_row(by: float) -> Work:
    return plus(by, lambda y: np.where(np.arange(len(y)) == 0, 0.1, 0.9).astype(np.float32))


@given(graphs(), st.data())
def test_a_partial_answer_is_a_part_of_the_whole_one(best: Plan, data: st.DataObject) -> None:
    names = [s.extension.partition("@")[0] for s in best.steps]
    takes_ms = {name: data.draw(st.sampled_from([0.0, 1.0, 2.0]), label=name) for name in names}
    failed = data.draw(st.lists(st.sampled_from(names), unique=True))
    work = {name: unsure_of_the_first_row(10.0**i) for i, name in enumerate(names)}
    whole = outputs(ask(Lines(work, **takes_ms), best))
    lines = Lines(work, **takes_ms)
    lines.failures = dict.fromkeys(failed, GONE)
    try:
        answer = ask(lines, best)
    except StepFailed:
        answer = None
    # A step fails only where rows reach it.
    fell = {
        s.id for s in best.steps if s.extension.partition("@")[0] in failed and lines.when(s.extension[:-2], "began")
    }
    there = {output for output, steps in made_of(best).items() if steps.isdisjoint(fell)}
    if answer is None:
        assert not there
        return
    assert outputs(answer) == {output: rows for output, rows in whole.items() if output in there}
    assert answer.missing.keys() == whole.keys() - there
    assert ("partial" in answer.flags) == bool(answer.missing)


def test_what_an_output_is_made_of_and_what_is_of_no_use_without_it() -> None:
    best = plan(on_request(0, "a"), step(1, "b"), on_request(2, "c"), left=1, right=2)
    assert made_of(best) == {"left": {0, 1}, "right": {2}}
    assert cut_off(best, StepId(0)) == {"left"}
    assert useless(best, {"left"}) == {0, 1}
