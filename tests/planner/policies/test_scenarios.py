from __future__ import annotations

import random
import statistics
from itertools import islice, pairwise

import pytest

from planner.policies.greedy import Greedy
from planner.policies.scenarios import SCENARIOS, Pattern, Scenario, diurnal, modulated, poisson
from planner.policies.simulation import simulate

EVERY = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)


@pytest.mark.parametrize("pattern", [poisson, modulated, diurnal])
def test_every_pattern_has_the_rate_it_is_asked_for(pattern: Pattern) -> None:
    times_ms = list(islice(pattern(random.Random(0), 0.5), 100_000))
    assert times_ms == sorted(times_ms)
    assert times_ms[-1] / len(times_ms) == pytest.approx(0.5, rel=0.1)


def variation(pattern: Pattern) -> float:
    """Variance over mean of the requests in 50 ms."""
    counts: dict[int, int] = {}
    for at_ms in islice(pattern(random.Random(0), 0.5), 50_000):
        counts[int(at_ms / 50.0)] = counts.get(int(at_ms / 50.0), 0) + 1
    return statistics.variance(counts.values()) / statistics.mean(counts.values())


def test_bursts_vary_more_than_independent_requests() -> None:
    assert variation(poisson) == pytest.approx(1.0, abs=0.2)
    assert variation(modulated) > 10.0
    assert variation(diurnal) > 5.0


@EVERY
def test_a_workload_has_its_load_and_comes_again_with_its_seed(scenario: Scenario) -> None:
    workload = scenario.workload(0.8, 20_000, seed=3)
    n_rows = sum(arrival.n_rows for arrival in workload.arrivals)
    per_s = 1e3 * n_rows / workload.arrivals[-1].at_ms
    assert per_s == pytest.approx(0.8 * scenario.capacity_per_s(), rel=0.2)
    assert all(before.at_ms <= after.at_ms for before, after in pairwise(workload.arrivals))
    assert workload == scenario.workload(0.8, 20_000, seed=3) != scenario.workload(0.8, 20_000, seed=4)


@EVERY
def test_capacity_cannot_be_exceeded(scenario: Scenario) -> None:
    result = simulate(scenario.workload(3.0, 6000, seed=1), Greedy(), seed=1)
    per_s = 1e3 * result.n_on_time / result.lasted_ms
    assert 0.5 * scenario.capacity_per_s() < per_s < 1.35 * scenario.capacity_per_s()


@EVERY
def test_the_shares_of_a_scenario_are_all_there_is(scenario: Scenario) -> None:
    assert sum(kind.share for kind in scenario.kinds) == pytest.approx(1.0)


def test_names_are_unique() -> None:
    assert len({scenario.name for scenario in SCENARIOS}) == len(SCENARIOS) >= 5
