"""Extensions to be fused: small, importable by name, of any number of inputs, with or without a confidence."""

from __future__ import annotations

from typing import Any

import numpy as np

from deployments.extension import Extension, Result, Scored, extension
from planner.cards import Resources
from planner.features import Array, Feature, Port
from tests import faulty

WIDTH = 33
MIX = Feature("mix", "FP32", (WIDTH,))


class Mix(Extension):
    """Mixes its inputs; its second output has strides that do not survive a journey."""

    outputs = {"y": MIX, "z": MIX}

    def __init__(self, n_inputs: int = 1, seed: int = 0, judges: bool = False) -> None:
        self.inputs = {f"x{i}": MIX for i in range(n_inputs)}
        self._judges = judges
        self._seed = seed

    def setup(self) -> None:
        rng = np.random.default_rng(self._seed)
        self._weights = rng.normal(size=(len(self.inputs), WIDTH, WIDTH)).astype(np.float32)

    def infer(self, *_: Any, **inputs: Any) -> Result:
        mixed = np.zeros_like(inputs["x0"])
        for i, weights in enumerate(self._weights):
            rows = inputs[f"x{i}"]
            mixed = mixed + np.tanh(rows @ weights) + np.einsum("ij->i", rows)[:, None]  # adds in the strides' order
        outputs = {"y": mixed, "z": np.repeat(mixed, 2, axis=1)[:, ::2]}
        return Scored(outputs, 1.0 / (1.0 + np.exp(-np.tanh(mixed[:, 0])))) if self._judges else outputs


class Join(Extension):
    """A combiner."""

    inputs = {"many": Port("many", MIX, many=4)}
    outputs = {"y": MIX, "z": MIX}

    def infer(self, *, many: Array, **_: Any) -> Result:
        return {"y": many.mean(axis=1), "z": many.max(axis=1)}


@extension(inputs={"row": Feature("row/any", "FP32", (-1,))}, outputs={"row": Feature("row/cut", "FP32", (-1,))})
def cut(row: Array, to: int = 2) -> Array:
    """Keeps the first numbers of a row."""
    return row[:, :to]


@extension(inputs={"row": Feature("row/cut", "FP32", (3,))}, outputs={"sum": Feature("number/sum", "FP32")})
def total(row: Array) -> Array:
    """Adds three numbers."""
    return row.sum(axis=1)


@extension(inputs={"y": Feature("number/doubled", "FP32")}, outputs={"y": Feature("number/seen", "FP32")})
def as_is(y: Array) -> Array:
    """Hands a number on."""
    return y


class Closes(Extension):
    """Notes that it was closed, and may fail at that."""

    inputs = {"y": MIX}
    outputs = {"y": MIX}

    def __init__(self, fails: bool = False) -> None:
        self.closed = False
        self._fails = fails

    def infer(self, *, y: Array, **_: Any) -> Result:
        return y

    def close(self) -> None:
        self.closed = True
        if self._fails:
            raise OSError("stuck")


STAGES = (MIX, *(Feature(f"mix-{i}", "FP32", (WIDTH,)) for i in (1, 2, 3)))


class Stage(Extension):
    """One stage of a chain, never in the gateway's own process."""

    resources = Resources(placement="remote")
    number: int

    def setup(self) -> None:
        self._weights = np.random.default_rng(self.number).normal(size=(WIDTH, WIDTH)).astype(np.float32)

    def infer(self, *, x: Array, **_: Any) -> Result:
        return np.tanh(x @ self._weights)


class Stage1(Stage):
    number, inputs, outputs = 1, {"x": STAGES[0]}, {"x": STAGES[1]}


class Stage2(Stage):
    """The one that says how sure it is; the next inherits that."""

    number, inputs, outputs = 2, {"x": STAGES[1]}, {"x": STAGES[2]}

    def infer(self, *, x: Array, **_: Any) -> Result:
        made = np.tanh(x @ self._weights)
        return Scored(made, 0.5 + made[:, 0] / 2)


class Stage3(Stage):
    number, inputs, outputs = 3, {"x": STAGES[2]}, {"x": STAGES[3]}


class Frail(Stage1):
    """The first stage, unless the first number of a row tells it to fail (`tests/faulty.py`)."""

    def infer(self, *, x: Array, **_: Any) -> Result:
        faulty.moody_double.function(x[:, 0])
        return np.tanh(x @ self._weights)
