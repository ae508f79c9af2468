"""Fitted: waits for as many rows as the fitted call times and the arrival rate say a call should have, and no longer.

The idea is that of BentoML's dispatcher, which fits `a * n + b` online and waits for the next request when that is
predicted to lower the mean latency. Here the question is asked for a number of slots that may share their cores.
"""

from __future__ import annotations

import math

from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState

_SMOOTH = 0.1  # share of the newest call in the arrival rate: one moment of silence is no fall in demand
_SHARED = 0.2  # contention from which slots count as sharing their cores
_HEADROOM = 0.6  # of what slots that share cores can do: larger batches than the least that keep up


class Fitted(BatchPolicy):
    """Sends the batch that keeps up with the arrivals, unless a deadline asks for a smaller one.

    With rows coming at a rate r per ms and k calls worth of computing at a time, batches of n keep up when
    `k * n >= r * (fixed + per_row * n)`; the smallest such n is waited for, though nobody waits longer than two calls
    take. k is the number of slots, less what they take from each other: with full contention two calls at a time do
    no more than one, and one of twice the size is cheaper. Rows that would make the first deadline miss stay behind
    if the smaller batches still keep up; otherwise all go, and whatever then cannot be in time is dropped for the
    sake of those that can.
    """

    name = "fitted"

    def __init__(self, seed: int = 0, fixed_ms: float = 0.0, per_row_ms: float = 0.0) -> None:
        super().__init__(seed, fixed_ms, per_row_ms)
        self._rate_per_ms = 0.0

    def _wish(self, state: QueueState) -> tuple[int, float]:
        times, n_waiting, n_others = self.times, state.n_waiting_rows, state.n_in_flight
        parallel = times.parallel(state.n_slots)
        if times.contention > _SHARED:
            parallel *= _HEADROOM
        enough = times.enough_rows(self._rate_per_ms, parallel)
        within = times.rows_within(state.least_slack_ms / (1.0 + times.spread), n_others)
        if within < n_waiting:
            return (int(within) if within >= max(1.0, enough) else state.max_rows), 0.0
        if enough > state.max_rows:  # overloaded: beside others a full call is worth waiting for, if they share cores
            enough = float(state.max_rows) if n_others and times.contention > _SHARED else 0.0
        if n_waiting >= enough:
            return state.max_rows, 0.0
        takes_ms = (times.fixed_ms + times.per_row_ms * enough) * (1.0 + times.contention * n_others)
        return state.max_rows, min((enough - n_waiting) / self._rate_per_ms, 2.0 * takes_ms - state.oldest_wait_ms)

    def _learn(self, outcome: BatchOutcome) -> None:
        now_per_ms = outcome.state.arrival_rate_per_s / 1e3
        if 0.0 <= now_per_ms < math.inf:
            self._rate_per_ms += (_SMOOTH if self._rate_per_ms else 1.0) * (now_per_ms - self._rate_per_ms)
