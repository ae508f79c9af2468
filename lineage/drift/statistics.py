"""How far two distributions are apart: from counts over the same bins, and from quantile sketches.

Counts may have leading axes (one per column, one per simulated window); bins are the last one. Functions return NaN
where one side has no rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.special import rel_entr

from lineage.drift.columns import Array
from lineage.drift.sketches import Points

HALF = 0.5  # added to every bin, so that an empty one does not make a distance infinite


@dataclass(frozen=True, slots=True)
class Bounded:
    """A figure, and how far it may be off because rows were thrown away."""

    value: float
    error: float


def shares(counts: Array, real: Array | None = None, smoothing: float = HALF) -> Array:
    """Smoothed shares of the bins; `real` marks the bins that exist, 0 in the others."""
    kept = np.asarray(counts, np.float64) + smoothing
    if real is not None:
        kept = kept * real
    total = kept.sum(axis=-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        made: Array = kept / total
    return made


def psi(reference: Array, live: Array, real: Array | None = None, smoothing: float = HALF) -> Array:
    """Population stability index in nats; 0 means identical, and so little smoothed counts never are.

    The sum over bins of (q - p) ln(q / p), which is KL(q, p) + KL(p, q). Source: Siddiqi 2006, Credit Risk Scorecards,
    ch. 10.
    """
    p, q = shares(reference, real, smoothing), shares(live, real, smoothing)
    return _without_rows((rel_entr(q, p) + rel_entr(p, q)).sum(axis=-1), reference, live)


def kullback_leibler(reference: Array, live: Array, real: Array | None = None, smoothing: float = HALF) -> Array:
    """KL(live, reference) in nats: sum of q ln(q / p), p being of the reference. Source: Kullback and Leibler 1951,
    Annals of Mathematical Statistics 22."""
    p, q = shares(reference, real, smoothing), shares(live, real, smoothing)
    return _without_rows(rel_entr(q, p).sum(axis=-1), reference, live)


def jensen_shannon(reference: Array, live: Array, real: Array | None = None, smoothing: float = HALF) -> Array:
    """Jensen-Shannon divergence in nats, from 0 to ln 2: the mean of KL to the average of both. Its root is the
    distance that scipy has. Source: Lin 1991, IEEE Transactions on Information Theory 37."""
    p, q = shares(reference, real, smoothing), shares(live, real, smoothing)
    middle = (p + q) / 2
    return _without_rows((rel_entr(p, middle) + rel_entr(q, middle)).sum(axis=-1) / 2, reference, live)


def kolmogorov_smirnov_at(reference: Array, live: Array) -> Array:
    """The greatest difference of two cumulative shares at the edges of the bins, the last axis: a lower bound of the
    Kolmogorov-Smirnov distance, exact at the edges."""
    made: Array = np.abs(live - reference).max(axis=-1)
    return made


def kolmogorov_smirnov_most(reference: Array, live: Array) -> Array:
    """An upper bound, from the same cumulative shares with a 0 before and a 1 behind them: within a bin neither of
    them can leave the range between its edges."""
    low_p, high_p, low_q, high_q = reference[..., :-1], reference[..., 1:], live[..., :-1], live[..., 1:]
    made: Array = np.maximum(high_p - low_q, high_q - low_p).max(axis=-1)
    return made


def wasserstein_at(reference: Array, live: Array, widths: Array) -> Array:
    """The first Wasserstein distance of cumulative shares at the edges of bins that are `widths` wide, rows within a
    bin spread evenly and the shares of both growing at once."""
    gaps = np.abs(live - reference)
    made: Array = ((gaps[..., 1:] + gaps[..., :-1]) / 2 * widths).sum(axis=-1)
    return made


def kolmogorov_smirnov(reference: Points, live: Points) -> Bounded:
    """The two-sample Kolmogorov-Smirnov distance, as `scipy.stats.ks_2samp` has it of the rows themselves, to within
    the rank errors of both sketches; exact where neither threw rows away. Source: Smirnov 1939, Bulletin
    Mathematique de l'Universite de Moscou 2."""
    if not len(reference.values) or not len(live.values):
        return Bounded(float("nan"), 0.0)
    at = np.union1d(reference.values, live.values)
    value = float(np.abs(reference.upto(at) - live.upto(at)).max())
    return Bounded(value, reference.rank_error + live.rank_error)


def wasserstein(reference: Points, live: Points) -> Bounded:
    """The first Wasserstein distance in the column's unit, as `scipy.stats.wasserstein_distance` has it, to within the
    rank errors times the range of the values."""
    if not len(reference.values) or not len(live.values):
        return Bounded(float("nan"), 0.0)
    at = np.union1d(reference.values, live.values)
    gaps = np.abs(reference.upto(at) - live.upto(at))[:-1]
    error = (reference.rank_error + live.rank_error) * float(at[-1] - at[0])
    return Bounded(float((gaps * np.diff(at)).sum()), error)


def within(estimate: Bounded, low: float, high: float) -> Bounded:
    """An estimate and bounds that hold for sure, put together."""
    value = min(max(estimate.value, low), high)
    return Bounded(value, min(estimate.error, max(value - low, high - value)))


def _without_rows(values: Array, reference: Array, live: Array) -> Array:
    nothing = (np.asarray(reference).sum(axis=-1) <= 0) | (np.asarray(live).sum(axis=-1) <= 0)
    made: Array = np.where(nothing, np.nan, values)
    return made
