"""The catalogue: an immutable snapshot of all cards and goals, numbered by epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import networkx as nx

from planner.cards import Card, ExtensionId
from planner.errors import NotFound, near
from planner.goals import Goal


@dataclass(frozen=True, slots=True)
class Change:
    """One step of the catalogue from `epoch - 1` to `epoch`: what was put (added or replaced) and removed.

    A `whole` change holds everything there is at `epoch`, whatever came before.
    """

    epoch: int
    put_cards: tuple[Card, ...] = ()
    put_goals: tuple[Goal, ...] = ()
    removed_cards: tuple[ExtensionId, ...] = ()
    removed_goals: tuple[str, ...] = ()
    whole: bool = False


@dataclass(frozen=True, eq=False)
class Catalogue:
    """All cards and goals at one epoch. Share it freely: it never changes.

    `derived` is a scratch space where the planner keeps what it computes once per snapshot (indexes).
    """

    epoch: int = 0
    cards: Mapping[ExtensionId, Card] = field(default_factory=dict)
    goals: Mapping[str, Goal] = field(default_factory=dict)
    derived: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, cards: Iterable[Card] = (), goals: Iterable[Goal] = (), epoch: int = 1) -> Catalogue:
        """A snapshot of these cards and goals; a later card of the same id wins."""
        return cls(epoch, MappingProxyType({c.id: c for c in cards}), MappingProxyType({g.name: g for g in goals}))

    def apply(self, change: Change) -> Catalogue:
        """The next snapshot. Raises ValueError unless `change` is whole or its epoch is the next number."""
        if change.whole:
            return Catalogue.of(change.put_cards, change.put_goals, change.epoch)
        if change.epoch != self.epoch + 1:
            raise ValueError(f"change {change.epoch} does not follow epoch {self.epoch}")
        cards, goals = dict(self.cards), dict(self.goals)
        cards.update((c.id, c) for c in change.put_cards)
        goals.update((g.name, g) for g in change.put_goals)
        for id_ in change.removed_cards:
            cards.pop(id_, None)
        for name in change.removed_goals:
            goals.pop(name, None)
        return Catalogue(change.epoch, MappingProxyType(cards), MappingProxyType(goals))

    def card(self, id_: str) -> Card:
        """The card of `name@version`, or of a bare name when it has one version. Raises NotFound with what is near."""
        card = self.cards.get(ExtensionId(id_))
        if card is not None:
            return card
        versions = self.versions(id_)
        if len(versions) == 1:
            return versions[0]
        if versions:
            raise NotFound(
                f"extension {id_!r} has several versions.", hint=f"Name one: {', '.join(c.id for c in versions)}."
            )
        raise NotFound(f"no extension {id_!r}.", hint=near(id_, self.cards))

    def versions(self, name: str) -> tuple[Card, ...]:
        """All cards of that name, oldest registration first."""
        return tuple(card for card in self.cards.values() if card.name == name)

    def goal(self, name: str) -> Goal:
        """The goal of that name. Raises NotFound with what is near."""
        try:
            return self.goals[name]
        except KeyError:
            raise NotFound(f"no goal {name!r}.", hint=near(name, self.goals)) from None

    def graph(self) -> nx.MultiDiGraph[ExtensionId]:
        """The compatibility graph: an edge a -> b per output port of a that an input port of b may take.

        Edge attributes `output` and `input` name the ports. Quadratic in the number of cards: for looking at,
        not for planning.
        """
        graph: nx.MultiDiGraph[ExtensionId] = nx.MultiDiGraph()
        graph.add_nodes_from((id_, {"card": card}) for id_, card in self.cards.items())
        for a in self.cards.values():
            for b in self.cards.values():
                if a.id == b.id or not b.after.permits(a.name, a.version):
                    continue
                for out in a.outputs:
                    for into in b.inputs:
                        if into.feature.accepts(out.feature):
                            graph.add_edge(a.id, b.id, output=out.name, input=into.name)
        return graph
