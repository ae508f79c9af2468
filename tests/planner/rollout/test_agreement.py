from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from planner.features import Rows
from planner.rollout.agreement import of_requests, same_rows


def rows(*values: Any, dtype: Any = None) -> Rows:
    return Rows(np.array(values, dtype))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (rows(1, 2), rows(1, 3), [True, False]),
        (rows(b"a", b"b", dtype=object), rows(b"a", b"c", dtype=object), [True, False]),
        (rows(100.0, 100.0), rows(101.0, 110.0), [True, False]),
        (rows(0.0), rows(0.0005), [True]),
        (rows([0.1, 0.9], [0.6, 0.4]), rows([0.4, 0.6], [0.4, 0.6]), [True, False]),
        (rows([1, 2], [1, 2]), rows([1, 2], [2, 1]), [True, False]),
        (rows(np.nan), rows(np.nan), [True]),
    ],
)
def test_labels_are_equal_scores_have_the_same_best_and_numbers_are_close(one: Rows, other: Rows, same: Any) -> None:
    found = same_rows({"y": one}, {"y": other})
    assert found is not None
    assert found.tolist() == same


def test_all_outputs_count() -> None:
    found = same_rows({"y": rows(1, 2), "z": rows(1, 1)}, {"y": rows(1, 2), "z": rows(2, 1)})
    assert found is not None
    assert found.tolist() == [False, True]


@pytest.mark.parametrize("other", [{"z": rows(1)}, {"y": rows(1, 2)}, {"y": rows(1.0)}, {}])
def test_other_outputs_shapes_and_kinds_are_not_compared(other: dict[str, Rows]) -> None:
    assert same_rows({"y": rows(1)}, other) is None


def test_a_request_is_the_same_when_all_of_its_rows_are() -> None:
    assert of_requests(np.array([True, True, False]), [1, 1, 1]) == [True, True, False]
    assert of_requests(np.array([True, True, False]), [2, 1]) == [True, False]
    assert of_requests(np.array([True, True, False]), [1, 2]) == [True, False]
