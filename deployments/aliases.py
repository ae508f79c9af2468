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
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import Conflict, FenixError, StoreUnavailable
from planner.rollout.aliases import ALIASES, CHALLENGER, CHAMPION, Aliases, Move, Wish, aliases_of, differences
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
        self._unmoved: dict[tuple[str, str], str] = {}  # by model and alias the version that it cannot be moved to
        self._failing: dict[str, type[FenixError]] = {}  # by extension
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
                    await self._look_at(extension, model, found[model.name])
        except StoreUnavailable as error:
            if not self._is_down:
                await self._rollouts.note(next(iter(models)), f"aliases are not followed: {error.text()}")
            self._is_down = True
            return
        self._is_down = False

    async def _look_at(self, extension: str, model: Model, found: Aliases) -> None:
        """Brings both sides together for one model; what fails there is told once while it lasts."""
        try:
            await self._bring_together(extension, model, found)
        except FenixError as error:
            if self._failing.get(extension) is not type(error):
                await self._rollouts.note(extension, f"aliases are not followed: {error.text()}")
            self._failing[extension] = type(error)
        else:
            self._failing.pop(extension, None)

    async def _bring_together(self, extension: str, model: Model, found: Aliases) -> None:
        there = {alias: version for alias, version in found.items() if alias in ALIASES}
        rollout = self._rollouts.known(extension)
        agreed = self._rollouts.aliases(model.name)
        if agreed is None:  # seen for the first time: who serves was said by whoever deployed it
            agreed = {alias: version for alias, version in there.items() if alias == CHAMPION}
            await self._rollouts.agree(model.name, agreed)
        ours = dict(agreed) if rollout is None else aliases_of(rollout)
        todo = differences(agreed, there, self._movable(model, agreed, there, ours))
        self._refused = {key: s for key, s in self._refused.items() if key[0] != extension or key[1] in todo.wishes}
        for remark in todo.remarks:
            await self._rollouts.note(extension, remark)
        for move in todo.moves:
            done = await self._moved(extension, model, move, rollout is not None)
            _set(there, move.alias, move.version if done else agreed.get(move.alias, ""))
        for wish in todo.wishes:
            if not await self._done(extension, model, wish, there.get(CHAMPION, "")):
                alias = CHAMPION if wish.action == "promote" else CHALLENGER
                _set(there, alias, agreed.get(alias, ""))  # what could not be done is not agreed on
        if there != agreed:
            await self._rollouts.agree(model.name, there)

    def _movable(self, model: Model, agreed: Aliases, there: Aliases, ours: Aliases) -> Aliases:
        """What the cluster has, but for aliases that cannot be moved to it: those stay where they are, and a hand may
        still move them."""
        found = dict(ours)
        for alias in ALIASES:
            key = model.name, alias
            if key not in self._unmoved:
                continue
            if self._unmoved[key] == ours.get(alias, ""):
                _set(found, alias, agreed.get(alias, "") if alias in there else "")
            else:
                del self._unmoved[key]
        return found

    async def _moved(self, extension: str, model: Model, move: Move, by_rollout: bool) -> bool:
        """Moves an alias. Where that is refused it is noted, and not tried again until another version is to have it.
        A version that a rollout names is one of the extension, not always one of the model."""
        registry, version = self._asked(), move.version
        try:
            if version and by_rollout and not _is_of(self._card(extension, version), model, version):
                raise Conflict(f"version {version} of {extension} is not version {version} of {model.name}.")
            if version:
                await asyncio.to_thread(registry.move_alias, model.name, move.alias, version)
            else:
                await asyncio.to_thread(registry.drop_alias, model.name, move.alias)
        except StoreUnavailable:
            raise
        except FenixError as error:
            self._unmoved[model.name, move.alias] = version
            said = f"moved to version {version}" if version else "taken away"
            await self._rollouts.note(extension, f"the alias {move.alias} cannot be {said} in MLflow: {error.text()}")
            return False
        return True

    def _card(self, extension: str, version: str) -> Card | None:
        return self._catalogue().cards.get(ExtensionId(f"{extension}@{version}"))

    async def _done(self, extension: str, model: Model, wish: Wish, champion: str) -> bool:
        """Does what somebody wants; what cannot be done is noted once and tried again later."""
        now_s = asyncio.get_running_loop().time()
        if self._refused.get((extension, wish), 0.0) > now_s:
            return False
        try:
            await self._do(extension, model, wish, champion)
        except StoreUnavailable:
            raise
        except FenixError as error:
            if (extension, wish) not in self._refused:
                await self._rollouts.note(extension, f"{wish.action} {wish.version}, as MLflow says: {error.text()}")
            self._refused[extension, wish] = now_s + AGAIN_S
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
        card = self._card(extension, wish.version)
        is_there = card is not None
        if is_there and not _is_of(card, model, wish.version):
            raise Conflict(f"version {wish.version} of {extension} is not version {wish.version} of {model.name}.")
        if running is not None and running.running and running.challenger != wish.version:
            await rollouts.abort(extension, BY, f"MLflow wants version {wish.version}")
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


def _is_of(card: Card | None, model: Model, version: str) -> bool:
    """Whether a card is of that version of a model."""
    source = None if card is None else named(card.source)
    return source is not None and (source.name, source.version) == (model.name, version)


def _set(aliases: dict[str, str], alias: str, version: str) -> None:
    """Without a version the alias is taken away."""
    if version:
        aliases[alias] = version
    else:
        aliases.pop(alias, None)


def _unsaid(text: str) -> None:
    """Progress of a deployment that nobody watches."""
