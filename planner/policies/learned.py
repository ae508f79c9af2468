"""Learned: a small network that was trained by reinforcement learning on the simulator, and goes on learning.

`training.py` makes the weights (`learned.json`); numpy is all that is needed to run them.
"""

from __future__ import annotations

import json
import math
import random
from functools import cache
from importlib.resources import files

import numpy as np
import numpy.typing as npt

from planner.policies.call_times import CallTimes
from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState

WEIGHTS = "learned.json"
N_FEATURES = 11
N_ACTIONS = 5  # all, what meets the first deadline, what ends in half of it, wait for enough, wait for twice that
_GRID = 16.0  # features are rounded to this part of 1, so that the same answer need not be computed again
_MOST_KEPT = 8192
_EXPLORE = 0.02  # share of decisions in which the second best is tried
_RATE = 0.05  # of the online update
_MOST_OFFSET = 1.0

Layers = tuple[tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]], ...]


def features(state: QueueState, times: CallTimes) -> tuple[float, ...]:
    """What the network sees, shape (N_FEATURES,): pure numbers around -1..1, the same at every time scale."""
    n_waiting, n_slots, n_others = state.n_waiting_rows, state.n_slots, state.n_in_flight
    rate_per_ms, parallel = state.arrival_rate_per_s / 1e3, times.parallel(n_slots)
    busy = min(rate_per_ms * times.per_row_ms / parallel, 2.0)
    enough = min(times.enough_rows(rate_per_ms, parallel), state.max_rows)
    most = math.log1p(state.max_rows)
    takes_ms = max(times.expected_ms(n_waiting, n_others), 1e-3)
    cpu, gpu = state.cpu_share, state.gpu_share
    return (
        math.log1p(n_waiting) / most,
        busy - 0.5,
        math.log1p(enough) / most,
        _log((1.0 + n_waiting) / (1.0 + enough)),
        _log(state.least_slack_ms / takes_ms),
        _log((state.oldest_wait_ms + 1e-3) / takes_ms),
        n_others / n_slots,
        min(times.contention, 1.5),
        min(times.spread, 1.0),
        cpu if cpu == cpu else 0.5,
        gpu if gpu == gpu else 0.5,
    )


def _log(ratio: float) -> float:
    """A ratio between 1/20 and 20 on a scale from -1 to 1."""
    return -1.0 if ratio <= 0.05 else 1.0 if ratio >= 20.0 else math.log(ratio) / 2.9957322735539909


def wish(action: int, state: QueueState, times: CallTimes) -> tuple[int, float]:
    """What an action means here: most rows, ms to wait."""
    if action == 0:
        return state.max_rows, 0.0
    n_others = state.n_in_flight
    if action <= 2:
        budget_ms = state.least_slack_ms / (1.0 + times.spread)
        if action == 2:
            budget_ms = 0.5 * (state.oldest_wait_ms + state.least_slack_ms)
        return int(min(max(times.rows_within(budget_ms, n_others), 1.0), state.max_rows)), 0.0
    rate_per_ms = state.arrival_rate_per_s / 1e3
    enough = times.enough_rows(rate_per_ms, times.parallel(state.n_slots))
    target = int(min(enough if action == 3 else 2.0 * enough, state.max_rows))
    missing = target - state.n_waiting_rows
    if missing <= 0:
        return state.max_rows, 0.0
    patience_ms = 2.0 * times.expected_ms(target, n_others) - state.oldest_wait_ms
    return state.max_rows, min(missing / rate_per_ms, patience_ms)


def scores(layers: Layers, seen: tuple[float, ...]) -> list[float]:
    """The network: tanh between the layers, one score per action out of the last."""
    x = np.array(seen)
    for weight, bias in layers[:-1]:
        x = np.tanh(weight @ x + bias)
    weight, bias = layers[-1]
    return (weight @ x + bias).tolist()  # type: ignore[no-any-return]


@cache
def trained() -> Layers:
    """The shipped weights: per layer a matrix (n_out, n_in) and a bias (n_out,)."""
    kept = json.loads((files("planner.policies") / WEIGHTS).read_text())
    return tuple((np.array(layer["weight"]), np.array(layer["bias"])) for layer in kept["layers"])


class Learned(BatchPolicy):
    """Takes the action that the network scores highest, with an offset per action that is learned online.

    The offsets are a light actor update: what an action brought (the share of rows in time, dropped ones counted)
    against a moving mean moves its offset, within +-1, and two decisions in a hundred try the second best.
    """

    name = "learned"

    def __init__(
        self, seed: int = 0, fixed_ms: float = 0.0, per_row_ms: float = 0.0, layers: Layers | None = None
    ) -> None:
        super().__init__(seed, fixed_ms, per_row_ms)
        self._rng = random.Random(seed)
        self._layers = trained() if layers is None else layers
        self._kept: dict[tuple[int, ...], list[float]] = {}
        self._offsets = [0.0] * N_ACTIONS
        self._action = 0
        self._usual = 1.0

    def _wish(self, state: QueueState) -> tuple[int, float]:
        if self.times.n_calls == 0:
            return state.max_rows, 0.0
        key = tuple([round(_GRID * value) for value in features(state, self.times)])
        found = self._kept.get(key)
        if found is None:
            if len(self._kept) >= _MOST_KEPT:
                self._kept.clear()
            found = self._kept[key] = scores(self._layers, tuple([value / _GRID for value in key]))
        now = [score + offset for score, offset in zip(found, self._offsets, strict=True)]
        action = now.index(max(now))
        if self._rng.random() < _EXPLORE:
            now[action] = -math.inf
            action = now.index(max(now))
        self._action = action
        return wish(action, state, self.times)

    def _learn(self, outcome: BatchOutcome) -> None:
        missed = outcome.n_late_rows + outcome.n_dropped_rows
        reward = 1.0 - missed / (outcome.n_rows + outcome.n_dropped_rows)
        better = reward - self._usual
        self._usual += 0.05 * better
        offset = self._offsets[self._action] + _RATE * better
        self._offsets[self._action] = max(-_MOST_OFFSET, min(_MOST_OFFSET, offset))
