"""`fenix get` and `fenix describe`: what the catalogue holds."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import Output, SettingsFile, TimeoutS, Url, open_client
from fenix.commands.quality import (
    SegmentOption,
    Window,
    WindowOption,
    extension_tables,
    goal_tables,
    quality_of,
    shown_as_data,
)
from fenix.output import Format, emit, grid, pairs
from planner.errors import NotFound, near

if TYPE_CHECKING:
    from rich.console import RenderableType

    from fenix.client import Client


class What(enum.StrEnum):
    """What can be listed."""

    EXTENSIONS = "extensions"
    GOALS = "goals"
    FEATURES = "features"


def get(
    what: Annotated[What, typer.Argument(metavar="WHAT", help="extensions, goals or features.")],
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """List extensions, goals or feature types."""
    with open_client(url, settings, timeout_s) as client:
        data = _features(client) if what is What.FEATURES else client.goals()
        if what is What.EXTENSIONS:
            data = client.extensions()
    emit(data, output, lambda: _TABLES[what](data))


def describe(
    name: Annotated[str, typer.Argument(help="A goal, or an extension as NAME or NAME@VERSION.", show_default=False)],
    window: WindowOption = Window.DAY,
    segment: SegmentOption = None,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Show one extension (NAME or NAME@VERSION) or goal in full, and how well it does."""
    with open_client(url, settings, timeout_s) as client:
        data, is_goal = _find(client, name)
        told = quality_of(client, data["name"] if is_goal else data["id"], is_goal, window, segment)
    emit({**data, **shown_as_data(told, is_goal)}, output, lambda: _described(data, is_goal, told))


def _described(data: dict[str, Any], is_goal: bool, told: Mapping[str, Any] | None) -> Iterator[RenderableType]:
    yield from _described_goal(data) if is_goal else _described_extension(data)
    if told is not None:
        yield from goal_tables(told) if is_goal else extension_tables(told)


def _find(client: Client, name: str) -> tuple[dict[str, Any], bool]:
    """The goal or extension of that name, and whether it is a goal."""
    if "@" not in name:
        try:
            return client.goal(name), True
        except NotFound:
            pass
    try:
        return client.extension(name), False
    except NotFound as error:
        if "several versions" in error.message:
            raise
        names = [goal["name"] for goal in client.goals()] + [card["id"] for card in client.extensions()]
        raise NotFound(f"no goal or extension {name!r}.", hint=near(name, names)) from None


def _features(client: Client) -> list[dict[str, Any]]:
    """Every feature type with who takes and who gives it."""
    found: dict[str, dict[str, Any]] = {}
    for kind, entries in (("extension", client.extensions()), ("goal", client.goals())):
        for entry in entries:
            for side, key in (("inputs", "taken_by"), ("outputs", "given_by" if kind == "extension" else "wanted_by")):
                for port in entry[side]:
                    tensor = f"{port['datatype']}{port['shape']}"
                    row = found.setdefault(
                        f"{port['type']} {tensor}",
                        {"type": port["type"], "tensor": tensor, "given_by": [], "taken_by": [], "wanted_by": []},
                    )
                    name = entry.get("id", entry["name"])
                    if name not in row[key]:
                        row[key].append(name)
    return [found[key] for key in sorted(found)]


# ------------------------------------------------------------------------------------------------------------ tables


def feature(port: Mapping[str, Any]) -> str:
    """A port as people read it: `image: image/digit FP32[8, 8]`."""
    many = f" x2..{port['many']}" if port["many"] > 1 else ""
    return f"{port['name']}: {port['type']} {port['datatype']}{port['shape']}{many}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _types(ports: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(port["type"] for port in ports)


def _accuracy(accuracy: Mapping[str, Any]) -> str:
    if not accuracy["n_rows"]:
        return f"{percent(accuracy['mean'])} (a guess)"
    return f"{percent(accuracy['mean'])} ± {50 * (accuracy['high'] - accuracy['low']):.1f}"


def _extensions(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "No extensions. `fenix deploy SOURCE` adds some."
        return
    rows = [
        (
            card["id"],
            card["kind"],
            f"{_types(card['inputs'])} → {_types(card['outputs'])}",
            _accuracy(card["accuracy"]),
            f"{card['profile']['fixed_ms'] + card['profile']['per_row_ms']:.2f}",
            f"{card['cost']:g}",
        )
        for card in data
    ]
    yield grid(
        ("extension", "kind", "takes → gives", "accuracy", "ms a row", "cost"),
        rows,
        right=("accuracy", "ms a row", "cost"),
    )


def _goals(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "No goals. `fenix deploy --goal FILE` adds some."
        return
    rows = [
        (goal["name"], f"{_types(goal['inputs'])} → {_types(goal['outputs'])}", goal["description"]) for goal in data
    ]
    yield grid(("goal", "takes → gives", "description"), rows)


def _feature_rows(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "No feature types: nothing is deployed. `fenix deploy SOURCE` adds extensions."
        return
    columns = ("given_by", "taken_by", "wanted_by")
    rows = [(row["type"], row["tensor"], *("\n".join(row[column]) for column in columns)) for row in data]
    yield grid(("type", "tensor", "given by", "taken by", "wanted by"), rows)


_SHARED_WITH = {
    "shared": "kept results are for everyone",
    "tags": "kept results are for requests with the same data tags",
    "user": "kept results are for the same user, with the same data tags",
    "off": "results are not kept",
}
_TABLES = {What.EXTENSIONS: _extensions, What.GOALS: _goals, What.FEATURES: _feature_rows}


def _described_extension(card: Mapping[str, Any]) -> Iterator[RenderableType]:
    profile = card["profile"]
    ends = f"{profile['fixed_ms']:.3g} ms + {profile['per_row_ms']:.3g} ms a row"
    if profile["per_kilo_ms"]:
        ends += f" + {profile['per_kilo_ms']:.3g} ms a thousand elements"
    measured = f"measured on {profile['n_calls']} calls" if profile["n_calls"] else "the author's guess"
    rows = card["accuracy"]["n_rows"]
    yield pairs(
        {
            "extension": card["id"],
            "description": card["description"],
            "examples": "\n".join(card["examples"]),
            "kind": card["kind"],
            "source": card["source"],
            "takes": "\n".join(map(feature, card["inputs"])),
            "gives": "\n".join(map(feature, card["outputs"])),
            "latency": f"{ends}, p99 {profile['p99_ratio']:.2g} times that ({measured})",
            "accuracy": f"{_accuracy(card['accuracy'])}" + (f" on {rows} rows" if rows else ""),
            "cost": f"{card['cost']:g} a row",
            "sure from": card["confidence_threshold"],
            "may see": "all data" if card["may_see"] is None else ", ".join(card["may_see"]) or "untagged data only",
            "may follow": ", ".join(card["may_follow"]),
            "not after": ", ".join(card["may_not_follow"]),
            "replaces": ", ".join(card["replaces"]),
            "site": card["site"],
            "runs": f"{card['placement']} (its card says {card['placement_asked']})",
            "made of": ", ".join(card["parts"]),
            "cache": f"{card['cache']}: {_SHARED_WITH[card['cache']]}"
            + ("" if card["deterministic"] else ", but it is not repeatable, so none are"),
            "repeatable": "yes" if card["deterministic"] else "no: the same input may give another output",
        }
    )


def _described_goal(goal: Mapping[str, Any]) -> Iterator[RenderableType]:
    terms = {name: value for name, value in goal["terms"].items() if value not in (None, "", [])}
    yield pairs(
        {
            "goal": f"{goal['name']} (version {goal['version']})",
            "description": goal["description"],
            "examples": "\n".join(goal["examples"]),
            "takes": "\n".join(map(feature, goal["inputs"])),
            "gives": "\n".join(map(feature, goal["outputs"])),
            "terms": ", ".join(f"{name} {value}" for name, value in terms.items()),
            "objective": ", ".join(f"{name} {weight:g}" for name, weight in goal["objective"].items()),
        }
    )
