"""Breakers: when they open, for how long, who probes, and who is an outlier."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.breakers import MOST_USERS, Breakers, BreakerSettings
from planner.cards import ExtensionId
from planner.envelopes import Envelope

A, B, C, D = (ExtensionId(f"{name}@1") for name in "abcd")
PLAIN = BreakerSettings(jitter=0.0)


def made(settings: BreakerSettings = PLAIN) -> Breakers:
    return Breakers(random.Random(7), settings)


def broken(settings: BreakerSettings = PLAIN, now_s: float = 0.0) -> Breakers:
    """Breakers of which that of A has just opened for the first time."""
    breakers = made(settings)
    for _ in range(settings.in_a_row):
        breakers.failed(A, now_s, 1.0)
    assert breakers.state(A, now_s) == "open"
    return breakers


def calls(breakers: Breakers, extension: ExtensionId, good: int, bad: int, now_s: float = 0.0, ms: float = 1.0) -> None:
    """That many calls, never so many failures in a row that they alone would open it."""
    for i in range(max(good, bad)):
        if i < bad:
            breakers.failed(extension, now_s, ms)
        if i < good:
            breakers.succeeded(extension, now_s, ms)


def test_what_nobody_has_called_is_closed() -> None:
    breakers = made()
    assert breakers.allows(A, 0.0)
    assert breakers.state(A, 0.0) == "closed"
    assert breakers.standings(0.0) == ()


def test_failures_in_a_row_open_it_and_one_success_between_does_not() -> None:
    breakers = made()
    for _ in range(4):
        breakers.failed(A, 0.0, 1.0)
    breakers.succeeded(A, 0.0, 1.0)
    breakers.failed(A, 0.0, 1.0)
    assert breakers.allows(A, 0.0)
    for _ in range(4):
        breakers.failed(A, 0.0, 1.0)
    assert not breakers.allows(A, 0.0)
    assert breakers.allows(B, 0.0)


def test_a_share_of_failures_opens_it_only_from_the_least_volume_on() -> None:
    breakers = made()
    calls(breakers, A, good=9, bad=9)
    assert breakers.allows(A, 0.0)
    calls(breakers, A, good=2, bad=2)
    assert not breakers.allows(A, 0.0)
    (standing,) = breakers.standings(0.0)
    assert (standing.state, standing.why) == ("open", "11 of 21 calls failed")


def test_failures_that_are_long_past_do_not_count() -> None:
    breakers = made()
    calls(breakers, A, good=9, bad=9)
    calls(breakers, A, good=9, bad=1, now_s=12.0)
    assert breakers.allows(A, 12.0)


def test_when_the_time_is_over_a_few_probes_pass_and_close_it() -> None:
    breakers = broken()
    assert not breakers.allows(A, 0.99)
    assert breakers.state(A, 1.0) == "half-open"
    assert [breakers.allows(A, 1.0) for _ in range(5)] == [True, True, True, False, False]
    for _ in range(3):
        breakers.succeeded(A, 1.1, 50.0)
    assert breakers.state(A, 1.1) == "closed"
    breakers.failed(A, 1.2, 10.0)
    assert breakers.allows(A, 1.2)


def test_what_failed_before_it_closed_again_is_forgotten() -> None:
    breakers = made()
    calls(breakers, A, good=20, bad=30)
    assert breakers.state(A, 0.0) == "open"
    for _ in range(3):
        assert breakers.allows(A, 1.0)
        breakers.succeeded(A, 1.0, 0.0)
    breakers.failed(A, 1.0, 0.0)
    (standing,) = breakers.standings(1.0)
    assert (standing.state, standing.n_calls, standing.n_failed) == ("closed", 1, 1)


def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_limit() -> None:
    breakers = broken(replace(PLAIN, longest_open_s=5.0))
    now_s, lasted_s = 0.0, []
    for _ in range(5):
        left_s = breakers.standings(now_s)[0].opens_in_s
        lasted_s.append(left_s)
        now_s += left_s
        assert breakers.allows(A, now_s)
        breakers.failed(A, now_s, 0.1)
    assert lasted_s == [1.0, 2.0, 4.0, 5.0, 5.0]


def test_after_good_conduct_the_count_begins_anew() -> None:
    breakers = broken()
    for again_s, lasts_s in ((2.0, 2.0), (100.0, 1.0)):
        breakers.state(A, again_s - 0.5)
        for _ in range(3):
            assert breakers.allows(A, again_s - 0.5)
            breakers.succeeded(A, again_s - 0.5, 1.0)
        assert breakers.state(A, again_s - 0.5) == "closed"
        wait_s = 65.0 if again_s == 100.0 else 0.0
        for _ in range(5):
            breakers.failed(A, again_s + wait_s, 1.0)
        assert breakers.standings(again_s + wait_s)[0].opens_in_s == lasts_s


def test_calls_from_before_it_opened_tell_nothing_of_the_probes() -> None:
    breakers = broken()
    assert breakers.allows(A, 1.5)
    breakers.failed(A, 1.6, 1_600.0)
    assert breakers.state(A, 1.6) == "half-open"
    breakers.failed(A, 1.6, 100.0)
    assert breakers.state(A, 1.6) == "open"


def test_a_probe_that_was_abandoned_or_forgotten_makes_room_for_another() -> None:
    breakers = broken()
    assert all(breakers.allows(A, 1.0) for _ in range(3))
    breakers.abandoned(A, 1.2, 200.0)
    assert breakers.allows(A, 1.2)
    breakers.abandoned(A, 1.3, 1_300.0)
    assert not breakers.allows(A, 10.9)
    assert [breakers.allows(A, 11.1) for _ in range(3)] == [True, True, False]


def test_jitter_lengthens_the_open_time_at_random_and_by_its_share_at_most() -> None:
    lasted = set()
    for seed in range(20):
        breakers = Breakers(random.Random(seed), BreakerSettings(jitter=0.2))
        for _ in range(5):
            breakers.failed(A, 0.0, 1.0)
        lasted.add(breakers.standings(0.0)[0].opens_in_s)
    assert len(lasted) == 20
    assert all(1.0 <= open_s <= 1.2 for open_s in lasted)


def test_what_replicas_say_of_themselves_opens_it_too_and_not_again_by_the_same_failures() -> None:
    breakers = made()
    told = {A: Envelope(A, "", 0.0, n_calls=40, n_failed=40), B: Envelope(B, "", 0.0, n_calls=40, n_failed=39)}
    breakers.observe(told, 0.0)
    assert not breakers.allows(A, 0.0)
    assert breakers.allows(B, 0.0)
    (standing,) = breakers.standings(0.0)
    assert standing.why == "all of 40 calls raised, say its replicas"
    for _ in range(3):
        assert breakers.allows(A, 1.0)
        breakers.succeeded(A, 1.0, 0.0)
    breakers.observe(told, 5.0)
    assert breakers.allows(A, 5.0)
    breakers.observe(told, 62.0)
    assert not breakers.allows(A, 62.0)


def test_after_it_closed_what_replicas_say_counts_once_calls_from_before_have_left_their_windows() -> None:
    breakers = broken(replace(PLAIN, trust_s=5.0))
    for _ in range(3):
        assert breakers.allows(A, 1.0)
        breakers.succeeded(A, 1.0, 0.0)
    told = {A: Envelope(A, "", 0.0, n_calls=40, n_failed=40)}
    breakers.observe(told, 20.9)
    assert breakers.allows(A, 20.9)
    breakers.observe(told, 21.1)
    assert not breakers.allows(A, 21.1)


def test_who_had_a_success_here_knows_better_than_replicas_that_only_fail() -> None:
    breakers = made()
    told = {A: Envelope(A, "", 0.0, n_calls=40, n_failed=40)}
    breakers.succeeded(A, 100.0, 1.0)
    breakers.observe(told, 159.0)
    assert breakers.allows(A, 159.0)
    breakers.observe(told, 160.0)
    assert not breakers.allows(A, 160.0)


def test_who_fails_more_than_its_peers_is_ejected_and_never_more_than_the_share() -> None:
    breakers = made()
    for extension, bad in ((A, 9), (B, 8), (C, 0), (D, 0)):
        calls(breakers, extension, good=21, bad=bad)
    assert breakers.eject_outliers([[A, B, C, D]], 0.0) == (A, B)
    only_one = made(replace(PLAIN, most_out=0.25))
    for extension, bad in ((A, 9), (B, 8), (C, 0), (D, 0)):
        calls(only_one, extension, good=21, bad=bad)
    assert only_one.eject_outliers([[A, B, C, D]], 0.0) == (A,)


def test_peers_that_are_all_equally_bad_are_left_alone() -> None:
    breakers = made()
    for extension in (A, B, C):
        calls(breakers, extension, good=21, bad=9)
    assert breakers.eject_outliers([[A, B, C]], 0.0) == ()


def test_slowness_is_held_against_what_was_expected_of_each() -> None:
    breakers = made()
    for _ in range(30):
        breakers.succeeded(A, 0.0, 100.0, expected_ms=100.0)
        breakers.succeeded(B, 0.0, 2.0, expected_ms=2.0)
        breakers.succeeded(C, 0.0, 30.0, expected_ms=3.0)
    assert breakers.eject_outliers([[A, B, C]], 0.0) == (C,)
    (standing,) = [one for one in breakers.standings(0.0) if one.extension == C]
    assert standing.why == "10.0 times as slow as its peers"


def test_calls_that_raise_at_the_replicas_make_no_outlier() -> None:
    breakers = made()
    breakers.observe({A: Envelope(A, "", 0.0, n_calls=50, n_failed=45), B: Envelope(B, "", 0.0, n_calls=50)}, 0.0)
    assert breakers.eject_outliers([[A, B]], 0.0) == ()


def raise_for(breakers: Breakers, user: str, times: int, now_s: float) -> None:
    for _ in range(times):
        breakers.raised(A, now_s, 1.0, user)


def test_an_extension_that_raises_and_never_did_anything_else_opens_it() -> None:
    breakers = made()
    raise_for(breakers, "ann", 4, 0.0)
    assert breakers.allows(A, 0.0)
    raise_for(breakers, "ann", 1, 0.0)
    assert not breakers.allows(A, 0.0)
    (standing,) = breakers.standings(0.0)
    assert standing.why == "its last 5 calls raised, and nobody's succeed"


def test_no_number_of_users_opens_it_while_the_success_of_another_is_young() -> None:
    breakers = made()
    breakers.succeeded(A, 100.0, 1.0, user="ben")
    for i in range(200):
        breakers.raised(A, 100.1, 1.0, f"user {i}")
    breakers.raised(A, 159.9, 1.0, "ann")
    assert breakers.allows(A, 159.9)
    breakers.raised(A, 160.1, 1.0, "ann")
    assert not breakers.allows(A, 160.1)


def test_who_invents_users_cannot_make_the_success_of_another_forgotten() -> None:
    breakers = made()
    breakers.succeeded(A, 100.0, 1.0, user="ben")
    invented = [f"user {i}" for i in range(MOST_USERS)]
    for user in invented:
        breakers.succeeded(A, 100.1, 1.0, user=user)
    for at_s, opens in ((101.0, False), (159.9, False), (160.1, True)):
        for user in invented:
            breakers.raised(A, at_s, 1.0, user)
        assert (breakers.state(A, at_s) == "open") == opens


def test_once_it_raises_for_all_who_had_a_success_the_last_of_these_counts_for_a_shorter_time() -> None:
    breakers = made()
    for user in "ab":
        breakers.succeeded(A, 10.0, 1.0, user=user)
        raise_for(breakers, user, 10, 11.0)
        breakers.succeeded(A, 12.0, 1.0, user="a")
    raise_for(breakers, "a", 10, 21.9)
    assert breakers.allows(A, 21.9)
    raise_for(breakers, "a", 10, 22.1)
    assert breakers.allows(A, 22.1)
    raise_for(breakers, "b", 1, 22.1)
    assert not breakers.allows(A, 22.1)


def test_another_user_speaks_for_it_longer_than_those_for_whom_it_raises() -> None:
    breakers = made()
    breakers.succeeded(A, 100.0, 1.0, user="ben")
    raise_for(breakers, "ann", 50, 159.0)
    assert breakers.allows(A, 159.0)
    raise_for(breakers, "ann", 1, 160.0)
    assert not breakers.allows(A, 160.0)


def test_a_success_of_those_for_whom_it_raises_does_not_silence_the_others() -> None:
    breakers = made()
    breakers.succeeded(A, 100.0, 1.0, user="ben")
    breakers.succeeded(A, 101.0, 1.0, user="ann")
    raise_for(breakers, "ann", 50, 120.0)
    assert breakers.allows(A, 120.0)


def test_only_what_raised_since_the_last_success_counts() -> None:
    breakers = made()
    for user in "abcd":
        breakers.raised(A, 0.0, 1.0, user)
    breakers.succeeded(A, 1.0, 1.0, user="a")
    raise_for(breakers, "e", 10, 2.0)
    assert breakers.allows(A, 2.0)
    breakers.succeeded(A, 3.0, 1.0, user="a")
    raise_for(breakers, "e", 4, 100.0)
    assert breakers.allows(A, 100.0)


def test_what_succeeds_elsewhere_as_its_replicas_tell_speaks_for_it_too() -> None:
    breakers = made()
    breakers.observe({A: Envelope(A, "", 0.0, n_calls=50, n_failed=49)}, 0.0)
    raise_for(breakers, "ann", 50, 1.0)
    assert breakers.allows(A, 1.0)
    breakers.observe({A: Envelope(A, "", 0.0, n_calls=10, n_failed=10)}, 2.0)
    raise_for(breakers, "ann", 1, 2.0)
    assert not breakers.allows(A, 2.0)


def test_bad_rows_do_not_keep_probes_from_closing_it_and_only_bad_rows_open_it_again() -> None:
    breakers = broken()
    for _ in range(3):
        assert breakers.allows(A, 1.0)
        breakers.raised(A, 1.0, 0.0, "ann")
        assert breakers.allows(A, 1.0)
        breakers.succeeded(A, 1.0, 0.0, user="ben")
    assert breakers.state(A, 1.0) == "closed"
    alone = broken()
    for i in range(5):
        assert alone.state(A, 1.0) == "half-open"
        assert alone.allows(A, 1.0), i
        alone.raised(A, 1.0, 0.0, "ann")
    assert alone.state(A, 1.0) == "open"
    assert alone.standings(1.0)[0].opens_in_s == 2.0


USERS = ("", "ann", "ben", "cid", "dee", "eve", "fay")
PAUSES = st.floats(0.0, 4.0)


@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(USERS), PAUSES), max_size=60), st.sampled_from(USERS))
@settings(deadline=None)
def test_one_client_who_sends_bad_rows_for_ever_never_opens_it_while_others_succeed(
    rounds: list[tuple[int, str, float]], guilty: str
) -> None:
    breakers = made()
    now_s = 0.0
    for n_bad, user, pause_s in rounds:
        # Others by name: they may come as seldom as once in `trust_s`.
        now_s += pause_s if user in ("", guilty) else 10.0 * pause_s
        breakers.succeeded(A, now_s, 1.0, user=user)
        for i in range(n_bad):
            breakers.raised(A, now_s + i / 30.0, 1.0, guilty)
            assert breakers.state(A, now_s + i / 30.0) == "closed"
        now_s += 1.0


@given(
    st.lists(st.tuples(st.sampled_from(["good", "bad"]), st.sampled_from(USERS), PAUSES), max_size=40),
    st.lists(st.tuples(st.sampled_from(USERS), st.floats(0.01, 4.0)), min_size=60, max_size=60),
)
@settings(deadline=None)
def test_an_extension_that_raises_for_everybody_is_let_alone_soon_and_comes_back_by_probes(
    before: list[tuple[str, str, float]], after: list[tuple[str, float]]
) -> None:
    breakers = made()
    now_s = 0.0

    def call(good: bool, user: str) -> None:
        if breakers.allows(A, now_s):
            if good:
                breakers.succeeded(A, now_s, 0.0, user=user)
            else:
                breakers.raised(A, now_s, 0.0, user)

    for what, user, pause_s in before:
        now_s += pause_s
        call(what == "good", user)
    callers: list[str] = []
    begun_s = now_s
    for user, pause_s in after:
        now_s += pause_s
        call(False, user)
        callers.append(user)
        # Once all have called, the last success is soon long enough ago; and at the latest when nobody trusts it.
        all_called = set(callers) == set(USERS) and now_s - begun_s > PLAIN.window_s
        if breakers.state(A, now_s) == "open":
            break
        if len(callers) >= PLAIN.in_a_row:
            assert not all_called
            assert now_s - begun_s < PLAIN.trust_s
    # It is well again: half-open, a few calls are let through, and close it.
    now_s += PLAIN.longest_open_s
    for _ in range(PLAIN.probes):
        call(True, "ann")
    assert breakers.state(A, now_s) == "closed"


def test_an_extension_without_peers_or_with_all_of_them_out_is_not_ejected() -> None:
    breakers = broken()
    calls(breakers, B, good=21, bad=15)
    assert breakers.eject_outliers([[B]], 0.0) == ()
    assert breakers.eject_outliers([[A, B]], 0.0) == ()


def test_what_comes_back_under_the_same_id_is_judged_anew() -> None:
    breakers = broken()
    breakers.keep_only(frozenset({B}))
    assert breakers.allows(A, 0.0)


EVENTS = st.lists(
    st.tuples(st.sampled_from(["ask", "ask", "good", "bad", "bad", "raise", "drop", "look"]), st.floats(0.0, 3.0)),
    max_size=120,
)


@given(EVENTS, st.integers(0, 100))
@settings(deadline=None)
def test_whatever_happens_no_call_passes_while_open_and_few_do_while_half_open(
    events: list[tuple[str, float]], seed: int
) -> None:
    limits = BreakerSettings(longest_open_s=8.0, forgive_s=20.0, least_calls=6)
    breakers = Breakers(random.Random(seed), limits)
    now_s = 0.0
    started: list[float] = []
    probing: list[float] = []  # when the probes began that are not over
    for what, pause_s in events:
        now_s += pause_s
        before = breakers.state(A, now_s)
        probing = [at for at in probing if before == "half-open" and now_s - at < limits.probe_s]
        if what == "ask":
            allowed = breakers.allows(A, now_s)
            assert allowed == (before == "closed" or (before == "half-open" and len(probing) < limits.probes))
            if allowed:
                started.append(now_s)
            if allowed and before == "half-open":
                probing.append(now_s)
        elif started and what != "look":
            at = started.pop(0)
            report = {
                "good": breakers.succeeded,
                "bad": breakers.failed,
                "raise": breakers.raised,
                "drop": breakers.abandoned,
            }[what]
            report(A, now_s, (now_s - at) * 1e3)
            if at in probing:
                probing.remove(at)
        else:
            breakers.eject_outliers([[A, B]], now_s)
        for standing in breakers.standings(now_s):
            assert standing.opens_in_s <= 8.0 * 1.2 + 1e-9
            assert (standing.state == "open") == (standing.opens_in_s > 0.0)
            assert (standing.state == "closed") == (standing.why == "")
    # Whatever came before: once every call succeeds, it closes.
    now_s += limits.longest_open_s * 1.2 + limits.probe_s
    for _ in range(limits.probes):
        if breakers.allows(A, now_s):
            breakers.succeeded(A, now_s, 0.0)
    assert breakers.state(A, now_s) == "closed"


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=8), st.floats(0.1, 0.9))
@settings(deadline=None)
def test_ejection_leaves_the_share_that_must_stay(worlds: list[tuple[int, int]], most_out: float) -> None:
    breakers = made(replace(PLAIN, most_out=most_out, in_a_row=10**6, failed_share=1.1))
    group = [ExtensionId(f"e{i}@1") for i in range(len(worlds))]
    for extension, (good, bad) in zip(group, worlds, strict=True):
        calls(breakers, extension, good, bad)
    ejected = breakers.eject_outliers([group], 0.0)
    out = [extension for extension in group if breakers.state(extension, 0.0) != "closed"]
    assert sorted(ejected) == sorted(out)
    assert len(out) <= most_out * len(group)
    for extension in ejected:
        good, bad = worlds[group.index(extension)]
        assert bad / (good + bad) > PLAIN.rate_gap


@pytest.mark.parametrize("n_calls", [19, 20])
def test_an_envelope_counts_from_the_least_volume_on(n_calls: int) -> None:
    breakers = made()
    breakers.observe({A: Envelope(A, "", 0.0, n_calls=n_calls, n_failed=n_calls)}, 0.0)
    assert breakers.allows(A, 0.0) == (n_calls < 20)
