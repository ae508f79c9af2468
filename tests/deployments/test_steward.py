"""The steward carries out what is decided, one thing at a time, and says what it did."""

from __future__ import annotations

import asyncio

import pytest

from cluster import lifecycle, settings
from deployments.steward import KEPT_EVENTS, Event, Steward
from planner.cards import Card, ExtensionId, LatencyProfile
from planner.catalogue import Catalogue, Change
from planner.errors import BadCard
from planner.fusion import Rules, Use
from planner.wiring import fused_card, groups_of
from tests.planner.doubles import card, plan_of, step

RULES = Rules(min_per_s=5.0, window_s=8.0, rest_s=100.0)
CHAIN = plan_of(step(0, "a"), step(1, "b"))
PARTS = tuple(card(name).but(profile=LatencyProfile(1.5)) for name in "ab")
(GROUP,) = groups_of(CHAIN, {part.id: part for part in PARTS})
FUSED = fused_card(GROUP)


class House:
    """A catalogue to be changed, a clock, and a steward at work in it."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.catalogue = Catalogue.of(PARTS)
        self.now_s = 50.0
        self.failure = failure
        self.steward = Steward(
            RULES, lambda: self.catalogue, self.deploy, self.remove, lambda: self.now_s, lambda: 1e9 + self.now_s
        )

    async def deploy(self, card: Card) -> None:
        if self.failure is not None:
            raise self.failure
        self.catalogue = self.catalogue.apply(Change(self.catalogue.epoch + 1, (card,)))

    async def remove(self, extension: ExtensionId) -> None:
        self.catalogue = self.catalogue.apply(Change(self.catalogue.epoch + 1, removed_cards=(extension,)))

    def work(self, for_s: float, per_s: float = 10.0) -> list[Event]:
        """The chain under load while the steward looks once a second; what it did."""

        async def run() -> list[Event]:
            events = []
            for _ in range(round(for_s)):
                self.now_s += 1.0
                self.steward.report([Use(CHAIN, round(per_s))])
                events.append(await self.steward.act())
            return [event for event in events if event is not None]

        return asyncio.run(run())


def test_a_hot_chain_is_deployed_and_the_event_is_noted() -> None:
    house = House()
    (event,) = house.work(12.0)
    assert (event.action, event.extension, event.parts) == ("fused", FUSED.id, ("a@1", "b@1"))
    assert "10.0 runs a second" in event.why
    assert event.at_s == pytest.approx(1e9 + 58.0)
    assert house.steward.events() == (event,)
    assert house.catalogue.cards[FUSED.id] == FUSED


def test_a_fused_extension_without_a_part_is_removed() -> None:
    house = House()
    house.work(12.0)
    house.catalogue = house.catalogue.apply(Change(house.catalogue.epoch + 1, removed_cards=(PARTS[1].id,)))
    (event,) = house.work(1.0)
    assert (event.action, event.extension, event.why) == ("retired", FUSED.id, "b@1 is gone")
    assert FUSED.id not in house.catalogue.cards


@pytest.mark.parametrize(
    ("failure", "said"), [(BadCard("not deployed: no room.", hint="Make some."), "no room"), (OSError("x"), "OSError")]
)
def test_what_cannot_be_deployed_is_noted_and_left_alone_for_a_while(failure: Exception, said: str) -> None:
    house = House(failure)
    (event,) = house.work(60.0)
    assert (event.action, event.extension) == ("failed", FUSED.id)
    assert said in event.why
    house.failure = None
    assert [event.action for event in house.work(60.0)][:1] == ["fused"]


def test_gateways_are_told_when_to_report_again() -> None:
    assert House().steward.report([]) == RULES.pace_s == 1.0


def test_the_list_of_events_is_bounded() -> None:
    house = House()
    for _ in range(KEPT_EVENTS + 20):
        house.catalogue = Catalogue.of([*PARTS, FUSED.but(options={})], epoch=house.catalogue.epoch + 1)
        house.work(1.0, per_s=0.0)
    assert len(house.steward.events()) == KEPT_EVENTS


def test_the_settings_say_how_readily_chains_are_fused_or_that_they_never_are() -> None:
    some = settings.load(
        environment={}, overrides={"fusion.min_per_s": 2.0, "fusion.max_fused": 1, "fusion.compiled": True}
    )
    assert lifecycle.installation(some).fusion == Rules(min_per_s=2.0, most=1, compiled=True)
    assert lifecycle.installation(settings.load(environment={})).fusion == Rules()
    none = settings.load(environment={}, overrides={"fusion.enabled": False})
    assert lifecycle.installation(none).fusion is None
