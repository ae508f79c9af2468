from __future__ import annotations

from dataclasses import replace

from planner.plans import REQUEST, Guard, Plan, StepId
from planner.progress import after_ms, is_chain, left_ms, needs, path_ms, shared
from tests.planner.doubles import bind, plan_of, step

CHAIN = plan_of(step(0, "a"), step(1, "b"), step(2, "c"))
DIAMOND = plan_of(
    step(0, "a"),
    step(1, "b", bind("x", (0, "y"))),
    step(2, "c", bind("x", (0, "y"))),
    step(3, "d", bind("l", (1, "y")), bind("r", (2, "y"))),
)


def taking(plan: Plan, *p50_ms: float) -> Plan:
    return replace(plan, steps=tuple(replace(s, p50_ms=ms) for s, ms in zip(plan.steps, p50_ms, strict=True)))


def test_a_step_needs_its_sources_and_its_guard() -> None:
    assert needs(step(2, "c", bind("x", (REQUEST, "x")), guard=Guard(StepId(1), 0.5))) == {REQUEST, 1}


def test_only_steps_that_follow_each_other_are_a_chain() -> None:
    assert is_chain(CHAIN.steps)
    assert not is_chain(DIAMOND.steps)


def test_the_longest_path_counts_and_what_is_done_takes_no_time() -> None:
    plan = taking(DIAMOND, 1.0, 5.0, 2.0, 3.0)
    assert path_ms(plan, lambda s: s.p50_ms) == 9.0
    assert left_ms(plan, {StepId(0)}) == 8.0
    assert left_ms(plan, {StepId(0), StepId(1)}) == 5.0
    assert left_ms(plan, {s.id for s in plan.steps}) == 0.0


def test_after_each_step_comes_the_longest_path_to_the_end() -> None:
    assert after_ms(taking(DIAMOND, 1.0, 5.0, 2.0, 3.0), lambda s: s.p50_ms) == {0: 8.0, 1: 3.0, 2: 3.0, 3: 0.0}


def test_plans_share_the_steps_that_do_the_same_on_the_same_rows_whatever_their_numbers() -> None:
    other = plan_of(step(7, "a", bind("x", (REQUEST, "x"))), step(8, "b"), step(9, "z"))
    assert shared(CHAIN, other) == {7: 0, 8: 1}
    assert shared(CHAIN, CHAIN) == {0: 0, 1: 1, 2: 2}


def test_another_source_or_another_guard_makes_it_another_step() -> None:
    other = plan_of(step(0, "z"), step(1, "b"), step(2, "c"))
    assert shared(CHAIN, other) == {}
    guarded = plan_of(step(0, "a"), step(1, "b", bind("x", (0, "y")), guard=Guard(StepId(0), 0.5)))
    stricter = plan_of(step(0, "a"), step(1, "b", bind("x", (0, "y")), guard=Guard(StepId(0), 0.9)))
    assert shared(guarded, stricter) == {0: 0}
    assert shared(guarded, guarded) == {0: 0, 1: 1}
