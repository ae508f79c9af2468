from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.admission import Backlog, BacklogOf, admit
from planner.cards import ExtensionId
from planner.errors import Overloaded, ShareExceeded
from planner.line import Ahead
from planner.plans import REQUEST, Plan
from planner.tokens import Token
from tests.planner.doubles import bind, plan_of, step

NOW_S = 100.0


def taking(plan: Plan, p50_ms: float) -> Plan:
    """Each step takes `p50_ms`."""
    steps = tuple(replace(s, p50_ms=p50_ms) for s in plan.steps)
    return replace(plan, steps=steps, prediction=replace(plan.prediction, p50_ms=p50_ms * len(steps)))


def waiting(backlogs: Mapping[str, Backlog]) -> BacklogOf:
    return lambda extension, token: backlogs.get(extension)


def rows(n_rows: float, of_others: float | None = None, shared: bool = False) -> Backlog:
    """Calls of 10 rows that take 20 ms, one at a time."""
    return Backlog(Ahead(n_rows, n_rows if of_others is None else of_others, shared), 0.0, 10, 20.0, 0.0, 1)


def within(ms: float) -> Token:
    return Token(NOW_S + ms / 1e3, hard=True)


ONE = taking(plan_of(step(0, "a")), 5.0)
OTHER = taking(plan_of(step(0, "b"), accuracy=0.8, id_="other"), 5.0)


def test_where_nothing_waits_the_best_plan_is_taken() -> None:
    assert admit([ONE, OTHER], within(50), NOW_S, waiting({})) is ONE


def test_what_waits_before_a_request_is_counted_in_calls() -> None:
    assert admit([ONE], within(121), NOW_S, waiting({"a@1": rows(50)})) is ONE  # 5 calls, and its own with others
    with pytest.raises(Overloaded):
        admit([ONE], within(119), NOW_S, waiting({"a@1": rows(50)}))


def test_more_slots_shorten_the_wait_and_calls_under_way_lengthen_it() -> None:
    backlog = rows(50)
    assert admit([ONE], within(71), NOW_S, waiting({"a@1": replace(backlog, n_slots=2)})) is ONE
    with pytest.raises(Overloaded):
        admit([ONE], within(130), NOW_S, waiting({"a@1": replace(backlog, busy_ms=15.0)}))


def test_waits_add_up_along_a_chain_and_the_longest_counts_in_parallel() -> None:
    chain = taking(plan_of(step(0, "a"), step(1, "b")), 5.0)
    both = taking(
        plan_of(
            step(0, "a", bind("x", (REQUEST, "x"))),
            step(1, "b", bind("x", (REQUEST, "x"))),
            step(2, "c", bind("l", (0, "y")), bind("r", (1, "y"))),
        ),
        5.0,
    )
    lines = waiting({"a@1": rows(20), "b@1": rows(30)})  # 60 and 80 ms with the own calls
    assert admit([chain], within(141), NOW_S, lines) is chain
    with pytest.raises(Overloaded):
        admit([chain], within(139), NOW_S, lines)
    assert admit([both], within(86), NOW_S, lines) is both


def test_the_first_plan_in_time_is_taken_before_a_refusal() -> None:
    assert admit([ONE, OTHER], within(50), NOW_S, waiting({"a@1": rows(50)})) is OTHER


def test_a_refusal_says_after_which_time_the_line_will_be_short_enough() -> None:
    with pytest.raises(Overloaded) as refused:
        admit([ONE, OTHER], within(50), NOW_S, waiting({"a@1": rows(500), "b@1": rows(200)}))
    assert refused.value.retry_after_s == pytest.approx(0.42 - 0.05 + 0.02)
    assert refused.value.status == 503


def test_who_is_in_the_own_way_is_told_so_when_others_wait_too() -> None:
    with pytest.raises(ShareExceeded) as refused:
        admit([ONE], within(50), NOW_S, waiting({"a@1": rows(500, of_others=0, shared=True)}))
    assert (refused.value.status, refused.value.grpc_status) == (429, "RESOURCE_EXHAUSTED")
    with pytest.raises(Overloaded) as alone:
        admit([ONE], within(50), NOW_S, waiting({"a@1": rows(500, of_others=0, shared=False)}))
    assert alone.value.status == 503
    with pytest.raises(Overloaded) as crowd:
        admit([ONE], within(50), NOW_S, waiting({"a@1": rows(500, of_others=400, shared=True)}))
    assert crowd.value.status == 503


def test_a_prediction_alone_refuses_nobody() -> None:
    assert admit([ONE], within(1), NOW_S, waiting({})) is ONE
    slow = taking(ONE, 500.0)
    assert admit([slow, OTHER], within(50), NOW_S, waiting({})) is OTHER


@given(
    st.lists(st.floats(0.0, 5000.0), min_size=1, max_size=4),
    st.floats(1.0, 2000.0),
)
def test_whoever_comes_again_after_the_told_time_to_the_same_drained_line_is_let_in(
    waiting_rows: list[float], deadline_ms: float
) -> None:
    names = "abcd"[: len(waiting_rows)]
    plan = taking(plan_of(*[step(i, name) for i, name in enumerate(names)]), 5.0)
    lines = {f"{name}@1": rows(n) for name, n in zip(names, waiting_rows, strict=True)}

    def drained(extension: ExtensionId, token: Token) -> Backlog | None:
        left = lines[extension].ahead.n_rows - refused.value.retry_after_s * 500.0  # 10 rows in 20 ms
        return rows(left) if left > 0 else None

    try:
        admit([plan], within(deadline_ms), NOW_S, waiting(lines))
    except Overloaded as error:
        refused = pytest.ExceptionInfo.from_exc_info((type(error), error, error.__traceback__))
        if deadline_ms >= 30.0 * len(names):  # that much the steps take themselves
            assert admit([plan], within(deadline_ms), NOW_S, drained) is plan
