"""Aliases in a real MLflow registry and rollouts of the extensions made of its models."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from deployments.aliases import AliasKeeper, models_of
from deployments.applications import Installation
from deployments.rollouts import Rollouts
from lineage.models import ModelRegistry, describe_folder
from planner.cards import Card
from planner.catalogue import Catalogue
from planner.errors import StoreUnavailable
from planner.rollout.store import MemoryRolloutStore
from tests.lineage.stores import model_registry
from tests.planner.doubles import card


def version_of(model: str, version: str, extension: str = "digits") -> Card:
    return card(extension).but(version=version, source=f"models:/{model}/{version}#{'0' * 64}")


class House:
    """A model with two versions in the registry, both deployed, and who keeps its aliases."""

    def __init__(self, registry: ModelRegistry, model: str, tmp_path: Path) -> None:
        self.registry, self.model = registry, model
        self.add(tmp_path / "1")
        self.add(tmp_path / "2")
        registry.move_alias(model, "champion", "1")
        self.store = MemoryRolloutStore()
        self.catalogue = Catalogue.of([version_of(model, "1"), version_of(model, "2")])
        self.uri = registry.uri
        self.begin()

    def begin(self) -> None:
        """After a restart."""
        self.rollouts = Rollouts(self.store, lambda: self.catalogue)
        installation = Installation("sqlite://", self.uri, str(self.registry._cache_dir))
        self.keeper = AliasKeeper(self.rollouts, installation, lambda: self.catalogue)

    def add(self, folder: Path) -> None:
        folder.mkdir()
        (folder / "weights").write_text(folder.name)
        describe_folder(folder, {"format": "test"})
        self.registry.register(self.model, folder, content=folder.name)

    @property
    def there(self) -> dict[str, str]:
        return self.registry.aliases()[self.model]

    async def stage(self) -> tuple[str, str, str]:
        """Stage, champion and challenger."""
        (shown,) = await self.rollouts.status()
        return shown.rollout.stage, shown.rollout.champion, shown.rollout.challenger

    async def remarks(self) -> list[str]:
        return [event.said for event in (await self.rollouts.show("digits"))[2]]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> ModelRegistry:
    return model_registry(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def house(registry: ModelRegistry, tmp_path: Path, request: pytest.FixtureRequest) -> House:
    return House(registry, f"aliases {request.node.name}", tmp_path)


def drive(scenario: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scenario())


def test_what_the_cluster_does_moves_the_aliases_and_nothing_else_happens(house: House) -> None:
    async def scenario() -> None:
        await house.keeper.look()
        assert await house.rollouts.status() == ()
        await house.rollouts.start("digits", "2")
        await house.keeper.look()
        assert house.there == {"champion": "1", "challenger": "2"}
        await house.rollouts.promote("digits")
        await house.keeper.look()
        assert house.there == {"champion": "2"}
        await house.rollouts.roll_back("digits")
        for _ in range(3):
            await house.keeper.look()
        assert house.there == {"champion": "1"}
        assert await house.stage() == ("rolled_back", "1", "2")
        assert await house.remarks() == []

    drive(scenario)


def test_what_a_hand_moves_takes_effect(house: House) -> None:
    async def scenario() -> None:
        await house.keeper.look()
        house.registry.move_alias(house.model, "challenger", "2")
        await house.keeper.look()
        assert await house.stage() == ("shadow", "1", "2")
        house.registry.drop_alias(house.model, "challenger")
        await house.keeper.look()
        assert await house.stage() == ("aborted", "1", "2")
        house.registry.move_alias(house.model, "champion", "2")
        await house.keeper.look()
        assert (await house.stage())[:2] == ("champion", "2")
        house.registry.move_alias(house.model, "champion", "1")
        house.begin()  # what both sides agreed on outlives the keeper
        await house.keeper.look()
        assert (await house.stage())[:2] == ("champion", "1")
        (shown,) = await house.rollouts.status()
        assert shown.rollout.history[-1].by == "MLflow"
        assert house.there == {"champion": "1"}

    drive(scenario)


def test_a_challenger_that_had_its_alias_before_anybody_looked_is_tried(house: House) -> None:
    async def scenario() -> None:
        house.registry.move_alias(house.model, "challenger", "2")
        await house.keeper.look()
        assert await house.stage() == ("shadow", "1", "2")

    drive(scenario)


def test_contradicting_aliases_are_put_right_with_a_remark(house: House) -> None:
    async def scenario() -> None:
        await house.rollouts.promote("digits", "1")
        await house.keeper.look()
        house.registry.move_alias(house.model, "challenger", "1")
        await house.keeper.look()
        assert house.there == {"champion": "1"}
        assert "at once" in (await house.remarks())[-1]
        house.registry.drop_alias(house.model, "champion")
        await house.keeper.look()
        assert house.there == {"champion": "1"}
        assert "taken away" in (await house.remarks())[-1]

    drive(scenario)


def test_while_the_registry_is_down_changes_wait_and_it_is_said_once(house: House) -> None:
    async def scenario() -> None:
        await house.keeper.look()
        await house.rollouts.start("digits", "2")
        uri, house.uri = house.uri, "http://127.0.0.1:9"  # nothing listens there
        house.begin()
        for _ in range(2):
            await house.keeper.look()
        assert await house.stage() == ("shadow", "1", "2")
        (said,) = await house.remarks()
        assert "does not answer" in said
        await house.rollouts.promote("digits")
        house.uri = uri
        house.begin()
        await house.keeper.look()
        assert house.there == {"champion": "2"}

    drive(scenario)


def test_what_cannot_be_done_is_told_once_and_the_rest_goes_on(house: House) -> None:
    async def scenario() -> None:
        await house.rollouts.promote("digits", "1")
        await house.keeper.look()
        other = replace(card("digits", ("x", "z")), version="2", source=version_of(house.model, "2").source)
        house.catalogue = Catalogue.of([version_of(house.model, "1"), other])
        house.registry.move_alias(house.model, "challenger", "2")
        for _ in range(3):
            await house.keeper.look()
        (said,) = await house.remarks()
        assert "other inputs" in said
        assert house.there == {"champion": "1", "challenger": "2"}

    drive(scenario)


def test_a_version_that_was_deleted_in_the_registry_is_told_once_and_other_models_are_followed(
    house: House, registry: ModelRegistry, tmp_path: Path
) -> None:
    async def scenario() -> None:
        (tmp_path / "other").mkdir()
        other = House(registry, f"{house.model} other", tmp_path / "other")
        house.catalogue = Catalogue.of(
            [*house.catalogue.cards.values(), *(version_of(other.model, version, "later") for version in "12")]
        )
        await house.rollouts.promote("digits", "1")
        await house.keeper.look()
        registry._client.delete_model_version(house.model, "1")
        await house.rollouts.start("later", "2", champion="1")
        for _ in range(3):
            await house.keeper.look()
        assert other.there == {"champion": "1", "challenger": "2"}
        taken, refused = await house.remarks()
        assert "taken away" in taken
        assert "champion cannot be moved to version 1" in refused
        registry.move_alias(house.model, "champion", "2")  # a hand is still followed
        await house.keeper.look()
        assert (await house.rollouts.show("digits"))[0].rollout.champion == "2"
        assert house.there == {"champion": "2"}

    drive(scenario)


def test_no_alias_lands_on_a_version_that_has_only_the_number_of_the_one_that_serves(house: House) -> None:
    async def scenario() -> None:
        await house.keeper.look()
        stranger = card("digits").but(version="2", source="package.module:function")
        house.catalogue = Catalogue.of([version_of(house.model, "1"), stranger])
        await house.rollouts.start("digits", "2")
        for _ in range(3):
            await house.keeper.look()
        assert house.there == {"champion": "1"}
        (said,) = await house.remarks()
        assert "challenger cannot be moved to version 2" in said
        await house.rollouts.abort("digits")
        house.registry.move_alias(house.model, "champion", "2")
        for _ in range(3):
            await house.keeper.look()
        assert await house.stage() == ("aborted", "1", "2")
        assert "promote 2" in (await house.remarks())[-1]
        assert len(await house.remarks()) == 2

    drive(scenario)


class Refusing(ModelRegistry):
    """A registry of which one model's aliases fail in a way that may pass."""

    refused = ""

    def move_alias(self, name: str, alias: str, version: str) -> None:
        if name == self.refused:
            raise StoreUnavailable("its folder is locked")
        super().move_alias(name, alias, version)


def test_a_model_whose_alias_fails_for_now_does_not_stop_the_others_and_is_moved_later(
    house: House, registry: ModelRegistry, tmp_path: Path
) -> None:
    async def scenario() -> None:
        (tmp_path / "other").mkdir()
        other = House(registry, f"{house.model} other", tmp_path / "other")
        house.catalogue = Catalogue.of(
            [*house.catalogue.cards.values(), *(version_of(other.model, version, "later") for version in "12")]
        )
        refusing = Refusing(registry.uri, registry._cache_dir)
        refusing.refused = house.model
        house.keeper._registry = refusing
        await house.keeper.look()
        await house.rollouts.start("digits", "2", champion="1")
        await house.rollouts.start("later", "2", champion="1")
        for _ in range(3):
            await house.keeper.look()
        assert other.there == {"champion": "1", "challenger": "2"}
        (said,) = await house.remarks()
        assert "locked" in said
        refusing.refused = ""
        await house.keeper.look()
        assert house.there == {"champion": "1", "challenger": "2"}

    drive(scenario)


def test_an_extension_has_the_model_of_its_champion_and_a_model_one_extension() -> None:
    catalogue = Catalogue.of([version_of("m", "1"), version_of("n", "2"), version_of("m", "1", "again"), card("plain")])
    assert {name: model.name for name, model in models_of(catalogue, {}).items()} == {"digits": "n", "again": "m"}
    assert {name: model.name for name, model in models_of(catalogue, {"digits": "1"}).items()} == {"digits": "m"}
