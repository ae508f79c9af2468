from __future__ import annotations

import math
import random

import pytest

from planner.policies.call_times import CallTimes


def fed(times: CallTimes, fixed_ms: float, per_row_ms: float, contention: float = 0.0, noise: float = 0.0) -> CallTimes:
    rng = random.Random(0)
    for _ in range(400):
        n_rows, n_others = rng.randint(1, 64), rng.randrange(4)
        factor = (1.0 + contention * n_others) * rng.uniform(1.0 - noise, 1.0 + noise)
        times.observe(n_rows, (fixed_ms + per_row_ms * n_rows) * factor, n_others)
    return times


def test_the_line_is_found_through_noise() -> None:
    times = fed(CallTimes(), 4.0, 0.5, noise=0.2)
    assert times.expected_ms(1) == pytest.approx(4.5, rel=0.2)
    assert times.expected_ms(64) == pytest.approx(36.0, rel=0.1)
    assert 0.05 < times.spread < 0.2


@pytest.mark.parametrize("contention", [0.0, 0.5, 1.0])
def test_what_calls_take_from_each_other_is_found(contention: float) -> None:
    times = fed(CallTimes(), 4.0, 0.1, contention)
    assert times.contention == pytest.approx(contention, abs=0.1)
    assert times.expected_ms(32, 3) == pytest.approx(7.2 * (1.0 + 3.0 * contention), rel=0.1)
    assert times.parallel(4) == pytest.approx(4.0 / (1.0 + 3.0 * contention), rel=0.1)


def test_a_change_of_the_extension_is_followed() -> None:
    times = fed(fed(CallTimes(), 4.0, 0.5), 40.0, 5.0)
    assert times.expected_ms(10) == pytest.approx(90.0, rel=0.05)


def test_one_stuck_call_is_not_the_rule() -> None:
    times = fed(CallTimes(), 4.0, 0.5)
    times.observe(10, 10_000.0)
    assert times.expected_ms(10) == pytest.approx(9.0, rel=0.2)


def test_calls_of_one_size_keep_the_known_slope() -> None:
    times = CallTimes(3.0, 0.25)
    for _ in range(50):
        times.observe(8, 7.0)
    assert (times.fixed_ms, times.per_row_ms) == (pytest.approx(5.0), pytest.approx(0.25))


def test_no_part_becomes_negative() -> None:
    times = CallTimes()
    for n_rows, took_ms in ((1, 50.0), (60, 1.0), (30, 9.0), (2, 70.0)) * 10:
        times.observe(n_rows, took_ms)
        assert times.fixed_ms >= 0.0
        assert times.per_row_ms >= 0.0


def test_rows_within_a_budget_end_within_it() -> None:
    times = CallTimes(4.0, 0.5)
    assert times.rows_within(14.0) == 20.0
    assert times.rows_within(3.9) == 0.0
    assert CallTimes(4.0, 0.0).rows_within(5.0) == math.inf


def test_enough_rows_are_those_that_keep_up() -> None:
    times = CallTimes(4.0, 0.5)
    enough = times.enough_rows(1.0, 1.0)
    assert enough == times.expected_ms(int(enough)) == 8.0  # as many come while they run
    assert times.enough_rows(2.0, 1.0) == math.inf
    assert times.enough_rows(2.0, 2.0) == 8.0
    assert times.enough_rows(0.0, 1.0) == 0.0
