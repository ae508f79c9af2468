"""Repair vectors: the parameters of a healthy ancestor minus those of the drifted version, and steps along them.

The arithmetic is that of task vectors (Ilharco et al. 2023, ICLR, Editing models with task arithmetic).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from repair.errors import NoParameterSpace, ParametersDiffer, RepairRefused, WeightsBroken

Array = npt.NDArray[Any]
Parameters = Mapping[str, Array]  # tensors by name, as in a state dict
Scales = float | Mapping[str, float]  # one for the whole model, or one per layer

_TOLD = 3  # names in a message
_VARIANCE = "running_var"  # of batch norm: it may not become negative beyond the ends
_LEAST_VARIANCE = 1e-6


@dataclass(frozen=True, slots=True)
class RepairVector:
    """`ancestor - drifted` for every tensor of floats; `layers` are the layers that differ at all, in order."""

    tensors: Parameters
    layers: tuple[str, ...]

    @property
    def norm(self) -> float:
        """Euclidean length over all tensors."""
        return float(np.sqrt(sum(float(np.sum(np.square(t, dtype=np.float64))) for t in self.tensors.values())))

    def norms(self) -> dict[str, float]:
        """Euclidean length per layer."""
        squares = dict.fromkeys(self.layers, 0.0)
        for name, tensor in self.tensors.items():
            if layer_of(name) in squares:
                squares[layer_of(name)] += float(np.sum(np.square(tensor, dtype=np.float64)))
        return {layer: float(np.sqrt(square)) for layer, square in squares.items()}


def layer_of(name: str) -> str:
    """The layer that a tensor belongs to: its name up to the last dot (`body.0.weight` is of `body.0`)."""
    return name.rpartition(".")[0]


def repair_vector(ancestor: Parameters, drifted: Parameters) -> RepairVector:
    """The vector that leads from the drifted version to its ancestor.

    Whole numbers have no points between them: counters (tensors of one number) stay those of the drifted version.
    Raises what `check_same_space` raises.
    """
    check_same_space(ancestor, drifted)
    tensors = {name: _wide(ancestor[name]) - _wide(tensor) for name, tensor in drifted.items() if _floating(tensor)}
    moved = dict.fromkeys(layer_of(name) for name, tensor in tensors.items() if np.any(tensor))
    return RepairVector(tensors, tuple(moved))


def apply(drifted: Parameters, vector: RepairVector, scale: Scales) -> dict[str, Array]:
    """`drifted + scale * vector`, as new arrays of the same dtypes; layers that `scale` does not name stay as they are.

    Raises RepairRefused for a scale that is not finite or names an unknown layer, ParametersDiffer where the vector was
    made for other parameters.
    """
    if isinstance(scale, Mapping):
        unknown = sorted(set(scale) - {layer_of(name) for name in drifted})
        if unknown:
            raise RepairRefused(f"there is no layer {unknown[0]!r} in the model.")
    if not np.all(np.isfinite(list(scale.values()) if isinstance(scale, Mapping) else [scale])):
        raise RepairRefused("a scale is a finite number.")
    made = {}
    for name, tensor in drifted.items():
        by = scale.get(layer_of(name), 0.0) if isinstance(scale, Mapping) else scale
        step = vector.tensors.get(name)
        if step is None or by == 0.0:
            made[name] = tensor.copy()
            continue
        if step.shape != tensor.shape:
            raise ParametersDiffer(f"the vector was made for another {name}: {step.shape} is not {tensor.shape}.")
        moved = _wide(tensor) + by * step
        if name.endswith(_VARIANCE):
            moved = np.maximum(moved, _LEAST_VARIANCE)
        made[name] = moved.astype(tensor.dtype)
    return made


def check_same_space(ancestor: Parameters, drifted: Parameters) -> None:
    """Raises NoParameterSpace where a version has no tensors of floats, ParametersDiffer where names, shapes or dtypes
    differ or tensors of whole numbers have other values (quantised), WeightsBroken where a value is not finite."""
    for title, parameters in (("ancestor", ancestor), ("drifted version", drifted)):
        if not any(_floating(tensor) and tensor.size for tensor in parameters.values()):
            raise NoParameterSpace(
                f"the {title} has no parameters that could be moved.", hint="Roll back, or let the lineage vote."
            )
    hint = "It was pruned, quantised or distilled in between: roll back, or let the lineage vote."
    for missing, title in (
        (set(drifted) - set(ancestor), "ancestor"),
        (set(ancestor) - set(drifted), "drifted version"),
    ):
        if missing:
            raise ParametersDiffer(f"the {title} lacks {_listed(missing)}.", hint=hint)
    for name, tensor in drifted.items():
        other = ancestor[name]
        if other.shape != tensor.shape or other.dtype != tensor.dtype:
            said = f"{other.dtype}{list(other.shape)} in the ancestor, {tensor.dtype}{list(tensor.shape)} now"
            raise ParametersDiffer(f"{name} is {said}.", hint=hint)
        if not _floating(tensor) and tensor.size > 1 and not np.array_equal(other, tensor):
            raise ParametersDiffer(f"{name} has whole numbers that differ, and there is nothing between.", hint=hint)
    check_finite(ancestor, "ancestor")
    check_finite(drifted, "drifted version")


def check_finite(parameters: Parameters, title: str) -> None:
    """Raises WeightsBroken, naming the tensors with NaN or infinite values; `title` is whose they are."""
    broken = [name for name, tensor in parameters.items() if _floating(tensor) and not np.all(np.isfinite(tensor))]
    if broken:
        raise WeightsBroken(f"{_listed(broken)} of the {title} is not finite.", hint="Take another ancestor.")


def _floating(tensor: Array) -> bool:
    return tensor.dtype.kind == "f"


def _wide(tensor: Array) -> Array:
    """Half precision would lose small differences."""
    return tensor.astype(np.float32) if tensor.dtype == np.float16 else tensor


def _listed(names: Iterable[str]) -> str:
    known = sorted(names)
    more = f" and {len(known) - _TOLD} more" if len(known) > _TOLD else ""
    return ", ".join(known[:_TOLD]) + more
