"""The desk where the figures of versions and plans are asked for, between the gateway's routes and the ledger."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
from collections.abc import Callable
from typing import Literal

from deployments.claims import Learned, findings
from deployments.gateway.messages import Engine
from lineage.quality.findings import Finding
from lineage.quality.learner import Figures, Overview
from planner.errors import FenixError, StoreUnavailable

Window = Literal["15m", "1h", "6h", "1d", "7d", "30d", "all"]
_WINDOWS_S: dict[str, float | None] = {
    "15m": 900.0,
    "1h": 3_600.0,
    "6h": 21_600.0,
    "1d": 86_400.0,
    "7d": 604_800.0,
    "30d": 2_592_000.0,
    "all": None,
}
USUAL: Window = "1d"

OVERVIEW_WINDOW: Window = "1h"
FRESH_S = 10.0  # after which an overview is asked for again
STALE_S = 120.0  # after which it is not shown any more
WAIT_S = 0.5  # for one that is being fetched
_log = logging.getLogger("fenix.gateway")


class QualityDesk:
    """One per gateway process, for its event loop. Methods raise what the ledger raises."""

    def __init__(self, engine: Engine, ledger: Learned | None, clock: Callable[[], float] = time.monotonic) -> None:
        """Without a ledger, as where no journal is kept, everything raises StoreUnavailable."""
        self._engine = engine
        self._ledger = ledger
        self._clock = clock
        self._overview: tuple[float, Overview, tuple[Finding, ...]] | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def version(self, id_: str, window: Window, segment: str | None) -> Figures:
        """The figures of an extension version."""
        found: Figures = await self._asked().learned("quality", "version", id_, _WINDOWS_S[window], segment)
        return found

    async def plans(self, goal: str, window: Window, segment: str | None) -> dict[str, Figures]:
        """The figures of the busiest plans of a goal, by id."""
        found: dict[str, Figures] = await self._asked().learned("quality", "plans", goal, _WINDOWS_S[window], segment)
        return found

    async def findings(self, window: Window) -> tuple[Finding, ...]:
        """Who does poorly, and why; the surest first. Those of a plan have the id "goal/plan"."""
        return await findings(self._asked(), self._engine.catalogue.cards, _WINDOWS_S[window])

    async def lately(self) -> tuple[Overview, tuple[Finding, ...]] | None:
        """The figures of the last hour, some seconds old at most, and who does poorly; None where the ledger does not
        tell. It is waited for half a second at most; who comes later gets what came by then."""
        now_s = self._clock()
        if self._ledger is not None and (self._overview is None or now_s - self._overview[0] > FRESH_S):
            if self._fetching is None or self._fetching.done():
                self._fetching = asyncio.get_running_loop().create_task(
                    self._fetch(self._ledger), name="fetch-quality", context=contextvars.Context()
                )
            await asyncio.wait([self._fetching], timeout=WAIT_S)
        if self._overview is None or now_s - self._overview[0] > STALE_S:
            return None
        return self._overview[1:]

    async def _fetch(self, ledger: Learned) -> None:
        began_s = self._clock()
        try:
            seen: Overview = await ledger.learned("quality", "overview", _WINDOWS_S[OVERVIEW_WINDOW])
            found = await self.findings(OVERVIEW_WINDOW)
        except FenixError:  # it is shown by being absent
            return
        except Exception:
            _log.exception("the figures of quality could not be fetched")
            return
        self._overview = began_s, seen, found

    def _asked(self) -> Learned:
        if self._ledger is None:
            raise StoreUnavailable("this gateway keeps no journal.", hint="It is switched off in the settings.")
        return self._ledger
