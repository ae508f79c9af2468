"""Whether confidences are worth what they say: reliability tables, and the expected calibration error (ECE).

Confidences are counted on a fine grid, so that counts can be merged and yet be cut into bins of equal width, exactly,
or of equal mass, up to the grid.
Sources: Naeini, Cooper and Hauskrecht 2015, Obtaining Well Calibrated Probabilities Using Bayesian Binning, AAAI
(equal mass); Guo, Pleiss, Sun and Weinberger 2017, On Calibration of Modern Neural Networks, ICML (equal width).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri

from lineage.quality.intervals import LEVEL, Estimate, share
from lineage.quality.outcomes import Floats

N_BINS = 15  # as Guo et al. have it
_PER_BIN = 4

# Upper edges: 60 of equal width, and between them ever finer ones towards 0 and 1, where confidences crowd.
EDGES: Floats = np.array(
    sorted(
        {k / (N_BINS * _PER_BIN) for k in range(1, N_BINS * _PER_BIN + 1)}
        | {0.02 * 2.0**-j for j in range(1, 11)}
        | {1.0 - 0.2 * 2.0 ** (-j / 4) for j in range(60)}
    )
)

_SURELY = 1e-9  # nearer to 0 and 1 no share is taken to be
_LEAST_PER_BIN = 10  # of equal mass

Counts = dict[int, list[float]]  # of the grid: how many, the sum of their confidences, how many were right


def count(confidence: Floats, right: Floats) -> Counts:
    """Judged outcomes on the grid; both have shape (n,)."""
    at = np.searchsorted(EDGES, confidence, side="left")
    n = np.bincount(at, minlength=len(EDGES))
    sure = np.bincount(at, confidence, minlength=len(EDGES))
    hits = np.bincount(at, right, minlength=len(EDGES))
    return {int(i): [float(n[i]), float(sure[i]), float(hits[i])] for i in np.flatnonzero(n)}


@dataclass(frozen=True, slots=True)
class Bin:
    """Judged outcomes with a confidence above `above` and up to `up_to`: their mean confidence and how many are right.

    `right` is the share with its Wilson interval.
    """

    above: float
    up_to: float
    n: int
    confidence: float
    right: Estimate


@dataclass(frozen=True, slots=True)
class Calibration:
    """The bins that are not empty, and the ECE: the mean of |share right - mean confidence| over the outcomes.

    `plain_ece` is what the papers have, and too high, because chance alone opens gaps; the more so the fewer outcomes
    there are. `ece` is freed of that. Its interval holds the true calibration error at this resolution.
    """

    bins: tuple[Bin, ...]
    plain_ece: float
    ece: Estimate


def equal_width(counts: Mapping[int, Sequence[float]]) -> Calibration | None:
    """Over `N_BINS` bins of equal width; None without outcomes."""
    groups: dict[int, list[int]] = {}
    for i in sorted(counts):
        groups.setdefault(math.ceil(EDGES[i] * N_BINS - 1e-9) - 1, []).append(i)
    return _calibration([((b / N_BINS, (b + 1) / N_BINS), [counts[i] for i in at]) for b, at in groups.items()])


def equal_mass(counts: Mapping[int, Sequence[float]]) -> Calibration | None:
    """Over up to `N_BINS` bins with about as many outcomes each, 10 at least; equal confidences are never parted."""
    n = sum(counts[i][0] for i in counts)
    per_bin = max(n / N_BINS, min(_LEAST_PER_BIN, n))
    groups: list[list[int]] = [[]]
    reached = 0.0
    for i in sorted(counts):
        # A cell of the grid goes to the bin in which its middle lies.
        if groups[-1] and reached + counts[i][0] / 2 > len(groups) * per_bin:
            groups.append([])
        groups[-1].append(i)
        reached += counts[i][0]
    made, above = [], 0.0
    for at in groups:
        if at:
            made.append(((above, float(EDGES[at[-1]])), [counts[i] for i in at]))
            above = float(EDGES[at[-1]])
    return _calibration(made)


def _calibration(groups: Sequence[tuple[tuple[float, float], Sequence[Sequence[float]]]]) -> Calibration | None:
    bins = []
    for (above, up_to), cells in groups:
        n, sure, hits = (sum(cell[k] for cell in cells) for k in range(3))
        right = share(hits, int(n))
        if right is not None:
            bins.append(Bin(above, up_to, int(n), sure / n, right))
    if not bins:
        return None
    n_of = np.array([bin_.n for bin_ in bins], dtype=np.float64)
    gaps = np.array([bin_.right.value - bin_.confidence for bin_ in bins])
    # Two more outcomes as the confidence has it: a bin that was all right by luck is not sure to be so.
    likely = np.array([(bin_.right.value * bin_.n + 2 * bin_.confidence) / (bin_.n + 2) for bin_ in bins])
    likely = np.clip(likely, _SURELY, 1.0 - _SURELY)
    weights = n_of / n_of.sum()
    plain = float(weights @ np.abs(gaps))
    return Calibration(tuple(bins), plain, _ece(plain, gaps, np.sqrt(likely * (1 - likely) / n_of), n_of))


def _ece(plain: float, gaps: Floats, errors: Floats, n_of: Floats) -> Estimate:
    """The calibration error without what chance adds, and its limits.

    A bin's gap is normal around the true one with standard error `errors`, so the plain ECE is a sum of folded
    normals. Were the true gaps `t` times the seen ones, its mean and variance would be known, and the mean grows with
    t: the estimate is the t at which the mean is the plain ECE, the limits are those at which the plain ECE is as low
    or as high as it would be by chance in (1 - LEVEL) / 2 of all cases.
    Source of the moments: Leone, Nelson and Nottingham 1961, Technometrics 3.
    """
    z, n = float(ndtri(0.5 + LEVEL / 2)), int(n_of.sum())
    weights = n_of / n

    def expected(t: float, with_errors: float) -> float:
        true = t * np.abs(gaps)
        folded = errors * math.sqrt(2 / math.pi) * np.exp(-0.5 * (true / errors) ** 2) + true * (
            1 - 2 * ndtr(-true / errors)
        )
        spread = math.sqrt(max(0.0, float(weights**2 @ (true**2 + errors**2 - folded**2))))
        return float(weights @ folded) + with_errors * spread

    def solved(with_errors: float) -> float:
        if expected(0.0, with_errors) >= plain:
            return 0.0
        low, high = 0.0, 1.0
        while expected(high, with_errors) < plain and high < 1e6:
            high *= 2.0
        for _ in range(24):  # seven digits
            middle = (low + high) / 2
            low, high = (middle, high) if expected(middle, with_errors) < plain else (low, middle)
        return (low + high) / 2

    if plain == 0.0:  # no gap to scale: what chance alone could have hidden is the limit
        return Estimate(0.0, 0.0, min(1.0, z * math.sqrt(float(weights**2 @ errors**2))), n)
    low, value, high = (min(1.0, solved(way) * plain) for way in (z, 0.0, -z))
    return Estimate(value, low, high, n)
