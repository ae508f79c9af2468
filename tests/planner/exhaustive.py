"""Planning by trying everything: slow, simple and written without a look at the planner. The tests compare with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from math import prod

from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.plans import REQUEST, Plan, PlanRequest

ANSWER = ExtensionId("")  # stands for the wanted features
GIVEN = ExtensionId("?")  # stands for the request
Slot = tuple[ExtensionId, int]  # an extension (or ANSWER) and one of its inputs
Source = tuple[ExtensionId, int]  # an extension (or GIVEN) and one of its outputs


class TooMany(Exception):
    """There are more plans than it is worth to try."""


@dataclass(frozen=True)
class Whole:
    """One complete plan and what it is worth."""

    extensions: frozenset[ExtensionId]
    p50_ms: float
    p99_ms: float
    cost: float
    accuracy: float
    score: float


def all_plans(request: PlanRequest, catalogue: Catalogue, most: int) -> list[Whole]:
    """Every plan within the terms. Raises TooMany after `most` partial plans."""
    cards = {
        card.id: card
        for card in catalogue.cards.values()
        if card.id not in request.avoid
        and card.sees(request.terms.tags)
        and all(port.many == 1 for port in card.inputs)
    }
    wholes = []
    for fed in _wirings(request, cards, {}, [(ANSWER, i) for i in range(len(request.wanted))], count(), most):
        whole = _judge(request, cards, fed)
        if whole is not None and _kept(request, whole):
            wholes.append(whole)
    return wholes


def _wirings(
    request: PlanRequest,
    cards: dict[ExtensionId, Card],
    fed: dict[Slot, Source],
    open_: list[Slot],
    tried: Iterator[int],
    most: int,
) -> Iterator[dict[Slot, Source]]:
    if next(tried) > most:
        raise TooMany
    if not open_:
        yield fed
        return
    (taker, i), *rest = open_
    ports = request.wanted if taker == ANSWER else cards[taker].inputs
    wants = ports[i].feature
    sources = [((GIVEN, j), port) for j, port in enumerate(request.inputs)]
    sources += [((id_, j), port) for id_, card in cards.items() for j, port in enumerate(card.outputs)]
    present = {slot[0] for slot in fed} | {slot[0] for slot in open_} | {source[0] for source in fed.values()}
    for source, port in sources:
        giver = source[0]
        if not wants.accepts(port.feature):
            continue
        if giver != GIVEN and taker != ANSWER:
            if not cards[taker].after.permits(cards[giver].name, cards[giver].version):
                continue
            if _depends(fed, giver, taker):
                continue
        if taker != ANSWER and any(fed.get((taker, j)) == source for j in range(len(ports))):
            continue
        new = [] if giver == GIVEN or giver in present else [(giver, j) for j in range(len(cards[giver].inputs))]
        yield from _wirings(request, cards, {**fed, (taker, i): source}, [*rest, *new], tried, most)


def _depends(fed: dict[Slot, Source], taker: ExtensionId, giver: ExtensionId) -> bool:
    """Whether `taker` waits, directly or not, for `giver` (or is it)."""
    if taker == giver:
        return True
    return any(_depends(fed, source[0], giver) for slot, source in fed.items() if slot[0] == taker)


def _judge(request: PlanRequest, cards: dict[ExtensionId, Card], fed: dict[Slot, Source]) -> Whole | None:
    used = {source[0] for source in fed.values()} - {GIVEN}
    if request.must_use is not None and request.must_use not in used:
        return None

    def ready(id_: ExtensionId, slow: bool) -> float:
        if id_ == GIVEN:
            return 0.0
        before = max((ready(source[0], slow) for slot, source in fed.items() if slot[0] == id_), default=0.0)
        if id_ == ANSWER:
            return before
        profile = cards[id_].profile
        kilo = request.kilo if any(-1 in port.feature.shape for port in cards[id_].inputs) else 0.0
        return before + (profile.p99_ms if slow else profile.p50_ms)(request.n_rows, kilo)

    accuracy = prod(cards[id_].accuracy.mean for id_ in used)
    cost = sum(cards[id_].cost for id_ in used)
    p50_ms = ready(ANSWER, False)
    score = request.objective.score(accuracy, p50_ms, cost)
    return Whole(frozenset(used), p50_ms, ready(ANSWER, True), cost, accuracy, score)


def _kept(request: PlanRequest, whole: Whole) -> bool:
    terms, slack = request.terms, 1e-9
    return (
        (terms.deadline_ms is None or whole.p99_ms <= terms.deadline_ms * (1 + slack))
        and (terms.max_cost is None or whole.cost <= terms.max_cost * (1 + slack) + 1e-12)
        and (terms.min_accuracy is None or whole.accuracy >= terms.min_accuracy * (1 - slack))
    )


def check(plan: Plan, request: PlanRequest, catalogue: Catalogue) -> None:
    """Asserts that a plan can be run: every port fed once by something it accepts, in order, nothing idle or twice."""
    by_id = {step.id: step for step in plan.steps}
    ids = [step.extension for step in plan.steps]
    assert len(by_id) == len(plan.steps)
    assert len(set(ids)) == len(ids)
    place = {step.id: i for i, step in enumerate(plan.steps)}
    used = set()

    def check_binding(wants, sources, card, at) -> None:  # type: ignore[no-untyped-def]
        assert sources
        for source in sources:
            if source.step == REQUEST:
                feature = next(port.feature for port in request.inputs if port.name == source.port)
            else:
                giver = catalogue.cards[by_id[source.step].extension]
                feature = next(port.feature for port in giver.outputs if port.name == source.port)
                assert place[source.step] < at
                assert card is None or card.after.permits(giver.name, giver.version)
                used.add(source.step)
            assert wants.accepts(feature)

    for i, step in enumerate(plan.steps):
        card = catalogue.cards[step.extension]
        assert card.sees(request.terms.tags)
        assert step.extension not in request.avoid
        bound = [source for binding in step.inputs for source in binding.sources]
        assert len(set(bound)) == len(bound), "an extension takes the same source twice"
        for port in card.inputs:
            bindings = [binding for binding in step.inputs if binding.port == port.name]
            assert len(bindings) == 1 if port.many == 1 else 2 <= len(bindings) <= port.many
            for binding in bindings:
                check_binding(port.feature, binding.sources, card, i)
        assert {binding.port for binding in step.inputs} == {port.name for port in card.inputs}
        if step.guard is not None:
            assert place[step.guard.step] < i
    # Rows that a guard holds back have no result of the guarded step: whoever takes it runs for the same rows only,
    # or has the guarding step's own result to fall back on.
    for taker, binding in [(s, b) for s in plan.steps for b in s.inputs] + [(None, b) for b in plan.outputs]:
        for i, source in enumerate(binding.sources):
            guard = None if source.step == REQUEST else by_id[source.step].guard
            if guard is not None:
                earlier = [s.step for s in binding.sources[:i]]
                assert (taker is not None and taker.guard == guard) or guard.step in earlier
    for port, binding in zip(request.wanted, plan.outputs, strict=True):
        assert binding.port == port.name
        check_binding(port.feature, binding.sources, None, len(plan.steps))
    assert used == set(by_id), "a step works for nobody"
    assert request.must_use is None or request.must_use in ids
