"""Learners and what reads the journal to them, against SQLite. Threads are waited for, never slept for."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import update

from lineage.chunks import Chunk
from lineage.database import open_database
from lineage.errors import StoreUnavailable
from lineage.feedback import Feedback
from lineage.journal import _CHUNKS, PAGE_CHUNKS, ChunkPage, JournalStore, Place
from lineage.learners import Follower
from tests.clocks import Clock
from tests.lineage.learners import Tally
from tests.lineage.outcomes import RUN, chunk, trace

NOW_S = 5_000.0


def all_of(follower: Follower) -> None:
    while follower.step():
        pass


def given(seq: int, label: int) -> Feedback:
    return Feedback(trace(seq), truth=label)


@pytest.fixture
def store(database_url: str) -> Iterator[JournalStore]:
    opened = JournalStore(open_database(database_url))
    yield opened
    opened.close()


def test_chunks_come_page_by_page_in_the_order_of_their_commits(store: JournalStore) -> None:
    for seq in (5, 3, 9, 1):
        store.append(RUN, [chunk(seq, [0])])
    store.append(RUN, [chunk(3, [0])])
    assert [one.head.first_seq for one in store.chunks_after(0).chunks] == [5, 3, 9, 1]
    first = store.chunks_after(0, 2)
    assert [one.head.first_seq for one in first.chunks] == [5, 3]
    rest = store.chunks_after(first.next_number, 2)
    assert [one.head.first_seq for one in rest.chunks] == [9, 1]
    assert store.chunks_after(rest.next_number).next_number == rest.next_number
    assert store.chunks_after(rest.next_number).chunks == ()
    store.append(RUN, [chunk(7, [0])])
    assert [one.head.first_seq for one in store.chunks_after(rest.next_number).chunks] == [7]


def test_damaged_and_forgotten_chunks_are_passed_over(
    tmp_path: Path, store: JournalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(RUN, [chunk(seq, [0], at_s=float(seq)) for seq in range(5)])
    with store._engine.begin() as connection:
        connection.execute(update(_CHUNKS).where(_CHUNKS.c.first_seq == 2).values(body=b"damaged"))
    store.forget(1.0)
    page = store.chunks_after(0)
    assert [one.head.first_seq for one in page.chunks] == [1, 3, 4]
    assert "chunk 2" in caplog.text
    assert store.chunks_after(page.next_number).chunks == ()


def test_feedback_that_was_changed_comes_with_what_it_replaces_wherever_a_reader_is(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [1, 2])])
    store.give([given(0, 1), given(1, 1)], NOW_S)
    place = store.feedback_after(0).next_id
    store.give([given(0, 2), given(0, 3)], NOW_S)
    store.give([given(0, 4)], NOW_S)

    def said(number: int, limit: int = 100) -> list[tuple[str, object, object]]:
        found, page = [], store.feedback_after(number, limit)
        while page.next_id > number:
            found += [
                (one.feedback.trace_id, one.feedback.truth, one.before and one.before.truth) for one in page.items
            ]
            number = page.next_id
            page = store.feedback_after(number, limit)
        return found

    everything = [(trace(0), 1, None), (trace(1), 1, None), (trace(0), 3, 1), (trace(0), 4, 3)]
    assert said(0) == said(0, limit=1) == everything
    assert said(place) == everything[2:]
    assert [one.feedback.truth for one in store.joined().items] == [1, 4]
    assert store.figures().n_feedback == 2
    store.forget(NOW_S + 1.0)
    assert said(0) == []


def test_a_place_is_saved_whole_and_found_again(store: JournalStore) -> None:
    assert store.place("tally") is None
    for place in (Place(b"one", 1, 2, 3.0), Place(b"two", 4, 5, 6.0)):
        store.save_place("tally", place)
        assert store.place("tally") == place
    assert store.place("other") is None


def test_a_learner_hears_everything_once_however_long_the_journal_is(store: JournalStore) -> None:
    n = 3 * PAGE_CHUNKS + 1
    store.append(RUN, [chunk(seq, [0]) for seq in range(n)])
    store.give([given(seq, 0) for seq in range(n)], NOW_S)
    learner = Tally()
    follower = Follower(store, [learner])
    all_of(follower)
    all_of(follower)
    assert learner.heard == Counter(range(n))
    assert len(learner.right) == n
    follower.close()


def test_after_a_kill_between_hearing_and_saving_nothing_counts_twice_and_nothing_is_lost(store: JournalStore) -> None:
    store.append(RUN, [chunk(seq, [0]) for seq in range(4)])
    store.give([given(0, 0)], NOW_S)
    first = Follower(store, [Tally()])
    all_of(first)
    first.save()
    store.append(RUN, [chunk(seq, [0]) for seq in range(4, 8)])
    store.give([given(0, 1), given(1, 0)], NOW_S)
    all_of(first)  # and is killed before it saves
    learner = Tally()
    second = Follower(store, [learner])
    all_of(second)
    assert learner.heard == Counter(range(8))
    assert learner.right == {f"{trace(0)} 1": 1, f"{trace(1)} 0": 1}
    second.close()


_FOLLOW = """
import sys
from lineage.database import open_database
from lineage.journal import JournalStore
from lineage.learners import Follower
from tests.lineage.outcomes import RUN, chunk
from tests.lineage.learners import Tally
from tests.lineage.test_learners import given
store = JournalStore(open_database(sys.argv[1]))
follower = Follower(store, [Tally()], save_s=0.0, pause_s=0.0)
for seq in range(10_000):
    store.append(RUN, [chunk(seq, [0])])
    store.give([given(seq, 0)], 1.0)
    follower.wake()
    print("saved" if store.place("tally") else "not yet", flush=True)
"""


def test_a_process_killed_while_its_learners_hear_and_save_leaves_a_state_that_fits_its_place(
    database_url: str,
) -> None:
    with subprocess.Popen([sys.executable, "-c", _FOLLOW, database_url], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        n_lines, line = 0, ""
        while n_lines < 40 or "saved" not in line:  # how soon its thread gets to save is the machine's business
            line = process.stdout.readline()
            assert line
            n_lines += 1
        process.send_signal(signal.SIGKILL)
    store = JournalStore(open_database(database_url))
    place = store.place("tally")
    assert place is not None
    assert len(json.loads(place.state)[0]) > 0
    learner = Tally()
    follower = Follower(store, [learner])
    all_of(follower)
    assert learner.heard == Counter(range(store.figures().n_requests))
    assert len(learner.right) == store.figures().n_feedback >= 39
    follower.close()
    store.close()


def test_learners_at_different_places_each_hear_what_is_new_to_them(store: JournalStore) -> None:
    store.append(RUN, [chunk(0, [0])])
    store.give([given(0, 0)], NOW_S)
    early = Follower(store, [Tally("early")])
    all_of(early)
    early.close()
    store.append(RUN, [chunk(1, [0])])
    store.give([given(1, 0)], NOW_S)
    learners = [Tally("early"), Tally("late")]
    follower = Follower(store, learners)
    all_of(follower)
    assert [learner.heard for learner in learners] == [Counter(range(2))] * 2
    assert learners[0].right == learners[1].right
    follower.close()


def test_a_learner_that_raises_misses_that_alone_and_the_others_nothing(
    store: JournalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(RUN, [chunk(seq, [0]) for seq in range(4)])
    broken, sound = Tally("broken", lambda found: found.head.first_seq == 1), Tally("sound")
    follower = Follower(store, [broken, sound])
    all_of(follower)
    assert broken.heard == Counter([0, 2, 3])
    assert sound.heard == Counter(range(4))
    assert "learner broken raised for chunk 1" in caplog.text
    follower.close()


def test_a_learner_whose_state_cannot_be_told_is_not_saved_and_the_others_are(store: JournalStore) -> None:
    class Speechless(Tally):
        def state(self) -> bytes:
            raise RuntimeError

    store.append(RUN, [chunk(0, [0])])
    follower = Follower(store, [Speechless("speechless"), Tally("sound")])
    all_of(follower)
    follower.close()
    assert store.place("speechless") is None
    assert store.place("sound") is not None


def test_a_learner_whose_state_cannot_be_read_starts_anew(
    store: JournalStore, caplog: pytest.LogCaptureFixture
) -> None:
    store.append(RUN, [chunk(seq, [0]) for seq in range(3)])
    store.save_place("tally", Place(b"nonsense", 2, 0, NOW_S))
    learner = Tally()
    follower = Follower(store, [learner])
    all_of(follower)
    follower.close()
    assert learner.heard == Counter(range(3))
    assert "starts anew" in caplog.text


def test_states_are_saved_once_in_a_while_and_only_when_something_was_heard(store: JournalStore) -> None:
    clock = Clock()
    follower = Follower(store, [Tally()], clock)
    store.append(RUN, [chunk(0, [0])])
    all_of(follower)
    clock.now_s += 4.0
    follower.save(5.0)
    assert store.place("tally") is None
    clock.now_s += 2.0
    follower.save(5.0)
    saved = store.place("tally")
    assert saved is not None
    assert saved.saved_s == clock.now_s
    clock.now_s += 100.0
    follower.save(5.0)
    assert store.place("tally") == saved
    follower.close()
    assert store.place("tally") == saved


class Waited(Tally):
    """Sets an event when it has heard of so many requests."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.enough = n, threading.Event()

    def hear(self, chunk: Chunk) -> None:
        super().hear(chunk)
        if len(self.heard) >= self.n:
            self.enough.set()


def test_the_thread_hears_what_is_written_when_it_is_woken_and_saves_at_the_close(store: JournalStore) -> None:
    learner = Waited(2)
    follower = Follower(store, [learner], pause_s=0.0)
    follower.wake()
    for seq in range(2):
        store.append(RUN, [chunk(seq, [0])])
        follower.wake()
    assert learner.enough.wait(20.0)
    follower.close()
    saved = store.place("tally")
    assert saved is not None
    assert saved.chunk_number == 2


def test_a_database_that_is_away_is_waited_for(store: JournalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    learner = Waited(1)
    follower = Follower(store, [learner], pause_s=0.0, retry_s=0.001)
    read, n_refused = store.chunks_after, 3

    def chunks_after(number: int, limit: int = PAGE_CHUNKS) -> ChunkPage:
        nonlocal n_refused
        if n_refused:
            n_refused -= 1
            raise StoreUnavailable("away")
        return read(number, limit)

    monkeypatch.setattr(store, "chunks_after", chunks_after)
    store.append(RUN, [chunk(0, [0])])
    follower.wake()
    assert learner.enough.wait(20.0)
    follower.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_thread_that_died_is_started_anew(store: JournalStore, caplog: pytest.LogCaptureFixture) -> None:
    class Deadly(Waited):
        dead = False

        def hear(self, chunk: Chunk) -> None:
            if not self.dead:
                self.dead = True
                raise SystemExit
            super().hear(chunk)

    learner = Deadly(1)
    follower = Follower(store, [learner], pause_s=0.0)
    store.append(RUN, [chunk(0, [0])])
    follower.wake()
    assert follower._thread is not None
    follower._thread.join(20.0)
    follower.wake()
    assert learner.enough.wait(20.0)
    assert "had died" in caplog.text
    follower.close()


def test_an_answer_never_comes_out_of_the_middle_of_what_is_being_heard(store: JournalStore) -> None:
    hearing, go_on = threading.Event(), threading.Event()

    class Slow(Tally):
        def hear(self, chunk: Chunk) -> None:
            self.heard[0] += 1
            hearing.set()
            go_on.wait(20.0)
            self.heard[0] += 1

    follower = Follower(store, [Slow()], pause_s=0.0)
    store.append(RUN, [chunk(0, [0])])
    follower.wake()
    assert hearing.wait(20.0)
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(follower.answer("tally", "heard", (0,))))
    asking.start()
    assert answers == []
    go_on.set()
    asking.join(20.0)
    assert answers == [2]
    follower.close()


def test_two_learners_of_one_name_are_refused(store: JournalStore) -> None:
    with pytest.raises(ValueError, match="same name"):
        Follower(store, [Tally(), Tally()])
