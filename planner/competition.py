"""Competition: an urgent step that takes unusually long, and a fallback that is set beside it while there is time.

Where less urgent requests wait for a step until its time is up and only then turn to a fallback, an urgent one keeps
waiting, past its own share of the deadline, and lets the fallback run too, at the last moment at which that can still
be in time. Who is done first gives the rows, the other is cancelled. A budget keeps such steps a small share of the
urgent ones; where it is spent, urgent steps are like all others.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Generic, TypeVar

from planner.cards import Card, ExtensionId
from planner.hedging import Hedged, HedgeSettings, Hedging, hedged

URGENT = 2  # the least urgent priority of which steps may run in competition; 0 is the most urgent

SHARE = HedgeSettings(most_share=0.03, burst=10)  # of the urgent steps that could

TICK_S = 1e-3  # timers are not finer

Rows = TypeVar("Rows")


@dataclass(frozen=True, slots=True)
class Entrant(Generic[Rows]):
    """An extension that could do a step, and how to have it done."""

    card: Card
    run: Callable[[], Awaitable[Rows]]


class Budget(Hedging):
    """What is left for steps in competition."""

    @property
    def has_room(self) -> bool:
        """Whether one more could run so now."""
        return self._tokens >= 1.0


class Competition:
    """Runs urgent steps, in competition where that helps and the budget allows it. Belongs to one event loop."""

    def __init__(self, settings: HedgeSettings = SHARE) -> None:
        """Of `settings` only `most_share` and `burst` count."""
        self.budget = Budget(settings)

    def wait_s(self, own: Card, rival: Card, n_rows: int, kilo: float, left_s: float) -> float | None:
        """As `delay_s`, and None where the budget has no room."""
        return delay_s(own, rival, n_rows, kilo, left_s) if self.budget.has_room else None

    async def between(
        self,
        own: Entrant[Rows],
        rival: Entrant[Rows],
        n_rows: int,
        wait_s: float | None,
        may_start: Callable[[], bool] = lambda: True,
        refused: Callable[[], None] = lambda: None,
    ) -> Hedged[Rows]:
        """Has `own` do the step, and `rival` too after `wait_s` (None: never). Raises the failure of `own`.

        When the time has come the budget is asked, and then `may_start`; `refused` hears that one of them said no. See
        `hedged` for what holds when this returns, raises or is cancelled.
        """

        def may_compete() -> bool:
            may = self.budget.may_hedge() and may_start()
            if not may:
                refused()
            return may

        started_s = perf_counter()
        ran = await hedged(own.run, rival.run, None if wait_s is None else max(wait_s, TICK_S), may_compete)
        self.budget.observe(own.card.id, n_rows, (perf_counter() - started_s) * 1e3)
        return ran

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone."""
        self.budget.keep_only(extensions)


def delay_s(own: Card, rival: Card, n_rows: int, kilo: float, left_s: float) -> float | None:
    """How long to wait for `own` before `rival` is set beside it; None: to the end, for it cannot be in time. Pure.

    The last moment that leaves the rival its p99, but not before `own` has had its own p99; then the rival's p50 has
    to do.
    """
    latest_s = left_s - rival.profile.p99_ms(n_rows, kilo) / 1e3
    unusual_s = own.profile.p99_ms(n_rows, kilo) / 1e3
    start_s = max(latest_s, unusual_s)
    return start_s if start_s + rival.profile.p50_ms(n_rows, kilo) / 1e3 <= left_s else None
