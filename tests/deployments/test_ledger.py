"""The ledger without Ray; the actor's own method is called as Ray would call it."""

from __future__ import annotations

import asyncio
import pickle
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from deployments.gateway.recorder import Recorder, Recording
from deployments.ledger import MOST_ITEMS, MOST_WAITING, Ledger, LedgerActor
from lineage.chunks import Chunk
from lineage.database import open_database
from lineage.errors import RequestNotFound
from lineage.feedback import Feedback
from lineage.journal import JournalStore
from lineage.learners import Learner
from lineage.outcomes import Outcome, Setting
from planner.errors import BodyTooLarge, NotFound, Overloaded, StoreUnavailable
from tests.clocks import Clock
from tests.lineage.learners import Tally
from tests.lineage.outcomes import RUN, chunk, trace


def opened(tmp_path: Path) -> JournalStore:
    return JournalStore(open_database(f"sqlite:///{tmp_path}/fenix.db"))


def run(
    scenario: Callable[[Ledger], Awaitable[None]],
    store: JournalStore,
    keep_s: float | None = None,
    clock: Callable[[], float] = lambda: 1_000.0,
    timeout_s: float = 20.0,
    learners: Sequence[Learner] = (),
) -> None:
    async def main() -> None:
        ledger = Ledger(store, keep_s, clock, timeout_s=timeout_s, learners=learners)
        try:
            await scenario(ledger)
        finally:
            ledger.close()

    asyncio.run(main())


def test_what_gateways_bring_is_found_and_feedback_joins_it(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1, 2])])
        found = await ledger.find(trace(1))
        assert found is not None
        assert found.outputs.full["digit"].tolist() == [2]
        assert await ledger.find(trace(2)) is None
        given = await ledger.feedback([Feedback(trace(0), truth=1), Feedback(trace(9), truth=1)], "test")
        assert (given.new, given.n_refused) == (1, 1)
        page = await ledger.joined()
        (one,) = page.items
        assert (one.outcome.trace_id, one.feedback.truth, one.received_s) == (trace(0), 1, 1_000.0)
        assert (await ledger.joined(page.next_id)).items == ()
        assert (await ledger.figures()).n_feedback == 1

    run(scenario, opened(tmp_path))


def test_a_damaged_chunk_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1]), b"damaged", chunk(1, [2]), chunk(2, [3], run="f" * 20)])
        assert (await ledger.figures()).n_requests == 2

    run(scenario, opened(tmp_path))


def test_what_is_old_is_forgotten_once_in_a_while(tmp_path: Path) -> None:
    clock = Clock()

    async def scenario(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1], at_s=1_000.0), chunk(1, [2], at_s=2_000.0)])
        clock.now_s = 1_400.0
        assert await ledger.sweep() == (0, 0)
        clock.now_s = 1_600.0
        tending = asyncio.create_task(ledger.tend(0.001))
        for _ in range(10_000):
            if (await ledger.figures()).n_chunks == 1:
                break
            await asyncio.sleep(0.001)
        tending.cancel()
        await asyncio.gather(tending, return_exceptions=True)
        assert await ledger.find(trace(0)) is None
        assert await ledger.find(trace(1)) is not None

    run(scenario, opened(tmp_path), 500.0, clock)


def test_without_a_limit_nothing_is_forgotten(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1], at_s=1.0)])
        assert await ledger.sweep() == (0, 0)
        assert await ledger.find(trace(0)) is not None

    run(scenario, opened(tmp_path), clock=lambda: 1e12)


class SlowStore(JournalStore):
    """A store whose database hangs, until it is let go on."""

    def __init__(self, path: Path) -> None:
        super().__init__(open_database(f"sqlite:///{path}/fenix.db"))
        self.go_on = threading.Event()

    def find(self, trace_id: str) -> Outcome | None:
        self.go_on.wait(30.0)
        return super().find(trace_id)


def test_a_database_that_hangs_is_waited_for_so_long_and_not_by_everybody(tmp_path: Path) -> None:
    store = SlowStore(tmp_path)

    async def scenario(ledger: Ledger) -> None:
        calls = [asyncio.create_task(ledger.find(trace(0))) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0)
        with pytest.raises(Overloaded):
            await ledger.find(trace(0))
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, StoreUnavailable)
        await ledger.append(RUN, [chunk(0, [1])])
        store.go_on.set()
        while True:
            try:
                assert await ledger.find(trace(0)) is not None
                break
            except (Overloaded, StoreUnavailable):
                await asyncio.sleep(0.01)

    run(scenario, store, timeout_s=1.0)


def test_too_much_feedback_at_once_is_refused(tmp_path: Path) -> None:
    async def scenario(ledger: Ledger) -> None:
        with pytest.raises(BodyTooLarge, match="50001"):
            await ledger.feedback([Feedback(trace(0), truth=1)] * (MOST_ITEMS + 1))

    run(scenario, opened(tmp_path))


def test_learners_hear_what_is_written_and_answer_also_after_a_restart(tmp_path: Path) -> None:
    async def heard(ledger: Ledger, n: int) -> None:
        for _ in range(2_000):
            n_heard = await ledger.learned("tally", "heard", n - 1)
            if n_heard and await ledger.learned("tally", "truths", f"{trace(0)} 1"):
                return
            await asyncio.sleep(0.01)

    async def first(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1])])
        await ledger.feedback([Feedback(trace(0), truth=1)])
        await heard(ledger, 1)

    async def second(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(1, [1])])
        await heard(ledger, 2)
        assert await ledger.learned("tally", "heard", 0) == 1
        with pytest.raises(NotFound, match="nobody"):
            await ledger.learned("nobody", "heard", 0)

    run(first, opened(tmp_path), learners=[Tally()])
    run(second, opened(tmp_path), learners=[Tally()])


def test_commits_do_not_wait_for_learners(tmp_path: Path) -> None:
    hearing, go_on = threading.Event(), threading.Event()

    class Stuck(Tally):
        def hear(self, chunk: Chunk) -> None:
            hearing.set()
            go_on.wait(30.0)

    async def scenario(ledger: Ledger) -> None:
        await ledger.append(RUN, [chunk(0, [1])])
        assert await asyncio.to_thread(hearing.wait, 20.0)
        await ledger.append(RUN, [chunk(1, [1])])
        assert (await ledger.feedback([Feedback(trace(1), truth=1)])).new == 1
        assert not go_on.is_set()
        go_on.set()

    run(scenario, opened(tmp_path), learners=[Stuck()])


def test_the_actor_returns_errors_with_their_type_and_what_it_returns_can_travel(tmp_path: Path) -> None:
    async def scenario() -> None:
        actor = LedgerActor(f"sqlite:///{tmp_path}/fenix.db", 1e12)
        assert await actor.call("append", (RUN, [chunk(0, [1])])) is None
        found = pickle.loads(pickle.dumps(await actor.call("find", (trace(0),))))
        assert found.outputs.full["digit"].tolist() == [1]
        given = pickle.loads(pickle.dumps(await actor.call("feedback", ([Feedback(trace(7), truth=1)],))))
        assert type(given.refused[0].error) is RequestNotFound
        assert pickle.loads(pickle.dumps(await actor.call("joined", ()))).next_id == 0
        assert isinstance(await actor.call("learned", ("nobody", "what")), NotFound)
        with pytest.raises(ValueError, match="close"):
            await actor.call("close", ())
        assert actor._ledger is not None
        assert actor._tending is not None
        actor._ledger._store._engine.dispose()
        assert isinstance(await actor.call("append", (RUN, [7])), StoreUnavailable)
        actor._tending.cancel()
        actor._ledger.close()
        closed = LedgerActor("sqlite:////proc/none/x.db")
        assert isinstance(await closed.call("figures", ()), StoreUnavailable)

    asyncio.run(scenario())


def test_what_a_gateway_records_arrives_also_when_the_database_was_away(tmp_path: Path) -> None:
    store = opened(tmp_path)
    away = True

    async def scenario(ledger: Ledger) -> None:
        async def write(run: str, chunks: list[bytes]) -> None:
            if away:
                raise StoreUnavailable("away")
            await ledger.append(run, chunks)

        nonlocal away
        recorder = Recorder(write, tmp_path / "spool", Recording(memory_bytes=1_500, chunk_requests=3))  # type: ignore[arg-type]
        recorder.start()
        for _ in range(30):
            recorder.add(Setting("m"), recorder.next(1), 1_000.0, [1.0], [1], [0.5])
            await asyncio.sleep(0)
        assert not await recorder.flush(0.05)
        away = False
        assert await recorder.flush(20.0)
        await recorder.close(5.0)
        assert (await ledger.figures()).n_requests == 30
        assert await ledger.find(f"{recorder.run}{29:012x}") is not None

    run(scenario, store)
