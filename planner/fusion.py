"""When to put a chain of extensions into one deployment, and when to take it apart again.

A chain is fused when it has run often for a whole window and the ways between its deployments are a worthwhile part of
its time. What is fused serves because it measures better, like any other extension; it goes when it is hardly used,
when a part of it changes, goes, or gets a newer version, or when the planner takes its parts all the same. What is
fused is read off the catalogue; the rest may be forgotten at any time.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import BadCard
from planner.plans import Plan
from planner.wiring import HOP_MS, NAMED, Group, fused_card, groups_of, owns, parse_group

MOST_PLANS = 1_000
SLOTS = 8  # of a window; gateways tell once a slot
CHANNEL_MS = 0.25  # from one part of a compiled graph to the next; three take 0.76 ms on two cores
KEEP = 0.1  # of the rate at which a chain is fused: what is used less than that counts as unused


@dataclass(frozen=True, slots=True)
class Rules:
    """How readily chains are fused."""

    min_per_s: float = 5.0  # runs of a chain, over the whole window; requests that travel together are one run
    window_s: float = 60.0
    min_saving: float = 0.2  # share of the chain's time that it would save
    unused_s: float = 1_800.0  # a fused extension that is not used for so long is retired
    rest_s: float = 3_600.0  # before a chain is tried again that failed, or was not chosen
    most: int = 4  # fused extensions at a time
    compiled: bool = False  # parts that own their cores or a GPU keep them, and run as a compiled graph

    @property
    def pace_s(self) -> float:
        """How often gateways tell what ran, and how often something is decided."""
        return min(5.0, self.window_s / SLOTS)


@dataclass(frozen=True, slots=True)
class Use:
    """How often a gateway ran a plan since it last told, and which of its extensions run in the gateway itself.

    `run_ms` is what a call takes inside an extension, where that is known: the rest of its profile is the way there.
    """

    plan: Plan
    n_runs: int
    inline: frozenset[ExtensionId] = frozenset()
    run_ms: Mapping[ExtensionId, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Fuse:
    """Deploy this extension."""

    card: Card
    parts: tuple[ExtensionId, ...]
    why: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Remove this extension."""

    extension: ExtensionId
    parts: tuple[ExtensionId, ...]
    why: str


class RunCounter:
    """Counts in a gateway which plans ran, since they were last taken. Bounded; not for several threads at once."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: dict[str, tuple[Plan, list[int]]] = {}

    def ran(self, plan: Plan) -> None:
        seen = self._runs.get(plan.id)
        if seen is not None:
            seen[1][0] += 1
        elif len(self._runs) < MOST_PLANS:
            self._runs[plan.id] = plan, [1]

    def take(
        self,
        inline: frozenset[ExtensionId],
        fused: frozenset[ExtensionId],
        run_ms: Callable[[ExtensionId], float | None],
    ) -> list[Use]:
        """What concerns fusion: plans with two steps or more outside the gateway, and those with fused extensions.

        `run_ms` tells what a call takes inside an extension, if that is known.
        """
        runs, self._runs = self._runs, {}
        uses = []
        for plan, (n_runs,) in runs.values():
            extensions = plan.extensions()
            if sum(id_ not in inline for id_ in extensions) > 1 or not fused.isdisjoint(extensions):
                took = {id_: ms for id_ in extensions if (ms := run_ms(id_)) is not None}
                uses.append(Use(plan, n_runs, inline.intersection(extensions), took))
        return uses


@dataclass(slots=True)
class _Seen:
    """What is known of one plan: its runs by the time they were told, oldest first."""

    use: Use
    runs: deque[tuple[float, int]] = field(default_factory=deque)
    groups: tuple[int, Sequence[tuple[Group, Card]]] = (-1, ())  # and the epoch of the catalogue that they are from

    def groups_at(self, catalogue: Catalogue, compiled: bool) -> Sequence[tuple[Group, Card]]:
        """The groups in the plan, and their cards when fused."""
        if self.groups[0] != catalogue.epoch:
            groups = groups_of(self.use.plan, catalogue.cards, compiled)
            self.groups = catalogue.epoch, [(group, fused_card(group)) for group in groups]
        return self.groups[1]

    def add(self, use: Use, now_s: float) -> None:
        self.use = use
        if self.runs and self.runs[-1][0] == now_s:
            self.runs[-1] = now_s, self.runs[-1][1] + use.n_runs
        else:
            self.runs.append((now_s, use.n_runs))


@dataclass(slots=True)
class _Chain:
    """A group that runs part by part, in whichever plans, and how often it does."""

    group: Group
    use: Use
    card: Card
    early: float = 0.0  # runs in the first half of the window
    late: float = 0.0  # and in the second

    def saving_ms(self) -> tuple[float, float]:
        """What fusing saves for one row, and what the chain takes now: of all the ways there and back one is left."""
        took_ms = [card.profile.p50_ms(1) for card in self.group.cards]
        ways_ms = [0.0 if card.id in self.use.inline else self._way_ms(card) for card in self.group.cards]
        inside_ms = [took - way for took, way in zip(took_ms, ways_ms, strict=True)]
        now_ms = self.group.path_ms(took_ms)
        if self.group.compiled:  # parts still run side by side
            then_ms = self.group.path_ms([inside + CHANNEL_MS for inside in inside_ms])
        else:
            then_ms = sum(inside_ms)
        return now_ms - (then_ms + max(ways_ms)), now_ms

    def _way_ms(self, card: Card) -> float:
        took_ms = card.profile.p50_ms(1)
        inside_ms = self.use.run_ms.get(card.id)
        return min(took_ms, HOP_MS) if inside_ms is None else max(0.0, took_ms - inside_ms)


class Fusion:
    """Decides what to fuse and what to retire. `now_s` is any steady clock; not for several threads at once."""

    def __init__(self, rules: Rules, now_s: float) -> None:
        self.rules = rules
        self._began_s = now_s
        self._plans: dict[str, _Seen] = {}
        self._busy_s: dict[ExtensionId, float] = {}  # fused extension -> when it was last used enough
        self._known_s: dict[ExtensionId, float] = {}  # and since when it is known
        self._rest_until_s: dict[ExtensionId, float] = {}

    def told(self, uses: Iterable[Use], now_s: float) -> None:
        """Takes in what a gateway ran."""
        self._forget(now_s)
        for use in uses:
            seen = self._plans.get(use.plan.id)
            if seen is None:
                if len(self._plans) >= MOST_PLANS:
                    continue
                seen = self._plans[use.plan.id] = _Seen(use)
            seen.add(use, now_s)

    def failed(self, extension: ExtensionId, now_s: float) -> None:
        """It could not be deployed: its chain is left alone for a while."""
        self._rest_until_s[extension] = now_s + self.rules.rest_s

    def decide(self, catalogue: Catalogue, now_s: float) -> Fuse | Retire | None:
        """The next thing to do, if anything: what has to go first."""
        self._forget(now_s)
        # One of another name was put together by hand, and is the operator's.
        fused = {
            card.id: card for card in catalogue.cards.values() if card.kind == "fused" and card.name.startswith(NAMED)
        }
        self._watch(fused, now_s)
        chains = self._chains(catalogue, now_s)
        for card in fused.values():
            retire = self._retired(card, catalogue, chains, now_s)
            if retire is not None:
                # What has just gone must show again that it is worth the way back.
                rest_s = now_s + self.rules.window_s / 2
                self._rest_until_s[card.id] = max(rest_s, self._rest_until_s.get(card.id, rest_s))
                return retire
        if len(fused) >= self.rules.most:
            return None
        worth: dict[ExtensionId, float] = {}
        for id_, chain in chains.items():
            if id_ not in fused and self._is_worthwhile(chain, now_s) and not slips_past_rules(chain.card, catalogue):
                worth[id_] = chain.saving_ms()[0] * (chain.early + chain.late)
        if not worth:
            return None
        chain = chains[max(worth, key=lambda id_: (worth[id_], id_))]
        saved_ms, now_ms = chain.saving_ms()
        per_s = (chain.early + chain.late) / self.rules.window_s
        why = (
            f"{per_s:.1f} runs a second for {self.rules.window_s:g} s, {saved_ms / now_ms:.0%} of {now_ms:.1f} ms saved"
        )
        return Fuse(chain.card, tuple(card.id for card in chain.group.cards), why)

    def _is_worthwhile(self, chain: _Chain, now_s: float) -> bool:
        if now_s < self._rest_until_s.get(chain.card.id, -math.inf) or not self._is_hot(chain, now_s):
            return False
        if sum(card.id not in chain.use.inline for card in chain.group.cards) < 2:
            return False
        saved_ms, now_ms = chain.saving_ms()
        return saved_ms > 0.0 and saved_ms >= self.rules.min_saving * now_ms

    def _is_hot(self, chain: _Chain, now_s: float) -> bool:
        """Whether it ran often enough, and not in one burst only."""
        least = self.rules.min_per_s * self.rules.window_s
        steady = min(chain.early, chain.late) >= least / 4
        return now_s - self._began_s >= self.rules.window_s and steady and chain.early + chain.late >= least

    def _retired(
        self, card: Card, catalogue: Catalogue, chains: Mapping[ExtensionId, _Chain], now_s: float
    ) -> Retire | None:
        try:
            group = parse_group(card.options, card.id)
        except BadCard as error:
            return Retire(card.id, (), error.message)
        parts = tuple(part.id for part in group.cards)
        why = outdated(card, group, catalogue)
        if why:
            return Retire(card.id, parts, why)
        if group.compiled and not self.rules.compiled:
            return Retire(card.id, parts, "compiled graphs are turned off")
        if self.rules.compiled and not group.compiled and all(owns(catalogue.cards[id_].resources) for id_ in parts):
            return Retire(card.id, parts, "it can be a compiled graph")
        idle_s = now_s - self._busy_s[card.id]
        if idle_s >= self.rules.unused_s:
            return Retire(card.id, parts, f"hardly used for {idle_s:.0f} s")
        chain = chains.get(card.id)
        settled = now_s - self._known_s[card.id] >= 2 * self.rules.window_s and idle_s >= self.rules.window_s
        if settled and chain is not None and self._is_hot(chain, now_s):
            self.failed(card.id, now_s)
            return Retire(card.id, parts, "its parts are used instead")
        return None

    def _watch(self, fused: Mapping[ExtensionId, Card], now_s: float) -> None:
        """Notes which fused extensions are in use."""
        runs = dict.fromkeys(fused, 0)
        for seen in self._plans.values():
            for id_ in runs.keys() & set(seen.use.plan.extensions()):
                runs[id_] += sum(n for _, n in seen.runs)
        least = KEEP * self.rules.min_per_s * self.rules.window_s
        self._known_s = {id_: self._known_s.get(id_, now_s) for id_ in fused}
        self._busy_s = {id_: now_s if n >= least else self._busy_s.get(id_, now_s) for id_, n in runs.items()}

    def _chains(self, catalogue: Catalogue, now_s: float) -> dict[ExtensionId, _Chain]:
        """The groups in all that ran, by the id that they have when fused."""
        middle_s = now_s - self.rules.window_s / 2
        chains: dict[ExtensionId, _Chain] = {}
        for seen in self._plans.values():
            early = sum(n for at_s, n in seen.runs if at_s <= middle_s)
            late = sum(n for at_s, n in seen.runs if at_s > middle_s)
            for group, card in seen.groups_at(catalogue, self.rules.compiled):
                chain = chains.setdefault(card.id, _Chain(group, seen.use, card))
                chain.early, chain.late = chain.early + early, chain.late + late
        return chains

    def _forget(self, now_s: float) -> None:
        """Drops what is older than the window."""
        since_s = now_s - self.rules.window_s
        for id_, seen in list(self._plans.items()):
            while seen.runs and seen.runs[0][0] <= since_s:
                seen.runs.popleft()
            if not seen.runs:
                del self._plans[id_]
        self._rest_until_s = {id_: until_s for id_, until_s in self._rest_until_s.items() if until_s > now_s}


def outdated(card: Card, group: Group, catalogue: Catalogue) -> str:
    """Why a fused extension is not what its parts are now; "" when it is."""
    names = {part.name for part in group.cards}
    order = [other for other in catalogue.cards.values() if other.name in names or other.id == card.id]
    later = order[order.index(card) + 1 :] if card in order else []
    for part in group.cards:
        if part.id not in catalogue.cards:
            return f"{part.id} is gone"
        # A version that was there before: the planner knew it, and took this one.
        newer = [other.id for other in later if other.name == part.name and other.id != part.id]
        if newer:
            return f"{newer[-1]} is newer than {part.id}"
    parts = tuple(catalogue.cards[part.id] for part in group.cards)
    now = fused_card(Group(parts, group.steps, group.compiled))
    if _lasting(now) != _lasting(card):
        return "a part of it has changed"
    if slips_past_rules(card, catalogue):
        return "an extension refuses to follow its last part"
    return ""


def slips_past_rules(card: Card, catalogue: Catalogue) -> bool:
    """Whether some extension that may not follow the last part could follow the whole, which has another name."""
    last = parse_group(card.options, card.id).cards[-1]
    rules = {other.after for other in catalogue.cards.values() if other.after.deny or other.after.allow}
    return any(rule.permits(card.name, card.version) and not rule.permits(last.name, last.version) for rule in rules)


def _lasting(card: Card) -> Card:
    """What of a card neither measuring nor the operator's words change."""
    return Card(
        name=card.name,
        version=card.version,
        inputs=card.inputs,
        outputs=card.outputs,
        kind=card.kind,
        source=card.source,
        options=card.options,
        cost=card.cost,
        may_see=card.may_see,
        site=card.site,
        after=card.after,
        deterministic=card.deterministic,
        cache=card.cache,
        resources=card.resources,
    )
