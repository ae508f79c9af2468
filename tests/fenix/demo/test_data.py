from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fenix.demo import data
from fenix.demo.data import Split
from fenix.demo.goals import Task, tasks

DATA_SETS = [data.digits, data.wines, data.tumours]


@pytest.mark.parametrize("load", DATA_SETS)
def test_the_three_parts_share_no_row_and_make_up_the_whole(load: Callable[[], Split]) -> None:
    split = load()
    parts = [{row.tobytes() for row in part.x} for part in (split.train, split.validation, split.held_out)]
    n_different = len(set.union(*parts))
    assert sum(len(part) for part in parts) == n_different
    assert {data.digits: 1797, data.wines: 178, data.tumours: 569}[load] == sum(
        len(part) for part in (split.train, split.validation, split.held_out)
    )


@pytest.mark.parametrize("load", DATA_SETS)
def test_every_class_is_in_every_part(load: Callable[[], Split]) -> None:
    split = load()
    classes = set(split.train.y)
    assert classes == set(split.validation.y) == set(split.held_out.y)


def test_a_seed_always_gives_the_same_split_and_another_seed_another() -> None:
    assert np.array_equal(data.digits(1).held_out.x, data.digits(1).held_out.x)
    assert not np.array_equal(data.digits(1).held_out.x, data.digits(2).held_out.x)


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.goal.name)
def test_validation_rows_are_written_under_the_names_of_the_goals_ports(task: Task, tmp_path: Path) -> None:
    goal = task.validated(tmp_path)
    with np.load(goal.validation, allow_pickle=False) as file:
        rows = dict(file)
    ports = {port.name: port.feature for port in (*goal.inputs, *goal.outputs)}
    assert set(rows) == set(ports)
    assert {len(values) for values in rows.values()} == {len(task.split.validation)}
    assert np.array_equal(rows[goal.outputs[0].name], task.split.validation.y)
