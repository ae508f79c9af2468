"""The demo network without a cluster: models fitted, saved, loaded and measured as a deployment does, run in place."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from deployments.extension import Extension, execute
from deployments.kinds.sklearn import SklearnExtension
from deployments.kinds.torch import TorchExtension
from deployments.measure import load_validation, measure_all
from fenix.demo import training
from fenix.demo.data import SEED
from fenix.demo.goals import Task, tasks
from lineage.models import DESCRIPTOR
from planner.batching import Batchers
from planner.calls import LocalCalls
from planner.cards import ExtensionId, LatencyProfile
from planner.catalogue import Catalogue
from planner.dispatch import Dispatcher
from planner.features import Array
from planner.goals import Terms
from planner.plan import Budget, plan
from planner.plans import Answer, Plan, PlanRequest, PlanSet
from planner.tokens import Token

HOP_MS = 1.5  # what a call between Serve deployments takes besides the work


@dataclass(frozen=True)
class Network:
    """The deployed network: extensions by id, their measured cards, and the goals with their data."""

    extensions: Mapping[ExtensionId, Extension]
    catalogue: Catalogue
    tasks: Mapping[str, Task]

    def plan(self, goal: str, terms: Terms | None = None, n_rows: int = 1, k: int = 5) -> PlanSet:
        wanted = self.catalogue.goal(goal)
        request = PlanRequest(
            wanted.inputs, wanted.outputs, terms or wanted.terms, wanted.objective, n_rows=n_rows, goal=goal
        )
        return plan(request, self.catalogue, k=k, budget=Budget())  # however slow the machine is

    def run(self, chosen: Plan, inputs: Mapping[str, Array]) -> Answer:
        return asyncio.run(_dispatch(self.extensions, self.catalogue, chosen, inputs))

    def held_out(self, goal: str, chosen: Plan) -> tuple[float, float, Answer]:
        """Accuracy and cost per row of a plan over the goal's held-out rows, and its answer."""
        task = self.tasks[goal]
        part = task.split.held_out
        answer = self.run(chosen, task.inputs(part))
        accuracy = float((answer.outputs[task.goal.outputs[0].name].values == part.y).mean())
        cost = sum(self.catalogue.cards[step.extension].cost * step.n_rows for step in answer.steps) / len(part)
        return accuracy, cost, answer


def fit_network(folder: Path, seed: int = SEED) -> Network:
    """Fits, saves, loads, prices and measures everything."""
    made: list[Extension] = [function() for function in training.FUNCTIONS]
    for fitted in training.fit_all(lambda text: None, seed):
        place = folder / fitted.recipe.name
        fitted.save(place)
        described = json.loads((place / DESCRIPTOR).read_text())
        (place / DESCRIPTOR).write_text(json.dumps({**described, "card": fitted.recipe.card()}))
        kind = {"torch": TorchExtension, "sklearn": SklearnExtension}[described["loader"]["format"]]
        made.append(kind(folder=str(place)))
    for extension in made:
        extension.setup()
    by_name = {extension.name: extension for extension in made}
    cards = training.measured([extension.card() for extension in made], by_name, seed)
    cards = [card.but(profile=_profile(by_name[card.name], card.cost)) for card in cards]
    extensions = {card.id: by_name[card.name] for card in cards}
    every = {task.goal.name: task for task in tasks(seed)}
    catalogue = Catalogue.of(cards, [task.validated(folder) for task in every.values()])
    return Network(extensions, asyncio.run(_measured(extensions, catalogue)), every)


def _profile(extension: Extension, cost: float) -> LatencyProfile:
    one = extension.samples(1, np.random.default_rng(0))
    execute(extension, one)
    took_s = []
    for _ in range(5):
        started_s = time.perf_counter()
        execute(extension, one)
        took_s.append(time.perf_counter() - started_s)
    return LatencyProfile(HOP_MS + min(took_s) * 1e3, cost)


async def _measured(extensions: Mapping[ExtensionId, Extension], catalogue: Catalogue) -> Catalogue:
    validation = {goal.name: load_validation(goal) for goal in catalogue.goals.values()}
    return await measure_all(catalogue, list(catalogue.cards), validation, _dispatcher(extensions, catalogue))


async def _dispatch(
    extensions: Mapping[ExtensionId, Extension], catalogue: Catalogue, chosen: Plan, inputs: Mapping[str, Array]
) -> Answer:
    token = Token.of(Terms(), asyncio.get_running_loop().time())
    return await _dispatcher(extensions, catalogue).dispatch(chosen, inputs, token)


def _dispatcher(extensions: Mapping[ExtensionId, Extension], catalogue: Catalogue) -> Dispatcher:
    calls = LocalCalls({id_: partial(execute, extension) for id_, extension in extensions.items()})
    return Dispatcher(Batchers(calls), catalogue.cards.get)
