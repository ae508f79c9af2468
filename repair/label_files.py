"""Items out and labels in, as CSV and as the JSON of Label Studio."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from typing import Any

from repair.errors import LabelRefused
from repair.labels import Item, Label, Labelled, as_text

_OUT = ("item", "repair", "reason", "data", "label", "annotator")
_IN = ("item", "label", "annotator")


def items_to_csv(items: Sequence[Item]) -> str:
    """A line per item, with label and annotator left empty; `labels_from_csv` reads it when they are filled in."""
    return _csv([_line(item, "", "") for item in items])


def labels_to_csv(items: Sequence[Labelled]) -> str:
    """A line per label; items without one are left out."""
    return _csv([_line(one.item, label.label, label.annotator) for one in items for label in one.labels])


def labels_from_csv(text: str, now_s: float, annotator: str = "") -> tuple[Label, ...]:
    """Labels from CSV with the columns item and label, and annotator where it is not given for all; other columns that
    are exported may be there too. Lines without a label are passed over.

    Raises LabelRefused, with the line, for what is malformed; then nothing of the file counts.
    """
    reader = csv.reader(io.StringIO(text.removeprefix("\ufeff"), newline=""), strict=True)
    found = []
    try:
        names = next(reader, [])
        unknown = [name for name in names if name not in _OUT]
        if unknown:
            raise LabelRefused(f"unknown column {unknown[0][:40]!r}.", hint=f"There are: {', '.join(_OUT)}.")
        if len(set(names)) < len(names) or not {"item", "label"} <= set(names):
            raise LabelRefused("the first line names the columns item and label once each.")
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise LabelRefused(f"line {reader.line_num} has {len(cells)} cells, the first line {len(names)}.")
            row = dict(zip(names, cells, strict=True))
            if row["label"] == "":
                continue
            try:
                found.append(Label(row["item"], row.get("annotator") or annotator, row["label"], now_s))
            except LabelRefused as error:
                raise LabelRefused(f"line {reader.line_num}: {error.message}", hint=error.hint) from None
    except csv.Error as error:
        raise LabelRefused(f"this is not CSV after line {reader.line_num}: {error}.") from None
    return tuple(found)


def items_to_label_studio(items: Sequence[Item]) -> list[dict[str, Any]]:
    """Tasks as Label Studio imports them; the item travels in `data.fenix_item`, which its exports keep."""
    return [
        {
            "data": {**item.data, "fenix_item": item.id},
            "meta": {"repair": item.repair, "reason": item.reason},
        }
        for item in items
    ]


def label_studio_config(classes: Sequence[str], text_field: str = "text") -> str:
    """A labelling interface for the project: one choice among these classes."""
    from xml.sax.saxutils import quoteattr

    choices = "".join(f"<Choice value={quoteattr(name)}/>" for name in classes)
    return (
        f'<View><Text name="row" value={quoteattr("$" + text_field)}/>'
        f'<Choices name="label" toName="row" choice="single">{choices}</Choices></View>'
    )


def labels_from_label_studio(text: str | bytes, now_s: float, annotator: str = "") -> tuple[Label, ...]:
    """Labels from Label Studio's exports, JSON or JSON-MIN: one choice per annotation. Annotations that were cancelled
    or say nothing are passed over. Who made one is `completed_by` (a number, or an object with an e-mail address), else
    `annotator`.

    Raises LabelRefused, with the task, for what is malformed; then nothing of the file counts.
    """
    try:
        tasks = json.loads(text)
    except ValueError as error:
        raise LabelRefused(f"this is not JSON: {error}.") from None
    if not isinstance(tasks, list):
        raise LabelRefused("an export of Label Studio is a list of tasks.")
    found = []
    for number, task in enumerate(tasks, 1):
        try:
            found += _of_task(task, now_s, annotator)
        except (LabelRefused, TypeError, AttributeError, LookupError, ValueError) as error:
            said = error.message if isinstance(error, LabelRefused) else f"it is malformed ({error!r})."
            raise LabelRefused(f"task {number}: {said}") from None
    return tuple(found)


def _of_task(task: dict[str, Any], now_s: float, annotator: str) -> list[Label]:
    if "annotations" not in task:  # JSON-MIN: the data and the choice side by side
        if not task.get("label"):
            return []
        item = as_text("data.fenix_item", task.get("fenix_item"))
        return [Label(item, _annotator(task.get("annotator"), annotator), _choice(task["label"]), now_s)]
    item = as_text("data.fenix_item", task["data"].get("fenix_item"))
    found = []
    for annotation in task["annotations"]:
        choices = [part["value"]["choices"] for part in annotation["result"] if "choices" in part["value"]]
        if annotation.get("was_cancelled") or not choices:
            continue
        if len(choices) > 1:
            raise LabelRefused("an annotation has several choices, and a label is one.")
        by = _annotator(annotation.get("completed_by"), annotator)
        found.append(Label(item, by, _choice(choices[0]), now_s))
    return found


def _choice(value: Any) -> str:
    if isinstance(value, list):
        if len(value) != 1:
            raise LabelRefused(f"{len(value)} classes are chosen, and a label is one.")
        (value,) = value
    return as_text("label", value)


def _annotator(value: Any, otherwise: str) -> str:
    if isinstance(value, dict):
        value = value.get("email") or value.get("id")
    return otherwise if value is None else as_text("completed_by", value)


def _line(item: Item, label: str, annotator: str) -> tuple[str, ...]:
    return item.id, item.repair, item.reason, json.dumps(dict(item.data)), label, annotator


def _csv(lines: Sequence[Sequence[str]]) -> str:
    made = io.StringIO(newline="")
    writer = csv.writer(made)
    writer.writerow(_OUT)
    writer.writerows(lines)
    return made.getvalue()
