"""The desk before a real journal; time stands still while it waits."""

from __future__ import annotations

import asyncio
import io
import random
import time
from collections.abc import Iterator
from typing import Any

import psutil
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from deployments.gateway.feedback import (
    FLUSH_S,
    MANY,
    MOST_DOCUMENTS,
    MOST_UPLOADS,
    MOST_WAITING,
    PIECE_ITEMS,
    FeedbackDesk,
)
from deployments.gateway.recorder import Recorder, Recording
from deployments.gateway.uploads import read_upload
from lineage.errors import FeedbackRefused, NotYourRequest, RequestNotFound, StoreUnavailable
from lineage.feedback import Feedback
from lineage.journal import Given, JournalStore
from lineage.outcomes import Setting
from planner.errors import BodyTooLarge, FenixError, Overloaded
from tests.deployments.gateway.journals import FAILED, LABELS, MISSING, Books, Pauses, desk_over, journal
from tests.lineage.outcomes import chunk, trace

LATER = "f" * 20  # a run whose requests are written later


@pytest.fixture
def store() -> Iterator[JournalStore]:
    with journal() as one:
        yield one


def counts(given: Given) -> tuple[int, int, int, int]:
    return given.new, given.repeated, given.changed, given.n_refused


def in_parquet(**columns: Any) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


class TestWaiting:
    def test_what_another_gateway_has_not_written_yet_is_waited_for(self, store: JournalStore) -> None:
        async def scenario() -> None:
            late = Pauses(lambda: None, lambda: None, lambda: store.append(LATER, [chunk(0, [7], run=LATER)]))
            desk, _ = desk_over(store, late)
            given = await desk.give([Feedback(trace(0), truth=3), Feedback(trace(0, LATER), truth=7)])
            assert counts(given) == (2, 0, 0, 0)
            assert len(late.slept_s) == 3
            late = Pauses(lambda: store.append(LATER, [chunk(1, [8], run=LATER)]))
            desk, _ = desk_over(store, late)
            assert (await desk.find(trace(1, LATER))).outputs.full["digit"].tolist() == [8]

        asyncio.run(scenario())

    def test_what_nobody_ever_writes_is_unknown_after_two_seconds(self, store: JournalStore) -> None:
        async def scenario() -> None:
            pauses = Pauses()
            desk, books = desk_over(store, pauses)
            with pytest.raises(RequestNotFound, match=MISSING):
                await desk.give_one({"trace_id": MISSING, "truth": 1})
            assert 1.5 <= sum(pauses.slept_s) + FLUSH_S <= 2.0
            assert len(books.n_items) == 6
            pauses.slept_s.clear()
            with pytest.raises(RequestNotFound, match=MISSING):
                await desk.find(MISSING.upper())
            assert 1.5 <= sum(pauses.slept_s) + FLUSH_S <= 2.0

        asyncio.run(scenario())

    @pytest.mark.parametrize("trace_id", ["", "7", "t1", "g" * 32, trace(0)[:-1], trace(0) + "0", "é" * 32, "\0" * 32])
    def test_what_is_no_trace_id_is_not_looked_for(self, store: JournalStore, trace_id: str) -> None:
        async def scenario() -> None:
            pauses = Pauses()
            with pytest.raises(RequestNotFound, match="not a trace id"):
                await desk_over(store, pauses)[0].find(trace_id)
            assert pauses.slept_s == []

        asyncio.run(scenario())

    def test_the_gateways_own_recorder_is_flushed_once_for_all_who_ask(self, store: JournalStore) -> None:
        async def scenario() -> None:
            written: list[int] = []

            async def write(run: str, chunks: Any) -> None:
                written.append(len(chunks))
                store.append(run, chunks)

            recorder = Recorder(write, None, Recording(interval_s=3_600.0))
            recorder.start()
            pauses = Pauses()
            desk, _ = desk_over(store, pauses, recorder.flush)
            first = recorder.next(50)
            for seq in range(first, first + 50):
                recorder.add(Setting("digits"), seq, time.time(), [1.0], [1], [0.5])
            ids = [trace(first + k, recorder.run) for k in range(50)]
            given = await asyncio.gather(*(desk.give_one({"trace_id": one, "rating": 1}) for one in ids))
            assert [counts(one) for one in given] == [(1, 0, 0, 0)] * 50
            assert written == [1]
            assert len(pauses.slept_s) == 1
            await recorder.close(1.0)

        asyncio.run(scenario())

    def test_an_upload_waits_two_seconds_in_all_not_for_each_piece(
        self, store: JournalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deployments.gateway.feedback.PIECE_ITEMS", 200)

        async def scenario() -> None:
            pauses = Pauses()
            desk, books = desk_over(store, pauses)
            unknown = [Feedback(trace(k, "e" * 20), truth=1) for k in range(600)]
            assert counts(await desk.give(unknown)) == (0, 0, 0, 600)
            assert sum(pauses.slept_s) <= 2.0
            assert books.n_items == [200] * 8

        asyncio.run(scenario())

    def test_more_refusals_than_are_told_do_not_hide_those_that_only_came_early(self, store: JournalStore) -> None:
        async def scenario() -> None:
            late = Pauses(lambda: None, lambda: store.append(LATER, [chunk(0, [7] * 300, run=LATER)]))
            desk, _ = desk_over(store, late)
            items = [Feedback(trace(k, "e" * 20), truth=1) for k in range(150)]
            items += [Feedback(trace(k, LATER), truth=7) for k in range(300)]
            items += [Feedback(trace(k), truth=LABELS[k]) for k in (0, 1, 1)]
            given = await desk.give(items)
            assert counts(given) == (302, 1, 0, 150)
            assert [refusal.position for refusal in given.refused] == list(range(100))

        asyncio.run(scenario())

    @given(
        st.lists(
            st.one_of(
                st.tuples(st.sampled_from(["known", "late", "never", "not yours"]), st.integers(0, 5)),
            ),
            max_size=40,
        ),
        st.integers(0, 4),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    def test_waiting_changes_nothing_but_the_time(self, kinds: list[tuple[str, int]], when: int) -> None:
        runs = {"known": "0123456789abcdef0123", "late": LATER, "never": "e" * 20, "not yours": "0123456789abcdef0123"}
        items = [
            Feedback(trace(seq, runs[kind]), rating=0.5, user="eve" if kind == "not yours" else "")
            for kind, seq in kinds
        ]
        body = chunk(0, [1] * 6, run=LATER)
        with journal() as late, journal() as ready:
            ready.append(LATER, [body])
            then = [lambda: None] * when + [lambda: late.append(LATER, [body])]
            found = asyncio.run(desk_over(late, Pauses(*then))[0].give(items))
            expected = ready.give(items, 0.0)
        assert counts(found) == counts(expected)
        assert [(r.position, type(r.error)) for r in found.refused] == [
            (r.position, type(r.error)) for r in expected.refused
        ]


class TestBounds:
    def test_so_many_uploads_run_at_a_time(self, store: JournalStore) -> None:
        async def scenario() -> None:
            go_on = asyncio.Event()

            class SlowBooks(Books):
                async def feedback(self, items: Any, source: str = "") -> Given:
                    await go_on.wait()
                    return await super().feedback(items, source)

            desk = FeedbackDesk(SlowBooks(store), lambda _: asyncio.sleep(0, True), Pauses())
            many = [{"trace_id": trace(0), "truth": 3}] * MANY
            running = [asyncio.create_task(desk.give_documents(many)) for _ in range(MOST_UPLOADS)]
            single = asyncio.create_task(desk.give_one(many[0]))
            await asyncio.sleep(0)
            for give in (desk.give_documents(many), desk.give_file(b"trace_id,truth\n", "csv")):
                with pytest.raises(Overloaded) as caught:
                    await give
                assert caught.value.retry_after_s >= 1.0
            go_on.set()
            await single
            await asyncio.gather(*running)
            assert counts(await desk.give_documents(many)) == (0, MANY, 0, 0)

        asyncio.run(scenario())

    def test_so_many_wait_for_requests_that_are_not_there(self, store: JournalStore) -> None:
        async def scenario() -> None:
            hanging = asyncio.Event()

            async def flush(timeout_s: float) -> bool:
                await hanging.wait()
                return True

            desk, _ = desk_over(store, None, flush)
            waiting = [asyncio.create_task(desk.find(MISSING)) for _ in range(MOST_WAITING)]
            for _ in range(20):
                await asyncio.sleep(0)
            with pytest.raises(Overloaded):
                await desk.find(MISSING)
            assert (await desk.find(trace(0))).n_rows == 1
            hanging.set()
            found = await asyncio.gather(*waiting, return_exceptions=True)
            assert {type(one) for one in found} == {RequestNotFound}

        asyncio.run(scenario())

    def test_more_than_ten_thousand_documents_are_too_many(self, store: JournalStore) -> None:
        async def scenario() -> None:
            desk, books = desk_over(store)
            with pytest.raises(BodyTooLarge, match="10001"):
                await desk.give_documents([{"trace_id": trace(0), "truth": 3}] * (MOST_DOCUMENTS + 1))
            assert books.n_items == []

        asyncio.run(scenario())

    def test_a_file_with_too_many_rows_is_taken_so_far(
        self, store: JournalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        rows = f"{trace(0)},3\n" * 6_000
        monkeypatch.setattr("deployments.gateway.feedback.MOST_ROWS", 5_500)
        desk, _ = desk_over(store)
        with pytest.raises(BodyTooLarge, match="more than 5500 rows") as caught:
            asyncio.run(desk.give_file(f"trace_id,truth\n{rows}".encode(), "csv"))
        assert "1 were new, 4999 repeated" in caught.value.hint
        with pytest.raises(BodyTooLarge, match="more than 5500 rows"):
            asyncio.run(desk.give_file(in_parquet(trace_id=[trace(0)] * 6_000, truth=[3] * 6_000), "parquet"))

    def test_a_small_file_that_unpacks_to_more_than_there_is_memory_is_refused(self) -> None:
        long = pa.DictionaryArray.from_arrays(pa.array([0] * 5_000, pa.int32()), pa.array(["x" * (8 << 20)]))
        file = in_parquet(trace_id=[trace(0)] * 5_000, truth=long)
        assert len(file) < 1 << 20
        with pytest.raises(FeedbackRefused, match=r"cannot be read as Parquet|unpacks to too much"):
            list(read_upload(file, "parquet", 0.0, 10_000))


class TestOne:
    @pytest.mark.parametrize(
        ("document", "kind", "words"),
        [
            ({"trace_id": trace(0), "truth": 3, "user": "eve"}, NotYourRequest, "eve"),
            ({"trace_id": trace(0), "rating": 0.5, "user": "eve"}, NotYourRequest, "eve"),
            ({"trace_id": trace(0), "truth": "a"}, FeedbackRefused, "whole number"),
            ({"trace_id": trace(0), "truth": [3, 4]}, FeedbackRefused, "1 row"),
            ({"trace_id": trace(0), "truth": 3, "output": "digits"}, FeedbackRefused, "There are: digit."),
            ({"trace_id": FAILED, "truth": 3}, FeedbackRefused, "StepFailed"),
            ({"trace_id": trace(0), "truth": 3, "about_s": time.time() + 3_600}, FeedbackRefused, "in the future"),
            ({"trace_id": trace(0), "rating": float("nan")}, FeedbackRefused, "finite"),
            ({"trace_id": trace(0), "truth": "x" * 1_000_000}, FeedbackRefused, "at most 1024"),
            ({"trace_id": "x" * 1_000_000, "truth": 1}, FeedbackRefused, "32 hex digits"),
            ([], FeedbackRefused, "an object"),
            (None, FeedbackRefused, "an object"),
        ],
    )
    def test_is_refused_with_its_reason(
        self, store: JournalStore, document: Any, kind: type[FenixError], words: str
    ) -> None:
        desk, _ = desk_over(store)
        with pytest.raises(kind) as caught:
            asyncio.run(desk.give_one(document))
        assert type(caught.value) is kind
        assert words in caught.value.text()
        assert len(caught.value.text()) < 300
        assert store.figures().n_feedback == 0

    def test_counts_once(self, store: JournalStore) -> None:
        async def scenario() -> None:
            desk, _ = desk_over(store)
            said = {"trace_id": trace(0).upper(), "truth": 3, "user": "ann"}
            assert counts(await desk.give_one(said)) == (1, 0, 0, 0)
            assert counts(await desk.give_one(said)) == (0, 1, 0, 0)
            assert counts(await desk.give_one({**said, "truth": "4"})) == (0, 0, 1, 0)
            assert counts(await desk.give_one({"trace_id": trace(0), "rating": 0})) == (1, 0, 0, 0)
            (one, two) = store.joined().items
            assert {(one.feedback.kind, one.feedback.truth), (two.feedback.kind, two.feedback.rating)} == {
                ("truth", "4"),
                ("rating", 0.0),
            }

        asyncio.run(scenario())


class TestMany:
    def test_the_good_count_and_the_bad_are_told_by_their_place(self, store: JournalStore) -> None:
        documents = [
            {"trace_id": trace(0), "truth": 3},
            7,
            {"trace_id": trace(1), "truth": "one"},
            {"trace_id": MISSING, "truth": 1},
            {"trace_id": trace(2), "rating": 2},
            {"trace_id": trace(3), "truth": 1},
        ]
        given = asyncio.run(desk_over(store)[0].give_documents(documents))
        assert counts(given) == (2, 0, 0, 4)
        told = [(refusal.position, refusal.trace_id, type(refusal.error).__name__) for refusal in given.refused]
        assert told == [
            (1, "", "FeedbackRefused"),
            (2, trace(1), "FeedbackRefused"),
            (3, MISSING, "RequestNotFound"),
            (4, trace(2), "FeedbackRefused"),
        ]

    def test_ten_thousand_go_to_the_ledger_in_pieces(self, store: JournalStore) -> None:
        store.append(LATER, [chunk(0, [1] * MOST_DOCUMENTS, run=LATER)])
        desk, books = desk_over(store)
        many = [{"trace_id": trace(k, LATER), "truth": k % 2} for k in range(MOST_DOCUMENTS)]
        assert counts(asyncio.run(desk.give_documents(many))) == (MOST_DOCUMENTS, 0, 0, 0)
        assert books.n_items == [PIECE_ITEMS] * 2
        assert store.figures().n_feedback == MOST_DOCUMENTS

    def test_of_very_many_refusals_the_first_hundred_are_told(self, store: JournalStore) -> None:
        given = asyncio.run(desk_over(store)[0].give_documents([None] * 5_000 + [{"trace_id": trace(0), "truth": 3}]))
        assert counts(given) == (1, 0, 0, 5_000)
        assert [refusal.position for refusal in given.refused] == list(range(100))

    def test_files_are_taken_row_by_row(self, store: JournalStore) -> None:
        async def scenario() -> None:
            desk, _ = desk_over(store)
            rows = [f"{trace(0)},3,,", f"{trace(1)},,0.5,eve", f"{trace(2)},nine,,", f"{MISSING},1,,", "", trace(3)]
            given = await desk.give_file("\n".join(["trace_id,truth,rating,user", *rows]).encode(), "csv")
            assert counts(given) == (1, 0, 0, 5)
            kinds = [(refusal.position, type(refusal.error).__name__) for refusal in given.refused]
            assert kinds == [
                (1, "NotYourRequest"),
                (2, "FeedbackRefused"),
                (3, "RequestNotFound"),
                (4, "FeedbackRefused"),
                (5, "FeedbackRefused"),
            ]
            table = in_parquet(trace_id=[trace(0), trace(4), trace(5)], truth=[3, 5, 8])
            assert counts(await desk.give_file(table, "parquet")) == (2, 1, 0, 0)
            assert counts(await desk.give_file(b"trace_id,truth\n", "csv")) == (0, 0, 0, 0)

        asyncio.run(scenario())

    def test_a_file_that_breaks_says_what_was_taken_before(self, store: JournalStore) -> None:
        body = b"trace_id,truth\n" + f"{trace(0)},3\n".encode() * 5_000 + b'"' + b"x" * 10
        with pytest.raises(FeedbackRefused, match="not CSV") as caught:
            asyncio.run(desk_over(store)[0].give_file(body, "csv"))
        assert "Of 5000 rows before that 1 were new, 4999 repeated, 0 changed and 0 refused." in caught.value.hint

    @pytest.mark.parametrize(
        ("body", "format", "words"),
        [
            (b"", "csv", "no column trace_id"),
            (b"\xff\xfe", "csv", "not CSV"),
            (b"truth\n1\n", "csv", "no column trace_id"),
            (b"trace_id,trut\n", "csv", "unknown column 'trut'"),
            (b"trace_id,truth\n" + b"7" * 200_000, "csv", "not CSV"),
            (b"", "parquet", "not Parquet"),
            (b"PAR1", "parquet", "not Parquet"),
            (b"trace_id,truth\n", "parquet", "not Parquet"),
            (in_parquet(trace=[1]), "parquet", "unknown column 'trace'"),
        ],
    )
    def test_what_is_no_such_file_is_refused(self, store: JournalStore, body: bytes, format: Any, words: str) -> None:
        with pytest.raises(FeedbackRefused) as caught:
            asyncio.run(desk_over(store)[0].give_file(body, format))
        assert words in caught.value.text()

    def test_damaged_parquet_is_refused_and_nothing_else(self) -> None:
        whole = in_parquet(trace_id=[trace(k) for k in range(50)], truth=list(range(50)))
        rng = random.Random(7)
        n_refused = 0
        for _ in range(12):
            body = bytearray(whole[: rng.randrange(len(whole))] if rng.random() < 0.3 else whole)
            for _ in range(rng.randrange(1, 6)):
                body[rng.randrange(len(body))] = rng.randrange(256) if body else 0
            try:
                list(read_upload(bytes(body), "parquet", 0.0, 100))
            except (FeedbackRefused, BodyTooLarge) as error:
                n_refused += len(error.text()) < 500
        assert n_refused > 6

    def test_a_file_that_ends_the_process_that_reads_it_is_refused(
        self, store: JournalStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("deployments.gateway.uploads.sys.executable", "/bin/false")
        with pytest.raises(FeedbackRefused, match="unpacks to too much"):
            asyncio.run(desk_over(store)[0].give_file(in_parquet(trace_id=[trace(0)], truth=[3]), "parquet"))

    def test_who_leaves_while_a_file_is_read_leaves_no_reader_behind(self, store: JournalStore) -> None:
        async def scenario() -> None:
            came = asyncio.Event()

            class HangingBooks(Books):
                async def feedback(self, items: Any, source: str = "") -> Given:
                    came.set()
                    await asyncio.Event().wait()
                    raise AssertionError

            file = in_parquet(trace_id=[trace(0)] * 60_000, truth=[3] * 60_000)
            desk = FeedbackDesk(HangingBooks(store), lambda _: asyncio.sleep(0, True), Pauses())
            giving = asyncio.create_task(desk.give_file(file, "parquet"))
            await came.wait()
            assert readers()
            giving.cancel()
            await asyncio.gather(giving, return_exceptions=True)
            assert readers() == []

        def readers() -> list[psutil.Process]:
            alive = [child for child in psutil.Process().children() if child.status() != psutil.STATUS_ZOMBIE]
            return [child for child in alive if "deployments.gateway.uploads" in child.cmdline()]

        asyncio.run(scenario())

    def test_a_ledger_that_fails_on_the_way_says_so_and_what_was_taken(self, store: JournalStore) -> None:
        class FailingBooks(Books):
            async def feedback(self, items: Any, source: str = "") -> Given:
                if self.n_items:
                    raise StoreUnavailable("the database is away.", hint="Try again.")
                return await super().feedback(items, source)

        desk = FeedbackDesk(FailingBooks(store), lambda _: asyncio.sleep(0, True), Pauses())
        body = b"trace_id,truth\n" + f"{trace(0)},3\n".encode() * 6_000
        with pytest.raises(StoreUnavailable, match="away") as caught:
            asyncio.run(desk.give_file(body, "csv"))
        taken = "1 were new, 4999 repeated, 0 changed and 0 refused"
        assert caught.value.hint == f"Of 5000 rows before that {taken}. Try again."
