"""The steward: puts chains that run all the time into one deployment, and takes them apart when that no longer pays.

Gateways tell it what they ran; `planner/fusion.py` decides; it carries that out, one thing at a time, through the same
door as everybody else (`deployments/deployer.py`). Nothing waits for it: while it is away, nothing is fused.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ray import serve

from deployments.actors import ActorHandle, start_actor
from deployments.applications import Installation, delete
from deployments.deployer import deploying, removing
from deployments.registry import CatalogueFollower, RegistryClient
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import FenixError
from planner.fusion import Fuse, Fusion, Retire, Rules, Use

ACTOR_NAME = "fenix-steward"
KEPT_EVENTS = 200
SETTLE_S = 5.0  # how long the catalogue may take to show what was done
_log = logging.getLogger("fenix.steward")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that the steward did, at `at_s` in seconds since 1970."""

    at_s: float
    action: Literal["fused", "retired", "failed"]
    extension: ExtensionId
    parts: tuple[ExtensionId, ...]
    why: str


Deploy = Callable[[Card], Awaitable[object]]
Remove = Callable[[ExtensionId], Awaitable[object]]


class Steward:
    """What the actor does, without Ray. `clock` is steady, `wall` since 1970, both in seconds."""

    def __init__(
        self,
        rules: Rules,
        catalogue: Callable[[], Catalogue],
        deploy: Deploy,
        remove: Remove,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self._fusion = Fusion(rules, clock())
        self._catalogue = catalogue
        self._deploy = deploy
        self._remove = remove
        self._clock = clock
        self._wall = wall
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)

    @property
    def pace_s(self) -> float:
        return self._fusion.rules.pace_s

    def report(self, uses: Sequence[Use]) -> float:
        """Takes in what a gateway ran since its last report; returns after how many seconds to report again."""
        self._fusion.told(uses, self._clock())
        return self.pace_s

    def events(self) -> tuple[Event, ...]:
        """What was done, oldest first."""
        return tuple(self._events)

    async def act(self) -> Event | None:
        """Does the next thing, if there is one. What cannot be done is noted, and left alone for a while."""
        decision = self._fusion.decide(self._catalogue(), self._clock())
        if decision is None:
            return None
        id_ = decision.card.id if isinstance(decision, Fuse) else decision.extension
        try:
            event = await self._done(decision, id_)
        except FenixError as error:
            event = self._failed(decision, id_, error.text())
        except Exception as error:
            _log.exception("%s", id_)
            event = self._failed(decision, id_, f"{type(error).__name__}: {error}")
        self._events.append(event)
        _log.info("%s %s: %s", event.action, event.extension, event.why)
        return event

    async def _done(self, decision: Fuse | Retire, id_: ExtensionId) -> Event:
        if isinstance(decision, Fuse):
            await self._deploy(decision.card)
        else:
            await self._remove(id_)
        return Event(
            self._wall(), "fused" if isinstance(decision, Fuse) else "retired", id_, decision.parts, decision.why
        )

    def _failed(self, decision: Fuse | Retire, id_: ExtensionId, why: str) -> Event:
        if isinstance(decision, Fuse):
            self._fusion.failed(id_, self._clock())
        return Event(self._wall(), "failed", id_, decision.parts, why)


class StewardActor:
    """`Steward` as a detached Ray actor. Begins when a gateway first reports; what is fused it knows from the
    catalogue."""

    def __init__(self, installation: Installation) -> None:
        _log.setLevel(logging.INFO)  # in an actor nobody else sets logging up, and what it does is seldom
        _log.addHandler(logging.StreamHandler())
        self._installation = installation
        self._catalogue = Catalogue()
        self._changed = asyncio.Condition()
        self._follower = CatalogueFollower(RegistryClient(), self._follow)
        self._steward = Steward(
            installation.fusion or Rules(),
            lambda: self._catalogue,
            self._deploy,
            self._remove,
            time.monotonic,
            time.time,
        )
        self._tending: asyncio.Task[None] | None = None

    async def report(self, uses: Sequence[Use]) -> float:
        """See `Steward.report`."""
        if self._tending is None or self._tending.done():
            self._tending = asyncio.get_running_loop().create_task(
                self._tend(), name="steward", context=contextvars.Context()
            )
        return self._steward.report(uses)

    async def events(self) -> tuple[Event, ...]:
        """See `Steward.events`."""
        return self._steward.events()

    async def _tend(self) -> None:
        """Does one thing after the other, for ever."""
        try:
            if not self._follower.ready():
                await self._follower.start()
                await self._sweep()
            while True:
                await asyncio.sleep(self._steward.pace_s)
                await self._steward.act()
        except Exception:
            _log.exception("the steward stopped; it begins again with the next report")
            raise

    async def _deploy(self, card: Card) -> None:
        await deploying([card], [], self._installation, _log.info)
        await self._shown(card.id, there=True)

    async def _remove(self, extension: ExtensionId) -> None:
        await removing([extension], [], _log.info)
        await self._shown(extension, there=False)

    async def _shown(self, extension: ExtensionId, there: bool) -> None:
        """Waits until the catalogue here shows what was done, so that it is not done twice."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SETTLE_S), self._changed:
                await self._changed.wait_for(lambda: (extension in self._catalogue.cards) == there)

    async def _follow(self, catalogue: Catalogue) -> None:
        async with self._changed:
            self._catalogue = catalogue
            self._changed.notify_all()

    async def _sweep(self) -> None:
        """Ends fused applications that no catalogue knows: what was being done when an earlier steward died."""
        applications = await asyncio.to_thread(lambda: serve.status().applications)
        known = self._catalogue.cards
        await delete([ExtensionId(name) for name in applications if name.startswith("fused.") and name not in known])


def start_steward(installation: Installation) -> None:
    """Starts the actor, or leaves the one that runs; none where nothing is to be fused. It outlives this process and
    restarts when it dies."""
    if installation.fusion is not None:
        start_actor(StewardActor, ACTOR_NAME, installation)


class StewardClient:
    """The steward as seen from another process. Every method raises ClusterDown when it does not answer in time."""

    def __init__(self, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, "the steward")

    async def report(self, uses: Sequence[Use]) -> float:
        """See `Steward.report`."""
        return float(await self._actor.call("report", list(uses), timeout_s=self._timeout_s))

    async def events(self) -> tuple[Event, ...]:
        """See `Steward.events`."""
        events: tuple[Event, ...] = await self._actor.call("events", timeout_s=self._timeout_s)
        return events
