"""The records between the wire (HTTP, gRPC) and the engine. Both wires speak in these."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from planner.cards import ExtensionId
from planner.catalogue import Catalogue
from planner.convoys import Convoy
from planner.features import Array, Rows
from planner.goals import Terms
from planner.plans import Plan, PlanSet, StepRecord


@dataclass(frozen=True, slots=True)
class InferRequest:
    """One decoded request. `inputs` are arrays of shape (n_rows, *row shape), not yet checked against a model.

    What is wanted is said in exactly one of three ways: `model` (a goal or an extension; `version` may narrow an
    extension), `sentence`, or `wanted` (feature types). `outputs` selects by name, empty means all;
    `<name>.confidence` asks for the confidence per row as a tensor. `terms` are raw request parameters. `types`
    gives the feature type of inputs by name; without a goal it says what they are, otherwise it may stay empty.
    `detailed` asks for the record of every step, which only a request that travels alone has.
    """

    inputs: Mapping[str, Array]
    model: str = ""
    version: str = ""
    sentence: str = ""
    wanted: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    terms: Mapping[str, Any] = field(default_factory=dict)
    types: Mapping[str, str] = field(default_factory=dict)
    id: str = ""
    detailed: bool = False


@dataclass(frozen=True, slots=True)
class InferAnswer:
    """One answer to encode. `parameters` holds only str, int, float and bool: `plan`, `trace_id`, `confidence`
    (the lowest over the rows; absent where no step gives one), `flags` (of `planner.plans.Answer`, joined by commas, ""
    when none), `missing` where outputs are (a JSON object as text: the reason by output)."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Rows]
    parameters: Mapping[str, str | int | float | bool]
    plan: Plan
    steps: tuple[StepRecord, ...]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What planning would do for a request, without running it."""

    goal: str  # "" when reached by wanted features
    sureness: float  # of the sentence analysis, 1.0 otherwise
    plans: PlanSet


@dataclass(frozen=True, slots=True)
class Route:
    """Where requests of one kind go: same model, features, shapes and terms, planned on one epoch of the catalogue."""

    generation: int  # of the engine; made anew when that has grown
    model: str
    version: str
    terms: Terms
    n_rows: int
    plans: PlanSet  # kept here because the convoy is known by its identity
    convoy: Convoy


class Engine(Protocol):
    """What the wires need. Every method raises FenixError subclasses only."""

    @property
    def generation(self) -> int:
        """Routes that are older than this have to be asked for anew."""

    @property
    def catalogue(self) -> Catalogue:
        """The current snapshot."""

    def ready(self) -> bool:
        """Whether requests can be answered: the catalogue is there and followed."""

    def inline(self) -> frozenset[ExtensionId]:
        """The extensions that run in this process now."""

    def route(self, request: InferRequest) -> Route:
        """The way of a request that names its model, for it and for all of its kind; nothing is run."""

    async def infer(self, request: InferRequest) -> InferAnswer:
        """Plans and runs one request. Cancelling the task cancels the work."""

    async def explain(self, request: InferRequest) -> Explanation:
        """Plans one request without running it; `request.inputs` may be empty (one row of each goal input is meant)."""
