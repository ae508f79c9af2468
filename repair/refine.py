"""Small steps with a few labels, from the best point that is known: the last layer alone, or all layers in low rank.

Both are pulled back to where they began (Li, Grandvalet and Davoine 2018, ICML: L2-SP), stop early, and are refused
when they leave the finite numbers. Low rank: Hu et al. 2022, ICLR (LoRA); the last layer: Kirichenko, Izmailov and
Wilson 2023, ICLR (last-layer retraining is enough).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from repair.errors import Diverged, NoParameterSpace, TruthLacking
from repair.torch_model import TorchModel, as_rows, as_tensors
from repair.vectors import Array, Parameters, check_finite

Kind = Literal["last_layer", "low_rank"]


@dataclass(frozen=True, slots=True)
class RefinePlan:
    """How labels are used: at most `n_steps` steps of Adam over all rows at once, `step_size` each, looked at every
    `look_every`; it stops when `patience` looks in a row brought no lower loss on the rows that are set aside, a share
    of `aside`. `pull` weighs the squared distance from the start. `rank` is of the changes to each matrix."""

    kind: Kind = "low_rank"
    n_steps: int = 60
    step_size: float = 0.01
    pull: float = 1e-3
    rank: int = 8
    aside: float = 0.2
    look_every: int = 5
    patience: int = 3


@dataclass(frozen=True, slots=True)
class Refinement:
    """The best parameters on the way. `losses` are those on the rows set aside, from the start on."""

    parameters: dict[str, Array]
    kind: str
    n_steps: int
    losses: tuple[float, ...]
    stopped_early: bool

    def plain(self) -> dict[str, Any]:
        """As JSON has it, without the parameters."""
        return {
            "kind": self.kind,
            "n_steps": self.n_steps,
            "losses": list(self.losses),
            "stopped_early": self.stopped_early,
        }


def refine(
    model: TorchModel, start: Parameters, rows: Array, labels: Array, plan: RefinePlan, *, seed: int
) -> Refinement:
    """Refines with labelled rows, shape (n, ...) and (n,); the same seed gives the same parameters.

    The start comes back where nothing was better. Raises TruthLacking for fewer than two rows, NoParameterSpace where
    the last layer is asked for and there is none, WeightsBroken for a start that is not finite, Diverged where the loss
    does not stay finite.
    """
    check_finite(start, "start")
    labels = np.asarray(labels, dtype=np.int64)
    if len(rows) < 2:
        raise TruthLacking("a refinement takes at least two labelled rows.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(rows), generator=generator)
    n_aside = min(len(rows) - 1, max(1, round(plan.aside * len(rows))))
    aside, used = order[:n_aside], order[n_aside:]
    given, truths = as_rows(rows), torch.as_tensor(labels)
    tensors = as_tensors(start)
    if plan.kind == "last_layer":
        if model.last_layer is None:
            raise NoParameterSpace("the model has no last linear layer.", hint="Refine in low rank.")
        with torch.no_grad():
            given = model.before_last(tensors, given).clone()
        changes: _Changes = _LastLayer(tensors, model.last_layer)
    else:
        changes = _LowRank(model, tensors, plan.rank, generator)
    return _descend(model, start, changes, (given, truths), (used, aside), plan)


def one_epoch(
    model: TorchModel,
    start: Parameters,
    rows: Array,
    labels: Array,
    *,
    seed: int,
    step_size: float = 0.005,
    batch_rows: int = 16,
) -> dict[str, Array]:
    """All parameters fine-tuned for one epoch of Adam over the labelled rows: what a repair has to beat.

    Statistics of batch norm stay. Raises as `refine` does.
    """
    check_finite(start, "start")
    if len(rows) < 2:
        raise TruthLacking("a fine-tune takes at least two labelled rows.")
    generator = torch.Generator().manual_seed(seed)
    given, truths = as_rows(rows), torch.as_tensor(np.asarray(labels, dtype=np.int64))
    tensors = as_tensors({name: array.copy() for name, array in start.items()})
    free = {name: tensors[name].requires_grad_() for name in _trained(model, tensors)}
    optimiser = torch.optim.Adam(free.values(), lr=step_size)
    for batch in torch.split(torch.randperm(len(given), generator=generator), batch_rows):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model.call(tensors, given[batch]), truths[batch])
        _check(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    made = {name: tensor.detach().numpy() for name, tensor in tensors.items()}
    _check_reached(made)
    return made


class _Changes:
    """What is learned, and the tensors that it makes of the start."""

    free: list[torch.Tensor]

    def logits(self, model: TorchModel, given: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def distance(self) -> torch.Tensor:
        """Squared, from the start."""
        raise NotImplementedError

    def parameters(self) -> Mapping[str, torch.Tensor]:
        """The tensors that are no longer those of the start."""
        raise NotImplementedError


class _LastLayer(_Changes):
    """Weight and bias of the last layer; what goes in is computed once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], layer: str) -> None:
        names = [f"{layer}.weight", f"{layer}.bias"]
        self._start = {name: tensors[name] for name in names if name in tensors}
        self._deltas = {name: torch.zeros_like(t).requires_grad_() for name, t in self._start.items()}
        self._names = names
        self.free = list(self._deltas.values())

    def logits(self, model: TorchModel, given: torch.Tensor) -> torch.Tensor:
        now = self.parameters()
        return nn.functional.linear(given, now[self._names[0]], now.get(self._names[1]))

    def distance(self) -> torch.Tensor:
        return torch.stack([delta.square().sum() for delta in self.free]).sum()

    def parameters(self) -> Mapping[str, torch.Tensor]:
        return {name: tensor + self._deltas[name] for name, tensor in self._start.items()}


class _LowRank(_Changes):
    """For each matrix (and kernel, as a matrix) a product of two thin ones that begins at zero; vectors as a whole."""

    def __init__(
        self, model: TorchModel, tensors: Mapping[str, torch.Tensor], rank: int, generator: torch.Generator
    ) -> None:
        self._tensors = tensors
        self._thin: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._whole: dict[str, torch.Tensor] = {}
        for name in _trained(model, tensors):
            tensor = tensors[name]
            flat = tensor.reshape(len(tensor), -1) if tensor.ndim > 1 else None
            if flat is None or min(flat.shape) <= rank:
                self._whole[name] = torch.zeros_like(tensor).requires_grad_()
                continue
            right = torch.randn(rank, flat.shape[1], generator=generator) / math.sqrt(rank)
            left = torch.zeros(flat.shape[0], rank)
            self._thin[name] = (left.requires_grad_(), right.to(tensor.dtype).requires_grad_())
        self.free = [*self._whole.values(), *(part for pair in self._thin.values() for part in pair)]

    def logits(self, model: TorchModel, given: torch.Tensor) -> torch.Tensor:
        return model.call({**self._tensors, **self.parameters()}, given)

    def _deltas(self) -> dict[str, torch.Tensor]:
        thin = {n: (left @ right).reshape(self._tensors[n].shape) for n, (left, right) in self._thin.items()}
        return {**self._whole, **thin}

    def distance(self) -> torch.Tensor:
        return torch.stack([delta.square().sum() for delta in self._deltas().values()]).sum()

    def parameters(self) -> Mapping[str, torch.Tensor]:
        return {name: self._tensors[name] + delta for name, delta in self._deltas().items()}


def _descend(
    model: TorchModel,
    start: Parameters,
    changes: _Changes,
    data: tuple[torch.Tensor, torch.Tensor],
    split: tuple[torch.Tensor, torch.Tensor],
    plan: RefinePlan,
) -> Refinement:
    (given, truths), (used, aside) = data, split

    def looked() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(changes.logits(model, given[aside]), truths[aside]))

    def kept() -> dict[str, Array]:
        return {name: tensor.detach().numpy().copy() for name, tensor in changes.parameters().items()}

    losses = [looked()]
    _check(losses[0])
    best, changed, since = losses[0], kept(), 0
    optimiser = torch.optim.Adam(changes.free, lr=plan.step_size)
    step = 0
    for step in range(1, plan.n_steps + 1):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(changes.logits(model, given[used]), truths[used])
        loss = loss + plan.pull * changes.distance()
        _check(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % plan.look_every and step != plan.n_steps:
            continue
        losses.append(looked())
        _check(losses[-1])
        if losses[-1] < best:
            best, changed, since = losses[-1], kept(), 0
        else:
            since += 1
            if since >= plan.patience:
                break
    made = {name: changed[name] if name in changed else array.copy() for name, array in start.items()}
    _check_reached(made)
    return Refinement(made, plan.kind, step, tuple(losses), step < plan.n_steps)


def _trained(model: TorchModel, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of what is learned: parameters, not statistics."""
    known = {name for name, _ in model.module.named_parameters()}
    return [name for name, tensor in tensors.items() if name in known and tensor.is_floating_point()]


def _check(loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged("the loss is not finite any more.", hint="Lower the step size, or look at the labelled rows.")


def _check_reached(parameters: Parameters) -> None:
    if any(tensor.dtype.kind == "f" and not np.all(np.isfinite(tensor)) for tensor in parameters.values()):
        raise Diverged("the parameters are not finite any more.", hint="Lower the step size.")
