"""The work that is compared, all of it over rows of 64 floats, with torch on one thread and weights from fixed seeds:

    chain   scale (numpy) -> MLP 64-128-64 -> MLP 64-128-10 with softmax
    fan     scale -> three MLPs 64-128-64 side by side -> their mean -> MLP 64-128-10 with softmax
    noop    one number, given back

The stages are plain callables over a batch, so that every subject runs the same code; the Fenix extensions around
them are at the end. They say nothing of what follows what: the planner finds that by their features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from deployments.extension import Extension, Scored
from planner.cards import Resources
from planner.features import Array, Feature, Port
from planner.goals import Goal

SEED = 64
N_FEATURES, N_HIDDEN, N_CLASSES, N_BRANCHES = 64, 128, 10, 3


def scale(rows: Array) -> Array:
    """(n, 64) float32 -> (n, 64) float32."""
    return (rows - np.float32(8.0)) / np.float32(16.0)


class Mlp:
    """(n, 64) float32 -> (n, n_out) float32 on one thread; softmax at the end where `softmax` is set."""

    def __init__(self, n_out: int, seed: int, softmax: bool = False) -> None:
        import torch

        torch.set_num_threads(1)
        generator = torch.Generator().manual_seed(seed)
        self._torch = torch
        first, second = torch.nn.Linear(N_FEATURES, N_HIDDEN), torch.nn.Linear(N_HIDDEN, n_out)
        with torch.no_grad():
            for layer in (first, second):
                std = (2.0 / layer.in_features) ** 0.5
                layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) * std)
                layer.bias.copy_(torch.rand(layer.bias.shape, generator=generator) * 0.2 - 0.1)
        tail = [torch.nn.Softmax(dim=1)] if softmax else []
        self._net = torch.nn.Sequential(first, torch.nn.ReLU(), second, *tail).eval()

    def __call__(self, rows: Array) -> Array:
        with self._torch.inference_mode():
            made: Array = self._net(self._torch.from_numpy(rows)).numpy()
            return made


def mean(branches: Sequence[Array]) -> Array:
    """N_BRANCHES times (n, 64) float32 -> (n, 64) float32."""
    first, second, third = branches
    return (first + second + third) / np.float32(N_BRANCHES)


def hidden(branch: int = 0) -> Mlp:
    """The middle of the chain; the fan's branches are 0 to 2."""
    return Mlp(N_FEATURES, SEED + 1 if branch == 0 else SEED + 2 + branch)


def classifier() -> Mlp:
    return Mlp(N_CLASSES, SEED + 2, softmax=True)


class Chain:
    """The whole of the chain in one process."""

    def __init__(self) -> None:
        self._hidden, self._classifier = hidden(), classifier()

    def __call__(self, rows: Array) -> Array:
        return self._classifier(self._hidden(scale(rows)))


class Fan:
    """The whole of the fan in one process."""

    def __init__(self) -> None:
        self._branches, self._classifier = [hidden(branch) for branch in range(N_BRANCHES)], classifier()

    def __call__(self, rows: Array) -> Array:
        scaled = scale(rows)
        return self._classifier(mean([branch(scaled) for branch in self._branches]))


def rows(n: int = 64) -> Array:
    """Requests to send, (n, 64) float32 of whole numbers from 0 to 16."""
    return np.random.default_rng(SEED).integers(0, 17, (n, N_FEATURES)).astype(np.float32)


def reference(batch: Array, workload: str = "chain") -> Array:
    """What the chain or the fan answers, (n, 10) float32."""
    return (Fan() if workload == "fan" else Chain())(batch)


RAW = Feature("vector/raw", "FP32", (N_FEATURES,))
SCALED = Feature("vector/scaled", "FP32", (N_FEATURES,))
HIDDEN = Feature("vector/hidden", "FP32", (N_FEATURES,))
PROBABILITIES = Feature("scores/class", "FP32", (N_CLASSES,))
LABEL = Feature("label/class", "INT64")


class Scale(Extension):
    """Stage A."""

    name = "chain-scale"
    inputs = {"row": RAW}
    outputs = {"row": SCALED}
    resources = Resources(max_batch_rows=256)

    def infer(self, *, row: Array, **_: Any) -> Array:
        return scale(row)


class Hide(Extension):
    """Stage B."""

    name = "chain-hidden"
    inputs = {"row": SCALED}
    outputs = {"row": HIDDEN}

    def setup(self) -> None:
        self._mlp = hidden()

    def infer(self, *, row: Array, **_: Any) -> Array:
        return self._mlp(np.array(row))


class Classify(Extension):
    """Stage C."""

    name = "chain-classify"
    inputs = {"row": HIDDEN}
    outputs = {"probs": PROBABILITIES, "label": LABEL}

    def setup(self) -> None:
        self._mlp = classifier()

    def infer(self, *, row: Array, **_: Any) -> Scored:
        probs = self._mlp(np.array(row))
        return Scored({"probs": probs, "label": probs.argmax(axis=1)}, probs.max(axis=1))


BRANCHES = tuple(Feature(f"vector/branch-{i}", "FP32", (N_FEATURES,)) for i in range(N_BRANCHES))
MEAN = Feature("vector/mean", "FP32", (N_FEATURES,))
FAN_PROBABILITIES = Feature("scores/fan-class", "FP32", (N_CLASSES,))
FAN_LABEL = Feature("label/fan-class", "INT64")
NUMBER = Feature("number/given", "FP32", (1,))
SAME_NUMBER = Feature("number/given-back", "FP32", (1,))


class _Branch(Extension):
    """One of the fan's hidden layers."""

    inputs = {"row": SCALED}
    branch: int

    def setup(self) -> None:
        self._mlp = hidden(self.branch)

    def infer(self, *, row: Array, **_: Any) -> Array:
        return self._mlp(np.array(row))


class FirstBranch(_Branch):
    name = "fan-branch-0"
    outputs = {"row": BRANCHES[0]}
    branch = 0


class SecondBranch(_Branch):
    name = "fan-branch-1"
    outputs = {"row": BRANCHES[1]}
    branch = 1


class ThirdBranch(_Branch):
    name = "fan-branch-2"
    outputs = {"row": BRANCHES[2]}
    branch = 2


class Mean(Extension):
    """Where the branches join: needs all three."""

    name = "fan-mean"
    inputs = {"first": BRANCHES[0], "second": BRANCHES[1], "third": BRANCHES[2]}
    outputs = {"row": MEAN}

    def infer(self, *, first: Array, second: Array, third: Array, **_: Any) -> Array:
        return mean([first, second, third])


class FanClassify(Classify):
    """The classifier after the mean."""

    name = "fan-classify"
    inputs = {"row": MEAN}
    outputs = {"probs": FAN_PROBABILITIES, "label": FAN_LABEL}


class Noop(Extension):
    """The smallest model."""

    name = "noop-same"
    inputs = {"x": NUMBER}
    outputs = {"x": SAME_NUMBER}

    def infer(self, *, x: Array, **_: Any) -> Array:
        return x


CHAIN = Goal(
    "chain", (Port("row", RAW),), (Port("label", LABEL), Port("probs", PROBABILITIES)), description="A chain of three."
)
FAN = Goal(
    "fan",
    (Port("row", RAW),),
    (Port("label", FAN_LABEL), Port("probs", FAN_PROBABILITIES)),
    description="Three models side by side, their mean, and a classifier.",
)
NOOP = Goal("noop", (Port("x", NUMBER),), (Port("x", SAME_NUMBER),), description="Gives a number back.")


def _sources(*stages: type[Extension]) -> tuple[str, ...]:
    return tuple(f"{__name__}:{stage.__name__}" for stage in stages)


SOURCES = _sources(Scale, Hide, Classify)
# Workload -> its goal and what it is composed of.
WORKLOADS = {
    "chain": (CHAIN, SOURCES),
    "fan": (FAN, _sources(Scale, FirstBranch, SecondBranch, ThirdBranch, Mean, FanClassify)),
    "noop": (NOOP, _sources(Noop)),
}
