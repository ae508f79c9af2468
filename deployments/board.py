"""The board: the latest envelope of every replica and what every gateway reports, kept in memory by one actor.

What is on it runs out unless it is put there again, so nothing of the dead stays. A follower asks for what changed
since the version it has; the board answers as soon as there is something. Nothing here is needed to answer a request:
who has no news decides without.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from deployments.actors import ActorHandle, start_actor
from planner.breakers import Standing
from planner.cards import ExtensionId
from planner.envelopes import Envelope, merged
from planner.errors import ClusterDown, FenixError

ACTOR_NAME = "fenix-board"
MOST_REPLICAS = 10_000
MOST_GATEWAYS = 1_000
WATCH_S = 20.0
REFRESH_S = 0.5  # a follower asks at most this often: many replicas' news come in one answer
STALE_S = 10.0  # a follower that has not heard from the board for so long forgets what it knew
_log = logging.getLogger("fenix.board")


@dataclass(frozen=True, slots=True)
class News:
    """What a follower at some version lacks: `envelopes` that are new, the replicas that are `gone`.

    `whole` says that everything is in it and what the follower has is to be dropped. `board` names the life of the
    board that counted `version`: after a restart the versions begin anew.
    """

    board: str
    version: int
    envelopes: tuple[Envelope, ...] = ()
    gone: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Everything on the board: an envelope per replica; by gateway the breakers and what runs in its own process."""

    envelopes: tuple[Envelope, ...] = ()
    standings: Mapping[str, tuple[Standing, ...]] = field(default_factory=dict)
    inline: Mapping[str, frozenset[ExtensionId]] = field(default_factory=dict)


@dataclass(slots=True)
class _Pinned:
    envelope: Envelope
    version: int
    until_s: float


@dataclass(frozen=True, slots=True)
class _Report:
    """Of a gateway."""

    standings: tuple[Standing, ...]
    inline: frozenset[ExtensionId]
    until_s: float


class Board:
    """What the actor knows, without Ray: `clock` is in seconds. Bounded; when full, what runs out first goes."""

    def __init__(self, clock: Callable[[], float], *, most: int = MOST_REPLICAS, name: str = "") -> None:
        self._clock = clock
        self._most = most
        self._name = name or uuid.uuid4().hex
        self._pinned: dict[str, _Pinned] = {}
        self._gone: dict[str, int] = {}  # replica -> version at which it went, oldest first
        self._forgotten = 0  # followers behind this version cannot be told what has gone
        self._reports: dict[str, _Report] = {}
        self._look_again_s = math.inf  # nothing runs out before
        self.version = 0

    def publish(self, envelope: Envelope, ttl_s: float) -> None:
        """Shows an envelope in place of the same replica's last one, for `ttl_s`."""
        self.expire()
        self.version += 1
        self._gone.pop(envelope.replica, None)
        until_s = self._clock() + ttl_s
        self._pinned[envelope.replica] = _Pinned(envelope, self.version, until_s)
        self._look_again_s = min(self._look_again_s, until_s)
        if len(self._pinned) > self._most:
            self._drop(min(self._pinned, key=lambda replica: self._pinned[replica].until_s))

    def withdraw(self, replica: str) -> None:
        """Takes a replica's envelope off; it may be gone already."""
        if replica in self._pinned:
            self.version += 1
            self._drop(replica)

    def report(
        self, gateway: str, standings: Sequence[Standing], ttl_s: float, inline: Iterable[ExtensionId] = ()
    ) -> None:
        """Shows the breakers of a gateway, and what runs inline there, in place of its last report, for `ttl_s`."""
        self._reports.pop(gateway, None)
        until_s = self._clock() + ttl_s
        self._reports[gateway] = _Report(tuple(standings), frozenset(inline), until_s)
        self._look_again_s = min(self._look_again_s, until_s)
        while len(self._reports) > MOST_GATEWAYS:
            del self._reports[next(iter(self._reports))]

    def since(self, board: str, version: int) -> News:
        """What changed after `version` of that life of the board."""
        self.expire()
        if board != self._name or not self._forgotten <= version <= self.version:
            return News(self._name, self.version, self._all(), whole=True)
        return News(
            self._name,
            self.version,
            tuple(pinned.envelope for pinned in self._pinned.values() if pinned.version > version),
            tuple(replica for replica, at in self._gone.items() if at > version),
        )

    def snapshot(self) -> Snapshot:
        """Everything that counts now."""
        self.expire()
        return Snapshot(
            self._all(),
            {gateway: report.standings for gateway, report in self._reports.items()},
            {gateway: report.inline for gateway, report in self._reports.items()},
        )

    def expire(self) -> None:
        """Takes off what has run out."""
        now_s = self._clock()
        if now_s < self._look_again_s:
            return
        late = [replica for replica, pinned in self._pinned.items() if pinned.until_s <= now_s]
        if late:
            self.version += 1
        for replica in late:
            self._drop(replica)
        self._reports = {gateway: report for gateway, report in self._reports.items() if report.until_s > now_s}
        ends = [one.until_s for known in (self._pinned, self._reports) for one in known.values()]
        self._look_again_s = min(ends, default=math.inf)

    def look_again_s(self) -> float:
        """Before this time of the clock nothing runs out."""
        return self._look_again_s

    def has_news(self, board: str, version: int) -> bool:
        """Whether `since` would tell anything."""
        self.expire()
        return board != self._name or version != self.version

    def _all(self) -> tuple[Envelope, ...]:
        return tuple(pinned.envelope for pinned in self._pinned.values())

    def _drop(self, replica: str) -> None:
        del self._pinned[replica]
        self._gone[replica] = self.version
        while len(self._gone) > self._most:
            oldest = next(iter(self._gone))
            self._forgotten = self._gone.pop(oldest)


class WatchedBoard:
    """`Board` on an event loop, whose readers can wait for news. The methods of the actor."""

    def __init__(self, board: Board, clock: Callable[[], float]) -> None:
        self._board = board
        self._clock = clock
        self._changed = asyncio.Condition()

    async def publish(self, envelope: Envelope, ttl_s: float) -> None:
        """See `Board.publish`."""
        self._board.publish(envelope, ttl_s)
        await self._tell()

    async def withdraw(self, replica: str) -> None:
        """See `Board.withdraw`."""
        self._board.withdraw(replica)
        await self._tell()

    async def report(
        self, gateway: str, standings: Sequence[Standing], ttl_s: float, inline: Iterable[ExtensionId] = ()
    ) -> None:
        """See `Board.report`."""
        self._board.report(gateway, standings, ttl_s, inline)

    async def snapshot(self) -> Snapshot:
        """See `Board.snapshot`."""
        return self._board.snapshot()

    async def since(self, board: str, version: int, wait_s: float) -> News:
        """See `Board.since`; waits up to `wait_s` for news, be it that an envelope runs out."""
        until_s = self._clock() + wait_s
        while not self._board.has_news(board, version) and (left_s := until_s - self._clock()) > 0.0:
            left_s = min(left_s, max(0.0, self._board.look_again_s() - self._clock()) + 1e-3)
            try:
                async with asyncio.timeout(left_s), self._changed:
                    await self._changed.wait()
            except TimeoutError:
                pass
        return self._board.since(board, version)

    async def _tell(self) -> None:
        async with self._changed:
            self._changed.notify_all()


class BoardActor:
    """`WatchedBoard` as a detached Ray actor. Begins empty when it is restarted: the replicas fill it again."""

    def __init__(self) -> None:
        self._board = WatchedBoard(Board(time.monotonic), time.monotonic)

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Runs one method of WatchedBoard. A FenixError is returned, not raised, so that it keeps its type."""
        if method not in _METHODS:
            raise ValueError(method)
        try:
            return await getattr(self._board, method)(*arguments)
        except FenixError as error:
            return error.with_traceback(None)


_METHODS = frozenset({"publish", "withdraw", "report", "snapshot", "since"})


def start_board() -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    start_actor(BoardActor, ACTOR_NAME, max_concurrency=MOST_REPLICAS)


class BoardClient:
    """The board as seen from another process. Every method raises ClusterDown when it does not answer in time.

    Nothing is tried twice: what is on the board is soon outdated, and the next call brings better news.
    """

    def __init__(self, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, "the board")

    async def publish(self, envelope: Envelope, ttl_s: float) -> None:
        """See `Board.publish`."""
        await self._call("publish", envelope, ttl_s)

    async def withdraw(self, replica: str) -> None:
        """See `Board.withdraw`."""
        await self._call("withdraw", replica)

    async def report(
        self, gateway: str, standings: Sequence[Standing], ttl_s: float, inline: Iterable[ExtensionId] = ()
    ) -> None:
        """See `Board.report`."""
        await self._call("report", gateway, tuple(standings), ttl_s, frozenset(inline))

    async def snapshot(self) -> Snapshot:
        """See `Board.snapshot`."""
        snapshot: Snapshot = await self._call("snapshot")
        return snapshot

    async def since(self, board: str, version: int, wait_s: float) -> News:
        """See `WatchedBoard.since`."""
        news: News = await self._call("since", board, version, wait_s, wait_s=wait_s)
        return news

    async def _call(self, method: str, *arguments: Any, wait_s: float = 0.0) -> Any:
        reply = await self._actor.call("call", method, arguments, timeout_s=self._timeout_s + wait_s)
        if isinstance(reply, FenixError):
            raise reply
        return reply


class BoardFollower:
    """Keeps the state of all extensions current in this process.

    `extensions` has one merged envelope per extension; an extension that is not in it is unknown, not dead.
    `changed` is called with it on every change.
    """

    def __init__(
        self, client: BoardClient, changed: Callable[[Mapping[ExtensionId, Envelope]], None] | None = None
    ) -> None:
        self._client = client
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._replicas: dict[str, Envelope] = {}
        self.at = ("", 0)
        self.extensions: Mapping[ExtensionId, Envelope] = MappingProxyType({})

    def start(self) -> None:
        """Follows the board until `stop`, from now on; it need not answer yet."""
        self._task = asyncio.get_running_loop().create_task(
            self._follow(), name="board-follower", context=contextvars.Context()
        )

    def alive(self) -> bool:
        """Whether someone keeps the state current; for the health check of the owner."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Ends the following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def take(self, news: News) -> None:
        """Brings the state up to these news."""
        if news.whole:
            self._replicas.clear()
        for replica in news.gone:
            self._replicas.pop(replica, None)
        for envelope in news.envelopes:
            self._replicas[envelope.replica] = envelope
        self.at = news.board, news.version
        if news.whole or news.gone or news.envelopes:
            self._show()

    def _show(self) -> None:
        self.extensions = MappingProxyType(merged(self._replicas.values()))
        if self._changed is not None:
            self._changed(self.extensions)

    async def _follow(self) -> None:
        loop = asyncio.get_running_loop()
        heard_s = loop.time()
        while True:
            try:
                self.take(await self._client.since(*self.at, WATCH_S))
                heard_s = loop.time()
            except ClusterDown as error:
                _log.debug("%s", error.message)
                if self._replicas and loop.time() - heard_s > STALE_S:
                    self._replicas.clear()
                    self.at = ("", 0)
                    self._show()
            await asyncio.sleep(REFRESH_S)
