"""A family of versions as an SVG picture: parents before children, edges in the colour of their kind.

It stands for itself: no scripts, no fonts or files from elsewhere, and every text in it is escaped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise

from lineage.graph.family import Family
from lineage.graph.layout import Layout, Place, lay_out
from lineage.graph.records import Edge, EdgeKind, Version, VersionId

Point = tuple[float, float]

_COLOURS = {
    EdgeKind.FINE_TUNE: "#1f6fb4",
    EdgeKind.SPECIALISE: "#2f9e9e",
    EdgeKind.QUANTISE: "#7a5bb5",
    EdgeKind.PRUNE: "#b5519c",
    EdgeKind.DISTIL: "#8a6d3b",
    EdgeKind.MERGE: "#3b7d3b",
    EdgeKind.REPAIR: "#c9480f",
    EdgeKind.FUSE: "#555555",
    EdgeKind.RETRAIN: "#97891d",
}
_MARKS = {"champion": "#1b7f3b", "canary": "#b07a00", "shadow": "#6b7280", "drifted": "#c0262d", "retired": "#8b8b8b"}
_OTHER_MARK = "#4b5563"
_WIDTH, _HEIGHT = 150.0, 46.0  # of a version
_MARGIN, _LEGEND = 24.0, 26.0
_ALONG = {True: _HEIGHT + 52.0, False: _WIDTH + 136.0}  # from layer to layer, downwards or to the right
_ACROSS = {True: _WIDTH + 26.0, False: _HEIGHT + 20.0}
_BEND, _NEAR = 0.42, 0.82  # where on its way an edge bends most, and where on the curve its label stands
_LETTER = 0.6  # width of a letter over the size of its font


@dataclass(frozen=True, slots=True)
class _Canvas:
    """Where places of a layout are in the picture. Layers follow each other downwards or to the right."""

    layout: Layout
    down: bool

    def at(self, place: Place) -> Point:
        """The middle of a version that stands there."""
        layer, across = place[0] * _ALONG[self.down], place[1] * _ACROSS[self.down]
        x, y = (across, layer) if self.down else (layer, across)
        return x + _MARGIN + _WIDTH / 2, y + _MARGIN + _HEIGHT / 2

    def size(self) -> Point:
        x, y = self.at((max(self.layout.n_layers - 1, 0), self.layout.breadth))
        return x + _WIDTH / 2 + _MARGIN, y + _HEIGHT / 2 + _MARGIN


def draw_family(
    family: Family, centre: VersionId | None = None, marks: Mapping[VersionId, Sequence[str]] | None = None
) -> str:
    """An SVG document. `centre` is drawn with a heavy frame; `marks` are words beside a version, such as `champion` or
    `drifted`, which have colours of their own.

    Of a large family draw `nearest_family`: some 40 versions are readable, and what is left out is counted (`+12`).
    """
    layout = lay_out(list(family.versions), [(edge.parent, edge.child) for edge in family.edges])
    down = (layout.breadth + 1) * _ACROSS[True] <= layout.n_layers * _ALONG[False]
    canvas = _Canvas(layout, down)
    width, height = canvas.size()
    kinds = [kind for kind in EdgeKind if any(edge.kind is kind for edge in family.edges)]
    legend = _legend(kinds, height)
    width, height = max(width, 2 * _MARGIN + 110.0 * len(kinds)), height + (_LEGEND if kinds else 0.0)
    made_by = _edges_by_pair(family.edges)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}"'
        f' viewBox="0 0 {width:.0f} {height:.0f}" font-family="DejaVu Sans, Verdana, sans-serif" role="img">',
        f"<title>{_text(_title(family, centre))}</title>",
        _arrows(kinds),
        f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
        *(_edge(canvas, pair, edges) for pair, edges in made_by.items()),
        *(
            _version(canvas, version, id == centre, (marks or {}).get(id, ()), family.hidden.get(id, 0))
            for id, version in family.versions.items()
        ),
        *(_label(canvas, pair, edges) for pair, edges in made_by.items()),
        legend,
        "</svg>",
    ]
    return "\n".join(part for part in parts if part) + "\n"


def alias_marks(family: Family, aliases: Mapping[str, Mapping[str, str]]) -> dict[VersionId, list[str]]:
    """Marks from the aliases in MLflow: by model its aliases, each with its version (`ModelRegistry.aliases`)."""
    marks: dict[VersionId, list[str]] = {}
    for id, version in family.versions.items():
        found = [alias for alias, number in aliases.get(version.name, {}).items() if number == version.number]
        if found:
            marks[id] = sorted(found)
    return marks


def _version(canvas: _Canvas, version: Version, central: bool, marks: Sequence[str], hidden: int) -> str:
    x, y = canvas.at(canvas.layout.places[version.id])
    left, top = x - _WIDTH / 2, y - _HEIGHT / 2
    second = version.id[:12] if version.name else "not registered"
    data = version.data
    told = [
        str(version),
        version.id,
        *([f"trained on {data.n_rows:,} rows, {data.dataset[:12]}"] if data else []),
        *marks,
    ]
    parts = [
        f"<g><title>{_text(chr(10).join(told))}</title>",
        f'<rect x="{left:.1f}" y="{top:.1f}" width="{_WIDTH:.0f}" height="{_HEIGHT:.0f}" rx="7"'
        f' fill="{"#eef4fb" if central else "#f8f9fa"}" stroke="{"#16324f" if central else "#9aa4af"}"'
        f' stroke-width="{2.5 if central else 1}"/>',
        _words(x, y - 1, 13, _shortened(_name(version), 13, _WIDTH - 14), "#111827", "middle", bold=True),
        _words(x, y + 14, 10, second, "#6b7280", "middle"),
    ]
    at = left + 6
    for mark in marks:
        shown = _shortened(mark, 9, _WIDTH - 40)
        width = len(shown) * 9 * _LETTER + 12
        parts.append(
            f'<rect x="{at:.1f}" y="{top - 11:.1f}" width="{width:.1f}" height="15" rx="7.5"'
            f' fill="{_MARKS.get(mark, _OTHER_MARK)}"/>'
        )
        parts.append(_words(at + width / 2, top, 9, shown, "#ffffff", "middle"))
        at += width + 4
    if hidden:
        parts.append(_words(left + _WIDTH - 5, top + _HEIGHT - 5, 9, f"+{hidden:,}", "#6b7280", "end"))
    return "".join(parts) + "</g>"


def _edge(canvas: _Canvas, pair: tuple[str, str], edges: Sequence[Edge]) -> str:
    colour = _COLOURS[edges[0].kind]
    points = _points(canvas, pair)
    way = [f"M{points[0][0]:.1f},{points[0][1]:.1f}"]
    for one, other in pairwise(points):
        way.append("C" + " ".join(f"{x:.1f},{y:.1f}" for x, y in _bends(canvas, one, other)[1:]))
    told = "\n".join(line for edge in edges for line in _told(edge))
    return (
        f'<path d="{" ".join(way)}" fill="none" stroke="{colour}" stroke-width="1.6"'
        f' marker-end="url(#{edges[0].kind})"><title>{_text(told)}</title></path>'
    )


def _label(canvas: _Canvas, pair: tuple[str, str], edges: Sequence[Edge]) -> str:
    """The kind, near the child, where the edges of a parent have parted."""
    bends = _bends(canvas, *_points(canvas, pair)[-2:])
    weights = [(1 - _NEAR) ** 3, 3 * _NEAR * (1 - _NEAR) ** 2, 3 * _NEAR**2 * (1 - _NEAR), _NEAR**3]
    x, y = (sum(w * bend[i] for w, bend in zip(weights, bends, strict=True)) for i in (0, 1))
    shown = ", ".join(edge.kind for edge in edges)
    width = len(shown) * 10 * _LETTER + 4
    return (
        f'<rect x="{x - width / 2:.1f}" y="{y - 8:.1f}" width="{width:.1f}" height="14" fill="#ffffff" opacity="0.85"/>'
        + _words(x, y + 3, 10, shown, _COLOURS[edges[0].kind], "middle")
    )


def _bends(canvas: _Canvas, one: Point, other: Point) -> list[Point]:
    """A cubic curve (Bezier) that leaves and arrives in the direction of the layers."""
    (x0, y0), (x1, y1) = one, other
    x, y = x0 + _BEND * (x1 - x0), y0 + _BEND * (y1 - y0)
    return [one, (x0, y), (x1, y), other] if canvas.down else [one, (x, y0), (x, y1), other]


def _points(canvas: _Canvas, pair: tuple[str, str]) -> list[Point]:
    """From the border of the parent to that of the child, through the bends between."""
    *points, (x1, y1) = (canvas.at(place) for place in canvas.layout.bends[pair])
    (x0, y0), *between = points
    if canvas.down:
        return [(x0, y0 + _HEIGHT / 2), *between, (x1, y1 - _HEIGHT / 2 - 4)]
    return [(x0 + _WIDTH / 2, y0), *between, (x1 - _WIDTH / 2 - 4, y1)]


def _told(edge: Edge) -> list[str]:
    lines = [str(edge.kind)]
    lines += [f"{name}: {value:.6g}" for name, value in edge.metrics.items()]
    lines += [f"{name} = {_shortened(str(value), 10, 480.0)}" for name, value in edge.params.items()]
    return lines


def _edges_by_pair(edges: Iterable[Edge]) -> dict[tuple[str, str], list[Edge]]:
    found: dict[tuple[str, str], list[Edge]] = {}
    for edge in edges:
        found.setdefault((edge.parent, edge.child), []).append(edge)
    return found


def _arrows(kinds: Sequence[EdgeKind]) -> str:
    return "".join(
        f'<marker id="{kind}" viewBox="0 0 8 8" refX="4" refY="4" markerWidth="6" markerHeight="6" orient="auto">'
        f'<path d="M0,0 L8,4 L0,8 Z" fill="{_COLOURS[kind]}"/></marker>'
        for kind in kinds
    ).join(("<defs>", "</defs>"))


def _legend(kinds: Sequence[EdgeKind], top: float) -> str:
    parts = []
    for i, kind in enumerate(kinds):
        x = _MARGIN + 110.0 * i
        parts.append(f'<rect x="{x:.0f}" y="{top - 3:.1f}" width="18" height="3" fill="{_COLOURS[kind]}"/>')
        parts.append(_words(x + 24, top + 2, 10, kind, "#374151", "start"))
    return "".join(parts)


def _title(family: Family, centre: VersionId | None) -> str:
    central = None if centre is None else family.versions.get(centre)
    what = "Model versions" if central is None else f"The family of {central}"
    n_hidden = len(family.hidden)
    more = f"; {n_hidden} of them have parents or children that are left out" if n_hidden else ""
    return f"{what}: {len(family.versions)} versions{more}"


def _name(version: Version) -> str:
    return f"{version.name} {version.number}" if version.name else version.id[:12]


def _words(x: float, y: float, size: int, text: str, colour: str, anchor: str, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" fill="{colour}" text-anchor="{anchor}"{weight}>'
        f"{_text(text)}</text>"
    )


def _shortened(text: str, size: int, width: float) -> str:
    """With its middle left out where it is longer than `width`: names differ at their ends."""
    most = max(3, int(width / (size * _LETTER)))
    if len(text) <= most:
        return text
    return f"{text[: most - most // 2 - 1]}…{text[len(text) - most // 2 :]}"


def _text(text: str) -> str:
    """Escaped, and without what XML cannot hold."""
    return escape("".join(letter if letter.isprintable() or letter == "\n" else "\ufffd" for letter in text))
