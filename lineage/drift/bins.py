"""The bins that are fixed at training: edges per column of numbers, known values per column of categories.

A column of numbers has up to `CELLS` cells, each with about the same share of the training rows; a cell holds what is
above its lower edge, up to its upper one. PSI and its kin look at up to `GROUPS` groups of neighbouring cells, because
they lose power with every bin; Kolmogorov-Smirnov and Wasserstein look at the cells.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lineage.drift.columns import Array, Column, Rows
from lineage.drift.joint import Directions

CELLS = 40
GROUPS = 10
LEAST_SHARE = 0.02  # of a group: what is rarer is put together with its neighbour
MOST_KNOWN = 1024  # categories by name
NOT_THERE = 255  # the code of what is missing

_BELOW, _ABOVE, _MISSING = 0, CELLS + 1, CELLS + 2
WIDTH = CELLS + 3  # of the counts of a column of numbers: below the range, the cells, above it, missing


@dataclass(frozen=True, slots=True, eq=False)
class Bins:
    """Of all columns: those of numbers, those of the directions, then those of categories, in this order.

    edges         float32 (n_numbers + n_joint, CELLS + 1): just below the least training value, inner edges, the
                  greatest; the last is repeated where a column has fewer cells
    group_ends    int64 (n_columns, GROUPS): how many cells the groups up to this one hold; the last is repeated
    known         per column of categories the values seen in training, the most frequent first
    cell_of       per column of categories the cell of each of `known`
    digest        of all of it: only sketches over the same bins are merged and compared
    """

    columns: tuple[Column, ...]
    edges: Array
    group_ends: Array
    known: tuple[tuple[str, ...], ...]
    cell_of: tuple[tuple[int, ...], ...]
    directions: Directions
    digest: str

    @property
    def n_numbers(self) -> int:
        """Columns of numbers, those of the directions with them."""
        return len(self.edges)

    def numbers(self, rows: Rows) -> Array:
        """The columns of numbers of rows, those of the directions with them; float32 (n_rows, n_numbers)."""
        return self.directions.beside(rows.numbers)


def digest_of(
    columns: Sequence[Column], edges: Array, group_ends: Array, known: Sequence[Sequence[str]], directions: Directions
) -> str:
    """16 hex digits for what makes counts comparable."""
    made = hashlib.sha256(repr([(c.name, c.kind, c.role) for c in columns]).encode())
    for values in (edges, group_ends, *directions.arrays().values()):
        made.update(np.ascontiguousarray(values).tobytes())
    made.update(repr([list(values) for values in known]).encode())
    return made.hexdigest()[:16]


def edges_of(values: Array) -> Array:
    """Edges for a column, float32 (CELLS + 1,), from its finite training values sorted, shape (n,), n >= 1."""
    at = np.ceil(len(values) * np.arange(1, CELLS + 1) / CELLS).astype(np.intp) - 1
    inner = np.unique(values[at])
    edges = np.full(CELLS + 1, values[-1], np.float32)
    edges[0] = np.nextafter(values[0], np.float32(-np.inf))
    edges[1 : len(inner) + 1] = inner
    return edges


def group_ends_of(counts: Array, n_groups: int = GROUPS) -> Array:
    """Neighbouring cells put together, to about the same share of the counts (CELLS,) each: int64 (GROUPS,)."""
    total = counts.sum()
    cumulative = np.cumsum(counts)
    ends: list[int] = []
    for wanted in np.arange(1, n_groups + 1) / n_groups:
        end = int(np.searchsorted(cumulative, wanted * total * (1 - 1e-12))) + 1
        before = cumulative[ends[-1] - 1] if ends else 0
        if end <= CELLS and cumulative[end - 1] - before >= LEAST_SHARE * total:
            ends.append(end)
    ends = ends or [CELLS]
    ends[-1] = CELLS
    return np.array(ends + [CELLS] * (GROUPS - len(ends)), np.int64)


def cells_of_categories(counts: Sequence[int]) -> tuple[int, ...]:
    """The cell of each category, from their counts in falling order: the rare ones, and those from the GROUPS-th on,
    share the last cell."""
    total = sum(counts)
    own = sum(1 for i, count in enumerate(counts) if i < GROUPS - 1 and count >= LEAST_SHARE * total)
    if len(counts) == own + 1 and own < GROUPS and counts[-1] >= LEAST_SHARE * total:
        own += 1
    rest = sum(counts[own:])
    if own and rest < LEAST_SHARE * total:  # the rest alone would be a cell that hardly anything falls into
        return tuple(min(i, own - 1) for i in range(len(counts)))
    return tuple(min(i, own) for i in range(len(counts)))
