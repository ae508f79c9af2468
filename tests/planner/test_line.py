from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.line import AGING_S, FAR_S, LOOK_AROUND, LOOK_PAST, MOST_PASSED, SOON_RUNS, Line, Place
from planner.tokens import Token


def line(max_rows: int = 10_000, weights: dict[str, float] | None = None) -> Line[Place]:
    return Line(max_rows, 1 << 20, lambda user: (weights or {}).get(user, 1.0))


def place(
    until_s: float = 1e9,
    priority: int = 5,
    user: str = "",
    n_rows: int = 1,
    kind: str = "",
    n_bytes: int = 0,
    size: float = 0.0,
) -> Place:
    return Place(Token(until_s, priority, user), n_rows, n_bytes, until_s, kind, size=size)


def drained(of: Line[Place], now_s: float = 0.0, n_rows: int = 1) -> list[Place]:
    """All that waits, in the order it is taken."""
    order: list[Place] = []
    while of.n_places:
        order += of.take(n_rows, now_s).batch
    return order


places = st.builds(
    place,
    until_s=st.floats(0.1, 20.0),
    priority=st.integers(0, 9),
    user=st.sampled_from("abcd"),
    n_rows=st.integers(1, 8),
    kind=st.sampled_from("xyz"),
    n_bytes=st.integers(0, 100),
    size=st.sampled_from([0.0, 1.0, 2.0, 50.0]),
)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(places, st.integers(0, 40), st.none()), max_size=60), st.randoms(use_true_random=False))
def test_whatever_enters_leaves_exactly_once_and_the_sums_are_right(
    events: list[Place | int | None], rng: random.Random
) -> None:
    """A place is pushed, a number takes that many rows, None removes or loses one of those that wait."""
    queue, now_s = line(), 0.0
    waiting: dict[int, Place] = {}
    for event in events:
        now_s += rng.random()
        if isinstance(event, Place):
            queue.push(event, now_s)
            waiting[id(event)] = event
        elif event is not None:
            taken = queue.take(event, now_s, run_s=0.1)
            assert all(item.until_s >= now_s + 0.1 and not item.token.gone for item in taken.batch)
            assert all(item.until_s < now_s + 0.1 for item in taken.late)
            assert all(item.token.gone for item in taken.gone)
            assert len({item.kind for item in taken.batch}) <= 1
            assert sum(item.n_rows for item in taken.batch) <= event or len(taken.batch) == 1
            for item in [*taken.batch, *taken.late, *taken.gone]:
                del waiting[id(item)]  # a second time would raise
        elif waiting:
            one = rng.choice(list(waiting.values()))
            if rng.random() < 0.5:
                one.token.gone = True
            else:
                assert queue.remove(one)
                assert not queue.remove(one)
                del waiting[id(one)]
        assert queue.n_places == len(waiting)
        assert queue.n_rows == sum(item.n_rows for item in waiting.values())
        assert queue.n_bytes == sum(item.n_bytes for item in waiting.values())
    while queue.n_places:
        taken = queue.take(4, now_s)
        for item in [*taken.batch, *taken.late, *taken.gone]:
            del waiting[id(item)]
    assert not waiting


@given(st.lists(st.floats(0.1, FAR_S), min_size=1, max_size=40))
def test_of_one_user_and_class_the_earliest_deadline_goes_first(deadlines: list[float]) -> None:
    queue = line()
    for until_s in deadlines:
        queue.push(place(until_s), 0.0)
    assert [item.until_s for item in drained(queue)] == sorted(deadlines)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40))
def test_the_most_urgent_class_goes_first(priorities: list[int]) -> None:
    queue = line()
    for priority in priorities:
        queue.push(place(priority=priority), 0.0)
    assert [item.token.priority for item in drained(queue)] == sorted(priorities)


def test_among_users_who_may_go_the_earliest_deadline_goes_first() -> None:
    queue = line()
    for until_s, user in [(3.0, "a"), (1.0, "b"), (2.0, "c")]:
        queue.push(place(until_s, user=user), 0.0)
    assert [item.token.user for item in drained(queue)] == ["b", "c", "a"]


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcde"), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2),
    st.integers(1, 8),
    st.integers(1, 16),
    st.randoms(use_true_random=False),
)
def test_users_who_all_wait_get_rows_by_their_weights_whatever_their_deadlines(
    weights: dict[str, float], most_rows: int, batch_rows: int, rng: random.Random
) -> None:
    queue = line(weights=weights)
    for user in weights:
        for _ in range(250):
            size = rng.choice([1.0, 5.0, 80.0])
            queue.push(place(rng.uniform(1.0, FAR_S), user=user, n_rows=rng.randint(1, most_rows), size=size), 0.0)
    served = Counter[str]()
    while served.total() < 200:
        for item in queue.take(batch_rows, 0.0).batch:
            served[item.token.user] += item.n_rows
    total, lead = sum(weights.values()), max(batch_rows, most_rows)
    for user, weight in weights.items():
        fair = served.total() * weight / total
        assert served[user] - fair <= lead
        assert fair - served[user] <= lead * (len(weights) - 1)


def test_a_flood_of_one_user_does_not_hold_up_another() -> None:
    queue = line()
    for _ in range(1000):
        queue.push(place(1.0, user="flood"), 0.0)
    queue.push(place(2.0, user="lone"), 0.0)
    assert "lone" in [item.token.user for item in queue.take(4, 0.0).batch]


def test_who_leaves_the_line_and_comes_back_is_still_charged_for_what_it_had() -> None:
    queue = line()
    queue.push(place(1.0, user="a", n_rows=50), 0.0)
    for _ in range(100):
        queue.push(place(2.0, user="b"), 0.0)
    assert [item.token.user for item in queue.take(1, 0.0).batch] == ["a"]
    queue.push(place(0.5, user="a"), 0.0)
    order = [item.token.user for item in drained(queue)]
    assert 20 <= order.index("a") <= 60


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.randoms(use_true_random=False))
def test_a_low_class_is_never_starved_by_more_urgent_ones(priority: int, per_turn: int, rng: random.Random) -> None:
    queue, tick_s = line(), 0.05
    low = place(priority=priority)
    queue.push(low, 0.0)
    n_turns = 0
    while low.waiting:
        now_s = n_turns * tick_s
        for _ in range(per_turn):  # as many as are taken: the more urgent alone fill the extension
            until_s, size = now_s + rng.uniform(0.5, 5.0), rng.choice([1.0, 80.0])
            queue.push(place(until_s, rng.randrange(priority), rng.choice("ab"), size=size), now_s)
        queue.take(per_turn, now_s)
        n_turns += 1
        assert n_turns * tick_s <= (priority + 1) * AGING_S + FAR_S
    assert n_turns * tick_s >= AGING_S / 2  # and yet the others go first for a while


def test_a_request_without_a_near_deadline_is_not_overtaken_for_ever() -> None:
    queue = line()
    patient = place(60.0)
    queue.push(patient, 0.0)
    now_s = 0.0
    while patient.waiting:
        now_s += 0.1
        queue.push(place(now_s + 0.2), now_s)
        queue.take(1, now_s)
        assert now_s <= FAR_S + 0.2


def test_a_batch_takes_rows_of_one_kind_and_leaves_the_others_in_their_order() -> None:
    queue = line()
    for i, kind in enumerate("xyxyx"):
        queue.push(place(1.0 + i, kind=kind), 0.0)
    assert [item.until_s for item in queue.take(10, 0.0).batch] == [1.0, 3.0, 5.0]
    assert [item.until_s for item in queue.take(10, 0.0).batch] == [2.0, 4.0]


SIZES = {
    "lognormal": lambda rng: rng.lognormvariate(5.0, 1.0),
    "uniform": lambda rng: rng.uniform(1.0, 512.0),
    "two kinds": lambda rng: 10.0 if rng.random() < 0.8 else 500.0,
}


def work(sizes: list[float], look: bool, users: str = "a", n_rows: int = 32) -> float:
    """What it takes to run all of these in batches that cost as much as their longest row times their rows."""
    queue = line()
    waiting = {}
    for i, size in enumerate(sizes):
        item = place(1.0 + i / 1e4, user=users[i % len(users)], size=size if look else 0.0)
        waiting[id(item)] = size
        queue.push(item, 0.0)
    total = 0.0
    while queue.n_places:
        batch = queue.take(n_rows, 0.0).batch
        assert len(batch) == n_rows or not queue.n_places  # never smaller for it
        total += max(waiting[id(item)] for item in batch) * len(batch)
    return total


@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("users", ["a", "abc"])
def test_batches_of_similar_rows_cost_far_less_padding(kind: str, users: str) -> None:
    for seed in range(5):
        rng = random.Random(seed)
        sizes = [SIZES[kind](rng) for _ in range(640)]
        least = sum(sizes)
        blind, looking = work(sizes, False, users), work(sizes, True, users)
        assert looking - least <= 0.45 * (blind - least)


class Watched(Place):
    """Counts how often the size of any of them is looked at."""

    n_looks = 0

    def __getattribute__(self, name: str) -> Any:
        if name == "size":
            Watched.n_looks += 1
        return super().__getattribute__(name)


@pytest.mark.parametrize("n_users", [1, 2, 10, 50, 200])
@pytest.mark.parametrize(("n_rows", "weight"), [(1, 1.0), (8, 1.0), (64, 1.0), (64, 1000.0)])
def test_few_places_are_looked_at_for_a_batch_however_many_users_wait(n_users: int, n_rows: int, weight: float) -> None:
    queue, rng = line(weights={"u0": weight}), random.Random(n_users)
    for i in range(4000):
        token = Token(1e9, 5, f"u{i % n_users}")
        queue.push(Watched(token, 1, 0, 1e9, "", size=rng.lognormvariate(5.0, 1.0)), 0.0)
    for _ in range(20):
        Watched.n_looks = 0
        assert len(queue.take(n_rows, 0.0).batch) == n_rows
        assert Watched.n_looks <= LOOK_AROUND * n_rows + 2  # and that of the first


def test_every_user_gets_a_share_of_the_search() -> None:
    queue = line()
    for i in range(500):
        for user in "ab":
            queue.push(place(1.0 + i, user=user, size=1.0 if 20 <= i < 30 else 900.0), 0.0)
    queue.push(place(0.5, user="a", size=1.0), 0.0)
    assert [item.size for item in queue.take(8, 0.0).batch] == [1.0] * 8


def test_who_is_first_and_what_is_due_soon_is_no_matter_of_size() -> None:
    queue = line()
    for until_s, size in [(1.0, 10.0), (1.1, 10.5), (1.1, 500.0), (9.0, 11.0), (2.0, 90.0), (3.0, 9.0), (4.0, 30.0)]:
        queue.push(place(until_s, size=size), 0.0)
    run_s = 1.0 / SOON_RUNS
    assert [item.size for item in queue.take(4, 0.11, run_s).batch] == [10.0, 10.5, 500.0, 9.0]
    assert [item.size for item in queue.take(2, 0.0).batch] == [90.0, 30.0]


def test_where_all_that_waits_fits_into_the_batch_the_order_is_as_ever() -> None:
    queue = line()
    for until_s, size in [(1.0, 10.0), (2.0, 500.0), (3.0, 11.0)]:
        queue.push(place(until_s, size=size), 0.0)
    assert [item.until_s for item in queue.take(3, 0.0).batch] == [1.0, 2.0, 3.0]


def test_no_rows_go_before_more_urgent_ones_for_their_size() -> None:
    queue = line()
    for priority, size in [(1, 10.0), (2, 10.0), (1, 500.0), (2, 11.0), (2, 400.0)]:
        queue.push(place(1.0, priority, size=size), 0.0)
    assert [(i.token.priority, i.size) for i in queue.take(3, 0.0).batch] == [(1, 10.0), (1, 500.0), (2, 10.0)]


def test_only_rows_of_the_same_kind_are_looked_for() -> None:
    queue = line()
    for kind, size in [("x", 10.0), ("y", 10.0), ("x", 500.0), ("x", 12.0), ("x", 499.0)]:
        queue.push(place(1.0, kind=kind, size=size), 0.0)
    assert [(item.kind, item.size) for item in queue.take(2, 0.0).batch] == [("x", 10.0), ("x", 12.0)]
    assert [(item.kind, item.size) for item in queue.take(2, 0.0).batch] == [("y", 10.0)]
    queue = line()
    for kind in ["x", *LOOK_PAST * "y", "x"]:
        queue.push(place(1.0, kind=kind, size=10.0), 0.0)
    assert [item.kind for item in queue.take(64, 0.0).batch] == ["x", "x"]


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 8), st.sampled_from(["a", "ab", "abc"]), st.randoms(use_true_random=False))
def test_a_long_row_is_not_kept_waiting_by_an_endless_stream_of_short_ones(
    n_rows: int, users: str, rng: random.Random
) -> None:
    queue, now_s = line(), 0.0
    long = place(60.0, user="a", size=1000.0)
    queue.push(long, now_s)
    for _ in range(20 * n_rows):
        queue.push(place(60.0, user=rng.choice(users), size=rng.uniform(1.0, 9.0)), now_s)
    while long.waiting:
        now_s += 0.1
        queue.take(n_rows, now_s)
        for _ in range(n_rows):
            queue.push(place(now_s + rng.uniform(0.5, 60.0), user=rng.choice(users), size=rng.uniform(1.0, 9.0)), now_s)
        assert now_s <= FAR_S + len(users) * (MOST_PASSED + 2) * 0.1


def test_whose_turn_never_comes_first_is_passed_over_a_few_times_at_most() -> None:
    queue = line()
    long = place(50.0, user="b", size=1000.0)
    queue.push(long, 0.0)
    for _ in range(600):
        queue.push(place(55.0, user="b", size=1.0), 0.0)
    batches = 0
    while long.waiting:
        for _ in range(4):  # of another user, and always due first
            queue.push(place(1.0, user="a", size=1.0), 0.0)
        assert queue.take(4, 0.0).batch[0].token.user == "a"
        batches += 1
        assert batches <= MOST_PASSED + 1
    assert batches == MOST_PASSED + 1


def test_the_search_for_rows_of_one_kind_ends() -> None:
    queue = line()
    queue.push(place(1.0, kind="x"), 0.0)
    for _ in range(LOOK_PAST):
        queue.push(place(2.0, kind="y"), 0.0)
    queue.push(place(3.0, kind="x"), 0.0)
    assert len(queue.take(10, 0.0).batch) == 1


def test_what_does_not_fit_in_the_batch_waits_and_what_is_larger_than_a_batch_goes_alone() -> None:
    queue = line()
    for until_s, n_rows in [(1.0, 3), (2.0, 4), (3.0, 1), (4.0, 9)]:
        queue.push(place(until_s, n_rows=n_rows), 0.0)
    assert [[item.n_rows for item in queue.take(6, 0.0).batch] for _ in range(3)] == [[3], [4, 1], [9]]


def test_late_and_gone_requests_are_taken_out_on_the_way_and_cost_nobody_a_share() -> None:
    queue = line()
    late, gone, good = place(1.0), place(2.0), place(3.0)
    for item in (late, gone, good):
        queue.push(item, 0.0)
    gone.token.gone = True
    taken = queue.take(10, now_s=0.5, run_s=0.6)
    assert (taken.batch, taken.late, taken.gone) == ([good], [late], [gone])


def test_there_is_less_room_for_less_urgent_requests() -> None:
    queue = line(max_rows=100)
    queue.push(place(n_rows=60), 0.0)
    assert queue.has_room(40, 0, priority=0)
    assert not queue.has_room(41, 0, priority=0)
    assert not queue.has_room(20, 0, priority=5)
    assert queue.has_room(15, 0, priority=5)


def test_bytes_are_bounded_but_one_request_may_always_wait() -> None:
    queue = line()
    assert queue.has_room(1, 1 << 30, priority=0)
    queue.push(place(n_bytes=1 << 19), 0.0)
    assert queue.has_room(1, 1 << 19, priority=0)
    assert not queue.has_room(1, (1 << 19) + 1, priority=0)


@pytest.mark.parametrize(
    ("priority", "user", "rows", "of_others", "shared"),
    [
        (0, "a", 0.0, 0.0, False),  # the most urgent see nobody
        (5, "new", 10.0, 10.0, True),  # who has nothing in the line waits for the more urgent
        (5, "light", 14.0, 10.0, True),  # 2 rows, while the heavy one gets 2 as well
        (5, "heavy", 42.0, 10.0, True),  # never more than there are
        (9, "a", 42.0, 42.0, False),
    ],
)
def test_what_stands_before_a_newcomer_depends_on_class_and_share(
    priority: int, user: str, rows: float, of_others: float, shared: bool
) -> None:
    queue = line()
    for priority_, user_, n_rows in [(2, "x", 10), (5, "light", 2), (5, "heavy", 30)]:
        queue.push(place(priority=priority_, user=user_, n_rows=n_rows), 0.0)
    ahead = queue.ahead(priority, user)
    assert (ahead.n_rows, ahead.n_rows_of_others, ahead.shared) == (rows, of_others, shared)


def test_an_endless_stream_of_users_and_removals_leaves_nothing_behind() -> None:
    queue, keep = line(), place(priority=9)
    queue.push(keep, 0.0)
    for i in range(5000):
        item = place(user=f"u{i}", priority=9)
        queue.push(item, 0.0)
        if i % 2:
            queue.remove(item)
        else:
            queue.push(place(user=f"v{i}", priority=9), 0.0)
            queue.take(2, 0.0)
    kept = vars(queue._classes[9])
    sizes = {name: len(value) for name, value in kept.items() if isinstance(value, dict | list)}
    assert max(sizes.values()) < 1000, sizes


class Divisible(Place):
    """A place whose rows may go apart."""

    def cut(self, n_rows: int) -> Divisible:
        self.n_rows -= n_rows
        return Divisible(self.token, n_rows, 0, self.until_s, self.kind)


def test_who_does_not_fit_whole_goes_in_part_and_keeps_its_place_with_the_rest() -> None:
    queue: Line[Place] = line()
    for until_s, n_rows in [(1.0, 3), (2.0, 3), (3.0, 2)]:
        queue.push(Divisible(Token(until_s), n_rows, 0, until_s, ""), 0.0)
    taken = [[(item.until_s, item.n_rows) for item in queue.take(4, 0.0).batch] for _ in range(2)]
    assert taken == [[(1.0, 3), (2.0, 1)], [(2.0, 2), (3.0, 2)]]
    assert (queue.n_places, queue.n_rows) == (0, 0)


def test_rows_that_went_in_part_count_against_their_users_share() -> None:
    queue: Line[Place] = line()
    for user in ("a", "b"):
        for _ in range(8):
            queue.push(Divisible(Token(5.0, user=user), 6, 0, 5.0, ""), 0.0)
    served = Counter[str]()
    for _ in range(12):
        for item in queue.take(4, 0.0).batch:
            served[item.token.user] += item.n_rows
    assert abs(served["a"] - served["b"]) <= 6
