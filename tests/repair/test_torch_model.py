from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from repair.errors import NoParameterSpace, ParametersDiffer, TruthLacking
from repair.torch_model import TorchModel, as_rows, as_tensors
from tests.repair.networks import network, rows_of


def test_the_parameters_given_are_those_that_answer() -> None:
    model, other = TorchModel(network(seed=0)), network(seed=1)
    rows = rows_of(20, 0).rows
    wanted = other(torch.from_numpy(rows)).detach().numpy()
    np.testing.assert_allclose(model.logits(model.parameters(other), rows), wanted, rtol=1e-5)
    with torch.no_grad():
        called = model.call(as_tensors(model.parameters(other)), as_rows(rows)).numpy()
    np.testing.assert_allclose(called, wanted, rtol=1e-5)
    np.testing.assert_allclose(model.probabilities(model.parameters(other), rows).sum(axis=1), 1.0, rtol=1e-5)


def test_a_loss_is_the_mean_cross_entropy_and_changes_nothing_given() -> None:
    model, given = TorchModel(network()), rows_of(30, 1)
    parameters = model.parameters()
    before = {name: tensor.copy() for name, tensor in parameters.items()}
    said = model.probabilities(parameters, given.rows)[np.arange(30), given.labels]
    assert model.loss(given.rows, given.labels)(parameters) == pytest.approx(float(-np.log(said).mean()), rel=1e-5)
    for name, tensor in before.items():
        np.testing.assert_array_equal(parameters[name], tensor)
    with pytest.raises(TruthLacking):
        model.loss(given.rows[:0], given.labels[:0])


def test_parameters_of_another_architecture_are_refused() -> None:
    model = TorchModel(network())
    with pytest.raises(ParametersDiffer, match=r"0.bias is \[1\], in the module \[8\]"):
        model.load({**model.parameters(), "0.bias": np.zeros(1, np.float32)})
    with pytest.raises(ParametersDiffer, match="more is not in both"):
        model.load({**model.parameters(), "more": np.zeros(1, np.float32)})


def test_tensors_that_may_not_be_written_to_are_copied() -> None:
    model = TorchModel(network())
    parameters = model.parameters()
    for tensor in parameters.values():
        tensor.setflags(write=False)
    assert model.logits(parameters, rows_of(3, 0).rows).shape == (3, 3)


def test_statistics_made_anew_are_those_of_the_rows() -> None:
    model = TorchModel(network())
    rows = rows_of(400, 2, shift=5.0).rows
    made = model.reestimated(model.parameters(), rows)
    inside = rows @ made["0.weight"].T + made["0.bias"]
    np.testing.assert_allclose(made["1.running_mean"], inside.mean(axis=0), rtol=0.05, atol=0.05)
    np.testing.assert_allclose(made["1.running_var"], inside.var(axis=0), rtol=0.1)
    np.testing.assert_array_equal(made["0.weight"], model.parameters()["0.weight"])
    again = model.reestimated(model.parameters(), rows)
    np.testing.assert_array_equal(made["1.running_mean"], again["1.running_mean"])
    with pytest.raises(TruthLacking):
        model.reestimated(model.parameters(), rows[:1])


def test_a_model_without_statistics_comes_back_as_it_is() -> None:
    model = TorchModel(network(batch_norm=False))
    assert not model.has_batch_norm
    made = model.reestimated(model.parameters(), rows_of(10, 0).rows)
    for name, tensor in model.parameters().items():
        np.testing.assert_array_equal(made[name], tensor)


def test_embeddings_are_what_goes_into_the_last_layer() -> None:
    model, rows = TorchModel(network()), rows_of(7, 0).rows
    parameters = model.parameters()
    inside = model.embeddings(parameters, rows)
    assert inside.shape == (7, 8)
    logits = inside @ parameters["3.weight"].T + parameters["3.bias"]
    np.testing.assert_allclose(logits, model.logits(parameters, rows), rtol=1e-4, atol=1e-5)
    convolution = TorchModel(nn.Conv1d(4, 3, 1))
    assert convolution.last_layer is None
    assert convolution.embeddings(convolution.parameters(), np.ones((2, 4, 1))).shape == (2, 4)


def test_a_module_without_parameters_has_no_space_to_move_in() -> None:
    with pytest.raises(NoParameterSpace):
        TorchModel(nn.ReLU())
