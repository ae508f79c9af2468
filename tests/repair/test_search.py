from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.errors import RepairRefused
from repair.search import SearchPlan, barrier_of, search
from repair.vectors import Array, Parameters, repair_vector

DRIFTED: dict[str, Array] = {"a.weight": np.zeros(2), "b.weight": np.zeros(2)}
VECTOR = repair_vector({"a.weight": np.ones(2), "b.weight": np.ones(2)}, DRIFTED)


def bowl(a: float, b: float):  # type: ignore[no-untyped-def]
    """A loss that is lowest where layer `a` and layer `b` have gone so far."""

    def loss(parameters: Parameters) -> float:
        return float((parameters["a.weight"][0] - a) ** 2 + (parameters["b.weight"][0] - b) ** 2)

    return loss


@given(st.floats(0.0, 1.0))
def test_the_best_scale_is_found_between_the_points_of_the_grid(best: float) -> None:
    found = search(DRIFTED, VECTOR, bowl(best, best), SearchPlan(n_refine=8))
    assert found.whole == pytest.approx(best, abs=0.06)
    assert found.loss <= min(loss for _, loss in found.path)


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_layers_go_as_far_as_each_should(a: float, b: float) -> None:
    found = search(DRIFTED, VECTOR, bowl(a, b), SearchPlan(layer_steps=(0.5, 0.25, 0.125, 0.06), n_evaluations=80))
    whole = search(DRIFTED, VECTOR, bowl(a, b), SearchPlan(layer_steps=()))
    assert found.loss <= whole.loss
    if found.per_layer is not None:
        assert found.loss == pytest.approx(bowl(a, b)({n: np.full(2, found.per_layer[n[0]]) for n in DRIFTED}))


@given(st.integers(5, 60))
def test_the_budget_of_evaluations_is_kept(budget: int) -> None:
    asked = 0

    def loss(parameters: Parameters) -> float:
        nonlocal asked
        asked += 1
        return bowl(0.3, 0.9)(parameters)

    found = search(DRIFTED, VECTOR, loss, SearchPlan(n_evaluations=budget))
    assert asked == found.n_evaluations <= budget


def test_behind_a_barrier_layers_are_not_moved_one_by_one() -> None:
    def hill(parameters: Parameters) -> float:
        s = float(parameters["a.weight"][0])
        return 1.0 - 0.5 * s + 2.0 * math.sin(math.pi * s)

    found = search(DRIFTED, VECTOR, hill)
    assert found.barrier.is_high
    assert found.barrier.height == pytest.approx(2.0)
    assert found.barrier.at_scale == 0.5
    assert (found.whole, found.per_layer) == (1.0, None)


def test_a_straight_path_has_no_barrier_and_a_broken_end_is_one() -> None:
    assert not barrier_of([(0.0, 2.0), (0.5, 1.5), (1.0, 1.0)], 0.1).is_high
    assert barrier_of([(0.0, 2.0), (0.5, 1.5), (1.0, math.inf)], 0.1).is_high


def test_equal_points_leave_the_version_as_it_is() -> None:
    assert search(DRIFTED, VECTOR, lambda parameters: 1.0).whole == 0.0


def test_points_that_are_no_numbers_are_passed_over() -> None:
    def loss(parameters: Parameters) -> float:
        return math.nan if parameters["a.weight"][0] > 0.6 else bowl(1.0, 1.0)(parameters)

    found = search(DRIFTED, VECTOR, loss)
    assert 0.0 < found.whole <= 0.6
    assert found.plain()["path"][-1] == [1.0, None]
    with pytest.raises(RepairRefused, match="not finite anywhere"):
        search(DRIFTED, VECTOR, lambda parameters: math.nan)


@pytest.mark.parametrize("plan", [{"grid": (0.0, 0.5)}, {"grid": (1.0, 0.0)}, {"n_evaluations": 2}])
def test_a_plan_that_cannot_work_is_refused(plan: dict[str, object]) -> None:
    with pytest.raises(RepairRefused):
        SearchPlan(**plan)  # type: ignore[arg-type]
