"""Who has to hear by when that their time is up, with one timer of the event loop for all of them."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, Protocol, TypeVar


class Expiring(Protocol):
    """What can be watched: `expires_s` is on the event loop's clock, and does not change."""

    @property
    def expires_s(self) -> float: ...


T = TypeVar("T", bound=Expiring)


class Deadlines(Generic[T]):
    """Who has to hear by when, with one timer for all: at the earliest."""

    def __init__(self, loop: asyncio.AbstractEventLoop, expire: Callable[[T], None]) -> None:
        self._loop = loop
        self._expire = expire
        self._watched: dict[int, T] = {}
        self._heap: list[tuple[float, int]] = []  # some are watched no more
        self._timer: asyncio.TimerHandle | None = None
        self._rings_s = math.inf

    def watch(self, item: T) -> None:
        key = id(item)
        self._watched[key] = item
        heappush(self._heap, (item.expires_s, key))
        if item.expires_s < self._rings_s:
            self._set(item.expires_s)
        elif len(self._heap) > 2 * len(self._watched) + 64:
            self._heap = [(watched.expires_s, key) for key, watched in self._watched.items()]
            heapify(self._heap)

    def forget(self, item: T) -> None:
        self._watched.pop(id(item), None)

    def earliest_s(self) -> float:
        """inf where nobody waits."""
        while self._heap and not self._is_watched(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def _is_watched(self, entry: tuple[float, int]) -> bool:
        item = self._watched.get(entry[1])  # another one may have the id by now
        return item is not None and item.expires_s == entry[0]

    def _set(self, at_s: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._rings_s = at_s
        self._timer = self._loop.call_at(at_s, self._ring)

    def _ring(self) -> None:
        self._timer, self._rings_s = None, math.inf
        now_s = self._loop.time()
        while (earliest_s := self.earliest_s()) <= now_s:
            item = self._watched.pop(heappop(self._heap)[1])
            self._expire(item)
        if earliest_s < math.inf:
            self._set(earliest_s)
