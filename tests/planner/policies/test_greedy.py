from __future__ import annotations

from planner.policies.greedy import Greedy
from planner.policies.policy import Decision, QueueState


def test_all_that_waits_goes_at_once() -> None:
    for n_rows in (1, 2, 63, 64, 1000):
        assert Greedy().decide(QueueState(n_rows, n_rows, 0.0, 1e5, 500.0, 1, 2, 64)) == Decision(64)
