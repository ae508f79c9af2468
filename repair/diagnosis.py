"""What is wrong, since when, how much it costs, and which ancestor fits what comes in now. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from repair.errors import RepairRefused

Health = Literal["healthy", "bad", "unknown"]

GAPS = 1  # windows below the threshold inside a run of drift


@dataclass(frozen=True, slots=True)
class FeatureDrift:
    """The drift statistic of one feature, window by window in the order of time: when each ended (seconds since 1970)
    and its score, NaN where the window could not tell; drift is what is above `threshold`."""

    feature: str
    ended_s: tuple[float, ...]
    scores: tuple[float, ...]
    threshold: float

    def __post_init__(self) -> None:
        if len(self.ended_s) != len(self.scores):
            raise RepairRefused(f"{self.feature} has {len(self.scores)} scores for {len(self.ended_s)} windows.")
        if any(later < earlier for earlier, later in zip(self.ended_s, self.ended_s[1:], strict=False)):
            raise RepairRefused(f"the windows of {self.feature} are not in the order of time.")


@dataclass(frozen=True, slots=True)
class Drifted:
    """A feature that drifts now: since the window that ended then, with its last score in thresholds."""

    feature: str
    since_s: float
    times_threshold: float


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Which version does poorly, by which features (the worst first), since when and how much accuracy is estimated
    lost (0 where it gained; None where nothing is known). `unclear` are features whose windows could not tell."""

    version: str
    features: tuple[Drifted, ...]
    since_s: float | None
    accuracy_before: float | None
    accuracy_now: float | None
    lost: float | None
    unclear: tuple[str, ...] = ()

    @property
    def is_ill(self) -> bool:
        """Whether there is anything to repair."""
        return bool(self.features) or (self.lost or 0.0) > 0.0

    def text(self) -> str:
        """One sentence."""
        if not self.is_ill:
            return f"{self.version} shows no drift and has lost no accuracy."
        parts = []
        if self.features:
            worst = ", ".join(f"{one.feature} ({one.times_threshold:.1f}x)" for one in self.features[:3])
            more = f" and {len(self.features) - 3} more" if len(self.features) > 3 else ""
            parts.append(f"drifts in {worst}{more}")
        if self.lost:
            parts.append(f"has lost an estimated {100 * self.lost:.1f} points of accuracy")
        return f"{self.version} {' and '.join(parts)}."

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "version": self.version,
            "features": [
                {"feature": one.feature, "since_s": one.since_s, "times_threshold": _finite(one.times_threshold)}
                for one in self.features
            ],
            "since_s": self.since_s,
            "accuracy_before": self.accuracy_before,
            "accuracy_now": self.accuracy_now,
            "lost": self.lost,
            "unclear": list(self.unclear),
            "text": self.text(),
        }


def diagnose(
    version: str,
    drifts: Sequence[FeatureDrift],
    accuracy_before: float | None = None,
    accuracy_now: float | None = None,
) -> Diagnosis:
    """The diagnosis of a version from its drift reports and two accuracies, the healthy one and the one estimated now.

    A feature drifts when its last window that could tell is above its threshold; it began with the first of that run,
    over gaps of one window. Raises RepairRefused for an accuracy outside 0..1.
    """
    for accuracy in (accuracy_before, accuracy_now):
        if accuracy is not None and not 0.0 <= accuracy <= 1.0:
            raise RepairRefused(f"an accuracy lies between 0 and 1, unlike {accuracy}.")
    found = []
    unclear = []
    for drift in drifts:
        known = [(at, score) for at, score in zip(drift.ended_s, drift.scores, strict=True) if not math.isnan(score)]
        if not known:
            unclear.append(drift.feature)
        elif known[-1][1] > drift.threshold:
            times = known[-1][1] / drift.threshold if drift.threshold > 0.0 else math.inf
            found.append(Drifted(drift.feature, _began_s(known, drift.threshold), times))
    found.sort(key=lambda one: -one.times_threshold)
    lost = None
    if accuracy_before is not None and accuracy_now is not None:
        lost = max(0.0, accuracy_before - accuracy_now)
    since_s = min((one.since_s for one in found), default=None)
    return Diagnosis(version, tuple(found), since_s, accuracy_before, accuracy_now, lost, tuple(unclear))


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version that the drifted one grew from: `drift` is the score of the current data against *its* training
    distribution (NaN: cannot tell), `health` whether it did well where it was used, `accuracy` how well when it was
    made, where that is known."""

    version: str
    drift: float
    health: Health = "unknown"
    accuracy: float | None = None


@dataclass(frozen=True, slots=True)
class Choice:
    """The ancestors to try, the best first, why others are passed over, and whether the best fits the current data
    better than the drifted version's own training distribution did (None where that is not known)."""

    ranked: tuple[str, ...]
    passed_over: tuple[tuple[str, str], ...]
    fits: bool | None

    @property
    def version(self) -> str | None:
        return self.ranked[0] if self.ranked else None

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"ranked": list(self.ranked), "passed_over": [list(one) for one in self.passed_over], "fits": self.fits}


def nearest_healthy(ancestors: Sequence[Ancestor], own_drift: float = math.nan) -> Choice:
    """Ranks the ancestors by their drift; `ancestors` come nearest first, which decides between equals.

    Bad ones and those whose drift is not known are passed over. Versions whose health is unknown count behind healthy
    ones of the same drift only. `own_drift` is the drifted version's own score.
    """
    passed_over = []
    usable = []
    for place, one in enumerate(ancestors):
        if one.health == "bad":
            passed_over.append((one.version, "it did badly itself"))
        elif math.isnan(one.drift):
            passed_over.append((one.version, "its drift is not known"))
        else:
            usable.append((one.drift, one.health != "healthy", place, one.version))
    usable.sort()
    fits = None if not usable or math.isnan(own_drift) else usable[0][0] < own_drift
    return Choice(tuple([version for *_, version in usable]), tuple(passed_over), fits)


def _began_s(known: Sequence[tuple[float, float]], threshold: float) -> float:
    began_s, gap = known[-1][0], 0
    for at_s, score in reversed(known):
        if score > threshold:
            began_s, gap = at_s, 0
        else:
            gap += 1
            if gap > GAPS:
                break
    return began_s


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
