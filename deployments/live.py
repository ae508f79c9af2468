"""What `fenix status` shows of each extension right now: its replicas' envelopes, the gateways' breakers, and where it
runs; and what the steward did."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from deployments.board import BoardClient, Snapshot
from deployments.claims import findings
from deployments.gateway.metadata import Running, parts_of, placement_of
from deployments.ledger import LedgerClient
from deployments.registry import RegistryClient
from deployments.steward import Event, StewardClient
from lineage.quality.findings import Finding
from planner.breakers import State
from planner.calibration import temperature_of
from planner.cards import Card, ExtensionId
from planner.envelopes import merged
from planner.errors import ClusterDown, FenixError

MOST_EVENTS = 20
POOR_WINDOW_S = 86_400.0
_PATIENCE_S = 3.0  # for who does poorly
_WORST_FIRST: tuple[State, ...] = ("open", "half-open", "closed")


@dataclass(frozen=True, slots=True)
class Live:
    """One extension version over all its replicas, for the last ten seconds. None where nothing was measured.

    A call is a batch, and its latency that inside the replica. `confidence_p50` is the median after temperature
    scaling. `breaker` is the worst that a gateway has, "" where none has one; `why` is what opened it. `placement` is
    "inline" where `n_inline` > 0 gateways run it in their own process; `parts` are those of a fused one.
    """

    id: str
    n_replicas: int
    queue_rows: int
    in_flight: int
    n_calls: int
    error_rate: float
    latency_mean_ms: float | None
    latency_sd_ms: float | None
    confidence_p50: float | None
    cpu_share: float
    memory_mib: float
    gpu_share: float | None
    breaker: str = ""
    why: str = ""
    placement: Running = "remote"
    n_inline: int = 0
    parts: tuple[ExtensionId, ...] = ()


@dataclass(frozen=True, slots=True)
class Look:
    """Every extension on the board, by id; what the steward did last, oldest first; and which versions and plans did
    poorly over the last day, the surest first."""

    extensions: tuple[Live, ...] = ()
    events: tuple[Event, ...] = ()
    poor: tuple[Finding, ...] = ()


def look() -> Look:
    """What the cluster that this process is connected to tells now. Raises ClusterDown."""

    async def ask() -> Look:
        snapshot, cards = await BoardClient().snapshot(), (await RegistryClient(timeout_s=5.0).catalogue()).cards
        try:
            events = await StewardClient().events()
        except ClusterDown:  # where nothing is to be fused there is none
            events = ()
        try:
            poor = await findings(LedgerClient(_PATIENCE_S), cards, POOR_WINDOW_S)
        except FenixError:  # the gateway says it, to who asks for the figures
            poor = ()
        return Look(summary(snapshot, cards), events[-MOST_EVENTS:], poor)

    return asyncio.run(ask())


def summary(snapshot: Snapshot, cards: Mapping[ExtensionId, Card]) -> tuple[Live, ...]:
    """The extensions from what the board and the catalogue hold."""
    breakers = sorted(
        (standing for standings in snapshot.standings.values() for standing in standings),
        key=lambda standing: _WORST_FIRST.index(standing.state),
        reverse=True,
    )
    worst = {standing.extension: standing for standing in breakers}  # the last one said stays
    n_inline = Counter(extension for inline in snapshot.inline.values() for extension in inline)
    found = []
    for extension, envelope in sorted(merged(snapshot.envelopes).items()):
        card, standing = cards.get(extension), worst.get(extension)
        temperature = 1.0 if card is None else temperature_of(card)
        found.append(
            Live(
                id=extension,
                n_replicas=envelope.n_replicas,
                queue_rows=envelope.queue_rows,
                in_flight=envelope.in_flight,
                n_calls=envelope.n_calls,
                error_rate=round(1.0 - envelope.success_rate, 4),
                latency_mean_ms=_measured(envelope.latency_mean_ms, 3),
                latency_sd_ms=_measured(envelope.latency_sd_ms, 3),
                confidence_p50=_measured(envelope.confidences.quantile(0.5, temperature), 4),
                cpu_share=round(envelope.cpu_share, 4),
                memory_mib=round(envelope.memory_mib, 1),
                gpu_share=_measured(envelope.gpu_share, 4),
                breaker=standing.state if standing is not None else "",
                why=standing.why if standing is not None else "",
                placement="remote" if card is None else placement_of(card, n_inline),
                n_inline=n_inline[extension],
                parts=() if card is None else parts_of(card),
            )
        )
    return tuple(found)


def _measured(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else round(value, digits)
