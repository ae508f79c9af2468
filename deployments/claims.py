"""Who does poorly: what the cards promise, held against what the ledger has learned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol

from lineage.quality.findings import Finding
from lineage.quality.learner import Claim
from planner.cards import Card, ExtensionId

TAIL_CALLS = 200  # that have to be measured before a p99 is a promise


class Learned(Protocol):
    """What is needed of the ledger; see `Ledger.learned`."""

    async def learned(self, name: str, question: str, *arguments: Any) -> Any: ...


async def findings(ledger: Learned, cards: Mapping[ExtensionId, Card], window_s: float | None) -> tuple[Finding, ...]:
    """All that the learner of quality finds over a window, None for all times, against these cards. Raises what the
    ledger raises."""
    known = frozenset(await ledger.learned("quality", "known"))
    found: tuple[Finding, ...] = await ledger.learned("quality", "findings", claims_of(cards, known), window_s)
    return found


def claims_of(cards: Mapping[ExtensionId, Card], known: Collection[str]) -> dict[str, Claim]:
    """What the cards of these versions promise. What could stand in for a version, so that it should not do better, are
    the other versions of the same name and what the card replaces."""
    by_name: dict[str, list[str]] = {}
    for id_ in known:
        by_name.setdefault(id_.partition("@")[0], []).append(id_)
    claims = {}
    for id_ in sorted(known):
        card = cards.get(ExtensionId(id_))
        if card is not None:
            others = {*by_name[card.name], *(old for name in card.replaces for old in by_name.get(name, ()))}
            others.update(old for old in card.replaces if old in known)
            claims[id_] = _claim(card, tuple(sorted(others - {id_})))
    return claims


def _claim(card: Card, peers: tuple[str, ...]) -> Claim:
    accuracy, profile = card.accuracy, card.profile
    measured = profile.n_calls > 0 and profile.per_kilo_ms == 0.0
    return Claim(
        accuracy=accuracy.mean if accuracy.n_rows else None,
        n_rows=accuracy.n_rows,
        fixed_ms=profile.fixed_ms if measured else None,
        per_row_ms=profile.per_row_ms,
        p99_ratio=profile.p99_ratio if profile.n_calls >= TAIL_CALLS else None,
        peers=peers,
    )
