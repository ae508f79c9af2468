"""Directions through all columns of numbers at once: what they show is watched like any other column.

Each column alone may look as it did while they no longer go together. So rows are projected on principal components of
the training rows, the strongest (what many columns do together) and the weakest (what hardly ever changed, because
columns kept in step), and on random directions; and the size of a row over the first of them is a column, too.
Source of the weakest: Kuncheva and Faithfull 2014, PCA Feature Extraction for Change Detection in Multidimensional
Unlabeled Data, IEEE Transactions on Neural Networks and Learning Systems 25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from lineage.drift.columns import Array, Column

STRONGEST, WEAKEST, RANDOM = 4, 4, 2
SPREAD = 16  # principal components behind the size of a row
_CLIP = 8.0  # standard deviations, beyond which a value weighs no more
_PIECE = 200_000  # multiplications
_LEAST_RATIO = 1e-4  # of a component's variance to the greatest: below are columns that repeat others


@dataclass(frozen=True, slots=True, eq=False)
class Directions:
    """means, scales: float32 (n_numbers,), 0 scales for constant columns; vectors float32 (n_numbers, n_vectors), the
    first `n_size` of which are scaled to variance 1 and make the size of a row; `shown` of them are columns."""

    names: tuple[str, ...]
    means: Array
    scales: Array
    vectors: Array
    shown: Array
    n_size: int

    def columns(self) -> tuple[Column, ...]:
        return tuple(Column(name, "number", "joint") for name in self.names)

    def arrays(self) -> dict[str, Array]:
        return {"means": self.means, "scales": self.scales, "vectors": self.vectors, "shown": self.shown}

    def beside(self, numbers: Array) -> Array:
        """`numbers`, float32 (n_rows, n_numbers), with the columns of the directions to their right. What is missing
        counts as the training mean; a row that has nothing has nothing here either."""
        if not self.names:
            return numbers
        with np.errstate(invalid="ignore", over="ignore"):
            scaled = (numbers - self.means) * self.scales
            missing = np.isnan(scaled)
            if missing.any():
                empty = np.isnan(numbers).all(axis=1)
                scaled[missing] = 0.0
            else:
                empty = None
            projected = _product(np.clip(scaled, -_CLIP, _CLIP), self.vectors)
        made = projected[:, self.shown]
        if self.n_size:
            size = np.sqrt(np.square(projected[:, : self.n_size]).mean(axis=1, keepdims=True))
            made = np.concatenate([made, size], axis=1)
        if empty is not None:
            made[empty] = np.nan
        joined: Array = np.concatenate([numbers, made.astype(np.float32)], axis=1)
        return joined


def _product(rows: Array, vectors: Array) -> Array:
    """rows @ vectors, in pieces that BLAS does on one thread: its others would wait spinning on the cores that answer
    requests (20 us a row instead of 2 where the cores are busy)."""
    at_once = max(1, _PIECE // max(vectors.size, 1))
    made = np.empty((len(rows), vectors.shape[1]), np.float32)
    for start in range(0, len(rows), at_once):
        np.matmul(rows[start : start + at_once], vectors, out=made[start : start + at_once])
    return made


def directions_of(numbers: Array, rng: np.random.Generator) -> Directions:
    """From training rows, float32 (n_rows, n_numbers); none where fewer than two columns vary."""
    n, d = numbers.shape
    means, scales = np.zeros(d, np.float32), np.zeros(d, np.float32)
    scaled = np.zeros((n, d), np.float64)
    for i in range(d):
        there = np.isfinite(numbers[:, i])
        values = numbers[there, i].astype(np.float64)
        if not len(values):
            continue
        kept = np.clip(values, *np.quantile(values, (0.005, 0.995)))
        deviation = float(kept.std())
        if deviation > 1e-6 * max(1.0, float(np.abs(kept).max())) or (deviation > 0.0 and np.ptp(kept) > 0.0):
            means[i], scales[i] = kept.mean(), 1.0 / deviation
            with np.errstate(over="ignore", invalid="ignore"):
                scaled[there, i] = np.clip((numbers[there, i] - means[i]) * scales[i], -_CLIP, _CLIP)
    vary = np.flatnonzero(np.isfinite(scales) & (scales > 0))
    scales[~np.isfinite(scales)] = 0.0
    if len(vary) < 2 or n < 3:
        return Directions((), means, scales, np.zeros((d, 0), np.float32), np.zeros(0, np.int64), 0)
    inside = scaled[:, vary]
    variances, axes = np.linalg.eigh(np.cov(inside, rowvar=False))
    order = np.argsort(variances)[::-1]
    order = order[variances[order] > _LEAST_RATIO * variances[order[0]]]
    n_size = min(SPREAD, len(order))
    strongest = list(range(min(STRONGEST, len(order))))
    weakest = [i for i in range(len(order) - 1, -1, -1) if i not in strongest][:WEAKEST]
    chosen = [*order[:n_size], *(order[i] for i in weakest if i >= n_size)]
    principal = axes[:, chosen] / np.sqrt(variances[chosen])
    random = rng.normal(size=(len(vary), RANDOM)) / np.sqrt(len(vary))
    vectors = np.zeros((d, principal.shape[1] + RANDOM), np.float32)
    vectors[vary] = np.concatenate([principal, random], axis=1)
    place = {number: place for place, number in enumerate(chosen)}
    shown = [*strongest, *(place[order[i]] for i in weakest), *range(len(chosen), len(chosen) + RANDOM)]
    names = [f"joint: component {i + 1}" for i in [*strongest, *weakest]]
    names += [f"joint: random {i + 1}" for i in range(RANDOM)]
    return Directions((*names, "joint: size"), means, scales, vectors, np.array(shown, np.int64), n_size)


def restored(names: tuple[str, ...], n_size: int, arrays: Mapping[str, Array]) -> Directions:
    """From what `arrays` gave."""
    return Directions(names, arrays["means"], arrays["scales"], arrays["vectors"], arrays["shown"], n_size)
