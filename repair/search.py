"""How far to go along a repair vector: by validation, per whole model and per layer, with a look for loss barriers.

Between two versions that grew from one another the loss is usually flat (linear mode connectivity: Frankle et al. 2020,
ICML; Garipov et al. 2018, NeurIPS). Where it is not, the points between them belong to neither, and layers are not
moved one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from repair.errors import RepairRefused
from repair.vectors import Parameters, RepairVector, Scales, apply

Loss = Callable[[Parameters], float]  # over validation rows; lower is better

GRID = (0.0, 0.25, 0.5, 0.75, 1.0)
_GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0


@dataclass(frozen=True, slots=True)
class SearchPlan:
    """How a scale is searched: at all points of `grid`, then with `n_refine` points around the best, then layer by
    layer with steps of `layer_steps`, until `n_evaluations` in all. `barrier` is how much the loss may rise above the
    straight line between both ends, relative to the higher end."""

    grid: tuple[float, ...] = GRID
    n_refine: int = 3
    layer_steps: tuple[float, ...] = (0.5,)
    n_evaluations: int = 18
    barrier: float = 0.1

    def __post_init__(self) -> None:
        if not {0.0, 1.0} <= set(self.grid) or list(self.grid) != sorted(set(self.grid)):
            raise RepairRefused("a grid of scales rises, and has 0 and 1 in it.")
        if self.n_evaluations < len(self.grid):
            raise RepairRefused(f"{self.n_evaluations} evaluations are too few for a grid of {len(self.grid)}.")


@dataclass(frozen=True, slots=True)
class Barrier:
    """How far the loss rises above the straight line between both ends, and at which scale; `is_high` says whether that
    is more than the plan allows."""

    height: float
    at_scale: float
    is_high: bool


@dataclass(frozen=True, slots=True)
class Found:
    """The best point: `whole` for the whole model; `per_layer` where moving layers one by one was better still.

    `path` are the scales of the whole model that were tried, with their losses; `loss` is the best of all, at `scales`.
    """

    whole: float
    per_layer: Mapping[str, float] | None
    loss: float
    path: tuple[tuple[float, float], ...]
    barrier: Barrier
    n_evaluations: int

    @property
    def scales(self) -> Scales:
        return self.whole if self.per_layer is None else self.per_layer

    def plain(self) -> dict[str, Any]:
        """As JSON has it; a loss that is not finite is None."""
        return {
            "whole": self.whole,
            "per_layer": None if self.per_layer is None else dict(self.per_layer),
            "loss": _plain(self.loss),
            "path": [[scale, _plain(loss)] for scale, loss in self.path],
            "barrier": {
                "height": _plain(self.barrier.height),
                "at_scale": self.barrier.at_scale,
                "is_high": self.barrier.is_high,
            },
            "n_evaluations": self.n_evaluations,
        }


@dataclass(slots=True)
class _Counted:
    """A loss that counts how often it is asked; what is not a number is infinitely bad."""

    loss: Loss
    most: int
    n: int = 0
    known: dict[float, float] = field(default_factory=dict)

    @property
    def left(self) -> int:
        return self.most - self.n

    def __call__(self, parameters: Parameters) -> float:
        self.n += 1
        value = float(self.loss(parameters))
        return value if math.isfinite(value) else math.inf


def search(drifted: Parameters, vector: RepairVector, loss: Loss, plan: SearchPlan | None = None) -> Found:
    """The scale with the lowest loss.

    `loss` is asked at most `plan.n_evaluations` times. Of equal points the one nearest to the drifted version is
    taken. Raises RepairRefused where the loss is not finite at any point.
    """
    plan = plan or SearchPlan()
    ask = _Counted(loss, plan.n_evaluations)

    def at(scale: float) -> float:
        if scale not in ask.known:
            ask.known[scale] = ask(apply(drifted, vector, scale))
        return ask.known[scale]

    for scale in plan.grid:
        at(scale)
    barrier = barrier_of(sorted(ask.known.items()), plan.barrier)
    best = _best(ask.known)
    if not math.isfinite(ask.known[best]):
        raise RepairRefused("the loss is not finite anywhere between the drifted version and its ancestor.")
    _narrow(at, plan.grid, best, min(plan.n_refine, ask.left))
    best = _best(ask.known)
    path = tuple(sorted(ask.known.items()))
    per_layer, lowest = None, ask.known[best]
    if not barrier.is_high and len(vector.layers) > 1:
        per_layer, lowest = _by_layer(drifted, vector, ask, best, plan)
    return Found(best, per_layer, lowest, path, barrier, ask.n)


def barrier_of(path: Sequence[tuple[float, float]], allowed: float) -> Barrier:
    """The barrier on a path of (scale, loss) from 0 to 1: the most that the loss rises above the straight line
    between the ends. Source: Frankle et al. 2020, ICML, section 2, there against the mean of the ends."""
    losses = dict(path)
    first, last = losses[0.0], losses[1.0]
    height, at_scale = 0.0, 0.0
    if not (math.isfinite(first) and math.isfinite(last)):
        return Barrier(math.inf, 0.0 if not math.isfinite(first) else 1.0, True)
    for scale, loss in path:
        above = loss - ((1.0 - scale) * first + scale * last)
        if 0.0 < scale < 1.0 and above > height:
            height, at_scale = above, scale
    return Barrier(height, at_scale, height > allowed * max(first, last))


def _best(known: Mapping[float, float]) -> float:
    return min(known, key=lambda scale: (known[scale], scale))


def _narrow(at: Callable[[float], float], grid: Sequence[float], best: float, n: int) -> None:
    """Golden-section steps between the neighbours of the best point of the grid (Kiefer 1953)."""
    place = grid.index(best)
    low, high = grid[max(0, place - 1)], grid[min(len(grid) - 1, place + 1)]
    for k in range(n):
        inner = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        # One new point a step: the other was asked for before, or lies on the side that is dropped.
        chosen = inner[k % 2]
        value = at(chosen)
        if chosen < best:
            low, high, best = (low, best, chosen) if value < at(best) else (chosen, high, best)
        else:
            low, high, best = (best, high, chosen) if value < at(best) else (low, chosen, best)


def _by_layer(
    drifted: Parameters, vector: RepairVector, ask: _Counted, whole: float, plan: SearchPlan
) -> tuple[dict[str, float] | None, float]:
    """Coordinate steps: each layer further and less far, kept where the loss falls. Returns the scales per layer, None
    where none was better, and the loss."""
    scales, lowest = dict.fromkeys(vector.layers, whole), ask.known[whole]
    better = False
    for step in plan.layer_steps:
        for layer in vector.layers:
            for by in (step, -step):
                tried = min(plan.grid[-1], max(plan.grid[0], scales[layer] + by))
                if tried == scales[layer] or not ask.left:
                    continue
                value = ask(apply(drifted, vector, {**scales, layer: tried}))
                if value < lowest:
                    scales[layer], lowest, better = tried, value, True
                    break
    return (scales if better else None), lowest


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None
