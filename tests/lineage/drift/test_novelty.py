from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lineage.drift.novelty import chance_again, chance_of_at_least, chance_out_of_range


@given(k=st.integers(0, 60), n=st.integers(1, 50), hits=st.integers(1, 30), misses=st.integers(1, 300))
def test_the_chance_is_the_tail_of_a_beta_binomial(k: int, n: int, hits: int, misses: int) -> None:
    made = chance_of_at_least(k, n, hits, misses)
    if k <= n * hits / (hits + misses):
        assert made == 1.0
    else:
        assert made == pytest.approx(stats.betabinom.sf(k - 1, n, hits, misses), abs=1e-9)


def test_values_out_of_range_are_as_likely_as_among_rows_in_random_order() -> None:
    rng = np.random.default_rng(0)
    rows = rng.random((20_000, 120))
    before, now = rows[:, :100], rows[:, 100:]
    out = ((now > before.max(axis=1, keepdims=True)) | (now < before.min(axis=1, keepdims=True))).sum(axis=1)
    for k in (1, 2, 3):
        assert chance_out_of_range(k, 20, 100) == pytest.approx((out >= k).mean(), abs=0.01)


def test_what_always_happened_is_no_surprise() -> None:
    assert chance_again(85, 100, 900, 1000) == 1.0
    assert chance_again(5, 100, 0, 10_000) < 1e-6
    assert chance_again(0, 0, 0, 0) == 1.0
