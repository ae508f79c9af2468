"""The suite on which batching policies are compared: patterns of arrivals and kinds of extensions, at several loads."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from planner.policies.simulation import Arrival, Service, Workload

LOADS = (0.5, 0.8, 0.95, 1.2)  # of capacity

# Random numbers and the mean time between requests in ms; gives the times of the requests without end.
Pattern = Callable[[random.Random, float], Iterator[float]]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: how often it comes, its rows (equally likely), work per row and deadline."""

    share: float
    rows: tuple[int, ...]
    work: float
    deadline_ms: float


@dataclass(frozen=True, slots=True)
class Scenario:
    """An extension, and who asks for it."""

    name: str
    service: Service
    n_slots: int
    max_rows: int
    pattern: Pattern
    kinds: tuple[Kind, ...]

    @property
    def rows_per_request(self) -> float:
        """Mean rows of a request."""
        return sum(kind.share * sum(kind.rows) / len(kind.rows) for kind in self.kinds)

    def capacity_per_s(self) -> float:
        """Rows per second with all slots busy with the largest calls that still take half the mean deadline at most:
        a row waits for one call and runs in the next."""
        per_request = self.rows_per_request
        work = sum(kind.share * kind.work * sum(kind.rows) / len(kind.rows) for kind in self.kinds) / per_request
        deadline_ms = sum(kind.share * kind.deadline_ms for kind in self.kinds)
        best = 0.0
        for n_rows in range(1, self.max_rows + 1):
            took_ms = self.service.mean_ms(n_rows * work, self.n_slots - 1)
            if n_rows > 1 and took_ms > deadline_ms / 2.0:
                break
            best = max(best, 1e3 * self.n_slots * n_rows / took_ms)
        return best

    def workload(self, load: float, n_rows: int, seed: int) -> Workload:
        """About `n_rows` rows at `load` times the capacity."""
        rng = random.Random(seed)
        gap_ms = 1e3 * self.rows_per_request / (load * self.capacity_per_s())
        shares = [kind.share for kind in self.kinds]
        arrivals: list[Arrival] = []
        for at_ms in self.pattern(rng, gap_ms):
            kind = rng.choices(self.kinds, shares)[0]
            rows = rng.choice(kind.rows)
            arrivals.append(Arrival(at_ms, rows, rows * kind.work, at_ms + kind.deadline_ms))
            n_rows -= rows
            if n_rows <= 0:
                break
        return Workload(self.service, self.n_slots, self.max_rows, arrivals)


def poisson(rng: random.Random, gap_ms: float) -> Iterator[float]:
    """Independent requests."""
    at_ms = 0.0
    while True:
        at_ms += rng.expovariate(1.0 / gap_ms)
        yield at_ms


def modulated(rng: random.Random, gap_ms: float) -> Iterator[float]:
    """A Markov-modulated Poisson process: calm (half the mean rate, 300 ms on average) and bursts (2.5 times the mean
    rate, 100 ms on average)."""
    at_ms, burst = 0.0, False
    while True:
        until_ms = at_ms + rng.expovariate(1.0 / (100.0 if burst else 300.0))
        rate = (2.5 if burst else 0.5) / gap_ms
        while True:
            step_ms = rng.expovariate(rate)
            if at_ms + step_ms > until_ms:
                break
            at_ms += step_ms
            yield at_ms
        at_ms, burst = until_ms, not burst


def diurnal(rng: random.Random, gap_ms: float) -> Iterator[float]:
    """A day in 2,000 mean gaps: the rate swings between 0.3 and 1.7 times the mean (thinning, Lewis and Shedler 1979,
    Naval Research Logistics Quarterly)."""
    at_ms, day_ms = 0.0, 2000.0 * gap_ms
    while True:
        at_ms += rng.expovariate(1.7 / gap_ms)
        if 1.7 * rng.random() < 1.0 - 0.7 * math.cos(2.0 * math.pi * at_ms / day_ms):
            yield at_ms


_SINGLE_ROWS = (Kind(1.0, (1,), 1.0, 80.0),)

SCENARIOS = (
    Scenario("steady", Service(4.0, 0.2), 1, 64, poisson, _SINGLE_ROWS),
    Scenario("bursty", Service(6.0, 0.3, contention=0.5), 2, 64, modulated, (Kind(1.0, (1, 2), 1.0, 120.0),)),
    Scenario("diurnal", Service(2.0, 0.05, contention=0.8), 4, 32, diurnal, (Kind(1.0, (1,), 1.0, 40.0),)),
    Scenario("heavy-tailed", Service(3.0, 0.2, 0.3, 0.02, 4.0), 2, 64, poisson, (Kind(1.0, (1,), 1.0, 100.0),)),
    Scenario(
        "mixed",
        Service(4.0, 0.5),
        1,
        64,
        poisson,
        (Kind(0.3, (1,), 0.4, 25.0), Kind(0.55, (1, 2, 4), 0.6, 100.0), Kind(0.15, (1, 2), 4.0, 250.0)),
    ),
)
