"""What is remembered of outcomes: counts and sums that can be added up and written as JSON. Bounded."""

from __future__ import annotations

import heapq
import math
import zlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from lineage.quality import calibration
from lineage.quality.outcomes import Floats, Labels, Outcomes, Requests
from lineage.quality.sketch import LatencySketch

MAX_CLASSES = 256  # the rarest beyond are counted together as OTHER
MAX_PAIRS = 1024  # of confused classes; the rarest beyond are dropped, and stay in the counts per class
OTHER = "(other)"


class Sums:
    """Number, sum and sum of squares of some numbers."""

    __slots__ = ("n", "squares", "total")

    def __init__(self, n: int = 0, total: float = 0.0, squares: float = 0.0) -> None:
        self.n, self.total, self.squares = n, total, squares

    def add(self, values: Floats) -> None:
        """Counts values, shape (n,), that are finite."""
        self.n += len(values)
        self.total += float(values.sum())
        self.squares += float(np.square(values).sum())  # `@` waits for threads: 7 ms where the cores are busy

    def merge(self, other: Sums) -> None:
        self.n += other.n
        self.total += other.total
        self.squares += other.squares

    def take_back(self, other: Sums) -> None:
        if other.n >= self.n:
            self.n, self.total, self.squares = 0, 0.0, 0.0
        else:
            self.n, self.total, self.squares = self.n - other.n, self.total - other.total, self.squares - other.squares

    def plain(self) -> list[float]:
        return [self.n, self.total, self.squares]


class Moments:
    """Sums over errors e = prediction - truth and truths y, the latter counted from `origin`, which keeps them small.

    `sums[a][b]` is the sum of e ** a * y ** b, for a in 0, 2 and b up to 4 (a = 0) or 2 (a = 2); `e`, `e4` and
    `absolute` are the sums of e, e ** 4 and |e|.
    """

    __slots__ = ("absolute", "e", "e4", "origin", "with_e2", "y")

    def __init__(self) -> None:
        self.origin = 0.0
        self.y = np.zeros(5)  # sums of y ** 0 .. y ** 4
        self.with_e2 = np.zeros(3)  # sums of e ** 2 * y ** 0 .. y ** 2
        self.e, self.e4, self.absolute = 0.0, 0.0, 0.0

    @property
    def n(self) -> int:
        return int(self.y[0])

    def add(self, predicted: Floats, truth: Floats) -> None:
        """Counts pairs of finite numbers, both of shape (n,)."""
        if not len(truth):
            return
        if not self.n:
            self.origin = float(truth.mean())
        e, y = predicted - truth, truth - self.origin
        self.y += [np.sum(y**b) for b in range(5)]
        self.with_e2 += [np.sum(e**2 * y**b) for b in range(3)]
        self.e += float(e.sum())
        self.e4 += float(np.sum(e**4))
        self.absolute += float(np.abs(e).sum())

    def merge(self, other: Moments) -> None:
        if not other.n:
            return
        if not self.n:
            self.origin = other.origin
        shift = other.origin - self.origin
        self.y += _shifted(other.y, shift)
        self.with_e2 += _shifted(other.with_e2, shift)
        self.e, self.e4, self.absolute = self.e + other.e, self.e4 + other.e4, self.absolute + other.absolute

    def take_back(self, other: Moments) -> None:
        """Takes away pairs that were added before; none are left where `other` has as many."""
        if other.n >= self.n:
            self.__init__()  # type: ignore[misc]  # as if nothing had been added
            return
        shift = other.origin - self.origin
        self.y -= _shifted(other.y, shift)
        self.with_e2 -= _shifted(other.with_e2, shift)
        self.e, self.e4, self.absolute = self.e - other.e, self.e4 - other.e4, self.absolute - other.absolute

    def plain(self) -> list[float]:
        return [self.origin, *self.y.tolist(), *self.with_e2.tolist(), self.e, self.e4, self.absolute]

    @classmethod
    def of(cls, plain: list[float]) -> Moments:
        made = cls()
        made.origin, made.y, made.with_e2 = plain[0], np.array(plain[1:6]), np.array(plain[6:9])
        made.e, made.e4, made.absolute = plain[9:12]
        return made


def _shifted(sums: Floats, shift: float) -> Floats:
    """Sums of y ** 0, y ** 1, ... as they are of y + shift: the binomial theorem."""
    return np.array([sum(math.comb(b, k) * shift ** (b - k) * sums[k] for k in range(b + 1)) for b in range(len(sums))])


class Summary:
    """All that is remembered of some outcomes; see `Quality` for what is made of it."""

    def __init__(self) -> None:
        self.n = 0
        self.n_failed = 0
        self.first_s = math.inf
        self.last_s = -math.inf
        self.latency = LatencySketch()
        self.confidence = Sums()
        self.rating = Sums()
        self.n_judged = 0
        self.n_right = 0
        self.classes: dict[str, list[int]] = {}  # per class: support, predicted, right
        self.pairs: dict[tuple[str, str], int] = {}  # (truth, predicted) that differ
        self.reliability: calibration.Counts = {}
        self.errors = Moments()
        self._packed = b""

    def add(self, outcomes: Outcomes, counted: bool, judged: bool) -> None:
        """Counts the requests themselves (`counted`), and what is known of their truth and rating (`judged`)."""
        if not len(outcomes):
            return
        self._packed = b""
        self.first_s = min(self.first_s, float(outcomes.at_s.min()))
        self.last_s = max(self.last_s, float(outcomes.at_s.max()))
        if counted:
            self._add_requests(outcomes)
        if judged:
            self.rating.add(outcomes.rating[~np.isnan(outcomes.rating)])
            if isinstance(outcomes.truth, np.ndarray) and isinstance(outcomes.predicted, np.ndarray):
                there = ~(np.isnan(outcomes.predicted) | np.isnan(outcomes.truth) | outcomes.failed)
                self.errors.add(outcomes.predicted[there], outcomes.truth[there])
            elif isinstance(outcomes.truth, tuple) and isinstance(outcomes.predicted, tuple):
                self._add_labels(outcomes.predicted, outcomes.truth, outcomes)

    def count(self, requests: Requests) -> None:
        """Counts requests themselves, one at least."""
        self._packed = b""
        self.first_s = min(self.first_s, float(requests.at_s.min()))
        self.last_s = max(self.last_s, float(requests.at_s.max()))
        self._add_requests(requests)

    def _add_requests(self, outcomes: Outcomes | Requests) -> None:
        self.n += len(outcomes)
        self.n_failed += int(np.count_nonzero(outcomes.failed))
        took = outcomes.latency_ms[~outcomes.failed]
        self.latency.add(took[~np.isnan(took)])
        self.confidence.add(outcomes.confidence[~(np.isnan(outcomes.confidence) | outcomes.failed)])

    def _add_labels(self, predicted: Labels, truth: Labels, outcomes: Outcomes) -> None:
        there = [
            i
            for i, (said, true, down) in enumerate(zip(predicted, truth, outcomes.failed.tolist(), strict=True))
            if said is not None and true is not None and not down
        ]
        if not there:
            return
        cells = Counter((truth[i] or "", predicted[i] or "") for i in there)
        for (true, said), count in cells.items():
            self._count_class(true, [count, 0, 0])
            self._count_class(said, [0, count, 0])
            if true == said:
                self._count_class(true, [0, 0, count])
                self.n_right += count
            else:
                self.pairs[true, said] = self.pairs.get((true, said), 0) + count
        self.n_judged += len(there)
        sure = outcomes.confidence[there]
        right = np.array([truth[i] == predicted[i] for i in there], dtype=np.float64)
        self._count_reliability(calibration.count(sure[~np.isnan(sure)], right[~np.isnan(sure)]))
        self._bound()

    def _count_class(self, name: str, counts: list[int]) -> None:
        old = self.classes.get(name, (0, 0, 0))
        self.classes[name] = [a + b for a, b in zip(old, counts, strict=True)]

    def _count_reliability(self, counts: calibration.Counts) -> None:
        for cell, (n, sure, right) in counts.items():
            known = self.reliability.get(cell)
            if known is None:
                self.reliability[cell] = [n, sure, right]
            else:  # in place: three times as fast, and there are a hundred of them in every slot
                known[0] += n
                known[1] += sure
                known[2] += right

    def _bound(self) -> None:
        """Folds the rarest classes together and drops the rarest pairs; to three quarters, so not at every call."""
        if len(self.classes) > MAX_CLASSES:
            names = [name for name in self.classes if name != OTHER]
            rare = heapq.nsmallest(len(names) - 3 * MAX_CLASSES // 4, names, lambda name: sum(self.classes[name][:2]))
            for name in rare:
                self._count_class(OTHER, self.classes.pop(name))
        if len(self.pairs) > MAX_PAIRS:
            kept = heapq.nlargest(3 * MAX_PAIRS // 4, self.pairs.items(), lambda item: item[1])
            self.pairs = dict(kept)

    def merge(self, other: Summary, *, brief: bool = False) -> None:
        """Adds what `other` has counted; `other` stays as it is. `brief` leaves out classes and calibration, which take
        most of the time."""
        self._packed = b""
        self.n += other.n
        self.n_failed += other.n_failed
        self.first_s = min(self.first_s, other.first_s)
        self.last_s = max(self.last_s, other.last_s)
        self.latency.merge(other.latency)
        self.confidence.merge(other.confidence)
        self.rating.merge(other.rating)
        self.n_judged += other.n_judged
        self.n_right += other.n_right
        self.errors.merge(other.errors)
        if brief:
            return
        for name, counts in other.classes.items():
            self._count_class(name, counts)
        for pair, count in other.pairs.items():
            self.pairs[pair] = self.pairs.get(pair, 0) + count
        self._count_reliability(other.reliability)
        self._bound()

    def take_back(self, outcomes: Outcomes) -> None:
        """Takes away the truth and ratings of outcomes that were counted before. No count goes below 0, where a class
        has come to be counted together with others since."""
        gone = Summary()
        gone.add(outcomes, counted=False, judged=True)
        self._packed = b""
        self.rating.take_back(gone.rating)
        self.errors.take_back(gone.errors)
        self.n_judged = max(0, self.n_judged - gone.n_judged)
        self.n_right = min(self.n_judged, max(0, self.n_right - gone.n_right))
        for name, counts in gone.classes.items():
            kept = name if name in self.classes else OTHER
            left = [max(0, a - b) for a, b in zip(self.classes.get(kept, (0, 0, 0)), counts, strict=True)]
            self.classes[kept] = left
            if not any(left):
                del self.classes[kept]
        for pair, count in gone.pairs.items():
            if self.pairs.get(pair, 0) > count:
                self.pairs[pair] -= count
            else:
                self.pairs.pop(pair, None)
        for cell, less in gone.reliability.items():
            old = self.reliability.get(cell)
            if old is None or old[0] <= less[0]:
                self.reliability.pop(cell, None)
            else:
                self.reliability[cell] = [max(0.0, a - b) for a, b in zip(old, less, strict=True)]

    @property
    def weight(self) -> int:
        """See `QualityWindow.weight`."""
        return 1 + (len(self.classes) + len(self.pairs)) // 32

    def packed(self) -> bytes:
        """As bytes, which are kept until something is counted; `unpack` reads them."""
        if not self._packed:
            self._packed = zlib.compress(orjson.dumps(self.plain()), 1)
        return self._packed

    @classmethod
    def unpack(cls, packed: bytes) -> Summary:
        """The summary that was packed. Raises ValueError for anything else."""
        try:
            made = cls.of(orjson.loads(zlib.decompress(packed)))
        except (zlib.error, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a summary: {error!r}.") from None
        made._packed = packed
        return made

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return {
            "n": self.n,
            "n_failed": self.n_failed,
            "first_s": self.first_s if self.first_s < math.inf else None,
            "last_s": self.last_s if self.last_s > -math.inf else None,
            "latency": [[bin_, count] for bin_, count in self.latency.bins.items()],
            "confidence": self.confidence.plain(),
            "rating": self.rating.plain(),
            "n_judged": self.n_judged,
            "n_right": self.n_right,
            "classes": dict(self.classes),
            "pairs": [[true, said, count] for (true, said), count in self.pairs.items()],
            "reliability": [[cell, *counts] for cell, counts in self.reliability.items()],
            "errors": self.errors.plain(),
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Summary:
        """The summary that was written as this. Raises KeyError, TypeError or ValueError where it is not one."""
        made = cls()
        made.n, made.n_failed = int(plain["n"]), int(plain["n_failed"])
        made.first_s = math.inf if plain["first_s"] is None else float(plain["first_s"])
        made.last_s = -math.inf if plain["last_s"] is None else float(plain["last_s"])
        made.latency = LatencySketch({int(bin_): int(count) for bin_, count in plain["latency"]})
        made.confidence, made.rating = Sums(*plain["confidence"]), Sums(*plain["rating"])
        made.n_judged, made.n_right = int(plain["n_judged"]), int(plain["n_right"])
        made.classes = {str(name): [int(c) for c in counts] for name, counts in plain["classes"].items()}
        made.pairs = {(str(true), str(said)): int(count) for true, said, count in plain["pairs"]}
        made.reliability = {int(cell): [float(c) for c in counts] for cell, *counts in plain["reliability"]}
        made.errors = Moments.of([float(value) for value in plain["errors"]])
        return made
