"""Versions of one extension, for the tests of rollouts: good ones and bad ones."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from deployments.extension import Extension
from planner.cards import Card, Resources
from planner.features import Array, Feature

NUMBER, PARITY = Feature("number/plain", "FP32"), Feature("label/parity", "INT64")


class Parity(Extension):
    """Whether a whole number is odd. Of the numbers from 100 on it errs on the share `wrong` and raises on the share
    `failing`; `slow_ms` is what a call takes longer. With `always_wrong_type` it gives numbers of another type."""

    name = "parity"
    inputs = {"x": NUMBER}
    outputs = {"odd": PARITY}
    resources = Resources(placement="remote")

    def __init__(
        self, wrong: float = 0.0, failing: float = 0.0, slow_ms: float = 0.0, always_wrong_type: bool = False
    ) -> None:
        self._wrong, self._failing, self._slow_ms = wrong, failing, slow_ms
        self._type = np.float64 if always_wrong_type else np.int64

    def infer(self, x: Array) -> Array:
        # The same for the same number, and beyond what the contract tries.
        drawn = np.where(x < 100.0, 1.0, np.modf(x * 0.6180339887)[0])
        if (drawn < self._failing).any():
            raise RuntimeError("it fails on such numbers")
        if self._slow_ms:
            time.sleep(self._slow_ms / 1e3)
        odd = x.astype(np.int64) % 2
        return np.where(drawn < self._wrong, 1 - odd, odd).astype(self._type)


def parity(version: str, **options: Any) -> Card:
    """The card of a version, as `deploy` takes it."""
    from deployments.loading import describe

    return describe("tests.trying:Parity", options).but(version=version)
