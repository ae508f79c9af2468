from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from repair.errors import Diverged, NoParameterSpace, TruthLacking, WeightsBroken
from repair.refine import Kind, LabelledRows, RefinePlan, one_epoch, refine
from repair.torch_model import TorchModel
from repair.vectors import Array
from tests.repair.networks import accuracy, network, rows_of, taught

MODEL = TorchModel(network())
BEFORE = rows_of(300, 0)
MOVED = rows_of(60, 1, turned=True)
TEST = rows_of(500, 2, turned=True)
KINDS: tuple[Kind, ...] = ("last_layer", "low_rank", "whole")


@cache
def start() -> dict[str, Array]:
    """A version that was healthy."""
    return taught(MODEL, BEFORE)


@pytest.mark.parametrize("kind", KINDS)
def test_a_few_labels_mend_a_drifted_version(kind: Kind) -> None:
    refined = refine(MODEL, start(), MOVED, RefinePlan(kind=kind, n_epochs=40, step_size=0.03, rank=2), seed=0)
    assert accuracy(MODEL, refined.parameters, TEST) > accuracy(MODEL, start(), TEST) + 0.1
    assert min(refined.losses) < refined.losses[0]
    assert refined.kind == kind


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_parameters_and_the_start_stays_as_it_was(kind: Kind) -> None:
    before = {name: tensor.copy() for name, tensor in start().items()}
    one, same, other = (
        refine(MODEL, start(), MOVED, RefinePlan(kind=kind), seed=seed, replay=BEFORE) for seed in (1, 1, 2)
    )
    assert one.losses == same.losses != other.losses
    for name, tensor in before.items():
        np.testing.assert_array_equal(one.parameters[name], same.parameters[name])
        np.testing.assert_array_equal(start()[name], tensor)


def test_the_last_layer_alone_leaves_the_others() -> None:
    refined = refine(MODEL, start(), MOVED, RefinePlan(kind="last_layer"), seed=0).parameters
    changed = {name for name in start() if not np.array_equal(start()[name], refined[name])}
    assert changed == {"3.weight", "3.bias"}


def test_changes_of_low_rank_are_of_that_rank() -> None:
    refined = refine(MODEL, start(), MOVED, RefinePlan(kind="low_rank", rank=2), seed=0).parameters
    assert np.linalg.matrix_rank(refined["0.weight"] - start()["0.weight"], tol=1e-4) == 2


def test_a_pull_keeps_the_parameters_near_their_start() -> None:
    def moved(pull: float) -> float:
        refined = refine(MODEL, start(), MOVED, RefinePlan(pull=pull, patience=100), seed=0).parameters
        return float(np.linalg.norm(refined["0.weight"] - start()["0.weight"]))

    assert moved(10.0) < 0.5 * moved(0.0)


def test_replayed_rows_are_not_forgotten() -> None:
    plan = RefinePlan(n_epochs=40, step_size=0.03, patience=100)
    contrary = LabelledRows(BEFORE.rows[:60] + 4.0, (BEFORE.labels[:60] + 1) % 3)
    alone = refine(MODEL, start(), contrary, plan, seed=0).parameters
    beside = refine(MODEL, start(), contrary, plan, seed=0, replay=BEFORE).parameters
    assert accuracy(MODEL, beside, BEFORE) > accuracy(MODEL, alone, BEFORE) + 0.1


def test_labels_by_chance_do_not_make_it_worse_on_the_rows_set_aside() -> None:
    rng = np.random.default_rng(0)
    noise = LabelledRows(BEFORE.rows[:40], rng.integers(0, 3, 40))
    refined = refine(MODEL, start(), noise, RefinePlan(n_epochs=60, patience=2), seed=0)
    assert min(refined.losses) <= refined.losses[0]
    assert refined.stopped_early


@pytest.mark.parametrize("kind", KINDS)
def test_what_diverges_is_refused_and_never_comes_back_as_nan(kind: Kind) -> None:
    with pytest.raises(Diverged):
        refine(
            MODEL, start(), LabelledRows(np.full_like(MOVED.rows, np.inf), MOVED.labels), RefinePlan(kind=kind), seed=0
        )
    with pytest.raises(Diverged):
        refine(MODEL, start(), MOVED, RefinePlan(kind=kind, step_size=1e38, patience=1000), seed=0)


def test_one_epoch_learns_and_is_refused_when_it_diverges() -> None:
    tuned = one_epoch(MODEL, start(), MOVED, seed=0, step_size=0.02)
    assert accuracy(MODEL, tuned, TEST) > accuracy(MODEL, start(), TEST)
    with pytest.raises(Diverged):
        one_epoch(MODEL, start(), LabelledRows(MOVED.rows * np.float32(np.nan), MOVED.labels), seed=0)


def test_too_few_labels_a_broken_start_and_a_missing_layer_are_refused() -> None:
    with pytest.raises(TruthLacking):
        refine(MODEL, start(), LabelledRows(MOVED.rows[:1], MOVED.labels[:1]), seed=0)
    with pytest.raises(TruthLacking):
        one_epoch(MODEL, start(), LabelledRows(MOVED.rows[:1], MOVED.labels[:1]), seed=0)
    with pytest.raises(WeightsBroken):
        refine(MODEL, {**start(), "3.bias": np.full(3, np.nan, np.float32)}, MOVED, seed=0)
    from torch import nn

    convolution = TorchModel(nn.Sequential(nn.Conv1d(4, 3, 1), nn.Flatten()))
    given = LabelledRows(MOVED.rows[:, :, None], MOVED.labels)
    with pytest.raises(NoParameterSpace):
        refine(convolution, convolution.parameters(), given, RefinePlan(kind="last_layer"), seed=0)


def test_two_rows_are_enough_to_run() -> None:
    refined = refine(MODEL, start(), LabelledRows(MOVED.rows[:2], MOVED.labels[:2]), seed=0)
    assert all(np.isfinite(tensor).all() for tensor in refined.parameters.values())
