"""The recorder on a loop whose clock jumps: what it writes, and what it does while nothing can be written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.gateway.recorder import MOST_GATHERED, PAUSES_S, Recorder, Recording
from deployments.gateway.spool import Spool
from lineage.chunks import Chunk
from lineage.errors import StoreUnavailable
from lineage.outcomes import Setting
from tests.clocks import JumpingLoop
from tests.lineage.outcomes import RUN, chunk

SETTING = Setting("digits", steps=((0, "read@1"),))
USUAL = Recording(interval_s=0.5)
STEPS = [(0.1, 0.2, 0.3, 4)]


async def here(function: Callable[..., Any], *arguments: Any) -> Any:
    """In place of a thread: a loop whose clock jumps cannot wait for one."""
    await asyncio.sleep(0)
    return function(*arguments)


class Journal:
    """Takes chunks, or fails."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[int], float]] = []
        self.requests: list[tuple[str, int]] = []
        self.error: Exception | None = None
        self.takes_s = 0.0

    async def write(self, run: str, chunks: Sequence[bytes]) -> None:
        await asyncio.sleep(self.takes_s)
        if self.error is not None:
            raise self.error
        decoded = [Chunk.decode(one) for one in chunks]
        self.calls.append((run, [one.head.n_requests for one in decoded], asyncio.get_running_loop().time()))
        self.requests += [(run, seq) for one in decoded for group in one.groups() for seq in group.seqs.tolist()]

    def numbers(self) -> list[int]:
        return [seq for run, seq in self.requests if run == RUN]


def add(recorder: Recorder, n: int = 1, outputs: dict[str, Any] | None = None) -> None:
    given = {"y": np.zeros(n, np.int64)} if outputs is None else outputs
    recorder.add(SETTING, recorder.next(n), 1e9, [1.0] * n, [1] * n, [nan] * n, STEPS, given)


def run(
    scenario: Callable[[Recorder, Journal], Awaitable[None]],
    folder: Path | None = None,
    settings: Recording = USUAL,
) -> None:
    async def main() -> None:
        journal = Journal()
        recorder = Recorder(journal.write, folder, settings, run=RUN, on_thread=here)
        recorder.start()
        await scenario(recorder, journal)
        await recorder.close(1.0)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(main())


def test_groups_are_written_after_the_interval_or_as_soon_as_there_are_enough() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        await asyncio.sleep(10.0)
        add(recorder, 3)
        await asyncio.sleep(0.2)
        add(recorder, 2)
        await asyncio.sleep(0.25)
        assert journal.calls == []
        await asyncio.sleep(0.1)
        assert journal.calls == [(RUN, [5], pytest.approx(10.5))]
        add(recorder, 40)
        add(recorder, 60)
        add(recorder, 1)
        await asyncio.sleep(0.01)
        assert journal.calls[1:] == [(RUN, [100], pytest.approx(10.55))]
        await asyncio.sleep(1.0)
        assert journal.numbers() == list(range(106))
        figures = recorder.figures()
        assert (figures.added, figures.written, figures.lost, figures.failing) == (106, 106, 0, "")
        recorder.health()

    run(scenario, settings=Recording(interval_s=0.5, chunk_requests=100))


def test_much_data_closes_a_chunk_early() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        add(recorder, 8, {"scores": np.zeros((8, 1000), np.float32)})
        await asyncio.sleep(0.01)
        assert journal.numbers() == list(range(8))

    run(scenario, settings=Recording(chunk_bytes=30_000))


def test_what_cannot_be_written_waits_and_is_written_in_order() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(30):
            add(recorder)
            await asyncio.sleep(0.6)
        assert recorder.figures().memory_bytes > 0
        assert "down" in recorder.figures().failing
        journal.error = None
        await asyncio.sleep(PAUSES_S[1] + 0.1)
        assert journal.numbers() == list(range(30))
        assert (recorder.figures().memory_bytes, recorder.figures().failing) == (0, "")
        assert len(journal.calls) < 30
        recorder.health()

    run(scenario)


def test_a_write_that_hangs_is_given_up_and_made_again() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.takes_s = 1e9
        add(recorder)
        await asyncio.sleep(11.0)
        assert "TimeoutError" in recorder.figures().failing
        journal.takes_s = 0.0
        await asyncio.sleep(11.0)
        assert journal.numbers() == [0]

    run(scenario)


def test_beyond_the_memory_chunks_go_to_disk_and_come_back_in_order(tmp_path: Path) -> None:
    def spooled() -> list[Path]:
        return list(tmp_path.glob("*.spool"))

    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(30):
            add(recorder)
            await asyncio.sleep(0.6)
        figures = recorder.figures()
        assert figures.memory_bytes <= 2_000
        assert figures.spool_bytes > 0
        assert spooled()
        journal.error = None
        await asyncio.sleep(6.0)
        add(recorder)
        await asyncio.sleep(1.0)
        assert journal.numbers() == list(range(31))
        figures = recorder.figures()
        assert (figures.written, figures.lost, figures.spool_bytes) == (31, 0, 0)

    run(scenario, tmp_path, Recording(interval_s=0.5, memory_bytes=2_000))
    assert list(tmp_path.iterdir()) == []


def test_the_next_process_writes_first_what_the_last_one_could_not(tmp_path: Path) -> None:
    async def first(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(10):
            add(recorder)
            await asyncio.sleep(0.6)
        add(recorder)

    run(first, tmp_path, Recording(interval_s=0.5, memory_bytes=1_000))

    async def second() -> None:
        journal = Journal()
        recorder = Recorder(journal.write, tmp_path, USUAL, run="a" * 20, on_thread=here)
        add(recorder)
        recorder.start()
        await asyncio.sleep(1.0)
        assert sorted(journal.requests[:-1]) == [(RUN, seq) for seq in range(11)]
        assert journal.requests[-1] == ("a" * 20, 0)
        assert recorder.figures().written == 1
        await recorder.close(1.0)

    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(second())
    assert list(tmp_path.iterdir()) == []


def test_when_there_is_hardly_any_room_a_share_is_recorded_and_the_rest_counted() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(200):
            add(recorder)
            await asyncio.sleep(0.6)
        figures = recorder.figures()
        assert figures.memory_bytes <= 10_000
        journal.error = None
        await asyncio.sleep(6.0)
        numbers = journal.numbers()
        assert numbers == sorted(numbers)
        assert len(numbers) == 200 - figures.lost
        late = [seq for seq in numbers if seq > len(numbers)]
        assert {after - before for before, after in pairwise(late)} == {4}
        add(recorder)
        await asyncio.sleep(1.0)
        assert journal.numbers()[-1] == 200

    run(scenario, settings=Recording(interval_s=0.5, memory_bytes=10_000, every=4))


def test_a_spool_that_is_full_loses_and_counts(tmp_path: Path) -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(100):
            add(recorder)
            await asyncio.sleep(0.6)
        figures = recorder.figures()
        assert figures.spool_bytes <= 5_000
        journal.error = None
        await asyncio.sleep(6.0)
        assert len(journal.numbers()) == 100 - figures.lost < 50

    run(scenario, tmp_path, Recording(interval_s=0.5, memory_bytes=2_000, spool_bytes=5_000, every=1))


def test_a_disk_that_fails_for_a_while_loses_nothing_that_fits_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        journal.error = StoreUnavailable("down")
        for _ in range(10):
            add(recorder)
            await asyncio.sleep(0.6)
        assert recorder.figures().spool_bytes > 0
        journal.error = None

        def fails(*_: object) -> None:
            raise OSError(5, "Input/output error")

        with monkeypatch.context() as patched:
            patched.setattr(Spool, "append", fails)
            patched.setattr(Spool, "front", fails)
            await asyncio.sleep(6.0)
            add(recorder)
            await asyncio.sleep(6.0)
            assert "Input/output error" in recorder.figures().failing
            recorder.health()
        await asyncio.sleep(6.0)
        assert sorted(journal.numbers()) == list(range(11))
        assert recorder.figures().lost == 0

    run(scenario, tmp_path, Recording(interval_s=0.5, memory_bytes=2_000))


def test_a_disk_that_cannot_be_used_leaves_the_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    async def scenario(recorder: Recorder, journal: Journal) -> None:
        add(recorder)
        await asyncio.sleep(1.0)
        assert journal.numbers() == [0]
        recorder.health()

    run(scenario, tmp_path / "file" / "folder")


def test_flush_writes_what_was_added_and_says_when_it_could_not() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        add(recorder, 2)
        assert await recorder.flush(5.0)
        assert journal.numbers() == [0, 1]
        assert await recorder.flush(5.0)
        journal.error = StoreUnavailable("down")
        add(recorder)
        assert not await recorder.flush(0.3)

    run(scenario)


def test_close_writes_what_there_is_and_takes_nothing_more() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        add(recorder, 2)
        await recorder.close(5.0)
        assert journal.numbers() == [0, 1]
        add(recorder, 3)
        assert recorder.figures().lost == 3

    run(scenario)


def test_a_group_that_does_not_fit_together_hurts_nobody_else() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        recorder.add(SETTING, recorder.next(1), 1e9, [1.0], [1], [nan], [])
        add(recorder)
        recorder.add(SETTING, [5, "x"], 1e9, [1.0, 1.0], [1, 1], [nan, nan], STEPS)  # type: ignore[list-item]
        await asyncio.sleep(1.0)
        add(recorder)
        await asyncio.sleep(1.0)
        assert journal.numbers() == [1, 2]
        figures = recorder.figures()
        assert (figures.added, figures.written, figures.lost) == (5, 2, 3)
        recorder.health()

    run(scenario)


def test_chunks_that_nobody_encodes_do_not_pile_up() -> None:
    async def scenario() -> None:
        recorder = Recorder(Journal().write, settings=Recording(chunk_requests=1), run=RUN, on_thread=here)
        for _ in range(MOST_GATHERED + 5):
            add(recorder)
        assert recorder.figures().lost == 5

    asyncio.run(scenario())


def test_the_death_of_a_task_is_noticed() -> None:
    async def scenario(recorder: Recorder, journal: Journal) -> None:
        recorder.health()
        for task in recorder._tasks:
            task.cancel()
        await asyncio.sleep(0.1)
        with pytest.raises(RuntimeError, match="has ended"):
            recorder.health()

    run(scenario)
    with pytest.raises(RuntimeError, match="not started"):
        Recorder(Journal().write).health()


def test_it_works_with_real_threads_and_a_real_disk(tmp_path: Path) -> None:
    dead = Spool(tmp_path, "b" * 20, 1 << 20)
    dead.append(chunk(7, [1], run="b" * 20))
    dead.close()

    async def scenario() -> None:
        journal = Journal()
        recorder = Recorder(journal.write, tmp_path)
        recorder.start()
        add(recorder, 5)
        assert await recorder.flush(30.0)
        await recorder.close(30.0)
        assert journal.requests == [("b" * 20, 7), *((recorder.run, seq) for seq in range(5))]

    asyncio.run(scenario())
