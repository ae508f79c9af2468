"""Small steps with a few labels from the best point that is known: the last layer, all layers in low rank, or all.

Older labelled rows of the lineage may be replayed beside the new ones, so that what was known is not forgotten
(Rolnick et al. 2019, NeurIPS); the parameters can be pulled back to where they began (Li, Grandvalet and Davoine 2018,
ICML: L2-SP). It stops early, and is refused when it leaves the finite numbers. Low rank: Hu et al. 2022, ICLR (LoRA);
the last layer: Kirichenko, Izmailov and Wilson 2023, ICLR.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import nn

from repair.errors import Diverged, NoParameterSpace, TruthLacking
from repair.torch_model import TorchModel, as_rows, as_tensors
from repair.vectors import Array, Parameters, check_finite

Kind = Literal["last_layer", "low_rank", "whole"]

_GATHERED = 16  # batches at once
_LEAST_NEW, _BATCHES = 8, 4  # rows in a batch, and batches an epoch: few rows take steps too


@dataclass(frozen=True, slots=True)
class LabelledRows:
    """Rows, shape (n, ...), and their labels as class numbers, shape (n,)."""

    rows: Array
    labels: Array

    def __len__(self) -> int:
        return len(self.rows)


@dataclass(frozen=True, slots=True)
class RefinePlan:
    """How labels are used: Adam with batches of `batch_rows`, of which a share of `replayed` are older rows where there
    are any, until each new row was seen `n_epochs` times; the step size falls from `step_size` to zero.

    Of the new rows a share of `aside` is looked at `n_looks` times on the way, and it stops when `patience` looks in a
    row brought nothing; steps are large at first, so a loss that rises in the beginning says little. `pull` weighs the
    squared distance from the start, `rank` is of the changes to each matrix. Networks with matrices of some thousand
    rows are refined in low rank; small ones are no cheaper so, and do better as a whole (`docs/repair.md`).
    """

    kind: Kind = "whole"
    n_epochs: float = 10.0
    step_size: float = 0.01
    batch_rows: int = 64
    replayed: float = 0.5
    pull: float = 0.0
    rank: int = 16
    aside: float = 0.15
    n_looks: int = 6
    patience: int = 4


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
    model: TorchModel,
    start: Parameters,
    fresh: LabelledRows,
    plan: RefinePlan | None = None,
    *,
    seed: int,
    replay: LabelledRows | None = None,
) -> Refinement:
    """Refines with labelled rows; the same seed gives the same parameters. Where nothing was better the start comes
    back.

    Batch norm learns its statistics from the batches on the way. Raises TruthLacking for fewer than two rows,
    NoParameterSpace where the last layer is asked for and there is none, WeightsBroken for a start that is not finite,
    Diverged where the loss or the parameters do not stay finite.
    """
    plan = plan or RefinePlan()
    check_finite(start, "start")
    if len(fresh) < 2:
        raise TruthLacking("a refinement takes at least two labelled rows.")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(fresh), generator=generator)
    n_aside = min(len(fresh) - 1, max(1, round(plan.aside * len(fresh))))
    new, aside = _Rows.of(fresh, order[n_aside:]), _Rows.of(fresh, order[:n_aside])
    old = _Rows.of(replay) if replay is not None and len(replay) else None
    tensors = as_tensors({name: array.copy() for name, array in start.items()})
    if plan.kind == "last_layer":
        if model.last_layer is None:
            raise NoParameterSpace("the model has no last linear layer.", hint="Refine in low rank.")
        new, aside = new.through(model, tensors), aside.through(model, tensors)
        old = old and old.through(model, tensors)
        changes: _Changes = _LastLayer(tensors, model.last_layer)
    elif plan.kind == "low_rank":
        changes = _LowRank(model, tensors, plan.rank, generator)
    else:
        changes = _Whole(model, start)
    best = _descend(changes, new, old, aside, plan, generator)
    made = {name: best.kept[name] if name in best.kept else array.copy() for name, array in start.items()}
    _check_reached(made)
    return Refinement(made, plan.kind, best.n_steps, tuple(best.losses), best.n_steps < best.most_steps)


def one_epoch(
    model: TorchModel,
    start: Parameters,
    fresh: LabelledRows,
    *,
    seed: int,
    step_size: float = 0.005,
    batch_rows: int = 32,
) -> dict[str, Array]:
    """All parameters fine-tuned for one epoch of Adam over the labelled rows: what a repair has to beat.

    Statistics of batch norm stay. Raises as `refine` does.
    """
    check_finite(start, "start")
    if len(fresh) < 2:
        raise TruthLacking("a fine-tune takes at least two labelled rows.")
    generator = torch.Generator().manual_seed(seed)
    given = _Rows.of(fresh)
    changes = _Whole(model, start)
    optimiser = torch.optim.Adam(changes.free, lr=step_size, fused=True)
    for batch in torch.split(torch.randperm(len(given.rows), generator=generator), batch_rows):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(changes.logits(given.rows[batch], False), given.labels[batch])
        _check(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    made = {name: tensor.detach().numpy().copy() for name, tensor in changes.tensors().items()}
    _check_reached(made)
    return made


@dataclass(frozen=True, slots=True)
class _Rows:
    """Labelled rows as tensors."""

    rows: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of(cls, given: LabelledRows, at: torch.Tensor | None = None) -> _Rows:
        rows, labels = as_rows(given.rows), torch.as_tensor(np.asarray(given.labels, dtype=np.int64))
        return cls(rows, labels) if at is None else cls(rows[at], labels[at])

    def through(self, model: TorchModel, tensors: Mapping[str, torch.Tensor]) -> _Rows:
        """What of these rows goes into the last layer."""
        with torch.no_grad():
            return _Rows(model.before_last(tensors, self.rows).clone(), self.labels)


class _Changes:
    """What is learned, what it makes of rows, and the tensors that are no longer those of the start."""

    free: list[torch.Tensor]

    def logits(self, rows: torch.Tensor, learning: bool) -> torch.Tensor:
        raise NotImplementedError

    def distance(self) -> torch.Tensor:
        """Squared, from the start."""
        raise NotImplementedError

    def tensors(self) -> Mapping[str, torch.Tensor]:
        raise NotImplementedError


class _LastLayer(_Changes):
    """Weight and bias of the last layer; what goes in is computed once."""

    def __init__(self, tensors: Mapping[str, torch.Tensor], layer: str) -> None:
        self._weight, self._bias = f"{layer}.weight", f"{layer}.bias"
        self._start = {name: tensors[name] for name in (self._weight, self._bias) if name in tensors}
        self._deltas = {name: torch.zeros_like(tensor).requires_grad_() for name, tensor in self._start.items()}
        self.free = list(self._deltas.values())

    def logits(self, rows: torch.Tensor, learning: bool) -> torch.Tensor:
        now = self.tensors()
        return nn.functional.linear(rows, now[self._weight], now.get(self._bias))

    def distance(self) -> torch.Tensor:
        return torch.stack([delta.square().sum() for delta in self.free]).sum()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return {name: tensor + self._deltas[name] for name, tensor in self._start.items()}


class _Whole(_Changes):
    """All parameters, in the place where the module has them."""

    def __init__(self, model: TorchModel, start: Parameters) -> None:
        self._model = model.spare.load(start)
        self.free = [parameter for parameter in self._model.module.parameters() if parameter.requires_grad]
        self._start = [tensor.detach().clone() for tensor in self.free]

    def logits(self, rows: torch.Tensor, learning: bool) -> torch.Tensor:
        self._model.learn_statistics(learning)
        logits: torch.Tensor = self._model.module(rows)
        return logits

    def distance(self) -> torch.Tensor:
        apart = [(now - start).square().sum() for now, start in zip(self.free, self._start, strict=True)]
        return torch.stack(apart).sum()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        return self._model.module.state_dict()


class _LowRank(_Changes):
    """For each matrix (and kernel, as a matrix) a product of two thin ones that begins at zero; all else as a whole."""

    def __init__(
        self, model: TorchModel, tensors: dict[str, torch.Tensor], rank: int, generator: torch.Generator
    ) -> None:
        self._model, self._tensors = model.spare, tensors
        self._thin: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
        self._whole: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # where it began, and where it is
        learned = _learned(model, tensors)
        for name in learned:
            tensor = tensors[name]
            n_columns = tensor[0].numel() if tensor.ndim > 1 else 0
            if min(len(tensor), n_columns) <= rank:
                self._whole[name] = tensor, tensor.clone().requires_grad_()
                continue
            right = torch.randn(rank, n_columns, generator=generator, dtype=tensor.dtype) / math.sqrt(rank)
            self._thin[name] = (
                torch.zeros(len(tensor), rank, dtype=tensor.dtype).requires_grad_(),
                right.requires_grad_(),
            )
        self._rest = {name: tensor for name, tensor in tensors.items() if name not in learned}
        self.free = [now for _, now in self._whole.values()] + [part for pair in self._thin.values() for part in pair]

    def logits(self, rows: torch.Tensor, learning: bool) -> torch.Tensor:
        self._model.learn_statistics(learning)
        return self._model.call(self.tensors(), rows)

    def distance(self) -> torch.Tensor:
        parts = [(now - start).square().sum() for start, now in self._whole.values()]
        parts += [(left @ right).square().sum() for left, right in self._thin.values()]
        return torch.stack(parts).sum()

    def tensors(self) -> Mapping[str, torch.Tensor]:
        made = {name: now for name, (_, now) in self._whole.items()}
        for name, (left, right) in self._thin.items():
            start = self._tensors[name]
            made[name] = start + (left @ right).reshape(start.shape)
        return {**self._rest, **made}


@dataclass(slots=True)
class _Best:
    """The best on the way down."""

    kept: dict[str, Array]
    losses: list[float]
    n_steps: int = 0
    most_steps: int = 0


def _descend(
    changes: _Changes,
    new: _Rows,
    old: _Rows | None,
    aside: _Rows,
    plan: RefinePlan,
    generator: torch.Generator,
) -> _Best:
    def looked() -> float:
        with torch.no_grad():
            loss = float(nn.functional.cross_entropy(changes.logits(aside.rows, False), aside.labels))
        _check(loss)
        return loss

    def kept() -> dict[str, Array]:
        return {name: tensor.detach().numpy().copy() for name, tensor in changes.tensors().items()}

    best = _Best(kept(), [looked()])
    lowest, since = best.losses[0], 0
    optimiser = torch.optim.Adam(changes.free, lr=plan.step_size, fused=True)
    n_steps, batches = _batches(new, old, plan, generator)
    best.most_steps = n_steps
    every = max(1, n_steps // plan.n_looks)
    for step, (rows, labels) in enumerate(batches, 1):
        for group in optimiser.param_groups:
            group["lr"] = plan.step_size * (1.0 - (step - 1) / n_steps)
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(changes.logits(rows, len(rows) > 1), labels)
        if plan.pull:
            loss = loss + plan.pull * changes.distance()
        _check(float(loss.detach()))
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        best.n_steps = step
        if step % every and step != n_steps:
            continue
        best.losses.append(looked())
        if best.losses[-1] < lowest:
            lowest, best.kept, since = best.losses[-1], kept(), 0
        else:
            since += 1
            if since >= plan.patience:
                break
    return best


def _batches(
    new: _Rows, old: _Rows | None, plan: RefinePlan, generator: torch.Generator
) -> tuple[int, Iterator[tuple[torch.Tensor, torch.Tensor]]]:
    """How many batches there are, and the batches: all new rows equally often, the older ones by chance.

    Some are gathered at once, which takes a tenth of the time of gathering one by one.
    """
    fresh = 1.0 if old is None else 1.0 - plan.replayed
    n_new = min(len(new.rows), round(plan.batch_rows * fresh), max(_LEAST_NEW, len(new.rows) // _BATCHES))
    n_old = round(n_new * (1.0 - fresh) / fresh)
    n_steps = max(1, round(plan.n_epochs * len(new.rows) / n_new))

    def made() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        n_rounds = -(-n_steps * n_new // len(new.rows))
        order = torch.cat([torch.randperm(len(new.rows), generator=generator) for _ in range(n_rounds)])
        for first in range(0, n_steps, _GATHERED):
            n = min(_GATHERED, n_steps - first)
            at = order[first * n_new : (first + n) * n_new].reshape(n, n_new)
            rows, labels = new.rows[at], new.labels[at]
            if old is not None:
                from_old = torch.randint(len(old.rows), (n, n_old), generator=generator)
                rows = torch.cat([rows, old.rows[from_old]], dim=1)
                labels = torch.cat([labels, old.labels[from_old]], dim=1)
            yield from zip(rows, labels, strict=True)

    return n_steps, made()


def _learned(model: TorchModel, tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names of what is learned: parameters, not statistics."""
    known = {name for name, _ in model.module.named_parameters()}
    return [name for name, tensor in tensors.items() if name in known and tensor.is_floating_point()]


def _check(loss: float) -> None:
    if not math.isfinite(loss):
        raise Diverged("the loss is not finite any more.", hint="Lower the step size, or look at the labelled rows.")


def _check_reached(parameters: Parameters) -> None:
    if any(tensor.dtype.kind == "f" and not np.all(np.isfinite(tensor)) for tensor in parameters.values()):
        raise Diverged("the parameters are not finite any more.", hint="Lower the step size.")
