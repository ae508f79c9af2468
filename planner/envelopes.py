"""Envelopes: the live state of extension replicas, as the board hands it out and decisions read it."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from planner.calibration import scaled
from planner.cards import ExtensionId
from planner.features import Array

# Where the bins of a confidence distribution end, fine where confidences crowd.
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
_EDGES = np.array(EDGES)
_ENDS = (0.0, *EDGES, 1.0)


@dataclass(slots=True)
class Moments:
    """Number, mean and variance of values that come one by one. Source: Chan, Golub and LeVeque 1983, The American
    Statistician 37."""

    n: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared distances from the mean

    def add(self, value: float) -> None:
        self.n += 1
        off = value - self.mean
        self.mean += off / self.n
        self.squares += off * (value - self.mean)

    def take(self, other: Moments) -> None:
        """Adds all values of `other`."""
        if other.n == 0:
            return
        n = self.n + other.n
        off = other.mean - self.mean
        self.squares += other.squares + off * off * self.n * other.n / n
        self.mean += off * other.n / n
        self.n = n

    @property
    def variance(self) -> float:
        """Of the values, not an estimate for more of them; nan where there are none."""
        return self.squares / self.n if self.n else math.nan


@dataclass(slots=True)
class Tally:
    """What became of some calls: how many failed, and how long the others took."""

    n_failed: int = 0
    took_ms: Moments = field(default_factory=Moments)

    @property
    def n_calls(self) -> int:
        return self.took_ms.n + self.n_failed

    @property
    def failed_share(self) -> float:
        """0 where there were no calls."""
        return self.n_failed / self.n_calls if self.n_calls else 0.0

    def take(self, other: Tally) -> None:
        self.n_failed += other.n_failed
        self.took_ms.take(other.took_ms)


class Window:
    """Tallies of the last `length_s` seconds, in slots that leave one by one: constant memory, however many calls.

    Calls are forgotten when they are between `length_s` and `length_s` plus one slot old.
    """

    __slots__ = ("_first", "_latest", "_n_slots", "_slot_s", "_tallies")

    def __init__(self, length_s: float = 10.0, n_slots: int = 10) -> None:
        self._slot_s = length_s / n_slots
        self._n_slots = n_slots
        self._tallies: deque[Tally] = deque()
        self._first = 0  # number of the oldest slot
        self._latest = -1  # number of the newest

    def succeeded(self, now_s: float, took_ms: float) -> None:
        self._slot(now_s).took_ms.add(took_ms)

    def failed(self, now_s: float) -> None:
        self._slot(now_s).n_failed += 1

    def total(self, now_s: float) -> Tally:
        """Everything the window holds, as a tally of its own."""
        self._forget(int(now_s / self._slot_s))
        total = Tally()
        for tally in self._tallies:
            total.take(tally)
        return total

    def clear(self) -> None:
        self._tallies.clear()

    def _slot(self, now_s: float) -> Tally:
        number = int(now_s / self._slot_s)
        if self._tallies and number <= self._latest:  # a clock that goes back a little counts into the newest slot
            return self._tallies[-1]
        self._forget(number)
        if not self._tallies:
            self._first = number
        while self._first + len(self._tallies) <= number:
            self._tallies.append(Tally())
        self._latest = number
        return self._tallies[-1]

    def _forget(self, number: int) -> None:
        while self._tallies and self._first < number - self._n_slots:
            self._tallies.popleft()
            self._first += 1


@dataclass(frozen=True, slots=True)
class Confidences:
    """The distribution of the confidences of recent rows: how many lie in each bin between 0, `EDGES` and 1.

    Scaling by a temperature keeps their order, so the quantiles of the scaled confidences are the scaled quantiles:
    replicas count raw confidences, and whoever reads them scales by the card's temperature of the day.
    """

    counts: tuple[int, ...] = (0,) * (len(EDGES) + 1)

    @property
    def n_rows(self) -> int:
        return sum(self.counts)

    def quantile(self, share: float, temperature: float = 1.0) -> float:
        """The scaled confidence that `share` of the rows lie below, linear within a bin; nan where there are none."""
        wanted = share * self.n_rows
        if not self.n_rows:
            return math.nan
        below = 0
        for count, low, high in zip(self.counts, _ENDS, _ENDS[1:], strict=True):
            if count and below + count >= wanted:
                return scaled(low + (high - low) * (wanted - below) / count, temperature)
            below += count
        return scaled(1.0, temperature)

    def plus(self, other: Confidences) -> Confidences:
        return Confidences(tuple(a + b for a, b in zip(self.counts, other.counts, strict=True)))

    @classmethod
    def of(cls, confidence: Array) -> Confidences:
        """From raw confidences, shape (n_rows,)."""
        return cls(tuple(count_confidence(confidence).tolist()))


def count_confidence(confidence: Array) -> npt.NDArray[np.intp]:
    """How many of these raw confidences, any shape, lie in each bin; shape (len(EDGES) + 1,)."""
    return np.bincount(np.searchsorted(_EDGES, confidence.ravel(), side="right"), minlength=len(EDGES) + 1)


@dataclass(frozen=True, slots=True)
class Envelope:
    """The state of one replica of an extension, or of all of them together (`merged`).

    `at_s` is the publisher's wall clock, for people: how long an envelope counts is the board's to say. Calls and
    confidences are those of the last ten seconds; a call is a batch, from its arrival at the replica to its reply, and
    its latency figures are nan where none succeeded. `cpu_share` is of one core, `gpu_share` of one GPU's memory and
    nan where there is none. `tags` are the data tags that the extension may see, None for all.
    """

    extension: ExtensionId
    replica: str
    at_s: float
    queue_rows: int = 0
    in_flight: int = 0
    n_calls: int = 0
    n_failed: int = 0
    latency_mean_ms: float = math.nan
    latency_var_ms2: float = math.nan
    confidences: Confidences = Confidences()
    cpu_share: float = 0.0
    memory_mib: float = 0.0
    gpu_share: float = math.nan
    tags: frozenset[str] | None = None
    n_replicas: int = 1

    @property
    def success_rate(self) -> float:
        """Of the recent calls, in [0, 1]; 1 where there were none."""
        return 1.0 - self.n_failed / self.n_calls if self.n_calls else 1.0

    @property
    def latency_sd_ms(self) -> float:
        return math.sqrt(self.latency_var_ms2) if self.latency_var_ms2 >= 0.0 else math.nan


def merged(envelopes: Iterable[Envelope]) -> dict[ExtensionId, Envelope]:
    """One envelope per extension: sums over its replicas, pooled mean and variance, the latest `at_s`.

    `cpu_share` and `memory_mib` are sums; `gpu_share` is the mean over the replicas that have one.
    """
    replicas: dict[ExtensionId, list[Envelope]] = {}
    for envelope in envelopes:
        replicas.setdefault(envelope.extension, []).append(envelope)
    return {extension: _together(found) for extension, found in replicas.items()}


def _together(found: Sequence[Envelope]) -> Envelope:
    if len(found) == 1:
        return found[0]
    took = Moments()
    confidences = Confidences()
    for one in found:
        n = one.n_calls - one.n_failed
        if n:
            took.take(Moments(n, one.latency_mean_ms, one.latency_var_ms2 * n))
        confidences = confidences.plus(one.confidences)
    gpus = [one.gpu_share for one in found if not math.isnan(one.gpu_share)]
    return Envelope(
        extension=found[0].extension,
        replica="",
        at_s=max(one.at_s for one in found),
        queue_rows=sum(one.queue_rows for one in found),
        in_flight=sum(one.in_flight for one in found),
        n_calls=sum(one.n_calls for one in found),
        n_failed=sum(one.n_failed for one in found),
        latency_mean_ms=took.mean if took.n else math.nan,
        latency_var_ms2=took.variance,
        confidences=confidences,
        cpu_share=sum(one.cpu_share for one in found),
        memory_mib=sum(one.memory_mib for one in found),
        gpu_share=sum(gpus) / len(gpus) if gpus else math.nan,
        tags=found[0].tags,
        n_replicas=sum(one.n_replicas for one in found),
    )
