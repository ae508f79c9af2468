"""Drafts: plans in the making, between the search's numbers and the records that travel.

An extension version occurs at most once in a plan, so a draft names its steps by card number.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from planner.index import Index
from planner.plans import REQUEST, Binding, Guard, PlanRequest, Source, Step, StepId
from planner.search import FROM_REQUEST, GOAL, State

Giver = tuple[int, int]  # card (or FROM_REQUEST) and its output port (or the request's input)
Wire = tuple[str, tuple[Giver, ...]]  # what feeds a port; several givers: the stages of a cascade


@dataclass(slots=True)
class Draft:
    """Per card, what feeds its ports and what guards it; and what feeds the wanted features."""

    inputs: dict[int, list[Wire]] = field(default_factory=dict)
    outputs: list[Wire] = field(default_factory=list)
    guards: dict[int, tuple[int, float]] = field(default_factory=dict)

    @classmethod
    def of(cls, state: State, index: Index, request: PlanRequest) -> Draft:
        """From a state of the search; needs that are still open are left out."""
        draft = cls({step.card: [] for step in state.steps[1:]})
        for bind in sorted(state.binds, key=lambda b: b.port):
            giver = (FROM_REQUEST if bind.giver == FROM_REQUEST else state.steps[bind.giver].card, bind.out)
            if bind.taker == GOAL:
                draft.outputs.append((request.wanted[bind.port].name, (giver,)))
            else:
                card = state.steps[bind.taker].card
                draft.inputs[card].append((index.ports(card)[bind.port].name, (giver,)))
        return draft

    def copy(self) -> Draft:
        return Draft({card: list(wires) for card, wires in self.inputs.items()}, list(self.outputs), dict(self.guards))

    def givers(self, card: int) -> Iterable[int]:
        """The cards that must have run before this one."""
        for _, givers in self.inputs[card]:
            for giver, _ in givers:
                if giver != FROM_REQUEST:
                    yield giver
        if card in self.guards:
            yield self.guards[card][0]

    def needed_by(self, card: int) -> frozenset[int]:
        """A card and all that must have run before it."""
        found, stack = {card}, [card]
        while stack:
            for giver in self.givers(stack.pop()):
                if giver not in found:
                    found.add(giver)
                    stack.append(giver)
        return frozenset(found)

    def without_idle(self) -> Draft:
        """The draft without the steps that work for nobody."""
        needed = [self.needed_by(card) for _, givers in self.outputs for card, _ in givers if card != FROM_REQUEST]
        kept = frozenset[int]().union(*needed)
        return Draft(
            {card: list(wires) for card, wires in self.inputs.items() if card in kept},
            list(self.outputs),
            {card: guard for card, guard in self.guards.items() if card in kept},
        )

    def adopt(self, other: Draft, card: int) -> set[int]:
        """Takes over a card of another draft and what it needs there; what is here already stays as it is wired here.

        Returns the cards that are new.
        """
        new: set[int] = set()
        stack = [card]
        while stack:
            card = stack.pop()
            if card not in self.inputs:
                self.inputs[card] = list(other.inputs[card])
                new.add(card)
                stack += self.givers(card)
        return new

    def order(self) -> list[int]:
        """The cards in topological order. Raises ValueError when a step would wait for itself."""
        order: list[int] = []
        entered: set[int] = set()
        done: set[int] = set()

        def visit(card: int) -> None:
            if card in done:
                return
            if card in entered:
                raise ValueError("a step waits for itself")
            entered.add(card)
            for giver in self.givers(card):
                visit(giver)
            done.add(card)
            order.append(card)

        for card in self.inputs:
            visit(card)
        return order

    def steps(self, index: Index, request: PlanRequest) -> tuple[tuple[Step, ...], tuple[Binding, ...]]:
        """The steps in topological order, numbered from 0, and what feeds the plan's outputs."""
        order = self.order()
        ids = {card: StepId(i) for i, card in enumerate(order)}

        def binding(wire: Wire) -> Binding:
            name, givers = wire
            return Binding(
                name,
                tuple(
                    [
                        Source(REQUEST, request.inputs[out].name)
                        if card == FROM_REQUEST
                        else Source(ids[card], index.cards[card].outputs[out].name)
                        for card, out in givers
                    ]
                ),
            )

        steps = []
        for card in order:
            guard = self.guards.get(card)
            steps.append(
                Step(
                    ids[card],
                    index.names[card],
                    tuple([binding(wire) for wire in self.inputs[card]]),
                    guard=None if guard is None else Guard(ids[guard[0]], guard[1]),
                )
            )
        return tuple(steps), tuple([binding(wire) for wire in self.outputs])
