"""The ledger: the actor that keeps the journal. Gateways bring it their outcomes, clients their feedback, and learners
follow it here, on a thread of their own (`lineage/learners.py`).

It holds nothing that is not in the database, so it may die at any time: gateways keep what they could not bring, and
learners hear again what they heard since they were last saved.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from deployments.actors import ActorHandle, start_actor
from lineage.chunks import head_of
from lineage.columns import BrokenChunk
from lineage.database import open_database
from lineage.feedback import Feedback
from lineage.journal import Given, JournalFigures, JournalStore, Page
from lineage.learners import Follower, Learner
from lineage.outcomes import Outcome
from lineage.quality.learner import QualityLearner
from planner.choice.learner import ChoiceLearner
from planner.choice.rule_store import RuleStore, StoredRule
from planner.errors import BodyTooLarge, FenixError, NotFound, Overloaded, StoreUnavailable

ACTOR_NAME = "fenix-ledger"
MOST_ITEMS = 50_000  # of feedback in one call
MOST_JOINED = 10_000
MOST_WAITING = 256  # calls
SWEEP_S = 3_600.0
T = TypeVar("T")
_log = logging.getLogger("fenix.ledger")


class Ledger:
    """A journal on an event loop, without Ray: SQL blocks threads of its own, and each call is bounded in time.

    Every method raises StoreUnavailable when the database fails or does not answer in time (doing it again is safe),
    and Overloaded when too many calls wait already.
    """

    def __init__(
        self,
        store: JournalStore,
        keep_s: float | None = None,
        clock: Callable[[], float] = time.time,
        *,
        timeout_s: float = 20.0,
        learners: Sequence[Learner] = (),
    ) -> None:
        """Outcomes and feedback are forgotten after `keep_s`, None: never. `clock` is since 1970. Asks the database
        where the learners were, so not on an event loop; raises StoreUnavailable."""
        self._store = store
        self._rules = RuleStore(store.engine)
        self._keep_s = keep_s
        self._clock = clock
        self._timeout_s = timeout_s
        # Outcomes do not wait behind feedback in bulk, nor those who ask behind either, nor anybody behind a learner.
        self._appending = ThreadPoolExecutor(1, "ledger-append")
        self._taking = ThreadPoolExecutor(1, "ledger-feedback")
        self._asking = ThreadPoolExecutor(2, "ledger-ask")
        self._learned = ThreadPoolExecutor(2, "ledger-learned")
        self._sweeping = ThreadPoolExecutor(1, "ledger-sweep")
        self._waiting = 0
        self._follower = Follower(store, learners, clock)
        self._follower.wake()  # there may be news that they did not hear before they ended

    async def append(self, run: str, chunks: Sequence[bytes]) -> None:
        """Takes encoded chunks of a gateway's run; when this returns they are durable. Those that are damaged are left
        out, with a word in the log: they would not become whole by being sent again."""
        await self._on(self._appending, self._append, run, list(chunks))

    async def find(self, trace_id: str) -> Outcome | None:
        """What became of a request; None when the journal does not know it."""
        return await self._on(self._asking, self._store.find, trace_id)

    async def feedback(self, items: Sequence[Feedback], source: str = "") -> Given:
        """See `JournalStore.give`. Raises BodyTooLarge for more than `MOST_ITEMS`."""
        if len(items) > MOST_ITEMS:
            raise BodyTooLarge(f"{len(items)} pieces of feedback at once.", hint=f"Give at most {MOST_ITEMS}.")
        return await self._on(self._taking, self._give, items, source)

    async def joined(self, since_id: int = 0, limit: int = 1_000, since_s: float | None = None) -> Page:
        """See `JournalStore.joined`. At most `MOST_JOINED` at once, whatever the limit."""
        return await self._on(self._asking, self._store.joined, since_id, min(limit, MOST_JOINED), since_s)

    async def figures(self) -> JournalFigures:
        """See `JournalStore.figures`."""
        return await self._on(self._asking, self._store.figures)

    async def learned(self, name: str, question: str, *arguments: Any) -> Any:
        """What a learner answers. Raises NotFound for an unknown learner, and what the learner raises."""
        return await self._on(self._learned, self._answer, name, question, arguments)

    async def rules(self) -> tuple[StoredRule, ...]:
        """The rules of choosing that are in force."""
        return await self._on(self._asking, self._rules.rules)

    async def add_rule(self, text: str) -> StoredRule:
        """Takes a rule; when this returns it is durable. See `RuleStore.add`."""
        return await self._on(self._taking, self._rules.add, text, self._clock())

    async def remove_rule(self, text: str) -> None:
        """Takes a rule back. See `RuleStore.remove`."""
        await self._on(self._taking, self._rules.remove, text)

    async def sweep(self) -> tuple[int, int]:
        """Forgets what is old; returns how many chunks and how much feedback. Not bounded in time."""
        if self._keep_s is None:
            return 0, 0
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._sweeping, self._store.forget, self._clock() - self._keep_s)

    async def tend(self, pause_s: float = SWEEP_S) -> None:
        """Sweeps once in `pause_s`, for ever."""
        while True:
            try:
                n_chunks, n_feedback = await self.sweep()
                if n_chunks or n_feedback:
                    _log.info("forgot %d chunks and %d pieces of feedback", n_chunks, n_feedback)
            except FenixError as error:
                _log.warning("could not forget what is old: %s", error.message)
            await asyncio.sleep(pause_s)

    def close(self) -> None:
        """Ends the threads, once what they do is done, saves the learners and closes the store."""
        for pool in (self._appending, self._taking, self._asking, self._learned, self._sweeping):
            pool.shutdown(cancel_futures=True)
        self._follower.close()
        self._store.close()

    def _append(self, run: str, chunks: list[bytes]) -> None:
        try:
            self._store.append(run, chunks)
        except BrokenChunk:
            whole = [chunk for chunk in chunks if _is_of(run, chunk)]
            _log.error("%d chunks of run %s are damaged and were left out", len(chunks) - len(whole), run)
            self._store.append(run, whole)
        self._follower.wake()

    def _give(self, items: Sequence[Feedback], source: str) -> Given:
        try:
            return self._store.give(items, self._clock(), source)
        finally:
            self._follower.wake()

    def _answer(self, name: str, question: str, arguments: tuple[Any, ...]) -> Any:
        if name not in self._follower.names:
            known = f"There are: {', '.join(sorted(self._follower.names))}." if self._follower.names else ""
            raise NotFound(f"nothing named {name[:40]!r} learns from the journal.", hint=known)
        return self._follower.answer(name, question, arguments)

    async def _on(self, pool: ThreadPoolExecutor, function: Callable[..., T], *arguments: Any) -> T:
        if self._waiting >= MOST_WAITING:
            raise Overloaded(f"{self._waiting} calls wait for the journal.", hint="Come back later.")
        loop = asyncio.get_running_loop()
        future = pool.submit(function, *arguments)
        self._waiting += 1  # until it has really ended: a thread cannot be called back
        future.add_done_callback(lambda _: _tell(loop, self._ended))
        try:
            async with asyncio.timeout(self._timeout_s):
                return await asyncio.wrap_future(future)
        except TimeoutError:
            raise StoreUnavailable(
                f"the journal did not answer within {self._timeout_s:g} s.",
                hint="It may have been written all the same; doing it again is safe.",
            ) from None

    def _ended(self) -> None:
        self._waiting -= 1


def _tell(loop: asyncio.AbstractEventLoop, ended: Callable[[], None]) -> None:
    with suppress(RuntimeError):  # the loop has ended before the thread
        loop.call_soon_threadsafe(ended)


def _is_of(run: str, chunk: bytes) -> bool:
    try:
        return head_of(chunk).run == run
    except BrokenChunk:
        return False


class LedgerActor:
    """`Ledger` as a detached Ray actor over the SQL database."""

    def __init__(self, database_url: str, keep_s: float | None = None) -> None:
        _log.addHandler(logging.StreamHandler())  # in an actor nobody else sets logging up
        self._open = partial(_opened, database_url, keep_s)
        self._opening = asyncio.Lock()
        self._ledger: Ledger | None = None
        self._tending: asyncio.Task[None] | None = None

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Runs one method of Ledger. A FenixError is returned, not raised, so that it keeps its type."""
        if method not in _METHODS:
            raise ValueError(method)
        try:
            async with self._opening:
                if self._ledger is None:
                    self._ledger = await asyncio.to_thread(self._open)
            if self._tending is None or self._tending.done():
                self._tending = asyncio.get_running_loop().create_task(
                    self._ledger.tend(), name="ledger-tend", context=contextvars.Context()
                )
            return await getattr(self._ledger, method)(*arguments)
        except FenixError as error:
            return error.with_traceback(None)
        except Exception as error:
            _log.exception("the ledger could not %s", method)
            return StoreUnavailable(f"the journal failed ({type(error).__name__}: {error}).", hint="Do it again.")


_METHODS = frozenset({"append", "find", "feedback", "joined", "figures", "learned", "rules", "add_rule", "remove_rule"})


def _opened(database_url: str, keep_s: float | None) -> Ledger:
    return Ledger(JournalStore(open_database(database_url)), keep_s, learners=_learners())


def _learners() -> list[Learner]:
    """All that learn from the journal."""
    return [QualityLearner(), ChoiceLearner()]


def start_ledger(database_url: str, keep_s: float | None = None) -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    start_actor(LedgerActor, ACTOR_NAME, database_url, keep_s)


class LedgerClient:
    """The ledger as seen from another process. Every method is tried once, and raises ClusterDown when the ledger does
    not answer in time; trying again is safe."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, "the ledger")

    async def append(self, run: str, chunks: Sequence[bytes]) -> None:
        """See `Ledger.append`. What a `Recorder` writes with."""
        await self._call("append", run, list(chunks))

    async def find(self, trace_id: str) -> Outcome | None:
        """See `Ledger.find`."""
        outcome: Outcome | None = await self._call("find", trace_id)
        return outcome

    async def feedback(self, items: Sequence[Feedback], source: str = "") -> Given:
        """See `Ledger.feedback`."""
        given: Given = await self._call("feedback", list(items), source)
        return given

    async def joined(self, since_id: int = 0, limit: int = 1_000, since_s: float | None = None) -> Page:
        """See `Ledger.joined`."""
        page: Page = await self._call("joined", since_id, limit, since_s)
        return page

    async def figures(self) -> JournalFigures:
        """See `Ledger.figures`."""
        figures: JournalFigures = await self._call("figures")
        return figures

    async def learned(self, name: str, question: str, *arguments: Any) -> Any:
        """See `Ledger.learned`."""
        return await self._call("learned", name, question, *arguments)

    async def rules(self) -> tuple[StoredRule, ...]:
        """See `Ledger.rules`."""
        rules: tuple[StoredRule, ...] = await self._call("rules")
        return rules

    async def add_rule(self, text: str) -> StoredRule:
        """See `Ledger.add_rule`."""
        rule: StoredRule = await self._call("add_rule", text)
        return rule

    async def remove_rule(self, text: str) -> None:
        """See `Ledger.remove_rule`."""
        await self._call("remove_rule", text)

    async def _call(self, method: str, *arguments: Any) -> Any:
        reply = await self._actor.call("call", method, arguments, timeout_s=self._timeout_s)
        if isinstance(reply, FenixError):
            raise reply
        return reply
