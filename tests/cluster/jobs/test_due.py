from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.jobs.due import MOST_CAUGHT_UP, PUNCTUAL_S, due, next_tick_s
from cluster.jobs.records import Job, Missed, Schedule
from planner.errors import BadRequest

MONDAY_S = datetime(2026, 3, 2, 12, 0, tzinfo=UTC).timestamp()
HOURLY = Schedule("hourly", "0 * * * *", ("true",), since_s=MONDAY_S)


def at(*when: int) -> float:
    return datetime(*when, tzinfo=UTC).timestamp()  # type: ignore[misc,arg-type]


def test_a_tick_is_due_from_its_moment_on_and_once() -> None:
    assert due(HOURLY, MONDAY_S + 3599.0) == ()
    assert due(HOURLY, MONDAY_S + 3600.0) == (MONDAY_S + 3600.0,)
    assert due(replace(HOURLY, since_s=MONDAY_S + 3600.0), MONDAY_S + 3700.0) == ()


def test_a_paused_schedule_has_no_ticks() -> None:
    assert due(replace(HOURLY, paused=True), MONDAY_S + 36_000.0) == ()


@pytest.mark.parametrize(
    ("missed", "found"),
    [("skip", [10]), ("latest", [10]), ("all", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10])],
)
def test_what_was_missed_is_caught_up_with_as_the_schedule_says(missed: Missed, found: list[int]) -> None:
    schedule = replace(HOURLY, missed=missed)
    assert list(due(schedule, MONDAY_S + 36_000.0)) == [MONDAY_S + 3600.0 * n for n in found]


def test_who_skips_what_was_missed_skips_the_last_as_well_once_it_is_late() -> None:
    schedule = replace(HOURLY, missed="skip")
    assert due(schedule, MONDAY_S + 3600.0 + PUNCTUAL_S) == (MONDAY_S + 3600.0,)
    assert due(schedule, MONDAY_S + 3601.0 + PUNCTUAL_S) == ()


def test_however_long_nobody_looked_only_so_many_are_caught_up_with() -> None:
    every_minute = Schedule("often", "* * * * *", ("true",), since_s=MONDAY_S, missed="all")
    found = due(every_minute, MONDAY_S + 86_400.0)
    assert len(found) == MOST_CAUGHT_UP
    assert found[-1] == MONDAY_S + 86_400.0


@given(st.integers(0, 10_000), st.lists(st.integers(1, 9_000), min_size=1, max_size=12))
def test_however_often_one_looks_no_tick_is_lost_or_comes_twice(begin: int, pauses_s: list[int]) -> None:
    """Of a schedule that catches up with all; a look at each moment notes how far it came."""
    now_s = first_s = MONDAY_S + begin
    schedule = Schedule("q", "*/15 * * * *", ("true",), since_s=now_s, missed="all")
    found: list[float] = []
    for pause_s in pauses_s:
        now_s += pause_s
        ticks = due(schedule, now_s)
        found += ticks
        if ticks:
            schedule = replace(schedule, since_s=ticks[-1])
    quarter = 900.0
    n_first, n_last = int(first_s // quarter) + 1, int(now_s // quarter)
    assert found == [n * quarter for n in range(n_first, n_last + 1)]


def test_times_are_those_of_the_zone_also_when_clocks_change() -> None:
    vienna = Schedule("v", "30 2 * * *", ("true",), timezone="Europe/Vienna", missed="all", since_s=at(2026, 3, 27))
    # 2:30 in winter is 1:30 UTC; on the 29th there is no 2:30, and it runs when the clock has moved on.
    assert list(due(vienna, at(2026, 3, 31))) == [
        at(2026, 3, 27, 1, 30),
        at(2026, 3, 28, 1, 30),
        at(2026, 3, 29, 1, 0),
        at(2026, 3, 30, 0, 30),
    ]


def test_the_next_tick_is_told() -> None:
    assert next_tick_s(HOURLY, MONDAY_S + 1.0) == MONDAY_S + 3600.0


@pytest.mark.parametrize(
    "change",
    [
        {"cron": "61 * * * *"},
        {"cron": "* * *"},
        {"cron": ""},
        {"timezone": "Mars/Base"},
        {"timezone": "../../etc/passwd"},
        {"missed": "never"},
        {"name": "A b"},
        {"name": ""},
        {"command": ()},
        {"command": ("",)},
        {"command": ("a\0b",)},
    ],
)
def test_what_is_no_schedule_is_refused_with_a_way_out(change: dict[str, object]) -> None:
    with pytest.raises(BadRequest):
        replace(HOURLY, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize("id_", ["", "../x", "a/b", "x" * 200, "-rf"])
def test_an_id_that_could_not_be_a_file_is_refused(id_: str) -> None:
    with pytest.raises(BadRequest):
        Job(id_, ("true",))


def test_the_job_of_a_tick_has_the_same_id_whenever_it_is_made() -> None:
    one, other = HOURLY.job_at(MONDAY_S, 1.0), HOURLY.job_at(MONDAY_S, 2.0)
    assert one.id == other.id == "hourly-20260302T1200Z"
    assert one.lane == "hourly"
