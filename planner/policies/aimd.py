"""AIMD: additive increase, multiplicative decrease of the batch size.

Source: Crankshaw et al. 2017, Clipper: A Low-Latency Online Prediction Serving System, NSDI, section 4.3.
"""

from __future__ import annotations

from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState


class Aimd(BatchPolicy):
    """The largest batch grows by a fixed number of rows as long as full batches end within the objective, and shrinks
    by a tenth when one does not.

    Clipper's latency objective is given by hand; here it is half of what the first request had from its arrival to
    its deadline, because a row waits for one call and runs in the next. Without deadlines it only grows. Nobody waits.
    """

    name = "aimd"

    def __init__(
        self,
        seed: int = 0,
        fixed_ms: float = 0.0,
        per_row_ms: float = 0.0,
        step_rows: float = 2.0,
        keep: float = 0.9,
    ) -> None:
        super().__init__(seed, fixed_ms, per_row_ms)
        self._step_rows = step_rows
        self._keep = keep
        self.most_rows = 4.0

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return int(self.most_rows), 0.0

    def _learn(self, outcome: BatchOutcome) -> None:
        state = outcome.state
        objective_ms = 0.5 * (state.oldest_wait_ms + max(state.least_slack_ms, 0.0))
        if outcome.took_ms > objective_ms:
            if outcome.n_rows >= self._keep * self.most_rows:  # a small one tells nothing against a large one
                self.most_rows = max(1.0, self._keep * self.most_rows)
        elif outcome.n_rows + 1 > self.most_rows:
            self.most_rows = min(self.most_rows + self._step_rows, float(state.max_rows))
