"""Where the versions of a family stand in a picture: layer by layer, parents before children, few crossings.

The layered method (Sugiyama, Tagawa and Toda 1981, IEEE Trans. Syst. Man Cybern. 11): layers by the longest way from
a root, long edges bent in every layer they pass, order by barycentres, then places by least squares with a distance
between neighbours (isotonic regression).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter
from itertools import pairwise

_SWEEPS = 12

Place = tuple[int, float]  # layer, and place in it, in steps between neighbours


@dataclass(frozen=True, slots=True)
class Layout:
    """`places` of the nodes; `bends` of each edge, its ends among them; how many layers, and steps across."""

    places: Mapping[str, Place]
    bends: Mapping[tuple[str, str], tuple[Place, ...]]
    n_layers: int
    breadth: float


def lay_out(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> Layout:
    """Places nodes of an acyclic graph; the same graph in the same order gets the same layout."""
    edges = list(dict.fromkeys(edges))
    layer = _layers(nodes, edges)
    paths = {edge: _path(edge, layer) for edge in edges}
    everywhere: dict[str, int] = dict(layer)
    for path in paths.values():
        everywhere.update({node: layer[path[0]] + i for i, node in enumerate(path)})
    above: dict[str, list[str]] = {node: [] for node in everywhere}
    below: dict[str, list[str]] = {node: [] for node in everywhere}
    for path in paths.values():
        for one, other in pairwise(path):
            below[one].append(other)
            above[other].append(one)
    rows: list[list[str]] = [[] for _ in range(max(layer.values(), default=-1) + 1)]
    for node in sorted(everywhere, key=everywhere.__getitem__):
        rows[everywhere[node]].append(node)
    rows = _ordered(rows, above, below)
    at = _spread(rows, above, below)
    lowest = min(at.values(), default=0.0)
    places = {node: (everywhere[node], at[node] - lowest) for node in everywhere}
    return Layout(
        {node: places[node] for node in nodes},
        {edge: tuple(places[node] for node in path) for edge, path in paths.items()},
        len(rows),
        max((place for _, place in places.values()), default=0.0),
    )


def _layers(nodes: Sequence[str], edges: Sequence[tuple[str, str]]) -> dict[str, int]:
    parents: dict[str, list[str]] = {node: [] for node in nodes}
    for parent, child in edges:
        parents[child].append(parent)
    layer: dict[str, int] = {}
    for node in TopologicalSorter(parents).static_order():
        layer[node] = max((layer[parent] + 1 for parent in parents[node]), default=0)
    # A root whose children all stand further down moves next to them.
    children: dict[str, list[str]] = {node: [] for node in nodes}
    for parent, child in edges:
        children[parent].append(child)
    for node in nodes:
        if not parents[node] and children[node]:
            layer[node] = min(layer[child] for child in children[node]) - 1
    return {node: layer[node] for node in nodes}


def _path(edge: tuple[str, str], layer: Mapping[str, int]) -> list[str]:
    parent, child = edge
    between = range(layer[parent] + 1, layer[child])
    return [parent, *(f"{parent}\0{child}\0{i}" for i in between), child]


def _ordered(
    rows: list[list[str]], above: Mapping[str, Sequence[str]], below: Mapping[str, Sequence[str]]
) -> list[list[str]]:
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(_SWEEPS):
        if fewest == 0:
            break
        rows = [list(row) for row in rows]
        down = sweep % 2 == 0
        neighbours = above if down else below
        for i in range(1, len(rows)) if down else range(len(rows) - 2, -1, -1):
            rows[i] = _by_barycentre(rows[i], rows[i - 1 if down else i + 1], neighbours)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _by_barycentre(row: Sequence[str], fixed: Sequence[str], neighbours: Mapping[str, Sequence[str]]) -> list[str]:
    place = {node: float(k) for k, node in enumerate(fixed)}
    wanted = {node: _mean([place[other] for other in neighbours[node]], float(k)) for k, node in enumerate(row)}
    return sorted(row, key=wanted.__getitem__)


def _crossings(rows: Sequence[Sequence[str]], below: Mapping[str, Sequence[str]]) -> int:
    n = 0
    for row, following in pairwise(rows):
        place = {node: k for k, node in enumerate(following)}
        ends = [sorted(place[other] for other in below[node]) for node in row]
        passed: list[int] = []
        for of_node in ends:
            n += sum(1 for end in of_node for before in passed if before > end)
            passed.extend(of_node)
    return n


def _spread(
    rows: Sequence[Sequence[str]], above: Mapping[str, Sequence[str]], below: Mapping[str, Sequence[str]]
) -> dict[str, float]:
    at = {node: k - (len(row) - 1) / 2 for row in rows for k, node in enumerate(row)}
    for sweep in range(_SWEEPS):
        for row in rows if sweep % 2 == 0 else reversed(rows):
            wanted = [_mean([at[other] for other in (*above[node], *below[node])], at[node]) for node in row]
            for node, place in zip(row, _apart(wanted), strict=True):
                at[node] = place
    return at


def _apart(wanted: Sequence[float]) -> list[float]:
    """The places nearest to those wanted (least squares) that keep the order and a distance of 1."""
    blocks: list[tuple[float, int]] = []  # mean and size, of neighbours that stand side by side
    for k, place in enumerate(wanted):
        mean, size = place - k, 1
        while blocks and blocks[-1][0] >= mean:
            other, n = blocks.pop()
            mean, size = (mean * size + other * n) / (size + n), size + n
        blocks.append((mean, size))
    flat = [mean for mean, size in blocks for _ in range(size)]
    return [place + k for k, place in enumerate(flat)]


def _mean(values: Sequence[float], otherwise: float) -> float:
    return sum(values) / len(values) if values else otherwise
