"""What those who serve requests need to know of rollouts: who serves, who is tried, who is held back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.rollout.records import Rollout
from planner.rollout.shares import Split, split_of

PartsOf = Callable[[Card], tuple[ExtensionId, ...]]  # of a card that is put together of others


@dataclass(frozen=True, slots=True)
class Traffic:
    """Who serves one extension: `champion` all that the `split` of a running rollout does not give to `challenger`.
    Where none runs, `split` is None."""

    extension: str
    champion: str
    challenger: str
    split: Split | None = None

    @property
    def champion_id(self) -> ExtensionId:
        return ExtensionId(f"{self.extension}@{self.champion}")

    @property
    def challenger_id(self) -> ExtensionId:
        return ExtensionId(f"{self.extension}@{self.challenger}")


def traffic_of(rollout: Rollout) -> Traffic:
    """How the requests for an extension are shared out now."""
    split = split_of(rollout) if rollout.running else None
    return Traffic(rollout.extension, rollout.champion, rollout.challenger, split)


@dataclass(frozen=True, slots=True)
class Rules:
    """Who serves, for all extensions with a rollout, by name; `held` are versions that wait for theirs. `keeper` names
    the life of whoever counted `version`."""

    keeper: str = ""
    version: int = 0
    traffic: Mapping[str, Traffic] = field(default_factory=dict)
    held: frozenset[ExtensionId] = frozenset()


def rules_of(rollouts: Iterable[Rollout], held: Iterable[str], keeper: str = "", version: int = 0) -> Rules:
    """The rules that follow from the last rollout of each extension, and from who is held."""
    return Rules(
        keeper, version, {one.extension: traffic_of(one) for one in rollouts}, frozenset(map(ExtensionId, held))
    )


def withheld(rules: Rules, catalogue: Catalogue, parts_of: PartsOf) -> frozenset[ExtensionId]:
    """The extension versions that serve nobody but whom a rollout sends to them.

    Of an extension with a rollout, running or over, these are all versions but the champion. Where the champion is not
    in the catalogue nobody is held back: any answer is better than none. What is put together of others is held back
    with its parts; and while a rollout runs, with any version of the extension that it is about, so that both versions
    run alike.
    """
    found = set(rules.held)
    by_name: dict[str, list[ExtensionId]] = {}
    for id_, card in catalogue.cards.items():
        if card.name in rules.traffic:
            by_name.setdefault(card.name, []).append(id_)
    tried: set[ExtensionId] = set()
    for name, ids in by_name.items():
        traffic = rules.traffic[name]
        if traffic.champion_id in ids:
            found.update(id_ for id_ in ids if id_ != traffic.champion_id)
            if traffic.split is not None and traffic.challenger_id in ids:
                tried.add(traffic.champion_id)
    apart = found | tried
    if apart:
        found.update(id_ for id_, card in catalogue.cards.items() if not apart.isdisjoint(parts_of(card)))
    return frozenset(found)


def running(rules: Rules, catalogue: Catalogue) -> tuple[Traffic, ...]:
    """The rollouts that run and of which both versions are there."""
    return tuple(
        one
        for one in rules.traffic.values()
        if one.split is not None and one.champion_id in catalogue.cards and one.challenger_id in catalogue.cards
    )
