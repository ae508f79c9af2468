"""The JSON of `/v1` and of the documented V2 routes, as closed pydantic models with examples.

The V2 infer routes do not use these: `codec.py` reads them without pydantic. `rest.py` documents them with
`Inference` and `InferenceReply`, and a test holds both against each other.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from deployments.gateway.codec import MAX_DIMENSIONS, MAX_ID_CHARS, MAX_INPUTS, MAX_NAME_CHARS, json_data, output_arrays
from deployments.gateway.feedback import MOST_DOCUMENTS
from deployments.gateway.messages import Explanation, InferAnswer
from deployments.gateway.metadata import ModelInfo, Running, parts_of, placement_of
from lineage.journal import Given
from lineage.outcomes import Kept, Outcome
from planner.cards import Card, ExtensionId, Placement, Sharing
from planner.choice.posteriors import Belief
from planner.features import Array, Port, datatype_of
from planner.goals import Goal, Terms
from planner.plans import Binding, Plan, StepRecord

Datatype = Literal[
    "BOOL", "UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64", "FP16", "FP32", "FP64", "BYTES"
]
Name = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Text = Annotated[str, Field(min_length=1, max_length=4096)]
Id = Annotated[str, Field(max_length=MAX_ID_CHARS, examples=["request-7"])]
Dimension = Annotated[int, Field(ge=0)]
Shape = Annotated[list[Dimension], Field(max_length=MAX_DIMENSIONS, examples=[[2, 3]])]
Scalar = str | int | float | bool
Parameters = dict[str, Any]

EXAMPLE_TRACE_ID = "4f1c09a2be7730d5118c00000000002a"
_TENSOR: dict[str, Any] = {"name": "x", "datatype": "FP32", "shape": [2, 3], "data": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]}


class Closed(BaseModel):
    """No unknown fields, no coercion: `"1"` is not 1."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ErrorBody(Closed):
    """The one shape of an error."""

    error: str = Field(
        description="What is wrong and what to do about it.", examples=["no model 'digts'. Nearest: digits."]
    )


# ---------------------------------------------------------------------------------------------------- V2 documents


class ServerMetadata(Closed):
    name: str
    version: str
    extensions: list[str]


class Live(Closed):
    live: bool
    ready: bool


class NotReady(Live):
    """Also an error, so that a client finds `error` where it always is."""

    error: str


class TensorMetadata(Closed):
    name: str
    datatype: Datatype
    shape: list[int] = Field(description="The first dimension, -1, counts the rows; any other -1 is free.")


class ModelMetadata(Closed):
    name: str
    versions: list[str]
    platform: Literal["fenix_goal", "fenix_extension"]
    inputs: list[TensorMetadata]
    outputs: list[TensorMetadata]

    @classmethod
    def of(cls, info: ModelInfo) -> ModelMetadata:
        def tensors(side: tuple[Any, ...]) -> list[TensorMetadata]:
            return [TensorMetadata(name=t.name, datatype=t.datatype, shape=list(t.shape)) for t in side]

        return cls(
            name=info.name,
            versions=list(info.versions),
            platform=info.platform,
            inputs=tensors(info.inputs),
            outputs=tensors(info.outputs),
        )


class ModelReady(Closed):
    name: str
    ready: bool


class IndexRequest(Closed):
    """Triton's model repository extension. All models are ready, so `ready` changes nothing."""

    ready: bool = False


class IndexEntry(Closed):
    name: str
    version: str
    state: Literal["READY"] = "READY"
    reason: str = ""


class InferenceTensor(Closed):
    """Data is flat or nested as the shape says. Binary tensors have `parameters.binary_data_size` instead of data."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TENSOR]})

    name: Name
    datatype: Datatype
    shape: Shape
    data: list[Any] | None = None
    parameters: Parameters | None = None


class WantedOutput(Closed):
    name: Name
    parameters: Parameters | None = None


class Inference(Closed):
    """An Open Inference request. `parameters` are terms: deadline_ms, max_cost, min_accuracy, priority, user, tags,
    purpose, partial, min_confidence."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"id": "7", "parameters": {"deadline_ms": 200}, "inputs": [_TENSOR]}]}
    )

    id: Id | None = None
    parameters: Parameters | None = None
    inputs: list[InferenceTensor] = Field(min_length=1, max_length=MAX_INPUTS)
    outputs: list[WantedOutput] | None = None


class OutputTensor(Closed):
    """One output in JSON, row-major and flat; NaN and infinity read null."""

    name: str
    datatype: Datatype
    shape: list[int]
    data: list[Any]


class InferenceReply(Closed):
    """`parameters`: plan, trace_id, confidence (the lowest over the rows), flags (joined by commas), and where outputs
    are missing `missing` (a JSON object as text: the reason by output)."""

    model_name: str
    model_version: str
    id: str | None = None
    parameters: dict[str, Scalar]
    outputs: list[OutputTensor]


# ------------------------------------------------------------------------------------------------------ /v1 requests


class Tensor(Closed):
    """An input. `type` is its feature type, which `wanted` needs where the name alone leaves it open."""

    model_config = ConfigDict(json_schema_extra={"examples": [_TENSOR]})

    name: Name
    datatype: Datatype
    shape: Shape
    type: Name | None = Field(default=None, examples=["image/digit"])
    data: list[Any]


class Spec(Tensor):
    """An input, whose data may be left out: planning needs its shape alone."""

    data: list[Any] | None = None  # type: ignore[assignment]


class TermsBody(Closed):
    """The conditions of one request; every limit is hard. What is left out is the goal's own default."""

    deadline_ms: float | None = Field(default=None, gt=0, examples=[200.0])
    max_cost: float | None = Field(default=None, ge=0, description="Per row.")
    min_accuracy: float | None = Field(default=None, ge=0, le=1)
    priority: int | None = Field(default=None, ge=0, le=9, description="0 is the most urgent.")
    user: str | None = Field(default=None, max_length=256)
    tags: list[Annotated[str, Field(min_length=1, max_length=64)]] | None = Field(default=None, max_length=32)
    purpose: str | None = Field(default=None, max_length=256)
    partial: bool | None = Field(default=None, description="Outputs that cannot be had may be left out.")
    min_confidence: float | None = Field(
        default=None, ge=0, le=1, description="Rows that are less sure get second opinions."
    )


class _Wish(Closed):
    sentence: Text | None = Field(default=None, description="What you want, in your own words.")
    wanted: Annotated[list[Name], Field(min_length=1, max_length=64)] | None = Field(
        default=None, description="Feature types.", examples=[["label/digit"]]
    )
    goal: Name | None = Field(default=None, description="A goal by name, or an extension.")
    terms: TermsBody = TermsBody()


class InferBody(_Wish):
    """Say what you want in one of three ways: `sentence`, `wanted` or `goal`."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"goal": "double", "inputs": [_TENSOR], "terms": {"deadline_ms": 200}}]}
    )

    inputs: list[Tensor] = Field(min_length=1, max_length=MAX_INPUTS)
    outputs: list[Name] = Field(
        default=[], max_length=MAX_INPUTS, description="By name; empty for all. `<name>.confidence` is one, too."
    )
    explain: bool = Field(default=False, description="Also say which plans were considered.")
    id: Id = ""


class PlanBody(_Wish):
    """Like the body of infer; inputs may lack their data, or be left out altogether (one row each is meant)."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"goal": "double", "inputs": [{"name": "x", "datatype": "FP32", "shape": [8, 3]}]}]
        }
    )

    inputs: list[Spec] = Field(default=[], max_length=MAX_INPUTS)


class FeedbackBody(Closed):
    """The truth about one output of an answer, or a rating; exactly one of the two. What is null counts as left out."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"trace_id": EXAMPLE_TRACE_ID, "truth": 7},
                {"trace_id": EXAMPLE_TRACE_ID, "rating": 0.8, "user": "ann"},
            ]
        }
    )

    trace_id: str = Field(pattern="^[0-9a-fA-F]{32}$", description="As the answer's parameters have it.")
    output: str | None = Field(
        default=None, max_length=256, description="Which one; may be left out where there is one, and for ratings."
    )
    truth: Scalar | list[Scalar | None] | None = Field(
        default=None, description="A label or a number; a flat list for several, row by row, null where not known."
    )
    rating: float | None = Field(default=None, ge=0, le=1)
    about_s: float | None = Field(default=None, description="When it was seen, in seconds since 1970.")
    user: str | None = Field(default=None, max_length=256, description="In whose name: the request's user, or nobody.")


class FeedbackItems(Closed):
    """Many pieces of feedback."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"items": [{"trace_id": EXAMPLE_TRACE_ID, "truth": "seven"}]}]}
    )

    items: list[Any] = Field(
        description=f"At most {MOST_DOCUMENTS}, each like FeedbackBody; one that is not is refused, the others count."
    )


# ----------------------------------------------------------------------------------------------------- /v1 replies


class SourceInfo(Closed):
    step: int = Field(description="-1 is the request itself.")
    port: str


class BindingInfo(Closed):
    """What feeds a port; of several sources (behind a cascade) a row comes from the last that has it."""

    port: str
    sources: list[SourceInfo]

    @classmethod
    def of(cls, binding: Binding) -> BindingInfo:
        return cls(port=binding.port, sources=[SourceInfo(step=s.step, port=s.port) for s in binding.sources])


class GuardInfo(Closed):
    """The step runs only for rows whose confidence after `step` is below `below`."""

    step: int
    below: float


class StepInfo(Closed):
    id: int
    extension: str
    inputs: list[BindingInfo]
    fallbacks: list[str]
    budget_ms: float | None
    guard: GuardInfo | None
    p50_ms: float


class PredictionInfo(Closed):
    p50_ms: float
    p99_ms: float
    cost: float
    accuracy: float


class PlanInfo(Closed):
    """`score` is what planning minimises; null when it is infinite."""

    id: str
    kind: Literal["graph", "cascade", "ensemble"]
    reason: str
    score: float | None
    prediction: PredictionInfo
    steps: list[StepInfo]
    outputs: list[BindingInfo]

    @classmethod
    def of(cls, plan: Plan) -> PlanInfo:
        predicted = plan.prediction
        return cls(
            id=plan.id,
            kind=plan.kind,
            reason=plan.reason,
            score=plan.score if math.isfinite(plan.score) else None,
            prediction=PredictionInfo(
                p50_ms=predicted.p50_ms, p99_ms=predicted.p99_ms, cost=predicted.cost, accuracy=predicted.accuracy
            ),
            steps=[
                StepInfo(
                    id=step.id,
                    extension=step.extension,
                    inputs=[BindingInfo.of(binding) for binding in step.inputs],
                    fallbacks=list(step.fallbacks),
                    budget_ms=step.budget_ms,
                    guard=None if step.guard is None else GuardInfo(step=step.guard.step, below=step.guard.below),
                    p50_ms=step.p50_ms,
                )
                for step in plan.steps
            ],
            outputs=[BindingInfo.of(binding) for binding in plan.outputs],
        )


class RejectedInfo(Closed):
    plan: PlanInfo
    reason: str


class ExplanationInfo(Closed):
    """The chosen plan, the other plans within the terms (best first), and the rejected ones with the reason."""

    goal: str = Field(description="Empty when reached by wanted features or an extension.")
    sureness: float = Field(description="Of the analysis of the sentence; 1 otherwise.")
    chosen: PlanInfo
    others: list[PlanInfo]
    rejected: list[RejectedInfo]
    epoch: int
    complete: bool = Field(description="False: the search budget ended first, and better plans may exist.")
    expanded: int
    elapsed_ms: float

    @classmethod
    def of(cls, explanation: Explanation) -> ExplanationInfo:
        plans = explanation.plans
        return cls(
            goal=explanation.goal,
            sureness=explanation.sureness,
            chosen=PlanInfo.of(plans.best),
            others=[PlanInfo.of(plan) for plan in plans.plans[1:]],
            rejected=[RejectedInfo(plan=PlanInfo.of(r.plan), reason=r.reason) for r in plans.rejected],
            epoch=plans.epoch,
            complete=plans.complete,
            expanded=plans.expanded,
            elapsed_ms=plans.elapsed_ms,
        )


class StepTimes(Closed):
    """What happened at one step. `started_ms` counts from the start of the dispatch. `cached`: all rows were known
    already. `hedged`: the call was sent a second time, because the first took long."""

    step: int
    extension: str
    n_rows: int
    batch_rows: int
    started_ms: float
    waited_ms: float
    ran_ms: float
    took_ms: float
    note: str
    cached: bool
    hedged: bool

    @classmethod
    def of(cls, record: StepRecord) -> StepTimes:
        return cls(**{name: getattr(record, name) for name in cls.model_fields})


class AnswerBody(Closed):
    """The outputs, how they came about, and how sure they are."""

    model: str
    version: str
    id: str
    outputs: list[OutputTensor]
    parameters: dict[str, Scalar]
    plan: PlanInfo
    steps: list[StepTimes]
    explanation: ExplanationInfo | None = None

    @classmethod
    def of(cls, answer: InferAnswer, explanation: Explanation | None = None) -> AnswerBody:
        """Raises BadRequest for an output that JSON cannot carry, ExtensionBroken for one of no known datatype."""
        return cls(
            model=answer.model,
            version=answer.version,
            id=answer.id,
            outputs=[_output(name, values) for name, values in output_arrays(answer.outputs).items()],
            parameters=dict(answer.parameters),
            plan=PlanInfo.of(answer.plan),
            steps=[StepTimes.of(record) for record in answer.steps],
            explanation=None if explanation is None else ExplanationInfo.of(explanation),
        )


def _output(name: str, values: Array) -> OutputTensor:
    datatype: Any = datatype_of(values)
    data = json_data(name, datatype, values)
    if not isinstance(data, list):
        data = [None if isinstance(value, float) and not math.isfinite(value) else value for value in data.tolist()]
    return OutputTensor(name=name, datatype=datatype, shape=list(values.shape), data=data)


class PortInfo(Closed):
    name: str
    type: str
    datatype: Datatype
    shape: list[int] = Field(description="Of one row; -1 is free.")
    many: int = Field(description="More than 1: a combiner's input, which takes 2 to that many sources.")

    @classmethod
    def of(cls, port: Port) -> PortInfo:
        feature = port.feature
        return cls(
            name=port.name,
            type=feature.type,
            datatype=feature.datatype,  # type: ignore[arg-type]
            shape=list(feature.shape),
            many=port.many,
        )


class ProfileInfo(Closed):
    """One call takes `fixed_ms + per_row_ms * n_rows + per_kilo_ms * thousands of free elements`."""

    fixed_ms: float
    per_row_ms: float
    per_kilo_ms: float
    p99_ratio: float
    n_calls: int = Field(description="How many calls were measured; 0: the author's guess.")


class AccuracyInfo(Closed):
    mean: float
    n_rows: int = Field(description="On how many rows it was measured; 0: a guess.")
    low: float = Field(description="The 95 % interval.")
    high: float


class ExtensionInfo(Closed):
    """A card, but for what the author keeps to the cluster (its options)."""

    id: str
    name: str
    version: str
    kind: str
    description: str
    examples: list[str]
    source: str
    inputs: list[PortInfo]
    outputs: list[PortInfo]
    cost: float
    profile: ProfileInfo
    accuracy: AccuracyInfo
    confidence_threshold: float | None
    may_see: list[str] | None = Field(description="The data tags it may see; null: all.")
    site: str
    may_follow: list[str] = Field(description="Which extensions it may directly follow; empty: all.")
    may_not_follow: list[str]
    replaces: list[str]
    deterministic: bool
    cache: Sharing = Field(description="Who may get a kept result: everyone, the same tags, the same user, or nobody.")
    placement: Running = Field(description="Where it runs now, as the gateway that answers has it.")
    placement_asked: Placement = Field(description="Whether it may run in the gateway's own process, as its card says.")
    parts: list[str] = Field(description="What a fused extension is made of.")

    @classmethod
    def of(cls, card: Card, inline: Container[ExtensionId]) -> ExtensionInfo:
        """`inline` are those that run in the gateway's own process."""
        profile, (low, high) = card.profile, card.accuracy.interval()
        return cls(
            id=card.id,
            name=card.name,
            version=card.version,
            kind=card.kind,
            description=card.description,
            examples=list(card.examples),
            source=card.source,
            inputs=[PortInfo.of(port) for port in card.inputs],
            outputs=[PortInfo.of(port) for port in card.outputs],
            cost=card.cost,
            profile=ProfileInfo(**{name: getattr(profile, name) for name in ProfileInfo.model_fields}),
            accuracy=AccuracyInfo(mean=card.accuracy.mean, n_rows=card.accuracy.n_rows, low=low, high=high),
            confidence_threshold=card.confidence_threshold,
            may_see=None if card.may_see is None else sorted(card.may_see),
            site=card.site,
            may_follow=list(card.after.allow),
            may_not_follow=list(card.after.deny),
            replaces=list(card.replaces),
            deterministic=card.deterministic,
            cache=card.cache,
            placement=placement_of(card, inline),
            placement_asked=card.resources.placement,
            parts=list(parts_of(card)),
        )


class GoalInfo(Closed):
    name: str
    version: str
    description: str
    examples: list[str]
    inputs: list[PortInfo]
    outputs: list[PortInfo]
    terms: TermsBody
    objective: dict[str, float]

    @classmethod
    def of(cls, goal: Goal) -> GoalInfo:
        objective = goal.objective
        return cls(
            name=goal.name,
            version=goal.version,
            description=goal.description,
            examples=list(goal.examples),
            inputs=[PortInfo.of(port) for port in goal.inputs],
            outputs=[PortInfo.of(port) for port in goal.outputs],
            terms=_terms(goal.terms),
            objective={name: getattr(objective, name) for name in ("accuracy", "latency", "cost")},
        )


def _terms(terms: Terms) -> TermsBody:
    values: Mapping[str, Any] = {name: getattr(terms, name) for name in TermsBody.model_fields}
    return TermsBody(**{**values, "tags": sorted(terms.tags)})


class Extensions(Closed):
    """One page; `total` counts all."""

    epoch: int
    total: int
    extensions: list[ExtensionInfo]


class Goals(Closed):
    epoch: int
    total: int
    goals: list[GoalInfo]


class CatalogueInfo(Closed):
    """`epoch` grows by one with every change."""

    epoch: int
    extensions: int
    goals: int


class FeedbackFault(Closed):
    """What was refused: its `index` among the items, from 0, or its `row` in the file, from 1."""

    index: int | None = None
    row: int | None = None
    trace_id: str
    error: str
    kind: str = Field(description="The class of the error.", examples=["RequestNotFound"])


class FeedbackReply(Closed):
    """How many were `new`, `repeated` word for word, `changed` because they say something else than before, and
    `refused`; the first hundred of those are told in `errors`."""

    new: int
    repeated: int
    changed: int
    refused: int
    errors: list[FeedbackFault]

    @classmethod
    def of(cls, given: Given, place: Literal["index", "row"]) -> FeedbackReply:
        first = 1 if place == "row" else 0
        return cls(
            new=given.new,
            repeated=given.repeated,
            changed=given.changed,
            refused=given.n_refused,
            errors=[
                FeedbackFault(
                    **{place: refusal.position + first},
                    trace_id=refusal.trace_id,
                    error=refusal.error.text(),
                    kind=type(refusal.error).__name__,
                )
                for refusal in given.refused
            ],
        )


class StepOutcome(Closed):
    """How one step went for all requests that travelled together. `batch_rows` of the whole call; 0: all were known
    already."""

    step: int
    extension: str
    waited_ms: float
    ran_ms: float
    took_ms: float
    batch_rows: int


class BeliefInfo(Closed):
    """What is believed of a plan for requests like this one, as of now: the share of right rows with the interval that
    it lies in with 95 %, and what that weighs in judged rows; the share of failures; median latency and cost."""

    accuracy: float
    accuracy_low: float
    accuracy_high: float
    accuracy_rows: float
    failures: float
    p50_ms: float
    cost: float

    @classmethod
    def of(cls, belief: Belief) -> BeliefInfo:
        low, high = belief.accuracy_interval()
        return cls(
            accuracy=belief.accuracy,
            accuracy_low=low,
            accuracy_high=high,
            accuracy_rows=belief.accuracy_weight,
            failures=belief.failures,
            p50_ms=belief.p50_ms,
            cost=belief.cost,
        )


class ConsideredInfo(Closed):
    """A plan that could have been taken, and how probable that was."""

    plan: str
    probability: float
    believed: BeliefInfo | None = Field(description="Null for a plan that is not made any more.")


class OutcomeTerms(Closed):
    """The terms that the request had."""

    deadline_ms: float | None
    max_cost: float | None
    min_accuracy: float | None
    priority: int
    user: str
    tags: list[str]
    purpose: str


class KeptOutput(Closed):
    """An output as the journal has it, flat, row-major. What is not finite, or was too long to keep, reads null.
    `best`: of scores that were too many to keep, the index of the highest in each row."""

    name: str
    shape: list[int]
    data: list[Any]
    best: bool


class OutcomeInfo(Closed):
    """What became of one request. `plan` answered it; `chosen` was taken at first, from `considered`. `error` is the
    class of the error that was the answer, or empty. Outputs that are `not_kept` were too large."""

    trace_id: str
    answered_s: float = Field(description="Since 1970.")
    model: str
    version: str
    goal: str
    plan: str
    chosen: str
    probability: float | None = Field(description="With which `chosen` was taken; null: unknown.")
    considered: list[ConsideredInfo]
    reason: str = Field(description="Why `chosen` was; empty where there was no choice.")
    epoch: int = Field(description="Of the catalogue.")
    steps: list[StepOutcome]
    latency_ms: float
    n_rows: int
    confidence: float | None = Field(description="The lowest over the rows.")
    flags: list[str]
    error: str
    terms: OutcomeTerms
    outputs: list[KeptOutput]
    not_kept: list[str]
    sampled: bool = Field(description="Whether the journal also has the inputs.")

    @classmethod
    def of(cls, outcome: Outcome, beliefs: Mapping[str, Belief]) -> OutcomeInfo:
        """`beliefs` are those of the plans that were considered."""
        setting = outcome.setting
        believed = {plan: BeliefInfo.of(belief) for plan, belief in beliefs.items()}
        return cls(
            trace_id=outcome.trace_id,
            answered_s=outcome.at_s,
            model=setting.model,
            version=setting.version,
            goal=setting.goal,
            plan=setting.plan,
            chosen=setting.chosen or setting.plan,
            probability=setting.propensity,
            considered=[
                ConsideredInfo(plan=plan, probability=chance, believed=believed.get(plan))
                for plan, chance in setting.considered
            ],
            reason=setting.reason,
            epoch=setting.epoch,
            steps=[StepOutcome(**{n: getattr(step, n) for n in StepOutcome.model_fields}) for step in outcome.steps],
            latency_ms=outcome.latency_ms,
            n_rows=outcome.n_rows,
            confidence=outcome.confidence,
            flags=sorted(setting.flags),
            error=setting.error,
            terms=OutcomeTerms(
                deadline_ms=setting.deadline_ms,
                max_cost=setting.max_cost,
                min_accuracy=setting.min_accuracy,
                priority=setting.priority,
                user=setting.user,
                tags=sorted(setting.tags),
                purpose=setting.purpose,
            ),
            outputs=_kept(outcome.outputs),
            not_kept=sorted(outcome.outputs.left_out),
            sampled=outcome.inputs is not None,
        )


def _kept(outputs: Kept) -> list[KeptOutput]:
    return [
        KeptOutput(
            name=name, shape=list(values.shape), data=[_shown(value) for value in values.ravel().tolist()], best=best
        )
        for arrays, best in ((outputs.full, False), (outputs.best, True))
        for name, values in arrays.items()
    ]


def _shown(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return None if isinstance(value, float) and not math.isfinite(value) else value
