"""Thompson sampling over batch sizes, with a memory that fades.

Sources: Thompson 1933, Biometrika; the discount as in Raj and Kalyani 2017, Taming Non-stationary Bandits.
"""

from __future__ import annotations

import math
import random

from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState

_DOUBT = 0.05  # standard deviation of the reward of a size that was not tried


class Thompson(BatchPolicy):
    """Bets on a batch size of 1, 2, 4, ... up to the most rows, one bet per call.

    Nobody waits for a bet to fill. The reward of a call is `throughput - penalty * excess latency`: its rows per ms,
    against the best seen lately, less the penalty times the share of its rows that came too late. Each size has a
    normal posterior of its mean reward, whose prior is the throughput that the fitted call times promise; what was
    learned fades by `keep` a call, so that an old winner is tried against others again. A reward is of the size that
    was sent, not of the one that was bet on.
    """

    name = "thompson"

    def __init__(
        self,
        seed: int = 0,
        fixed_ms: float = 0.0,
        per_row_ms: float = 0.0,
        penalty: float = 1.0,
        keep: float = 0.99,
    ) -> None:
        super().__init__(seed, fixed_ms, per_row_ms)
        self._rng = random.Random(seed)
        self._penalty = penalty
        self._keep = keep
        self._counts = [0.0]  # of the sizes 2 ** i
        self._sums = [0.0]
        self._best_per_ms = 0.0
        self._bet = 0
        self._max_rows = 1

    def _wish(self, state: QueueState) -> tuple[int, float]:
        if state.max_rows != self._max_rows:
            self._set_most(state.max_rows)
        return (state.max_rows if self._bet == len(self._counts) - 1 else 1 << self._bet), 0.0

    def _learn(self, outcome: BatchOutcome) -> None:
        state = outcome.state
        if state.max_rows != self._max_rows:
            self._set_most(state.max_rows)
        per_ms = outcome.n_rows / outcome.took_ms
        self._best_per_ms = max(per_ms, 0.995 * self._best_per_ms)
        excess = min(1.0, outcome.n_late_rows / outcome.n_rows)
        reward = per_ms / self._best_per_ms - self._penalty * excess
        size = min(len(self._counts) - 1, round(math.log2(outcome.n_rows)))
        for other in range(len(self._counts)):
            self._counts[other] *= self._keep
            self._sums[other] *= self._keep
        self._counts[size] += 1.0
        self._sums[size] += reward
        self._bet = self._draw()

    def _draw(self) -> int:
        """The size whose drawn mean reward is best. The prior has the weight of one call."""
        gauss, times = self._rng.gauss, self.times
        usual = self._best_per_ms
        drawn = []
        for size, (count, total) in enumerate(zip(self._counts, self._sums, strict=True)):
            promised = min(1.5, (1 << size) / max(times.expected_ms(1 << size) * usual, 1e-9))
            drawn.append(gauss((promised + total) / (1.0 + count), _DOUBT / math.sqrt(1.0 + count)))
        return drawn.index(max(drawn))

    def _set_most(self, max_rows: int) -> None:
        n_sizes = max_rows.bit_length()
        self._counts = (self._counts + [0.0] * n_sizes)[:n_sizes]
        self._sums = (self._sums + [0.0] * n_sizes)[:n_sizes]
        self._bet = n_sizes - 1
        self._max_rows = max_rows
