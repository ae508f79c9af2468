"""Plans: the records that planning makes and dispatching follows. Nothing here decides or does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NewType

from planner.cards import ExtensionId
from planner.features import Port, Rows
from planner.goals import Objective, Terms

StepId = NewType("StepId", int)
REQUEST = StepId(-1)  # the source of what the client sent

NO_FLAGS: frozenset[str] = frozenset()

PlanKind = Literal["graph", "cascade", "ensemble"]


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows come from: an output port of a step, or an input of the request (`step` is REQUEST)."""

    step: StepId
    port: str


@dataclass(frozen=True, slots=True)
class Binding:
    """What feeds one input port of a step, or one output of the plan.

    `sources` normally holds one. Behind a cascade it holds several: each row comes from the last source that has
    it. A combiner's port (`Port.many` > 1) has one Binding per stacked source, all with the same `port`.
    """

    port: str
    sources: tuple[Source, ...]


@dataclass(frozen=True, slots=True)
class Guard:
    """Run only for the rows whose confidence after `step` is below `below`."""

    step: StepId
    below: float


@dataclass(frozen=True, slots=True)
class Step:
    """One extension version at work in a plan."""

    id: StepId
    extension: ExtensionId
    inputs: tuple[Binding, ...]
    fallbacks: tuple[ExtensionId, ...] = ()  # same ports, tried in this order when the extension fails
    budget_ms: float | None = None  # from the moment its inputs are there; None: what the deadline leaves
    guard: Guard | None = None
    p50_ms: float = 0.0  # predicted, for the request's number of rows


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a plan should bring: latency in ms for the request's rows, cost per row, share of right rows."""

    p50_ms: float
    p99_ms: float
    cost: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Plan:
    """A DAG of steps in topological order, with what it predicts and why it was ranked where it is."""

    id: str
    steps: tuple[Step, ...]
    outputs: tuple[Binding, ...]
    prediction: Prediction
    score: float
    kind: PlanKind = "graph"
    reason: str = ""

    def extensions(self) -> tuple[ExtensionId, ...]:
        return tuple(step.extension for step in self.steps)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A plan that was found and not taken, and why."""

    plan: Plan
    reason: str


@dataclass(frozen=True, slots=True)
class PlanRequest:
    """What planning needs to know of a request: features in, features wanted, terms, size. No data.

    `kilo` is the size of all rows in thousands of elements, counted over inputs with free dimensions.
    `must_use` forces one extension into the plan; `avoid` keeps some out (they just failed, say).
    """

    inputs: tuple[Port, ...]
    wanted: tuple[Port, ...]
    terms: Terms = Terms()
    objective: Objective = Objective()
    n_rows: int = 1
    kilo: float = 0.0
    goal: str = ""
    must_use: ExtensionId | None = None
    avoid: frozenset[ExtensionId] = frozenset()


@dataclass(frozen=True, slots=True)
class PlanSet:
    """The answer of planning: the best plans within the terms, best first (never empty), and the losers.

    `complete` is False when the search budget ended first: `plans[0]` is then the best found so far.
    """

    plans: tuple[Plan, ...]
    rejected: tuple[Rejected, ...]
    epoch: int
    complete: bool
    expanded: int  # states taken from the frontier
    elapsed_ms: float

    @property
    def best(self) -> Plan:
        return self.plans[0]


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What happened at one step of one request. Times are ms; `started_ms` counts from the start of the dispatch."""

    step: StepId
    extension: ExtensionId
    n_rows: int  # of this request
    batch_rows: int  # of the whole call, other requests included
    started_ms: float
    waited_ms: float  # in the queue for a batch
    ran_ms: float  # inside the extension
    took_ms: float  # from the inputs being there to the outputs being there
    note: str = ""  # for example "fallback for a@1: it raised ValueError"
    hedged: bool = False  # the call was sent a second time, because the first took long

    @property
    def cached(self) -> bool:
        """Whether all rows were known already, so that nothing had to be computed."""
        return self.batch_rows == 0


@dataclass(frozen=True, slots=True)
class Answer:
    """What dispatching brings: the outputs by name, the plan as it was run, its steps, and honest flags.

    `fallback`: another extension or plan stood in. `degraded`: what ran promises less accuracy than the best plan.
    `replanned`: the plan was changed on the way. `cached`: the rows of a step, of one at least, were all known
    already. `hedged`: a call of a step, of one at least, was sent twice. The steps say which. `partial`: the outputs in
    `missing`, each with the reason, could not be had. `unsure`: rows stayed below the confidence that was asked for.
    `trace_id` is that of the one request that the answer is for; empty where it is for several.
    """

    outputs: Mapping[str, Rows]
    plan: Plan
    steps: tuple[StepRecord, ...]
    flags: frozenset[str] = NO_FLAGS
    missing: Mapping[str, str] = field(default_factory=dict)
    trace_id: str = ""
