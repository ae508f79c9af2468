from __future__ import annotations

import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repair.errors import LabelRefused
from repair.label_files import (
    items_to_csv,
    items_to_label_studio,
    label_studio_config,
    labels_from_csv,
    labels_from_label_studio,
    labels_to_csv,
)
from repair.labels import Item, Label, Labelled

ITEM = Item("r1-0", "r1", {"text": 'a "word", and\nmore'}, "random")
TEXTS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)


def annotated(*choices: str, by: object = 7, **more: object) -> dict[str, object]:
    result = [{"from_name": "label", "to_name": "row", "type": "choices", "value": {"choices": list(choices)}}]
    return {"completed_by": by, "result": result if choices else [], **more}


def export(*annotations: object, item: object = "r1-0") -> str:
    return json.dumps([{"id": 1, "data": {"fenix_item": item}, "annotations": list(annotations)}])


@given(TEXTS, TEXTS)
def test_labels_come_back_from_csv_as_they_went(label: str, annotator: str) -> None:
    given_ = Label("r1-0", annotator, label, 3.0)
    assert labels_from_csv(labels_to_csv([Labelled(ITEM, (given_,))]), 3.0) == (given_,)


def test_a_table_of_items_is_read_again_once_labels_are_filled_in() -> None:
    lines = list(csv.reader(io.StringIO(items_to_csv([ITEM, Item("r1-1", "r1", {})]))))
    assert json.loads(lines[1][3]) == dict(ITEM.data)
    assert labels_from_csv(items_to_csv([ITEM]), 0.0) == ()
    lines[1][4] = "3"
    made = io.StringIO()
    csv.writer(made).writerows(lines)
    assert labels_from_csv(made.getvalue(), 1.0, "ann") == (Label("r1-0", "ann", "3", 1.0),)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "item and label"),
        ("item,label,colour\n", "unknown column 'colour'"),
        ("item,item,label\n", "once each"),
        ("item,label\nx\n", "line 2 has 1 cells"),
        ("item,label\nx,1\n", "line 2: annotator"),
        ('item,label\n"x,1\n', "not CSV"),
    ],
)
def test_csv_that_is_malformed_is_refused_with_its_line(text: str, said: str) -> None:
    with pytest.raises(LabelRefused, match=said):
        labels_from_csv(text, 0.0)


def test_an_export_of_label_studio_is_read() -> None:
    text = export(
        annotated("3"),
        annotated("5", by={"id": 2, "email": "b@x.org"}),
        annotated(),
        annotated("4", was_cancelled=True),
    )
    assert labels_from_label_studio(text, 2.0) == (Label("r1-0", "7", "3", 2.0), Label("r1-0", "b@x.org", "5", 2.0))


def test_a_short_export_of_label_studio_is_read_too() -> None:
    tasks = [{"fenix_item": "r1-0", "label": "3", "annotator": 1}, {"fenix_item": "r1-1"}]
    assert labels_from_label_studio(json.dumps(tasks), 0.0) == (Label("r1-0", "1", "3"),)


def test_tasks_carry_their_item_through_label_studio() -> None:
    (task,) = items_to_label_studio([ITEM])
    assert task["data"] == {**ITEM.data, "fenix_item": "r1-0"}
    text = json.dumps([{**task, "annotations": [annotated("3")]}])
    assert [label.item for label in labels_from_label_studio(text, 0.0)] == ["r1-0"]
    assert '<Choice value="a&amp;b"/>' in label_studio_config(["a&b"])


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "{}",
        "[3]",
        export(annotated("3", "4")),
        export(annotated("3"), item=None),
        export({"result": [{}]}),
        export({"result": 4}),
    ],
)
def test_what_is_no_export_of_label_studio_is_refused(text: str) -> None:
    with pytest.raises(LabelRefused):
        labels_from_label_studio(text, 0.0)
