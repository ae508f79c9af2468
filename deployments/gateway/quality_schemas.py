"""The JSON of `/v1/.../quality`: figures with their intervals, and findings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from pydantic import ConfigDict, Field

from deployments.gateway.schemas import Closed
from lineage.quality import Bin, Calibration, ClassQuality, Errors, Estimate, Finding, Quality
from lineage.quality.learner import Figures

_SHARE: dict[str, Any] = {"value": 0.975, "low": 0.963, "high": 0.983, "n": 1204}
_FINDING: dict[str, Any] = {
    "id": "digits@2",
    "check": "accuracy",
    "against": "card",
    "sentence": "wrong on 12.1 % (10.4 to 14.1) of 1,204 judged requests; its card promises 4 %.",
    "p_value": 1e-9,
    "adjusted": 4e-9,
}


class EstimateInfo(Closed):
    """A figure with the interval that holds the true one in 95 % of all cases, from `n` outcomes."""

    model_config = ConfigDict(json_schema_extra={"examples": [_SHARE]})

    value: float
    low: float | None = Field(description="null: there are too few outcomes for a limit.")
    high: float | None
    n: int

    @classmethod
    def of(cls, estimate: Estimate) -> EstimateInfo:
        return cls(value=estimate.value, low=_finite(estimate.low), high=_finite(estimate.high), n=estimate.n)

    @classmethod
    def perhaps(cls, estimate: Estimate | None) -> EstimateInfo | None:
        return None if estimate is None else cls.of(estimate)


class ClassInfo(Closed):
    """One class among the judged outcomes. Where an answer has several outputs, labels are written `output=label`."""

    label: str
    support: int = Field(description="How many truly are of it.")
    precision: EstimateInfo | None
    recall: EstimateInfo | None
    f1: EstimateInfo | None

    @classmethod
    def of(cls, found: ClassQuality) -> ClassInfo:
        return cls(
            label=found.label,
            support=found.support,
            precision=EstimateInfo.perhaps(found.precision),
            recall=EstimateInfo.perhaps(found.recall),
            f1=EstimateInfo.perhaps(found.f1),
        )


class ConfusionInfo(Closed):
    truth: str
    predicted: str
    n: int


class BinInfo(Closed):
    """Judged outcomes with a confidence above `above` and up to `up_to`."""

    above: float
    up_to: float
    n: int
    confidence: float = Field(description="Their mean confidence.")
    right: EstimateInfo

    @classmethod
    def of(cls, found: Bin) -> BinInfo:
        return cls(
            above=found.above,
            up_to=found.up_to,
            n=found.n,
            confidence=found.confidence,
            right=EstimateInfo.of(found.right),
        )


class CalibrationInfo(Closed):
    """Whether confidences are worth what they say. `ece` is freed of what chance adds to `plain_ece`."""

    ece: EstimateInfo
    plain_ece: float
    bins: list[BinInfo]

    @classmethod
    def perhaps(cls, found: Calibration | None) -> CalibrationInfo | None:
        if found is None:
            return None
        return cls(ece=EstimateInfo.of(found.ece), plain_ece=found.plain_ece, bins=list(map(BinInfo.of, found.bins)))


class ErrorsInfo(Closed):
    """How far predicted numbers are off."""

    mae: EstimateInfo
    rmse: EstimateInfo
    bias: EstimateInfo
    r2: EstimateInfo | None

    @classmethod
    def perhaps(cls, found: Errors | None) -> ErrorsInfo | None:
        if found is None:
            return None
        return cls(
            mae=EstimateInfo.of(found.mae),
            rmse=EstimateInfo.of(found.rmse),
            bias=EstimateInfo.of(found.bias),
            r2=EstimateInfo.perhaps(found.r2),
        )


class SegmentInfo(Closed):
    """The figures of one user's requests: "" are those without a user, "(other)" those of the less frequent users."""

    segment: str
    n: int
    n_failed: int
    error_rate: EstimateInfo | None
    p50_ms: EstimateInfo | None
    p99_ms: EstimateInfo | None
    n_judged: int
    accuracy: EstimateInfo | None
    rating: EstimateInfo | None

    @classmethod
    def of(cls, segment: str, found: Quality) -> SegmentInfo:
        return cls(
            segment=segment,
            n=found.n,
            n_failed=found.n_failed,
            error_rate=EstimateInfo.perhaps(found.error_rate),
            p50_ms=EstimateInfo.perhaps(found.p50_ms),
            p99_ms=EstimateInfo.perhaps(found.p99_ms),
            n_judged=found.n_judged,
            accuracy=EstimateInfo.perhaps(found.accuracy),
            rating=EstimateInfo.perhaps(found.rating),
        )


class QualityInfo(Closed):
    """All figures from `since_s` to `until_s` (since 1970). What is not known is null. `segments` has each user's."""

    since_s: float
    until_s: float
    n: int = Field(description="Requests.")
    n_failed: int = Field(description="Of them without an answer.")
    throughput_per_s: EstimateInfo | None
    error_rate: EstimateInfo | None
    p50_ms: EstimateInfo | None = Field(description="Of a version the time of its step, of a plan that of the request.")
    p95_ms: EstimateInfo | None
    p99_ms: EstimateInfo | None
    confidence: EstimateInfo | None
    n_judged: int = Field(description="Rows whose right label is known.")
    n_right: int
    accuracy: EstimateInfo | None
    macro_f1: EstimateInfo | None
    micro_f1: EstimateInfo | None
    classes: list[ClassInfo]
    confused: list[ConfusionInfo] = Field(description="Which classes are taken for which, the most frequent first.")
    calibration: CalibrationInfo | None = Field(description="Over bins of equal width.")
    calibration_by_mass: CalibrationInfo | None = Field(description="Over bins with about as many outcomes each.")
    errors: ErrorsInfo | None
    rating: EstimateInfo | None
    segments: list[SegmentInfo]

    @classmethod
    def of(cls, figures: Figures) -> QualityInfo:
        found = figures.whole
        return cls(
            since_s=found.since_s,
            until_s=found.until_s,
            n=found.n,
            n_failed=found.n_failed,
            throughput_per_s=EstimateInfo.perhaps(found.throughput_per_s),
            error_rate=EstimateInfo.perhaps(found.error_rate),
            p50_ms=EstimateInfo.perhaps(found.p50_ms),
            p95_ms=EstimateInfo.perhaps(found.p95_ms),
            p99_ms=EstimateInfo.perhaps(found.p99_ms),
            confidence=EstimateInfo.perhaps(found.confidence),
            n_judged=found.n_judged,
            n_right=found.n_right,
            accuracy=EstimateInfo.perhaps(found.accuracy),
            macro_f1=EstimateInfo.perhaps(found.macro_f1),
            micro_f1=EstimateInfo.perhaps(found.micro_f1),
            classes=list(map(ClassInfo.of, found.classes)),
            confused=[ConfusionInfo(truth=c.truth, predicted=c.predicted, n=c.n) for c in found.confused],
            calibration=CalibrationInfo.perhaps(found.by_width),
            calibration_by_mass=CalibrationInfo.perhaps(found.by_mass),
            errors=ErrorsInfo.perhaps(found.errors),
            rating=EstimateInfo.perhaps(found.rating),
            segments=[SegmentInfo.of(name, quality) for name, quality in figures.by_segment.items()],
        )


class FindingInfo(Closed):
    """A version or plan does poorly: in which regard, against what, and how surely."""

    model_config = ConfigDict(json_schema_extra={"examples": [_FINDING]})

    id: str = Field(description="The version; or of a plan its goal and its id, joined by a slash.")
    check: str = Field(description="accuracy, errors, latency, confidence, deviation or rating.")
    against: str = Field(description='"card", "past", "itself", or the version that could stand in.')
    sentence: str
    p_value: float
    adjusted: float = Field(description="After correction for all comparisons that were made.")

    @classmethod
    def of(cls, found: Finding) -> FindingInfo:
        return cls(
            id=found.id,
            check=found.check,
            against=found.against,
            sentence=found.sentence,
            p_value=found.p_value,
            adjusted=found.adjusted,
        )

    @classmethod
    def all_of(cls, found: Sequence[Finding], begin: str, *, whole: bool) -> list[FindingInfo]:
        """Those whose id begins like this, or is this as a `whole`."""
        return [cls.of(one) for one in found if (one.id == begin if whole else one.id.startswith(begin))]


class ExtensionQuality(Closed):
    id: str
    window: str
    segment: str | None = Field(description="null: all requests.")
    quality: QualityInfo
    findings: list[FindingInfo] = Field(description="Over all segments; empty where it does well.")


class PlanQuality(Closed):
    plan: str
    steps: list[str] = Field(description="The extension versions that it ran last, where nothing stood in for one.")
    quality: QualityInfo


class GoalQuality(Closed):
    """The busiest plans of a goal, the busiest first."""

    goal: str
    window: str
    segment: str | None
    plans: list[PlanQuality]
    findings: list[FindingInfo]


class QualityFindings(Closed):
    """Everything that does poorly, the surest first."""

    window: str
    findings: list[FindingInfo]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
