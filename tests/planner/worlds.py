"""Random catalogues and requests, as hypothesis strategies, and short ways to write cards."""

from __future__ import annotations

import random
from typing import Any

from hypothesis import strategies as st

from planner.cards import Accuracy, Card, ChainRule, ExtensionId, LatencyProfile
from planner.catalogue import Catalogue
from planner.features import Feature, Port
from planner.goals import Objective, Terms
from planner.plans import PlanRequest


def port(type_: str, name: str = "", many: int = 1) -> Port:
    """A port of a scalar feature, named after its type."""
    return Port(name or type_.replace("/", "_"), Feature(type_), many)


def card(
    name: str,
    inputs: str,
    outputs: str,
    *,
    p50_ms: float = 1.0,
    accuracy: float = 1.0,
    cost: float = 0.0,
    p99_ratio: float = 2.0,
    **more: Any,
) -> Card:
    """`card("join", "a b", "c")`: an extension from types to types, separated by blanks."""
    return Card(
        name=name,
        version="1",
        inputs=tuple(port(t, f"in{i}") for i, t in enumerate(inputs.split())),
        outputs=tuple(port(t, f"out{i}") for i, t in enumerate(outputs.split())),
        profile=LatencyProfile(p50_ms, 0.0, 0.0, p99_ratio),
        accuracy=Accuracy(accuracy),
        cost=cost,
        **more,
    )


def wish(inputs: str, wanted: str, **more: Any) -> PlanRequest:
    """`wish("a", "c d")`: a request from types to types."""
    return PlanRequest(
        tuple(port(t, f"in{i}") for i, t in enumerate(inputs.split())),
        tuple(port(t, f"out{i}") for i, t in enumerate(wanted.split())),
        **more,
    )


def worlds(most: int = 12, with_terms: bool = True) -> st.SearchStrategy[tuple[PlanRequest, Catalogue]]:
    """A request and a catalogue of up to `most` extensions; not every one has a plan.

    Drawn by a seeded generator, not choice by choice: hypothesis leans to the simplest choices, and the simplest
    catalogues have no plan or only a trivial one.
    """
    return st.builds(lambda seed: world(random.Random(seed), most, with_terms), st.integers(0, 2**32))


def world(rng: random.Random, most: int = 12, with_terms: bool = True) -> tuple[PlanRequest, Catalogue]:
    """One random request and catalogue. Features run roughly from a to e, with is-a, cycles and dead ends."""
    levels = (("a", "a/x"), ("b", "b/x"), ("c", "c/x", "c/y"), ("d",))[: rng.choice((2, 3, 3, 4))]

    def features(level: int, most: int) -> str:
        n = rng.choice((1, 1, 1, 1, 2, most))
        if rng.random() < 0.8:  # mostly different features: two sources of the same one are rare
            return " ".join(rng.sample(levels[level], min(n, len(levels[level]))))
        return " ".join(rng.choice(levels[level]) for _ in range(n))

    def rule() -> ChainRule:
        names = tuple(rng.sample(["e0", "e1@1", "e2", "e[3-5]", "e*@1", "*7*"], 2))
        return rng.choice([ChainRule()] * 8 + [ChainRule(deny=names[:1]), ChainRule(allow=("e[0-6]", *names))])

    cards = []
    for i in range(most - min(rng.randrange(most), rng.randrange(most))):
        level = rng.randrange(len(levels) - 1)
        # Most lead one level on; some skip one, stay where they are, or lead back.
        to = min(max(level + rng.choice((1, 1, 1, 1, 2, 0, -1)), 0), len(levels) - 1)
        cards.append(
            card(
                f"e{i}",
                features(level, 3) + rng.choice(("", "", "", "", " a", " " + rng.choice(levels)[0])),
                features(to, 2),
                p50_ms=rng.choice((0.0, 0.5, 1.0, 2.0, 3.7, 8.0)),
                accuracy=rng.choice((0.0, 0.3, 0.8, 0.9, 0.95, 0.99, 1.0)),
                cost=rng.choice((0.0, 0.01, 0.1, 0.2, 0.37)),
                p99_ratio=rng.choice((1.0, 1.5, 4.0)),
                after=rule(),
                may_see=rng.choice((None, None, None, None, frozenset({"pii"}), frozenset())),
            )
        )
    catalogue = Catalogue.of(cards)
    terms, must_use, avoid = Terms(), None, frozenset[ExtensionId]()
    if with_terms and rng.random() < 0.6:
        terms = Terms(
            deadline_ms=rng.choice((None, None, 3.0, 6.0, 20.0)),
            max_cost=rng.choice((None, None, 0.2, 0.5, 1.0)),
            min_accuracy=rng.choice((None, None, 0.25, 0.7, 0.9)),
            tags=rng.choice((frozenset[str](), frozenset[str](), frozenset({"pii"}))),
        )
    if with_terms and rng.random() < 0.3:
        must_use = rng.choice(cards).id
    if with_terms and rng.random() < 0.2:
        avoid = frozenset({rng.choice(cards).id}) - {must_use}
    objectives = (
        Objective(),
        Objective(),
        Objective(0, 1, 0),
        Objective(1, 100, 1),
        Objective(1, 0, 2),
        Objective(0, 0, 0),
    )
    request = wish(
        " ".join(rng.sample(["a", "a/x", "b"], rng.choice((1, 2, 2)))),
        " ".join(rng.sample(levels[-1] + levels[-2][1:], rng.choice((1, 1, 2)))),
        terms=terms,
        objective=rng.choice(objectives),
        n_rows=rng.choice((1, 16)),
        must_use=must_use,
        avoid=avoid,
    )
    return request, catalogue
