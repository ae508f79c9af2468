from __future__ import annotations

from planner.policies.fixed import Fixed
from planner.policies.policy import Decision, QueueState


def state(n_rows: int, oldest_wait_ms: float) -> QueueState:
    return QueueState(n_rows, n_rows, oldest_wait_ms, 1e4, 500.0, 1, 2, 64)


def test_a_batch_waits_until_it_is_full_or_its_first_row_has_waited_long_enough() -> None:
    policy = Fixed(n_rows=16, wait_ms=5.0)
    assert policy.decide(state(6, 2.0)) == Decision(16, 3.0)
    assert policy.decide(state(6, 5.0)) == Decision(16)
    assert policy.decide(state(16, 2.0)) == Decision(16)
    assert policy.decide(state(40, 2.0)) == Decision(16)
