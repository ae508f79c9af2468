"""Which replica gets the next call: quick ones do, slow ones are tried again, and pairs are kept apart."""

from __future__ import annotations

import random
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from planner.replicas import DOUBTS_S, LEAVES_S, LOST_S, MOST_CALLS, Replicas

THREE = ["a", "b", "c"]


def replicas(seed: int = 1) -> Replicas[str]:
    return Replicas(random.Random(seed))


def send(seen: Replicas[str], call: str, replica: str, now_s: float, pair: str = "") -> None:
    seen.chosen(call, replica, now_s, pair)
    seen.sent(replica, now_s)


def answer(seen: Replicas[str], call: str, replica: str, now_s: float) -> None:
    seen.accepted(call, now_s)
    seen.ended(call, replica, now_s)


def used(took_s: dict[str, float]) -> Replicas[str]:
    """Replicas each of which has answered some calls by second 1."""
    seen = replicas()
    for replica, took in took_s.items():
        for i in range(20):
            send(seen, f"{replica}{i}", replica, 1.0 - took)
            answer(seen, f"{replica}{i}", replica, 1.0)
    return seen


def firsts(seen: Replicas[str], now_s: float, names: list[str] = THREE) -> set[str]:
    return {seen.ranked(names, now_s)[0] for _ in range(50)}


def simulated(takes_s: dict[str, float], n_calls: int, seed: int, n_at_once: int = 2) -> Counter[str]:
    """How many of `n_calls`, `n_at_once` of which are under way at any time, went to each replica, which answers one
    call after the other."""
    seen = replicas(seed)
    free_s = dict.fromkeys(takes_s, 0.0)
    ends: list[tuple[float, str, str]] = []
    now_s, went = 0.0, Counter[str]()
    for i in range(n_calls):
        if len(ends) == n_at_once:
            ends.sort()
            now_s, call, replica = ends.pop(0)
            answer(seen, call, replica, now_s)
        replica = seen.ranked(list(takes_s), now_s)[0]
        send(seen, str(i), replica, now_s)
        free_s[replica] = max(now_s, free_s[replica]) + takes_s[replica]
        ends.append((free_s[replica], str(i), replica))
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
    seen, now_s, went = replicas(), 0.0, Counter[str]()
    for i in range(6_000):
        (replica, *_) = seen.ranked(THREE, now_s)
        send(seen, str(i), replica, now_s)
        now_s += 0.4 if replica == "b" and now_s < 5.0 else 0.01
        answer(seen, str(i), replica, now_s)
        if now_s > 40.0:
            went[replica] += 1
    assert min(went[name] for name in THREE) > 500


def test_one_quick_answer_does_not_make_a_slow_replica_quick() -> None:
    seen = used({"a": 0.01, "b": 0.4})
    send(seen, "one", "b", 1.1)
    answer(seen, "one", "b", 1.105)
    assert firsts(seen, 1.2, ["a", "b"]) == {"a"}


def test_a_replica_that_does_not_answer_is_left_alone_at_once() -> None:
    seen = used(dict.fromkeys(THREE, 0.004))
    send(seen, "lost", "b", 1.0)
    assert firsts(seen, 1.05) == {"a", "c"}
    assert seen.ranked(THREE, 1.05)[-1] == "b"


def test_two_calls_of_one_moment_go_to_different_replicas_before_either_has_left() -> None:
    seen = used({"a": 0.004, "b": 0.004})
    (first, second) = seen.ranked(["a", "b"], 1.0)
    seen.chosen("one", first, 1.0)
    assert firsts(seen, 1.0, ["a", "b"]) == {second}


def test_a_call_that_never_leaves_counts_for_a_moment_only() -> None:
    seen = used({"a": 0.004, "b": 0.004})
    seen.chosen("cancelled", "a", 1.0)
    assert firsts(seen, 1.0, ["a", "b"]) == {"b"}
    assert firsts(seen, 1.0 + 2 * LEAVES_S, ["a", "b"]) == {"a", "b"}


def test_a_call_that_is_lost_is_forgotten_in_the_end() -> None:
    seen = used({"a": 0.004, "b": 0.004})
    send(seen, "lost", "a", 1.0)
    assert firsts(seen, LOST_S, ["a", "b"]) == {"b"}
    assert firsts(seen, 2.0 + LOST_S, ["a", "b"]) == {"a", "b"}


def test_failures_and_cancelled_calls_make_nobody_look_quick() -> None:
    seen = used({"a": 0.01, "b": 2.0})
    for i in range(20):
        send(seen, f"cancelled{i}", "b", 1.0 + i * 0.01)
        seen.ended(f"cancelled{i}", "b", 1.0 + i * 0.01 + 0.001)
    assert firsts(seen, 1.3, ["a", "b"]) == {"a"}
    send(seen, "stuck", "a", 1.3)
    seen.ended("stuck", "a", 4.3)  # called back after 3 s: so long at least does it take
    assert firsts(seen, 4.3, ["a", "b"]) == {"b"}


def test_the_end_of_a_call_may_be_known_before_its_answer_is() -> None:
    early, late = used({"a": 0.01}), used({"a": 0.01})
    send(early, "one", "a", 1.0)
    early.ended("one", "a", 1.005)
    early.accepted("one", 1.005)
    send(late, "one", "a", 1.0)
    answer(late, "one", "a", 1.005)
    assert early._known == late._known
    assert 0.005 < early._known["a"].expected_s < 0.01


def test_a_replica_that_cannot_be_reached_comes_last_until_it_answers_or_a_while_has_passed() -> None:
    seen = used({"a": 0.001, "b": 0.2})
    seen.doubt("a", 1.0)
    assert seen.is_doubted("a")
    assert firsts(seen, 1.0 + 0.9 * DOUBTS_S, ["a", "b"]) == {"b"}
    assert firsts(seen, 1.1 + DOUBTS_S, ["a", "b"]) == {"a"}
    assert seen.is_doubted("a")  # it has not answered
    seen.doubt("a", 1.1 + DOUBTS_S)
    seen.trust("a")
    assert not seen.is_doubted("a")
    assert firsts(seen, 1.2 + DOUBTS_S, ["a", "b"]) == {"a"}


def test_the_end_of_a_try_does_not_end_the_next_try_elsewhere() -> None:
    seen = used({"a": 0.02, "b": 0.02})
    send(seen, "one", "a", 1.0)
    send(seen, "one", "b", 1.001)  # "a" turned it away
    seen.ended("one", "a", 1.002)
    assert firsts(seen, 1.003, ["a", "b"]) == {"a"}
    answer(seen, "one", "b", 1.021)
    assert firsts(seen, 1.022, ["a", "b"]) == {"a", "b"}


@given(st.integers(0, 1_000))
def test_calls_of_a_pair_go_to_different_replicas(seed: int) -> None:
    seen = replicas(seed)
    (first, *_) = seen.ranked(THREE, 0.0, "pair")
    send(seen, "one", first, 0.0, "pair")
    for other in set(THREE) - {first}:  # however busy those are
        for i in range(5):
            send(seen, f"{other}{i}", other, 0.0)
    (second, *_) = seen.ranked(THREE, 0.1, "pair")
    assert second != first
    send(seen, "two", second, 0.1, "pair")
    answer(seen, "one", first, 0.2)
    assert seen.ranked([first, second], 0.2, "pair") == [first, second]
    answer(seen, "two", second, 0.3)
    assert not seen._pairs


def test_the_only_replica_gets_both_calls_of_a_pair() -> None:
    seen = replicas()
    send(seen, "one", "a", 0.0, "pair")
    assert seen.ranked(["a"], 0.1, "pair") == ["a"]


def test_what_is_remembered_is_bounded() -> None:
    seen = replicas()
    for i in range(3 * MOST_CALLS):
        seen.chosen(str(i), f"r{i % 50}", 0.0, f"pair{i}")
    answer(seen, "0", "r0", 1.0)  # long forgotten
    assert len(seen._calls) == len(seen._pairs) == MOST_CALLS
    seen.doubt("r2", 1.0)
    seen.keep_only(["r1"])
    assert set(seen._known) == {"r1"}
    assert {call.replica for call in seen._calls.values()} == {"r1"}
    assert len(seen._pairs) == len(seen._calls)
    assert not seen.is_doubted("r2")
