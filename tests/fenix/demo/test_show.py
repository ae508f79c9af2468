from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fenix.demo import show
from fenix.demo.story import needed_for, price_of_error, worth
from planner.goals import Objective


def _step(id_: int, extension: str, *after: int, guard: tuple[int, float] | None = None) -> dict[str, Any]:
    inputs = [{"port": f"in{i}", "sources": [{"step": source, "port": "out"}]} for i, source in enumerate(after)]
    below = None if guard is None else {"step": guard[0], "below": guard[1]}
    return {"id": id_, "extension": extension, "inputs": inputs, "guard": below}


def _times(step: int, started_ms: float, took_ms: float, n_rows: int = 1) -> dict[str, Any]:
    return {"step": step, "started_ms": started_ms, "took_ms": took_ms, "n_rows": n_rows}


FORK = {"steps": [_step(0, "scale@1", -1), _step(1, "left@1", 0), _step(2, "right@2", 0), _step(3, "join@1", 1, 2)]}
CASCADE = {"steps": [_step(0, "scale@1", -1), _step(1, "cheap@1", 0), _step(2, "dear@1", 0, guard=(1, 0.9))]}


def _text(renderable: object) -> str:
    console = Console(width=120, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(renderable)
    return captured.get()


def test_a_fork_is_written_with_braces_and_a_guarded_step_with_a_question_mark() -> None:
    assert show.chain(FORK) == "scale → {left, right} → join"
    assert show.chain(CASCADE) == "scale → cheap → dear?"


def test_the_table_of_a_plan_shows_where_steps_come_from_and_that_branches_overlap() -> None:
    times = [_times(0, 0, 10), _times(1, 10, 10), _times(2, 10, 20), _times(3, 30, 10)]
    lines = {line.split()[0]: line for line in _text(show.plan_table(FORK, times)).splitlines() if line.strip()}
    assert "left, right" in lines["join"]
    assert "20.0 ms" in lines["right"]
    assert lines["left"].index("█") == lines["right"].index("█") == lines["scale"].rindex("█") + 1
    assert lines["join"].index("█") == lines["right"].rindex("█") + 1


def test_a_step_behind_a_guard_that_no_row_needed_is_shown_as_not_needed() -> None:
    text = _text(show.plan_table(CASCADE, [_times(0, 0, 1), _times(1, 1, 1)]))
    (line,) = [line for line in text.splitlines() if line.startswith("dear")]
    assert "if less sure than 90%" in line
    assert "not needed" in line


def test_a_picture_has_a_line_per_row_and_is_darkest_where_the_scan_is() -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    image[2, 3] = 16
    lines = show.digit_picture(image).splitlines()
    assert [len(line) for line in lines] == [16] * 8
    assert lines[2][6:8] == "██"
    assert set("".join(lines)) == {" ", "█"}


def test_the_part_of_a_plan_that_leads_to_a_step_leaves_out_the_rest_and_its_guards() -> None:
    steps = {step["id"]: step for step in CASCADE["steps"]}
    assert [step["extension"] for step in needed_for(2, steps)] == ["scale@1", "dear@1"]
    assert all(step["guard"] is None for step in needed_for(2, steps))
    fork = {step["id"]: step for step in FORK["steps"]}
    assert len(needed_for(3, fork)) == 4


def test_right_answers_per_cpu_second_count_what_wrong_ones_cost() -> None:
    assert price_of_error(Objective(accuracy=1.0, cost=2.0)) == 0.5
    assert worth(accuracy=1.0, cost=0.5, price=100.0) == 2_000.0
    assert worth(accuracy=0.5, cost=0.5, price=1.0) == pytest.approx(500.0)
    assert worth(accuracy=0.9, cost=0.0, price=1.0) < worth(accuracy=0.99, cost=0.02, price=1.0)
