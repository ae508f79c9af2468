from __future__ import annotations

import pytest

from planner.choice.segments import Segments


def test_a_user_who_asks_often_is_a_segment() -> None:
    segments = Segments(often=3)
    assert [segments.of("digits", "ann") for _ in range(4)] == ["", "", "user=ann", "user=ann"]


def test_requests_that_travel_together_count_all() -> None:
    assert Segments(often=20).of("digits", "ann", n_requests=20) == "user=ann"


def test_until_then_the_user_is_with_those_whose_data_has_the_same_tags() -> None:
    segments = Segments()
    assert segments.of("digits", "ann", frozenset({"pii", "eu"})) == "tags=eu,pii"
    assert segments.of("digits", "bob", frozenset({"eu", "pii"})) == "tags=eu,pii"


def test_looks_matter_where_they_are_asked_for() -> None:
    features = (0.0, 0.0, 0.5, 0.2, 0.0, 0.0)
    assert Segments().of("digits", features=features) == ""
    assert Segments(by=("mean", "deviation")).of("digits", features=features) == "like=21"
    assert Segments(by=("mean",)).of("digits") == ""


def test_a_feature_without_ranges_is_an_error_at_once() -> None:
    with pytest.raises(KeyError):
        Segments(by=("load",))


def test_the_least_recently_used_is_given_up_and_told() -> None:
    gone: list[tuple[str, str]] = []
    segments = Segments(most=2, often=1, given_up=lambda goal, segment: gone.append((goal, segment)))
    for user in ("ann", "bob", "ann", "eve"):
        segments.of("digits", user)
    assert gone == [("digits", "user=bob")]
    assert len(segments) == 2


def test_names_that_come_once_push_nobody_out() -> None:
    gone: list[tuple[str, str]] = []
    segments = Segments(most=10, often=5, given_up=lambda goal, segment: gone.append((goal, segment)))
    segments.of("digits", "ann", n_requests=5)
    for i in range(1000):
        segments.of("digits", f"made-up-{i}")
    assert segments.of("digits", "ann") == "user=ann"
    assert not gone
    assert len(segments) == 1


def test_goals_have_their_own_segments() -> None:
    segments = Segments(often=2)
    segments.of("digits", "ann")
    assert segments.of("letters", "ann") == ""
