"""What is kept of rows instead of the rows: per column counts over fixed bins and a KLL sketch, a few kilobytes.

Counts are exact and merge in any order to the same; a KLL sketch knows any quantile of a column to within
`rank_error`. Source: Karnin, Lang and Liberty 2016, Optimal Quantile Approximation in Streams, FOCS; by Apache
DataSketches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from datasketches import kll_floats_sketch  # type: ignore[import-untyped]

from lineage.drift.bins import WIDTH, Bins
from lineage.drift.categories import CategoryCounts
from lineage.drift.columns import Array, Column, Rows
from lineage.drift.packing import packed, unpacked

K_LIVE = 200  # of KLL sketches: exact up to so many rows
K_REFERENCE = 400
K_CONFIDENCE = 800  # of the confidence: estimates of accuracy are no surer than its ranks
_MAGIC, _VERSION = b"FXDS", 1
_MOST = np.finfo(np.float32).max


class BinsDiffer(ValueError):
    """Sketches over different bins were to be merged or compared: they are of different training data."""


class Sketch:
    """Of rows, over the bins of one reference. Not for several threads at once.

    counts      int64 (n_numbers, WIDTH): below the training range, the cells, above it, missing
    quantiles   a KLL sketch per column of numbers
    categories  counts per column of categories
    n_rows      in all; `n_misfits` of them had another shape than the training rows
    n_skipped   rows that were not looked at
    """

    __slots__ = ("_indices", "bins", "categories", "counts", "n_misfits", "n_rows", "n_skipped", "quantiles")

    def __init__(self, bins: Bins, k: int = K_LIVE) -> None:
        self.bins = bins
        self.n_rows = self.n_misfits = self.n_skipped = 0
        self.counts: Array = np.zeros((bins.n_numbers, WIDTH), np.int64)
        self.quantiles = [kll_floats_sketch(_k_of(column, k)) for column in bins.columns[: bins.n_numbers]]
        self._indices = [{name: i for i, name in enumerate(names)} for names in bins.known]
        self.categories = [CategoryCounts(index) for index in self._indices]

    def empty(self) -> Sketch:
        """A new one over the same bins, without the work of making it from them."""
        made = Sketch.__new__(Sketch)
        made.bins = self.bins
        made.n_rows = made.n_misfits = made.n_skipped = 0
        made.counts = np.zeros_like(self.counts)
        made.quantiles = [kll_floats_sketch(_k_of(c, K_LIVE)) for c in self.bins.columns[: self.bins.n_numbers]]
        made._indices = self._indices
        made.categories = [CategoryCounts(index) for index in self._indices]
        return made

    def add(self, rows: Rows, *, with_joint: bool = True) -> None:
        """Counts rows in the layout of the reference. Best some hundreds at a time: a call takes about 0.3 ms for 64
        columns, and each row 1 us. Without `with_joint` the directions count as missing."""
        n = len(rows)
        if not n:
            return
        self.n_rows += n
        self.n_misfits += rows.n_misfits
        numbers = self.bins.numbers(rows)
        if not with_joint:
            numbers[:, rows.numbers.shape[1] :] = np.nan
        by_column = np.sort(np.ascontiguousarray(numbers.T), axis=1)  # NaN at the ends
        n_there = n - np.isnan(by_column).sum(axis=1)
        upto = np.empty(self.bins.edges.shape, np.int64)
        for i, (column, edges, there) in enumerate(zip(by_column, self.bins.edges, n_there.tolist(), strict=True)):
            upto[i] = column.searchsorted(edges, "right")
            if there:
                values = column[:there]
                if values[0] < -_MOST or values[-1] > _MOST:
                    values = np.clip(values, -_MOST, _MOST)
                self.quantiles[i].update(values)
        self.counts[:, 0] += upto[:, 0]
        self.counts[:, 1:-2] += np.diff(upto, axis=1)
        self.counts[:, -2] += n_there - upto[:, -1]
        self.counts[:, -1] += n - n_there
        for counts, values in zip(self.categories, rows.categories, strict=True):
            counts.add(values)

    def merge(self, other: Sketch) -> None:
        """Counts what `other` has counted. Raises BinsDiffer, with nothing changed."""
        if other.bins.digest != self.bins.digest:
            raise BinsDiffer("sketches of different training data do not merge")
        self.n_rows += other.n_rows
        self.n_misfits += other.n_misfits
        self.n_skipped += other.n_skipped
        self.counts += other.counts
        for mine, its in zip(self.quantiles, other.quantiles, strict=True):
            mine.merge(its)
        for counts, others in zip(self.categories, other.categories, strict=True):
            counts.merge(others)

    def upto(self) -> Array:
        """How many values of each column of numbers are up to each edge: int64 (n_numbers, CELLS + 1)."""
        made: Array = np.cumsum(self.counts[:, :-2], axis=1)
        return made

    def n_there(self) -> Array:
        """How many values of each column of numbers are there: int64 (n_numbers,)."""
        made: Array = self.counts[:, :-1].sum(axis=1)
        return made

    def to_bytes(self) -> bytes:
        """All of it but the bins."""
        sketches = [sketch.serialize() for sketch in self.quantiles]
        return packed(
            _MAGIC,
            _VERSION,
            {
                "bins": self.bins.digest,
                "rows": [self.n_rows, self.n_misfits, self.n_skipped],
                "categories": [counts.plain() for counts in self.categories],
            },
            {
                "counts": self.counts,
                "lengths": np.array([len(sketch) for sketch in sketches], np.int64),
                "sketches": np.frombuffer(b"".join(sketches), np.uint8),
                **{f"known {i}": counts.known for i, counts in enumerate(self.categories)},
            },
        )

    @classmethod
    def from_bytes(cls, data: bytes, bins: Bins) -> Sketch:
        """Raises BinsDiffer for a sketch over other bins, ValueError for bytes that `to_bytes` did not make."""
        plain, arrays = unpacked(_MAGIC, _VERSION, data)
        if plain.get("bins") != bins.digest:
            raise BinsDiffer("the sketch is over the bins of other training data")
        made = cls(bins)
        try:
            made.n_rows, made.n_misfits, made.n_skipped = (int(n) for n in plain["rows"])
            if arrays["counts"].shape != made.counts.shape or len(arrays["lengths"]) != bins.n_numbers:
                raise ValueError("the counts have another shape than the bins")
            made.counts = arrays["counts"].astype(np.int64)
            made.quantiles = _sketches(arrays["sketches"].tobytes(), arrays["lengths"].tolist())
            for i, counts in enumerate(made.categories):
                counts.restore(arrays[f"known {i}"], plain["categories"][i])
        except (KeyError, IndexError, TypeError, RuntimeError) as error:
            raise ValueError(f"the sketch cannot be read: {error}") from None
        return made


def _k_of(column: Column, k: int) -> int:
    return max(k, K_CONFIDENCE) if column.role == "confidence" else k


def _sketches(data: bytes, lengths: list[int]) -> list[Any]:
    if sum(lengths) != len(data) or any(length < 0 for length in lengths):
        raise ValueError("the sketches of the columns have other lengths than is said")
    made, at = [], 0
    for length in lengths:
        made.append(kll_floats_sketch.deserialize(data[at : at + length]))
        at += length
    return made


@dataclass(frozen=True, slots=True, eq=False)
class Points:
    """A column's distribution as its sketch has it: ascending `values` and the share of the rows up to each.

    `rank_error` bounds how far a share may be off, with a probability of 99 %; 0 where nothing was thrown away."""

    values: Array
    shares: Array
    rank_error: float

    def upto(self, at: Array) -> Array:
        """The share of the rows up to each of `at`."""
        found: Array = np.concatenate([[0.0], self.shares])[np.searchsorted(self.values, at, "right")]
        return found


def points_of(sketch: Any) -> Points:
    """Of a KLL sketch; without rows it has no points."""
    if sketch.is_empty():
        return Points(np.empty(0), np.empty(0), 0.0)
    if not sketch.is_estimation_mode():
        ranks = (np.arange(sketch.n) + 0.5) / sketch.n
        values, counts = np.unique(np.array(sketch.get_quantiles(ranks)), return_counts=True)
        return Points(values.astype(np.float64), np.cumsum(counts) / sketch.n, 0.0)
    ranks = np.linspace(0.0, 1.0, 2 * sketch.num_retained)
    ends = sketch.get_min_value(), sketch.get_max_value()  # known exactly, also when they were thrown away
    values = np.unique(np.array([*sketch.get_quantiles(ranks), *ends], np.float32))
    shares = np.array(sketch.get_cdf(values.tolist(), True))[:-1]
    return Points(values.astype(np.float64), shares, float(sketch.normalized_rank_error(True)))
