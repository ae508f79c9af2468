"""The store never holds more than it may, and nobody's flood pushes out the others."""

from __future__ import annotations

import tracemalloc
from collections import Counter
from collections.abc import Mapping

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calls import Produced
from planner.cards import ExtensionId
from planner.step_rows import KeptRow, Key, kept_rows, row_keys
from planner.step_store import LARGEST_SHARE, ROW_OVERHEAD_BYTES, USER_OVERHEAD_BYTES, StepStore

A, B = ExtensionId("a@1"), ExtensionId("b@1")


def key(number: int) -> Key:
    return Key(number.to_bytes(32, "big"))


def row(size: int = 0) -> KeptRow:
    """A row that weighs `size` in the store."""
    return KeptRow((), (), size - ROW_OVERHEAD_BYTES)


def held(store: StepStore, extension: ExtensionId, numbers: range | list[int]) -> list[int]:
    return [n for n in numbers if store.get(extension, [key(n)])]


def test_rows_are_found_under_their_extension_alone() -> None:
    store = StepStore(1 << 20)
    store.put(A, "ann", [key(1), key(2)], [row(1000), row(1001)])
    assert store.get(A, [key(2), key(3)]) == {key(2): row(1001)}
    assert store.get(B, [key(1)]) == {}


def test_the_row_that_was_not_asked_for_the_longest_goes_first() -> None:
    store = StepStore(100 * 1000 + USER_OVERHEAD_BYTES)
    store.put(A, "ann", [key(n) for n in range(100)], [row(1000)] * 100)
    store.get(A, [key(0)])
    store.put(A, "ann", [key(100)], [row(1000)])
    assert held(store, A, range(101)) == [0, *range(2, 101)]
    assert store.counts.evictions == 1


def test_a_row_that_is_too_large_is_not_kept_and_pushes_nobody_out() -> None:
    store = StepStore(64_000)
    store.put(A, "ann", [key(1)], [row(64_000 // LARGEST_SHARE)])
    store.put(A, "ann", [key(2)], [row(64_000 // LARGEST_SHARE + 1)])
    assert held(store, A, [1, 2]) == [1]


def test_an_extension_that_floods_pushes_out_its_own_rows() -> None:
    store = StepStore(100_000)
    store.put(B, "ann", [key(n) for n in range(20)], [row(1000)] * 20)
    for n in range(1000):
        store.put(A, "ann", [key(n)], [row(1000)])
    assert held(store, B, range(20)) == list(range(20))
    assert len(held(store, A, range(1000))) > 70


def test_a_user_who_floods_pushes_out_his_own_rows() -> None:
    store = StepStore(100_000)
    store.put(A, "ann", [key(n) for n in range(20)], [row(1000)] * 20)
    for n in range(1000):
        store.put(A, "bob", [key(100 + n)], [row(1000)])
    assert held(store, A, range(20)) == list(range(20))


def test_an_extension_with_many_users_does_not_push_out_one_with_few() -> None:
    store = StepStore(100_000)
    store.put(B, "ann", [key(n) for n in range(20)], [row(1000)] * 20)
    for n in range(1000):
        store.put(A, f"user {n}", [key(n)], [row(1000)])
    assert held(store, B, range(20)) == list(range(20))


def test_what_was_dropped_is_gone_and_its_room_is_free() -> None:
    store = StepStore(100_000)
    store.put(A, "ann", [key(1)], [row(1000)])
    store.put(B, "ann", [key(1)], [row(1000)])
    store.drop(A)
    store.drop(A)
    assert store.get(A, [key(1)]) == {}
    assert (store.counts.n_bytes, store.counts.n_rows) == (1000 + USER_OVERHEAD_BYTES, 1)


writes = st.lists(
    st.tuples(
        st.sampled_from([A, B, ExtensionId("c@1")]),
        st.sampled_from(["ann", "bob", "cem"]),
        st.integers(0, 60),
        st.integers(ROW_OVERHEAD_BYTES, 1200),
    ),
    min_size=30,
    max_size=150,
)


def sizes_of(store: StepStore, rows: Mapping[tuple[ExtensionId, int], tuple[str, int]]) -> Counter[tuple[str, ...]]:
    """What each extension, and each user of it, holds by the test's own books, and forgets what is gone."""
    sizes: Counter[tuple[str, ...]] = Counter()
    for (extension, number), (user, size) in list(rows.items()):
        if store.get(extension, [key(number)]):
            if (extension, user) not in sizes:
                size += USER_OVERHEAD_BYTES
            sizes[extension,] += size
            sizes[extension, user] += size
    return sizes


@settings(max_examples=60, deadline=None)
@given(writes, st.integers(25_000, 50_000))
def test_the_bound_holds_the_books_are_right_and_only_large_holders_lose_rows(
    actions: list[tuple[ExtensionId, str, int, int]], max_bytes: int
) -> None:
    store = StepStore(max_bytes)
    rows: dict[tuple[ExtensionId, int], tuple[str, int]] = {}
    for extension, user, number, size in actions:
        if size * LARGEST_SHARE > max_bytes:
            size = max_bytes // LARGEST_SHARE
        if size < ROW_OVERHEAD_BYTES:
            continue
        before = sizes_of(store, rows)
        if not store.get(extension, [key(number)]):
            rows[extension, number] = user, size
            before[extension,] += size + USER_OVERHEAD_BYTES * ((extension, user) not in before)
            before[extension, user] += size + USER_OVERHEAD_BYTES * ((extension, user) not in before)
        evictions = store.counts.evictions
        store.put(extension, user, [key(number)], [row(size)])
        after = sizes_of(store, rows)
        assert store.counts.n_bytes <= max_bytes
        assert store.counts.n_bytes == sum(size for holder, size in after.items() if len(holder) == 1)
        if store.counts.evictions == evictions + 1:
            (loser,) = (holder for holder in before if len(holder) == 2 and after[holder] < before[holder])
            assert before[loser[0],] * 2 > max(size for holder, size in before.items() if len(holder) == 1)
            others = [size for holder, size in before.items() if len(holder) == 2 and holder[0] == loser[0]]
            assert before[loser] * 2 > max(others)


def test_memory_that_is_taken_is_at_most_what_is_accounted_for() -> None:
    for n_users in (1, 2000):
        store = StepStore(1 << 30)
        tracemalloc.start()
        start = tracemalloc.get_traced_memory()[0]
        for n in range(2000):
            keys = row_keys(b"", {"x": np.array([float(n)])}, 1)
            rows = kept_rows({"y": Produced(np.full((1, 10), n, np.float32), np.ones(1, np.float32))}, 1)
            assert keys is not None
            assert rows is not None
            store.put(A, f"user {n % n_users}", keys, rows)
        taken = tracemalloc.get_traced_memory()[0] - start
        tracemalloc.stop()
        assert 0.5 * store.counts.n_bytes < taken <= store.counts.n_bytes
