from __future__ import annotations

from planner.goals import Terms
from planner.tokens import PATIENCE_S, Token


def test_a_token_carries_the_terms_and_the_deadline_in_seconds_of_the_event_loop() -> None:
    token = Token.of(Terms(deadline_ms=250.0, priority=2, user="ada", tags=frozenset({"pii"})), now_s=10.0)
    assert (token.until_s, token.priority, token.user, token.tags) == (10.25, 2, "ada", {"pii"})
    assert token.hard
    assert not token.gone
    assert not token.partial
    assert Token.of(Terms(deadline_ms=250.0, partial=True), now_s=10.0).partial
    assert Token.of(Terms(partial=True), now_s=10.0).partial
    assert (token.min_confidence, token.max_cost) == (None, None)
    assert Token.of(Terms(max_cost=2.0), now_s=10.0).max_cost == 2.0
    assert Token.of(Terms(min_confidence=0.5), now_s=10.0).min_confidence == 0.5


def test_without_a_deadline_a_request_ends_with_our_patience_which_is_never_its_own_deadline() -> None:
    token = Token.of(Terms(), now_s=10.0)
    assert token.until_s == 10.0 + PATIENCE_S
    assert not token.late(1e9)


def test_a_request_is_late_from_its_deadline_on() -> None:
    token = Token.of(Terms(deadline_ms=250.0), now_s=10.0)
    assert not token.late(10.2)
    assert token.late(10.25)
