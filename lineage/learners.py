"""Learners: what follows the journal and makes something of it. Each keeps its state and its place in the database.

A learner reads every chunk of outcomes once, in the order in which they were committed, and every piece of feedback in
the order of its writing; its state and both places are written in one transaction, so that after a kill it goes on
where its last state was, and nothing counts twice.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from lineage.chunks import Chunk
from lineage.errors import FenixError
from lineage.journal import ChunkPage, Joined, JournalStore, Page, Place

SAVE_S = 5.0
PAUSE_S = 0.2  # between two looks for news, however much is written
RETRY_S = 5.0  # after the database refused

T = TypeVar("T")
_log = logging.getLogger("fenix.learners")


class Learner(Protocol):
    """Learns from what became of requests. Called by one thread at a time."""

    name: str  # unique; its state is kept under it

    def hear(self, chunk: Chunk) -> None:
        """Requests that ended, a few thousand at a time. Must not raise for anything that a chunk may hold."""

    def told(self, joined: Sequence[Joined]) -> None:
        """Truths and ratings that were given, with the outcomes that they are about. What was changed comes as a piece
        of its own, whose `before` has been told earlier and is to be taken back. Must not raise either."""

    def state(self) -> bytes:
        """All that it knows, of bounded size; not a pickle."""

    def restore(self, state: bytes) -> None:
        """Knows again what it knew. Raises ValueError, with nothing changed, for anything that `state` did not
        write."""

    def answer(self, question: str, *arguments: Any) -> Any:
        """What others ask of it, from other processes. Raises FenixError."""


class Follower:
    """Reads the journal to its learners, on a thread of its own that sleeps until it is woken.

    A learner that was never saved hears all that is kept. One that raises misses the chunk or the page that it raised
    for, and goes on; one whose state cannot be read starts anew. Both leave a word in the log.
    """

    def __init__(
        self,
        store: JournalStore,
        learners: Sequence[Learner],
        clock: Callable[[], float] = time.time,
        *,
        save_s: float = SAVE_S,
        pause_s: float = PAUSE_S,
        retry_s: float = RETRY_S,
    ) -> None:
        """Saves what changed at most every `save_s`. `clock` is since 1970. Raises StoreUnavailable when the database
        does not tell where the learners were, ValueError when two have the same name."""
        self._store = store
        self._clock = clock
        self._save_s, self._pause_s, self._retry_s = save_s, pause_s, retry_s
        self._followed = {learner.name: _Followed(learner, clock()) for learner in learners}
        if len(self._followed) != len(learners):
            raise ValueError("two learners have the same name")
        self._news, self._closing = threading.Event(), threading.Event()
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        for one in self._followed.values():
            one.restore(store.place(one.learner.name))

    @property
    def names(self) -> tuple[str, ...]:
        """Those of the learners."""
        return tuple(self._followed)

    def wake(self) -> None:
        """Something was written, or may have been. Starts the thread where it does not run: the first time, and when
        it has died. Takes some microseconds."""
        self._news.set()
        thread = self._thread
        if not self._followed or (thread is not None and thread.is_alive()) or self._closing.is_set():
            return
        with self._starting:
            if self._thread is thread:
                if thread is not None:
                    _log.error("the thread that reads the journal to the learners had died; it starts anew")
                self._thread = threading.Thread(target=self._run, name="learners", daemon=True)
                self._thread.start()

    def answer(self, name: str, question: str, arguments: Sequence[Any]) -> Any:
        """What a learner answers; it hears nothing meanwhile. Raises KeyError where there is none of this name, and
        what the learner raises."""
        one = self._followed[name]
        with one.lock:
            return one.learner.answer(question, *arguments)

    def step(self) -> bool:
        """Reads each learner its next page of chunks and of feedback; returns whether there may be more. Raises
        StoreUnavailable; what was read to some learners by then stays read."""
        chunks: dict[int, ChunkPage] = {}  # learners are mostly at the same place
        told: dict[int, Page] = {}
        more = False
        for one in self._followed.values():
            at = one.chunk_number
            heard = chunks[at] = chunks.get(at) or self._store.chunks_after(at)
            more = one.hear(heard) or more
        for one in self._followed.values():
            at = one.feedback_number
            said = told[at] = told.get(at) or self._store.feedback_after(at)
            more = one.told(said) or more
        return more

    def save(self, every_s: float = 0.0) -> None:
        """Writes the states and places of learners that heard something since, and were not saved within `every_s`.
        Raises StoreUnavailable."""
        now_s = self._clock()
        for one in self._followed.values():
            if one.changed and not now_s - every_s < one.saved_s <= now_s:
                one.saved_s = now_s  # or tried
                place = one.place(now_s)
                if place is not None:
                    self._store.save_place(one.learner.name, place)
                    one.changed = False

    def close(self) -> None:
        """Ends the thread, once what it does is done, and saves."""
        self._closing.set()
        self._news.set()
        if self._thread is not None:
            self._thread.join()
        try:
            self.save()
        except FenixError as error:
            _log.warning("learners will hear again what was not saved: %s", error.message)

    def _run(self) -> None:
        well = True
        while not self._closing.is_set():
            try:
                self._news.clear()
                while self.step() and not self._closing.is_set():
                    self.save(self._save_s)
                self.save(self._save_s)
                well = True
            except FenixError as error:
                if well:
                    _log.warning("learners wait for the journal: %s", error.message)
                well = False
            self._closing.wait(self._pause_s if well else self._retry_s)
            if well:
                unsaved = any(one.changed for one in self._followed.values())
                self._news.wait(self._save_s if unsaved else None)


class _Followed:
    """A learner and how far it has heard. Its places are of the thread that reads; the lock is the learner's."""

    def __init__(self, learner: Learner, now_s: float) -> None:
        self.learner = learner
        self.lock = threading.Lock()
        self.chunk_number = self.feedback_number = 0
        self.saved_s = now_s
        self.changed = False

    def restore(self, place: Place | None) -> None:
        if place is None:
            return
        try:
            self.learner.restore(place.state)
        except Exception as error:
            _log.error("learner %s starts anew, its state cannot be read: %s", self.learner.name, error)
            return
        self.chunk_number, self.feedback_number = place.chunk_number, place.feedback_number

    def hear(self, page: ChunkPage) -> bool:
        """Whether there may be more after this page."""
        for chunk in page.chunks:
            self._try(partial(self.learner.hear, chunk), f"chunk {chunk.head.first_seq} of run {chunk.head.run}")
        is_news = page.next_number > self.chunk_number
        self.chunk_number = page.next_number
        self.changed = self.changed or is_news
        return is_news

    def told(self, page: Page) -> bool:
        """Whether there may be more after this page."""
        if page.items:
            what = f"feedback {self.feedback_number + 1} to {page.next_id}"
            self._try(partial(self.learner.told, page.items), what)
        is_news = page.next_id > self.feedback_number
        self.feedback_number = page.next_id
        self.changed = self.changed or is_news
        return is_news

    def place(self, now_s: float) -> Place | None:
        """What is to be saved; None when the learner cannot tell its state."""
        state = self._try(self.learner.state, "its state")
        return None if state is None else Place(state, self.chunk_number, self.feedback_number, now_s)

    def _try(self, function: Callable[[], T], what: str) -> T | None:
        """Runs a method of the learner. It ought not to raise; when it does, the others must not suffer."""
        try:
            with self.lock:
                return function()
        except Exception:
            _log.exception("learner %s raised for %s", self.learner.name, what)
            return None
