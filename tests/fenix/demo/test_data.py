from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fenix.demo import data
from fenix.demo.data import Part, Split
from fenix.demo.goals import Task, tasks

DATA_SETS = [data.digits, data.scans, data.wines, data.tumours]


def _parts(split: Split) -> tuple[Part, Part, Part]:
    return split.train, split.validation, split.held_out


@pytest.mark.parametrize("load", DATA_SETS)
def test_the_three_parts_share_no_row_and_make_up_the_whole(load: Callable[[], Split]) -> None:
    split = load()
    parts = [{row.tobytes() for row in part.x} for part in _parts(split)]
    n_different = len(set.union(*parts))
    assert sum(len(part) for part in parts) == n_different
    whole = {data.digits: 1797, data.scans: 1797, data.wines: 178, data.tumours: 569}[load]
    assert sum(len(part) for part in _parts(split)) == whole


@pytest.mark.parametrize("load", DATA_SETS)
def test_every_class_is_in_every_part(load: Callable[[], Split]) -> None:
    split = load()
    classes = set(split.train.y)
    assert classes == set(split.validation.y) == set(split.held_out.y)


def test_a_seed_always_gives_the_same_split_and_another_seed_another() -> None:
    assert np.array_equal(data.digits(1).held_out.x, data.digits(1).held_out.x)
    assert not np.array_equal(data.digits(1).held_out.x, data.digits(2).held_out.x)


def test_a_digit_and_its_scan_are_in_the_same_part_and_a_scan_is_the_same_in_every_split() -> None:
    for seed in (0, 1):
        images, sheets = data.digits(seed), data.scans(seed)
        assert np.array_equal(images.held_out.y, sheets.held_out.y)
        assert np.array_equal(images.train.y, sheets.train.y)
    first, second = ({row.tobytes() for part in _parts(data.scans(seed)) for row in part.x} for seed in (0, 1))
    assert first == second


def test_a_scan_is_noisy_paper_with_ink_where_the_digit_is() -> None:
    digit = np.zeros((1, 8, 8))
    digit[0, 2:6, 3:5] = 16
    (sheet,) = data.scanned(digit, np.random.default_rng(1))
    assert sheet.shape == (32, 32)
    dark = sheet < 120
    assert 40 < dark.sum() < 130  # 8 of 64 pixels of a digit of 20 to 28 pixels, and a few specks
    assert sheet[~dark].mean() > 190
    assert sheet[~dark].std() > 5


@pytest.mark.parametrize("task", tasks(), ids=lambda task: task.goal.name)
def test_validation_rows_are_written_under_the_names_of_the_goals_ports(task: Task, tmp_path: Path) -> None:
    goal = task.validated(tmp_path)
    with np.load(goal.validation, allow_pickle=False) as file:
        rows = dict(file)
    ports = {port.name: port.feature for port in (*goal.inputs, *goal.outputs)}
    assert set(rows) == set(ports)
    assert {len(values) for values in rows.values()} == {len(task.split.validation)}
    assert np.array_equal(rows[goal.outputs[0].name], task.split.validation.y)
