"""The gate: who is best on labelled rows that nobody learned from, and whether that is more than chance.

Two versions answer the same rows, so they are compared pair by pair: the interval of the difference of two paired
shares is that of Newcombe 1998 (Statistics in Medicine 17, method 10), made of two Wilson intervals; it holds for few
rows and nothing is resampled.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.quality.intervals import LEVEL, Estimate, share
from repair.errors import RepairRefused, TruthLacking

Right = npt.NDArray[np.bool_]  # per held-out row, whether the answer is the true one

LEAST_ROWS = 20
DRIFTED, ROLLBACK, REPAIRED, FINE_TUNED, VOTE = "drifted", "rollback", "repaired", "fine_tuned", "vote"


@dataclass(frozen=True, slots=True)
class Candidate:
    """What a version does on the held-out rows: `right` row by row; `losses` per row (cross-entropy, nats) decide
    between versions that cannot be told apart, where they are known."""

    right: Right
    losses: npt.NDArray[np.float64] | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much more often `of` is right than `than`, as a difference of shares with its interval; `beats` when all of
    the interval is above zero, `loses` when all of it is below."""

    of: str
    than: str
    difference: Estimate
    slice: str = ""

    @property
    def beats(self) -> bool:
        return self.difference.low > 0.0

    @property
    def loses(self) -> bool:
        return self.difference.high < 0.0

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"of": self.of, "than": self.than, "slice": self.slice, **self.difference.plain()}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Who wins. `passed`: the repaired version beats every other by more than the interval and loses on no slice; else
    `winner` is the one to use instead, and `reason` says why."""

    winner: str
    passed: bool
    reason: str
    shares: Mapping[str, Estimate]
    comparisons: tuple[Comparison, ...] = ()
    lost_slices: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "winner": self.winner,
            "passed": self.passed,
            "reason": self.reason,
            "shares": {name: estimate.plain() for name, estimate in self.shares.items()},
            "comparisons": [comparison.plain() for comparison in self.comparisons],
            "lost_slices": list(self.lost_slices),
        }


@dataclass(frozen=True, slots=True)
class Slice:
    """Rows on which the repaired version may not do worse than `than` (by default the drifted one): some of the
    held-out ones, or others such as those of an older validation set. Both are row by row."""

    repaired: Right
    other: Right
    than: str = DRIFTED


@dataclass(frozen=True, slots=True)
class GatePlan:
    """`level` of each interval; fewer held-out rows than `least_rows` are refused."""

    level: float = LEVEL
    least_rows: int = LEAST_ROWS
    others: tuple[str, ...] = field(default=(DRIFTED, ROLLBACK, FINE_TUNED))


def paired_difference(a: Right, b: Right, level: float = LEVEL) -> Estimate:
    """Share right of `a` minus that of `b` over the same rows, with the interval of Newcombe 1998, method 10.

    Both have shape (n,). Raises TruthLacking without rows, RepairRefused for different lengths.
    """
    if a.shape != b.shape:
        raise RepairRefused(f"{a.shape} and {b.shape} are not answers to the same rows.")
    n = len(a)
    both, one, other = int(np.sum(a & b)), int(np.sum(a & ~b)), int(np.sum(~a & b))
    none = n - both - one - other
    of_a, of_b = share(both + one, n, level), share(both + other, n, level)
    if of_a is None or of_b is None:
        raise TruthLacking("there is no held-out row.")
    product = (both + one) * (other + none) * (both + other) * (one + none)
    agree = float(both * none - one * other)
    if agree > 0:
        agree = max(0.0, agree - n / 2)
    phi = agree / math.sqrt(product) if product else 0.0
    value = (one - other) / n
    below, above = of_a.value - of_a.low, of_a.high - of_a.value
    below_b, above_b = of_b.value - of_b.low, of_b.high - of_b.value
    down = math.sqrt(max(0.0, below**2 - 2 * phi * below * above_b + above_b**2))
    up = math.sqrt(max(0.0, above**2 - 2 * phi * above * below_b + below_b**2))
    return Estimate(value, max(-1.0, value - down), min(1.0, value + up), n)


def check_truth(labels: Sequence[Any] | npt.NDArray[Any], least_rows: int = LEAST_ROWS) -> None:
    """Raises TruthLacking where the labels of a validation set are too few, or all of one class."""
    n = len(labels)
    if n < least_rows:
        raise TruthLacking(
            f"the validation set has {n} labelled rows, and it takes {least_rows} to tell versions apart.",
            hint="Label more rows at random.",
        )
    classes = set(np.asarray(labels).tolist())
    if len(classes) < 2:
        raise TruthLacking(
            f"all {n} labelled rows of the validation set are of class {classes.pop()!r}: any version that always says "
            "so would pass.",
            hint="Label more rows at random, until there is another class.",
        )


def judge(
    labels: npt.NDArray[Any],
    candidates: Mapping[str, Candidate],
    slices: Mapping[str, Slice] | None = None,
    plan: GatePlan | None = None,
) -> Verdict:
    """Holds the candidates against each other on held-out rows.

    `labels` are the true ones, shape (n,); each candidate has been asked about the same rows. Without a candidate
    `repaired` the best of the others wins. Raises TruthLacking as `check_truth` does.
    """
    plan = plan or GatePlan()
    check_truth(labels, plan.least_rows)
    for name, candidate in candidates.items():
        if candidate.right.shape != (len(labels),):
            raise RepairRefused(f"{name} has answered {len(candidate.right)} of {len(labels)} rows.")
    shares = {}
    for name, candidate in candidates.items():
        found = share(int(candidate.right.sum()), len(labels), plan.level)
        assert found is not None
        shares[name] = found
    repaired = candidates.get(REPAIRED)
    if repaired is None:
        best = best_of(candidates, plan.level)
        return Verdict(best, False, f"there is no repaired version; {best} does best.", shares)
    compared = tuple(
        Comparison(REPAIRED, name, paired_difference(repaired.right, candidates[name].right, plan.level))
        for name in candidates
        if name != REPAIRED
    )
    elsewhere = tuple(
        Comparison(REPAIRED, part.than, paired_difference(part.repaired, part.other, plan.level), name)
        for name, part in (slices or {}).items()
        if len(part.repaired)
    )
    lost = tuple(comparison.slice for comparison in elsewhere if comparison.loses)
    comparisons = (*compared, *elsewhere)
    if lost:
        best = best_of({name: c for name, c in candidates.items() if name != REPAIRED}, plan.level)
        reason = f"the repaired version loses on {', '.join(lost)}; of the others {best} does best."
        return Verdict(best, False, reason, shares, comparisons, lost)
    unbeaten = [comparison.than for comparison in compared if not comparison.beats]
    if not unbeaten:
        return Verdict(REPAIRED, True, "it beats every other by more than the interval.", shares, comparisons)
    best = best_of(candidates, plan.level)
    reason = f"it does not beat {', '.join(unbeaten)} by more than the interval; {best} does best."
    return Verdict(best, False, reason, shares, comparisons)


def best_of(candidates: Mapping[str, Candidate], level: float = LEVEL) -> str:
    """The candidate with the lowest loss among those that are not worse than the most accurate one by more than the
    interval; the most accurate one where a loss is not known. Of equal ones the first."""
    most = max(candidates, key=lambda name: float(candidates[name].right.mean()))
    close = [
        name
        for name, candidate in candidates.items()
        if name == most or paired_difference(candidate.right, candidates[most].right, level).high >= 0.0
    ]
    losses = {name: candidates[name].losses for name in close}
    if any(found is None for found in losses.values()):
        return most
    return min(close, key=lambda name: float(np.mean(np.asarray(losses[name]))))
