from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from deployments.followers import WATCH_S, Followers
from tests.clocks import JumpingLoop


def drive(scenario: Coroutine[Any, Any, None]) -> None:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        runner.run(scenario)


def test_it_is_followed_once_all_are_there() -> None:
    async def scenario() -> None:
        followers = Followers()
        assert await followers.followed(7, 0.0)
        await followers.asked("a", 3)
        await followers.asked("b", 2)
        assert not await followers.followed(3, 0.1)
        waiting = asyncio.ensure_future(followers.followed(3, 5.0))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        await followers.asked("b", 3)
        assert await waiting

    drive(scenario())


def test_who_has_gone_silent_keeps_nobody_waiting() -> None:
    async def scenario() -> None:
        followers = Followers()
        await followers.asked("a", 1)
        assert not await followers.followed(2, WATCH_S)
        await asyncio.sleep(6.0)
        assert await followers.followed(2, 0.0)

    drive(scenario())


def test_who_waits_for_news_hears_of_it_and_else_ends_in_time() -> None:
    async def scenario() -> None:
        followers, version = Followers(), 1
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        assert not await followers.until(lambda: version > 1, 3.0)
        assert loop.time() - began_s >= 3.0
        waiting = asyncio.ensure_future(followers.until(lambda: version > 1, 3.0))
        await asyncio.sleep(0.5)
        version = 2
        await followers.tell()
        assert await waiting
        assert await followers.until(lambda: version > 1, 0.0)

    drive(scenario())
