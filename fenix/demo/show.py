"""How the demo draws what it tells: digits, plans, and how long each step took. Text only, no cluster."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fenix.output import grid
from planner.features import Array

_SHADES = " ·░▒▓█"
_BAR_CHARS = 28
_REJECTED = 3

Step = Mapping[str, Any]  # of a plan, as /v1 has it


def digit_picture(image: Array) -> str:
    """A scanned digit (8, 8) with grey values 0 to 16, two characters a pixel."""
    return "\n".join("".join(_SHADES[int(v) * (len(_SHADES) - 1) // 16] * 2 for v in row) for row in image)


def name_of(extension: str) -> str:
    """`name@version` without the version."""
    return extension.partition("@")[0]


def chain(plan: Mapping[str, Any]) -> str:
    """A plan in one line: braces around what runs side by side, a question mark after what only some rows need."""
    levels: dict[int, list[str]] = {}
    depth: dict[int, int] = {-1: 0}
    for step in plan["steps"]:
        depth[step["id"]] = 1 + max(depth[source] for source in sources_of(step))
        mark = "?" if step["guard"] else ""
        levels.setdefault(depth[step["id"]], []).append(name_of(step["extension"]) + mark)
    parts = [names[0] if len(names) == 1 else "{" + ", ".join(names) + "}" for _, names in sorted(levels.items())]
    return " → ".join(parts)


def sources_of(step: Step) -> set[int]:
    """The steps that must have run before this one; -1 is the request itself."""
    found = {source["step"] for binding in step["inputs"] for source in binding["sources"]}
    return found | ({step["guard"]["step"]} if step["guard"] else set())


def plan_table(plan: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> Table:
    """The steps of a plan with what feeds them, and when each of them ran, from `times` (StepTimes by step)."""
    names = {step["id"]: name_of(step["extension"]) for step in plan["steps"]} | {-1: "the request"}
    at = {time["step"]: time for time in times}
    whole_ms = max((time["started_ms"] + time["took_ms"] for time in times), default=1.0)
    rows: list[tuple[Any, ...]] = []
    for step in plan["steps"]:
        after = ", ".join(names[source] for source in sorted(sources_of(step)))
        if step["guard"]:
            after += f" (if less sure than {step['guard']['below']:.0%})"
        ran = at.get(step["id"])
        if ran is None:
            rows.append((names[step["id"]], after, "", "not needed", ""))
        else:
            took = f"{ran['took_ms']:.1f} ms"
            rows.append((names[step["id"]], after, ran["n_rows"], took, _bar(ran, whole_ms)))
    return grid(("step", "after", "rows", "took", "when"), rows, right=("rows", "took"))


def prediction(plan: Mapping[str, Any]) -> str:
    """What a plan promises, in one line."""
    promised = plan["prediction"]
    return (
        f"{promised['accuracy']:.1%} right, {promised['p50_ms']:.1f} ms (p99 {promised['p99_ms']:.1f} ms), "
        f"{promised['cost'] * 1e3:.1f} µs of CPU a row"
    )


def losers(explanation: Mapping[str, Any]) -> Iterable[str]:
    """The plans that were found and not taken, one line each: the runners-up first."""
    for plan in explanation["others"][:_REJECTED]:
        yield f"{chain(plan)}: {prediction(plan)}"
    for rejected in explanation["rejected"][:_REJECTED]:
        yield f"{chain(rejected['plan'])}: {rejected['reason']}"


def _bar(ran: Mapping[str, Any], whole_ms: float) -> Text:
    start = min(int(ran["started_ms"] / whole_ms * _BAR_CHARS), _BAR_CHARS - 1)
    end = int((ran["started_ms"] + ran["took_ms"]) / whole_ms * _BAR_CHARS)
    return Text(" " * start + "█" * max(1, end - start), style="cyan")
