"""Which versions do poorly, and why: against what their card promises, their peers, and their own past.

Each comparison is a one-sided test with a tolerance, so that a difference nobody would mind is no finding however
many outcomes show it. All tests of one call are corrected together: by Holm's method at most `level` of the calls
name any version falsely, by Benjamini and Hochberg's at most `level` of the findings are false on average.
Sources: Holm 1979, Scandinavian Journal of Statistics 6; Benjamini and Hochberg 1995, JRSS B 57.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from scipy.special import bdtrc, ndtr, stdtr, stdtrit

from lineage.quality.calibration import Calibration
from lineage.quality.intervals import LEVEL, Estimate
from lineage.quality.quality import Quality

Check = Literal["accuracy", "errors", "latency", "confidence", "deviation", "rating"]
Correction = Literal["holm", "benjamini-hochberg"]

CARD, PAST, ITSELF = "card", "past", "itself"


@dataclass(frozen=True, slots=True)
class Promise:
    """What a card says. None: nothing.

    `accuracy` is a share in [0, 1], measured on `n_rows` (0: taken as it stands). `latency_ms` has quantiles by level
    (0.5, 0.99) for the usual request.
    """

    accuracy: float | None = None
    n_rows: int = 0
    latency_ms: Mapping[float, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tolerance:
    """What is not yet poor. Shares are differences of shares, factors are of the compared figure."""

    accuracy: float = 0.01
    error_rate: float = 0.01  # against the card, which promises no failures; against others this much more
    latency_factor: float = 1.5
    latency_ms: float = 2.0  # longer than that factor: of calls that take less than this nobody sees a difference
    confidence: float = 0.05  # by how much the confidence may exceed the share of right answers
    deviation_factor: float = 1.1  # of the mean absolute error of numbers
    rating: float = 0.1

    def longest_ms(self, usual_ms: float) -> float:
        """What is borne of what should take so long."""
        return usual_ms * self.latency_factor + self.latency_ms


@dataclass(frozen=True, slots=True)
class Record:
    """A version (or plan) that is looked at: its figures, and what to hold them against.

    `peers` are ids of other records which could stand in for it. Where both have `by_segment`, accuracy and error rate
    are compared within segments, so that nobody looks worse for getting the harder ones.
    """

    id: str
    now: Quality
    promise: Promise = Promise()
    past: Quality | None = None
    peers: tuple[str, ...] = ()
    by_segment: Mapping[str, Quality] = field(default_factory=dict)
    past_by_segment: Mapping[str, Quality] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Finding:
    """A version does poorly: in which regard, against what ("card", "past", "itself" or a peer's id), and how surely.

    `p_value` is that of the single test, `adjusted` after correction for all tests of the call.
    """

    id: str
    check: Check
    against: str
    p_value: float
    adjusted: float
    sentence: str


def poor(
    records: Sequence[Record],
    *,
    level: float = 0.01,
    tolerance: Tolerance = Tolerance(),
    correction: Correction = "holm",
) -> tuple[Finding, ...]:
    """Everything that is poor, the surest first. Empty where nothing is, or too little is known.

    `level` holds for one call. Who calls again and again on overlapping windows and acts on the first alarm must take
    a smaller one.
    """
    known = {record.id: record for record in records}
    found = [test for record in records for test in _tests(record, known, tolerance)]
    adjusted = _adjusted([test.p_value for test in found], correction)
    kept = [replace(test, adjusted=p) for test, p in zip(found, adjusted, strict=True) if p <= level]
    return tuple(sorted(kept, key=lambda test: (test.adjusted, test.p_value, test.id, test.check, test.against)))


def _adjusted(p_values: Sequence[float], correction: Correction) -> list[float]:
    """p-values after correction, in the order given."""
    m, adjusted = len(p_values), [1.0] * len(p_values)
    order = sorted(range(m), key=lambda i: p_values[i])
    if correction == "holm":
        most = 0.0
        for rank, i in enumerate(order):
            most = max(most, (m - rank) * p_values[i])
            adjusted[i] = min(1.0, most)
    else:
        least = 1.0
        for rank in range(m, 0, -1):
            least = min(least, p_values[order[rank - 1]] * m / rank)
            adjusted[order[rank - 1]] = least
    return adjusted


def _tests(record: Record, known: Mapping[str, Record], tolerance: Tolerance) -> Iterator[Finding]:
    yield from _against_card(record, tolerance)
    yield from _against_itself(record, tolerance)
    if record.past is not None:
        past = Record(record.id, record.past, by_segment=record.past_by_segment)
        yield from _against_other(record, past, PAST, "before, it was", tolerance)
    for peer in record.peers:
        if peer in known and peer != record.id:
            yield from _against_other(record, known[peer], peer, f"{peer}, which could stand in, has", tolerance)


def _against_card(record: Record, tolerance: Tolerance) -> Iterator[Finding]:
    now, promise = record.now, record.promise
    n_wrong = now.n_judged - now.n_right
    if promise.accuracy is not None and now.accuracy is not None:
        promised = 1.0 - promise.accuracy
        if promise.n_rows:
            other = round(promised * promise.n_rows), promise.n_rows
            p = _worse_share([((n_wrong, now.n_judged), other)], tolerance.accuracy)
        else:
            p = _above(n_wrong, now.n_judged, promised + tolerance.accuracy)
        said = f"{_wrong(now)}; its card promises {_percent(promised)}."
        yield Finding(record.id, "accuracy", CARD, p, p, said)
    if now.error_rate is not None:
        p = _above(now.n_failed, now.n, tolerance.error_rate)
        said = (
            f"failed {_share(now.error_rate)} of {now.n:,} requests; up to {_percent(tolerance.error_rate)} is borne."
        )
        yield Finding(record.id, "errors", CARD, p, p, said)
    for q, promised_ms in sorted(promise.latency_ms.items()):
        if now.latencies.n:
            limit_ms = tolerance.longest_ms(promised_ms)
            n_above = now.latencies.n_above(limit_ms)
            p = _above(n_above, now.latencies.n, 1.0 - q)
            said = (
                f"{_percent(n_above / now.latencies.n)} of {now.latencies.n:,} requests took over {limit_ms:.3g} ms;"
                f" by its card {_percent(1.0 - q)} take over {promised_ms:.3g} ms."
            )
            yield Finding(record.id, "latency", CARD, p, p, said)


def _against_itself(record: Record, tolerance: Tolerance) -> Iterator[Finding]:
    """Confidence that the answers do not bear out, over those judged outcomes that have one."""
    table: Calibration | None = record.now.by_width
    if table is None:
        return
    n = sum(bin_.n for bin_ in table.bins)
    sure = sum(bin_.n * bin_.confidence for bin_ in table.bins) / n
    right = sum(bin_.n * bin_.right.value for bin_ in table.bins) / n
    likely = (right * n + 1) / (n + 2)
    p = float(ndtr(-(sure - right - tolerance.confidence) / math.sqrt(likely * (1 - likely) / n)))
    said = f"is {_percent(sure)} sure on average, but right on {_percent(right)} of {n:,} judged requests."
    yield Finding(record.id, "confidence", ITSELF, p, p, said)


def _against_other(record: Record, other: Record, against: str, who: str, tolerance: Tolerance) -> Iterator[Finding]:
    now, then = record.now, other.now
    wrong = _strata(record, other, lambda q: (q.n_judged - q.n_right, q.n_judged))
    if wrong and now.accuracy and then.accuracy:
        p = _worse_share(wrong, tolerance.accuracy)
        within = f" ({100 * _difference(wrong):.1f} points less within the same segments)" if len(wrong) > 1 else ""
        said = f"{_wrong(now)}; {who} {_share(_flip(then.accuracy))}{within}."
        yield Finding(record.id, "accuracy", against, p, p, said)
    failed = _strata(record, other, lambda q: (q.n_failed, q.n))
    if failed and now.error_rate and then.error_rate:
        p = _worse_share(failed, tolerance.error_rate)
        said = f"failed {_share(now.error_rate)} of {now.n:,} requests; {who} {_share(then.error_rate)}."
        yield Finding(record.id, "errors", against, p, p, said)
    if then.p50_ms and now.p50_ms:
        # The median test: above the other's median are half of the other's, give or take what half of so many may be.
        here = now.latencies.n_above(tolerance.longest_ms(then.p50_ms.value))
        p = _worse_share([((here, now.latencies.n), (then.latencies.n // 2, then.latencies.n))], 0.0)
        said = f"took {_figure(now.p50_ms)} ms in the median; {who} {_figure(then.p50_ms)} ms."
        yield Finding(record.id, "latency", against, p, p, said)
    if now.errors and then.errors:
        p = _worse_mean(now.errors.mae, then.errors.mae, tolerance.deviation_factor, 0.0)
        said = (
            f"is off by {_figure(now.errors.mae)} on average over {now.errors.mae.n:,} judged requests; {who}"
            f" {_figure(then.errors.mae)}."
        )
        yield Finding(record.id, "deviation", against, p, p, said)
    if now.rating and then.rating:
        p = _worse_mean(then.rating, now.rating, 1.0, tolerance.rating)
        said = f"is rated {_figure(now.rating)} in {now.rating.n:,} ratings; {who} {_figure(then.rating)}."
        yield Finding(record.id, "rating", against, p, p, said)


_Counts = tuple[float, int]  # hits, outcomes


def _strata(record: Record, other: Record, of: Callable[[Quality], _Counts]) -> list[tuple[_Counts, _Counts]]:
    """The counts of both, segment by segment where both have segments, else all together; empty ones left out."""
    here, there = record.by_segment, other.by_segment
    pairs = (
        [(here[name], there[name]) for name in here if name in there] if here and there else [(record.now, other.now)]
    )
    counts = [(of(a), of(b)) for a, b in pairs]
    return [(a, b) for a, b in counts if a[1] and b[1]]


def _weights(strata: Sequence[tuple[_Counts, _Counts]]) -> list[float]:
    """Of Mantel and Haenszel, summing to 1."""
    raw = [a[1] * b[1] / (a[1] + b[1]) for a, b in strata]
    return [weight / sum(raw) for weight in raw]


def _difference(strata: Sequence[tuple[_Counts, _Counts]]) -> float:
    return sum(w * (a[0] / a[1] - b[0] / b[1]) for w, (a, b) in zip(_weights(strata), strata, strict=True))


def _worse_share(strata: Sequence[tuple[_Counts, _Counts]], margin: float) -> float:
    """The p-value that the first share exceeds the second by more than `margin`, within strata.

    A hit and a miss are added to each side for the standard error, so that shares of 0 are not taken for certain.
    Sources: Mantel and Haenszel 1959, JNCI 22; Agresti and Caffo 2000, The American Statistician 54.
    """
    variance = 0.0
    for weight, pair in zip(_weights(strata), strata, strict=True):
        for hits, n in pair:
            likely = (hits + 1) / (n + 2)
            variance += weight**2 * likely * (1 - likely) / (n + 2)
    return float(ndtr(-(_difference(strata) - margin) / math.sqrt(variance)))


def _above(hits: int, n: int, limit: float) -> float:
    """The p-value that a share is above `limit`: exact, binomial."""
    return 1.0 if hits == 0 or limit >= 1.0 else float(bdtrc(hits - 1, n, limit))


def _worse_mean(more: Estimate, less: Estimate, factor: float, margin: float) -> float:
    """The p-value that the first mean exceeds `factor` times the second plus `margin`."""
    if min(more.n, less.n) < 2:
        return 1.0

    def error(estimate: Estimate) -> float:
        return (estimate.high - estimate.low) / 2 / float(stdtrit(estimate.n - 1, 0.5 + LEVEL / 2))

    spread = math.hypot(error(more), factor * error(less))
    off = more.value - factor * less.value - margin
    if spread == 0.0:
        return 0.0 if off > 0.0 else 1.0
    return float(stdtr(min(more.n, less.n) - 1, -off / spread))


def _wrong(quality: Quality) -> str:
    wrong = _flip(quality.accuracy) if quality.accuracy else None
    return f"wrong on {_share(wrong)} of {quality.n_judged:,} judged requests"


def _flip(estimate: Estimate) -> Estimate:
    """Of the share of right ones, that of the wrong ones."""
    return Estimate(1.0 - estimate.value, 1.0 - estimate.high, 1.0 - estimate.low, estimate.n)


def _share(estimate: Estimate | None) -> str:
    if estimate is None:
        return "an unknown share"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def _percent(value: float) -> str:
    return f"{100 * value:.3g} %"


def _figure(estimate: Estimate) -> str:
    high = f"{estimate.high:.3g}" if math.isfinite(estimate.high) else "unknown"
    return f"{estimate.value:.3g} ({estimate.low:.3g} to {high})"
