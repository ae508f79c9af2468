"""The registry's logic without Ray; the actor around it is tried in the end-to-end tests."""

from __future__ import annotations

import asyncio

import pytest

from deployments.registry import KEPT_CHANGES, Registry
from planner.cards import LatencyProfile
from planner.catalogue import Catalogue, Change
from planner.catalogue_store import MemoryCatalogueStore
from planner.errors import Conflict, NotFound, StoreUnavailable
from tests.planner.doubles import card


class BrokenStore(MemoryCatalogueStore):
    """A store whose disk is full."""

    def write(self, change: Change) -> None:
        raise StoreUnavailable("disk full")


def test_a_put_is_stored_before_it_is_shown() -> None:
    async def scenario() -> None:
        store = MemoryCatalogueStore()
        registry = Registry(store)
        assert await registry.put([card("a")]) == 1
        assert list(store.load().cards) == ["a@1"]
        assert [change.epoch for change in await registry.since(0, 0.0)] == [1]

    asyncio.run(scenario())


def test_a_write_that_fails_changes_nothing() -> None:
    async def scenario() -> None:
        registry = Registry(BrokenStore())
        with pytest.raises(StoreUnavailable):
            await registry.put([card("a")])
        assert await registry.since(0, 0.0) == []

    asyncio.run(scenario())


def test_an_id_keeps_its_meaning_unless_replaced_on_purpose() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        await registry.put([card("a")])
        await registry.put([card("a").but(profile=LatencyProfile(9.0))])
        with pytest.raises(Conflict, match="exists with other"):
            await registry.put([card("a", ("x", "z"))])
        assert await registry.put([card("a", ("x", "z"))], replace=True) == 3

    asyncio.run(scenario())


def test_removing_what_is_not_there_says_what_is_near() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        await registry.put([card("adder")])
        with pytest.raises(NotFound) as error:
            await registry.remove([card("addr").id])
        assert "adder@1" in error.value.hint

    asyncio.run(scenario())


def test_a_follower_waits_until_something_changes() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        waiting = asyncio.create_task(registry.since(0, 60.0))
        await asyncio.sleep(0)
        assert not waiting.done()
        await registry.put([card("a")])
        (change,) = await waiting
        assert change.put_cards == (card("a"),)

    asyncio.run(scenario())


def test_a_follower_too_far_behind_or_ahead_gets_the_whole_catalogue() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        for i in range(KEPT_CHANGES + 2):
            await registry.put([card(f"e{i % 3}")])
        for epoch in (0, -1, 10**6):
            (change,) = await registry.since(epoch, 0.0)
            assert change.whole
            assert sorted(Catalogue(epoch=epoch).apply(change).cards) == ["e0@1", "e1@1", "e2@1"]
        assert len(await registry.since(2, 0.0)) == KEPT_CHANGES

    asyncio.run(scenario())


def test_profiles_of_extensions_that_are_gone_are_passed_over() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        await registry.put([card("a")])
        measured = {card("a").id: LatencyProfile(7.0), card("gone").id: LatencyProfile(1.0)}
        assert await registry.profiles(measured) == 2
        assert await registry.profiles({card("gone").id: LatencyProfile(1.0)}) == 2

    asyncio.run(scenario())


def test_a_change_is_followed_once_every_follower_that_still_asks_has_it() -> None:
    async def scenario() -> None:
        registry = Registry(MemoryCatalogueStore())
        assert await registry.followed(1, 0.0)
        ahead = asyncio.create_task(registry.since(0, 60.0, "ahead"))
        behind = asyncio.create_task(registry.since(0, 60.0, "behind"))
        await asyncio.sleep(0)
        epoch = await registry.put([card("a")])
        await asyncio.gather(ahead, behind)
        asking = asyncio.create_task(registry.since(epoch, 60.0, "ahead"))
        assert not await registry.followed(epoch, 0.01)
        asking_too = asyncio.create_task(registry.since(epoch, 60.0, "behind"))
        assert await registry.followed(epoch, 60.0)
        for task in (asking, asking_too):
            task.cancel()

    asyncio.run(scenario())
