"""Parts and how they are wired: which steps of a plan could be one extension, and the card that it would have.

A group has one way out: only its last part gives rows to others. A chain may stand anywhere in a plan. A group with
branches stands at the beginning, on what the request brings, because how sure its answers are may hang on several
sources there, of which a request states none. So a group answers as its parts do one by one, confidences included.

Where that is wanted, parts that own their cores or a GPU keep them: each runs in an actor of its own, and the group is
a compiled graph over those actors (`deployments/kinds/compiled.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2s
from itertools import pairwise
from typing import Any

from planner.card_codec import card_to_dict, parse_card
from planner.cards import SHARINGS, Accuracy, Card, ChainRule, ExtensionId, LatencyProfile, Resources, Sharing
from planner.errors import BadCard
from planner.estimates import predict
from planner.features import Feature, Port
from planner.plans import REQUEST, Binding, Plan, Source, Step, StepId
from planner.progress import needs

FUSED = "fused:"  # begins the source of a fused extension
NAMED = "fused."  # begins the name of one that the cluster put together itself
HOP_MS = 1.0  # the way to a deployment and back, where it was not measured; 1.4 ms on two idle cores
MOST_PARTS = 8
_APART = frozenset({"remote", "human", "fused"})  # kinds whose work is done elsewhere, or that have parts themselves
_KEPT = ("name", "version", "inputs", "outputs", "kind", "source", "options")  # of a part's card: what loading needs
_COMPILED = "compiled"  # the option of an extension that runs as a compiled graph


@dataclass(frozen=True, slots=True)
class Group:
    """Parts in an order in which they can run, as the steps of a small plan. The last one gives the outputs.

    `steps[i]` has the id `i` and runs `cards[i]`. Each binding has one source: a part before, or REQUEST, whose ports
    are the inputs of the whole. `compiled` says that every part keeps its own process and resources.
    """

    cards: tuple[Card, ...]
    steps: tuple[Step, ...]
    compiled: bool = False

    @property
    def inputs(self) -> tuple[Port, ...]:
        """The inputs of the whole; one that several parts take is what suits them all."""
        features: dict[str, Feature] = {}
        for card, step in zip(self.cards, self.steps, strict=True):
            for binding in step.inputs:
                (source,) = binding.sources
                if source.step == REQUEST:
                    feature = _port(card, binding.port).feature
                    known = features.get(source.port)
                    features[source.port] = feature if known is None else _meet(known, feature)
        return tuple(Port(name, feature) for name, feature in features.items())

    @property
    def outputs(self) -> tuple[Port, ...]:
        return self.cards[-1].outputs

    @property
    def is_chain(self) -> bool:
        """Whether every part but the first takes its rows from the one before and from nowhere else."""
        return all(needs(step) == {before.id} for before, step in pairwise(self.steps))

    def path_ms(self, took_ms: Sequence[float]) -> float:
        """The longest path through the group, when each part takes so long."""
        ends_ms: dict[StepId, float] = {REQUEST: 0.0}
        for step, took in zip(self.steps, took_ms, strict=True):
            ends_ms[step.id] = max(ends_ms[before] for before in needs(step)) + took
        return ends_ms[self.steps[-1].id]


def groups_of(plan: Plan, cards: Mapping[ExtensionId, Card], compiled: bool = False) -> tuple[Group, ...]:
    """The groups of two parts or more that a plan's steps make, as large as they can be; no step is in two of them.

    Steps behind a guard, steps that choose among stages of a cascade, and extensions whose work is done elsewhere
    belong to none; nor do steps that need other GPUs than the rest. With `compiled`, a group of which every part owns
    its cores or a GPU is a compiled one, and there the GPUs may differ.
    """
    takers: dict[StepId, set[StepId]] = {step.id: set() for step in plan.steps}
    for step in plan.steps:
        for before in needs(step) - {REQUEST}:
            takers[before].add(step.id)
    for binding in plan.outputs:
        for source in binding.sources:
            takers.get(source.step, set()).add(REQUEST)  # here REQUEST stands for the answer
    free = [step for step in plan.steps if _may_join(step, cards)]
    groups: list[Group] = []
    while free:
        end = free.pop()
        gpus = cards[end.extension].resources.num_gpus
        alike = [step for step in free if cards[step.extension].resources.num_gpus == gpus]
        steps = _fitting(_before_end(end, alike, takers), cards)
        if compiled and owns(cards[end.extension].resources):
            owning = [step for step in free if owns(cards[step.extension].resources)]
            steps = max(steps, _fitting(_before_end(end, owning, takers), cards), key=len)
        if len(steps) > 1:
            groups.append(_group(steps, cards, compiled))
            free = [step for step in free if step not in steps]
    return tuple(groups[::-1])


def owns(resources: Resources) -> bool:
    """Whether a replica with these resources has cores or a GPU to itself."""
    return resources.num_cpus >= 1.0 or resources.num_gpus > 0.0


def fused_card(group: Group) -> Card:
    """The card of the extension that is all these parts. Its id is the same for the same parts wired in the same way.

    Latency is a guess, to be measured; accuracy is what the planner predicts for the parts, on the fewest rows that
    any of them was measured on.
    """
    cards, options = group.cards, options_of(group)
    outputs = tuple(Binding(port.name, (Source(group.steps[-1].id, port.name),)) for port in group.outputs)
    predicted = predict(group.steps, outputs, {card.id: card for card in cards})
    seen = [card.may_see for card in cards if card.may_see is not None]
    names = [str(card.id) for card in cards]
    wiring = json.dumps(options, sort_keys=True).encode()
    chain = group.is_chain
    where = "as one compiled graph" if group.compiled else "in one deployment"
    return Card(
        name=NAMED + ".".join(card.name for card in cards)[:100],
        version=blake2s(wiring, digest_size=6).hexdigest(),
        inputs=group.inputs,
        outputs=group.outputs,
        description=f"{', then '.join(names) if chain else ', '.join(names)}, {where}.",
        kind="fused",
        source=FUSED + "+".join(names),
        options=options,
        cost=predicted.cost,
        profile=LatencyProfile(HOP_MS + sum(max(0.0, card.profile.p50_ms(1) - HOP_MS) for card in cards)),
        accuracy=Accuracy(predicted.accuracy, min(card.accuracy.n_rows for card in cards)),
        confidence_threshold=cards[-1].confidence_threshold,
        may_see=frozenset.intersection(*seen) if seen else None,
        site=cards[0].site,
        after=cards[0].after if chain else ChainRule(deny=("*",)),
        deterministic=all(card.deterministic for card in cards),
        cache=_strictest(cards),
        resources=_resources([card.resources for card in cards], group.compiled),
    )


def options_of(group: Group) -> dict[str, Any]:
    """A group as the options of its extension, plain data: `parts` and, per part, `wiring` as [port, giver, its port];
    giver -1 stands for the inputs of the whole. With `compiled` the parts state their resources."""
    plain = [card_to_dict(card) for card in group.cards]
    kept = (*_KEPT, "resources") if group.compiled else _KEPT
    options: dict[str, Any] = {
        "parts": [{field: card[field] for field in kept} for card in plain],
        "wiring": [[[b.port, int(b.sources[0].step), b.sources[0].port] for b in step.inputs] for step in group.steps],
    }
    return {**options, _COMPILED: True} if group.compiled else options


def parse_group(options: Mapping[str, Any], where: str) -> Group:
    """The group that these options hold; of its cards only what loading needs is known. Raises BadCard."""
    parts, wiring, compiled = options.get("parts"), options.get("wiring"), options.get(_COMPILED, False)
    if not isinstance(compiled, bool):
        raise BadCard(f"{where}: {_COMPILED} is true or false, not {compiled!r}.")
    if not isinstance(parts, list) or not isinstance(wiring, list) or not parts or len(parts) != len(wiring):
        raise BadCard(f"{where}: the options of a fused extension are `parts` and, for each of them, `wiring`.")
    cards = tuple(parse_card(part, f"{where}: part {i}") for i, part in enumerate(parts))
    steps = []
    for i, (card, wires) in enumerate(zip(cards, wiring, strict=True)):
        bindings = []
        try:
            for port, giver, giver_port in wires:
                _port(card, port)
                if giver != REQUEST:
                    _port(_before(cards, giver, i), giver_port, output=True)
                bindings.append(Binding(port, (Source(StepId(giver), str(giver_port)),)))
        except (TypeError, ValueError, LookupError):
            raise BadCard(f"{where}: the wiring of part {i} ({card.id}) does not fit the parts.") from None
        if {binding.port for binding in bindings} != {port.name for port in card.inputs}:
            raise BadCard(f"{where}: part {i} ({card.id}) does not get all its inputs.")
        steps.append(Step(StepId(i), card.id, tuple(bindings)))
    used = {source.step for step in steps for binding in step.inputs for source in binding.sources}
    for step in steps[:-1]:
        if compiled and step.id not in used:
            raise BadCard(f"{where}: no part takes what part {step.id} ({step.extension}) gives.")
    return Group(cards, tuple(steps), compiled)


def _before(cards: Sequence[Card], giver: int, taker: int) -> Card:
    if not 0 <= giver < taker:
        raise LookupError(giver)
    return cards[giver]


def _port(card: Card, name: str, output: bool = False) -> Port:
    """Raises LookupError."""
    for port in card.outputs if output else card.inputs:
        if port.name == name:
            return port
    raise LookupError(name)


def _may_join(step: Step, cards: Mapping[ExtensionId, Card]) -> bool:
    card = cards.get(step.extension)
    return (
        card is not None
        and card.kind not in _APART
        and card.site == "local"
        and step.guard is None
        and all(len(binding.sources) == 1 for binding in step.inputs)
    )


def _before_end(end: Step, others: Sequence[Step], takers: Mapping[StepId, set[StepId]]) -> list[Step]:
    """`end` and those of the others whose rows go to nobody but these, in the order of the plan."""
    members = [end]
    for step in reversed(others):
        if takers[step.id] and takers[step.id] <= {member.id for member in members}:
            members.append(step)
    return members[::-1]


def _fitting(steps: Sequence[Step], cards: Mapping[ExtensionId, Card]) -> Sequence[Step]:
    """All the steps where they may be a group; else the chain that their last one ends."""
    ids = {step.id for step in steps}
    outside = [b for step in steps for b in step.inputs if b.sources[0].step not in ids]
    only_request = all(b.sources[0].step == REQUEST for b in outside)
    if len(steps) <= MOST_PARTS and only_request and not _combines_outside(steps, ids, cards):
        return steps
    by_id = {step.id: step for step in steps}
    chain = [steps[-1]]
    while len(before := needs(chain[0])) == 1 and (step := by_id.get(next(iter(before)))) and len(chain) < MOST_PARTS:
        chain.insert(0, step)
    return chain[1:] if _combines_outside(chain[:1], set(), cards) else chain


def _combines_outside(steps: Sequence[Step], ids: set[StepId], cards: Mapping[ExtensionId, Card]) -> bool:
    """Whether a port that stacks several sources takes one from outside: how many there are is then left open."""
    return any(
        b.sources[0].step not in ids and _port(cards[step.extension], b.port).many > 1
        for step in steps
        for b in step.inputs
    )


def _group(steps: Sequence[Step], cards: Mapping[ExtensionId, Card], compiled: bool) -> Group:
    """The steps with ids, an order and names of inputs that do not depend on the plan that they come from."""
    depth: dict[StepId, int] = {}
    for step in steps:
        depth[step.id] = 1 + max([depth.get(before, 0) for before in needs(step)], default=0)
    order = sorted(steps, key=lambda step: (depth[step.id], step.extension, step.id))
    new = {step.id: StepId(i) for i, step in enumerate(order)}
    names: dict[Source, str] = {}
    made = []
    for step in order:
        bindings = []
        for binding in step.inputs:
            (source,) = binding.sources
            if source.step in new:
                given = Source(new[source.step], source.port)
            else:
                if source not in names:
                    names[source] = _unused(binding.port, set(names.values()))
                given = Source(REQUEST, names[source])
            bindings.append(Binding(binding.port, (given,)))
        made.append(Step(new[step.id], step.extension, tuple(bindings)))
    parts = tuple(cards[step.extension] for step in order)
    return Group(parts, tuple(made), compiled and all(owns(part.resources) for part in parts))


def _unused(name: str, taken: set[str]) -> str:
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}-{number}", number + 1
    return found


def _meet(a: Feature, b: Feature) -> Feature:
    """What both accept, of two features that accept one source."""
    shape = tuple(x if y == -1 else y for x, y in zip(a.shape, b.shape, strict=True))
    return Feature(max(a.type, b.type, key=len), a.datatype, shape)


def _strictest(cards: Sequence[Card]) -> Sharing:
    return max((card.cache for card in cards), key=SHARINGS.index)


def _resources(needs: Sequence[Resources], compiled: bool) -> Resources:
    """Parts work in turn, so the most that one needs will do; memory they hold together. Those of a compiled graph have
    their own, so the replica itself needs nothing."""
    placements = {need.placement for need in needs}
    if compiled:
        placements = {"remote"}
    return Resources(
        num_cpus=0.0 if compiled else max(need.num_cpus for need in needs),
        num_gpus=0.0 if compiled else max(need.num_gpus for need in needs),
        memory_mib=0 if compiled else sum(need.memory_mib for need in needs),
        min_replicas=max(need.min_replicas for need in needs),
        max_replicas=max(need.max_replicas for need in needs),
        max_batch_rows=min(need.max_batch_rows for need in needs),
        placement="remote" if "remote" in placements else "inline" if placements == {"inline"} else "auto",
    )
