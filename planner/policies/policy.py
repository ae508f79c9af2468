"""What a batching policy sees, what it may decide, and the rules that hold for all of them.

A batcher asks `decide` whenever rows wait and a call could start. It sends at most `n_rows`, of those whose deadline
comes first; a request is never split for it, so the first one always goes. Rows without a chance (less slack than
`expected_ms` of them alone) are dropped before it asks, and those that would be late in a call of the decided size
(`cautious_ms`) before it runs, as long as there are others. When the call has ended, `observe` hears of it.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, final

from planner.policies.call_times import CallTimes


@dataclass(frozen=True, slots=True)
class QueueState:
    """What waits for one extension version, and how it goes. Ask with `n_waiting_rows` >= 1 and a free slot.

    `least_slack_ms` is the time until the first deadline, inf where there is none. `arrival_rate_per_s` counts rows.
    `recent_ms` is a moving average of what calls took, 0 before the first. `cpu_share` and `gpu_share` are in 0..1,
    nan when unknown: what the replicas use of a core each, and the share of their GPUs' memory that is taken, of half a
    second ago or less while they have work.
    """

    n_waiting_rows: int
    n_waiting_requests: int
    oldest_wait_ms: float
    arrival_rate_per_s: float
    least_slack_ms: float = math.inf
    n_in_flight: int = 0
    n_slots: int = 1
    max_rows: int = 256
    cpu_share: float = math.nan
    gpu_share: float = math.nan
    recent_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Send up to `n_rows` (1..max_rows) now when `wait_ms` is 0; else look again after `wait_ms` at the latest, and
    before that whenever a row comes or a call ends."""

    n_rows: int
    wait_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class BatchOutcome:
    """A call that ended: its rows, its time, how many of its rows came too late.

    `state` is what the decision to send it was made on. `n_dropped_rows` were dropped as late since the outcome
    before this one.
    """

    n_rows: int
    took_ms: float
    n_late_rows: int
    state: QueueState
    n_dropped_rows: int = 0


class BatchPolicy(ABC):
    """Decides how many rows go together, and when. One instance per extension version; not thread-safe.

    Kinds say what they wish in `_wish` and learn in `_learn`; the rules that hold for all stand here:
    a lone request goes at once to an idle extension, nobody waits past the deadline of what waits or for rows that
    are not expected before that, and a full batch does not wait. `seed` makes a kind that draws lots deterministic;
    `fixed_ms` and `per_row_ms` are what a call takes as far as it is known (the card's profile).
    """

    name: ClassVar[str]  # unique; in lower case

    def __init__(self, seed: int = 0, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> None:
        self.times = CallTimes(fixed_ms, per_row_ms)

    @final
    def decide(self, state: QueueState) -> Decision:
        """How many rows to send, now or later. A few microseconds; changes nothing that a later call depends on
        but the policy's own memory of what it wished."""
        max_rows = state.max_rows
        if state.n_in_flight == 0 and state.n_waiting_requests <= 1:
            return Decision(max_rows)
        n_rows, wait_ms = self._wish(state)
        n_rows = 1 if n_rows < 1 else max_rows if n_rows > max_rows else n_rows
        n_waiting = state.n_waiting_rows
        if not wait_ms > 0.0 or n_waiting >= n_rows:
            return Decision(n_rows)
        spare_ms = state.least_slack_ms - (1.0 + self.times.spread) * self.times.expected_ms(
            n_waiting, state.n_in_flight
        )
        if spare_ms < wait_ms:
            wait_ms = spare_ms
        if wait_ms <= 0.0 or state.arrival_rate_per_s * wait_ms < 1000.0:
            return Decision(n_rows)
        return Decision(n_rows, wait_ms)

    @final
    def observe(self, outcome: BatchOutcome) -> None:
        """Learns from a call that ended. Never raises for an outcome whose numbers are odd."""
        self.times.observe(outcome.n_rows, outcome.took_ms, outcome.state.n_in_flight)
        if outcome.n_rows >= 1 and 0.0 < outcome.took_ms < 1e9:
            self._learn(outcome)

    @final
    def expected_ms(self, n_rows: int, n_others: int = 0) -> float:
        """What a call of `n_rows` rows should take beside `n_others` others in flight; 0 while nothing is known."""
        return self.times.expected_ms(n_rows, n_others)

    @final
    def cautious_ms(self, n_rows: int, n_others: int = 0) -> float:
        """What such a call should take, and once more what calls usually differ from that."""
        return self.times.expected_ms(n_rows, n_others) * (1.0 + self.times.spread)

    @abstractmethod
    def _wish(self, state: QueueState) -> tuple[int, float]:
        """Most rows to send, and for how many ms from now on to wait for them; asked when there is a choice."""

    def _learn(self, outcome: BatchOutcome) -> None:
        """Hears of a call that ended; the fit of call times has been brought up to date before."""
        return
