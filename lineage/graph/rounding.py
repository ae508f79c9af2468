"""Whether the entries of one tensor are those of another, rounded to a grid.

Grids are those of a dtype with fewer bits (float16, bfloat16 read as float32), or uniform over the tensor, over each
of its rows, or over groups of a row. Integers are taken as places on the grid, whatever its scale and zero point.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

_SLACK = 1.02  # of a step: scales are estimated, or were stored with few bits
_ENOUGH = 0.99
_GROUPS = (256, 128, 64, 32)  # neighbours in a row that may have a grid of their own
_MOST_ROWS = 512  # that are looked at
_MOST_LEVELS = 1 << 16
_ON_GRID = 0.02  # of a step
_DIVISORS = (1, 2, 3, 4)  # the smallest gap between values may be several steps


def rounded_share(child: Array, parent: Array, rng: np.random.Generator) -> tuple[float, float]:
    """Which part of `child` is within one step of `parent`, and which part would be by chance: within one step of the
    same entries in another order. Both have one shape and some entries.

    What lies beyond the ends of the grid is clipped to them. An entry that is the same in both counts as rounded. Of
    large matrices some rows are looked at.
    """
    n_rows = len(parent) if parent.ndim > 1 else 1
    rows = np.sort(rng.permutation(n_rows)[:_MOST_ROWS])
    truth = np.asarray(parent).reshape(n_rows, -1)[rows].astype(np.float64)
    seen = np.asarray(child).reshape(n_rows, -1)[rows]
    shuffled = rng.permutation(truth.reshape(-1)).reshape(truth.shape)
    if np.array_equal(seen, truth):
        return 1.0, float(np.mean(seen == shuffled))
    found = _by_dtype(seen)
    if found is not None:
        return _share(*found, truth), _share(*found, shuffled)
    best = float(np.mean(seen == truth)), float(np.mean(seen == shuffled))
    for size in (truth.shape[1], *_GROUPS):
        if truth.shape[1] % size:
            continue
        mine, of_parent, by_chance = (array.reshape(-1, size) for array in (seen, truth, shuffled))
        if mine.dtype.kind == "f":
            steps = _steps(mine)
            if steps is None:
                continue
            found = mine.astype(np.float64), steps
        else:
            found = _scaled(mine, of_parent)
        share = _share(*found, of_parent)
        if share > best[0]:
            best = share, _share(*found, by_chance)
        if share >= _ENOUGH:
            break
    return best


def _share(values: Floats, steps: Floats, truth: Floats) -> float:
    lowest, highest = values.min(axis=1, keepdims=True), values.max(axis=1, keepdims=True)
    if steps.size == 1:
        lowest, highest = values.min(keepdims=True), values.max(keepdims=True)
    within = np.abs(values - truth) <= _SLACK * steps
    clipped = ((values == lowest) & (truth < lowest)) | ((values == highest) & (truth > highest))
    return float(np.mean(within | clipped))


def _by_dtype(seen: Array) -> tuple[Floats, Floats] | None:
    """Values, and the distance from each to the next one that the dtype has."""
    values = seen.astype(np.float64)
    if seen.dtype == np.float16:
        return values, np.spacing(np.abs(seen)).astype(np.float64)
    if seen.dtype == np.float32 and not np.any(np.ascontiguousarray(seen).view(np.uint32) & 0xFFFF):
        return values, np.maximum(np.spacing(np.abs(seen)).astype(np.float64) * 2.0**16, 2.0**-133)
    return None


def _steps(seen: Array) -> Floats | None:
    """The step of the grid that the values lie on, (1, 1) for all rows or (n_rows, 1); None when there is none."""
    whole = _step(seen.reshape(-1))
    if whole is not None:
        return np.array([[whole]])
    found = [_step(row) for row in seen]
    return None if any(step is None for step in found) else np.array(found, np.float64)[:, None]


def _step(values: Array) -> float | None:
    distinct = np.unique(values.astype(np.float64))
    if len(distinct) == 1:
        return float(abs(distinct[0])) or 1.0  # any step would do: then it says little, and chance says so
    if len(distinct) > _MOST_LEVELS:
        return None
    gaps = np.diff(distinct)
    for divisor in _DIVISORS:
        step = float(gaps.min()) / divisor
        n_steps = (distinct - distinct[0]) / step
        # the gap is known to a few bits of the largest value, so over many steps its error adds up: fit it again
        step *= float(n_steps @ n_steps / (np.round(n_steps) @ n_steps)) if len(distinct) > 2 else 1.0
        n_steps = (distinct - distinct[0]) / step
        if n_steps[-1] < _MOST_LEVELS and np.abs(n_steps - np.round(n_steps)).max() <= _ON_GRID:
            return step
    return None


def _scaled(places: Array, truth: Floats) -> tuple[Floats, Floats]:
    """Values that integers stand for, and their steps: a line fitted to each row, least squares."""
    at = places.astype(np.float64)
    mean, of_truth = at.mean(axis=1, keepdims=True), truth.mean(axis=1, keepdims=True)
    variance = ((at - mean) ** 2).mean(axis=1, keepdims=True)
    together = ((at - mean) * (truth - of_truth)).mean(axis=1, keepdims=True)
    steps = np.where(variance > 0.0, together / np.where(variance > 0.0, variance, 1.0), 0.0)
    return of_truth + steps * (at - mean), np.abs(steps)
