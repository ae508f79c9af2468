"""The board's logic without Ray: what runs out, what followers are told, and what they make of it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.board import Board, BoardClient, BoardFollower, News, WatchedBoard
from planner.breakers import Standing
from planner.cards import ExtensionId
from planner.envelopes import Envelope
from planner.errors import ClusterDown
from tests.clocks import Clock, JumpingLoop

A, B = ExtensionId("a@1"), ExtensionId("b@1")


def envelope(replica: str, queue_rows: int = 0) -> Envelope:
    return Envelope(A, replica, 0.0, queue_rows=queue_rows)


def follower() -> BoardFollower:
    return BoardFollower(BoardClient())


def test_an_envelope_counts_until_its_time_is_over_unless_it_is_put_up_again() -> None:
    clock = Clock()
    board = Board(clock)
    board.publish(envelope("r1"), 3.0)
    board.publish(envelope("r2"), 5.0)
    clock.now_s += 2.9
    board.publish(envelope("r1", 7), 3.0)
    clock.now_s += 2.2
    assert board.snapshot().envelopes == (envelope("r1", 7),)
    clock.now_s += 1.0
    assert board.snapshot().envelopes == ()


def test_a_follower_gets_all_at_first_then_what_changed_then_nothing() -> None:
    board = Board(Clock(), name="life")
    board.publish(envelope("r1"), 9.0)
    board.publish(envelope("r2"), 9.0)
    first = board.since("", 0)
    assert first == News("life", 2, (envelope("r1"), envelope("r2")), whole=True)
    assert not board.has_news("life", 2)
    board.publish(envelope("r2", 1), 9.0)
    board.withdraw("r1")
    board.withdraw("r1")
    assert board.since("life", 2) == News("life", 4, (envelope("r2", 1),), ("r1",))
    assert board.since("life", 4) == News("life", 4)
    board.publish(envelope("r1", 2), 9.0)
    assert board.since("life", 2).gone == ()


def test_who_follows_another_life_of_the_board_or_is_too_far_behind_gets_all() -> None:
    board = Board(Clock(), most=2, name="life")
    for i in range(6):
        board.publish(envelope(f"r{i}"), 9.0 + i)
    for at in (("before", 6), ("life", 99), ("life", 1)):
        assert board.since(*at) == News("life", 6, (envelope("r4"), envelope("r5")), whole=True)
    assert board.since("life", 4) == News("life", 6, (envelope("r4"), envelope("r5")), ("r2", "r3"))


def test_a_full_board_drops_what_runs_out_first() -> None:
    board = Board(Clock(), most=2)
    for replica, ttl_s in (("r1", 9.0), ("r2", 3.0), ("r3", 9.0)):
        board.publish(envelope(replica), ttl_s)
    assert {one.replica for one in board.snapshot().envelopes} == {"r1", "r3"}


def test_what_gateways_report_is_shown_until_it_runs_out() -> None:
    clock = Clock()
    board = Board(clock)
    board.report("g1", [Standing(A, "open", "why", 1.0)], 3.0)
    board.report("g2", [], 5.0, [A, B])
    assert board.snapshot().standings == {"g1": (Standing(A, "open", "why", 1.0),), "g2": ()}
    assert board.snapshot().inline == {"g1": frozenset(), "g2": {A, B}}
    clock.now_s += 4.0
    assert board.snapshot().standings == {"g2": ()}
    assert board.snapshot().inline == {"g2": {A, B}}
    board.report("g2", [], 5.0)
    assert board.snapshot().inline == {"g2": frozenset()}


STEPS = st.lists(
    st.tuples(st.sampled_from(["publish", "publish", "withdraw", "wait", "ask"]), st.integers(0, 5)), max_size=60
)


@given(STEPS, st.integers(1, 4))
@settings(deadline=None)
def test_a_follower_that_takes_all_news_knows_what_the_board_shows(steps: list[tuple[str, int]], most: int) -> None:
    clock = Clock()
    board = Board(clock, most=most)
    known = follower()
    for i, (what, n) in enumerate(steps):
        if what == "publish":
            board.publish(envelope(f"r{n}", i), 1.0 + n)
        elif what == "withdraw":
            board.withdraw(f"r{n}")
        elif what == "wait":
            clock.now_s += n
        else:
            known.take(board.since(*known.at))
        assert len(board.snapshot().envelopes) <= most
    known.take(board.since(*known.at))
    shown = board.snapshot().envelopes
    assert sum(one.n_replicas for one in known.extensions.values()) == len(shown)
    assert sum(one.queue_rows for one in known.extensions.values()) == sum(one.queue_rows for one in shown)


def watched() -> WatchedBoard:
    clock = asyncio.get_running_loop().time
    return WatchedBoard(Board(clock, name="life"), clock)


def test_who_waits_is_told_as_soon_as_something_is_put_up() -> None:
    async def scenario() -> None:
        board = watched()
        waiting = asyncio.create_task(board.since("life", 0, 60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await board.publish(envelope("r1"), 60.0)
        assert (await waiting).envelopes == (envelope("r1"),)

    asyncio.run(scenario())


def test_who_waits_is_told_when_an_envelope_runs_out_and_else_nothing_in_the_end() -> None:
    async def scenario() -> None:
        board = watched()
        await board.publish(envelope("r1"), 0.02)
        assert (await board.since("life", 1, 60.0)).gone == ("r1",)
        assert await board.since("life", 2, 0.01) == News("life", 2)

    asyncio.run(scenario())


def test_the_state_of_an_extension_is_that_of_all_its_replicas() -> None:
    seen: list[Mapping[ExtensionId, Envelope]] = []
    known = BoardFollower(BoardClient(), seen.append)
    known.take(News("life", 3, (envelope("r1", 2), envelope("r2", 3), replace(envelope("r3"), extension=B)), (), True))
    assert known.extensions[A].queue_rows == 5
    assert known.extensions[A].n_replicas == 2
    known.take(News("life", 4, (), ("r1", "r3")))
    assert dict(known.extensions) == {A: envelope("r2", 3)}
    known.take(News("life", 4))
    assert len(seen) == 2


class Flaky(BoardClient):
    """A board that answers what it is told to, then is away; each question takes `WATCH_S` of the loop's time."""

    def __init__(self, answers: Sequence[News]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def since(self, board: str, version: int, wait_s: float) -> News:
        self.asked.append((board, version))
        if self.answers:
            return self.answers.pop(0)
        raise ClusterDown("the board is away.")


def test_a_follower_outlives_the_board_and_forgets_what_it_knew_when_that_stays_away() -> None:
    async def scenario() -> None:
        client = Flaky([News("life", 5, (envelope("r1"),), (), True)])
        known = BoardFollower(client)
        assert not known.alive()
        known.start()
        await asyncio.sleep(5.0)
        assert A in known.extensions
        await asyncio.sleep(10.0)
        assert A not in known.extensions
        client.answers.append(News("next", 1, (envelope("r2"),), (), True))
        await asyncio.sleep(1.0)
        assert known.extensions[A].replica == "r2"
        assert client.asked[:2] == [("", 0), ("life", 5)]
        assert client.asked.count(("", 0)) > 2
        assert known.alive()
        await known.stop()
        assert not known.alive()

    loop = JumpingLoop()
    try:
        loop.run_until_complete(scenario())
    finally:
        loop.close()
