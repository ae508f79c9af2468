"""Which rows are worth a label: unsure, disputed by the lineage, unlike each other, and always some at random.

Rows at random keep the sample honest: only they may judge. Of the others those that inform most are kept, and spread
out by greedy k-centres (Sener and Savarese 2018, ICLR), as in Zhdanov 2019 (Diverse mini-batch active learning).
Nothing here needs scikit-activeml, whose import takes seconds; tests hold the scores against it.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from repair.errors import RepairRefused

Array = npt.NDArray[Any]
Reason = Literal["random", "uncertain", "disagreement"]


@dataclass(frozen=True, slots=True)
class Pick:
    """A row to label, by its number, and why."""

    row: int
    reason: Reason


@dataclass(frozen=True, slots=True)
class PickPlan:
    """The share of rows at random (at least one row), how much disagreement counts beside uncertainty where there are
    several members, and how many times as many rows as wanted are kept before they are spread out."""

    random_share: float = 0.25
    disagreement_share: float = 0.5
    keep: float = 3.0

    def __post_init__(self) -> None:
        if not (0.0 < self.random_share <= 1.0 and 0.0 <= self.disagreement_share <= 1.0 and self.keep >= 1.0):
            raise RepairRefused(
                "shares lie in 0..1, some rows are always random, and at least as many as wanted are kept."
            )


def uncertainty(probabilities: Array, method: Literal["margin", "entropy"] = "margin") -> Array:
    """How unsure each row is, in 0..1, shape (n,); a row that is not finite is as unsure as can be.

    Margin: one minus the distance between the two likeliest classes (Scheffer, Decomain and Wrobel 2001); entropy: in
    units of the highest possible one (Shannon 1948).
    """
    given = np.asarray(probabilities, dtype=np.float64)
    if given.ndim != 2 or given.shape[1] < 2:
        raise RepairRefused(f"probabilities have shape (n, n_classes) of at least two classes, not {given.shape}.")
    if method == "margin":
        top = np.partition(given, -2, axis=1)[:, -2:]
        found = 1.0 - (top[:, 1] - top[:, 0])
    else:
        logs = np.log(np.maximum(given, 1e-12))
        found = -np.sum(given * logs, axis=1) / math.log(given.shape[1])
    return np.where(np.isfinite(given).all(axis=1), found, 1.0)


def disagreement(members: Array) -> Array:
    """How far members are from what they say together, per row, in nats: the mean Kullback-Leibler divergence from the
    consensus (McCallum and Nigam 1998, ICML). `members` has shape (n_members, n, n_classes)."""
    given = np.maximum(np.asarray(members, dtype=np.float64), 1e-12)
    consensus = given.mean(axis=0, keepdims=True)
    found = np.sum(given * np.log(given / consensus), axis=2).mean(axis=0)
    return np.where(np.isfinite(found), found, math.log(max(2, len(given))))


def pick(
    probabilities: Array,
    n: int,
    rng: np.random.Generator,
    *,
    members: Array | None = None,
    embeddings: Array | None = None,
    taken: Collection[int] = (),
    plan: PickPlan | None = None,
) -> tuple[Pick, ...]:
    """At most `n` different rows, none of them in `taken`; the random ones come first.

    `probabilities` (n_rows, n_classes) are of the version to be refined, `members` (n_members, n_rows, n_classes) of
    versions of its lineage, `embeddings` (n_rows, d) what distances are measured in. Fewer come back only when no row
    is left. Raises RepairRefused for a negative budget or arrays of other lengths.
    """
    plan = plan or PickPlan()
    n_rows = len(probabilities)
    if n < 0:
        raise RepairRefused(f"a budget of {n} rows is not one.")
    lengths = {
        "members": n_rows if members is None else members.shape[1],
        "embeddings": n_rows if embeddings is None else len(embeddings),
    }
    for name, length in lengths.items():
        if length != n_rows:
            raise RepairRefused(f"{name} are of {length} rows, probabilities of {n_rows}.")
    free = np.setdiff1d(np.arange(n_rows), np.fromiter(taken, dtype=np.int64, count=len(taken)))
    n = min(n, len(free))
    if n == 0:
        return ()
    n_random = min(n, max(1, math.ceil(plan.random_share * n)))
    drawn = rng.choice(free, size=n_random, replace=False)
    picks = [Pick(int(row), "random") for row in drawn]
    n_left = n - n_random
    if not n_left:
        return tuple(picks)
    rest = np.setdiff1d(free, drawn)
    unsure = _ranks(uncertainty(probabilities[rest]))
    split = np.zeros(len(rest)) if members is None or len(members) < 2 else _ranks(disagreement(members[:, rest]))
    weight = plan.disagreement_share if members is not None and len(members) > 1 else 0.0
    scores = (1.0 - weight) * unsure + weight * split
    order = np.argsort(-scores, kind="stable")[: max(n_left, math.ceil(plan.keep * n_left))]
    if embeddings is not None:
        known = np.concatenate([np.fromiter(taken, dtype=np.int64, count=len(taken)), drawn])
        order = order[_spread(embeddings[rest[order]], embeddings[known], scores[order], n_left)]
    for place in order[:n_left].tolist():
        reason: Reason = "disagreement" if weight * split[place] > (1.0 - weight) * unsure[place] else "uncertain"
        picks.append(Pick(int(rest[place]), reason))
    return tuple(picks)


def _ranks(scores: Array) -> Array:
    """0..1 by order, so that scores of different units can be added; equal ones alike."""
    _, place, count = np.unique(scores, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2.0
    return np.asarray(middle[place] / max(1, len(scores) - 1))


def _spread(points: Array, known: Array, scores: Array, n: int) -> Array:
    """The numbers of `n` points, each the one that is farthest from all chosen before, by distance times score."""
    points = _clean(points)
    away = np.full(len(points), np.inf)
    for begin in range(0, len(known), 256):
        near = _squared(points, _clean(known[begin : begin + 256])).min(axis=1)
        away = np.minimum(away, near)
    chosen: list[int] = []
    left = np.ones(len(points), dtype=bool)
    for _ in range(n):
        worth = np.where(left, np.sqrt(np.minimum(away, 1e30)) * (scores + 1e-3), -1.0)
        best = int(np.argmax(worth))
        chosen.append(best)
        left[best] = False
        away = np.minimum(away, _squared(points, points[best : best + 1])[:, 0])
    return np.asarray(chosen, dtype=np.int64)


def _clean(points: Array) -> Array:
    return np.nan_to_num(np.asarray(points, dtype=np.float64).reshape(len(points), -1), posinf=0.0, neginf=0.0)


def _squared(a: Array, b: Array) -> Array:
    found = np.sum(a * a, axis=1)[:, None] - 2.0 * a @ b.T + np.sum(b * b, axis=1)[None]
    return np.asarray(np.maximum(found, 0.0))
