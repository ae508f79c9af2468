from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.choice.best import chances_to_be_best

NUMBERS = st.tuples(st.floats(-5.0, 0.0), st.floats(0.0, 1.0))


@settings(max_examples=50)
@given(st.lists(NUMBERS, min_size=1, max_size=20))
def test_the_chances_are_probabilities(numbers: list[tuple[float, float]]) -> None:
    chances = chances_to_be_best([mean for mean, _ in numbers], [sd for _, sd in numbers])
    assert sum(chances) == pytest.approx(1.0)
    assert all(0.0 <= chance <= 1.0 + 1e-9 for chance in chances)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_they_are_those_that_draws_bring(n: int) -> None:
    rng = random.Random(n)
    for _ in range(5):
        means = [rng.gauss(0.0, 0.1) for _ in range(n)]
        deviations = [0.2 * rng.random() ** 2 for _ in range(n)]
        wins = [0] * n
        for _ in range(4000):
            draws = [rng.gauss(m, s) for m, s in zip(means, deviations, strict=True)]
            wins[draws.index(max(draws))] += 1
        assert chances_to_be_best(means, deviations) == pytest.approx([win / 4000 for win in wins], abs=0.05)


def test_equals_have_equal_chances() -> None:
    assert chances_to_be_best([-0.1] * 4, [0.05] * 4) == pytest.approx([0.25] * 4)


def test_what_is_sure_to_be_better_wins() -> None:
    assert chances_to_be_best([-0.1, -0.5], [1e-6, 1e-6])[0] == pytest.approx(1.0)
