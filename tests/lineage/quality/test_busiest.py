from __future__ import annotations

from lineage.quality.busiest import MOST_KNOWN, Busiest
from lineage.quality.summary import OTHER

DAY_S = 86_400.0


def test_the_busiest_users_have_segments_of_their_own_and_nobody_is_one_too() -> None:
    busiest = Busiest(2)
    busiest.count({"ann": 5, "bob": 3, "cid": 1, "": 100}, DAY_S)
    assert [busiest.segment(user) for user in ("ann", "bob", "cid", "dan", "")] == ["ann", "bob", OTHER, OTHER, ""]


def test_a_place_changes_hands_only_for_somebody_clearly_busier() -> None:
    busiest = Busiest(1)
    busiest.count({"ann": 100}, DAY_S)
    busiest.count({"bob": 120}, DAY_S)
    assert busiest.segment("ann") == "ann"
    busiest.count({"bob": 10}, DAY_S)
    assert (busiest.segment("ann"), busiest.segment("bob")) == (OTHER, "bob")


def test_who_was_busy_long_ago_gives_way_to_who_is_busy_now() -> None:
    busiest = Busiest(1)
    busiest.count({"ann": 1000}, DAY_S)
    for day in range(2, 8):
        busiest.count({"bob": 100}, day * DAY_S)
    assert busiest.segment("bob") == "bob"


def test_any_number_of_users_takes_bounded_memory_and_the_busy_ones_stay_known() -> None:
    busiest = Busiest(3)
    for start in range(0, 100_000, 500):
        users = {f"user-{i}": 1 for i in range(start, start + 500)}
        busiest.count({**users, "ann": 50, "bob": 40}, DAY_S)
    assert len(busiest.plain()[2]) <= MOST_KNOWN
    assert (busiest.segment("ann"), busiest.segment("bob")) == ("ann", "bob")


def test_what_was_written_is_taken_up_again() -> None:
    busiest, again = Busiest(2), Busiest(2)
    busiest.count({"ann": 5, "bob": 3, "cid": 1}, DAY_S)
    again.restore(busiest.plain())
    assert again.plain() == busiest.plain()
    assert again.segment("ann") == "ann"
