"""Fixed: a batch of one size, or what has come when the first row has waited long enough."""

from __future__ import annotations

from planner.policies.policy import BatchPolicy, QueueState


class Fixed(BatchPolicy):
    """The baseline, as most servers have it: `max_batch_size` and `batch_wait_timeout` set by hand."""

    name = "fixed"

    def __init__(
        self,
        seed: int = 0,
        fixed_ms: float = 0.0,
        per_row_ms: float = 0.0,
        n_rows: int = 32,
        wait_ms: float = 5.0,
    ) -> None:
        super().__init__(seed, fixed_ms, per_row_ms)
        self._n_rows = n_rows
        self._wait_ms = wait_ms

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return self._n_rows, self._wait_ms - state.oldest_wait_ms
