"""Those that follow something by its version: who they are, where each of them is, and when there is news."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

WATCH_S = 20.0  # a follower asks again after that
_SILENT_S = WATCH_S + 5.0  # who has not asked for longer does not count
_GONE_S = 2 * WATCH_S


class Followers:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._moved = asyncio.Condition()
        self._at: dict[str, tuple[int, float]] = {}  # id -> its version, and when it last asked (loop time)

    async def asked(self, follower: str, version: int) -> None:
        """A follower is at this version, and asks what came after it."""
        now_s = asyncio.get_running_loop().time()
        self._at = {id_: one for id_, one in self._at.items() if now_s - one[1] < _GONE_S}
        self._at[follower] = version, now_s
        await self.tell()

    async def tell(self) -> None:
        """Something has changed: whoever waits looks again."""
        async with self._moved:
            self._moved.notify_all()

    async def until(self, holds: Callable[[], bool], wait_s: float) -> bool:
        """Whether it holds; waits up to `wait_s` for that, looking whenever something changed."""
        if holds():
            return True
        try:
            async with asyncio.timeout(wait_s), self._moved:
                await self._moved.wait_for(holds)
        except TimeoutError:
            return False
        return True

    async def followed(self, version: int, wait_s: float) -> bool:
        """Whether every follower is at `version`; waits up to `wait_s` for that. Those gone silent do not count."""
        now_s = asyncio.get_running_loop().time

        def all_there() -> bool:
            return all(at >= version for at, asked_s in self._at.values() if now_s() - asked_s < _SILENT_S)

        return await self.until(all_there, wait_s)
