"""Extensions in the gateway's own process: loads those that have earned it, compares their answers, lets them go."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from time import perf_counter

import numpy as np

from deployments.blackbox import BlackBox, note_of, suspects
from deployments.extension import Extension, execute
from deployments.loading import load
from deployments.serve_calls import ServeCalls
from planner.calls import local
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import FenixError
from planner.features import Array, Rows
from planner.placed import Function, Placed
from planner.placement import Placements

EVERY_S = 0.5
N_SAMPLES = 8
_log = logging.getLogger("fenix.gateway")


class InlineHost:
    """Carries out what `Placements` decides. Owns the extensions that run in this process."""

    def __init__(
        self,
        placed: Placed,
        placements: Placements,
        calls: ServeCalls,
        catalogue: Callable[[], Catalogue],
        *,
        mlflow_uri: str,
        cache_dir: str,
        every_s: float = EVERY_S,
    ) -> None:
        self._placed = placed
        self._placements = placements
        self._calls = calls
        self._catalogue = catalogue
        self._mlflow_uri = mlflow_uri
        self._cache_dir = cache_dir
        self._every_s = every_s
        self._hosted: dict[ExtensionId, Extension] = {}
        folder = Path(cache_dir) / "inline"
        self._box = BlackBox(folder)
        for extension, for_s in suspects(folder, time.time()).items():
            if for_s > 0.0:
                _log.warning("%s ran when a gateway died: it stays in its own deployment for %.0f s", extension, for_s)
                placements.bar(extension, perf_counter(), for_s)

    async def tend(self) -> None:
        """Follows the decisions, for ever."""
        while True:
            await asyncio.sleep(self._every_s)
            cards = self._catalogue().cards
            wanted = [card for card in cards.values() if self._placements.inline(card, perf_counter())]
            # One that was removed and came back in between is no longer placed: it may be another by now.
            ids = {card.id for card in wanted} & self._placed.inline()
            for extension in [id_ for id_ in self._hosted if id_ not in ids]:
                await self._let_go(extension)
            for card in wanted:
                if card.id not in self._hosted:
                    await self._take_in(card)

    async def _take_in(self, card: Card) -> None:
        hosted: Extension | None = None
        try:
            hosted = await asyncio.to_thread(self._load, card)
            await self._compare(card, hosted)
        except Exception as error:
            if isinstance(error, FenixError):
                _log.warning("%s stays in its own deployment: %s", card.id, error.text())
            else:
                _log.exception("%s stays in its own deployment", card.id)
            self._placements.bar(card.id, perf_counter())
            if hosted is not None:
                await self._close(card.id, hosted)
            return
        if card.id not in self._catalogue().cards:
            await self._close(card.id, hosted)
            return
        self._hosted[card.id] = hosted
        self._placed.place(card, self._function(card.id, hosted))
        # A library such as torch brings hundreds of thousands of objects that stay. To look through them again and
        # again would stop every request for 0.1 s.
        gc.freeze()
        _log.info("%s runs inline", card.id)

    async def _let_go(self, extension: ExtensionId) -> None:
        self._placed.displace(extension)
        hosted = self._hosted.pop(extension)
        _log.info("%s runs in its own deployment", extension)
        await self._close(extension, hosted)

    async def _close(self, extension: ExtensionId, hosted: Extension) -> None:
        try:
            await asyncio.to_thread(hosted.close)
        except Exception:
            _log.exception("closing %s failed", extension)

    def _load(self, card: Card) -> Extension:
        hosted = load(card, mlflow_uri=self._mlflow_uri, cache_dir=self._cache_dir)
        hosted.setup()
        return hosted

    async def _compare(self, card: Card, hosted: Extension) -> None:
        """Raises ValueError when the extension answers otherwise here than in its deployment."""
        rows = await self._calls.samples(card.id, N_SAMPLES, seed=1)
        there = await self._calls.infer(card.id, {name: [values] for name, values in rows.items()}, 60.0)
        here = await asyncio.to_thread(execute, hosted, rows)
        for name, made in here.items():
            other = there.outputs[name]
            if not _same(made.values, await local(other.values)):
                raise ValueError(f"output {name!r} of {card.id} differs from that of its deployment")
            if not _same(made.confidence, other.confidence):
                raise ValueError(f"the confidence of {card.id} differs from that of its deployment")

    def _function(self, extension: ExtensionId, hosted: Extension) -> Function:
        box, note = self._box, note_of(extension)

        def run(rows: Mapping[str, Array]) -> dict[str, Rows]:
            box.enter(note)
            try:
                return execute(hosted, rows)
            finally:
                box.leave()

        return run

    async def close(self) -> None:
        """Lets all go."""
        for extension in list(self._hosted):
            await self._let_go(extension)
        self._box.close()


def _same(here: Array | None, there: Array | None) -> bool:
    """Whether both are the same, floats but for rounding."""
    if here is None or there is None:
        return here is there
    if here.shape != there.shape or here.dtype != there.dtype:
        return False
    if here.dtype.kind == "f":
        return np.allclose(here, there, rtol=1e-4, atol=1e-5, equal_nan=True)
    return bool((here == there).all())
