from __future__ import annotations

import random
from collections.abc import Iterable

import pytest

from planner.choice.tracks import Level, Share

ALARM = 10.0


def alarms(share: Share, outcomes: Iterable[bool]) -> list[int]:
    return [i for i, right in enumerate(outcomes) if share.add(1.0, float(right), ALARM)]


def flips(rng: random.Random, p: float, n: int) -> list[bool]:
    return [rng.random() < p for _ in range(n)]


@pytest.mark.parametrize("p", [0.02, 0.5, 0.9, 0.99])
def test_a_share_that_does_not_change_hardly_ever_raises_an_alarm(p: float) -> None:
    found = [alarms(Share(), flips(random.Random(seed), p, 4000)) for seed in range(10)]
    assert sum(map(len, found)) <= 2


@pytest.mark.parametrize(("before", "after"), [(0.9, 0.6), (0.6, 0.9), (0.99, 0.85), (0.01, 0.2)])
def test_a_share_that_shifts_is_noticed_soon_and_what_was_before_is_forgotten(before: float, after: float) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        share = Share()
        alarms(share, flips(rng, before, 400))
        found = alarms(share, flips(rng, after, 300))
        assert found
        assert found[0] < 200
        assert share.total / share.n == pytest.approx(after, abs=0.15)


def test_outcomes_in_bulk_are_noticed_as_well() -> None:
    share = Share()
    assert not any(share.add(100.0, 90.0, ALARM) for _ in range(10))
    assert any(share.add(100.0, 60.0, ALARM) for _ in range(2))


def test_all_right_or_all_wrong_does_no_harm() -> None:
    for total in (0.0, 1.0):
        share = Share()
        assert not any(share.add(1.0, total, ALARM) for _ in range(2000))


def test_what_fades_keeps_its_share() -> None:
    share = Share(10.0, 8.0)
    share.fade(0.5)
    assert (share.n, share.total) == (5.0, 4.0)


def test_a_level_that_does_not_change_hardly_ever_raises_an_alarm() -> None:
    found = 0
    for seed in range(10):
        rng, level = random.Random(seed), Level()
        found += sum(level.add(1.0, rng.gauss(3.0, 0.3), 0.0, ALARM) for _ in range(4000))
    assert found <= 2


def test_a_level_that_doubles_is_noticed_soon() -> None:
    rng, level = random.Random(1), Level()
    for _ in range(400):
        level.add(1.0, rng.gauss(3.0, 0.3), 0.0, ALARM)
    found = [i for i in range(100) if level.add(1.0, rng.gauss(3.7, 0.3), 0.0, ALARM)]
    assert found
    assert found[0] < 30
    assert level.total / level.n == pytest.approx(3.7, abs=0.2)


def test_one_wild_number_is_no_shift() -> None:
    rng, level = random.Random(1), Level()
    for _ in range(400):
        level.add(1.0, rng.gauss(3.0, 0.3), 0.0, ALARM)
    assert not level.add(1.0, 30.0, 0.0, ALARM)
