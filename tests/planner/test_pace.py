from __future__ import annotations

import pytest

from planner.pace import MOST_TRIPS, PACE_S, SPREAD, TRIPS, Pace


def busy(rows_per_s: float, until_s: float) -> Pace:
    """Rows leave at this pace, ten times a second, and there are always more."""
    pace = Pace()
    pace.waits(0.0)
    for i in range(1, round(10 * until_s) + 1):
        pace.left(round(rows_per_s / 10), i / 10, others_wait=True)
    return pace


def test_nothing_is_said_before_anything_is_known() -> None:
    pace = Pace()
    assert pace.wait_s(100, 0.0) == 0.0
    pace.waits(0.0)
    assert pace.wait_s(100, 0.01) == 0.0


def test_who_waits_behind_others_waits_as_long_as_they_take_to_leave_and_then_for_the_way() -> None:
    pace = busy(200.0, 2.0)
    for _ in range(TRIPS):
        pace.took(0.05, 2.0)
    assert pace.wait_s(40, 2.0) == pytest.approx((40 + SPREAD * 40**0.5) / 200 + 0.05, rel=0.05)
    assert pace.wait_s(0, 2.0) == 0.05


def test_a_room_that_nobody_leaves_any_more_is_soon_known_to_be_slow() -> None:
    pace = busy(200.0, 2.0)
    assert pace.wait_s(40, 2.0 + PACE_S) > 1.5 * pace.wait_s(40, 2.0)
    assert pace.wait_s(40, 2.0 + 8 * PACE_S) > 60.0


def test_time_in_which_nobody_waited_says_nothing_about_the_pace() -> None:
    pace = busy(200.0, 2.0)
    pace.left(5, 2.05, others_wait=False)
    before_s = pace.wait_s(40, 2.05)
    assert pace.wait_s(40, 60.0) == before_s
    pace.left(5, 60.0, others_wait=True)
    assert pace.wait_s(40, 60.0) == before_s


def test_most_trips_count_as_long_as_they_are_not_old() -> None:
    pace = Pace()
    for i in range(2 * TRIPS):
        pace.took(i / 1000, 1.0)
    assert pace.trip_s(1.0) == pytest.approx((TRIPS + MOST_TRIPS * TRIPS) / 1000, abs=1.1e-3)
    assert pace.trip_s(1.0, 0.5) == pytest.approx(1.5 * TRIPS / 1000)
    assert pace.trip_s(10.0) == 0.0
    pace.took(0.5, 10.0)
    assert pace.trip_s(10.0) == 0.5
