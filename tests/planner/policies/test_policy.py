"""What holds for every policy of the package; a new file there is tested because it is found."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.policies.policy import BatchOutcome, BatchPolicy, Decision, QueueState
from planner.policies.registry import make_policy, policies
from planner.policies.scenarios import SCENARIOS, Scenario
from planner.policies.simulation import simulate

EVERY = pytest.mark.parametrize("name", list(policies()))

shares = st.one_of(st.just(math.nan), st.floats(0.0, 1.0))


@st.composite
def states(draw: st.DrawFn) -> QueueState:
    n_rows = draw(st.integers(1, 2000))
    n_slots = draw(st.integers(1, 8))
    return QueueState(
        n_waiting_rows=n_rows,
        n_waiting_requests=draw(st.integers(1, n_rows)),
        oldest_wait_ms=draw(st.floats(0.0, 1e5)),
        arrival_rate_per_s=draw(st.floats(0.0, 1e6)),
        least_slack_ms=draw(st.one_of(st.just(math.inf), st.floats(-10.0, 1e5))),
        n_in_flight=draw(st.integers(0, n_slots - 1)),
        n_slots=n_slots,
        max_rows=draw(st.sampled_from((1, 2, 7, 64, 256))),
        cpu_share=draw(shares),
        gpu_share=draw(shares),
        recent_ms=draw(st.floats(0.0, 1e4)),
    )


outcomes = st.builds(
    BatchOutcome,
    n_rows=st.integers(0, 256),
    took_ms=st.one_of(st.floats(0.01, 1e4), st.sampled_from((0.0, -1.0, math.inf, math.nan))),
    n_late_rows=st.integers(0, 256),
    state=states(),
    n_dropped_rows=st.integers(0, 100),
)


def taught(name: str, fixed_ms: float = 5.0, per_row_ms: float = 0.1, n_calls: int = 60) -> BatchPolicy:
    """A policy that has seen calls of an extension like this."""
    policy, rng = make_policy(name, seed=3), random.Random(1)
    for _ in range(n_calls):
        n_rows = rng.randint(1, 64)
        state = QueueState(n_rows, n_rows, 2.0, 1000.0, 100.0, 0, 1, 64, recent_ms=8.0)
        policy.observe(BatchOutcome(n_rows, fixed_ms + per_row_ms * n_rows, 0, state))
    return policy


@EVERY
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_decision_stays_in_its_bounds_whatever_was_seen(name: str, data: st.DataObject) -> None:
    policy = make_policy(name, seed=data.draw(st.integers(0, 9)))
    for _ in range(data.draw(st.integers(0, 6))):
        policy.observe(data.draw(outcomes))  # must not raise
        state = data.draw(states())
        decision = policy.decide(state)
        assert 1 <= decision.n_rows <= state.max_rows
        assert decision.wait_ms >= 0.0
        if decision.wait_ms > 0.0:
            assert decision.wait_ms < math.inf
            assert decision.wait_ms + policy.expected_ms(state.n_waiting_rows, state.n_in_flight) <= max(
                state.least_slack_ms, 0.0
            )


@EVERY
def test_a_lone_request_goes_at_once_to_an_idle_extension(name: str) -> None:
    policy = taught(name)
    for rate in (0.0, 1e3, 1e6):
        assert policy.decide(QueueState(1, 1, 0.0, rate, 50.0, 0, 2, 64)) == Decision(64)
        assert policy.decide(QueueState(8, 1, 0.0, rate, math.inf, 0, 1, 64)) == Decision(64)


@EVERY
def test_nobody_waits_where_nothing_is_expected(name: str) -> None:
    policy = taught(name)
    for n_rows in range(2, 40):
        assert policy.decide(QueueState(n_rows, n_rows, 0.1, 0.0, 50.0, 1, 2, 64)).wait_ms == 0.0
        assert policy.decide(QueueState(n_rows, n_rows, 0.1, 5.0, 50.0, 1, 2, 64)).wait_ms == 0.0  # one in 200 ms


@EVERY
def test_nobody_waits_when_the_slack_is_what_the_call_takes(name: str) -> None:
    policy = taught(name)
    for n_rows in range(2, 40):
        slack_ms = policy.expected_ms(n_rows, 1)
        assert slack_ms > 5.0
        assert policy.decide(QueueState(n_rows, n_rows, 0.1, 1e5, slack_ms, 1, 2, 64)).wait_ms == 0.0


@EVERY
def test_the_same_seed_and_workload_give_the_same_result(name: str) -> None:
    workload = SCENARIOS[1].workload(0.9, 1500, seed=5)
    first = simulate(workload, make_policy(name, seed=2), seed=7)
    assert first == simulate(workload, make_policy(name, seed=2), seed=7)
    assert first.n_on_time > 500


@EVERY
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_at_half_load_most_rows_are_in_time(name: str, scenario: Scenario) -> None:
    assert simulate(scenario.workload(0.5, 3000, seed=11), make_policy(name, seed=1), seed=1).goodput > 0.8


@EVERY
def test_every_policy_says_what_it_does_and_under_which_name(name: str) -> None:
    kind = policies()[name]
    assert kind.name == name == name.lower()
    assert kind.__doc__
    assert kind.__module__ == f"planner.policies.{name}"


class Eager(BatchPolicy):
    """Wishes what it is told."""

    name = "eager"

    def __init__(self, n_rows: int, wait_ms: float) -> None:
        super().__init__(fixed_ms=5.0)
        self.wished = n_rows, wait_ms
        self.n_learned = 0

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return self.wished

    def _learn(self, outcome: BatchOutcome) -> None:
        self.n_learned += 1


@pytest.mark.parametrize(
    ("wished", "slack_ms", "rate_per_s", "decided"),
    [
        ((30, 4.0), 100.0, 1000.0, Decision(30, 4.0)),
        ((30, 40.0), 25.5, 1000.0, Decision(30, 20.0)),  # 5 ms for the call and 0.5 ms for its spread
        ((30, 4.0), 100.0, 240.0, Decision(30)),  # a row every 4.2 ms
        ((30, 4.0), 3.0, 1000.0, Decision(30)),
        ((10, 4.0), 100.0, 1000.0, Decision(10)),  # it is full
        ((0, -1.0), 100.0, 1000.0, Decision(1)),
        ((999, math.nan), 100.0, 1000.0, Decision(64)),
    ],
)
def test_a_wish_is_cut_to_what_can_help(
    wished: tuple[int, float], slack_ms: float, rate_per_s: float, decided: Decision
) -> None:
    decision = Eager(*wished).decide(QueueState(10, 10, 1.0, rate_per_s, slack_ms, 1, 2, 64))
    assert (decision.n_rows, decision.wait_ms) == (decided.n_rows, pytest.approx(decided.wait_ms))


def test_an_outcome_that_cannot_have_been_teaches_nothing() -> None:
    policy, state = Eager(1, 0.0), QueueState(1, 1, 0.0, 0.0)
    for took_ms in (math.nan, -1.0, 0.0, math.inf):
        policy.observe(BatchOutcome(4, took_ms, 0, state))
    policy.observe(BatchOutcome(0, 1.0, 0, state))
    assert (policy.n_learned, policy.expected_ms(4)) == (0, 5.0)
    policy.observe(BatchOutcome(4, 8.0, 0, state))
    assert (policy.n_learned, policy.expected_ms(4)) == (1, pytest.approx(8.0))
