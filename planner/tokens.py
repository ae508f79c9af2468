"""Tokens: what a request carries through all its steps, so that every queue on the way can treat it as it is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Protocol

from planner.goals import Terms

PATIENCE_S = 60.0  # how long a request without a deadline may take


class LineAhead(Protocol):
    """A line before an extension, as those see it who are not there yet."""

    def room(self, token: Token) -> int:
        """How many more rows with tokens like this one would find a place in the next call; at most what it takes."""

    def expect(self, n_rows: int, token: Token) -> None:
        """So many rows have set out for here; fewer than 0: so many of them have come, or will not."""

    def when_moved(self, token: Token, tell: Callable[[], None]) -> None:
        """Calls `tell` once when there may be room again; who is more urgent, or has waited longer, hears of it
        first."""


class Escort(ABC):
    """Hears of rows on their way how they fare in the lines before extensions."""

    __slots__ = ()

    @abstractmethod
    def waits(self, line: LineAhead, n_rows: int, batch_rows: int) -> None:
        """So many of its rows stand in a line, in which `batch_rows` are enough for its next call."""

    @abstractmethod
    def goes(self, line: LineAhead, n_rows: int) -> None:
        """So many of them stand there no more: their call begins, or they were dropped."""


@dataclass(slots=True, eq=False)
class Token:
    """One request in the queues. `until_s` is event loop time; `priority` is 0 (most urgent) to 9.

    `rest_s` is what comes after the step it is at, as predicted: rows that would be done too late for that are dropped.
    `hard` says that `until_s` is the client's own deadline and not only our patience. `gone` is set when the client
    has left: nothing is started for the request from then on. `shared` says that the rows are those of several
    requests, so that the rows of one may be what all of them fail for. `escort` hears where the rows wait. `partial`,
    `min_confidence` and `max_cost` are as in `Terms`. `came_s` is when the request came, on the event
    loop's clock, and `began_s` the same on perf_counter, as uvloop counts whole milliseconds.
    """

    until_s: float
    priority: int = 5
    user: str = ""
    tags: frozenset[str] = frozenset()
    hard: bool = False
    gone: bool = False
    rest_s: float = 0.0
    shared: bool = False
    escort: Escort | None = None
    partial: bool = False
    min_confidence: float | None = None
    max_cost: float | None = None
    came_s: float = 0.0
    began_s: float = 0.0

    @classmethod
    def of(cls, terms: Terms, now_s: float) -> Token:
        """The token of a request that came in at `now_s` under these terms."""
        if terms.deadline_ms is None:
            token = cls(now_s + PATIENCE_S, terms.priority, terms.user, terms.tags)
        else:
            token = cls(now_s + terms.deadline_ms / 1e3, terms.priority, terms.user, terms.tags, hard=True)
        token.max_cost, token.came_s, token.began_s = terms.max_cost, now_s, perf_counter()
        if terms.alone:
            token.partial, token.min_confidence = terms.partial, terms.min_confidence
        return token

    def late(self, now_s: float) -> bool:
        """Whether the client's own deadline has passed, but for a millisecond: timers are not finer."""
        return self.hard and now_s >= self.until_s - 1e-3
