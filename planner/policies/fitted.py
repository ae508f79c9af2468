"""Fitted: waits for as many rows as the fitted call times and the arrival rate say a call should have, and no longer.

The idea is that of BentoML's dispatcher, which fits `a * n + b` online and waits for the next request when that is
predicted to lower the mean latency. Here the question is asked for a number of slots that may share their cores.
"""

from __future__ import annotations

from planner.policies.policy import BatchPolicy, QueueState


class Fitted(BatchPolicy):
    """Sends the batch that keeps up with the arrivals, unless a deadline asks for a smaller one.

    With rows coming at a rate r per ms and k calls worth of computing at a time, batches of n keep up when
    `k * n >= r * (fixed + per_row * n)`; the smallest such n is waited for. k is the number of slots, less what they
    take from each other: with full contention two calls at a time do no more than one, and one of twice the size is
    cheaper. Rows of the queue that would make the first deadline miss stay behind if the smaller batches still keep
    up; otherwise all go, and whatever then cannot be in time is dropped for the sake of those that can.
    """

    name = "fitted"

    def _wish(self, state: QueueState) -> tuple[int, float]:
        times = self.times
        n_others = state.n_in_flight
        rate_per_ms = state.arrival_rate_per_s / 1e3
        n_slots = state.n_slots
        parallel = n_slots / (1.0 + times.contention * (n_slots - 1))
        left = parallel - rate_per_ms * times.per_row_ms
        enough = rate_per_ms * times.fixed_ms / left if left > 0.0 else float("inf")
        n_waiting = state.n_waiting_rows
        within = times.rows_within(state.least_slack_ms / (1.0 + times.spread), n_others)
        if within < n_waiting:
            return (int(within) if within >= max(1.0, enough) else state.max_rows), 0.0
        if enough > state.max_rows:  # overloaded: beside others a full call is worth waiting for, if they share cores
            enough = float(state.max_rows) if n_others and times.contention > 0.2 else 0.0
        if n_waiting >= enough or rate_per_ms <= 0.0:
            return state.max_rows, 0.0
        # Whoever has waited for a whole call waits no longer.
        patience_ms = times.fixed_ms + times.per_row_ms * enough - state.oldest_wait_ms
        return state.max_rows, min((enough - n_waiting) / rate_per_ms, patience_ms)
