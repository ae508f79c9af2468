"""Extensions that misbehave on request, for the end-to-end tests: the value of a row says how."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from pathlib import Path
from typing import Any

import numpy as np

from deployments.extension import Extension, extension
from planner.cards import Resources
from planner.features import Array, Feature

NUMBER, DOUBLED = Feature("number/plain", "FP32"), Feature("number/doubled", "FP32")
RAISE, WRONG_LENGTH, DIE, HANG = 101.0, 102.0, 103.0, 104.0


@extension(inputs={"x": NUMBER}, outputs={"y": DOUBLED}, name="moody-double")
def moody_double(x: Array) -> Array:
    """Doubles a number, unless the number tells it to fail."""
    if (x == RAISE).any():
        raise RuntimeError("told to raise")
    if (x == WRONG_LENGTH).any():
        return np.concatenate([x, x])
    if (x == DIE).any():
        os.kill(os.getpid(), signal.SIGKILL)
    if (x == HANG).any():
        threading.Event().wait(20.0)
    return x * 2


@extension(inputs={"x": NUMBER}, outputs={"y": DOUBLED}, name="steady-double", cost=5.0)
def steady_double(x: Array) -> Array:
    """Doubles a number, always, and costs more."""
    return x * 2


@extension(inputs={"x": NUMBER}, outputs={"y": Feature("number/measured", "FP32")}, name="measured-double")
def measured_double(x: Array) -> Array:
    """Doubles a number, or raises if that tells it to; what it makes, nothing else does."""
    if (x == RAISE).any():
        raise RuntimeError("told to raise")
    return x * 2


@extension(inputs={"x": Feature("blob", "FP32", (-1,))}, outputs={"x": Feature("blob/passed", "FP32", (-1,))})
def pass_on(x: Array) -> Array:
    """Hands rows of any length on."""
    return x


@extension(inputs={"x": Feature("blob/passed", "FP32", (-1,))}, outputs={"total": Feature("number/total", "FP64")})
def total(x: Array) -> Array:
    """Adds a row up."""
    return x.sum(axis=1, dtype=np.float64)


class NeverStarts(Extension):
    """Breaks while it loads."""

    inputs = {"x": NUMBER}
    outputs = {"y": DOUBLED}

    def setup(self) -> None:
        raise OSError("the weights are gone")

    def infer(self, *, x: Array, **_: Any) -> Array:
        return x


@extension(inputs={"x": NUMBER}, outputs={"y": DOUBLED}, name="mutable")
def depends_on_batch(x: Array) -> Array:
    """Breaks the contract: a row's answer depends on its neighbours."""
    return x - x.mean()


class SlowOnce(Extension):
    """Gives numbers back, from one of two replicas. The first call that finds a file named `slow` in `folder` takes it
    away and answers 5 s later."""

    name = "slow-once"
    inputs = {"x": NUMBER}
    outputs = {"y": Feature("number/given-back", "FP32")}
    resources = Resources(num_cpus=0, min_replicas=2, max_replicas=2, placement="remote")

    def __init__(self, folder: str) -> None:
        self._slow = Path(folder) / "slow"

    def infer(self, *, x: Array, **_: Any) -> Array:
        with contextlib.suppress(FileNotFoundError):
            self._slow.unlink()
            threading.Event().wait(5.0)
        return x
