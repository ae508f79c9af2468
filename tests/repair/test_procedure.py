from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from repair.artifacts import Artifacts, FolderArtifacts, MemoryArtifacts
from repair.diagnosis import Ancestor, FeatureDrift
from repair.errors import NoParameterSpace, RepairRefused, TruthLacking, WeightsBroken
from repair.procedure import (
    Case,
    RepairPlan,
    RepairState,
    Step,
    advance,
    begin,
    registered,
    repair_id,
    run,
    waits_for,
    winner_parameters,
)
from repair.refine import LabelledRows, RefinePlan
from repair.torch_model import TorchModel
from repair.vectors import Array, Parameters
from tests.repair.networks import accuracy, network, rows_of, taught

MODEL = TorchModel(network())
PLAN = RepairPlan(
    budget=120, n_validation=30, n_held_out=50, per_round=40, refine=RefinePlan(n_epochs=40, step_size=0.03)
)
RECENT = rows_of(300, 5)
TEST = rows_of(500, 6)


@cache
def family() -> dict[str, dict[str, Array]]:
    """`good` knows rows as they are now, `other` was made of turned ones and is what serves."""
    good = taught(MODEL, rows_of(300, 0))
    other = taught(MODEL, rows_of(300, 1, turned=True), seed=1)
    return {"good": good, "other": other, "pruned": {**good, "0.weight": good["0.weight"][:4]}}


@dataclass
class World:
    """Everything around a repair; labels come from the truth."""

    rows: LabelledRows = RECENT
    ancestors: tuple[str, ...] = ("good",)
    artifacts: Artifacts = field(default_factory=MemoryArtifacts)
    labels: dict[int, int] = field(default_factory=dict)
    model: TorchModel | None = MODEL
    versions: Mapping[str, Parameters] = field(default_factory=family)
    accuracy_before: float | None = None
    slices: dict[str, LabelledRows] = field(default_factory=dict)

    def case(self) -> Case:
        return Case(
            rows=self.rows.rows,
            labels=self.labels,
            ancestors=[Ancestor(version, 0.1 * k, "healthy") for k, version in enumerate(self.ancestors)],
            parameters=self.parameters,
            probabilities=self.probabilities,
            artifacts=self.artifacts,
            model=self.model,
            drifts=[FeatureDrift("x", (1.0, 2.0), (0.1, 3.0), 1.0)],
            accuracy_before=self.accuracy_before,
            accuracy_now=0.3,
            slices=self.slices,
        )

    def parameters(self, version: str) -> Parameters:
        if self.model is None:
            raise NoParameterSpace("trees have none.")
        return self.versions[version]

    def probabilities(self, version: str, rows: Array) -> Array:
        good = "good" if version == "pruned" else version
        return MODEL.probabilities(self.versions[good], rows)

    def answer(self, state: RepairState) -> None:
        """Labels what the state waits for."""
        self.labels.update((row, int(self.rows.labels[row])) for row in waits_for(state, self.case()))


def repaired(world: World, plan: RepairPlan = PLAN, report: str = "report-1") -> RepairState:
    """To the end, but for registering."""
    state = begin("reader", "other", report)
    while True:
        state = run(state, world.case(), plan)
        if state.step is Step.REGISTER:
            return state
        assert waits_for(state, world.case())
        world.answer(state)


def plain(state: RepairState) -> list[str]:
    return [str(entry["step"]) for entry in state.evidence]


def test_the_same_report_has_the_same_repair_and_another_one_another() -> None:
    assert repair_id("m", "1", "r") == repair_id("m", "1", "r") == begin("m", "1", "r").id
    others = {repair_id(*names) for names in (("m", "1", "r"), ("m", "1", "s"), ("m", "2", "r"), ("m1", "", "r"))}
    assert len(others) == 4


def test_a_version_whose_ancestor_knows_the_rows_is_mended() -> None:
    world = World(accuracy_before=0.9)
    state = repaired(world)
    before = accuracy(MODEL, family()["other"], TEST)
    made = winner_parameters(state, world.case()) or family()[state.ancestor or ""]
    assert accuracy(MODEL, made, TEST) > max(0.9, before + 0.3)
    assert plain(state)[:5] == ["diagnose", "ancestor", "validation", "vector", "gate"]
    assert state.ancestor == "good"
    assert state.winner in ("rollback", "repaired")
    assert len(world.labels) == state.n_labels == 80


def test_without_a_fitting_ancestor_labels_refine_it_within_the_budget() -> None:
    world = World(ancestors=(), accuracy_before=0.95)
    state = repaired(world)
    assert {"labels", "refine"} <= set(plain(state))
    assert state.winner == "repaired"
    assert len(world.labels) == state.n_labels <= PLAN.budget
    made = winner_parameters(state, world.case())
    assert made is not None
    assert accuracy(MODEL, made, TEST) > accuracy(MODEL, family()["other"], TEST) + 0.3
    gate = state.evidence[-1]
    assert [one["than"] for one in gate["comparisons"]] == ["drifted", "fine_tuned"]


def test_a_kill_at_any_step_changes_nothing(tmp_path: Path) -> None:
    """Each step is done twice, each time by a process that knows nothing but what was stored."""
    wanted = repaired(World(ancestors=(), accuracy_before=0.95))
    world = World(ancestors=(), accuracy_before=0.95, artifacts=FolderArtifacts(tmp_path))
    stored = begin("reader", "other", "report-1").to_json()
    for _ in range(50):
        state = RepairState.from_json(stored)
        advance(state, world.case(), PLAN)  # killed before its result was stored
        after = advance(RepairState.from_json(stored), replace(world.case(), artifacts=FolderArtifacts(tmp_path)), PLAN)
        if after == state and waits_for(after, world.case()):
            world.answer(after)
            continue
        if after == state:
            break
        stored = after.to_json()
    found = RepairState.from_json(stored)
    assert found.step is Step.REGISTER
    assert json.loads(found.to_json()) == json.loads(wanted.to_json())
    over = registered(found, "reader@4")
    assert advance(RepairState.from_json(over.to_json()), world.case(), PLAN).step is Step.OVER
    assert over.evidence[-1] == {"step": "register", "version": "reader@4"}


def test_a_pruned_ancestor_is_passed_over_and_can_still_be_rolled_back_to() -> None:
    world = World(ancestors=("pruned",), accuracy_before=0.9)
    state = repaired(world, replace(PLAN, budget=80))
    (vector,) = [entry for entry in state.evidence if entry["step"] == "vector"]
    assert "0.weight" in vector["refused"]["pruned"]
    assert vector["start"].startswith("drifted")
    assert (state.ancestor, state.winner) == ("pruned", "rollback")
    assert winner_parameters(state, world.case()) is None


def test_trees_are_rolled_back_or_voted_on() -> None:
    world = World(model=None, ancestors=("good",))
    state = repaired(world)
    assert state.winner in ("rollback", "vote")
    assert set(state.evidence[-1]["shares"]) == {"drifted", "rollback", "vote"}
    assert "refine" not in plain(state)


def test_an_ancestor_with_broken_weights_is_passed_over() -> None:
    broken = {**family()["good"], "3.bias": np.full(3, np.nan, np.float32)}
    world = World(ancestors=("broken", "good"), versions={**family(), "broken": broken}, accuracy_before=0.9)
    state = repaired(world)
    assert state.ancestor == "good"
    with pytest.raises(WeightsBroken):
        repaired(World(versions={**family(), "other": broken}))


def test_a_repair_that_loses_elsewhere_is_not_used() -> None:
    elsewhere = rows_of(300, 9, turned=True)
    state = repaired(World(ancestors=(), accuracy_before=0.95, slices={"turned": elsewhere}))
    assert not state.passed
    assert state.evidence[-1]["lost_slices"] == ["turned"]
    assert state.winner != "repaired"


def test_rows_of_one_class_are_refused() -> None:
    rows = LabelledRows(RECENT.rows, np.zeros(len(RECENT), dtype=np.int64))
    with pytest.raises(TruthLacking, match="of class 0"):
        repaired(World(rows=rows))


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(TruthLacking, match="labelled rows"):
        repaired(World(rows=LabelledRows(RECENT.rows[:12], RECENT.labels[:12])))


def test_other_rows_than_those_it_began_with_are_refused() -> None:
    state = advance(begin("reader", "other", "r"), World().case(), PLAN)
    with pytest.raises(RepairRefused, match="not the rows"):
        advance(state, World(rows=TEST).case(), PLAN)


def test_while_labels_are_missing_nothing_happens() -> None:
    world = World()
    state = run(begin("reader", "other", "r"), world.case(), PLAN)
    assert (state.step, len(state.asked)) == (Step.VALIDATION, 80)
    world.labels.update((row, 0) for row in state.asked[1:])
    assert waits_for(state, world.case()) == state.asked[:1]
    assert advance(state, world.case(), PLAN) == state


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"step": "dance"}'])
def test_what_is_no_state_is_refused(text: str) -> None:
    with pytest.raises(RepairRefused):
        RepairState.from_json(text)
