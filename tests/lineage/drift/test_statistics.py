from __future__ import annotations

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import jensenshannon

from lineage.drift import statistics
from lineage.drift.columns import Rows
from lineage.drift.judge import Judge
from lineage.drift.sketches import Sketch, points_of
from tests.lineage.drift.tables import plain_reference

SHAPES = {
    "normal": lambda rng, n: rng.normal(size=n),
    "shifted": lambda rng, n: rng.normal(0.3, 1.2, n),
    "heavy tails": lambda rng, n: rng.standard_cauchy(n),
    "lognormal": lambda rng, n: rng.lognormal(0.0, 2.0, n),
    "discrete": lambda rng, n: rng.poisson(2.0, n),
    "binary": lambda rng, n: rng.random(n) < 0.03,
    "constant": lambda rng, n: np.full(n, 7.25),
    "ties": lambda rng, n: np.round(rng.normal(size=n), 1),
    "mostly zero": lambda rng, n: np.where(rng.random(n) < 0.9, 0.0, rng.exponential(size=n)),
    "two humps": lambda rng, n: np.where(rng.random(n) < 0.5, rng.normal(-5, 1, n), rng.normal(5, 0.1, n)),
}


def values_of(shape: str, n: int, seed: int, share_missing: float) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = np.asarray(SHAPES[shape](rng, n), np.float32)
    values[rng.random(n) < share_missing] = np.nan
    return values


@settings(max_examples=60, deadline=None)
@given(
    before=st.sampled_from(list(SHAPES)),
    now=st.sampled_from(list(SHAPES)),
    n_before=st.integers(20, 6000),
    n=st.integers(1, 4000),
    n_parts=st.integers(1, 64),
    share_missing=st.sampled_from([0.0, 0.2]),
    seed=st.integers(0, 10_000),
)
def test_distances_from_merged_sketches_are_those_of_scipy_on_the_rows(
    before: str, now: str, n_before: int, n: int, n_parts: int, share_missing: float, seed: int
) -> None:
    training = values_of(before, n_before, seed, share_missing)
    live = values_of(now, n, seed + 1, share_missing)
    reference = plain_reference(training.reshape(-1, 1))
    sketch = Sketch(reference.bins)
    for part in np.array_split(live, n_parts):
        one = sketch.empty()
        one.add(Rows(part.reshape(-1, 1)))
        sketch.merge(one)
    judge = Judge(reference)
    far = judge.distances(sketch, [points_of(one) for one in sketch.quantiles])[0]
    there, now_there = training[~np.isnan(training)], live[~np.isnan(live)]
    if not len(there) or not len(now_there):
        assert np.isnan(far.psi)
        return
    assert far.kolmogorov_smirnov is not None
    assert far.wasserstein is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        smirnov = stats.ks_2samp(there, now_there, method="asymp").statistic
    wasserstein = stats.wasserstein_distance(there.astype(np.float64), now_there.astype(np.float64))
    assert abs(far.kolmogorov_smirnov.value - smirnov) <= far.kolmogorov_smirnov.error + 1e-9
    assert far.kolmogorov_smirnov.error <= 0.026
    assert abs(far.wasserstein.value - wasserstein) <= far.wasserstein.error + 1e-5 * max(1.0, wasserstein)

    ends = reference.bins.group_ends[0]
    edges = reference.bins.edges[0][np.unique(ends)]
    p, q = (np.bincount(np.searchsorted(edges[:-1], x), minlength=len(edges)) + 0.5 for x in (there, now_there))
    p, q = p / p.sum(), q / q.sum()
    assert far.kullback_leibler == pytest.approx(stats.entropy(q, p), abs=1e-9)
    assert far.psi == pytest.approx(stats.entropy(q, p) + stats.entropy(p, q), abs=1e-9)
    assert far.jensen_shannon == pytest.approx(jensenshannon(p, q) ** 2, abs=1e-9)


@settings(max_examples=50, deadline=None)
@given(
    p=st.lists(st.integers(0, 1000), min_size=2, max_size=30),
    q=st.lists(st.integers(0, 1000), min_size=2, max_size=30),
)
def test_divergences_without_smoothing_are_those_of_scipy(p: list[int], q: list[int]) -> None:
    n = min(len(p), len(q))
    a, b = np.array(p[:n]), np.array(q[:n])
    if not a.sum() or not b.sum():
        assert np.isnan(statistics.psi(a, b))
        return
    made = statistics.kullback_leibler(a, b, smoothing=0.0)
    assert made == pytest.approx(stats.entropy(b, a), abs=1e-9)
    assert statistics.jensen_shannon(a, b, smoothing=0.0) == pytest.approx(jensenshannon(a, b) ** 2, abs=1e-9)


def test_the_bounds_of_a_histogram_hold_the_distance_of_the_rows() -> None:
    rng = np.random.default_rng(3)
    a, b = np.sort(rng.normal(size=2000)), np.sort(rng.normal(0.4, 1.0, 700))
    edges = np.quantile(a, np.linspace(0.05, 0.95, 10))
    p, q = np.searchsorted(a, edges, "right") / len(a), np.searchsorted(b, edges, "right") / len(b)
    low = statistics.kolmogorov_smirnov_at(p, q)
    most = statistics.kolmogorov_smirnov_most(*(np.concatenate([[0.0], share, [1.0]]) for share in (p, q)))
    assert low <= stats.ks_2samp(a, b).statistic <= most
    assert low > 0.1


def test_what_is_the_same_is_at_no_distance_and_groups_that_do_not_exist_add_nothing() -> None:
    counts = np.array([5, 10, 20, 0, 0])
    real = np.array([True, True, True, False, False])
    for made in (statistics.psi, statistics.kullback_leibler, statistics.jensen_shannon):
        assert made(counts, counts, real) == 0.0
        assert made(counts, counts[::-1] * 0 + [20, 10, 5, 0, 0], real) == pytest.approx(
            float(made(counts[:3], np.array([20, 10, 5])))
        )
