"""Trains the controller from journaled outcomes: gradient ascent on what the journal says the policy would bring.

The value of a policy on the journal is its doubly robust estimate (Dudik, Langford and Li 2011, ICML): a linear model
says what each plan would have brought, and inverse propensity scores correct it where the plan was chosen. As the
probabilities of all plans are known for every outcome, the gradient of that estimate needs no sampling. Corrections
of what was hardly ever chosen are shrunk, or luck would decide (Su, Dimakopoulou, Krishnamurthy and Dudik 2020, ICML).
What was held out decides when to stop; where nothing helps, the weights stay those of the prior.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from planner.choice.controller import (
    ARRAYS,
    N_SEGMENT,
    STOP,
    Floats,
    State,
    Tree,
    Way,
    Weights,
    log_probabilities,
    scores,
    untrained,
    way_of,
)
from planner.choice.evaluation import Logged, earned_by
from planner.choice.policy import Arm, Result
from planner.errors import BadRequest

_HELD_OUT = 0.25
_BATCH = 512
_RATE = 0.01
_SHRINKAGE = 25.0  # outcomes by this is the square of the inverse propensity from which on corrections are shrunk
_OPENNESS = 0.05  # how much unsure choices are favoured at first, so that none is given up before it is understood
_GUESS = 16.0  # outcomes that the prediction counts for in the reward model, and the whole for a segment
_RIDGE = 4.0  # outcomes that pull the slopes of features to 0
_MOST_STEPS, _MOST_SEGMENTS = 512, 256  # the most frequent names get numbers of their own


@dataclass(frozen=True, slots=True)
class Example:
    """One decision and what came of it, at the start of a plan or on the way.

    `ways` are what could have been chosen from there, `chosen` the number of the one that was, `propensities` theirs.
    `reward` as `Result.reward`.
    """

    state: State
    ways: tuple[Way, ...]
    chosen: int
    propensities: tuple[float, ...]
    reward: float


def examples_of(log: Sequence[Logged], ways: Callable[[Arm], Way] = way_of) -> list[Example]:
    """The choices of plans in a log. Raises BadRequest for outcomes without propensities."""
    known: dict[int, tuple[Sequence[Arm], tuple[Way, ...]]] = {}
    found = []
    for logged, reward in zip(log, earned_by(log).tolist(), strict=True):
        kept = known.get(id(logged.arms))
        if kept is None:
            kept = known[id(logged.arms)] = (logged.arms, tuple([ways(arm) for arm in logged.arms]))
        found.append(Example(State.of(logged.context), kept[1], logged.choice.arm, logged.choice.propensities, reward))
    return found


def train(examples: Sequence[Example], seed: int = 0, n_epochs: int = 80) -> Weights:
    """Weights from examples in the order of time. Raises BadRequest for fewer than 20, and without propensities."""
    if len(examples) < 20:
        raise BadRequest(f"a controller needs at least 20 outcomes to be trained from, not {len(examples)}.")
    if any(not example.propensities for example in examples):
        raise BadRequest("a controller is trained from outcomes with propensities only.")
    rng = np.random.default_rng(seed)
    weights = untrained(_frequent(examples, _MOST_STEPS), _segments(examples, _MOST_SEGMENTS), rng)
    _forget_unseen(weights, examples)
    groups = _groups(examples, weights, rng)
    adam = _Adam(weights)
    best, best_value = weights, sum(group.value(weights, held_out=True) for group in groups)
    for epoch in range(n_epochs):
        openness = _OPENNESS * (1.0 - epoch / n_epochs)
        batches = [(group, at) for group in groups for at in group.batches(rng)]
        for number in rng.permutation(len(batches)):
            group, at = batches[number]
            weights = adam.step(weights, group.gradient(weights, at, openness))
        found = sum(group.value(weights, held_out=True) for group in groups)
        if found > best_value:
            best, best_value = weights, found
    return best


def _frequent(examples: Sequence[Example], most: int) -> list[str]:
    counts = Counter(
        step.name for example in examples for way in example.ways for step in way.steps if step.name != STOP
    )
    return [name for name, _ in counts.most_common(most)]


def _segments(examples: Sequence[Example], most: int) -> list[str]:
    counts = Counter(example.state.segment for example in examples)
    return [name for name, _ in counts.most_common(most)]


def _forget_unseen(weights: Weights, examples: Sequence[Example]) -> None:
    """What was never other than 0, such as a load that nobody noted, is not to decide anything later on."""
    seen = sum(np.abs(weights.state_row(example.state)) for example in examples)
    weights.state[:, :-N_SEGMENT][:, np.asarray(seen) == 0.0] = 0.0


class _Group:
    """Examples that could choose among the same ways under the same objective."""

    def __init__(self, examples: Sequence[Example], weights: Weights, rng: np.random.Generator) -> None:
        self.tree = Tree(examples[0].ways, examples[0].state.objective)
        self._steps = np.array(weights.step_numbers(self.tree))
        self._states: Floats = np.stack([weights.state_row(example.state) for example in examples])
        self._segments = np.array([weights.segment_number(example.state.segment) for example in examples])
        self._fits: Floats = np.stack([self.tree.fit(example.state.slack_ms) for example in examples])
        self._gains = _gains(examples, self._states, self._segments)
        held = rng.random(len(examples)) < _HELD_OUT
        self._train, self._held_out = np.flatnonzero(~held), np.flatnonzero(held)

    def batches(self, rng: np.random.Generator) -> list[npt.NDArray[np.int64]]:
        mixed = rng.permutation(self._train)
        return [mixed[i : i + _BATCH] for i in range(0, len(mixed), _BATCH)]

    def _forward(self, weights: Weights, at: npt.NDArray[np.int64]) -> tuple[Floats, ...]:
        states = np.concatenate([self._states[at], weights.segment_table[self._segments[at]]], axis=1)
        edges = np.concatenate([self.tree.seen, weights.step_table[self._steps]], axis=1)
        found, hidden = scores(weights, states, edges, self._fits[at])
        logs = log_probabilities(found, self.tree.first, self.tree.node)
        return states, edges, hidden, logs, np.exp(logs @ self.tree.through.T)

    def value(self, weights: Weights, held_out: bool) -> float:
        """The doubly robust value, summed over the examples."""
        at = self._held_out if held_out else self._train
        return float(np.sum(self._forward(weights, at)[-1] * self._gains[at])) if len(at) else 0.0

    def gradient(self, weights: Weights, at: npt.NDArray[np.int64], openness: float) -> dict[str, Floats]:
        """Of the mean value of these examples plus `openness` times the entropy of choices, by the array's name."""
        states, edges, hidden, logs, likely = self._forward(weights, at)
        # What flows through an edge less the edge's share of what flows through its node.
        gains = self._gains[at] - openness * np.log(np.maximum(likely, 1e-12))
        through = (likely * gains) @ self.tree.through
        at_node = np.add.reduceat(through, self.tree.first, axis=1)[:, self.tree.node]
        d_score: Floats = ((through - np.exp(logs) * at_node) / len(at)).astype(np.float32)
        d_pre = d_score[:, :, None] * weights.out * (1.0 - hidden**2)
        by_state, by_edge = d_pre.sum(axis=1), d_pre.sum(axis=0)
        d_edges = d_score.sum(axis=0)[:, None] * weights.straight + by_edge @ weights.edge
        step_table, segment_table = np.zeros_like(weights.step_table), np.zeros_like(weights.segment_table)
        np.add.at(step_table, self._steps, d_edges[:, self.tree.seen.shape[1] :])
        np.add.at(segment_table, self._segments[at], (by_state @ weights.state)[:, -N_SEGMENT:])
        step_table[-1] = 0.0
        segment_table[-1] = 0.0
        return {
            "state": by_state.T @ states,
            "edge": by_edge.T @ edges,
            "fit": np.einsum("neh,ne->h", d_pre, self._fits[at]),
            "bias": by_edge.sum(axis=0),
            "out": np.einsum("neh,ne->h", hidden, d_score),
            "straight": d_score.sum(axis=0) @ edges,
            "step_table": step_table,
            "segment_table": segment_table,
        }


def _groups(examples: Sequence[Example], weights: Weights, rng: np.random.Generator) -> list[_Group]:
    found: dict[Any, list[Example]] = {}
    same: dict[int, tuple[Way, ...]] = {}  # hashing many ways takes time, and most examples share theirs
    first: dict[tuple[Way, ...], tuple[Way, ...]] = {}
    for example in examples:
        ways = same.get(id(example.ways))
        if ways is None:
            ways = same[id(example.ways)] = first.setdefault(example.ways, example.ways)
        found.setdefault((id(ways), example.state.objective), []).append(example)
    return [_Group(group, weights, rng) for group in found.values()]


def _gains(examples: Sequence[Example], states: Floats, segments: npt.NDArray[np.int64]) -> Floats:
    """What each way would have brought each example, as far as its outcome tells, shape (n, n_ways).

    A ridge regression per way on features and segment, drawn to the prediction, and the correction of the chosen one.
    Counted from the mean, which changes no gradient and keeps the noise small.
    """
    n, n_ways = len(examples), len(examples[0].ways)
    chosen = np.array([example.chosen for example in examples])
    rewards = np.array([example.reward for example in examples])
    usual = float(rewards.mean())
    own = np.zeros((n, int(segments.max()) + 1))
    own[np.arange(n), segments] = 1.0
    seen = np.concatenate([np.ones((n, 1)), own, states.astype(np.float64)], axis=1)
    pull = np.diag([_GUESS] * (1 + own.shape[1]) + [_RIDGE] * states.shape[1])
    model = np.empty((n, n_ways))
    objective = examples[0].state.objective
    for w, way in enumerate(examples[0].ways):
        guess = Result.answered(way.p50_ms, way.cost).reward(objective, way.accuracy)
        design, off = seen[chosen == w], rewards[chosen == w] - guess
        model[:, w] = guess + seen @ np.linalg.solve(design.T @ design + pull, design.T @ off)
    had = np.array([example.propensities for example in examples])[np.arange(n), chosen]
    gains = model - usual
    shrunk = (1.0 / had) / (1.0 + _SHRINKAGE / n / had**2)
    gains[np.arange(n), chosen] += shrunk * (rewards - model[np.arange(n), chosen])
    return gains.astype(np.float32)


class _Adam:
    """Kingma and Ba 2015, Adam: A Method for Stochastic Optimization, ICLR; ascending."""

    def __init__(self, weights: Weights) -> None:
        self._mean = {name: np.zeros_like(getattr(weights, name)) for name in ARRAYS}
        self._square = {name: np.zeros_like(getattr(weights, name)) for name in ARRAYS}
        self._n = 0

    def step(self, weights: Weights, gradient: dict[str, Floats]) -> Weights:
        self._n += 1
        new: dict[str, Any] = {}
        for name in ARRAYS:
            mean, square, up = self._mean[name], self._square[name], gradient[name]
            mean += 0.1 * (up - mean)
            square += 0.001 * (up * up - square)
            size = _RATE * math.sqrt(1.0 - 0.999**self._n) / (1.0 - 0.9**self._n)
            new[name] = (getattr(weights, name) + size * mean / (np.sqrt(square) + 1e-8)).astype(np.float32)
        return replace(weights, **new)
