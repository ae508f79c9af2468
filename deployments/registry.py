"""The catalogue actor: the one writer of the catalogue, and the followers that keep every planner up to date.

A follower asks for what changed since its epoch; the actor answers as soon as there is something, or with nothing
after a while. So a change reaches every planner within a network round trip and nobody polls in between.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from deployments.actors import ActorHandle, start_actor
from deployments.followers import WATCH_S, Followers
from planner.cards import Card, ExtensionId, LatencyProfile
from planner.catalogue import Catalogue, Change
from planner.catalogue_store import CatalogueStore, SqlCatalogueStore
from planner.errors import ClusterDown, Conflict, FenixError, NotFound, StoreUnavailable, near
from planner.goals import Goal

ACTOR_NAME = "fenix-catalogue"
KEPT_CHANGES = 1_000  # a follower further behind gets the whole catalogue

_log = logging.getLogger("fenix.catalogue")


class Registry:
    """The catalogue with its writes: checks a change, stores it, then shows it. One event loop, one instance."""

    def __init__(self, store: CatalogueStore) -> None:
        self._store = store
        self._catalogue = store.load()
        self._changes: deque[Change] = deque(maxlen=KEPT_CHANGES)
        self._followers = Followers()

    async def put(self, cards: Sequence[Card], goals: Sequence[Goal] = (), replace: bool = False) -> int:
        """Registers cards and goals; returns the new epoch, at which they are durable.

        Raises Conflict, with nothing written, when an id is taken by a card with other ports, source or options
        and `replace` is off: versions do not change under their users.
        """
        if not replace:
            for card in cards:
                known = self._catalogue.cards.get(card.id)
                if known is not None and known.identity != card.identity:
                    raise Conflict(
                        f"extension {card.id} exists with other ports, source or options.",
                        hint="Give the new one another version, or remove the old one first.",
                    )
        return await self._write(Change(self._catalogue.epoch + 1, tuple(cards), tuple(goals)))

    async def remove(self, cards: Sequence[ExtensionId] = (), goals: Sequence[str] = ()) -> int:
        """Takes cards and goals out; returns the new epoch. Raises NotFound, with nothing written."""
        for id_ in cards:
            if id_ not in self._catalogue.cards:
                raise NotFound(f"no extension {id_!r}.", hint=near(id_, self._catalogue.cards))
        for name in goals:
            self._catalogue.goal(name)
        return await self._write(
            Change(self._catalogue.epoch + 1, removed_cards=tuple(cards), removed_goals=tuple(goals))
        )

    async def profiles(self, measured: Mapping[ExtensionId, LatencyProfile]) -> int:
        """Takes in latency profiles from live traffic; extensions that are gone meanwhile are passed over."""
        cards = [
            self._catalogue.cards[id_].but(profile=profile)
            for id_, profile in measured.items()
            if id_ in self._catalogue.cards
        ]
        if not cards:
            return self._catalogue.epoch
        return await self._write(Change(self._catalogue.epoch + 1, tuple(cards)))

    async def since(self, epoch: int, wait_s: float, follower: str = "") -> list[Change]:
        """The changes after `epoch`, in order; waits up to `wait_s` for one, then returns none.

        A follower that is too far behind (or ahead, after a restore) gets one whole change. One that names itself
        counts in `followed`.
        """
        if follower:
            await self._followers.asked(follower, epoch)
        if not await self._followers.until(lambda: self._catalogue.epoch != epoch, wait_s):
            return []
        if self._changes and self._changes[0].epoch <= epoch + 1 <= self._catalogue.epoch:
            return [change for change in self._changes if change.epoch > epoch]
        everything = self._catalogue
        return [Change(everything.epoch, (*everything.cards.values(),), (*everything.goals.values(),), whole=True)]

    async def followed(self, epoch: int, wait_s: float) -> bool:
        """See `Followers.followed`."""
        return await self._followers.followed(epoch, wait_s)

    async def _write(self, change: Change) -> int:
        self._store.write(change)
        self._catalogue = self._catalogue.apply(change)
        self._changes.append(change)
        await self._followers.tell()
        return change.epoch


class CatalogueActor:
    """`Registry` as a detached Ray actor over the SQL store."""

    def __init__(self, database_url: str) -> None:
        self._store_url = database_url
        self._registry: Registry | None = None

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Runs one method of Registry. A FenixError is returned, not raised, so that it keeps its type."""
        if method not in _METHODS:
            raise ValueError(method)
        try:
            if self._registry is None:
                self._registry = Registry(SqlCatalogueStore(self._store_url))
            return await getattr(self._registry, method)(*arguments)
        except FenixError as error:
            return error.with_traceback(None)
        except Exception as error:
            _log.exception("the catalogue could not %s", method)
            return StoreUnavailable(
                f"the catalogue failed ({type(error).__name__}: {error}).", hint="Nothing was changed."
            )


_METHODS = frozenset({"put", "remove", "profiles", "since", "followed"})


class RegistryClient:
    """The catalogue actor as seen from another process. Every method raises ClusterDown when it does not answer."""

    def __init__(self, timeout_s: float = 30.0) -> None:
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, "the catalogue")

    async def put(self, cards: Sequence[Card], goals: Sequence[Goal] = (), replace: bool = False) -> int:
        """See `Registry.put`."""
        return int(await self._call("put", tuple(cards), tuple(goals), replace))

    async def remove(self, cards: Sequence[ExtensionId] = (), goals: Sequence[str] = ()) -> int:
        """See `Registry.remove`."""
        return int(await self._call("remove", tuple(cards), tuple(goals)))

    async def profiles(self, measured: Mapping[ExtensionId, LatencyProfile]) -> int:
        """See `Registry.profiles`."""
        return int(await self._call("profiles", dict(measured)))

    async def since(self, epoch: int, wait_s: float, follower: str = "") -> list[Change]:
        """See `Registry.since`."""
        changes: list[Change] = await self._call("since", epoch, wait_s, follower)
        return changes

    async def followed(self, epoch: int, wait_s: float = 5.0) -> bool:
        """See `Registry.followed`."""
        return bool(await self._call("followed", epoch, wait_s))

    async def catalogue(self) -> Catalogue:
        """The whole catalogue as it is now."""
        (whole,) = await self.since(-1, 0.0)
        return Catalogue().apply(whole)

    async def _call(self, method: str, *arguments: Any) -> Any:
        """One call; while the actor is being restarted, tried again until `timeout_s` is over.

        Trying again is safe: a put of the same content changes nothing but the epoch; a remove whose answer was lost
        may end in NotFound.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_s
        pause_s = 0.05
        while True:
            try:
                reply = await self._actor.call("call", method, arguments, timeout_s=until_s - loop.time())
                break
            except ClusterDown:
                if loop.time() + pause_s > until_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
        if isinstance(reply, FenixError):
            raise reply
        return reply


def start_catalogue(database_url: str) -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    start_actor(CatalogueActor, ACTOR_NAME, database_url)


class CatalogueFollower:
    """Keeps a snapshot of the catalogue current in this process."""

    def __init__(self, client: RegistryClient, changed: Callable[[Catalogue], Awaitable[None]]) -> None:
        self._client = client
        self._changed = changed
        self._task: asyncio.Task[None] | None = None
        self._id = uuid.uuid4().hex
        self.catalogue = Catalogue(epoch=-1)

    async def start(self) -> None:
        """Fetches the catalogue, then follows it until `stop`. Raises ClusterDown when the first fetch fails."""
        await self._take(await self._client.since(-1, 0.0))
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="catalogue-follower")

    def ready(self) -> bool:
        """Whether there is a catalogue and someone keeps it current."""
        return self.catalogue.epoch >= 0 and self._task is not None and not self._task.done()

    async def _follow(self) -> None:
        pause_s = 0.1
        while True:
            try:
                await self._take(await self._client.since(self.catalogue.epoch, WATCH_S, self._id))
                pause_s = 0.1
            except ClusterDown as error:  # the last snapshot goes on serving meanwhile
                _log.warning("%s Trying again in %.1f s.", error.message, pause_s)
                await asyncio.sleep(pause_s)
                pause_s = min(2.0, pause_s * 2)

    async def _take(self, changes: Sequence[Change]) -> None:
        catalogue = self.catalogue
        for change in changes:
            catalogue = catalogue.apply(change)
        if changes:
            await self._changed(catalogue)
            self.catalogue = catalogue  # only now: `followed` tells others that requests are planned on it

    async def stop(self) -> None:
        """Ends the following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
