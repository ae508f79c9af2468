from __future__ import annotations

from planner.policies.aimd import Aimd
from planner.policies.policy import BatchOutcome, QueueState


def feed(policy: Aimd, took_ms: float, n_calls: int = 1, n_rows: int | None = None) -> None:
    state = QueueState(99, 99, 20.0, 1e4, 80.0, 0, 1, 64)  # 100 ms from arrival to deadline
    for _ in range(n_calls):
        policy.observe(BatchOutcome(int(policy.most_rows) if n_rows is None else n_rows, took_ms, 0, state))


def test_full_batches_in_time_grow_it_by_steps_up_to_the_most() -> None:
    policy = Aimd()
    first = policy.most_rows
    feed(policy, 10.0)
    assert policy.most_rows == first + 2.0
    feed(policy, 10.0, 100)
    assert policy.most_rows == 64.0


def test_a_batch_past_half_the_deadline_shrinks_it_by_a_tenth() -> None:
    policy = Aimd()
    feed(policy, 10.0, 20)
    before = policy.most_rows
    feed(policy, 51.0)
    assert policy.most_rows == 0.9 * before
    feed(policy, 51.0, 200)
    assert policy.most_rows >= 1.0


def test_batches_that_were_not_full_do_not_move_it() -> None:
    policy = Aimd()
    feed(policy, 10.0, 20)
    before = policy.most_rows
    feed(policy, 10.0, 20, n_rows=3)
    feed(policy, 99.0, 20, n_rows=3)
    assert policy.most_rows == before


def test_it_settles_where_calls_take_half_the_deadline() -> None:
    policy = Aimd()
    for _ in range(200):
        feed(policy, 10.0 + 1.0 * int(policy.most_rows))
    assert 33.0 <= policy.most_rows <= 43.0  # 50 ms at 40 rows
