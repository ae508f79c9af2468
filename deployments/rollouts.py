"""The rollouts actor: keeps which version of each extension serves whom, and moves traffic by what became of it.

Gateways follow it by version, so that a change reaches all of them within a network round trip, and report what they
saw once a second. `planner/rollout/` decides; what is decided is stored before it is shown. While the actor is away
requests go on being shared out as they were.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from deployments.followers import Followers
from deployments.truths import Answers, judged
from lineage.journal import Page
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import BadRequest, Conflict, FenixError, NotFound, StoreUnavailable, near
from planner.rollout import rollout as steps
from planner.rollout.records import Decision, Observation, Pairs, Rollout, RolloutPlan
from planner.rollout.rollout import decide, follow, observe, settled
from planner.rollout.store import Changed, RolloutStore, after
from planner.rollout.traffic import Rules, rules_of

KEPT_EVENTS = 200
SETTLE_S = 2.0  # how long a command waits for the gateways to follow
STORE_S = 10.0  # how long the store may take for one write
JUDGED_AT_ONCE = 100  # of feedback, before others have their turn
_FEEDBACK = ""  # stands for feedback among the gateways whose evidence is not stored yet
_log = logging.getLogger("fenix.rollouts")

Seen = tuple[str, Observation | Pairs]  # of the rollout with this id


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to versions beside what is in a rollout's own history, at `at_s` since 1970."""

    at_s: float
    extension: str
    said: str


@dataclass(frozen=True, slots=True)
class Shown:
    """A rollout as it stands: what is decided of it now, whether all gateways share requests out accordingly, and which
    of the versions that can be gone back to are still deployed."""

    rollout: Rollout
    decision: Decision
    followed: bool = True
    warm: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Write:
    """A write that may not have ended. `owed` are the rollbacks that go along with what is `changed`."""

    task: asyncio.Task[None]
    changed: Changed
    owed: Mapping[str, Rollout]


class Rollouts:
    """All rollouts with their transitions: checks, stores, then shows. One event loop, one instance."""

    def __init__(
        self,
        store: RolloutStore,
        catalogue: Callable[[], Catalogue],
        clock: Callable[[], float] = time.time,
        name: str = "",
        store_s: float = STORE_S,
    ) -> None:
        """`clock` is since 1970. `name` is that of this life, a new one by default. A write that takes longer than
        `store_s` counts as failed until it ends."""
        self._store = store
        self._catalogue = catalogue
        self._clock = clock
        self._known = store.load()
        self._answers = Answers()
        self._events: deque[Event] = deque(maxlen=KEPT_EVENTS)
        self._store_s = store_s
        self._unstored: dict[str, Rollout] = {}  # rolled back while the store failed
        self._waiting: dict[str, tuple[int, tuple[Seen, ...]]] = {}  # by gateway, a report that is not stored yet
        self._write_begun: _Write | None = None
        self._writing = asyncio.Lock()
        self._followers = Followers()
        self._rules = Rules(name or uuid.uuid4().hex, 1)
        self._rules = self._ruled(1)

    # ------------------------------------------------------------------------------------------------- commands

    async def start(
        self, extension: str, version: str, plan: RolloutPlan | None = None, champion: str = "", by: str = ""
    ) -> Shown:
        """Begins to try `version` against the champion: the one of the last rollout, or the only other version, or the
        one that is named. Returns when gateways share requests out accordingly.

        Raises NotFound for versions that are not deployed, BadRequest where there is nothing to compare with or the
        ports differ, and Conflict where a rollout runs.
        """
        async with self._turn():
            new = self._card(extension, version)
            old = self._card(extension, champion or self._champion(new))
            _check_ports(old, new)
            before = self._known.rollouts.get(extension)
            others = tuple(c.version for c in self._catalogue().versions(extension) if c.version != version)
            former = () if before is None else (*before.former, before.champion)
            rollout = steps.start(
                extension,
                old.version,
                version,
                plan or RolloutPlan(),
                self._clock(),
                former=(*(one for one in others if one not in former), *(one for one in former if one != version)),
                others=self._known.rollouts.values(),
                by=by or "operator",
            )
            await self._write(Changed(rollouts=(rollout,), held=self._known.held - {new.id}))
        return await self._shown(extension)

    async def promote(self, extension: str, version: str = "", by: str = "", reason: str = "by hand") -> Shown:
        """Makes the challenger champion at once; or, where no rollout runs, any `version` that is deployed.

        Raises Conflict where nothing is to be promoted, or another version is being tried; NotFound.
        """
        async with self._turn():
            rollout = self._known.rollouts.get(extension)
            runs = rollout is not None and rollout.running
            if rollout is not None and (runs or not version):
                if version and version != rollout.challenger:
                    raise Conflict(
                        f"{extension} tries version {rollout.challenger} just now, not {version}.",
                        hint="Roll that back first.",
                    )
                self._card(extension, rollout.challenger)
                new = steps.promote(rollout, self._clock(), by=by or "operator", reason=reason)
            elif not version:
                raise self._unknown(extension)
            else:
                new = self._settled(extension, version, by or "operator")
            await self._write(Changed(rollouts=(new,)))
        return await self._shown(extension)

    async def roll_back(self, extension: str, to: str = "", by: str = "", reason: str = "by hand") -> Shown:
        """Back to `to`, or to the version that served before, at once. Where there was no rollout yet, `to` may be any
        version that is deployed; the others serve nobody from then on.

        Raises what `planner.rollout.rollout.roll_back` raises, and Conflict for a version that is not deployed any
        more.
        """
        async with self._turn():
            rollout = self._known.rollouts.get(extension)
            if rollout is None:
                if not to:
                    raise self._unknown(extension)
                new = self._settled(extension, to, by or "operator")
            else:
                new = steps.roll_back(rollout, self._clock(), by=by or "operator", to=to or None, reason=reason)
                if f"{extension}@{new.champion}" not in self._catalogue().cards:
                    raise Conflict(
                        f"version {new.champion} of {extension} is not deployed any more.",
                        hint="Deploy it again first, or name another with --to.",
                    )
            await self._write(Changed(rollouts=(new,)))
        return await self._shown(extension)

    async def pause(self, extension: str, by: str = "") -> Shown:
        """Keeps the share where it is; harm still rolls back."""
        return await self._step(extension, lambda rollout, now_s: steps.pause(rollout, now_s, by=by or "operator"))

    async def resume(self, extension: str, by: str = "") -> Shown:
        """Lets a paused rollout go on."""
        return await self._step(extension, lambda rollout, now_s: steps.resume(rollout, now_s, by=by or "operator"))

    async def abort(self, extension: str, by: str = "", reason: str = "by hand") -> Shown:
        """Ends a rollout without a judgement; the champion serves."""
        return await self._step(
            extension, lambda rollout, now_s: steps.abort(rollout, now_s, by=by or "operator", reason=reason)
        )

    async def hold(self, versions: Sequence[ExtensionId], wait_s: float = SETTLE_S) -> None:
        """These get no traffic from now on, until their rollout starts or they are released. Returns when gateways
        know it."""
        async with self._turn():
            await self._write(Changed(held=self._known.held | set(versions)))
        await self.followed(self._rules.version, wait_s)

    async def release(self, versions: Sequence[ExtensionId]) -> None:
        """They are not held any more."""
        async with self._turn():
            if self._known.held & set(versions):
                await self._write(Changed(held=self._known.held - set(versions)))

    async def leave(self, versions: Sequence[ExtensionId]) -> None:
        """These are about to be removed: a challenger's rollout is aborted, a former version cannot be gone back to.

        Raises Conflict for one that serves while others of its extension stay.
        """
        async with self._turn():
            changed: list[Rollout] = []
            forgotten: list[str] = []
            going = set(versions)
            for extension, rollout in self._known.rollouts.items():
                theirs = {id_ for id_ in going if id_.rpartition("@")[0] == extension}
                if not theirs:
                    continue
                left = [card for card in self._catalogue().versions(extension) if card.id not in theirs]
                if not left:
                    forgotten.append(extension)
                    continue
                if f"{extension}@{rollout.champion}" in theirs:
                    former = next((c.version for c in reversed(left) if c.version in rollout.former), "")
                    way = f" (`fenix rollout rollback {extension} --to {former}`)" if former else ""
                    raise Conflict(
                        f"version {rollout.champion} of {extension} serves.",
                        hint=f"Let another version serve first{way}, or remove all versions together.",
                    )
                new = rollout
                if rollout.running and f"{extension}@{rollout.challenger}" in theirs:
                    new = steps.abort(rollout, self._clock(), by="operator", reason="the version was removed")
                former_left = tuple(one for one in new.former if f"{extension}@{one}" not in theirs)
                changed.append(replace(new, former=former_left))
            held = self._known.held - going
            if changed or forgotten or held != self._known.held:
                await self._write(Changed(changed, forgotten, held=held))

    def known(self, extension: str) -> Rollout | None:
        """The last rollout of an extension."""
        return self._known.rollouts.get(extension)

    def aliases(self, model: str) -> Mapping[str, str] | None:
        """What MLflow and the cluster agreed on for a model; None where they never looked at each other."""
        return self._known.aliases.get(model)

    async def agree(self, model: str, aliases: Mapping[str, str]) -> None:
        """From now on that is agreed; durable when this returns."""
        async with self._turn():
            await self._write(Changed(aliases={**self._known.aliases, model: dict(aliases)}))

    async def note(self, extension: str, said: str) -> None:
        """Notes an event."""
        self._events.append(Event(self._clock(), extension, said))
        _log.info("%s: %s", extension, said)

    # ------------------------------------------------------------------------------------------------ questions

    async def status(self) -> tuple[Shown, ...]:
        """How the last rollout of each extension stands, by name."""
        return tuple(self._show(self._known.rollouts[name]) for name in sorted(self._known.rollouts))

    async def show(self, extension: str) -> tuple[Shown, tuple[Rollout, ...], tuple[Event, ...]]:
        """One of them, those before it (the latest first), and what else happened. Raises NotFound."""
        rollout = self._known.rollouts.get(extension)
        if rollout is None:
            raise self._unknown(extension)
        past = await asyncio.to_thread(self._store.past, extension)
        events = tuple(event for event in self._events if event.extension == extension)
        return self._show(rollout), tuple(one for one in past if one.id != rollout.id), events

    async def since(self, keeper: str, version: int, wait_s: float, follower: str = "") -> Rules:
        """The rules, once they are others than those of that version; waits up to `wait_s`. A follower that names
        itself counts in `followed`."""
        is_mine = keeper == self._rules.keeper
        if follower:
            await self._followers.asked(follower, version if is_mine else -1)
        if is_mine:
            await self._followers.until(lambda: self._rules.version != version, wait_s)
        return self._rules

    async def followed(self, version: int, wait_s: float) -> bool:
        """See `Followers.followed`."""
        return await self._followers.followed(version, wait_s)

    # ------------------------------------------------------------------------------------------------- evidence

    async def report(
        self, gateway: str, number: int, seen: Sequence[Seen], answers: Sequence[tuple[str, bytes]] = ()
    ) -> None:
        """Takes what a gateway saw since its last report: when this returns it is durable. When the store fails, harm
        that it shows is acted on all the same. `number` counts its reports; one that comes again counts once. `answers`
        are chunks of what versions would have answered, by rollout; they are remembered for a while, not for ever."""
        async with self._turn():
            if self._known.reports.get(gateway, -1) >= number:
                return
            changed = self._with(seen)
            if self._waiting.get(gateway, (-1, ()))[0] != number:
                for id_, chunk in answers:
                    if any(rollout.id == id_ and rollout.running for rollout in self._known.rollouts.values()):
                        self._answers.add(id_, chunk)
            self._waiting[gateway] = number, tuple(seen)
            if changed:
                await self._write(Changed(changed, reports={gateway: number}))
            self._waiting.pop(gateway, None)

    async def told(self, page: Page) -> None:
        """Takes truths and ratings into account; durable, with the place of the last, when this returns."""
        async with self._turn():
            if page.next_id <= self._known.feedback:
                return
            number, seen = self._waiting.get(_FEEDBACK, (-1, ()))
            if number != page.next_id:
                seen = await self._judged(page)
                self._waiting[_FEEDBACK] = page.next_id, seen
            await self._write(Changed(self._with(seen), feedback=page.next_id))

    async def _judged(self, page: Page) -> tuple[Seen, ...]:
        running = [rollout for rollout in self._known.rollouts.values() if rollout.running]
        seen: list[Seen] = []
        for first in range(0, len(page.items), JUDGED_AT_ONCE):
            seen += judged(running, page.items[first : first + JUDGED_AT_ONCE], self._answers)
            await asyncio.sleep(0)
        return tuple(seen)

    @property
    def feedback(self) -> int:
        """Up to where feedback counted."""
        return self._known.feedback

    @property
    def running_since_s(self) -> float | None:
        """When the first of the rollouts that run began, since 1970; None where none runs."""
        return min((one.started_s for one in self._known.rollouts.values() if one.running), default=None)

    async def act(self) -> None:
        """Does what the evidence asks for now. A rollback holds even while the store fails, and is stored later."""
        async with self._turn():
            failed: Exception | None = None
            for extension, rollout in list(self._known.rollouts.items()):
                if rollout.running and f"{extension}@{rollout.challenger}" in self._catalogue().cards:
                    try:
                        await self._act_on(rollout)
                    except Exception as error:  # the others have their turn
                        _log.warning("%s: %s", extension, error)
                        failed = failed or error
            running = {rollout.id for rollout in self._known.rollouts.values() if rollout.running}
            self._waiting = {
                gateway: (number, seen)
                for gateway, (number, seen) in self._waiting.items()
                if any(id_ in running for id_, _ in seen)
            }
            if self._unstored:
                await self._write(Changed())
            if failed is not None:
                raise failed

    async def _act_on(self, rollout: Rollout) -> None:
        now_s = self._clock()
        decision = decide(rollout, now_s)
        waiting = [one for _, seen in self._waiting.values() for id_, one in seen if id_ == rollout.id]
        if waiting and decision.action != "roll_back":
            with_all = observe(rollout, waiting)
            harm = decide(with_all, now_s)
            if harm.action == "roll_back":  # for anything else only what is durable counts
                rollout, decision = with_all, harm
        if decision.action == "keep":
            return
        new = follow(rollout, decision, now_s)
        _log.info("%s: %s %s: %s", rollout.extension, decision.action, rollout.challenger, decision.reason)
        await self._write(Changed((new,)), must_hold=decision.action == "roll_back")

    def _with(self, seen: Sequence[Seen]) -> tuple[Rollout, ...]:
        """The rollouts with more evidence; what is about others is passed over."""
        by_id: dict[str, list[Observation | Pairs]] = {}
        for id_, one in seen:
            by_id.setdefault(id_, []).append(one)
        return tuple(
            observe(rollout, by_id[rollout.id])
            for rollout in self._known.rollouts.values()
            if rollout.running and rollout.id in by_id
        )

    # -------------------------------------------------------------------------------------------------- helpers

    async def _step(self, extension: str, step: Callable[[Rollout, float], Rollout]) -> Shown:
        async with self._turn():
            rollout = self._known.rollouts.get(extension)
            if rollout is None:
                raise self._unknown(extension)
            await self._write(Changed((step(rollout, self._clock()),)))
        return await self._shown(extension)

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One at a time changes what is known. A write that was late counts from here on, if it has ended well."""
        async with self._writing:
            write = self._write_begun
            if write is not None and write.task.done():
                self._write_begun = None
                if write.task.exception() is None:
                    self._settle(write)
                    changed, since = write.changed, self._unstored
                    await self._take(
                        replace(
                            changed,
                            rollouts=[one for one in changed.rollouts if one.extension not in since],
                            forgotten=[one for one in changed.forgotten if one not in since],
                        )
                    )
            yield

    async def _write(self, changed: Changed, *, must_hold: bool = False) -> None:
        """Stores, then shows; what `must_hold` is shown even if it cannot be stored."""
        try:
            await self._store_soon(changed)
        except StoreUnavailable:
            if not must_hold:
                raise
            self._unstored.update((rollout.extension, rollout) for rollout in changed.rollouts)
            _log.exception("rolled back, and not stored yet")
        await self._take(changed)

    async def _store_soon(self, changed: Changed) -> None:
        """Stores that, after the rollbacks that could not be stored before. Raises StoreUnavailable when it fails or
        takes too long; it may then still come to pass, and nothing else is written before it ended."""
        if self._write_begun is not None:
            raise _late()
        ids = {rollout.id for rollout in changed.rollouts}
        owed = tuple(rollout for rollout in self._unstored.values() if rollout.id not in ids)
        whole = replace(changed, rollouts=(*owed, *changed.rollouts))
        task = asyncio.create_task(asyncio.to_thread(self._store.write, whole))
        self._write_begun = _Write(task, changed, dict(self._unstored))
        done, _ = await asyncio.wait({task}, timeout=self._store_s)
        if not done:
            raise _late()
        write, self._write_begun = self._write_begun, None
        task.result()
        self._settle(write)

    def _settle(self, write: _Write) -> None:
        """What went along with it is stored."""
        for extension, rollout in write.owed.items():
            if self._unstored.get(extension) is rollout:
                del self._unstored[extension]

    async def _take(self, changed: Changed) -> None:
        """Shows what is changed."""
        for gateway, number in changed.reports.items():
            if self._waiting.get(gateway, (number + 1, ()))[0] <= number:
                del self._waiting[gateway]
        if changed.feedback is not None:
            self._waiting.pop(_FEEDBACK, None)
        self._known = after(self._known, changed)
        for rollout in changed.rollouts:
            if not rollout.running:
                self._answers.forget(rollout.id)
        rules = self._ruled(self._rules.version + 1)
        if (rules.traffic, rules.held) != (self._rules.traffic, self._rules.held):
            self._rules = rules
            await self._followers.tell()

    def _ruled(self, version: int) -> Rules:
        return rules_of(self._known.rollouts.values(), self._known.held, self._rules.keeper, version)

    async def _shown(self, extension: str) -> Shown:
        followed = await self.followed(self._rules.version, SETTLE_S)
        return replace(self._show(self._known.rollouts[extension]), followed=followed)

    def _show(self, rollout: Rollout) -> Shown:
        cards = self._catalogue().cards
        warm = tuple(version for version in rollout.former if f"{rollout.extension}@{version}" in cards)
        decision = decide(rollout, self._clock())
        return Shown(rollout, decision, True, warm)

    def _card(self, extension: str, version: str) -> Card:
        catalogue = self._catalogue()
        card = catalogue.cards.get(ExtensionId(f"{extension}@{version}"))
        if card is None:
            versions = [card.version for card in catalogue.versions(extension)]
            if not versions:
                raise NotFound(f"no extension {extension!r}.", hint=near(extension, {c.name for c in _all(catalogue)}))
            raise NotFound(
                f"version {version} of {extension} is not deployed.",
                hint=f"Deploy it first; there are: {', '.join(versions)}.",
            )
        return card

    def _champion(self, new: Card) -> str:
        """The version that a new one is tried against where none is named."""
        last = self._known.rollouts.get(new.name)
        if last is not None and f"{new.name}@{last.champion}" in self._catalogue().cards:
            return last.champion
        others = [
            card.version
            for card in self._catalogue().versions(new.name)
            if card.version != new.version and card.id not in self._known.held
        ]
        if len(others) == 1:
            return others[0]
        if others:
            raise BadRequest(
                f"{new.name} has several versions beside {new.version}: {', '.join(others)}.",
                hint="Name the one that it is tried against (champion).",
            )
        raise BadRequest(
            f"{new.id} is the only version, so it serves already.", hint="Deploy another version, and start that."
        )

    def _settled(self, extension: str, version: str, by: str) -> Rollout:
        """The record of an extension of which `version` serves from now on."""
        card = self._card(extension, version)
        last = self._known.rollouts.get(extension)
        others = tuple(c.version for c in self._catalogue().versions(extension) if c.id != card.id)
        before = () if last is None else tuple(v for v in (*last.former, last.champion) if v != version)
        if last is not None and last.champion == version:
            raise Conflict(f"version {version} of {extension} serves all requests already.")
        former = (*(one for one in others if one not in before), *before)
        return settled(extension, version, self._clock(), former, by=by)

    def _unknown(self, extension: str) -> FenixError:
        if not self._catalogue().versions(extension):
            return NotFound(
                f"no extension {extension!r}.", hint=near(extension, {c.name for c in _all(self._catalogue())})
            )
        return NotFound(
            f"{extension} had no rollout yet.",
            hint=f"Start one: `fenix rollout start {extension}@VERSION`; or name the version that is to serve.",
        )


def _late() -> StoreUnavailable:
    return StoreUnavailable(
        "the database takes too long.", hint="It may have been done all the same: see `fenix rollout status`."
    )


def _all(catalogue: Catalogue) -> Sequence[Card]:
    return list(catalogue.cards.values())


def _check_ports(old: Card, new: Card) -> None:
    for side, theirs, ours in (("inputs", old.inputs, new.inputs), ("outputs", old.outputs, new.outputs)):
        if {port.name: port for port in theirs} != {port.name: port for port in ours}:
            raise BadRequest(
                f"{new.id} has other {side} than {old.id}, so it cannot stand in for it.",
                hint="Deploy it under a name of its own.",
            )


def shares_of(shown: Shown) -> Mapping[str, float]:
    """The share of requests that each version serves."""
    rollout = shown.rollout
    shares = {rollout.champion: 1.0 - rollout.share}
    return {**shares, rollout.challenger: rollout.share} if rollout.running else shares
