"""Which replica gets the next call: quick ones do, slow ones are tried again, pairs are kept apart."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.replicas import MOST_CALLS, Replicas

THREE = ["a", "b", "c"]


def simulated(takes_s: dict[str, float], n_calls: int, seed: int, n_at_once: int = 2) -> Counter[str]:
    """How many of `n_calls`, `n_at_once` of which are under way at any time, went to each replica, which answers one
    call after the other."""
    seen: Replicas[str] = Replicas(random.Random(seed))
    free_s = dict.fromkeys(takes_s, 0.0)
    ends: list[tuple[float, str]] = []
    now_s, went = 0.0, Counter[str]()
    for i in range(n_calls):
        if len(ends) == n_at_once:
            ends.sort()
            now_s, call = ends.pop(0)
            seen.ended(call, now_s)
        replica = seen.ranked(list(takes_s), now_s)[0]
        seen.sent(str(i), replica, now_s)
        free_s[replica] = max(now_s, free_s[replica]) + takes_s[replica]
        ends.append((free_s[replica], str(i)))
        went[replica] += 1
    return went


def test_replicas_of_one_speed_share_the_calls() -> None:
    went = simulated(dict.fromkeys(THREE, 0.004), 3_000, seed=1)
    assert min(went.values()) > 800


@given(st.integers(0, 1_000), st.sampled_from(THREE))
def test_a_slow_replica_gets_few_calls(seed: int, slow: str) -> None:
    went = simulated({name: 0.2 if name == slow else 0.004 for name in THREE}, 2_000, seed)
    assert 1 <= went[slow] <= 20  # 4 s of calls, so it is tried again hardly ever


def test_a_replica_that_is_well_again_gets_its_share_again() -> None:
    seen: Replicas[str] = Replicas(random.Random(1))
    now_s, went = 0.0, Counter[str]()
    for i in range(6_000):
        (replica, *_) = seen.ranked(THREE, now_s)
        seen.sent(str(i), replica, now_s)
        now_s += 0.4 if replica == "b" and now_s < 5.0 else 0.01
        seen.ended(str(i), now_s)
        if now_s > 40.0:
            went[replica] += 1
    assert min(went[name] for name in THREE) > 500


def test_a_replica_that_does_not_answer_is_left_alone_at_once() -> None:
    seen: Replicas[str] = Replicas(random.Random(1))
    for i, replica in enumerate(THREE * 10):
        seen.sent(str(i), replica, i * 0.01)
        seen.ended(str(i), i * 0.01 + 0.004)
    seen.sent("lost", "b", 1.0)
    assert {seen.ranked(THREE, 1.05)[0] for _ in range(50)} == {"a", "c"}
    assert seen.ranked(THREE, 1.05)[-1] == "b"


@given(st.integers(0, 1_000))
def test_calls_of_a_pair_go_to_different_replicas(seed: int) -> None:
    seen: Replicas[str] = Replicas(random.Random(seed))
    (first, *_) = seen.ranked(THREE, 0.0, "pair")
    seen.sent("one", first, 0.0, "pair")
    for other in set(THREE) - {first}:  # however busy those are
        for i in range(5):
            seen.sent(f"{other}{i}", other, 0.0)
    (second, *_) = seen.ranked(THREE, 0.1, "pair")
    assert second != first
    seen.sent("two", second, 0.1, "pair")
    seen.ended("one", 0.2)
    assert seen.ranked(["a", "b"], 0.2, "pair")[-1] in ({second} & {"a", "b"} or {"a", "b"})


def test_the_only_replica_gets_both_calls_of_a_pair() -> None:
    seen: Replicas[str] = Replicas(random.Random(1))
    seen.sent("one", "a", 0.0, "pair")
    assert seen.ranked(["a"], 0.1, "pair") == ["a"]


def test_a_call_that_is_sent_again_counts_for_the_new_replica_alone() -> None:
    seen: Replicas[str] = Replicas(random.Random(1))
    seen.sent("one", "a", 0.0)
    seen.sent("one", "b", 0.0)
    assert {seen.ranked(THREE, 0.0)[-1] for _ in range(20)} == {"b"}


def test_what_is_remembered_is_bounded() -> None:
    seen: Replicas[str] = Replicas(random.Random(1))
    for i in range(3 * MOST_CALLS):
        seen.sent(str(i), f"r{i % 50}", 0.0, f"pair{i}")
    seen.ended("0", 1.0)  # long forgotten
    assert len(seen._calls) == len(seen._pairs) == len(seen._pair_of) == MOST_CALLS
    seen.keep_only(["r1"])
    assert set(seen._known) == {"r1"}
    assert set(seen._calls.values()) == {"r1"}
    assert len(seen._pairs) == len(seen._pair_of) == len(seen._calls)
