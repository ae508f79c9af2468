"""The controller: a tiny network that decides step by step how a request goes on, trained from the journal.

From what is known of the request (its features, the time left, the confidence so far) and of each step that could come
next, the network scores these steps; a softmax makes a distribution of the scores. Stopping is one of the steps where a
plan ends and another goes on. The plans that are open form a tree of steps, so walking down the tree chooses a plan,
and the probability of a plan is the product along its way: thus the controller is a policy among others, too.

`controller_training.py` makes the weights; numpy is all that is needed to use them.
"""

from __future__ import annotations

import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.choice.policy import FEATURES, Arm, Choice, Context, Result, drawn, open_arms, value
from planner.errors import ArtifactRefused
from planner.goals import Objective

Floats = npt.NDArray[np.float32]

STOP = ""  # the name of the step that ends a plan where others go on

FORMAT = "fenix-controller-1"
N_HIDDEN = 24
N_STEP = 8  # numbers that stand for a known extension
N_SEGMENT = 4  # and for a known segment
_N_STATE = len(FEATURES) + 3 + N_SEGMENT
_N_EDGE = 6 + N_STEP
_TRUST = 20.0  # how much a step is preferred at first for each unit of predicted value that it leads to
_SCALES = (0.25, 0.25, 1.0, 1.0, 0.15, 1.0)  # of FEATURES, to about -1..1
_MOST_KEPT = 1024


@dataclass(frozen=True, slots=True)
class Candidate:
    """A step that could come next: an extension, or anything else with a name, and what its card predicts."""

    name: str
    accuracy: float
    p50_ms: float
    cost: float


@dataclass(frozen=True, slots=True)
class Way:
    """The steps that are left of a plan, in order, and what the whole plan is predicted to bring from here.

    No steps: the plan would end here; then `accuracy` is best set to what the answer so far is worth.
    """

    plan: str
    steps: tuple[Candidate, ...]
    accuracy: float
    p50_ms: float
    cost: float


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a request when the next step is decided.

    `features`, `segment` and `objective` as in `Context`. `slack_ms` is left until the deadline (None: there is none),
    `confidence` that of the answer so far (None: there is none yet).
    """

    features: tuple[float, ...] = ()
    segment: str = ""
    objective: Objective = Objective()
    slack_ms: float | None = None
    confidence: float | None = None

    @classmethod
    def of(cls, context: Context) -> State:
        """At the start of a plan."""
        log_slack = context.features[FEATURES.index("log_slack")] if context.features else 0.0
        slack_ms = math.expm1(log_slack) if log_slack > 0.0 else None
        return cls(context.features, context.segment, context.objective, slack_ms)


def way_of(arm: Arm) -> Way:
    """The plan as a single step of its own name, where its steps are not known."""
    return Way(arm.plan, (Candidate(arm.plan, arm.accuracy, arm.p50_ms, arm.cost),), arm.accuracy, arm.p50_ms, arm.cost)


class Tree:
    """Ways as a tree of steps. Edges of the same node stand together, nodes in the order of depth.

    `edges[e]` is the step, `first[k]` the first edge of node `k`, `node[e]` the node of an edge (the first edges are
    those of the root), `through[w, e]` whether way `w` takes edge `e`, `before_ms[e]` what the steps before it take,
    `after_ms[e]` the fastest way from it on. Ways of the same steps part at the end, each with an own way to stop.
    """

    def __init__(self, ways: Sequence[Way], objective: Objective) -> None:
        groups: dict[tuple[str, ...], dict[tuple[str, int], tuple[Candidate, list[int]]]] = {}
        ends: dict[tuple[str, ...], list[int]] = {}
        for number, way in enumerate(ways):
            names = tuple([step.name for step in way.steps])
            ends.setdefault(names, []).append(number)
            for depth, step in enumerate(way.steps):
                groups.setdefault(names[:depth], {}).setdefault((step.name, -1), (step, []))[1].append(number)
        for path, ending in ends.items():
            if path in groups or len(ending) > 1 or not path:
                for number in ending:
                    stop = Candidate(STOP, ways[number].accuracy, 0.0, 0.0)
                    groups.setdefault(path, {})[STOP, number] = stop, [number]
        self.ways = tuple(ways)
        self.edges: list[Candidate] = []
        self.first: list[int] = []
        self.node: list[int] = []
        members: list[list[int]] = []
        rows: list[list[float]] = []
        before, after = [], []
        lengths = [len(way.steps) for way in ways]
        for at_node, (path, options) in enumerate(sorted(groups.items(), key=lambda item: (len(item[0]), item[0]))):
            self.first.append(len(self.edges))
            for step, through in options.values():
                taken_ms = sum(known.p50_ms for known in ways[through[0]].steps[: len(path)])
                best = max(value(objective, ways[w].accuracy, ways[w].p50_ms, ways[w].cost) for w in through)
                last = step.name == STOP or any(lengths[w] == len(path) + 1 for w in through)
                self.edges.append(step)
                self.node.append(at_node)
                members.append(through)
                before.append(taken_ms)
                after.append(min(ways[w].p50_ms for w in through) - taken_ms)
                rows.append(
                    [
                        best,
                        max(math.log(max(step.accuracy, 1e-3)), -4.0),
                        0.3 * math.log(max(step.p50_ms, 1e-2)),
                        math.tanh(step.cost),
                        float(last),
                        float(step.name == STOP),
                    ]
                )
        self.seen: Floats = np.array(rows, dtype=np.float32)
        self.through: Floats = np.zeros((len(ways), len(self.edges)), dtype=np.float32)
        for e, through in enumerate(members):
            self.through[through, e] = 1.0
        self.before_ms, self.after_ms = np.array(before), np.maximum(np.array(after), 1e-2)

    def fit(self, slack_ms: float | None) -> Floats:
        """How well the time left suffices for the fastest way on from each edge, on a scale of -2 to 2; 0: no limit."""
        if slack_ms is None:
            return np.zeros(len(self.edges), dtype=np.float32)
        left = np.maximum(slack_ms - self.before_ms, 1e-3)
        fit: Floats = np.clip(np.log(left / self.after_ms), -2.0, 2.0).astype(np.float32)
        return fit


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Of the network; float32. Names that are not known share the last row of their table, which is 0.

    `state` (n_hidden, n_state), `edge` (n_hidden, n_edge), `fit` and `bias` (n_hidden,) make the hidden layer, of which
    tanh is taken; `out` (n_hidden,) and `straight` (n_edge,), past the hidden layer, make the score. `step_table`
    (n_steps + 1, N_STEP) and `segment_table` (n_segments + 1, N_SEGMENT) are what names stand for. They were trained on
    outcomes of `goal` until `until_s`, since 1970; empty and 0 where that is not known.
    """

    state: Floats
    edge: Floats
    fit: Floats
    bias: Floats
    out: Floats
    straight: Floats
    step_table: Floats
    segment_table: Floats
    steps: Mapping[str, int]
    segments: Mapping[str, int]
    goal: str = ""
    until_s: float = 0.0

    def state_row(self, state: State) -> Floats:
        """What the network sees of a state, without its segment's numbers, shape (n_state - N_SEGMENT,)."""
        features = state.features or (0.0,) * len(FEATURES)
        sure = 0.0
        if state.confidence is not None:  # its log odds, halved: confidences crowd near 1
            odds = min(max(state.confidence, 1e-3), 1.0 - 1e-3)
            sure = 0.5 * math.log(odds / (1.0 - odds))
        seen = [scale * f for scale, f in zip(_SCALES, features, strict=True)]
        return np.array([*seen, float(bool(state.features)), sure, float(state.confidence is not None)], np.float32)

    def segment_number(self, segment: str) -> int:
        return self.segments.get(segment, len(self.segments))

    def step_numbers(self, tree: Tree) -> list[int]:
        return [self.steps.get(step.name, len(self.steps)) for step in tree.edges]


ARRAYS = ("state", "edge", "fit", "bias", "out", "straight", "step_table", "segment_table")


def untrained(steps: Sequence[str], segments: Sequence[str], rng: np.random.Generator) -> Weights:
    """Weights that score by what is predicted alone: the prior."""

    def small(*shape: int, size: float) -> Floats:
        return (size * rng.standard_normal(shape)).astype(np.float32)

    straight = np.zeros(_N_EDGE, np.float32)
    straight[0] = _TRUST
    step_table, segment_table = small(len(steps) + 1, N_STEP, size=0.5), small(len(segments) + 1, N_SEGMENT, size=0.7)
    step_table[-1] = 0.0
    segment_table[-1] = 0.0
    return Weights(
        state=small(N_HIDDEN, _N_STATE, size=0.5),
        edge=small(N_HIDDEN, _N_EDGE, size=0.5),
        fit=small(N_HIDDEN, size=0.5),
        bias=small(N_HIDDEN, size=0.2),
        out=np.zeros(N_HIDDEN, np.float32),
        straight=straight,
        step_table=step_table,
        segment_table=segment_table,
        steps={name: i for i, name in enumerate(steps)},
        segments={name: i for i, name in enumerate(segments)},
    )


def scores(weights: Weights, states: Floats, edges: Floats, fits: Floats) -> tuple[Floats, Floats]:
    """The network: scores of shape (n, n_edges), and the hidden layer (n, n_edges, n_hidden) that they are made of.

    `states` (n, n_state), `edges` (n_edges, n_edge), `fits` (n, n_edges).
    """
    pre = (states @ weights.state.T)[:, None, :] + (edges @ weights.edge.T + weights.bias)[None]
    hidden = np.tanh(pre + fits[:, :, None] * weights.fit)
    return hidden @ weights.out + edges @ weights.straight, hidden


def log_probabilities(found: Floats, first: Sequence[int], node: Sequence[int]) -> Floats:
    """The logarithm of the softmax of scores (n, n_edges) over the edges of each node."""
    top = np.maximum.reduceat(found, first, axis=1)[:, node]
    total = np.add.reduceat(np.exp(found - top), first, axis=1)[:, node]
    made: Floats = found - top - np.log(total)
    return made


@dataclass(frozen=True, slots=True, eq=False)
class _Known:
    """What was made of some arms, and with which probabilities they are chosen, by segment and features."""

    arms: Sequence[Arm]
    open_: list[int]
    tree: Tree
    rows: Floats
    found: dict[tuple[str, tuple[float, ...]], tuple[float, ...]]


class Controller:
    """Decides by the network; `mixing` of all decisions over plans are spread evenly, so that the journal stays useful.

    `ways` says which steps a plan has. It does not learn as outcomes come in, but is trained anew from the journal.
    """

    name = "controller"

    def __init__(self, weights: Weights, ways: Callable[[Arm], Way] = way_of, mixing: float = 0.02) -> None:
        self.weights = weights
        self._ways = ways
        self._mixing = mixing
        self._kept: dict[tuple[int, Objective], _Known] = {}

    def next_step(self, state: State, ways: Sequence[Way]) -> dict[str, float]:
        """The distribution over the next steps of these ways, by name; STOP where one of them ends here.

        Raises ValueError without ways.
        """
        if not ways:
            raise ValueError("there is no way to go on.")
        tree = Tree(ways, state.objective)
        chances = self._edge_chances(state, tree, self._edge_rows(tree))
        found: dict[str, float] = {}
        for edge, node, chance in zip(tree.edges, tree.node, chances.tolist(), strict=True):
            if node == 0:
                found[edge.name] = found.get(edge.name, 0.0) + chance
        return found

    def choose(self, context: Context, arms: Sequence[Arm], rng: random.Random, now_s: float) -> Choice:
        """As `Policy.choose`. 60 us where features or segment are new, 2 us where they are known."""
        known = self._kept.get((id(arms), context.objective))
        if known is None or known.arms is not arms:
            open_ = open_arms(arms)
            tree = Tree([self._ways(arms[i]) for i in open_], context.objective)
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            known = self._kept[id(arms), context.objective] = _Known(arms, open_, tree, self._edge_rows(tree), {})
        propensities = known.found.get((context.segment, context.features))
        if propensities is None:
            if len(known.found) >= _MOST_KEPT:
                known.found.clear()
            propensities = known.found[context.segment, context.features] = self._propensities(State.of(context), known)
        arm = drawn(propensities, rng)
        return Choice(arm, propensities, f"drawn by the controller, {100.0 * propensities[arm]:.2g} %")

    def _propensities(self, state: State, known: _Known) -> tuple[float, ...]:
        logs = known.tree.through @ np.log(np.maximum(self._edge_chances(state, known.tree, known.rows), 1e-30))
        likely = np.exp(logs.astype(np.float64))
        likely /= likely.sum()
        found, evenly = [0.0] * len(known.arms), self._mixing / len(known.open_)
        for i, p in zip(known.open_, likely.tolist(), strict=True):
            found[i] = (1.0 - self._mixing) * p + evenly
        return tuple(found)

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        """Learns nothing by itself: see `controller_training.train`."""

    def _edge_rows(self, tree: Tree) -> Floats:
        return np.concatenate([tree.seen, self.weights.step_table[self.weights.step_numbers(tree)]], axis=1)

    def _edge_chances(self, state: State, tree: Tree, rows: Floats) -> Floats:
        """The probability of each edge at its node, shape (n_edges,)."""
        weights = self.weights
        segment = weights.segment_table[weights.segment_number(state.segment)]
        states = np.concatenate([weights.state_row(state), segment])[None]
        found, _ = scores(weights, states, rows, tree.fit(state.slack_ms)[None])
        chances: Floats = np.exp(log_probabilities(found, tree.first, tree.node))[0]
        return chances


def save(weights: Weights, path: Path) -> None:
    """Writes the weights as a safetensors file, whole or not at all. Raises OSError."""
    from safetensors.numpy import save as encoded

    names = {"steps": list(weights.steps), "segments": list(weights.segments)}
    source = {"goal": weights.goal, "until_s": weights.until_s}
    arrays = {name: np.ascontiguousarray(getattr(weights, name)) for name in ARRAYS}
    written = encoded(arrays, {"format": FORMAT, "names": json.dumps(names), "source": json.dumps(source)})
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(written)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load(path: Path) -> Weights:
    """The weights that were saved. Raises ArtifactRefused for a file that is not one of them, or not sound."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            meta = file.metadata() or {}
            if meta.get("format") != FORMAT or set(file.keys()) != set(ARRAYS):
                raise ArtifactRefused(f"{path.name} has no weights of a controller.")
            arrays: dict[str, Any] = {name: file.get_tensor(name) for name in ARRAYS}
        names = json.loads(meta["names"])
        steps, segments = names["steps"], names["segments"]
        source = json.loads(meta.get("source", "{}"))
        goal, until_s = str(source.get("goal", "")), float(source.get("until_s", 0.0))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactRefused(f"{path.name} cannot be read as weights of a controller: {error}") from None
    for known in (steps, segments):
        if not isinstance(known, list) or not all(isinstance(n, str) for n in known) or len(set(known)) != len(known):
            raise ArtifactRefused(f"{path.name}: its names are not lists of different texts.")
    shapes = {
        "state": (N_HIDDEN, _N_STATE),
        "edge": (N_HIDDEN, _N_EDGE),
        "fit": (N_HIDDEN,),
        "bias": (N_HIDDEN,),
        "out": (N_HIDDEN,),
        "straight": (_N_EDGE,),
        "step_table": (len(steps) + 1, N_STEP),
        "segment_table": (len(segments) + 1, N_SEGMENT),
    }
    for name, shape in shapes.items():
        if arrays[name].shape != shape or arrays[name].dtype != np.float32:
            raise ArtifactRefused(
                f"{path.name}: {name} is {arrays[name].dtype} of shape {arrays[name].shape}, not float32 of {shape}."
            )
        if not np.isfinite(arrays[name]).all():
            raise ArtifactRefused(f"{path.name}: {name} is not finite everywhere.")
    return Weights(
        **arrays,
        steps={name: i for i, name in enumerate(steps)},
        segments={name: i for i, name in enumerate(segments)},
        goal=goal,
        until_s=until_s,
    )
