"""A queue before one extension, event by event: where policies are measured and the learned one is trained.

Requests come at given times; up to `n_slots` calls are in flight; a call takes `(fixed_ms + per_row_ms * work)` times
noise. The batcher around the policy is the one that `policy.py` describes: earliest deadline first, late rows are
dropped before they run. The same workload, policy and seed give the same result.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from heapq import heappop, heappush

from planner.policies.arrivals import ArrivalRate
from planner.policies.policy import BatchOutcome, BatchPolicy, Decision, QueueState

_WORST_TAIL = 20.0  # times the usual


@dataclass(frozen=True, slots=True)
class Service:
    """What calls take. `noise` is the sigma of a lognormal factor with mean 1. A share `tail_share` of the calls takes
    longer by a Pareto factor (shape 1.5, from `tail_factor` to 20). Each other call in flight makes a call slower by
    the share `contention`: slots that share their cores."""

    fixed_ms: float
    per_row_ms: float
    noise: float = 0.1
    tail_share: float = 0.0
    tail_factor: float = 1.0
    contention: float = 0.0

    def mean_ms(self, work: float, n_others: int = 0) -> float:
        """Mean time of a call with this much work (rows, weighted) beside `n_others` other calls."""
        # The mean of min(20, f * Pareto(1.5)) = 3 f - 2 f ** 1.5 / sqrt(20).
        factor = self.tail_factor
        tail = 3.0 * factor - 2.0 * math.pow(factor, 1.5) / math.sqrt(_WORST_TAIL)
        usual = (self.fixed_ms + self.per_row_ms * work) * (1.0 + self.contention * n_others)
        return usual * (1.0 + self.tail_share * (tail - 1.0))

    def draw_ms(self, work: float, n_others: int, rng: random.Random) -> float:
        """The time of one call."""
        factor = math.exp(rng.gauss(-0.5 * self.noise**2, self.noise)) if self.noise else 1.0
        if self.tail_share and rng.random() < self.tail_share:
            factor *= min(_WORST_TAIL, self.tail_factor * rng.paretovariate(1.5))
        return (self.fixed_ms + self.per_row_ms * work) * (1.0 + self.contention * n_others) * factor


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: rows that come together, the work they are (1 is a usual row), and when they are due."""

    at_ms: float
    n_rows: int
    work: float
    until_ms: float


@dataclass(frozen=True, slots=True)
class Workload:
    """One run's requests, in the order of their coming, and the extension that they need."""

    service: Service
    n_slots: int
    max_rows: int
    arrivals: Sequence[Arrival]


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a workload. Rows are on time, late (answered past their deadline) or dropped."""

    n_rows: int
    n_on_time: int
    n_late: int
    n_dropped: int
    n_calls: int
    latencies_ms: Sequence[float]  # of each answered request
    lasted_ms: float

    @property
    def goodput(self) -> float:
        """Rows answered within their deadline, as a share of those that came."""
        return self.n_on_time / self.n_rows if self.n_rows else 1.0

    @property
    def mean_batch(self) -> float:
        """Mean rows of a call; 0 without calls."""
        return (self.n_on_time + self.n_late) / self.n_calls if self.n_calls else 0.0

    def latency_ms(self, share: float) -> float:
        """The latency that this share of the answered requests stayed within; nan when none was answered."""
        if not self.latencies_ms:
            return math.nan
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]


@dataclass(slots=True)
class _Call:
    requests: list[int]
    n_rows: int
    started_ms: float
    state: QueueState


@dataclass(slots=True)
class Simulation:
    """One run, from decision to decision: `next_state` until it gives None, `apply` in between."""

    workload: Workload
    policy: BatchPolicy  # is asked what calls take and hears how they went; `apply` may do what another says
    seed: int = 0

    now_ms: float = 0.0
    n_on_time: int = 0
    n_late: int = 0
    n_dropped: int = 0
    n_calls: int = 0
    latencies_ms: list[float] = field(default_factory=list)
    _n_came: int = 0
    _queue: list[tuple[float, int]] = field(default_factory=list)  # (due, request), earliest first
    _by_age: deque[int] = field(default_factory=deque)  # waiting requests and some that have gone
    _waits: set[int] = field(default_factory=set)
    _waiting_rows: int = 0
    _running: list[tuple[float, int, _Call]] = field(default_factory=list)
    _rate: ArrivalRate = field(default_factory=ArrivalRate)
    _recent_ms: float = 0.0
    _wake_ms: float = -math.inf  # no decision before, unless something happens
    _newly_dropped: int = 0
    _rng: random.Random = field(init=False)
    _state: QueueState | None = None

    def __post_init__(self) -> None:
        self._rng = random.Random(self.seed)

    def next_state(self) -> QueueState | None:
        """Goes on to the next moment at which there is something to decide; None at the end."""
        while True:
            if self._queue and len(self._running) < self.workload.n_slots and self.now_ms >= self._wake_ms:
                self._drop_hopeless()
                if self._queue:
                    self._state = self._look()
                    return self._state
            if not self._step():
                return None

    def apply(self, decision: Decision) -> None:
        """Does what was decided on the last state."""
        if decision.wait_ms > 0.0:
            self._wake_ms = self.now_ms + decision.wait_ms
        else:
            self._send(decision.n_rows)

    def result(self) -> Result:
        """What came of it so far."""
        n_rows = sum(arrival.n_rows for arrival in self.workload.arrivals[: self._n_came])
        return Result(n_rows, self.n_on_time, self.n_late, self.n_dropped, self.n_calls, self.latencies_ms, self.now_ms)

    def _step(self) -> bool:
        """To the next event: a request comes, a call ends, or a wait is over."""
        arrivals = self.workload.arrivals
        comes_ms = arrivals[self._n_came].at_ms if self._n_came < len(arrivals) else math.inf
        ends_ms = self._running[0][0] if self._running else math.inf
        wakes_ms = self._wake_ms if self._queue and self._wake_ms > self.now_ms else math.inf
        next_ms = min(comes_ms, ends_ms, wakes_ms)
        if next_ms == math.inf:
            return False
        self.now_ms = next_ms
        if ends_ms == next_ms:
            self._end()
        elif comes_ms == next_ms:
            self._come(arrivals[self._n_came])
        self._wake_ms = -math.inf
        return True

    def _come(self, arrival: Arrival) -> None:
        heappush(self._queue, (arrival.until_ms, self._n_came))
        self._by_age.append(self._n_came)
        self._waits.add(self._n_came)
        self._waiting_rows += arrival.n_rows
        self._rate.add(arrival.n_rows, self.now_ms)
        self._n_came += 1

    def _leave(self) -> int:
        """Takes the request that is due first out of the queue."""
        _, request = heappop(self._queue)
        self._waits.remove(request)
        self._waiting_rows -= self.workload.arrivals[request].n_rows
        return request

    def _drop(self) -> None:
        n_rows = self.workload.arrivals[self._leave()].n_rows
        self.n_dropped += n_rows
        self._newly_dropped += n_rows

    def _drop_hopeless(self) -> None:
        """Drops what would be late even alone."""
        while self._queue:
            until_ms, request = self._queue[0]
            n_rows = self.workload.arrivals[request].n_rows
            if until_ms - self.now_ms > self.policy.expected_ms(n_rows, len(self._running)):
                return
            self._drop()

    def _look(self) -> QueueState:
        workload = self.workload
        while self._by_age[0] not in self._waits:
            self._by_age.popleft()
        n_in_flight = len(self._running)
        return QueueState(
            self._waiting_rows,
            len(self._queue),
            self.now_ms - workload.arrivals[self._by_age[0]].at_ms,
            self._rate.per_s(self.now_ms),
            self._queue[0][0] - self.now_ms,
            n_in_flight,
            workload.n_slots,
            workload.max_rows,
            n_in_flight / workload.n_slots,
            math.nan,
            self._recent_ms,
        )

    def _send(self, most_rows: int) -> None:
        arrivals, state = self.workload.arrivals, self._state
        if state is None:
            raise RuntimeError("Nothing was asked that this could be the decision on.")
        while len(self._queue) > 1:  # the rows that would be late in a call of this size go
            n_rows = min(most_rows, self._waiting_rows)
            if self._queue[0][0] - self.now_ms > self.policy.cautious_ms(n_rows, len(self._running)):
                break
            self._drop()
        requests: list[int] = []
        n_rows, work = 0, 0.0
        while self._queue:
            arrival = arrivals[self._queue[0][1]]
            if requests and n_rows + arrival.n_rows > most_rows:
                break
            requests.append(self._leave())
            n_rows += arrival.n_rows
            work += arrival.work
        if requests:
            took_ms = self.workload.service.draw_ms(work, len(self._running), self._rng)
            call = _Call(requests, n_rows, self.now_ms, state)
            heappush(self._running, (self.now_ms + took_ms, self.n_calls, call))
            self.n_calls += 1

    def _end(self) -> None:
        _, _, call = heappop(self._running)
        took_ms = self.now_ms - call.started_ms
        self._recent_ms += (0.1 if self._recent_ms else 1.0) * (took_ms - self._recent_ms)
        n_late = 0
        for request in call.requests:
            arrival = self.workload.arrivals[request]
            self.latencies_ms.append(self.now_ms - arrival.at_ms)
            if self.now_ms > arrival.until_ms:
                n_late += arrival.n_rows
        self.n_late += n_late
        self.n_on_time += call.n_rows - n_late
        dropped, self._newly_dropped = self._newly_dropped, 0
        self.policy.observe(BatchOutcome(call.n_rows, took_ms, n_late, call.state, dropped))


def simulate(workload: Workload, policy: BatchPolicy, seed: int = 0) -> Result:
    """Runs the whole workload under this policy, which goes on learning. `seed` is that of the call times."""
    simulation = Simulation(workload, policy, seed)
    while (state := simulation.next_state()) is not None:
        simulation.apply(policy.decide(state))
    return simulation.result()
