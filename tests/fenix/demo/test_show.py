from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from rich.console import Console

from fenix.demo import data, show
from fenix.demo.story import labels_of, needed_for, worth


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
    lines = {
        words[1]: line for line in _text(show.plan_table(FORK, times)).splitlines() if len(words := line.split()) > 3
    }
    assert lines["join"].split()[:5] == ["4", "join", "2,", "3", "10.0"]
    assert "20.0 ms" in lines["right"]
    assert lines["left"].index("█") == lines["right"].index("█") == lines["scale"].rindex("█") + 1
    assert lines["join"].index("█") == lines["right"].rindex("█") + 1


def test_a_step_behind_a_guard_that_no_row_needed_is_shown_as_not_needed() -> None:
    text = _text(show.plan_table(CASCADE, [_times(0, 0, 1), _times(1, 1, 1)]))
    (line,) = [line for line in text.splitlines() if "dear" in line]
    assert "1 if 2 is under 90.0% sure" in line
    assert "not needed" in line


def test_the_table_of_a_plan_fits_beside_the_picture_of_a_scan() -> None:
    names = [f"extension-{i}@1" for i in range(4)]
    steps = [_step(0, names[0], -1), _step(1, names[1], 0)]
    steps += [_step(2, names[2], 0, guard=(1, 0.99)), _step(3, names[3], 1, 2, guard=(1, 0.99))]
    table = _text(show.plan_table({"steps": steps}, [_times(i, i, 1) for i in range(4)]))
    assert max(len(line) for line in table.splitlines()) + 32 + 3 <= 120


def test_a_picture_has_a_line_per_row_and_is_darkest_where_the_scan_is() -> None:
    image = np.zeros((8, 8), dtype=np.uint8)
    image[2, 3] = 16
    lines = show.picture(image).splitlines()
    assert [len(line) for line in lines] == [16] * 8
    assert lines[2][6:8] == "██"
    assert set("".join(lines)) == {" ", "█"}


def test_the_picture_of_a_scan_is_half_as_large_and_shows_ink_on_paper() -> None:
    lines = show.picture(data.scans().held_out.x[0]).splitlines()
    assert [len(line) for line in lines] == [32] * 16
    light = sum(line.count(" ") + line.count("·") for line in lines)
    assert light > 16 * 32 / 2
    assert "▓" in "".join(lines)


def _promising(plan: dict[str, Any], score: float, accuracy: float, cost: float, p50_ms: float) -> dict[str, Any]:
    return {**plan, "score": score, "prediction": {"accuracy": accuracy, "cost": cost, "p50_ms": p50_ms}}


def test_plans_that_lost_are_a_line_each_that_begins_with_what_speaks_against_them() -> None:
    chosen = _promising(FORK, 1.0, 0.97, 0.1005, 3.0)
    late = {"plan": _promising(CASCADE, 0.5, 0.98, 0.1, 9.0), "reason": "misses the deadline"}
    worse = {"plan": _promising(CASCADE, 2.0, 0.96, 0.2005, 3.0), "reason": "costs 0.1 more"}
    explanation = {
        "chosen": chosen,
        "others": [_promising(FORK, 1.5, 0.99, 0.0005, 5.0)],
        "rejected": [late, worse, worse],
    }
    assert list(show.losers(explanation)) == [
        "+2.00 points, -100 µs, +2.0 ms: scale → {left, right} → join",
        "misses the deadline: scale → cheap → dear?",
        "-1.00 points, +100 µs, +0.0 ms: scale → cheap → dear?",
    ]


@pytest.mark.parametrize(("cost_ms", "said"), [(0.00026, "0.3"), (0.0121, "12"), (0.00994, "9.9"), (0.00996, "10")])
def test_costs_have_no_more_digits_than_they_deserve(cost_ms: float, said: str) -> None:
    assert show.micros(cost_ms) == said


def test_the_part_of_a_plan_that_leads_to_a_step_leaves_out_the_rest_and_its_guards() -> None:
    steps = {step["id"]: step for step in CASCADE["steps"]}
    assert [step["extension"] for step in needed_for(2, steps)] == ["scale@1", "dear@1"]
    assert all(step["guard"] is None for step in needed_for(2, steps))
    fork = {step["id"]: step for step in FORK["steps"]}
    assert len(needed_for(3, fork)) == 4


def test_scores_count_as_the_label_that_they_speak_for() -> None:
    assert labels_of(np.array([3, 1])).tolist() == [3, 1]
    assert labels_of(np.array([[0.1, 0.9], [0.8, 0.2]])).tolist() == [1, 0]


def test_accuracy_per_cost_is_right_answers_per_cpu_second() -> None:
    assert worth(accuracy=0.5, cost_ms=0.1) == pytest.approx(5_000.0)
