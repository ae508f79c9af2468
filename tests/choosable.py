"""Two extensions for one goal, for the end-to-end tests of choosing: they read a number each in their own way."""

from __future__ import annotations

import numpy as np

from deployments.extension import extension
from planner.cards import Accuracy
from planner.features import Array, Feature

NUMBER, ROUNDED = Feature("number/measured", "FP32"), Feature("label/rounded", "INT64")


@extension(inputs={"x": NUMBER}, outputs={"y": ROUNDED}, name="round-up", accuracy=Accuracy(0.95, 200))
def round_up(x: Array) -> Array:
    """What its card promises most of."""
    return np.ceil(x).astype(np.int64)


@extension(inputs={"x": NUMBER}, outputs={"y": ROUNDED}, name="round-down", accuracy=Accuracy(0.9, 200))
def round_down(x: Array) -> Array:
    """Promises less."""
    return np.floor(x).astype(np.int64)
