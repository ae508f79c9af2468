"""A journal on SQLite with a desk before it, for the tests of feedback."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from deployments.gateway.feedback import FeedbackDesk, Flush
from lineage.database import open_database
from lineage.feedback import Feedback
from lineage.journal import Given, JournalStore
from lineage.outcomes import Outcome, Setting
from tests.lineage.outcomes import RUN, chunk, trace

LABELS = [3, 1, 4, 1, 5, 9]
MISSING = trace(1 << 40)
FAILED = trace(6)


class Books:
    """The ledger's methods over a store, in this process; `n_items` are those of each call."""

    def __init__(self, store: JournalStore) -> None:
        self.store = store
        self.n_items: list[int] = []

    async def find(self, trace_id: str) -> Outcome | None:
        await asyncio.sleep(0)
        return self.store.find(trace_id)

    async def feedback(self, items: Sequence[Feedback], source: str = "") -> Given:
        self.n_items.append(len(items))
        await asyncio.sleep(0)
        return self.store.give(items, time.time(), source)


class Pauses:
    """Sleeps that take no time, and what happens during them: the n-th calls `then[n]`."""

    def __init__(self, *then: Callable[[], object]) -> None:
        self.then = then
        self.slept_s: list[float] = []

    async def __call__(self, seconds: float) -> None:
        await asyncio.sleep(0)
        self.slept_s.append(seconds)
        if len(self.slept_s) <= len(self.then):
            self.then[len(self.slept_s) - 1]()


async def nothing_to_flush(timeout_s: float) -> bool:
    return True


@contextmanager
def journal() -> Iterator[JournalStore]:
    """A store with six digits of user ann, `LABELS`, and a seventh request that failed."""
    with TemporaryDirectory(prefix="journal-", ignore_cleanup_errors=True) as folder:
        store = JournalStore(open_database(f"sqlite:///{Path(folder)}/journal.db"))
        failed = Setting("digits", user="ann", error="StepFailed")
        store.append(RUN, [chunk(0, LABELS), chunk(6, [0], setting=failed)])
        try:
            yield store
        finally:
            store.close()


def desk_over(
    store: JournalStore, sleep: Callable[[float], Awaitable[None]] | None = None, flush: Flush = nothing_to_flush
) -> tuple[FeedbackDesk, Books]:
    """A desk whose pauses take no time, and the books behind it."""
    books = Books(store)
    return FeedbackDesk(books, flush, sleep or Pauses()), books
