from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards import ExtensionId, LatencyProfile
from planner.profiles import Profiles, ProfileTracker

PRIOR = LatencyProfile(5.0, 0.5)
SIZES = [1, 2, 4, 8, 16, 32, 64, 128] * 8


def tracker(fixed_ms: float, per_row_ms: float, sizes: list[int], noise: float = 0.0) -> ProfileTracker:
    rng = np.random.default_rng(3)
    made = ProfileTracker()
    for n_rows in sizes:
        made.observe(n_rows, 0.0, (fixed_ms + per_row_ms * n_rows) * (1 + noise * rng.standard_normal()))
    return made


@given(st.floats(0.1, 50), st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_the_line_behind_the_calls_is_found(fixed_ms: float, per_row_ms: float) -> None:
    found = tracker(fixed_ms, per_row_ms, SIZES).profile(PRIOR)
    assert found.p50_ms(1) == pytest.approx(fixed_ms + per_row_ms, rel=1e-3)
    assert found.p50_ms(100) == pytest.approx(fixed_ms + 100 * per_row_ms, rel=1e-3)


def test_noise_widens_the_p99_and_hardly_moves_the_line() -> None:
    found = tracker(2.0, 0.1, SIZES, noise=0.2).profile(PRIOR)
    assert found.p50_ms(32) == pytest.approx(5.2, rel=0.15)
    assert found.p99_ratio > 1.2


def test_with_one_batch_size_the_slope_stays_the_authors() -> None:
    found = tracker(7.0, 0.0, [1] * 20).profile(PRIOR)
    assert found.per_row_ms == PRIOR.per_row_ms
    assert found.p50_ms(1) == pytest.approx(7.0)


def test_a_few_calls_say_nothing() -> None:
    assert tracker(9.0, 9.0, [1, 2, 3]).profile(PRIOR) is PRIOR


def test_only_profiles_that_differ_are_news() -> None:
    profiles = Profiles()
    same, slower, unused = ExtensionId("same@1"), ExtensionId("slower@1"), ExtensionId("unused@1")
    for n_rows in SIZES:
        profiles.observe(same, n_rows, 0.0, PRIOR.p50_ms(n_rows))
        profiles.observe(slower, n_rows, 0.0, 3 * PRIOR.p50_ms(n_rows))
    news = profiles.changed({same: PRIOR, slower: PRIOR, unused: PRIOR})
    assert list(news) == [slower]
    assert news[slower].p50_ms(10) == pytest.approx(3 * PRIOR.p50_ms(10))


def test_an_extension_that_was_gone_is_measured_anew() -> None:
    profiles = Profiles()
    for n_rows in SIZES:
        profiles.observe(ExtensionId("a@1"), n_rows, 0.0, 50.0)
    profiles.keep_only(frozenset())
    assert profiles.changed({ExtensionId("a@1"): PRIOR}) == {}


def test_the_size_of_rows_without_fixed_size_gets_a_slope_of_its_own() -> None:
    made = ProfileTracker()
    for i, n_rows in enumerate(SIZES):
        kilo = n_rows * (1 + i % 5) * 0.2
        made.observe(n_rows, kilo, 2.0 + 0.1 * n_rows + 0.7 * kilo)
    found = made.profile(PRIOR)
    assert found.per_kilo_ms == pytest.approx(0.7, rel=0.02)
    assert found.per_row_ms == pytest.approx(0.1, rel=0.05)
