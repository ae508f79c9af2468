"""What a new extension version is worth: its latency as the gateway will see it, its accuracy on a goal's
validation set. Measured before the version gets traffic."""

from __future__ import annotations

import asyncio
import hashlib
import zipfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter

import numpy as np

from planner.calls import Calls
from planner.cards import Accuracy, Card, Evidence, ExtensionId, LatencyProfile, Threshold
from planner.catalogue import Catalogue
from planner.dispatch import Dispatcher
from planner.errors import BadCard, NoPlan
from planner.features import Array, Rows
from planner.goals import Goal, Terms
from planner.plan import plan
from planner.plans import Plan, PlanRequest
from planner.profiles import ProfileTracker
from planner.tokens import Token

TIMEOUT_S = 60.0
CHUNK_ROWS = 512
COVERAGES = (0.3, 0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@dataclass(frozen=True, slots=True)
class ValidationSet:
    """Rows with truth for one goal. `inputs` and `truth` hold an array (n_rows, ...) per port name."""

    inputs: Mapping[str, Array]
    truth: Mapping[str, Array]
    digest: str

    @property
    def n_rows(self) -> int:
        return len(next(iter(self.truth.values())))


def load_validation(goal: Goal) -> ValidationSet:
    """Reads the goal's `.npz` file; never unpickles. Raises BadCard when it is missing, damaged or does not fit."""
    path = Path(goal.validation)
    try:
        content = path.read_bytes()
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise BadCard(f"goal {goal.name}: validation set {path} cannot be read ({error}).") from None
    wanted = [port.name for port in (*goal.inputs, *goal.outputs)]
    missing = [name for name in wanted if name not in arrays]
    if missing:
        raise BadCard(f"goal {goal.name}: validation set {path} has no array {', '.join(missing)}.")
    if len({len(arrays[name]) for name in wanted}) != 1 or len(arrays[wanted[0]]) == 0:
        raise BadCard(f"goal {goal.name}: the arrays of {path} need the same number of rows, at least one.")
    return ValidationSet(
        {port.name: arrays[port.name] for port in goal.inputs},
        {port.name: arrays[port.name] for port in goal.outputs},
        hashlib.sha256(content).hexdigest()[:16],
    )


async def measure_latency(card: Card, samples: Sequence[Mapping[str, Array]], calls: Calls) -> LatencyProfile:
    """The profile seen from a caller. Each of `samples` (arrays (n_rows, ...) by port) runs a few times, one at a time;
    they differ in rows, and in size where the card has inputs of free size."""
    tracker = ProfileTracker()
    ratios = []
    for rows in samples:
        took_ms = []
        for _ in range(10):
            started_s = perf_counter()
            await calls.infer(card.id, {port: [values] for port, values in rows.items()}, TIMEOUT_S)
            took_ms.append((perf_counter() - started_s) * 1e3)
        warm = took_ms[2:]  # the first calls open connections and fill caches
        median_ms = float(np.median(warm))
        ratios.append(max(warm) / max(median_ms, 1e-6))
        kilo = sum(rows[port].size for port in card.free_ports) / 1e3
        for _ in warm:
            tracker.observe(len(next(iter(rows.values()))), kilo, median_ms)
    # Nothing is known of what was not varied: no slope there.
    fitted = tracker.profile(LatencyProfile(0.0, 0.0))
    return replace(fitted, p99_ratio=max(1.0, float(np.median(ratios))), n_calls=tracker.n_calls)


def stretched(card: Card, rows: Mapping[str, Array], n_elements: int) -> dict[str, Array]:
    """The same rows with every free dimension repeated by one factor, so that a row of the largest input has about
    `n_elements`. Empty where nothing is free but texts, whose length is their own."""
    ports = [p for p in card.inputs if -1 in p.feature.shape and p.feature.datatype != "BYTES"]
    if not ports:
        return {}
    made = dict(rows)
    largest = max(rows[p.name][0].size for p in ports)
    for port in ports:
        values = rows[port.name]
        free = [
            axis for axis, d in enumerate(port.feature.shape, start=values.ndim - len(port.feature.shape)) if d == -1
        ]
        factor = max(1, round((n_elements / max(largest, 1)) ** (1 / len(free))))
        for axis in free:
            values = np.repeat(values, factor, axis=axis)
        made[port.name] = values
    return made


def ends(card: Card, goal: Goal) -> bool:
    """Whether the extension gives one of the goal's outputs, so that it can be measured there. A combiner cannot: it
    is worth what it combines."""
    if any(port.many > 1 for port in card.inputs):
        return False
    return any(wanted.feature.accepts(port.feature) for wanted in goal.outputs for port in card.outputs)


def _plan_through(card: Card, goal: Goal, catalogue: Catalogue) -> Plan | None:
    """The best plan for the goal that uses the extension, without cascades and ensembles: they would hide it."""
    plain = Catalogue.of(
        (
            c.but(thresholds=(), confidence_threshold=None)
            for c in catalogue.cards.values()
            if all(port.many == 1 for port in c.inputs)
        ),
        epoch=catalogue.epoch,
    )
    request = PlanRequest(
        inputs=goal.inputs, wanted=goal.outputs, terms=Terms(), objective=goal.objective, must_use=card.id
    )
    try:
        return plan(request, plain, k=1).best
    except NoPlan:
        return None


async def measure_all(
    catalogue: Catalogue,
    new: Sequence[ExtensionId],
    validation: Mapping[str, ValidationSet],
    dispatcher: Dispatcher,
    report: Callable[[str], None] = lambda text: None,
) -> Catalogue:
    """The catalogue with the `new` extensions measured, each on the first goal in `validation` that it can end.

    An extension is measured after those that its plan builds on, so that it is not credited or blamed for them.
    """
    known = dict(catalogue.cards)
    waiting = {
        id_: goal
        for goal in reversed(list(catalogue.goals.values()))
        if goal.name in validation
        for id_ in new
        if ends(known[id_], goal)
    }
    while waiting:
        so_far = Catalogue.of(known.values(), catalogue.goals.values(), catalogue.epoch)
        plans = {id_: _plan_through(known[id_], goal, so_far) for id_, goal in waiting.items()}
        id_ = min(waiting, key=lambda i: _builds_on(plans[i], waiting, i))
        goal = waiting.pop(id_)
        chosen = plans[id_]
        if chosen is None:
            continue
        card = known[id_] = await measure_accuracy(known[id_], chosen, validation[goal.name], so_far, dispatcher)
        low, high = card.accuracy.interval()
        report(
            f"{id_} is right on {card.accuracy.mean:.1%} of {goal.name}"
            f" ({low:.1%} to {high:.1%}, {card.accuracy.n_rows} rows)"
        )
    return Catalogue.of(known.values(), catalogue.goals.values(), catalogue.epoch)


def _builds_on(chosen: Plan | None, waiting: Collection[ExtensionId], itself: ExtensionId) -> tuple[int, int]:
    """How many other unmeasured extensions a plan has, and how many steps."""
    if chosen is None:
        return 0, 0
    return sum(id_ in waiting and id_ != itself for id_ in chosen.extensions()), len(chosen.steps)


async def measure_accuracy(
    card: Card, chosen: Plan, data: ValidationSet, catalogue: Catalogue, dispatcher: Dispatcher
) -> Card:
    """The card with accuracy, thresholds and evidence from running a plan that ends in it on all of `data`.

    The accuracy is the extension's own: what the plan got right, divided by what the steps before it let through.
    """
    correct, confidence = [], []
    for start in range(0, data.n_rows, CHUNK_ROWS):
        rows = {name: values[start : start + CHUNK_ROWS] for name, values in data.inputs.items()}
        answer = await dispatcher.dispatch(chosen, rows, Token(asyncio.get_running_loop().time() + TIMEOUT_S))
        truth = {name: values[start : start + CHUNK_ROWS] for name, values in data.truth.items()}
        correct.append(right_rows(answer.outputs, truth))
        confidence.append(next(iter(answer.outputs.values())).confidence)
    right = np.concatenate(correct)
    given = [c for c in confidence if c is not None]
    sure = np.concatenate(given) if len(given) == len(confidence) else None
    before = np.prod([catalogue.cards[id_].accuracy.mean for id_ in chosen.extensions() if id_ != card.id])
    return card.but(
        accuracy=Accuracy(min(1.0, float(right.mean()) / max(float(before), 1e-9)), len(right)),
        thresholds=() if sure is None else risk_coverage(right, sure),
        evidence=Evidence.of(data.digest, right, sure),
    )


def right_rows(outputs: Mapping[str, Rows], truth: Mapping[str, Array]) -> Array:
    """Which rows are right in every output, boolean (n_rows,).

    Whole numbers, booleans and bytes have to be equal; floats to lie within a tenth of the truth's standard deviation.
    """
    right = np.ones(len(next(iter(truth.values()))), dtype=bool)
    for name, expected in truth.items():
        given = outputs[name].values
        if expected.dtype.kind == "f":
            close = np.abs(given - expected) <= 0.1 * max(float(expected.std()), 1e-6)
        else:
            close = given == expected
        right &= close.reshape(len(right), -1).all(axis=1)
    return right


def risk_coverage(right: Array, confidence: Array) -> tuple[Threshold, ...]:
    """Points of the risk-coverage curve at fixed coverages, from boolean `right` and float `confidence` (n_rows,)."""
    points = {}
    for coverage in COVERAGES:
        threshold = float(np.quantile(confidence, 1.0 - coverage))
        kept = confidence >= threshold
        points[round(threshold, 4)] = Threshold(threshold, float(kept.mean()), float(right[kept].mean()))
    return tuple(points.values())
