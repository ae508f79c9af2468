"""What is kept of the training rows: the bins they fix, their sketch, moments, and some rows as bin numbers.

The rows that are kept are a random sample, each value reduced to the number of its cell: enough to simulate what
windows without drift look like, with columns that go together as they did in training, and nobody's data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lineage.drift import joint
from lineage.drift.bins import (
    CELLS,
    GROUPS,
    MOST_KNOWN,
    NOT_THERE,
    Bins,
    cells_of_categories,
    digest_of,
    edges_of,
    group_ends_of,
)
from lineage.drift.categories import counted, text_of
from lineage.drift.columns import Array, Column, Layout, Part, Rows
from lineage.drift.packing import packed, unpacked
from lineage.drift.sketches import K_REFERENCE, Sketch

MOST_SAMPLE = 2048
_MAGIC, _VERSION = b"FXDR", 1
_FOLD = 16_384
_FITTED = 4  # one row of so many finds the directions
_MOST_FITTED = 8192


@dataclass(frozen=True, slots=True)
class Moments:
    """Of the finite values of a column of numbers; NaN where it has none. `share_missing` is of all rows."""

    mean: float
    deviation: float
    least: float
    greatest: float
    share_missing: float


@dataclass(frozen=True, slots=True, eq=False)
class Reference:
    """The training distribution, as far as drift is held against it. The same bytes are the same reference.

    `sample` is uint8 (n_sample, n_columns): of some training rows the cell of each value, NOT_THERE where missing.
    """

    layout: Layout
    bins: Bins
    sketch: Sketch
    moments: tuple[Moments, ...]
    sample: Array

    @property
    def n_rows(self) -> int:
        return self.sketch.n_rows

    @property
    def columns(self) -> tuple[Column, ...]:
        return self.bins.columns

    def cells(self, sketch: Sketch) -> Array:
        """How many rows of a sketch are in each cell: int64 (n_columns, CELLS). What is out of the training range
        counts in the cell next to it, a new category in the last."""
        made = np.zeros((len(self.columns), CELLS), np.int64)
        numbers = self.bins.n_numbers
        made[:numbers] = sketch.counts[:, 1 : CELLS + 1]
        made[:numbers, 0] += sketch.counts[:, 0]
        last = self.bins.group_ends[:, -1] - 1
        made[np.arange(numbers), last[:numbers]] += sketch.counts[:, CELLS + 1]
        for i, (counts, cell_of) in enumerate(zip(sketch.categories, self.bins.cell_of, strict=True)):
            made[numbers + i] = np.bincount(np.array(cell_of, np.intp), counts.known, CELLS)[:CELLS]
            made[numbers + i, max(cell_of, default=0)] += counts.n_new
        return made

    def to_bytes(self) -> bytes:
        """Everything; about 5 kB per column and 2 per row of the sample and 1,000 columns."""
        bins = self.bins
        return packed(
            _MAGIC,
            _VERSION,
            {
                "parts": [[p.name, p.kind, p.role, p.width, p.n_columns, p.text] for p in self.layout.parts],
                "columns": [[c.name, c.kind, c.role] for c in bins.columns],
                "known": [list(names) for names in bins.known],
                "cell_of": [list(cells) for cells in bins.cell_of],
                "joint": [list(bins.directions.names), bins.directions.n_size],
                "digest": bins.digest,
            },
            {
                "edges": bins.edges,
                "group_ends": bins.group_ends,
                **bins.directions.arrays(),
                "moments": np.array(
                    [[m.mean, m.deviation, m.least, m.greatest, m.share_missing] for m in self.moments]
                ).reshape(-1, 5),
                "sample": self.sample,
                "sketch": np.frombuffer(self.sketch.to_bytes(), np.uint8),
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> Reference:
        """Raises ValueError for bytes that `to_bytes` did not make."""
        plain, arrays = unpacked(_MAGIC, _VERSION, data)
        try:
            columns = tuple(Column(*entry) for entry in plain["columns"])
            names, n_size = plain["joint"]
            directions = joint.restored(tuple(names), int(n_size), arrays)
            known = tuple(tuple(names) for names in plain["known"])
            edges, ends = arrays["edges"], arrays["group_ends"]
            if edges.shape[1:] != (CELLS + 1,) or ends.shape != (len(columns), GROUPS):
                raise ValueError("the bins have another shape than is usual")
            digest = digest_of(columns, edges, ends, known, directions)
            if digest != plain["digest"]:
                raise ValueError("the bins are not those that the digest is of")
            bins = Bins(columns, edges, ends, known, tuple(tuple(c) for c in plain["cell_of"]), directions, digest)
            sketch = Sketch.from_bytes(arrays["sketch"].tobytes(), bins)
            moments = tuple(Moments(*row) for row in arrays["moments"].tolist())
            layout = Layout(tuple(Part(*entry) for entry in plain["parts"]))
            return cls(layout, bins, sketch, moments, arrays["sample"])
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"the reference cannot be read: {error}") from None


def learn(layout: Layout, rows: Rows, rng: np.random.Generator, *, with_joint: bool = True) -> Reference:
    """The reference of training rows, as `layout.rows` makes them.

    `rng` draws the sample and the random directions; the same seed and rows give the same bins. Raises ValueError
    without rows.
    """
    n = len(rows)
    if not n:
        raise ValueError("a reference needs training rows")
    order = rng.permutation(n)
    n_fitted = min(n // _FITTED, _MOST_FITTED) if with_joint else 0
    directions = joint.directions_of(rows.numbers[order[:n_fitted]], rng)
    # Rows that directions were fitted to lie along them as no new rows will: they are missing in these columns.
    order, n_fitted = (order, n_fitted) if directions.names else (order, 0)
    beside = directions.beside(rows.numbers)
    beside[order[:n_fitted], rows.numbers.shape[1] :] = np.nan
    values = np.sort(np.ascontiguousarray(beside.T), axis=1)
    del beside
    edges = np.zeros((len(values), CELLS + 1), np.float32)
    moments = []
    for i, column in enumerate(values):
        finite = column[np.isfinite(column)]
        moments.append(_moments(finite, float(np.isnan(column).mean())))
        edges[i] = edges_of(finite) if len(finite) else np.zeros(CELLS + 1)
    counts = [counted(column)[0] for column in rows.categories]
    known = [_frequent(of_column) for of_column in counts]
    cell_of = [cells_of_categories([of[name] for name in names]) for of, names in zip(counts, known, strict=True)]
    columns = (*layout.numbers, *directions.columns(), *layout.categories)
    groups = np.full((len(columns), GROUPS), CELLS, np.int64)
    for i, column in enumerate(values):
        upto = column.searchsorted(edges[i], "right")
        groups[i] = group_ends_of(np.diff(upto)) if upto[-1] else CELLS
    for i, cells in enumerate(cell_of):
        ends = list(range(1, max(cells, default=0) + 2))
        groups[len(values) + i] = ends + [ends[-1]] * (GROUPS - len(ends))
    digest = digest_of(columns, edges, groups, known, directions)
    bins = Bins(columns, edges, groups, tuple(known), tuple(cell_of), directions, digest)
    sketch = Sketch(bins, K_REFERENCE)
    for first, last, fitted in ((0, n_fitted, True), (n_fitted, n, False)):
        for start in range(first, last, _FOLD):
            sketch.add(rows.take(order[start : min(last, start + _FOLD)]), with_joint=not fitted)
    drawn = order[n_fitted:][:MOST_SAMPLE]
    return Reference(layout, bins, sketch, tuple(moments), cells_of_rows(bins, rows.take(drawn)))


def cells_of_rows(bins: Bins, rows: Rows) -> Array:
    """The cell of each value, uint8 (n_rows, n_columns), NOT_THERE where it is missing."""
    numbers = bins.numbers(rows)
    made = np.full((len(rows), len(bins.columns)), NOT_THERE, np.uint8)
    for i, edges in enumerate(bins.edges):
        cells = edges.searchsorted(numbers[:, i], "left") - 1
        last = int(edges.searchsorted(edges[-1], "left")) - 1  # edges are repeated where there are fewer cells
        there = ~np.isnan(numbers[:, i])
        made[there, i] = np.clip(cells[there], 0, max(last, 0))
    for i, values in enumerate(rows.categories):
        cell_of = dict(zip(bins.known[i], bins.cell_of[i], strict=True))
        last = max(bins.cell_of[i], default=0)
        texts = (text_of(value) for value in values.tolist())
        made[:, bins.n_numbers + i] = [NOT_THERE if text is None else cell_of.get(text, last) for text in texts]
    return made


def _frequent(counts: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(counts, key=lambda name: (-counts[name], name))[:MOST_KNOWN])


def _moments(values: Array, share_missing: float) -> Moments:
    if not len(values):
        return Moments(float("nan"), float("nan"), float("nan"), float("nan"), share_missing)
    exact: Any = values.astype(np.float64)
    return Moments(float(exact.mean()), float(exact.std()), float(exact[0]), float(exact[-1]), share_missing)


def known_values(reference: Reference, column: int) -> Sequence[str]:
    """The categories of a column of categories that training had, the most frequent first."""
    return reference.bins.known[column - reference.bins.n_numbers]
