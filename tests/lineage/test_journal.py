"""The journal's store, on SQLite and on PostgreSQL."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from sqlalchemy import text, update

from lineage.chunks import ChunkBuilder
from lineage.columns import BrokenChunk
from lineage.database import open_database
from lineage.errors import FeedbackRefused, NotYourRequest, RequestNotFound, StoreUnavailable
from lineage.feedback import Feedback
from lineage.journal import _CHUNKS, BATCH_ROWS, MOST_TOLD, PAGE_CHUNKS, Given, JournalStore
from lineage.outcomes import Setting
from tests.lineage.outcomes import DIGIT, RUN, add, chunk, trace
from tests.postgres import PostgresServer

OTHER = "f" * 20
NOW_S = 5_000.0


@pytest.fixture
def url(database_url: str) -> str:
    return database_url


@pytest.fixture
def store(url: str) -> Iterator[JournalStore]:
    opened = JournalStore(open_database(url))
    yield opened
    opened.close()


def truth(seq: int, label: int, run: str = RUN, user: str = "") -> Feedback:
    return Feedback(trace(seq, run), truth=label, user=user)


def test_a_request_is_found_by_its_trace_id_after_the_store_was_opened_anew(url: str) -> None:
    first = JournalStore(open_database(url))
    first.append(RUN, [chunk(0, [1, 2, 3]), chunk(3, [4])])
    first.append(OTHER, [chunk(0, [9], run=OTHER, setting=Setting("other"))])
    first.close()
    second = JournalStore(open_database(url))
    for seq, label in enumerate([1, 2, 3, 4]):
        found = second.find(trace(seq))
        assert found is not None
        assert (found.trace_id, found.setting, found.outputs.full["digit"].tolist()) == (trace(seq), DIGIT, [label])
    other = second.find(trace(0, OTHER))
    assert other is not None
    assert other.setting == Setting("other")
    for unknown in (trace(4), trace(1, OTHER), trace(0, "a" * 20), "nonsense"):
        assert second.find(unknown) is None
    second.close()


def test_requests_are_found_where_the_ranges_of_chunks_overlap(store: JournalStore) -> None:
    store.append(RUN, [chunk([0, 9, 30], [0, 9, 3]), chunk([2, 8], [2, 8]), chunk([10, 20], [1, 2])])
    for seq, label in ((0, 0), (9, 9), (30, 3), (2, 2), (8, 8), (10, 1), (20, 2)):
        found = store.find(trace(seq))
        assert found is not None
        assert found.outputs.full["digit"].tolist() == [label]
    assert store.find(trace(5)) is None


def test_writing_a_chunk_again_changes_nothing(store: JournalStore) -> None:
    for _ in range(3):
        store.append(RUN, [chunk(0, [1, 2]), chunk(2, [3])])
    figures = store.figures()
    assert (figures.n_chunks, figures.n_requests) == (2, 3)
    store.append(RUN, [])


def test_what_is_no_chunk_of_the_run_is_refused_and_nothing_is_written(store: JournalStore) -> None:
    for bad in (b"nonsense", chunk(5, [1])[:-1], chunk(5, [1], run=OTHER)):
        with pytest.raises(BrokenChunk):
            store.append(RUN, [chunk(0, [1]), bad])
    assert store.figures().n_chunks == 0


def test_feedback_counts_once_and_another_truth_replaces_it(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [1, 2, 3])])
    given = store.give([truth(0, 1), truth(1, 2), truth(0, 1)], NOW_S)
    assert (given.new, given.repeated, given.changed, given.n_refused) == (2, 1, 0, 0)
    named = replace(truth(0, 1), output="digit")
    given = store.give([named, truth(1, 7), Feedback(trace(1), rating=0.5), truth(2, 3), truth(2, 4)], NOW_S + 1)
    assert (given.new, given.repeated, given.changed) == (2, 1, 2)
    page = store.joined()
    said = {(one.feedback.trace_id, one.feedback.kind): one for one in page.items}
    assert len(said) == len(page.items) == store.figures().n_feedback == 4
    assert said[trace(0), "truth"].received_s == NOW_S
    assert (said[trace(1), "truth"].feedback.truth, said[trace(2), "truth"].feedback.truth) == (7, 4)
    assert said[trace(1), "rating"].feedback == Feedback(trace(1), "", None, 0.5)


def test_feedback_comes_back_as_it_was_given(store: JournalStore) -> None:
    builder = ChunkBuilder(RUN)
    builder.add(Setting("m", user="ann"), 0, 1.0, [1.0], [3], [0.5], (), {"y": np.arange(3)})
    store.append(RUN, [builder.encode()])
    item = Feedback(trace(0), "y", (1, None, 2.0), about_s=12.5, user="ann")
    store.give([item], NOW_S, source="test")
    (found,) = store.joined().items
    assert (found.feedback, found.received_s) == (item, NOW_S)


def test_good_feedback_is_stored_and_bad_is_told_item_by_item(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [1, 2, 3])])
    items = [
        truth(0, 1),
        truth(99, 1),
        truth(1, 2, user="bob"),
        truth(1, 2, user="ann"),
        Feedback(trace(2), "digi", 3),
        Feedback(trace(2), truth=(1, 2)),
        truth(0, 1, OTHER),
    ]
    given = store.give(items, NOW_S)
    assert (given.new, given.n_refused) == (2, 5)
    assert [(refusal.position, type(refusal.error)) for refusal in given.refused] == [
        (1, RequestNotFound),
        (2, NotYourRequest),
        (4, FeedbackRefused),
        (5, FeedbackRefused),
        (6, RequestNotFound),
    ]
    assert trace(99) in given.refused[0].error.message
    assert [one.feedback.trace_id for one in store.joined().items] == [trace(0), trace(1)]


def test_many_items_are_taken_in_several_transactions_and_only_some_refusals_told(store: JournalStore) -> None:
    n = BATCH_ROWS + 500
    builder = ChunkBuilder(RUN)
    add(builder, 0, [seq % 10 for seq in range(n)])
    store.append(RUN, [builder.encode()])
    items = (truth(seq * 7919 % n if seq % 2 else n + seq, 3) for seq in range(n))
    given = store.give(items, NOW_S)
    assert given.n_refused == n // 2
    assert given.new + given.repeated == n - n // 2
    assert [refusal.position for refusal in given.refused] == list(range(0, 2 * MOST_TOLD, 2))


def test_a_reader_goes_on_where_it_was_and_sees_changes_again(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [0, 1, 2, 3, 4])])
    for seq in (3, 0, 4):
        store.give([truth(seq, seq)], NOW_S)
    first = store.joined(limit=2)
    assert [one.outcome.trace_id for one in first.items] == [trace(3), trace(0)]
    store.give([truth(1, 1), truth(3, 9)], NOW_S + 10)
    second = store.joined(first.next_id)
    assert [(one.outcome.trace_id, one.feedback.truth) for one in second.items] == [
        (trace(4), 4),
        (trace(1), 1),
        (trace(3), 9),
    ]
    assert store.joined(second.next_id).next_id == second.next_id
    assert not store.joined(second.next_id).items
    assert [one.outcome.trace_id for one in store.joined(since_s=NOW_S + 5).items] == [trace(1), trace(3)]


def test_several_who_write_at_once_count_everything_once_and_number_it_in_order(url: str) -> None:
    stores = [JournalStore(open_database(url)) for _ in range(3)]
    stores[0].append(RUN, [chunk(0, [seq % 10 for seq in range(60)])])

    def give(k: int) -> tuple[int, int]:
        counts = [stores[k].give([truth(seq, seq % 10) for seq in range(at, at + 20)], NOW_S) for at in range(41)]
        return sum(given.new for given in counts), sum(given.repeated for given in counts)

    with ThreadPoolExecutor(3) as pool:
        given = list(pool.map(give, range(3)))
    assert sum(new for new, _ in given) == 60
    assert sum(new + repeated for new, repeated in given) == 3 * 41 * 20
    seen, at = [], 0
    while (page := stores[0].joined(at, limit=7)).items:
        seen += [one.feedback.trace_id for one in page.items]
        at = page.next_id
    assert sorted(seen) == [trace(seq) for seq in range(60)]
    for store in stores:
        store.close()


def test_outcomes_of_a_time_come_in_its_order_also_where_many_began_at_once(store: JournalStore) -> None:
    n = 3 * PAGE_CHUNKS + 1
    store.append(RUN, [chunk(seq, [1], at_s=1000.0 + seq // 5) for seq in range(n)])
    store.append(OTHER, [chunk(0, [1], run=OTHER, at_s=1000.0)])
    found = [(one.head.from_s, one.head.run, one.head.first_seq) for one in store.outcomes(0.0, 1e9)]
    assert found == sorted(found)
    assert len(found) == n + 1
    assert [one.head.first_seq for one in store.outcomes(1001.0, 1003.0)] == list(range(5, 15))


def test_what_is_old_is_forgotten_chunks_and_feedback(store: JournalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lineage.journal.FORGET_CHUNKS", 3)
    store.append(RUN, [chunk(seq, [1], at_s=1000.0 + seq) for seq in range(20)])
    store.give([truth(2, 1)], 1002.0)
    store.give([truth(3, 1), truth(15, 1)], 1020.0)
    assert store.forget(1010.0) == (10, 1)
    assert store.find(trace(9)) is None
    assert store.find(trace(10)) is not None
    assert [one.outcome.trace_id for one in store.joined().items] == [trace(15)]
    assert store.forget(1010.0) == (0, 0)
    figures = store.figures()
    assert (figures.n_chunks, figures.from_s, figures.to_s, figures.n_feedback) == (10, 1010.0, 1019.0, 2)
    assert store.give([truth(9, 1)], 1030.0).n_refused == 1


def test_an_empty_journal_has_figures_too(store: JournalStore) -> None:
    figures = store.figures()
    assert (figures.n_chunks, figures.n_requests, figures.n_bytes, figures.from_s) == (0, 0, 0, None)


def test_what_was_acknowledged_survives_the_death_of_the_database(postgres: PostgresServer) -> None:
    store = JournalStore(open_database(postgres.database()))
    try:
        store.append(RUN, [chunk(0, [1, 2])])
        assert store.give([truth(0, 1)], NOW_S).new == 1
        postgres.kill()
        try:
            with pytest.raises(StoreUnavailable, match="refused"):
                store.give([truth(1, 2)], NOW_S)
        finally:
            postgres.start()
        assert store.give([truth(0, 1), truth(1, 2)], NOW_S) == Given(new=1, repeated=1)
    finally:
        store.close()


def test_a_damaged_chunk_hurts_nobody_else(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [1]), chunk(1, [2])])
    with store._engine.begin() as connection:
        connection.execute(update(_CHUNKS).where(_CHUNKS.c.first_seq == 0).values(body=b"damaged"))
    with pytest.raises(StoreUnavailable, match="damaged"):
        store.find(trace(0))
    given = store.give([truth(0, 1), truth(1, 2)], NOW_S)
    assert (given.new, type(given.refused[0].error)) == (1, StoreUnavailable)
    assert [one.head.first_seq for one in store.outcomes(0.0, 1e9)] == [1]


def test_a_database_that_fails_is_a_typed_error_and_nothing_is_half_written(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [1])])
    with store._engine.begin() as connection:
        connection.execute(text("DROP TABLE feedback"))
    for ask in (lambda: store.give([truth(0, 1)], NOW_S), store.joined, store.figures, lambda: store.forget(1.0)):
        with pytest.raises(StoreUnavailable, match="refused"):
            ask()
    assert store.find(trace(0)) is not None


_GIVE = """
import sys
from lineage.database import open_database
from lineage.feedback import Feedback
from lineage.journal import _CHUNKS, BATCH_ROWS, MOST_TOLD, PAGE_CHUNKS, Given, JournalStore
from tests.lineage.outcomes import chunk, trace

store = JournalStore(open_database(sys.argv[1]))
for i in range(1000):
    store.append("0123456789abcdef0123", [chunk(10 * i, list(range(10)))])
    given = store.give([Feedback(trace(10 * i + k), truth=k) for k in range(10)], 1.0)
    print(10 * i + given.new, flush=True)
"""


def test_what_was_acknowledged_survives_a_kill_right_after(url: str) -> None:
    with subprocess.Popen([sys.executable, "-c", _GIVE, url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        acknowledged = [int(process.stdout.readline()) for _ in range(7)]
        process.send_signal(signal.SIGKILL)
        acknowledged += [int(line) for line in process.stdout]
    assert process.returncode == -signal.SIGKILL
    store = JournalStore(open_database(url))
    known = {one.feedback.trace_id for one in store.joined(limit=10_000).items}
    assert {trace(seq) for seq in range(acknowledged[-1])} <= known
    assert all(store.find(trace(seq)) is not None for seq in range(acknowledged[-1]))
    given = store.give([truth(seq, seq % 10) for seq in range(acknowledged[-1])], 2.0)
    assert (given.repeated, given.new) == (acknowledged[-1], 0)
    store.close()
