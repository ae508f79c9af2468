"""Greedy: all that waits goes as soon as a call may start."""

from __future__ import annotations

from planner.policies.policy import BatchPolicy, QueueState


class Greedy(BatchPolicy):
    """Never waits, and never sends less than there is: batches grow by themselves while calls are under way."""

    name = "greedy"

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return state.max_rows, 0.0
