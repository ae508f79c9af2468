"""`Rollouts` as a detached Ray actor; how others call it, and how gateways follow it."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import uuid
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from deployments.actors import ActorHandle, start_actor
from deployments.aliases import AliasKeeper
from deployments.applications import Installation
from deployments.followers import WATCH_S
from deployments.ledger import LedgerClient
from deployments.registry import CatalogueFollower, RegistryClient
from deployments.rollouts import Event, Rollouts, Seen, Shown
from lineage.journal import Page
from planner.cards import ExtensionId
from planner.catalogue import Catalogue
from planner.errors import ClusterDown, Conflict, FenixError
from planner.rollout.records import Rollout, RolloutPlan
from planner.rollout.store import SqlRolloutStore
from planner.rollout.traffic import Rules, rules_of

ACTOR_NAME = "fenix-rollouts"
PACE_S = 1.0
ALIASES_EVERY_S = 5.0
RIPE_S = 3.0  # feedback counts so long after it came: what the other version would have said comes later
SELDOM_S = 5.0  # where none comes, looking for some goes through a million rows in 0.3 s
MOST_TOLD = 5_000  # of feedback at once
_log = logging.getLogger("fenix.rollouts")
_T = TypeVar("_T")


class RolloutsActor:
    """Begins when somebody first asks; what it must know is in the database."""

    def __init__(self, installation: Installation) -> None:
        _log.setLevel(logging.INFO)  # in an actor nobody else sets logging up, and what it does is seldom
        _log.addHandler(logging.StreamHandler())
        self._installation = installation
        self._catalogue = Catalogue()
        self._follower = CatalogueFollower(RegistryClient(), self._follow)
        self._ledger = None if installation.journal is None else LedgerClient()
        self._opening = asyncio.Lock()
        self._rollouts: Rollouts | None = None
        self._tending: list[asyncio.Task[None]] = []
        self._pages: deque[tuple[float, Page]] = deque()  # of feedback, each with when it counts
        self._ask_s = 0.0  # not for more before

    async def call(self, method: str, arguments: tuple[Any, ...]) -> Any:
        """Runs one method of Rollouts. A FenixError is returned, not raised, so that it keeps its type."""
        if method not in _METHODS:
            raise ValueError(method)
        try:
            return await getattr(await self._opened(), method)(*arguments)
        except FenixError as error:
            return error.with_traceback(None)
        except Exception as error:
            _log.exception("the rollouts could not %s", method)
            return FenixError(
                f"the rollouts failed ({type(error).__name__}: {error}).",
                hint="Nothing was changed. This is a defect; the log of their actor says where.",
            )

    async def _opened(self) -> Rollouts:
        async with self._opening:
            if self._rollouts is None:
                if not self._follower.ready():
                    await self._follower.start()
                store = await asyncio.to_thread(SqlRolloutStore, self._installation.database_url)
                self._rollouts = await asyncio.to_thread(Rollouts, store, lambda: self._catalogue)
            if not self._tending or any(task.done() for task in self._tending):
                self._tend(self._rollouts)
        return self._rollouts

    async def _follow(self, catalogue: Catalogue) -> None:
        self._catalogue = catalogue

    def _tend(self, rollouts: Rollouts) -> None:
        for task in self._tending:
            task.cancel()
        loop = asyncio.get_running_loop()
        aliases = AliasKeeper(rollouts, self._installation, lambda: self._catalogue)
        works: dict[str, tuple[Callable[[], Awaitable[None]], float]] = {}
        works |= {"decide": (rollouts.act, PACE_S), "aliases": (aliases.look, ALIASES_EVERY_S)}
        if self._ledger is not None:
            works["truths"] = (lambda: self._hear(rollouts), PACE_S)
        self._tending = [
            loop.create_task(_again(name, work, pause_s), name=f"rollouts-{name}", context=contextvars.Context())
            for name, (work, pause_s) in works.items()
        ]

    async def _hear(self, rollouts: Rollouts) -> None:
        """Takes in the feedback that came since the first of the rollouts that run began."""
        assert self._ledger is not None
        now_s = asyncio.get_running_loop().time()
        since_s = rollouts.running_since_s
        if since_s is None:
            self._pages.clear()
            return
        if now_s >= self._ask_s:
            asked = self._pages[-1][1].next_id if self._pages else rollouts.feedback
            page = await self._ledger.joined(asked, MOST_TOLD, since_s)
            if page.next_id > asked:
                self._pages.append((now_s + RIPE_S, page))
            else:
                self._ask_s = now_s + SELDOM_S
        while self._pages and self._pages[0][0] <= now_s:
            await rollouts.told(self._pages[0][1])
            self._pages.popleft()


_METHODS = frozenset(
    {
        "start",
        "promote",
        "roll_back",
        "pause",
        "resume",
        "abort",
        "hold",
        "release",
        "leave",
        "status",
        "show",
        "since",
        "followed",
        "report",
    }
)


async def _again(name: str, work: Callable[[], Awaitable[None]], pause_s: float) -> None:
    """Does it again and again, for ever; what fails is tried again."""
    while True:
        try:
            await work()
        except FenixError as error:
            _log.warning("%s: %s", name, error.text())
        except Exception:
            _log.exception("%s", name)
        await asyncio.sleep(pause_s)


def start_rollouts(installation: Installation) -> None:
    """Starts the actor, or leaves the one that runs. It outlives this process and restarts when it dies."""
    start_actor(RolloutsActor, ACTOR_NAME, installation)


class RolloutsClient:
    """The rollouts as seen from another process. Every method raises ClusterDown when the actor does not answer."""

    def __init__(self, timeout_s: float = 20.0) -> None:
        """While the actor is being restarted, commands are tried again until `timeout_s` is over."""
        self._timeout_s = timeout_s
        self._actor = ActorHandle(ACTOR_NAME, "the keeper of rollouts")

    async def start(
        self, extension: str, version: str, plan: RolloutPlan | None = None, champion: str = "", by: str = ""
    ) -> Shown:
        """See `Rollouts.start`."""
        return await self._shown("start", by, extension, version, plan, champion, by)

    async def promote(self, extension: str, version: str = "", by: str = "", reason: str = "by hand") -> Shown:
        """See `Rollouts.promote`."""
        return await self._shown("promote", by, extension, version, by, reason)

    async def roll_back(self, extension: str, to: str = "", by: str = "", reason: str = "by hand") -> Shown:
        """See `Rollouts.roll_back`."""
        return await self._shown("roll_back", by, extension, to, by, reason)

    async def pause(self, extension: str, by: str = "") -> Shown:
        """See `Rollouts.pause`."""
        return await self._shown("pause", by, extension, by)

    async def resume(self, extension: str, by: str = "") -> Shown:
        """See `Rollouts.resume`."""
        return await self._shown("resume", by, extension, by)

    async def abort(self, extension: str, by: str = "", reason: str = "by hand") -> Shown:
        """See `Rollouts.abort`."""
        return await self._shown("abort", by, extension, by, reason)

    async def hold(self, versions: Sequence[ExtensionId]) -> None:
        """See `Rollouts.hold`."""
        await self._patiently("hold", tuple(versions))

    async def release(self, versions: Sequence[ExtensionId]) -> None:
        """See `Rollouts.release`."""
        await self._patiently("release", tuple(versions))

    async def leave(self, versions: Sequence[ExtensionId]) -> None:
        """See `Rollouts.leave`."""
        await self._patiently("leave", tuple(versions))

    async def status(self) -> tuple[Shown, ...]:
        """See `Rollouts.status`."""
        found: tuple[Shown, ...] = await self._patiently("status")
        return found

    async def show(self, extension: str) -> tuple[Shown, tuple[Rollout, ...], tuple[Event, ...]]:
        """See `Rollouts.show`."""
        found: tuple[Shown, tuple[Rollout, ...], tuple[Event, ...]] = await self._patiently("show", extension)
        return found

    async def since(self, keeper: str, version: int, wait_s: float, follower: str = "") -> Rules:
        """See `Rollouts.since`. Tried once."""
        rules: Rules = await self._once("since", (keeper, version, wait_s, follower), wait_s + 5.0)
        return rules

    async def report(
        self, gateway: str, number: int, seen: Sequence[Seen], answers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """See `Rollouts.report`. Tried once; doing it again is safe."""
        await self._once("report", (gateway, number, tuple(seen), tuple(answers)), self._timeout_s)

    async def _shown(self, method: str, by: str, extension: str, *arguments: Any) -> Shown:
        """The command, done once. Its reply may be lost and the command be done all the same: then it is a Conflict the
        second time, and what stands there is the answer."""
        tries = 0

        async def command(left_s: float) -> Shown:
            nonlocal tries
            tries += 1
            shown: Shown = await self._once(method, (extension, *arguments), left_s)
            return shown

        try:
            return await self._until_answered(command)
        except Conflict:
            if tries == 1:
                raise
            shown, *_ = await self.show(extension)
            if not _is_done(shown.rollout, method, by):
                raise
            return shown

    async def _patiently(self, method: str, *arguments: Any) -> Any:
        """For what changes nothing the second time."""
        return await self._until_answered(lambda left_s: self._once(method, arguments, left_s))

    async def _until_answered(self, ask: Callable[[float], Awaitable[_T]]) -> _T:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self._timeout_s
        pause_s = 0.05
        while True:
            try:
                return await ask(until_s - loop.time())
            except ClusterDown:
                if loop.time() + pause_s > until_s:
                    raise
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)

    async def _once(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
        reply = await self._actor.call("call", method, arguments, timeout_s=timeout_s)
        if isinstance(reply, FenixError):
            raise reply
        return reply


def _is_done(rollout: Rollout, method: str, by: str) -> bool:
    """Whether the last that happened to a rollout is this command. Going back where there was no rollout yet is noted
    as a promotion."""
    last = rollout.history[-1]
    is_it = last.action == method or (method, last.action) == ("roll_back", "promote")
    return is_it and last.by == (by or "operator")


def stored_rules(database_url: str) -> Rules:
    """The rules as the database has them, for who finds nobody to ask. Raises StoreUnavailable."""
    store = SqlRolloutStore(database_url)
    try:
        known = store.load()
    finally:
        store.close()
    return rules_of(known.rollouts.values(), known.held)


class RulesFollower:
    """Keeps the rules current in this process."""

    def __init__(
        self, client: RolloutsClient, changed: Callable[[Rules], None], stored: Callable[[], Rules] | None = None
    ) -> None:
        """`stored` reads the rules, on a thread, where nobody tells them."""
        self._client = client
        self._changed = changed
        self._stored = stored
        self._task: asyncio.Task[None] | None = None
        self._id = uuid.uuid4().hex
        self.rules = Rules()

    async def start(self, within_s: float = 10.0) -> None:
        """Fetches the rules, then follows them until `stop`. When nobody answers within `within_s` it begins with those
        that are stored, or, where not even these can be had, without: requests are answered all the same."""
        try:
            async with asyncio.timeout(within_s):
                while not self.rules.keeper:
                    try:
                        self._take(await self._client.since("", 0, 0.0))
                    except FenixError:
                        await asyncio.sleep(0.1)
        except TimeoutError:
            await self._take_stored(within_s)
        self._task = asyncio.get_running_loop().create_task(
            self._follow(), name="rules-follower", context=contextvars.Context()
        )

    async def _take_stored(self, within_s: float) -> None:
        if self._stored is not None:
            try:
                async with asyncio.timeout(within_s):
                    self._take(await asyncio.to_thread(self._stored))
            except (FenixError, TimeoutError) as error:
                _log.warning("the rules cannot be read: %s", error)
            else:
                _log.warning("nobody says who is on trial: what is stored holds until somebody does")
                return
        _log.warning("nobody says who is on trial: all versions serve until somebody does")

    def alive(self) -> bool:
        """Whether someone keeps them current; for the health check of the owner."""
        return self._task is not None and not self._task.done()

    async def stop(self) -> None:
        """Ends the following."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _take(self, rules: Rules) -> None:
        if (rules.keeper, rules.version) != (self.rules.keeper, self.rules.version) or not rules.keeper:
            self._changed(rules)
            self.rules = rules  # only now: `followed` tells others that requests are shared out so

    async def _follow(self) -> None:
        pause_s = 0.05
        while True:
            try:
                self._take(await self._client.since(self.rules.keeper, self.rules.version, WATCH_S, self._id))
                pause_s = 0.05
                continue
            except FenixError as error:  # the last rules hold meanwhile
                _log.debug("%s", error.text())
            except Exception:
                _log.exception("the rules could not be followed: the last ones hold")
            await asyncio.sleep(pause_s)
            pause_s = min(1.0, pause_s * 2)
