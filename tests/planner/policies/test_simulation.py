from __future__ import annotations

import random
import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.policies.fixed import Fixed
from planner.policies.greedy import Greedy
from planner.policies.policy import BatchOutcome, BatchPolicy, Decision, QueueState
from planner.policies.scenarios import SCENARIOS, Scenario
from planner.policies.simulation import Arrival, Result, Service, Simulation, Workload, simulate

EXACT = Service(10.0, 1.0, noise=0.0)


def rows(*times_ms: float, deadline_ms: float = 1000.0) -> list[Arrival]:
    return [Arrival(at_ms, 1, 1.0, at_ms + deadline_ms) for at_ms in times_ms]


class Watching(Greedy):
    """Greedy, and remembers its outcomes."""

    name = "watching"

    def __init__(self, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> None:
        super().__init__(0, fixed_ms, per_row_ms)
        self.seen: list[BatchOutcome] = []

    def _learn(self, outcome: BatchOutcome) -> None:
        self.seen.append(outcome)


def test_what_comes_during_a_call_goes_together_in_the_next() -> None:
    policy = Watching()
    result = simulate(Workload(EXACT, 1, 64, rows(0.0, 1.0, 2.0, 3.0)), policy)
    assert [outcome.n_rows for outcome in policy.seen] == [1, 3]
    assert list(result.latencies_ms) == [11.0, 23.0, 22.0, 21.0]
    assert (result.goodput, result.n_calls, result.mean_batch) == (1.0, 2, 2.0)


def test_two_slots_run_side_by_side_and_slow_each_other() -> None:
    result = simulate(Workload(Service(10.0, 1.0, 0.0, contention=0.5), 2, 64, rows(0.0, 1.0)), Greedy())
    assert list(result.latencies_ms) == [11.0, 16.5]


def test_a_late_request_is_dropped_before_it_runs() -> None:
    policy = Watching(fixed_ms=10.0, per_row_ms=1.0)
    arrivals = [*rows(0.0), *rows(1.0, deadline_ms=20.0), *rows(2.0)]  # the second is due at 21, the slot free at 11
    result = simulate(Workload(EXACT, 1, 64, arrivals), policy)
    assert (result.n_on_time, result.n_late, result.n_dropped) == (2, 0, 1)
    assert [outcome.n_dropped_rows for outcome in policy.seen] == [0, 1]


def test_a_request_that_a_large_batch_would_make_late_does_not_hold_the_others_back() -> None:
    arrivals = [*rows(0.0), *rows(1.0, deadline_ms=23.0), *rows(*(2.0 + i / 10 for i in range(40)))]
    result = simulate(Workload(EXACT, 1, 64, arrivals), Watching(fixed_ms=10.0, per_row_ms=1.0))
    assert (result.n_on_time, result.n_dropped) == (41, 1)


def test_the_earliest_deadline_goes_first() -> None:
    policy = Fixed(n_rows=1, wait_ms=0.0)
    arrivals = [*rows(0.0), *rows(1.0, deadline_ms=500.0), *rows(2.0, deadline_ms=100.0)]
    assert list(simulate(Workload(EXACT, 1, 64, arrivals), policy).latencies_ms) == [11.0, 20.0, 32.0]


def test_a_wait_ends_in_time() -> None:
    policy = Fixed(n_rows=8, wait_ms=5.0)
    arrivals = rows(*[float(i) for i in range(4)], *(11.5 + 1.2 * i for i in range(3)))
    result = simulate(Workload(EXACT, 1, 64, arrivals), policy)
    # The call of the first ends at 11; by then the second has waited for 10 ms; then three come and wait for a call.
    assert result.n_calls == 3
    assert result.n_on_time == 7


def test_the_state_is_what_waits() -> None:
    workload = Workload(
        EXACT, 2, 32, [Arrival(0.0, 1, 1.0, 90.0), Arrival(0.0, 3, 3.0, 80.0), Arrival(4.0, 2, 2.0, 50.0)]
    )
    simulation = Simulation(workload, Greedy())
    first = simulation.next_state()
    assert first == QueueState(1, 1, 0.0, 0.0, 90.0, 0, 2, 32, first.cpu_share, first.gpu_share) if first else False
    simulation.apply(Decision(32))
    second = simulation.next_state()
    assert second is not None
    assert (second.n_waiting_rows, second.n_waiting_requests, second.n_in_flight) == (3, 1, 1)
    simulation.apply(Decision(32, 100.0))
    third = simulation.next_state()
    assert third is not None
    assert (third.n_waiting_rows, third.oldest_wait_ms, third.least_slack_ms, third.cpu_share) == (5, 4.0, 46.0, 0.5)


def test_nothing_can_be_sent_before_it_was_asked() -> None:
    with pytest.raises(RuntimeError, match="asked"):
        Simulation(Workload(EXACT, 1, 8, rows(0.0)), Greedy()).apply(Decision(1))


class Erratic(BatchPolicy):
    """Draws lots."""

    name = "erratic"

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._rng = random.Random(seed)

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return self._rng.randint(1, state.max_rows), self._rng.choice((0.0, 0.0, 3.0, 50.0))


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10_000), st.sampled_from(SCENARIOS), st.sampled_from((0.3, 0.9, 1.5)), st.sampled_from((1, 7, 64))
)
def test_every_row_is_on_time_late_or_dropped(seed: int, scenario: Scenario, load: float, max_rows: int) -> None:
    workload = scenario.workload(load, 400, seed)
    result = simulate(Workload(workload.service, workload.n_slots, max_rows, workload.arrivals), Erratic(seed), seed)
    assert result.n_rows == sum(arrival.n_rows for arrival in workload.arrivals)
    assert result.n_on_time + result.n_late + result.n_dropped == result.n_rows
    assert all(latency_ms > 0.0 for latency_ms in result.latencies_ms)
    assert result.lasted_ms >= workload.arrivals[-1].at_ms


@pytest.mark.parametrize("service", [Service(4.0, 0.5, 0.4), Service(4.0, 0.5, 0.1, 0.2, 3.0, 0.5)])
def test_calls_take_on_average_what_is_said(service: Service) -> None:
    rng = random.Random(0)
    drawn = statistics.mean(service.draw_ms(10.0, 1, rng) for _ in range(40_000))
    assert drawn == pytest.approx(service.mean_ms(10.0, 1), rel=0.03)


def test_percentiles_are_of_the_answered_requests() -> None:
    result = Result(4, 4, 0, 0, 1, [4.0, 1.0, 3.0, 2.0], 9.0)
    assert (result.latency_ms(0.5), result.latency_ms(0.99), result.latency_ms(0.0)) == (2.0, 4.0, 4.0)
