"""The whole repair, step by step: each step takes a state and gives the next one, which can be stored as JSON.

    diagnose -> ancestor -> labels at random -> vector -> gate -> [labels that inform -> refine -> gate]... -> register

A step depends on nothing but the state and the case, and draws its random numbers from the repair's id, so a job that
was killed in the middle of one does it again with the same result. Nothing is registered here: that is for the caller,
who also asks for the labels that the state waits for.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from repair.artifacts import Artifacts
from repair.diagnosis import Ancestor, FeatureDrift, diagnose, nearest_healthy
from repair.errors import RepairRefused
from repair.gate import (
    DRIFTED,
    FINE_TUNED,
    REPAIRED,
    ROLLBACK,
    VOTE,
    Candidate,
    GatePlan,
    Slice,
    Verdict,
    judge,
)
from repair.picking import PickPlan, pick
from repair.refine import LabelledRows, RefinePlan, one_epoch, refine
from repair.search import SearchPlan, search
from repair.torch_model import TorchModel
from repair.vectors import Array, Parameters, RepairVector, apply, check_finite, repair_vector

START = "start"  # the best point that is known before labels refine it


class Step(StrEnum):
    """What is to be done next."""

    DIAGNOSE = "diagnose"
    ANCESTOR = "ancestor"
    VALIDATION = "validation"
    VECTOR = "vector"
    GATE = "gate"
    LABELS = "labels"
    REFINE = "refine"
    REGISTER = "register"
    OVER = "over"


@dataclass(frozen=True, slots=True)
class RepairPlan:
    """How much a repair may ask for, and how it goes about it.

    `budget` labels in all; `n_validation` and `n_held_out` rows at random come first, the former to choose the scale
    and later to learn from, the latter for the gate alone; then `per_round` a round. `n_ancestors` of the nearest are
    tried on validation rows, statistics are made anew from `statistics_rows`, labels are chosen among `pick_from` rows
    at random. Asking ends early when the lower limit of the winner's accuracy is within
    `tolerance` of what the drifted version and its ancestor had when they were healthy.
    """

    budget: int = 200
    n_validation: int = 40
    n_held_out: int = 60
    per_round: int = 100
    n_ancestors: int = 3
    tolerance: float = 0.05
    statistics_rows: int = 256
    pick_from: int = 1000
    replay_far: float = 1.0
    search: SearchPlan = field(default_factory=SearchPlan)
    picking: PickPlan = field(default_factory=PickPlan)
    refine: RefinePlan = field(default_factory=RefinePlan)
    gate: GatePlan = field(default_factory=GatePlan)


@dataclass(frozen=True, slots=True)
class Case:
    """All that the repair may look at. The same rows in the same order at each step; `labels` may grow.

    `rows` (n, ...) are recent and unlabelled, `labels` what is known of them by row number. `parameters` gives those of
    a version (raises NoParameterSpace), `probabilities` what a version says of rows, (n, n_classes), for versions that
    are not of `model`. `ancestors` come nearest first. `slices` are rows on which a repair may not lose; `replay` are
    the labelled rows that versions were made with, which a refinement sees beside the new ones.
    """

    rows: Array
    labels: Mapping[int, int]
    ancestors: Sequence[Ancestor]
    parameters: Callable[[str], Parameters]
    probabilities: Callable[[str, Array], Array]
    artifacts: Artifacts
    model: TorchModel | None = None
    drifts: Sequence[FeatureDrift] = ()
    own_drift: float = math.nan
    accuracy_before: float | None = None
    accuracy_now: float | None = None
    slices: Mapping[str, LabelledRows] = field(default_factory=dict)
    replay: Mapping[str, LabelledRows] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RepairState:
    """Where a repair stands. `asked` are rows that it waits for labels of; `validation`, `held_out` and `informative`
    rows whose labels it has; `made` says under which key the parameters of each candidate lie; `evidence` has an entry
    per step that was done, in order; `winner` is known at the end."""

    id: str
    model: str
    drifted: str
    report: str
    step: Step = Step.DIAGNOSE
    round: int = 0
    rows_digest: str = ""
    ancestors: tuple[str, ...] = ()
    ancestor: str | None = None
    asked: tuple[int, ...] = ()
    validation: tuple[int, ...] = ()
    held_out: tuple[int, ...] = ()
    informative: tuple[int, ...] = ()
    made: Mapping[str, str] = field(default_factory=dict)
    evidence: tuple[Mapping[str, Any], ...] = ()
    winner: str | None = None
    passed: bool = False

    @property
    def n_labels(self) -> int:
        """How many labels were asked for."""
        return len(self.asked) + len(self.validation) + len(self.held_out) + len(self.informative)

    def to_json(self) -> str:
        """`from_json` reads it."""
        return json.dumps({**asdict(self), "step": self.step.value}, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> RepairState:
        """Raises RepairRefused where this is not a state."""
        try:
            given = json.loads(text)
            rows: dict[str, Any] = {name: tuple(int(row) for row in given[name]) for name in _ROWS}
            words = {
                name: given[name] for name in ("id", "model", "drifted", "report", "rows_digest", "ancestor", "winner")
            }
            return cls(
                **words,
                **rows,
                step=Step(given["step"]),
                round=int(given["round"]),
                ancestors=tuple(given["ancestors"]),
                made=dict(given["made"]),
                evidence=tuple(given["evidence"]),
                passed=bool(given["passed"]),
            )
        except (ValueError, TypeError, LookupError) as error:
            raise RepairRefused(f"this is not the state of a repair: {error!r}.") from None


_WORDS = ("id", "model", "drifted", "report", "rows_digest", "ancestor", "winner")
_ROWS = ("asked", "validation", "held_out", "informative")


def repair_id(model: str, drifted: str, report: str) -> str:
    """The same for the same model, drifted version and drift report, so that nothing is repaired twice."""
    digest = hashlib.sha256("\0".join((model, drifted, report)).encode()).hexdigest()
    return f"repair-{digest[:16]}"


def begin(model: str, drifted: str, report: str) -> RepairState:
    """A repair at its first step."""
    return RepairState(repair_id(model, drifted, report), model, drifted, report)


def waits_for(state: RepairState, case: Case) -> tuple[int, ...]:
    """The rows whose labels are asked for and not there yet; while there are any, `advance` changes nothing."""
    return tuple(row for row in state.asked if row not in case.labels)


def advance(state: RepairState, case: Case, plan: RepairPlan | None = None) -> RepairState:
    """Does the next step. Store what comes back before the next call.

    Where labels are missing or it is over, the same state comes back. Raises RepairRefused where it cannot go on: rows
    that are not those it began with, a validation set of one class (TruthLacking).
    """
    plan = plan or RepairPlan()
    digest = _digest(case.rows)
    if state.rows_digest and state.rows_digest != digest:
        raise RepairRefused("these are not the rows that the repair began with.", hint="Begin another repair.")
    if state.step is Step.OVER or waits_for(state, case):
        return state
    return _STEPS[state.step](replace(state, rows_digest=digest), case, plan)


def run(state: RepairState, case: Case, plan: RepairPlan | None = None) -> RepairState:
    """Goes on until it waits for labels, has something to register, or is over."""
    while True:
        after = advance(state, case, plan) if state.step is not Step.REGISTER else state
        if after == state:
            return state
        state = after


def registered(state: RepairState, version: str) -> RepairState:
    """The end, once the caller has registered the winner as `version` (or left everything as it is: '')."""
    return _done(state, Step.REGISTER, Step.OVER, {"version": version})


def winner_parameters(state: RepairState, case: Case) -> Parameters | None:
    """The parameters of the winner; None where it is a version that exists already, or a vote."""
    key = state.made.get(state.winner or "")
    return case.artifacts.get(key) if key else None


def _diagnose(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    found = diagnose(state.drifted, case.drifts, case.accuracy_before, case.accuracy_now)
    return _done(state, Step.DIAGNOSE, Step.ANCESTOR, found.plain())


def _ancestor(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    choice = nearest_healthy(case.ancestors, case.own_drift)
    tried = choice.ranked[: plan.n_ancestors]
    return _done(replace(state, ancestors=tried), Step.ANCESTOR, Step.VALIDATION, choice.plain())


def _validation(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    """Asks for rows at random; when they are there, shares them out."""
    if not state.asked:
        n = min(len(case.rows), plan.n_validation + plan.n_held_out, plan.budget)
        drawn = _rng(state, "validation").choice(len(case.rows), size=n, replace=False)
        return replace(state, asked=tuple(drawn.tolist()))
    n_held_out = round(len(state.asked) * plan.n_held_out / (plan.n_validation + plan.n_held_out))
    held_out, validation = state.asked[:n_held_out], state.asked[n_held_out:]
    state = replace(state, asked=(), held_out=held_out, validation=validation)
    said = {"n_validation": len(validation), "n_held_out": len(held_out)}
    return _done(state, Step.VALIDATION, Step.VECTOR, said)


def _vector(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    """The best point along the way to the ancestor that does best on the validation rows."""
    if case.model is None:
        refusal = {"refused": "the model has no parameter space", "then": "rollback or a vote of the lineage"}
        return _done(replace(state, ancestor=_by_votes(state, case)), Step.VECTOR, Step.GATE, refusal)
    drifted = case.parameters(state.drifted)
    check_finite(drifted, "drifted version")
    rows, labels = _labelled(state.validation, case)
    loss = case.model.loss(rows, labels)
    recent = case.rows[: plan.statistics_rows]
    refused: dict[str, str] = {}
    usable: dict[str, tuple[float, RepairVector]] = {}
    for version in state.ancestors:
        try:
            parameters = case.parameters(version)
            vector = repair_vector(parameters, drifted)
            usable[version] = _number(loss(parameters)), vector
        except RepairRefused as error:
            refused[version] = error.message
    starts: dict[str, tuple[float, Parameters]] = {"drifted": (_number(loss(drifted)), drifted)}
    said: dict[str, Any] = {"refused": refused}
    ancestor = min(usable, key=lambda version: usable[version][0], default=None)
    if ancestor is not None:
        vector = usable[ancestor][1]
        found = search(drifted, vector, loss, plan.search)
        starts["interpolated"] = found.loss, apply(drifted, vector, found.scales)
        said |= {"ancestor": ancestor, "search": found.plain(), "norm": vector.norm}
    if case.model.has_batch_norm and len(recent) > 1:
        for name, (_, parameters) in list(starts.items()):
            made = case.model.reestimated(parameters, recent)
            starts[f"{name}, statistics anew"] = _number(loss(made)), made
    best = min(starts, key=lambda name: starts[name][0])
    said |= {"start": best, "losses": {name: _plain(value) for name, (value, _) in starts.items()}}
    fallback = ancestor or (_by_votes(state, case) if state.ancestors else None)
    state = _put(replace(state, ancestor=fallback), case, START, starts[best][1])
    return _done(replace(state, made={**state.made, REPAIRED: state.made[START]}), Step.VECTOR, Step.GATE, said)


def _gate(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    rows, labels = _labelled(state.held_out, case)
    candidates = {name: _candidate(answer, labels) for name, answer in _answers(state, case, rows).items()}
    verdict = judge(labels, candidates, _slices(state, case), plan.gate)
    state = replace(state, winner=verdict.winner, passed=verdict.passed)
    more = case.model is not None and not verdict.passed and state.n_labels < min(plan.budget, len(case.rows))
    if more and _is_well(state, verdict, case, plan):
        more = False
    said = {**verdict.plain(), "n_labels": state.n_labels, "round": state.round}
    return _done(state, Step.GATE, Step.LABELS if more else Step.REGISTER, said)


def _labels(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    """Asks for the rows that inform most."""
    if state.asked:
        state = replace(state, informative=(*state.informative, *state.asked), asked=(), round=state.round + 1)
        return _done(state, Step.LABELS, Step.REFINE, {"round": state.round, "n_labels": state.n_labels})
    assert case.model is not None
    start = case.artifacts.get(state.made[REPAIRED])
    taken = {*state.validation, *state.held_out, *state.informative}
    rng = _rng(state, "labels")
    free = np.setdiff1d(np.arange(len(case.rows)), np.fromiter(taken, dtype=np.int64, count=len(taken)))
    if len(free) > plan.pick_from:
        free = np.sort(rng.choice(free, size=plan.pick_from, replace=False))
    rows = case.rows[free]
    said = [case.model.probabilities(start, rows), _probabilities(state.drifted, case, rows)]
    if state.ancestor is not None:
        said.append(_probabilities(state.ancestor, case, rows))
    picks = pick(
        said[0],
        min(plan.per_round, plan.budget - state.n_labels),
        rng,
        members=np.stack(said),
        embeddings=case.model.embeddings(start, rows),
        plan=plan.picking,
    )
    return replace(state, asked=tuple(int(free[one.row]) for one in picks))


def _refine(state: RepairState, case: Case, plan: RepairPlan) -> RepairState:
    assert case.model is not None
    fresh = LabelledRows(*_labelled((*state.validation, *state.informative), case))
    seed = int(_rng(state, "refine").integers(1 << 31))
    start = case.artifacts.get(state.made[START])
    older = _replayed(state, case, plan)
    said: dict[str, Any] = {"n_labels": len(fresh), "n_replayed": len(older) if older is not None else 0}
    try:
        refined = refine(case.model, start, fresh, plan.refine, seed=seed, replay=older)
        state = _put(state, case, REPAIRED, refined.parameters)
        said["refinement"] = refined.plain()
    except RepairRefused as error:
        said["refused"] = error.message
    try:
        tuned = one_epoch(case.model, case.parameters(state.drifted), fresh, seed=seed)
        state = _put(state, case, FINE_TUNED, tuned)
    except RepairRefused as error:
        said["fine_tune_refused"] = error.message
    return _done(state, Step.REFINE, Step.GATE, said)


_STEPS: dict[Step, Callable[[RepairState, Case, RepairPlan], RepairState]] = {
    Step.DIAGNOSE: _diagnose,
    Step.ANCESTOR: _ancestor,
    Step.VALIDATION: _validation,
    Step.VECTOR: _vector,
    Step.GATE: _gate,
    Step.LABELS: _labels,
    Step.REFINE: _refine,
    Step.REGISTER: lambda state, case, plan: state,
}


def _done(state: RepairState, step: Step, after: Step, said: Mapping[str, Any]) -> RepairState:
    return replace(state, step=after, evidence=(*state.evidence, {"step": step.value, **said}))


def _put(state: RepairState, case: Case, name: str, parameters: Parameters) -> RepairState:
    key = f"{state.id}-{state.round}-{name}"
    case.artifacts.put(key, parameters)
    return replace(state, made={**state.made, name: key})


def _answers(state: RepairState, case: Case, rows: Array) -> dict[str, Array]:
    """What each candidate says of rows, the one that changes least first."""
    answers = {DRIFTED: _probabilities(state.drifted, case, rows)}
    if state.ancestor is not None:
        answers[ROLLBACK] = _probabilities(state.ancestor, case, rows)
    if case.model is None and state.ancestors:
        voters = (state.drifted, *state.ancestors)
        answers[VOTE] = np.mean([_probabilities(version, case, rows) for version in voters], axis=0)
    for name in (REPAIRED, FINE_TUNED):
        if name in state.made and case.model is not None:
            answers[name] = case.model.probabilities(case.artifacts.get(state.made[name]), rows)
    return answers


def _probabilities(version: str, case: Case, rows: Array) -> Array:
    return np.asarray(case.probabilities(version, rows), dtype=np.float64)


def _candidate(probabilities: Array, labels: Array) -> Candidate:
    right = probabilities.argmax(axis=1) == labels
    said = probabilities[np.arange(len(labels)), labels]
    return Candidate(right, -np.log(np.maximum(np.nan_to_num(said), 1e-6)))


def _slices(state: RepairState, case: Case) -> dict[str, Slice]:
    """On rows elsewhere the repaired version is held against the drifted one."""
    found = {}
    if REPAIRED in state.made and case.model is not None:
        for name, part in case.slices.items():
            answers = _answers(replace(state, ancestor=None), case, part.rows)
            right = {who: answer.argmax(axis=1) == part.labels for who, answer in answers.items()}
            found[name] = Slice(right[REPAIRED], right[DRIFTED])
    return found


def _by_votes(state: RepairState, case: Case) -> str | None:
    """The ancestor that is right most often on the validation rows; the nearest of equal ones."""
    rows, labels = _labelled(state.validation, case)
    n_right = {
        version: int(np.sum(_probabilities(version, case, rows).argmax(axis=1) == labels)) if len(rows) else 0
        for version in state.ancestors
    }
    return max(n_right, key=lambda version: n_right[version], default=None)


def _is_well(state: RepairState, verdict: Verdict, case: Case, plan: RepairPlan) -> bool:
    known = [one.accuracy for one in case.ancestors if one.version == state.ancestor]
    healthy = [accuracy for accuracy in (case.accuracy_before, *known) if accuracy is not None]
    return bool(healthy) and verdict.shares[verdict.winner].low >= max(healthy) - plan.tolerance


def _labelled(numbers: Sequence[int], case: Case) -> tuple[Array, Array]:
    at = np.asarray(numbers, dtype=np.int64)
    return case.rows[at], np.asarray([case.labels[row] for row in numbers], dtype=np.int64)


def _replayed(state: RepairState, case: Case, plan: RepairPlan) -> LabelledRows | None:
    """Older labelled rows: as many from versions far from the current data as from the ancestors that are near it."""
    near = [case.replay[version] for version in state.ancestors if version in case.replay]
    far = [given for version, given in case.replay.items() if version not in state.ancestors]
    near, far = [given for given in near if len(given)], [given for given in far if len(given)]
    if not near and not far:
        return None
    others = _together(far) if far else None
    if near and others is not None:
        n = round(sum(map(len, near)) * plan.replay_far)
        at = _rng(state, "replay").choice(len(others), size=min(n, len(others)), replace=False)
        others = LabelledRows(others.rows[at], others.labels[at])
    return _together([*near, *([others] if others is not None else [])])


def _together(parts: Sequence[LabelledRows]) -> LabelledRows:
    return LabelledRows(np.concatenate([p.rows for p in parts]), np.concatenate([p.labels for p in parts]))


def _rng(state: RepairState, purpose: str) -> np.random.Generator:
    digest = hashlib.sha256(f"{state.id}\0{purpose}\0{state.round}".encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8], "big"))


def _digest(rows: Array) -> str:
    whole = hashlib.sha256(f"{rows.dtype}{rows.shape}".encode())
    whole.update(np.ascontiguousarray(rows).tobytes())
    return whole.hexdigest()


def _number(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
