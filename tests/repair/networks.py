"""Small networks and rows for the tests of repair."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from repair.refine import LabelledRows
from repair.torch_model import TorchModel
from repair.vectors import Array, Parameters

N_CLASSES = 3


def network(batch_norm: bool = True, seed: int = 0) -> nn.Module:
    """4 features, 8 hidden units, 3 classes."""
    torch.manual_seed(seed)
    middle = [nn.BatchNorm1d(8)] if batch_norm else []
    return nn.Sequential(nn.Linear(4, 8), *middle, nn.ReLU(), nn.Linear(8, N_CLASSES)).eval()


def rows_of(n: int, seed: int, shift: float = 0.0, turned: bool = False) -> LabelledRows:
    """Rows around one centre per class; `shift` moves them all, `turned` ones have their features in another order, so
    that most are taken for another class."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, N_CLASSES, n)
    centres = np.eye(N_CLASSES, 4, dtype=np.float32) * 3.0
    rows = centres[labels] + rng.normal(0.0, 0.7, (n, 4)) + shift
    return LabelledRows((np.roll(rows, 1, axis=1) if turned else rows).astype(np.float32), labels)


def taught(model: TorchModel, given: LabelledRows, seed: int = 0, n_epochs: float = 40.0) -> dict[str, Array]:
    """Parameters that fit the rows."""
    from repair.refine import RefinePlan, refine

    plan = RefinePlan(kind="whole", n_epochs=n_epochs, step_size=0.02, patience=1000)
    return refine(model, model.parameters(), given, plan, seed=seed).parameters


def accuracy(model: TorchModel, parameters: Parameters, given: LabelledRows) -> float:
    return float(np.mean(model.logits(parameters, given.rows).argmax(axis=1) == given.labels))
