from __future__ import annotations

import random

import pytest

from planner.policies.arrivals import ArrivalRate


@pytest.mark.parametrize("per_s", [2.0, 300.0, 50_000.0])
def test_the_rate_is_found_at_any_time_scale(per_s: float) -> None:
    rng, rate, now_ms, seen = random.Random(0), ArrivalRate(), 0.0, []
    for _ in range(4000):
        now_ms += rng.expovariate(per_s / 1e3)
        rate.add(1, now_ms)
        seen.append(rate.per_s(now_ms))
    assert sum(seen[100:]) / len(seen[100:]) == pytest.approx(per_s, rel=0.1)


def test_rows_count_and_not_requests() -> None:
    rate = ArrivalRate()
    for i in range(50):
        rate.add(4, 10.0 * i)
    assert rate.per_s(490.0) == pytest.approx(400.0)


def test_silence_counts() -> None:
    rate = ArrivalRate()
    for i in range(50):
        rate.add(1, float(i))
    assert rate.per_s(49.0) == pytest.approx(1000.0)
    assert rate.per_s(1049.0) == pytest.approx(2.0)


def test_one_arrival_is_no_rate() -> None:
    rate = ArrivalRate()
    assert rate.per_s(5.0) == 0.0
    rate.add(1, 5.0)
    assert rate.per_s(6.0) == 0.0
