"""What `fenix deploy` is given becomes cards and goals, or an error that says where."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from deployments import loading
from fenix.commands.sources import loadable, read_goals, read_source
from planner.cards import Card
from planner.errors import BadCard

CODE = """
from deployments.extension import extension
from planner.features import Feature

@extension(inputs={"x": Feature("number", "FP32")}, outputs={"y": Feature("number/half", "FP32")}, cost=1.0)
def halve(x):
    return x / 2
"""
GOAL = """
name: half
inputs: [{name: x, type: number, datatype: FP32}]
outputs: [{name: y, type: number/half, datatype: FP32}]
validation: rows.npz
"""


def describe(source: str, options: Mapping[str, Any]) -> Card:
    return loading.describe(source, options)


@pytest.fixture
def code(tmp_path: Path) -> Path:
    path = tmp_path / "halving.py"
    path.write_text(CODE)
    return path


def read(source: object, tmp_path: Path) -> Any:
    return read_source(str(source), {}, describe, tmp_path / "store")


def test_a_file_of_code_is_kept_as_it_was_deployed(code: Path, tmp_path: Path) -> None:
    (card,), goals = read(f"{code}:halve", tmp_path)
    assert (card.name, card.cost, goals) == ("halve", 1.0, [])
    assert card.source.startswith(f"file:{tmp_path}/store/")
    code.write_text(CODE.replace("halve", "quarter"))
    assert loading.load(card).name == "halve"
    (again,), _ = read(f"{code}:quarter", tmp_path)
    assert again.source != card.source


def test_a_name_that_is_not_in_a_file_is_answered_with_what_was_typed_and_what_is_near(
    code: Path, tmp_path: Path
) -> None:
    network = tmp_path / "network.yaml"
    network.write_text("cards: [{source: 'halving.py:havle'}]")
    for source, typed in ((f"{code}:havle", f"{code}:havle"), (network, "halving.py:havle")):
        with pytest.raises(BadCard) as caught:
            read(source, tmp_path)
        assert caught.value.text() == f"source {typed!r}: there is no 'havle' in halving.py. Nearest: halve."
    code.write_text("def halve(x):\n    return x / 2\n")
    with pytest.raises(BadCard, match=re.escape(f"source '{code}:havle': there is no")) as caught:
        read(f"{code}:havle", tmp_path)
    assert caught.value.hint == "Nearest: halve."


@pytest.mark.parametrize(
    "source", ["models:/digits@champion", "http://h:1/v2/models/m", "grpc://h:1/m", "package.module:Class"]
)
def test_other_sources_are_left_alone(source: str, tmp_path: Path) -> None:
    assert loadable(source, tmp_path, tmp_path) == source


def test_a_card_of_a_yaml_file_changes_what_its_source_says(code: Path, tmp_path: Path) -> None:
    network = tmp_path / "network.yaml"
    network.write_text("cards: [{source: 'halving.py:halve', name: half, cost: 3.0, may_see: [pii]}]")
    (card,), _ = read(network, tmp_path)
    assert (card.name, card.cost, card.may_see) == ("half", 3.0, frozenset({"pii"}))
    assert card.outputs[0].feature.type == "number/half"


def test_a_card_in_full_is_taken_as_it_is(tmp_path: Path) -> None:
    network = tmp_path / "network.yaml"
    network.write_text(
        "cards: [{name: a, version: '2', source: 'http://h:1/v2/models/a', kind: remote,"
        " inputs: [{name: x, type: number}], outputs: [{name: y, type: number/half}]}]"
    )
    (card,), _ = read(network, tmp_path)
    assert (card.id, card.kind) == ("a@2", "remote")


def test_goals_come_alone_or_several_and_find_their_validation_rows(tmp_path: Path) -> None:
    alone, several = tmp_path / "goal.yaml", tmp_path / "goals.yaml"
    alone.write_text(GOAL)
    several.write_text("goals:\n  -" + GOAL.replace("\n", "\n    "))
    for path in (alone, several):
        (goal,) = read_goals(path)
        assert (goal.name, goal.validation) == ("half", str(tmp_path / "rows.npz"))
    _, (goal,) = read(several, tmp_path)
    assert goal.name == "half"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("cards: [{source: 'no.py:x'}]", "there is no file"),
        ("cards: [{source: 'halving.py:'}]", "names nothing"),
        ("cards: [{source: 'halving.py:halve', prize: 3}]", "cards[0]: there is no field 'prize'"),
        ("cards: [{name: a}]", "cards[0]"),
        ("cards: {}\ncard: []", "there is no 'card'"),
        ("cards: 3", "cards is no list"),
        ("goals: [{name: a}]", "goals[0]"),
        ("- a", "key: value"),
        ("a: [", "line 1"),
    ],
)
def test_mistakes_are_named_with_their_place(code: Path, tmp_path: Path, text: str, says: str) -> None:
    network = tmp_path / "network.yaml"
    network.write_text(text)
    with pytest.raises(BadCard) as caught:
        read(network, tmp_path)
    assert says in caught.value.text()


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadCard, match=r"none\.yaml"):
        read_goals(tmp_path / "none.yaml")
