from __future__ import annotations

from collections.abc import Callable

from planner.policies.policy import BatchOutcome, QueueState
from planner.policies.thompson import Thompson


def bets(policy: Thompson, late_share: Callable[[int], float], n_calls: int) -> list[int]:
    """The sizes it sends from a queue that is always full, with calls of 10 ms and 0.1 ms a row."""
    sizes = []
    for _ in range(n_calls):
        state = QueueState(500, 500, 0.0, 1e4, 100.0, 0, 1, 64)
        n_rows = policy.decide(state).n_rows
        policy.observe(BatchOutcome(n_rows, 10.0 + 0.1 * n_rows, round(late_share(n_rows) * n_rows), state))
        sizes.append(n_rows)
    return sizes


def test_it_finds_the_size_of_the_best_throughput() -> None:
    sizes = bets(Thompson(seed=1), lambda n_rows: 0.0, 300)
    assert sizes[200:].count(64) > 90


def test_rows_that_come_too_late_cost_more_than_throughput_brings() -> None:
    sizes = bets(Thompson(seed=1), lambda n_rows: 1.0 if n_rows > 16 else 0.0, 400)
    assert sizes[300:].count(16) > 60


def test_it_forgets() -> None:
    policy = Thompson(seed=1)
    bets(policy, lambda n_rows: 1.0 if n_rows > 16 else 0.0, 400)
    sizes = bets(policy, lambda n_rows: 0.0, 800)
    assert sizes[-100:].count(64) > 60


def test_other_seeds_bet_otherwise() -> None:
    runs = [bets(Thompson(seed=seed), lambda n_rows: 0.5, 100) for seed in (1, 1, 2)]
    assert runs[0] == runs[1] != runs[2]


def test_the_largest_bet_is_the_most_rows_even_between_two_powers() -> None:
    assert Thompson().decide(QueueState(500, 500, 0.0, 1e4, 100.0, 1, 2, 100)).n_rows == 100
