"""What `fenix describe` shows of how well a version or a goal does."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.output import fail, grid, pairs
from planner.errors import FenixError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from fenix.client import Client

_MAX_CLASSES, _MAX_CONFUSED = 12, 5
_SEGMENTS = {"": "(no user)", "(other)": "(all others)"}


class Window(enum.StrEnum):
    """How far back figures reach."""

    QUARTER = "15m"
    HOUR = "1h"
    MORNING = "6h"
    DAY = "1d"
    WEEK = "7d"
    MONTH = "30d"
    ALL = "all"


_WINDOWS = {
    Window.QUARTER: "the last 15 minutes",
    Window.HOUR: "the last hour",
    Window.MORNING: "the last 6 hours",
    Window.DAY: "the last day",
    Window.WEEK: "the last 7 days",
    Window.MONTH: "the last 30 days",
    Window.ALL: "all times",
}

WindowOption = Annotated[
    Window, typer.Option("--window", help="How far back the figures reach: 15m, 1h, 6h, 1d, 7d, 30d or all.")
]
SegmentOption = Annotated[
    str | None,
    typer.Option("--segment", metavar="USER", help="Figures of this user's requests alone.", show_default="all users"),
]


def quality_of(client: Client, name: str, is_goal: bool, window: Window, segment: str | None) -> dict[str, Any] | None:
    """What the gateway tells of a version or goal; None, with a word on stderr, where it cannot tell."""
    try:
        if is_goal:
            return client.goal_quality(name, window=window.value, segment=segment)
        return client.extension_quality(name, window=window.value, segment=segment)
    except FenixError as error:
        fail(f"how well it does is not known: {error.text()}")
        return None


def shown_as_data(told: Mapping[str, Any] | None, is_goal: bool) -> dict[str, Any]:
    """As JSON has it, beside what the catalogue says; null where it is not known."""
    names = ("window", "segment", "plans" if is_goal else "quality", "findings")
    return {name: None if told is None else told[name] for name in names}


def extension_tables(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The figures of a version."""
    yield from _begin(told)
    quality = told["quality"]
    if not quality["n"] and not quality["n_judged"]:
        yield "No requests."
    else:
        yield pairs(_figures(quality))
        yield from _classes(quality)
        yield from _reliability(quality)
        yield from _users(quality)
    yield from _findings(told["findings"])


def goal_tables(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    """The figures of a goal's plans."""
    yield from _begin(told)
    if not told["plans"]:
        yield "No requests."
    else:
        rows = [
            (_plan(plan), *_row(plan["quality"]), _percent((plan["quality"]["calibration"] or {}).get("ece")))
            for plan in told["plans"]
        ]
        yield _compact("plan", (*_ROW, "ece %"), rows)
    yield from _findings(told["findings"])


def _plan(told: Mapping[str, Any]) -> str:
    return "\n".join((told["plan"], *(f"  {step}" for step in told["steps"])))


def poor_line(found: Sequence[Mapping[str, Any]]) -> Text:
    """Who does poorly, in a line."""
    from rich.text import Text

    checks: dict[str, list[str]] = {}
    for one in found:
        kinds = checks.setdefault(one["id"], [])
        if one["check"] not in kinds:
            kinds.append(one["check"])
    said = ", ".join(f"{name} ({', '.join(kinds)})" for name, kinds in checks.items())
    name = next(iter(checks)).partition("/")[0]
    return Text.assemble(("does poorly: ", "bold red"), f"{said}. `fenix describe {name}` says why.")


def _begin(told: Mapping[str, Any]) -> Iterator[RenderableType]:
    from rich.text import Text

    of = "" if told["segment"] is None else f", user {_SEGMENTS.get(told['segment'], told['segment'])}"
    yield ""
    yield Text.assemble(
        (f"Quality over {_WINDOWS[Window(told['window'])]}{of}", "bold"), (" (with 95 % intervals)", "dim")
    )


def _figures(quality: Mapping[str, Any]) -> dict[str, Any]:
    calibration, errors = quality["calibration"], quality["errors"] or {}
    told = f" of {quality['n_judged']:,} rows whose label is known" if quality["accuracy"] else ""
    rate = quality["throughput_per_s"]
    return {
        "requests": f"{quality['n']:,}" + (f", {_number(rate)} a second" if rate else ""),
        "failed": _share(quality["error_rate"]),
        "latency": "\n".join(f"{q} {_ms(quality[f'{q}_ms'])}" for q in ("p50", "p95", "p99") if quality[f"{q}_ms"]),
        "right": f"{_share(quality['accuracy'])}{told}",
        "macro F1": _share(quality["macro_f1"]),
        "confidence": _share(quality["confidence"]),
        "calibration error": _share(calibration["ece"]) if calibration else "",
        "mean error": f"{_number(errors['mae'])} of {errors['mae']['n']:,} numbers" if errors else "",
        "root mean square error": _number(errors.get("rmse")),
        "bias": _number(errors.get("bias")),
        "R squared": _number(errors.get("r2")),
        "rating": _number(quality["rating"]),
    }


def _classes(quality: Mapping[str, Any]) -> Iterator[RenderableType]:
    found = sorted(quality["classes"], key=lambda one: -one["support"])
    if not found:
        return
    shown = found[:_MAX_CLASSES]
    if len(found) <= _MAX_CLASSES:
        shown = quality["classes"]  # in the order of their names
    yield ""
    columns = ("there", "precision", "recall", "F1")
    rows = [
        (one["label"], f"{one['support']:,}", *(_share(one[name]) for name in ("precision", "recall", "f1")))
        for one in shown
    ]
    yield grid(("class", *columns), rows, right=columns)
    if len(found) > len(shown):
        yield f"... and {len(found) - len(shown)} rarer classes: -o json has them."
    if quality["confused"]:
        yield ""
        rows = [(one["truth"], one["predicted"], f"{one['n']:,}") for one in quality["confused"][:_MAX_CONFUSED]]
        yield grid(("truly", "taken for", "times"), rows, right=("times",))


def _reliability(quality: Mapping[str, Any]) -> Iterator[RenderableType]:
    if not quality["calibration"]:
        return
    yield ""
    rows = [
        (f"{100 * one['above']:.0f} to {100 * one['up_to']:.0f} %", f"{100 * one['confidence']:.1f} %",
         _share(one["right"]), f"{one['n']:,}")
        for one in quality["calibration"]["bins"]
    ]  # fmt: skip
    columns = ("on average", "right", "rows")
    yield grid(("confidence", *columns), rows, right=columns)


def _users(quality: Mapping[str, Any]) -> Iterator[RenderableType]:
    segments = sorted(quality["segments"], key=lambda one: -one["n"])
    if len(segments) > 1:
        rows = [(_SEGMENTS.get(one["segment"], one["segment"]), *_row(one)) for one in segments]
        yield ""
        yield _compact("user", _ROW, rows)


_ROW = ("requests", "failed %", "p50 ms", "p99 ms", "right %", "rating")


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        f"{found['n']:,}",
        _percent(found["error_rate"]),
        _number(found["p50_ms"]),
        _number(found["p99_ms"]),
        _percent(found["accuracy"]),
        _number(found["rating"]),
    )


def _compact(first: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> RenderableType:
    """A grid without the columns that are empty."""
    kept = [0, *(k for k in range(1, len(columns) + 1) if any(row[k] for row in rows))]
    names = (first, *columns)
    return grid([names[k] for k in kept], [[row[k] for k in kept] for row in rows], right=columns)


def _findings(found: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    from rich.text import Text

    if not found:
        return
    yield ""
    rows = [(Text(one["check"], "bold red"), one["against"], _about(one["id"]) + one["sentence"]) for one in found]
    yield grid(("does poorly in", "against", "because it"), rows)


def _about(id_: str) -> str:
    _, slash, plan = id_.partition("/")
    return f"({plan}) " if slash else ""


def _share(estimate: Mapping[str, Any] | None) -> str:
    """A share in percent, with its interval."""
    return "" if estimate is None else _with_limits(estimate, " %", 100.0, ".1f")


def _ms(estimate: Mapping[str, Any] | None) -> str:
    return "" if estimate is None else _with_limits(estimate, " ms")


def _number(estimate: Mapping[str, Any] | None) -> str:
    return "" if estimate is None else _with_limits(estimate)


def _percent(estimate: Mapping[str, Any] | None) -> str:
    """As `_share`, where the head of the column has the unit."""
    return "" if estimate is None else _with_limits(estimate, "", 100.0, ".1f")


def _with_limits(estimate: Mapping[str, Any], unit: str = "", scale: float = 1.0, form: str = ".3g") -> str:
    low, high = ("?" if end is None else f"{scale * end:{form}}" for end in (estimate["low"], estimate["high"]))
    return f"{scale * estimate['value']:{form}}{unit} ({low} to {high})"
