from __future__ import annotations

from typing import Any

import pytest

from planner.cards import Card, Resources
from planner.features import Feature, Port
from planner.placement import (
    KINDS,
    LONG_RUN_MS,
    LONG_WITHIN,
    MOST_LONG,
    MOST_RUN_MS,
    PROVEN_CALLS,
    PROVEN_S,
    REST_S,
    Placements,
    may_run_inline,
)
from tests.clocks import Clock

NUMBER = Feature("number", "FP32")


def card(**given: Any) -> Card:
    return Card("tiny", "1", (Port("x", NUMBER),), (Port("y", NUMBER),), **given)


CARD = card()


class Bench:
    """Placements that live in the time of a clock that is set by hand."""

    def __init__(self) -> None:
        self.placements = Placements()
        self.clock = Clock()

    def ran(self, n_calls: int = 1, ms: float = 0.1) -> None:
        for _ in range(n_calls):
            self.placements.ran(CARD.id, ms, self.clock())

    def prove(self, ms: float = 0.1) -> None:
        self.ran(PROVEN_CALLS, ms)
        self.clock.now_s += PROVEN_S

    def inline(self, given: Card = CARD) -> bool:
        return self.placements.inline(given, self.clock())


def with_(**resources: Any) -> Card:
    return card(resources=Resources(**resources))


@pytest.mark.parametrize("kind", ["function", "rule", "torch", "sklearn", "mlflow", "fused"])
def test_local_pure_extensions_without_resources_may_run_inline(kind: Any) -> None:
    assert kind in KINDS
    assert may_run_inline(card(kind=kind))


@pytest.mark.parametrize(
    "given",
    [
        card(kind="remote"),
        card(kind="human"),
        card(deterministic=False),
        card(site="eu-west"),
        with_(num_cpus=1.0),
        with_(num_gpus=0.5),
        with_(memory_mib=100),
        with_(max_replicas=2),
        with_(placement="remote"),
    ],
)
def test_others_may_not_however_well_they_do(given: Card) -> None:
    bench = Bench()
    bench.prove()
    assert bench.inline()
    assert not may_run_inline(given)
    assert not bench.inline(given)


def test_an_extension_is_inline_once_it_has_proven_itself_long_enough_and_often_enough() -> None:
    bench = Bench()
    assert not bench.inline()
    bench.ran(PROVEN_CALLS - 1)
    bench.clock.now_s += PROVEN_S
    assert not bench.inline()
    bench.ran()
    assert bench.inline()
    early = Bench()
    early.ran(PROVEN_CALLS)
    early.clock.now_s += PROVEN_S - 0.1
    assert not early.inline()


def test_what_is_not_tiny_stays_where_it_is_and_may_become_tiny() -> None:
    bench = Bench()
    bench.prove(ms=MOST_RUN_MS + 0.1)
    assert not bench.inline()
    bench.ran(300, ms=MOST_RUN_MS / 2)
    assert bench.inline()
    bench.ran(200, ms=MOST_RUN_MS * 2)
    assert not bench.inline()


def test_a_few_slow_calls_do_not_matter_and_several_endless_ones_do() -> None:
    bench = Bench()
    bench.prove()
    bench.ran(5, ms=LONG_RUN_MS)
    bench.ran(MOST_LONG - 1, ms=LONG_RUN_MS + 1)
    assert bench.inline()
    bench.ran(ms=LONG_RUN_MS + 1)
    assert not bench.inline()


def test_endless_calls_far_apart_are_the_machines_hiccups() -> None:
    bench = Bench()
    bench.prove()
    for _ in range(2 * MOST_LONG):
        bench.ran(ms=LONG_RUN_MS + 1)
        bench.ran(LONG_WITHIN // (MOST_LONG - 1))
        assert bench.inline()


def test_the_first_calls_may_load_what_they_need() -> None:
    bench = Bench()
    bench.ran(3, ms=LONG_RUN_MS * 10)
    bench.ran(MOST_LONG - 1, ms=LONG_RUN_MS * 10)
    bench.prove()
    assert bench.inline()


@pytest.mark.parametrize("end", ["failure", "endless calls"])
def test_who_fails_has_to_rest_and_to_prove_itself_anew(end: str) -> None:
    bench = Bench()
    bench.prove()
    if end == "failure":
        bench.placements.failed(CARD.id, bench.clock())
    else:
        bench.ran(MOST_LONG, ms=LONG_RUN_MS * 2)
    assert not bench.inline()
    bench.clock.now_s += REST_S - 1.0
    bench.ran(PROVEN_CALLS)
    assert not bench.inline()
    bench.clock.now_s += 1.0
    assert not bench.inline()
    bench.prove()
    assert bench.inline()


def test_an_extension_may_be_barred_for_as_long_as_one_likes() -> None:
    bench = Bench()
    bench.placements.bar(CARD.id, bench.clock(), for_s=60.0)
    wanted = with_(placement="inline")
    assert not bench.inline(wanted)
    bench.clock.now_s += 59.9
    assert not bench.inline(wanted)
    bench.clock.now_s += 0.1
    assert bench.inline(wanted)


def test_the_operators_word_needs_no_proof_and_no_kind() -> None:
    assert Bench().inline(card(kind="remote", deterministic=False, resources=Resources(placement="inline", num_cpus=2)))


def test_what_is_gone_is_forgotten() -> None:
    bench = Bench()
    bench.prove()
    bench.placements.keep_only(frozenset({CARD.id}))
    assert bench.inline()
    bench.placements.keep_only(frozenset())
    assert not bench.inline()
    bench.placements.failed(CARD.id, bench.clock())
    bench.placements.keep_only(frozenset())
    assert bench.inline(with_(placement="inline"))
