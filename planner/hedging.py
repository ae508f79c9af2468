"""Hedging: a second call for a step whose first takes unusually long, so that one slow replica is not felt.

A call that is not back after the time that 95 % of its like take is sent once more; the first answer wins and the
other call is cancelled. A budget keeps second calls a small share of all. Only for extensions that are deterministic
and have more than one replica: the same one twice would be slow twice.
Source: Dean and Barroso 2013, The Tail at Scale, CACM 56(2).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from itertools import count
from time import perf_counter
from typing import Any, Generic, TypeVar

from planner.calls import Calls, Parts, Ran
from planner.cards import ExtensionId

T = TypeVar("T")

_KEPT = 256  # calls of one kind; the 95th percentile of so many is known within about 3 % of the distribution
_MOST_STRETCH = 16.0
_REFRESH_EVERY = 16  # calls: sorting 256 times takes 10 us, and a quantile does not move faster


class RecentQuantile:
    """A quantile and the median of the last `kept` values, brought up to date with every 16th."""

    __slots__ = ("_at", "_kept", "_quantile", "_values", "median", "n_values", "value")

    def __init__(self, quantile: float = 0.95, kept: int = _KEPT) -> None:
        self._quantile = quantile
        self._kept = kept
        self._values: list[float] = []
        self._at = 0
        self.n_values = 0  # ever
        self.value = 0.0  # the quantile; 0 before the first 16 values, and so is the median
        self.median = 0.0

    def add(self, value: float) -> None:
        if len(self._values) < self._kept:
            self._values.append(value)
        else:
            self._values[self._at] = value
            self._at = (self._at + 1) % self._kept
        self.n_values += 1
        if self.n_values % _REFRESH_EVERY == 0:
            in_order = sorted(self._values)
            self.value = in_order[min(len(in_order) - 1, int(self._quantile * len(in_order)))]
            self.median = in_order[len(in_order) // 2]


@dataclass(frozen=True, slots=True)
class HedgeSettings:
    """`most_share` of the calls may be sent twice, counted over all extensions; `burst` at once after a calm time.

    A kind of call is hedged once `least_calls` of it were seen, after their `quantile`; at the earliest after `margin`
    times their median and after `least_delay_ms`, for before that a second call gains nothing. Once less than half of
    the burst is left the delay is stretched, the more the less there is, so that the slowest calls get what there is.
    """

    most_share: float = 0.03
    burst: int = 10
    quantile: float = 0.95
    least_calls: int = 32
    margin: float = 1.25
    least_delay_ms: float = 1.0


DEFAULTS = HedgeSettings()


class Hedging:
    """Decides for one process when a call is sent again. Not for several threads at once.

    Calls are of a kind when they go to the same extension with a similar number of rows, within a power of two.
    Per call: `delay_s` before, `may_hedge` when the delay has passed, `observe` after.
    """

    def __init__(self, settings: HedgeSettings = DEFAULTS) -> None:
        self._settings = settings
        self._kinds: dict[tuple[ExtensionId, int], RecentQuantile] = {}
        self._tokens = 0.0
        self.n_calls = 0
        self.n_hedges = 0

    def delay_s(self, extension: ExtensionId, n_rows: int, *, n_replicas: int) -> float | None:
        """After how long to send the call again; None: not at all."""
        if n_replicas < 2 or self._settings.most_share == 0.0:
            return None
        kind = self._kinds.get((extension, n_rows.bit_length()))
        if kind is None or kind.n_values < self._settings.least_calls:
            return None
        settings = self._settings
        return max(kind.value, settings.margin * kind.median, settings.least_delay_ms) * self._stretch() / 1e3

    def _stretch(self) -> float:
        return min(_MOST_STRETCH, max(1.0, 0.5 * self._settings.burst / max(self._tokens, 1e-9)))

    def may_hedge(self) -> bool:
        """Whether the budget has room for one more second call, which it is charged with. Ask at the last moment."""
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        self.n_hedges += 1
        return True

    def observe(self, extension: ExtensionId, n_rows: int, took_ms: float) -> None:
        """A call, sent again or not, has been answered `took_ms` after it was first sent.

        Each call earns its share of a second one, so at no time were more than `most_share` of them sent twice.
        """
        self.n_calls += 1
        self._tokens = min(float(self._settings.burst), self._tokens + self._settings.most_share)
        key = extension, n_rows.bit_length()
        kind = self._kinds.get(key)
        if kind is None:
            kind = self._kinds[key] = RecentQuantile(self._settings.quantile)
        kind.add(took_ms)

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone: what comes back under the same id is measured anew."""
        self._kinds = {key: kind for key, kind in self._kinds.items() if key[0] in extensions}


class HedgedCalls(Calls):
    """Calls of which those that take unusually long are sent once more, to another replica."""

    def __init__(
        self,
        calls: Calls,
        n_replicas: Callable[[ExtensionId], int],
        hedging: Hedging | None = None,
        clock: Callable[[], float] = perf_counter,
    ) -> None:
        """`n_replicas`: how many an extension has that may be asked twice; 0 or 1 where it must not be. `clock` gives
        seconds."""
        self._calls = calls
        self._n_replicas = n_replicas
        self.hedging = hedging or Hedging()
        self._clock = clock
        self._ids = count()

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        n_replicas = self._n_replicas(extension)
        if n_replicas < 2:
            return await self._calls.infer(extension, parts, timeout_s, pair)
        n_rows = sum(len(part) for part in next(iter(parts.values()), ()))
        delay_s = self.hedging.delay_s(extension, n_rows, n_replicas=n_replicas)
        started_s = self._clock()
        until_s = started_s + timeout_s
        pair = pair or f"hedge-{next(self._ids)}"

        def call() -> Awaitable[Ran]:
            return self._calls.infer(extension, parts, until_s - self._clock(), pair)

        # A replica that has begun cannot be stopped: only when the loser comes back is it known to be free again.
        won = await hedged(call, call, delay_s, self.hedging.may_hedge, loser_ends=True)
        self.hedging.observe(extension, n_rows, (self._clock() - started_s) * 1e3)
        return replace(won.value, hedged=True) if won.sent else won.value


@dataclass(frozen=True, slots=True)
class Hedged(Generic[T]):
    """What the winning call gave; whether a second one was `sent`, and whether it `won`."""

    value: T
    sent: bool = False
    won: bool = False


async def hedged(
    first: Callable[[], Awaitable[T]],
    second: Callable[[], Awaitable[T]],
    delay_s: float | None,
    may_hedge: Callable[[], bool] = lambda: True,
    *,
    loser_ends: bool = False,
) -> Hedged[T]:
    """Runs `first`; if it is not done after `delay_s` and `may_hedge` agrees, `second` too, and takes who is done
    first. `delay_s` None never sends a second; 0 sends both at once, for alternatives in competition.

    A call that fails while the other still runs leaves it to the other; when both fail, the first's error is raised.
    A first that fails before the delay has passed raises at once: trying again is the caller's. When this returns,
    raises or is cancelled, every call that was started is done or has been cancelled, and no task is left without an
    owner: a loser ends in the background, whatever it raises is taken note of and dropped. With `loser_ends` it is not
    cancelled when the other has won, but left to come to its own end.
    """
    if delay_s is None:
        return Hedged(await first())
    one = _start(first)
    two: asyncio.Task[T] | None = None
    try:
        if delay_s > 0.0:
            await asyncio.wait((one,), timeout=delay_s)
        if one.done() or not may_hedge():
            return Hedged(await one)
        two = _start(second)
        await asyncio.wait((one, two), return_when=asyncio.FIRST_COMPLETED)
        leader = one if one.done() else two
        other = two if leader is one else one
        if _succeeded(leader):
            if loser_ends:
                _leave(other)
            return Hedged(leader.result(), sent=True, won=leader is two)
        await asyncio.wait((other,))
        if _succeeded(other):
            return Hedged(other.result(), sent=True, won=other is two)
        return Hedged(one.result(), sent=True)  # raises
    finally:
        _let_go(one)
        if two is not None:
            _let_go(two)


_ending: set[asyncio.Task[Any]] = set()  # losers that are not gone yet: the loop holds no task


def _start(call: Callable[[], Awaitable[T]]) -> asyncio.Task[T]:
    async def run() -> T:
        return await call()

    return asyncio.get_running_loop().create_task(run(), name="hedged-call")


def _succeeded(task: asyncio.Task[T]) -> bool:
    return not task.cancelled() and task.exception() is None


def _let_go(task: asyncio.Task[T]) -> None:
    """Cancels a task that still runs and was not left to itself."""
    if task not in _ending:
        if not task.done():
            task.cancel()
        _leave(task)


def _leave(task: asyncio.Task[T]) -> None:
    """Leaves a task to itself, and sees to it that nobody complains of what it raises."""
    if task.done():
        _ended(task)
    else:
        _ending.add(task)
        task.add_done_callback(_ended)


def _ended(task: asyncio.Task[T]) -> None:
    _ending.discard(task)
    if not task.cancelled():
        task.exception()
