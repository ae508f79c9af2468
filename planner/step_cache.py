"""The step cache: what an extension gave for a row is given again for an equal row, and computed once at a time.

It stands before an extension's queue and works row by row (`submit`): rows that are kept are answered without a call,
rows that another request has under way are waited for, and only the others travel. A request never depends on the
luck of another one: where what it waits for fails or is cancelled, it computes those rows itself.

`planner/step_rows.py` makes keys and kept rows, `planner/step_store.py` holds them; neither knows of waiting.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from time import perf_counter

import numpy as np

from planner.batching import Done
from planner.calls import Part, Produced, RemoteArray, local
from planner.cards import Card, ExtensionId
from planner.features import DATATYPES
from planner.step_rows import KeptRow, Key, joined_rows, kept_rows, row_keys
from planner.step_store import StepStore
from planner.tokens import Token

# Inputs, rows, token, and the event loop's time until which the answer is awaited: `Batcher.submit`.
Submit = Callable[[Mapping[str, Part], int, Token, float], Awaitable[Done]]

# A request of one row takes 13 microseconds more with a hit and 22 with a miss; of 64 rows 1.5 and 3 a row.
ROW_MS = 0.02  # to look up and keep a row that comes alone
BYTE_MS = 1e-6  # to hash a byte of it (sha256 runs at 1.3 GB/s)
PAYS = 10.0  # worth it from one hit in so many: a cache that never hits adds at most a tenth to the work
_FREE_ELEMENTS = 1000  # in a row of free size, for want of better
_BESIDE_BYTES = 1 << 20  # inputs from this size on (0.8 ms) are hashed on a thread, for the sake of the event loop


@dataclass(frozen=True, slots=True)
class StepCacheCounts:
    """Rows since the start: `hits` found, `joined` computed by another request at that moment (or twice in one
    request), `misses` computed, `passed` computed without the cache, `evictions` given up for want of room. Held now:
    `n_rows` in `n_bytes`.
    """

    hits: int
    joined: int
    misses: int
    passed: int
    evictions: int
    n_rows: int
    n_bytes: int


@dataclass(slots=True, eq=False)
class _Call:
    """Rows under way. `ended` is set in any case; `rows` are there if it went well."""

    priority: int
    until_s: float
    ended: asyncio.Future[None]
    rows: Mapping[Key, KeptRow] = field(default_factory=dict)
    done: Done | None = None


@dataclass(slots=True, eq=False)
class _Space:
    """What is known of one extension version as it is: another deployment under the same id gets another one."""

    card: Card
    prefix: bytes
    worth: bool
    under_way: dict[Key, _Call] = field(default_factory=dict)


class StepCache:
    """Results of steps, at most `max_bytes` of them. Belongs to one event loop; not thread-safe."""

    def __init__(self, max_bytes: int = 256 << 20) -> None:
        self._store = StepStore(max_bytes)
        self._spaces: dict[ExtensionId, _Space] = {}
        self._hits = self._joined = self._misses = self._passed = 0

    @property
    def counts(self) -> StepCacheCounts:
        held = self._store.counts
        return StepCacheCounts(
            self._hits, self._joined, self._misses, self._passed, held.evictions, held.n_rows, held.n_bytes
        )

    def keep_only(self, extensions: Iterable[ExtensionId]) -> None:
        """Forgets extensions that are gone; what they still have under way is answered, but not kept."""
        for gone in self._spaces.keys() - set(extensions):
            self._forget(gone)

    async def submit(
        self,
        card: Card,
        inputs: Mapping[str, Part],
        n_rows: int,
        token: Token,
        submit: Submit,
        until_s: float | None = None,
    ) -> Done:
        """What `submit` would answer; it is called for the rows that are not known, if any, and raises as it does.

        Rows come in order and bit for bit as they were computed, with their confidence, in read-only arrays or those
        that `submit` returned. `batch_rows` of the answer is 0 where nothing had to be computed. What cannot or may
        not be cached goes through: remote arrays, cards that are not worth it, requests without a user where the card
        says "user". `until_s` is event loop time; None is the token's.
        """
        until_s = token.until_s if until_s is None else until_s
        space = self._space(card)
        who = _who(card, token) if space.worth else None
        keys = None if who is None else await _keys(space.prefix + who, inputs, n_rows)
        if keys is None:
            self._passed += n_rows
            return await submit(inputs, n_rows, token, until_s)
        ask = _Request(self, space, inputs, keys, token, submit, until_s)
        done = await ask.answer()
        if done is None:  # the rows do not lie in one array as they were kept: only one call can tell
            self._passed += n_rows
            done = await submit(inputs, n_rows, token, until_s)
        return done

    def find(self, space: _Space, keys: Sequence[Key]) -> dict[Key, KeptRow]:
        """Those of the rows that are kept."""
        found = self._store.get(space.card.id, keys)
        self._hits += len(found)
        return found

    def keep(self, space: _Space, user: str, rows: Mapping[Key, KeptRow]) -> None:
        """Keeps rows that `user` had computed, unless the extension is gone."""
        if self._spaces.get(space.card.id) is space:
            self._store.put(space.card.id, user, list(rows), list(rows.values()))

    def count(self, *, joined: int = 0, misses: int = 0) -> None:
        self._joined += joined
        self._misses += misses

    def _space(self, card: Card) -> _Space:
        space = self._spaces.get(card.id)
        if space is not None and space.card is card:
            return space
        if space is not None and space.card.identity == card.identity:
            space.card, space.worth = card, worth_caching(card)  # it was measured again, or the operator changed it
            if not space.worth:
                self._store.drop(card.id)
            return space
        self._forget(card.id)
        # In the keys too: who was on the hashing thread when the space changed must not find the other's rows.
        prefix = sha256(repr(card.identity).encode()).digest()
        space = self._spaces[card.id] = _Space(card, prefix, worth_caching(card))
        return space

    def _forget(self, extension: ExtensionId) -> None:
        self._spaces.pop(extension, None)
        self._store.drop(extension)


class _Request:
    """One request's way through the cache."""

    def __init__(
        self,
        cache: StepCache,
        space: _Space,
        inputs: Mapping[str, Part],
        keys: Sequence[Key],
        token: Token,
        submit: Submit,
        until_s: float,
    ) -> None:
        self._cache = cache
        self._space = space
        self._inputs = inputs
        self._keys = keys
        self._at = {key: at for at, key in enumerate(keys)}  # one row of each kind, if there are equal ones
        self._token = token
        self._submit = submit
        self._until_s = until_s
        self._since_s = perf_counter()
        self._rows: dict[Key, KeptRow] = {}
        self._calls: list[Done] = []  # what this answer is made of, besides kept rows

    async def answer(self) -> Done | None:
        """None where the rows cannot be put together."""
        cache, space = self._cache, self._space
        cache.count(joined=len(self._keys) - len(self._at))
        self._rows = cache.find(space, list(self._at))
        missing = [key for key in self._at if key not in self._rows]
        theirs = {key: call for key in missing if (call := self._under_way(key)) is not None}
        mine = [key for key in missing if key not in theirs]
        if mine:
            done = await self._compute(mine)
            if len(mine) == len(self._keys):
                return done
        if theirs:
            # Whoever waits here has nothing left that others wait for, so requests cannot wait in a circle.
            await self._wait(theirs)
            # What failed for them is ours to compute, and not to be waited for again: two calls at most.
            if failed := [key for key in theirs if key not in self._rows]:
                done = await self._compute(failed)
                if len(failed) == len(self._keys):
                    return done
        return self._joined()

    def _under_way(self, key: Key) -> _Call | None:
        """The call that computes this row now, if it is as urgent as this request: the less urgent waits longer."""
        call = self._space.under_way.get(key)
        if call is None or call.priority > self._token.priority or call.until_s > self._until_s:
            return None
        return call

    async def _compute(self, keys: Sequence[Key]) -> Done:
        """Runs these rows, lets others take part, and keeps what can be kept."""
        cache, under_way = self._cache, self._space.under_way
        cache.count(misses=len(keys))
        call = _Call(self._token.priority, self._until_s, asyncio.get_running_loop().create_future())
        under_way.update(dict.fromkeys(keys, call))
        try:
            done = await self._submit(self._cut(keys), len(keys), self._token, self._until_s)
            rows = kept_rows(done.outputs, len(keys))
            if rows is not None:
                call.rows, call.done = dict(zip(keys, rows, strict=True)), done
                cache.keep(self._space, self._token.user, call.rows)
        finally:
            for key in keys:
                if under_way.get(key) is call:
                    del under_way[key]
            call.ended.set_result(None)
        self._calls.append(done)
        if len(keys) < len(self._keys):
            if rows is None:  # large results lie in the object store: they are not kept, but needed here
                rows = kept_rows(await _local(done.outputs), len(keys))
            self._rows.update(zip(keys, rows or (), strict=False))
        return done

    async def _wait(self, theirs: Mapping[Key, _Call]) -> None:
        """Until the calls of others have ended, well or not, and takes what they brought."""
        calls = set(theirs.values())
        left_s = self._until_s - asyncio.get_running_loop().time()
        await asyncio.wait({call.ended for call in calls}, timeout=max(left_s, 0.0))
        self._calls += [call.done for call in calls if call.done is not None]
        came = {key: call.rows[key] for key, call in theirs.items() if key in call.rows}
        self._rows.update(came)
        self._cache.count(joined=len(came))

    def _cut(self, keys: Sequence[Key]) -> Mapping[str, Part]:
        """The inputs of these rows: arrays all, as `row_keys` saw to it."""
        if len(keys) == len(self._keys):
            return self._inputs
        positions = np.array([self._at[key] for key in keys])
        return {port: part[positions] for port, part in self._inputs.items()}  # type: ignore[index]

    def _joined(self) -> Done | None:
        rows = [row for key in self._keys if (row := self._rows.get(key)) is not None]
        outputs = joined_rows(rows) if len(rows) == len(self._keys) else None
        if outputs is None:
            return None
        if not self._calls:
            return Done(outputs, 0, 0.0, 0.0)
        ran_ms = max(done.ran_ms for done in self._calls)
        waited_ms = max(0.0, (perf_counter() - self._since_s) * 1e3 - ran_ms)
        hedged = any(done.hedged for done in self._calls)
        return Done(outputs, max(done.batch_rows for done in self._calls), waited_ms, ran_ms, hedged)


def worth_caching(card: Card) -> bool:
    """Whether a row of this extension takes so much longer to compute than to look up that it may pay to keep it.

    By what was measured: the author's guess does not count. Ports of free size are taken to hold 1,000 elements a row.
    """
    profile = card.profile
    if not card.deterministic or card.cache == "off" or profile.n_calls == 0:
        return False
    row_bytes, kilo = 0.0, 0.0
    for port in card.inputs:
        shape, each = port.feature.shape, DATATYPES[port.feature.datatype].itemsize
        free = -1 in shape
        row_bytes += port.many * each * (_FREE_ELEMENTS if free else math.prod(shape))
        kilo += _FREE_ELEMENTS / 1e3 if free else 0.0
    return profile.per_row_ms + profile.per_kilo_ms * kilo >= PAYS * (ROW_MS + BYTE_MS * row_bytes)


def _who(card: Card, token: Token) -> bytes | None:
    """Who may share a result with this request; None is nobody. Who has no name is not the same user as another."""
    if card.cache == "shared":
        return b"all"
    if card.cache == "tags":
        return repr(sorted(token.tags)).encode()
    if card.cache == "user" and token.user:
        return repr((token.user, sorted(token.tags))).encode()
    return None


async def _keys(space: bytes, inputs: Mapping[str, Part], n_rows: int) -> list[Key] | None:
    if any(isinstance(part, RemoteArray) for part in inputs.values()):
        return None
    if sum(part.nbytes for part in inputs.values() if isinstance(part, np.ndarray)) < _BESIDE_BYTES:
        return row_keys(space, inputs, n_rows)
    return await asyncio.to_thread(row_keys, space, inputs, n_rows)


async def _local(outputs: Mapping[str, Produced]) -> dict[str, Produced]:
    return {name: Produced(await local(made.values), made.confidence) for name, made in outputs.items()}
