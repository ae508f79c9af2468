"""How the demo draws what it tells: digits, plans, and how long each step took. Text only, no cluster."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fenix.output import grid
from planner.features import Array

_SHADES = " ·░▒▓█"
_BAR_CHARS = 24
_MOST_REJECTED = 3

Step = Mapping[str, Any]  # of a plan, as /v1 has it


def picture(image: Array) -> str:
    """A digit (8, 8) of grey values 0 to 16, or a scan (32, 32) of grey values 255 to 0, two characters a pixel."""
    if image.shape[0] == 8:
        ink: Array = image / 16.0
    else:  # a quarter of the pixels says as much, and leaves room for what stands beside it
        grey = image.reshape(16, 2, 16, 2).mean(axis=(1, 3))
        paper = np.median(grey)
        ink = (paper - grey) / max(paper - grey.min(), 1.0)
    shades = np.rint(ink.clip(0.0, 1.0) * (len(_SHADES) - 1)).astype(int)
    return "\n".join("".join(_SHADES[shade] * 2 for shade in row) for row in shades)


def name_of(extension: str) -> str:
    """`name@version` without the version."""
    return extension.partition("@")[0]


def chain(plan: Mapping[str, Any]) -> str:
    """A plan in one line: braces around what runs side by side, a question mark after what only some rows need."""
    levels: dict[int, list[str]] = {}
    depth: dict[int, int] = {-1: 0}
    for step in plan["steps"]:
        before = sources_of(step) | ({step["guard"]["step"]} if step["guard"] else set())
        depth[step["id"]] = 1 + max(depth[source] for source in before)
        mark = "?" if step["guard"] else ""
        levels.setdefault(depth[step["id"]], []).append(name_of(step["extension"]) + mark)
    parts = [names[0] if len(names) == 1 else "{" + ", ".join(names) + "}" for _, names in sorted(levels.items())]
    return " → ".join(parts)


def sources_of(step: Step) -> set[int]:
    """The steps whose results this one takes; -1 is the request itself."""
    return {source["step"] for binding in step["inputs"] for source in binding["sources"]}


def plan_table(plan: Mapping[str, Any], times: Sequence[Mapping[str, Any]]) -> Table:
    """The steps of a plan with what feeds them, and when each of them ran, from `times` (StepTimes by step)."""
    number = {step["id"]: str(n) for n, step in enumerate(plan["steps"], 1)} | {-1: "request"}
    at = {time["step"]: time for time in times}
    whole_ms = max((time["started_ms"] + time["took_ms"] for time in times), default=1.0)
    rows: list[tuple[Any, ...]] = []
    for step in plan["steps"]:
        after = ", ".join(number[source] for source in sorted(sources_of(step)))
        guard = step["guard"]
        if guard:
            after += f" if {number[guard['step']]} is under {guard['below']:.1%} sure"
        ran = at.get(step["id"])
        took, bar = ("not needed", Text()) if ran is None else (f"{ran['took_ms']:.1f} ms", _bar(ran, whole_ms))
        rows.append((number[step["id"]], name_of(step["extension"]), after, took, bar))
    return grid(("", "step", "after", "took", "when"), rows, right=("took",))


def prediction(plan: Mapping[str, Any]) -> str:
    """What a plan promises, in one line."""
    promised = plan["prediction"]
    return f"{promised['accuracy']:.1%} right, {promised['p50_ms']:.1f} ms, {micros(promised['cost'])} µs of CPU a row"


def micros(cost_ms: float) -> str:
    """CPU milliseconds as microseconds: with a decimal below 10, without above."""
    return f"{cost_ms * 1e3:.1f}" if cost_ms < 9.95e-3 else f"{cost_ms * 1e3:.0f}"


def losers(explanation: Mapping[str, Any]) -> Iterator[str]:
    """The nearest of the plans that were found and not taken, one line each: what speaks against them, what they are.

    A plan that scores better than the chosen one broke a term; the others fall behind.
    """
    chosen = explanation["chosen"]
    found = [("", plan) for plan in explanation["others"]]
    found += [(rejected["reason"], rejected["plan"]) for rejected in explanation["rejected"]]
    for reason, plan in found[:_MOST_REJECTED]:
        broke_a_term = reason and plan["score"] is not None and plan["score"] < chosen["score"]
        yield f"{reason if broke_a_term else _beside(plan, chosen)}: {chain(plan)}"


def _beside(plan: Mapping[str, Any], chosen: Mapping[str, Any]) -> str:
    """What a plan promises more or less than the chosen one."""
    a, b = plan["prediction"], chosen["prediction"]
    points, cost, ms = 100 * (a["accuracy"] - b["accuracy"]), a["cost"] - b["cost"], a["p50_ms"] - b["p50_ms"]
    return f"{points:+.2f} points, {'-' if cost < 0 else '+'}{micros(abs(cost))} µs, {ms:+.1f} ms"


def _bar(ran: Mapping[str, Any], whole_ms: float) -> Text:
    start = min(int(ran["started_ms"] / whole_ms * _BAR_CHARS), _BAR_CHARS - 1)
    end = int((ran["started_ms"] + ran["took_ms"]) / whole_ms * _BAR_CHARS)
    return Text(" " * start + "█" * max(1, end - start), style="cyan")
