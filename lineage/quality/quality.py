"""How well an extension version or a plan does: the figures of a window, each with its interval."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from lineage.quality import calibration, intervals
from lineage.quality.calibration import Calibration
from lineage.quality.intervals import Estimate
from lineage.quality.sketch import LatencySketch
from lineage.quality.summary import OTHER, Moments, Summary


@dataclass(frozen=True, slots=True)
class ClassQuality:
    """One class among the judged outcomes: `support` of them truly are of it.

    Precision is None where it was never predicted, recall where it never was the truth. Both have Wilson intervals;
    for that of F1 see `intervals.f1`.
    """

    label: str
    support: int
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None


@dataclass(frozen=True, slots=True)
class Confusion:
    """`n` outcomes were of class `truth` and taken for `predicted`."""

    truth: str
    predicted: str
    n: int


@dataclass(frozen=True, slots=True)
class Errors:
    """How far predicted numbers are off: mean absolute error, root mean square error, mean error, and R squared.

    `mae` and `bias` have Student's interval, `rmse` and `r2` one by the delta method, on the logarithm of the mean
    square error and of 1 - R squared. `r2` is None where all truths are the same.
    """

    mae: Estimate
    rmse: Estimate
    bias: Estimate
    r2: Estimate | None


@dataclass(frozen=True, slots=True)
class Quality:
    """The outcomes from `since_s` to `until_s`, of one segment or ("") of all. What is not known is None.

    `n` requests came, `n_failed` of them got no answer; latencies are those of the answered. Accuracy and what follows
    is over the `n_judged` outcomes with a known label. Micro F1 is the accuracy, as every outcome has one label.
    `macro_f1` is the plain mean over the classes that were there or predicted, but for those that were so rare that
    they are counted together as "(other)". `confused` has the most frequent pairs first. `latencies` is the histogram.
    """

    since_s: float
    until_s: float
    segment: str
    n: int
    n_failed: int
    throughput_per_s: Estimate | None
    error_rate: Estimate | None
    p50_ms: Estimate | None
    p95_ms: Estimate | None
    p99_ms: Estimate | None
    confidence: Estimate | None
    n_judged: int
    n_right: int
    accuracy: Estimate | None
    classes: tuple[ClassQuality, ...]
    macro_f1: Estimate | None
    confused: tuple[Confusion, ...]
    by_width: Calibration | None
    by_mass: Calibration | None
    errors: Errors | None
    rating: Estimate | None
    latencies: LatencySketch

    @property
    def micro_f1(self) -> Estimate | None:
        return self.accuracy

    def class_named(self, label: str) -> ClassQuality | None:
        return next((found for found in self.classes if found.label == label), None)

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the histogram; limits that are not finite are None."""
        made = _plain(self)
        del made["latencies"]
        return {**made, "micro_f1": _plain(self.micro_f1)}


def _plain(value: Any) -> Any:
    if isinstance(value, Estimate):
        return value.plain()
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if hasattr(value, "__dataclass_fields__"):
        return {f.name: _plain(getattr(value, f.name)) for f in fields(value)}
    return value


def quality_of(summary: Summary, since_s: float, until_s: float, segment: str = "", n_confused: int = 10) -> Quality:
    """The figures of a summary of what came from `since_s` to `until_s`."""
    p50, p95, p99 = summary.latency.quantiles((0.5, 0.95, 0.99))
    named = {name: counts for name, counts in summary.classes.items() if name != OTHER}
    classes = tuple(_class(name, *named[name]) for name in sorted(named, key=_natural))
    pairs = sorted(summary.pairs.items(), key=lambda item: (-item[1], item[0]))[:n_confused]
    sure, rated = summary.confidence, summary.rating
    return Quality(
        since_s=since_s,
        until_s=until_s,
        segment=segment,
        n=summary.n,
        n_failed=summary.n_failed,
        throughput_per_s=intervals.rate(summary.n, until_s - since_s) if summary.n else None,
        error_rate=intervals.share(summary.n_failed, summary.n),
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        confidence=intervals.mean(sure.n, sure.total, sure.squares),
        n_judged=summary.n_judged,
        n_right=summary.n_right,
        accuracy=intervals.share(summary.n_right, summary.n_judged),
        classes=classes,
        macro_f1=_macro_f1(classes, named, summary.pairs, summary.n_judged),
        confused=tuple(Confusion(true, said, n) for (true, said), n in pairs),
        by_width=calibration.equal_width(summary.reliability),
        by_mass=calibration.equal_mass(summary.reliability),
        errors=_errors(summary.errors),
        rating=intervals.mean(rated.n, rated.total, rated.squares),
        latencies=summary.latency,
    )


def _natural(label: str) -> tuple[int, float, str]:
    """Numbers before texts, 9 before 10."""
    try:
        number = float(label)
    except ValueError:
        number = math.nan
    return (0, number, label) if math.isfinite(number) else (1, 0.0, label)


def _class(label: str, support: int, predicted: int, right: int) -> ClassQuality:
    return ClassQuality(
        label,
        support,
        intervals.share(right, predicted),
        intervals.share(right, support),
        intervals.f1(right, predicted, support),
    )


def _macro_f1(
    classes: tuple[ClassQuality, ...],
    counts: Mapping[str, list[int]],
    pairs: Mapping[tuple[str, str], int],
    n: int,
) -> Estimate | None:
    """The mean of the classes' F1.

    Two classes that are confused go up and down together: the correlations are those of the delta method for counts
    of a multinomial. Source: Takahashi, Yamamoto, Kuchiba and Koyama 2022, Applied Intelligence 52.
    """
    number = {found.label: i for i, found in enumerate(classes)}
    slope, variance = [], []
    for found in classes:
        support, predicted, right = counts[found.label]
        size = support + predicted
        slope.append(2.0 * right / size**2)  # by how much one more confusion lowers F1
        wrong = size - 2 * right
        variance.append(right * (2.0 * wrong / size**2) ** 2 + wrong * slope[-1] ** 2)
    shared: dict[tuple[int, int], float] = {}
    for (true, said), count in pairs.items():
        if true in number and said in number:
            at = min(number[true], number[said]), max(number[true], number[said])
            shared[at] = shared.get(at, 0.0) + count * slope[at[0]] * slope[at[1]]
    correlations = {
        (i, j): cov / math.sqrt(variance[i] * variance[j])
        for (i, j), cov in shared.items()
        if variance[i] * variance[j]
    }
    parts = [found.f1 for found in classes if found.f1 is not None]
    return intervals.average(parts, correlations, n)


def _errors(moments: Moments) -> Errors | None:
    n = moments.n
    if not n:
        return None
    square = float(moments.with_e2[0])
    mae = intervals.mean(n, moments.absolute, square)
    bias = intervals.mean(n, moments.e, square)
    if mae is None or bias is None:
        return None
    mse = square / n
    # Variances of the mean square error and of 1 - R squared, on the scale of their logarithms.
    var_e2 = max(0.0, moments.e4 / n - mse**2)
    low, high = intervals.ratio_of_means(n, mse, var_e2 / (mse**2 * n)) if mse else (0.0, 0.0)
    rmse = Estimate(math.sqrt(mse), math.sqrt(low), math.sqrt(high), n)
    y1, y2, y3, y4 = (float(s) / n for s in moments.y[1:])
    var = y2 - y1**2
    if var <= 1e-12 * max(y2, 1e-300):
        return Errors(mae, rmse, bias, None)
    lost = mse / var
    if mse == 0.0:
        return Errors(mae, rmse, bias, Estimate(1.0, 1.0, 1.0, n))
    fourth = y4 - 4 * y1 * y3 + 6 * y1**2 * y2 - 3 * y1**4
    e2, e2y, e2y2 = (float(s) / n for s in moments.with_e2)
    both = e2y2 - 2 * y1 * e2y + y1**2 * e2 - mse * var
    of_log = max(0.0, var_e2 / mse**2 + (fourth - var**2) / var**2 - 2 * both / (mse * var)) / n
    low, high = intervals.ratio_of_means(n, lost, of_log)
    return Errors(mae, rmse, bias, Estimate(1 - lost, 1 - high, 1 - low, n))
