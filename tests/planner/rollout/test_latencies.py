from __future__ import annotations

import numpy as np
import pytest

from planner.errors import BadRequest
from planner.rollout.latencies import Latencies, bins_in, edge_ms


def test_every_time_is_counted_in_its_bin() -> None:
    times = [0.05, 1.0, 1.01, 7.0, 7.0, 3000.0]
    seen = Latencies.of(times)
    assert seen.n == 6
    for number in range(-150, 400):
        assert seen.n_from(number) == sum(time >= edge_ms(number) * (1 - 1e-12) for time in times)


def test_a_quarter_more_is_ten_bins() -> None:
    assert bins_in(1.25) == 10
    assert edge_ms(10) / edge_ms(0) == pytest.approx(1.25)
    times = np.random.default_rng(1).lognormal(2.0, 1.0, 1000)
    one, slower = Latencies.of(times), Latencies.of(times * 1.25 * (1 + 1e-12))
    assert [slower.n_from(i + 10) for i in range(300)] == [one.n_from(i) for i in range(300)]


def test_quantiles_lie_within_a_bin_of_the_true_ones() -> None:
    times = np.random.default_rng(2).lognormal(2.0, 1.0, 5001)
    seen = Latencies.of(times)
    for share in (0.01, 0.5, 0.95, 1.0):
        assert seen.quantile_ms(share) == pytest.approx(float(np.quantile(times, share)), rel=0.025)
    assert Latencies().quantile_ms(0.5) == 0.0


def test_histograms_add_up_and_change_nobody() -> None:
    one, other = Latencies.of([1.0, 2.0]), Latencies.of([2.0, 3.0])
    assert one.plus(other) == Latencies.of([1.0, 2.0, 2.0, 3.0])
    assert one == Latencies.of([1.0, 2.0])
    assert one.plus(Latencies()) == Latencies().plus(one) == one


def test_a_large_histogram_fades() -> None:
    large = Latencies({0: 30_000, 5: 1})
    assert large.faded() == Latencies({0: 15_000})
    assert Latencies({0: 10}).faded() == Latencies({0: 10})


@pytest.mark.parametrize("wrong", [[-1.0], [float("nan")], [1.0, float("inf")]])
def test_times_that_cannot_be_are_refused(wrong: list[float]) -> None:
    with pytest.raises(BadRequest, match="finite and at least 0"):
        Latencies.of(wrong)
    with pytest.raises(BadRequest, match="below 0"):
        Latencies({1: -1})


def test_no_time_at_all_is_counted_as_the_shortest() -> None:
    assert Latencies.of([0.0, 1e-9]) == Latencies.of([1e-3, 1e-3])
    assert Latencies.of([]).n == 0
