"""Keeps the aliases of registered models in MLflow and the rollouts of the extensions made of them the same.

While MLflow does not answer, serving goes on, and what was done meanwhile is moved there when it is back: what has to
be moved follows from what both sides last agreed on, which is in the database.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from deployments.applications import Installation
from deployments.rollouts import Rollouts
from lineage.models import ModelRegistry, named
from planner.cards import Card
from planner.catalogue import Catalogue
from planner.errors import FenixError, StoreUnavailable
from planner.rollout.aliases import ALIASES, CHAMPION, Aliases, Wish, aliases_of, differences
from planner.rollout.records import RolloutPlan

AGAIN_S = 60.0  # after what somebody wants could not be done
BY = "MLflow"


@dataclass(frozen=True, slots=True)
class Model:
    """A registered model that serves as an extension: the card of its champion, or of the latest version."""

    name: str
    card: Card


def models_of(catalogue: Catalogue, champions: Mapping[str, str]) -> dict[str, Model]:
    """By extension the model it is made of; `champions` are the versions that serve, by extension. Of extensions that
    are made of the same model only the first counts."""
    found: dict[str, Model] = {}
    for card in catalogue.cards.values():
        model = named(card.source)
        champion = champions.get(card.name)
        if model is not None and (champion is None or card.version == champion):
            found[card.name] = Model(model.name, card)
    taken: set[str] = set()
    for extension in list(found):
        name = found[extension].name
        if name in taken:
            del found[extension]
        taken.add(name)
    return found


class AliasKeeper:
    """Looks at the aliases now and then."""

    def __init__(
        self,
        rollouts: Rollouts,
        installation: Installation,
        catalogue: Callable[[], Catalogue],
    ) -> None:
        self._rollouts = rollouts
        self._installation = installation
        self._catalogue = catalogue
        self._registry: ModelRegistry | None = None
        self._refused: dict[tuple[str, Wish], float] = {}  # until when (loop time)
        self._is_down = False

    async def look(self) -> None:
        """Brings both sides together once."""
        champions = {shown.rollout.extension: shown.rollout.champion for shown in await self._rollouts.status()}
        models = models_of(self._catalogue(), champions)
        if not models:
            return
        try:
            found = await asyncio.to_thread(self._asked().aliases)
            for extension, model in models.items():
                if model.name in found:
                    await self._bring_together(extension, model, found[model.name])
        except StoreUnavailable as error:
            if not self._is_down:
                await self._rollouts.note(next(iter(models)), f"aliases are not followed: {error.text()}")
            self._is_down = True
            return
        self._is_down = False

    async def _bring_together(self, extension: str, model: Model, found: Aliases) -> None:
        registry = self._asked()
        there = {alias: version for alias, version in found.items() if alias in ALIASES}
        rollout = self._rollouts.known(extension)
        agreed = self._rollouts.aliases(model.name)
        if agreed is None:  # seen for the first time: who serves was said by whoever deployed it
            agreed = {alias: version for alias, version in there.items() if alias == CHAMPION}
            await self._rollouts.agree(model.name, agreed)
        ours = dict(agreed) if rollout is None else aliases_of(rollout)
        todo = differences(agreed, there, ours)
        for remark in todo.remarks:
            await self._rollouts.note(extension, remark)
        for move in todo.moves:
            if move.version:
                await asyncio.to_thread(registry.move_alias, model.name, move.alias, move.version)
                there[move.alias] = move.version
            else:
                await asyncio.to_thread(registry.drop_alias, model.name, move.alias)
                there.pop(move.alias, None)
        for wish in todo.wishes:
            if not await self._done(extension, model, wish, there.get(CHAMPION, "")):
                _keep(there, agreed, wish)
        if there != agreed:
            await self._rollouts.agree(model.name, there)

    async def _done(self, extension: str, model: Model, wish: Wish, champion: str) -> bool:
        """Does what somebody wants; what cannot be done is noted and tried again later."""
        now_s = asyncio.get_running_loop().time()
        if self._refused.get((extension, wish), 0.0) > now_s:
            return False
        try:
            await self._do(extension, model, wish, champion)
        except StoreUnavailable:
            raise
        except FenixError as error:
            self._refused[extension, wish] = now_s + AGAIN_S
            await self._rollouts.note(extension, f"{wish.action} {wish.version}, as MLflow says: {error.text()}")
            return False
        self._refused.pop((extension, wish), None)
        return True

    async def _do(self, extension: str, model: Model, wish: Wish, champion: str) -> None:
        """`champion` is the version with that alias; what is tried is tried against it where no rollout says more."""
        rollouts = self._rollouts
        running = rollouts.known(extension)
        if wish.action == "abort":
            await rollouts.abort(extension, BY, "the alias challenger was taken away")
            return
        if running is not None and running.running and running.challenger != wish.version:
            await rollouts.abort(extension, BY, f"MLflow wants version {wish.version}")
        is_there = f"{extension}@{wish.version}" in self._catalogue().cards
        if wish.action == "promote":
            if not is_there:
                await self._deploy(extension, model, wish.version, None)
            await rollouts.promote(extension, wish.version, BY, "the alias champion was moved")
        elif is_there:
            knows = f"{extension}@{champion}" in self._catalogue().cards
            await rollouts.start(extension, wish.version, None, champion if knows and running is None else "", BY)
        else:
            await self._deploy(extension, model, wish.version, RolloutPlan())

    async def _deploy(self, extension: str, model: Model, version: str, rollout: RolloutPlan | None) -> None:
        """Deploys a version like the one that serves; with `rollout` it is tried at once."""
        from deployments.deployer import deploying
        from deployments.loading import describe

        installation = self._installation
        card = await asyncio.to_thread(
            describe,
            f"models:/{model.name}/{version}",
            model.card.options,
            mlflow_uri=installation.mlflow_uri,
            cache_dir=installation.cache_dir,
        )
        card = card.but(name=extension, resources=model.card.resources)
        await deploying([card], [], installation, _unsaid, rollout, BY)

    def _asked(self) -> ModelRegistry:
        if self._registry is None:
            installation = self._installation
            self._registry = ModelRegistry(installation.mlflow_uri, Path(installation.cache_dir))
        return self._registry


def _keep(there: dict[str, str], agreed: Aliases, wish: Wish) -> None:
    """What could not be done is not agreed on."""
    alias = CHAMPION if wish.action == "promote" else next(a for a in ALIASES if a != CHAMPION)
    if alias in agreed:
        there[alias] = agreed[alias]
    else:
        there.pop(alias, None)


def _unsaid(text: str) -> None:
    """Progress of a deployment that nobody watches."""
