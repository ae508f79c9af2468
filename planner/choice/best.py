"""How likely each of several unsure numbers is the largest."""

from __future__ import annotations

import math
from collections.abc import Sequence

_CELLS = 24  # of the grid on which the probabilities are summed up
_SQRT2 = math.sqrt(2.0)
_AROUND = (-2.0, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0)  # of the grid's points, around the largest mean


def chances_to_be_best(means: Sequence[float], deviations: Sequence[float]) -> list[float]:
    """The probability of each of some independent normal numbers to be the largest; they sum to 1.

    Summed up on a grid, so they are near the true ones, not equal to them. 20 us for 3 numbers, 100 us for 20.
    """
    n = len(means)
    if n == 1:
        return [1.0]
    sds = [max(sd, 1e-9) for sd in deviations]
    low = max(m - 4.0 * sd for m, sd in zip(means, sds, strict=True))  # below, one at least is sure to be larger
    high = max(m + 4.0 * sd for m, sd in zip(means, sds, strict=True))
    step = (high - low) / _CELLS
    top = max(range(n), key=means.__getitem__)
    near = [means[top] + z * sds[top] for z in _AROUND]
    points = sorted([low + step * i for i in range(_CELLS + 1)] + [x for x in near if low < x < high])
    racing = [i for i in range(n) if means[i] + 4.0 * sds[i] > low]
    chances = [0.0] * n
    erf = math.erf
    scales = [1.0 / (sds[i] * _SQRT2) for i in racing]
    centres = [means[i] for i in racing]
    # below[k]: the probability, doubled and less one, that number k is below the point.
    before = [0.5 + 0.5 * erf((low - m) * s) for m, s in zip(centres, scales, strict=True)]
    all_before = math.prod(before)
    for x in points[1:]:
        after = [0.5 + 0.5 * erf((x - m) * s) for m, s in zip(centres, scales, strict=True)]
        all_after = math.prod(after)
        # What the largest gains in this cell goes to those that can be in it, in proportion to how likely they are.
        gained = all_after - all_before
        if gained > 0.0:
            shares = [(b - a) / (b + a) if b > 0.0 else 0.0 for a, b in zip(before, after, strict=True)]
            whole = sum(shares)
            if whole > 0.0:
                for i, share in zip(racing, shares, strict=True):
                    chances[i] += gained * share / whole
        before, all_before = after, all_after
    total = sum(chances)
    if total <= 0.0:
        chances[top], total = 1.0, 1.0
    return [chance / total for chance in chances]
