from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineage.drift.categories import MOST_NEW
from lineage.drift.columns import Rows
from lineage.drift.sketches import BinsDiffer, Sketch, points_of
from tests.lineage.drift.tables import plain_reference, reference_of, sketch_of, table

TRAINING = table(3000, 1)
REFERENCE = reference_of(TRAINING)


def rows_with_all_sorts(n: int, seed: int) -> Rows:
    """Shifted, with missing, infinite and out of range values and new categories."""
    rng = np.random.default_rng(seed)
    data = table(n, seed, shift=0.5)
    data["inputs"]["x"][rng.random((n, 4)) < 0.1] = np.nan
    data["inputs"]["x"][rng.random((n, 4)) < 0.02] = np.inf
    data["inputs"]["city"][rng.random(n) < 0.1] = None
    for i in np.flatnonzero(rng.random(n) < 0.3):
        data["inputs"]["city"][i] = f"new {rng.integers(0, 200)}"
    return REFERENCE.layout.rows(**data)


def same_counts(a: Sketch, b: Sketch) -> bool:
    same = np.array_equal(a.counts, b.counts) and a.categories == b.categories
    return same and (a.n_rows, a.n_misfits, a.n_skipped) == (b.n_rows, b.n_misfits, b.n_skipped)


@settings(max_examples=20, deadline=None)
@given(n_parts=st.integers(1, 64), seed=st.integers(0, 1000), data=st.data())
def test_parts_merged_in_any_order_count_what_the_whole_counts(n_parts: int, seed: int, data: Any) -> None:
    rows = rows_with_all_sorts(2000, seed)
    whole = Sketch(REFERENCE.bins)
    whole.add(rows)
    part_of = np.random.default_rng(seed).integers(0, n_parts, len(rows))
    parts = []
    for i in range(n_parts):
        parts.append(whole.empty())
        parts[-1].add(rows.take(part_of == i))
    merged = whole.empty()
    for i in data.draw(st.permutations(range(n_parts))):
        merged.merge(parts[i])
    assert same_counts(merged, whole)
    for mine, its in zip(merged.quantiles, whole.quantiles, strict=True):
        assert mine.n == its.n
        a, b = points_of(mine), points_of(its)
        at = np.union1d(a.values, b.values)
        assert np.abs(a.upto(at) - b.upto(at)).max(initial=0.0) <= a.rank_error + b.rank_error


@settings(max_examples=10, deadline=None)
@given(n=st.integers(0, 600), seed=st.integers(0, 1000))
def test_a_sketch_survives_its_bytes(n: int, seed: int) -> None:
    sketch = Sketch(REFERENCE.bins)
    sketch.add(rows_with_all_sorts(max(n, 1), seed).take(np.arange(n)))
    sketch.n_skipped = 7
    again = Sketch.from_bytes(sketch.to_bytes(), REFERENCE.bins)
    assert same_counts(sketch, again)
    for mine, its in zip(sketch.quantiles, again.quantiles, strict=True):
        assert mine.serialize() == its.serialize()


def test_bytes_that_were_cut_off_changed_or_of_other_bins_are_refused() -> None:
    data = sketch_of(REFERENCE, table(20, 3)).to_bytes()
    other = plain_reference(np.random.default_rng(0).normal(size=(100, 2)))
    with pytest.raises(BinsDiffer):
        Sketch.from_bytes(data, other.bins)
    with pytest.raises(BinsDiffer):
        Sketch(other.bins).merge(Sketch(REFERENCE.bins))
    broken = bytearray(data)
    broken[len(broken) // 2] ^= 0xFF
    for bad in (b"", b"nonsense", data[: len(data) // 2], bytes(broken)):
        with pytest.raises(ValueError, match=r"bytes|unpack|cut off"):
            Sketch.from_bytes(bad, REFERENCE.bins)


def test_counts_of_the_cells_are_those_of_the_values_between_the_edges() -> None:
    reference = plain_reference(np.arange(1, 1001).reshape(-1, 1))
    sketch = Sketch(reference.bins)
    sketch.add(Rows(np.array([[-5.0], [1.0], [25.0], [25.5], [1000.0], [1001.0], [np.inf], [np.nan]], np.float32)))
    below, cells, above, missing = np.split(sketch.counts[0], [1, 41, 42])
    assert (below.sum(), above.sum(), missing.sum()) == (1, 2, 1)
    assert cells[:2].tolist() == [2, 1]  # up to 25 in the first cell, above it in the second
    assert cells[-1] == 1


def test_new_categories_keep_a_bounded_number_of_names_and_all_their_counts() -> None:
    sketch = Sketch(REFERENCE.bins)
    data = table(5000, 0)
    data["inputs"]["city"] = np.array([f"town {i % 1000}" for i in range(5000)], dtype=object)
    sketch.add(REFERENCE.layout.rows(**data))
    counts = sketch.categories[0]
    assert counts.n_new == 5000
    assert len(counts.new) == MOST_NEW
    assert set(counts.new.values()) == {5}
    assert 600 < counts.n_distinct_new() < 1600
