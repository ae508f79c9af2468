"""Pictures of drift: reference beside live per column, and a statistic over time with its threshold. SVG and PNG.

matplotlib is imported when the first picture is drawn, and only through its objects: no window, no global state.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Literal

import numpy as np

from lineage.drift.columns import Array
from lineage.drift.reference import Reference
from lineage.drift.report import DriftReport
from lineage.drift.sketches import Points, Sketch, points_of

Format = Literal["svg", "png"]

_BEFORE, _NOW, _ALARM = "#7a8794", "#1f6fb2", "#c0392b"
_BARS = 24
_ACROSS = 3


def columns_picture(
    reference: Reference,
    window: Sketch,
    report: DriftReport,
    names: Sequence[str] = (),
    format_: Format = "svg",
    most: int = 9,
) -> bytes:
    """Reference beside live, for the columns of these names or else the most surprising ones, `most` at most."""
    wanted = [c for c in report.columns if not names or c.column.name in names]
    wanted = sorted(wanted, key=lambda one: one.column.role == "joint")[:most]
    index = {column.name: i for i, column in enumerate(reference.columns)}
    n_down = max(1, math.ceil(len(wanted) / _ACROSS))
    figure = _figure(10.0, 2.6 * n_down)
    for place, one in enumerate(wanted):
        axes = figure.add_subplot(n_down, min(_ACROSS, max(len(wanted), 1)), place + 1)
        i = index[one.column.name]
        if one.column.kind == "number":
            _numbers(axes, points_of(reference.sketch.quantiles[i]), points_of(window.quantiles[i]))
        else:
            _categories(axes, reference, window, i)
        title = one.column.name if len(one.column.name) <= 34 else f"{one.column.name[:31]}..."
        axes.set_title(
            f"{title}\nPSI {one.distances.psi:.3g}" + (", drifted" if one.drifted else ""),
            fontsize=9,
            color=_ALARM if one.drifted else "black",
        )
        axes.tick_params(labelsize=7)
        axes.set_yticks([])
        _bare(axes)
        if place == 0:
            axes.legend(fontsize=7, frameon=False)
    if not wanted:
        figure.text(0.5, 0.5, "no columns", ha="center")
    return _bytes(figure, format_)


def history_picture(
    reports: Sequence[DriftReport], column: str = "", statistic: str = "psi", format_: Format = "svg"
) -> bytes:
    """A column's statistic over windows, with its threshold; without a column, how surprising each window is. UTC."""
    figure = _figure(8.0, 2.8)
    axes = figure.add_subplot(1, 1, 1)
    times, values, limits, drifted = [], [], [], []
    for report in reports:
        if not column:
            found: tuple[float, float] | None = _surprise(report.level), _surprise(report.false_alarms)
            is_alarm = report.drifted
        else:
            tests = [t for c in report.columns if c.column.name == column for t in c.tests if t.statistic == statistic]
            found = (tests[0].value, tests[0].threshold) if tests else None
            is_alarm = bool(tests) and tests[0].level <= report.false_alarms
        if found is not None:
            times.append(datetime.fromtimestamp(report.to_s, UTC))
            values.append(found[0])
            limits.append(found[1])
            drifted.append(is_alarm)
    when: Any = np.array(times, dtype=object)
    axes.plot(when, values, color=_NOW, linewidth=1.2, marker="o", markersize=3)
    axes.plot(when, limits, color=_ALARM, linewidth=1.0, linestyle="--", label="threshold")
    alarms = np.array(drifted, bool)
    axes.plot(when[alarms], np.array(values)[alarms], "o", color=_ALARM, markersize=5, label="drifted")
    axes.set_ylabel(statistic.replace("_", " ") if column else "surprise (-log10 level)", fontsize=8)
    axes.set_title(column or "how unlike training each window is", fontsize=9)
    axes.set_ylim(bottom=0.0)
    axes.tick_params(labelsize=7)
    _bare(axes)
    if times:
        axes.legend(fontsize=7, frameon=False)
        _dates(axes)
    return _bytes(figure, format_)


def _surprise(level: float) -> float:
    return min(16.0, -math.log10(max(level, 1e-16)))


def _numbers(axes: Any, before: Points, now: Points) -> None:
    """Bars of equal width over the middle 98 % of both."""
    ends = [_quantile(points, q) for points in (before, now) if len(points.values) for q in (0.01, 0.99)]
    if not ends:
        axes.text(0.5, 0.5, "no values", ha="center", transform=axes.transAxes, fontsize=8)
        return
    low, high = min(ends), max(ends)
    if high <= low:
        low, high = low - 0.5, high + 0.5
    edges = np.linspace(low, high, _BARS + 1)
    for points, colour, label in ((before, _BEFORE, "training"), (now, _NOW, "now")):
        if len(points.values):
            heights = _shares_between(points, edges)
            axes.stairs(
                heights, edges, fill=label == "training", color=colour, alpha=0.45 if label == "training" else 1.0
            )
            axes.plot([], [], color=colour, label=label)


def _shares_between(points: Points, edges: Array) -> Array:
    inner = points.upto(edges[1:-1])
    made: Array = np.diff(np.concatenate([[0.0], inner, [1.0]]))
    return made


def _categories(axes: Any, reference: Reference, window: Sketch, i: int) -> None:
    at = i - reference.bins.n_numbers
    before, now = reference.sketch.categories[at], window.categories[at]
    names = list(reference.bins.known[at][:9])
    rest = slice(len(names), None)
    bars = [
        [*counts.known[: len(names)].tolist(), int(counts.known[rest].sum()), counts.n_new] for counts in (before, now)
    ]
    labels = [*(name[:8] for name in names), "others", "new"]
    kept = [j for j in range(len(labels)) if j < len(names) or bars[0][j] or bars[1][j]]
    places = np.arange(len(kept))
    for counts, of, colour, label, shift in (
        (bars[0], before, _BEFORE, "training", -0.2),
        (bars[1], now, _NOW, "now", 0.2),
    ):
        heights = [counts[j] / max(of.n_there, 1) for j in kept]
        axes.bar(places + shift, heights, 0.4, color=colour, label=label, alpha=0.8)
    axes.set_xticks(places, [labels[j] for j in kept], rotation=30)


def _quantile(points: Points, q: float) -> float:
    return float(points.values[min(int(np.searchsorted(points.shares, q)), len(points.values) - 1)])


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _dates(axes: Any) -> None:
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    locator = AutoDateLocator(maxticks=8)  # type: ignore[no-untyped-call]
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))  # type: ignore[no-untyped-call]


def _bare(axes: Any) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _bytes(figure: Any, format_: Format) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    (FigureCanvasSVG if format_ == "svg" else FigureCanvasAgg)(figure)
    made = io.BytesIO()
    figure.savefig(made, format=format_, dpi=110, metadata={"Date": None} if format_ == "svg" else None)
    return made.getvalue()
