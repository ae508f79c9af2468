from __future__ import annotations

import random

from planner.policies.fitted import Fitted
from planner.policies.policy import BatchOutcome, QueueState


def taught(rate_per_s: float, contention: float = 0.0) -> Fitted:
    """Calls of 4 ms and 0.2 ms a row."""
    policy, rng = Fitted(), random.Random(0)
    for _ in range(100):
        n_rows, n_others = rng.randint(1, 64), rng.randrange(2)
        state = QueueState(n_rows, n_rows, 1.0, rate_per_s, 100.0, n_others, 2, 64)
        policy.observe(BatchOutcome(n_rows, (4.0 + 0.2 * n_rows) * (1.0 + contention * n_others), 0, state))
    return policy


def state(n_rows: int, rate_per_s: float, slack_ms: float = 100.0, oldest_wait_ms: float = 0.5) -> QueueState:
    return QueueState(n_rows, n_rows, oldest_wait_ms, rate_per_s, slack_ms, 1, 2, 64)


def test_it_waits_for_the_batch_that_keeps_up_and_no_longer() -> None:
    policy = taught(5000.0)  # 5 * 4 / (2 - 5 * 0.2) = 20 rows keep up
    assert policy.decide(state(10, 5000.0)).wait_ms > 1.0
    assert policy.decide(state(22, 5000.0)).wait_ms == 0.0
    assert policy.decide(state(10, 5000.0, oldest_wait_ms=20.0)).wait_ms == 0.0


def test_it_does_not_wait_when_few_rows_come() -> None:
    policy = taught(300.0)
    assert policy.decide(state(2, 300.0)).wait_ms == 0.0


def test_slots_that_share_their_cores_ask_for_larger_batches() -> None:
    apart, together = taught(3000.0), taught(3000.0, contention=1.0)
    assert apart.decide(state(12, 3000.0)).wait_ms == 0.0  # 8.6 rows keep up
    assert together.decide(state(12, 3000.0)).wait_ms > 0.0


def test_a_tight_deadline_makes_the_batch_smaller_while_that_keeps_up() -> None:
    policy = taught(2000.0)
    decision = policy.decide(state(40, 2000.0, slack_ms=8.0))
    assert decision.wait_ms == 0.0
    assert 12 <= decision.n_rows <= 20  # 4 + 0.2 * 20 = 8
    assert policy.decide(state(40, 2000.0, slack_ms=100.0)).n_rows == 64


def test_under_overload_the_deadline_of_one_does_not_make_all_late() -> None:
    policy = taught(9500.0)  # no batch of 64 keeps up
    assert policy.decide(state(60, 9500.0, slack_ms=8.0)).n_rows == 64
