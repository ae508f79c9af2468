"""A torch module as a function of its parameters: what the procedure needs of a model, and nothing is changed in it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import TypeGuard

import numpy as np
import torch
from torch import nn
from torch.func import functional_call

from repair.errors import NoParameterSpace, ParametersDiffer, TruthLacking
from repair.vectors import Array, Parameters

_STATISTICS_ROWS = 256  # in a batch, when normalisation statistics are made anew


class TorchModel:
    """A classifier: a module that maps rows (n, ...) of float32 to logits (n, n_classes). Not for several threads."""

    def __init__(self, module: nn.Module) -> None:
        """The module is copied. Raises NoParameterSpace where it has no parameters."""
        self._module = copy.deepcopy(module).eval()
        if not any(p.numel() for p in self._module.parameters()):
            raise NoParameterSpace("the module has no parameters.", hint="Roll back, or let the lineage vote.")
        self._statistics = [part for part in self._module.modules() if _keeps_statistics(part)]
        self._tensors = self._module.state_dict()  # over the module's own memory
        self._spare: TorchModel | None = None
        linear = [name for name, part in self._module.named_modules() if isinstance(part, nn.Linear)]
        self.last_layer = linear[-1] if linear else None  # by the order in which layers were registered

    @property
    def spare(self) -> TorchModel:
        """Another one of the same architecture, always the same, whose mode and parameters may be changed."""
        if self._spare is None:
            self._spare = TorchModel(self._module)
        return self._spare

    def learn_statistics(self, learning: bool) -> None:
        """Whether batch norm uses and learns the statistics of each batch; what is called changes its buffers then."""
        for part in self._statistics:
            part.train(learning)

    @property
    def module(self) -> nn.Module:
        """The module in which parameters are put in turn, in evaluation mode."""
        return self._module

    def parameters(self, module: nn.Module | None = None) -> dict[str, Array]:
        """A copy of all tensors of a module of this architecture (by default this one), buffers too."""
        state = (module or self._module).state_dict()
        return {name: tensor.detach().cpu().numpy().copy() for name, tensor in state.items()}

    def logits(self, parameters: Parameters, rows: Array) -> Array:
        """Shape (n, n_classes)."""
        with torch.no_grad():
            return np.asarray(self.load(parameters).module(as_rows(rows)).numpy())

    def probabilities(self, parameters: Parameters, rows: Array) -> Array:
        """Softmax of the logits, shape (n, n_classes)."""
        with torch.no_grad():
            logits = self.load(parameters).module(as_rows(rows))
            return np.asarray(torch.softmax(logits, dim=1).numpy())

    def loss(self, rows: Array, labels: Array) -> Callable[[Parameters], float]:
        """The mean cross-entropy over these rows, in nats, as a function of the parameters. Raises TruthLacking without
        rows."""
        if not len(rows):
            raise TruthLacking("there is no labelled row to validate on.")
        given, truths = as_rows(rows), torch.as_tensor(np.asarray(labels, dtype=np.int64))

        def over_rows(parameters: Parameters) -> float:
            with torch.no_grad():
                logits = self.load(parameters).module(given)
                return float(nn.functional.cross_entropy(logits, truths))

        return over_rows

    def embeddings(self, parameters: Parameters, rows: Array) -> Array:
        """What goes into the last linear layer, shape (n, d); the rows themselves, flat, where there is none."""
        if self.last_layer is None:
            return np.asarray(rows, dtype=np.float32).reshape(len(rows), -1)
        with torch.no_grad():
            return np.asarray(self.before_last(as_tensors(parameters), as_rows(rows)).numpy())

    def load(self, parameters: Parameters) -> TorchModel:
        """Puts copies of the parameters into the module: 0.1 ms less than a functional call. Returns itself.

        Raises ParametersDiffer where names or shapes are not those of the module.
        """
        if parameters.keys() != self._tensors.keys():
            name = min(parameters.keys() ^ self._tensors.keys())
            raise ParametersDiffer(f"{name} is not in both the parameters and the module.")
        with torch.no_grad():
            for name, tensor in as_tensors(parameters).items():
                mine = self._tensors[name]
                if mine.shape != tensor.shape:
                    raise ParametersDiffer(f"{name} is {list(tensor.shape)}, in the module {list(mine.shape)}.")
                mine.copy_(tensor)
        return self

    def call(self, tensors: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """The module's answer with other tensors in the place of its own."""
        logits: torch.Tensor = functional_call(self._module, dict(tensors), (rows,))
        return logits

    def before_last(self, tensors: Mapping[str, torch.Tensor], rows: torch.Tensor) -> torch.Tensor:
        """What goes into the last linear layer, as a tensor."""
        assert self.last_layer is not None
        seen: list[torch.Tensor] = []

        def keep(_module: nn.Module, given: tuple[torch.Tensor, ...]) -> None:
            seen.append(given[0])

        handle = self._module.get_submodule(self.last_layer).register_forward_pre_hook(keep)
        try:
            self.call(tensors, rows)
        finally:
            handle.remove()
        return seen[-1].reshape(len(rows), -1)

    @property
    def has_batch_norm(self) -> bool:
        return bool(self._statistics)

    def reestimated(self, parameters: Parameters, rows: Array) -> dict[str, Array]:
        """The parameters with means and variances of batch norm made anew from unlabelled rows, all of equal weight.

        Parameters of a model without batch norm come back as they are. Fewer than two rows say nothing of a variance:
        raises TruthLacking. Sources: Li et al. 2017, ICLR workshop (AdaBN); Jordan et al. 2023, ICLR (REPAIR): between
        two models, activations lose variance, and statistics made anew give it back.
        """
        made = {name: tensor.copy() for name, tensor in parameters.items()}
        if not self.has_batch_norm:
            return made
        if len(rows) < 2:
            raise TruthLacking("statistics of batch norm need at least two rows.")
        spare = self.spare.load(parameters)
        usual = [part.momentum for part in spare._statistics]
        for part in spare._statistics:
            part.reset_running_stats()
            part.momentum = None  # the plain mean over all batches
        spare.learn_statistics(True)
        given = as_rows(rows)
        with torch.no_grad():
            for batch in given.chunk(max(1, len(given) // _STATISTICS_ROWS)):
                if len(batch) > 1:
                    spare.module(batch)
        spare.learn_statistics(False)
        for part, momentum in zip(spare._statistics, usual, strict=True):
            part.momentum = momentum
        for name, tensor in spare.module.state_dict().items():
            if name.rpartition(".")[2] in ("running_mean", "running_var"):
                made[name] = tensor.numpy().copy()
        return made


def as_tensors(parameters: Parameters) -> dict[str, torch.Tensor]:
    """Tensors over the same memory where that can be written to, else over copies."""
    return {
        name: torch.from_numpy(array if array.flags.writeable and array.flags.c_contiguous else array.copy())
        for name, array in parameters.items()
    }


def as_rows(rows: Array) -> torch.Tensor:
    """Rows as float32."""
    return torch.from_numpy(np.array(rows, dtype=np.float32))


def _keeps_statistics(part: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    return isinstance(part, nn.modules.batchnorm._BatchNorm) and bool(part.track_running_stats)
