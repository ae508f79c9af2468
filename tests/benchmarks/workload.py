"""The work that is compared: 64 floats -> scale (numpy) -> MLP 64-128-64 -> MLP 64-128-10 with softmax (torch).

The stages are plain callables over a batch, so that every subject runs the same code; the Fenix extensions around
them are at the end. Weights come from a fixed seed.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from deployments.extension import Extension, Scored
from planner.cards import Resources
from planner.features import Array, Feature, Port
from planner.goals import Goal

SEED = 64
N_FEATURES, N_HIDDEN, N_CLASSES = 64, 128, 10


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


def hidden() -> Mlp:
    return Mlp(N_FEATURES, SEED + 1)


def classifier() -> Mlp:
    return Mlp(N_CLASSES, SEED + 2, softmax=True)


def rows(n: int = 64) -> Array:
    """Requests to send, (n, 64) float32 of whole numbers from 0 to 16."""
    return np.random.default_rng(SEED).integers(0, 17, (n, N_FEATURES)).astype(np.float32)


def reference(batch: Array) -> Array:
    """What the chain answers, (n, 10) float32."""
    return classifier()(hidden()(scale(batch)))


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


CHAIN = Goal(
    "chain", (Port("row", RAW),), (Port("label", LABEL), Port("probs", PROBABILITIES)), description="A chain of three."
)
SOURCES = tuple(f"{__name__}:{stage.__name__}" for stage in (Scale, Hide, Classify))
