from __future__ import annotations

from planner.nearest import Types

KNOWN = ["image/digit", "label/digit", "label/parity", "text/en", "label"]


def test_a_misspelt_type_brings_those_spelt_alike() -> None:
    assert Types(KNOWN).near("lable/digit")[0] == "label/digit"


def test_a_finer_type_than_there_is_brings_the_coarser_one() -> None:
    assert "text/en" in Types(KNOWN).near("text/en/us/formal/spoken/slow")


def test_a_type_that_ends_alike_comes_last() -> None:
    assert Types(KNOWN).near("probabilities/digit") == ["label/digit", "image/digit"]


def test_what_the_request_brings_is_looked_at_too() -> None:
    assert Types([]).near("image/digits", ["image/digit", "sound"]) == ["image/digit"]


def test_nothing_is_near_what_shares_no_letters() -> None:
    assert Types(KNOWN).near("zzz/qqq") == []
    assert Types([]).near("image") == []


def test_the_nearest_of_very_many_is_found_without_looking_at_each() -> None:
    many = Types(f"level{i % 9}/type{i}" for i in range(50_000))
    assert many.near("level3/typo40620")[0] == "level3/type40620"
    assert many.near("level3/type40620x")[0] == "level3/type40620"


def test_types_longer_than_what_is_compared_are_told_apart_by_their_letters() -> None:
    stem = "a" * 60
    assert Types([stem + "/left", stem + "/right"]).near(stem + "/rigth")[0] == stem + "/right"
