"""Competition: an urgent step that takes unusually long, and a fallback that is set beside it while there is time.

Where less urgent requests wait for a step until its time is up and only then turn to a fallback, an urgent one keeps
waiting and lets the fallback run too, at the last moment at which that can still be in time. Who is done first gives
the rows, the other is cancelled. A budget keeps such steps a small share of the urgent ones.
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


Rows = TypeVar("Rows")


@dataclass(frozen=True, slots=True)
class Entrant(Generic[Rows]):
    """An extension that could do a step, and how to have it done."""

    card: Card
    run: Callable[[], Awaitable[Rows]]


class Competition:
    """Runs urgent steps, in competition where that helps and the budget allows it. Belongs to one event loop."""

    def __init__(self, settings: HedgeSettings = SHARE) -> None:
        """Of `settings` only `most_share` and `burst` count."""
        self.budget = Hedging(settings)

    async def between(
        self, own: Entrant[Rows], rival: Entrant[Rows], n_rows: int, kilo: float, left_s: float
    ) -> Hedged[Rows]:
        """Has `own` do the step, and `rival` too when there is no more time to wait. Raises the failure of `own`.

        `left_s` is the time until the step has to be done, `kilo` as for `LatencyProfile`. See `hedged` for what holds
        when this returns, raises or is cancelled.
        """
        started_s = perf_counter()
        wait_s = delay_s(own.card, rival.card, n_rows, kilo, left_s)
        ran = await hedged(own.run, rival.run, wait_s, self.budget.may_hedge)
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
