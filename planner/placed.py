"""Queues by placement: what runs inline is called where it stands, everything else goes into its batch."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Protocol

import numpy as np

from planner.batching import Batchers, Done, Observe
from planner.breakers import Breakers
from planner.calls import Part, Produced
from planner.cards import Card, ExtensionId
from planner.envelopes import Envelope
from planner.errors import ExtensionBroken, ExtensionRaised, ExtensionTimeout, ExtensionUnavailable
from planner.features import Array, Rows
from planner.placement import Placements
from planner.plans import Plan
from planner.step_cache import StepCache
from planner.tokens import Token

HANGS_AFTER_MS = 5_000.0
Function = Callable[[Mapping[str, Array]], Mapping[str, Rows]]


class Queue(Protocol):
    """What takes the rows of one step. See `planner.batching.Batcher.submit`."""

    async def submit(
        self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None
    ) -> Done: ...


class Queues(Protocol):
    """The queues of all extensions."""

    def of(self, card: Card) -> Queue: ...


class Placed:
    """The queues of all extensions, inline or not. `functions` are those that run inline; change it with `place`."""

    def __init__(
        self,
        batchers: Batchers,
        placements: Placements,
        observe: Observe,
        breakers: Breakers | None = None,
        cache: StepCache | None = None,
    ) -> None:
        self._batchers = batchers
        self._placements = placements
        self._observe = observe
        self.breakers = breakers or Breakers(random.Random())
        self.cache = cache or StepCache()
        self._inline: dict[ExtensionId, Queue] = {}
        self._remote: dict[ExtensionId, Queue] = {}

    def of(self, card: Card) -> Queue:
        """The queue of an extension."""
        return self._inline.get(card.id) or self._deployed(card)

    def _deployed(self, card: Card) -> Queue:
        queue = self._remote.get(card.id)
        if queue is None:
            queue = self._remote[card.id] = _Deployed(
                card, self._batchers.of(card), self._placements, self.breakers, self.cache
            )
        return queue

    def place(self, card: Card, function: Function) -> None:
        """From now on the extension runs inline. `function` raises FenixError subclasses only."""
        self._inline[card.id] = _Inline(card, function, self._deployed(card), self._placements, self._observe)

    def displace(self, extension: ExtensionId) -> None:
        """From now on it runs in its own deployment again."""
        self._inline.pop(extension, None)

    def at_once(self, plan: Plan) -> bool:
        """Whether all of a plan runs inline."""
        inline = self._inline
        return all(step.extension in inline for step in plan.steps)

    def is_healthy(self, extension: ExtensionId) -> bool:
        """Whether calling the extension is worth trying."""
        return extension in self._inline or self.breakers.state(extension, perf_counter()) != "open"

    def hear(self, fares: Mapping[ExtensionId, Envelope], now_s: float) -> None:
        """Takes in what replicas say of themselves, one merged envelope per extension: breakers and batching policies
        go by it."""
        self.breakers.observe(fares, now_s)
        self._batchers.hear(fares)

    def inline(self) -> frozenset[ExtensionId]:
        return frozenset(self._inline)

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone."""
        for queues in (self._inline, self._remote):
            for id_ in [id_ for id_ in queues if id_ not in extensions]:
                del queues[id_]
        self._batchers.keep_only(extensions)
        self._placements.keep_only(extensions)
        self.breakers.keep_only(extensions)
        self.cache.keep_only(extensions)


class _Deployed:
    """An extension in its own deployment: results that are known are not computed again, an extension that fails is
    let alone for a while, and what its calls take tells whether it could run inline."""

    def __init__(
        self, card: Card, batcher: Queue, placements: Placements, breakers: Breakers, cache: StepCache
    ) -> None:
        self._card = card
        self._batcher = batcher
        self._placements = placements
        self._breakers = breakers
        self._cache = cache

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        return await self._cache.submit(self._card, inputs, n_rows, token, self._call, until_s)

    async def _call(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float) -> Done:
        id_, begun_s = self._card.id, perf_counter()
        if not self._breakers.allows(id_, begun_s):
            raise ExtensionUnavailable(f"{id_} failed too often and is let alone for a while.", hint="Send it again.")
        try:
            done = await self._batcher.submit(inputs, n_rows, token, until_s)
        except (ExtensionRaised, ExtensionBroken):
            now_s = perf_counter()
            if token.shared:  # a group is split, and whoever is guilty comes again
                self._breakers.abandoned(id_, now_s, (now_s - begun_s) * 1e3)
            else:
                self._breakers.raised(id_, now_s, (now_s - begun_s) * 1e3, token.user)
            self._placements.failed(id_, now_s)
            raise
        except ExtensionUnavailable:
            now_s = perf_counter()
            self._breakers.failed(id_, now_s, (now_s - begun_s) * 1e3)
            self._placements.failed(id_, now_s)
            raise
        except ExtensionTimeout:
            # A short budget says little; not to come back for this long is a fault, and may be the same inline.
            now_s = perf_counter()
            took_ms = (now_s - begun_s) * 1e3
            if took_ms > HANGS_AFTER_MS:
                self._breakers.failed(id_, now_s, took_ms)
                self._placements.failed(id_, now_s)
            else:
                self._breakers.abandoned(id_, now_s, took_ms)
            raise
        except BaseException:
            now_s = perf_counter()
            self._breakers.abandoned(id_, now_s, (now_s - begun_s) * 1e3)
            raise
        now_s = perf_counter()
        expected_ms = self._card.profile.p50_ms(done.batch_rows)
        self._breakers.succeeded(id_, now_s, (now_s - begun_s) * 1e3, expected_ms, token.user)
        self._placements.ran(id_, done.ran_ms, now_s)
        return done


class _Inline:
    """An extension in this process: nobody waits for anything. Batches that are too large go to its deployment."""

    def __init__(
        self, card: Card, function: Function, deployed: Queue, placements: Placements, observe: Observe
    ) -> None:
        self._card = card
        self._function = function
        self._deployed = deployed
        self._placements = placements
        self._observe = observe
        self._most_rows = card.resources.max_batch_rows
        self._free_ports = card.free_ports

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        if n_rows > self._most_rows or not all(isinstance(part, np.ndarray) for part in inputs.values()):
            await asyncio.sleep(0)  # who runs a plan without a task hears here, before anything begins, that it waits
            return await self._deployed.submit(inputs, n_rows, token, until_s)
        started_s = perf_counter()
        try:
            made = self._function(inputs)  # type: ignore[arg-type]  # all of them are arrays
        except (ExtensionRaised, ExtensionBroken):
            self._placements.failed(self._card.id, perf_counter())
            raise
        ended_s = perf_counter()
        ran_ms = (ended_s - started_s) * 1e3
        self._placements.ran(self._card.id, ran_ms, ended_s)
        kilo = sum(math.prod(inputs[port].shape) for port in self._free_ports) / 1e3
        self._observe(self._card.id, n_rows, kilo, ran_ms)
        return Done({name: Produced(rows.values, rows.confidence) for name, rows in made.items()}, n_rows, 0.0, ran_ms)
