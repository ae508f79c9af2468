from __future__ import annotations

import numpy as np
import pytest

from lineage.drift import Reference, Rows, learn
from lineage.drift.bins import CELLS, NOT_THERE, cells_of_categories, edges_of, group_ends_of
from lineage.drift.columns import layout_of
from lineage.drift.judge import Judge
from lineage.drift.thresholds import DriftSettings
from tests.lineage.drift.tables import plain_reference, reference_of, sketch_of, table


def test_a_reference_survives_its_bytes_and_judges_alike() -> None:
    data = table(2000, 0)
    data["inputs"]["city"][:5] = None
    data["inputs"]["x"][:7, 0] = np.nan
    reference = reference_of(data)
    again = Reference.from_bytes(reference.to_bytes())
    assert again.to_bytes() == reference.to_bytes()
    assert again.layout == reference.layout
    settings = DriftSettings(simulated=200)
    window = table(300, 1, shift=0.4)
    reports = [Judge(one, settings).report(sketch_of(one, window), 0.0, 1.0) for one in (reference, again)]
    assert [(c.column, c.level, c.tests) for c in reports[0].columns] == [
        (c.column, c.level, c.tests) for c in reports[1].columns
    ]


def test_the_same_rows_and_seed_give_the_same_bins_and_other_rows_others() -> None:
    a, b, c = (reference_of(table(500, seed)).bins.digest for seed in (1, 1, 2))
    assert a == b != c


def test_bytes_that_are_no_reference_are_refused() -> None:
    data = reference_of(table(100, 0)).to_bytes()
    for bad in (b"", data[:50], data[:-5], b"FXDS" + data[4:], data[:200] + bytes([data[200] ^ 1]) + data[201:]):
        with pytest.raises(ValueError, match=r"bytes|unpack"):
            Reference.from_bytes(bad)


def test_a_reference_needs_rows_and_takes_one() -> None:
    layout = layout_of({"x": np.zeros((3, 2), np.float32)})
    with pytest.raises(ValueError, match="training rows"):
        learn(layout, Rows(np.empty((0, 2), np.float32)), np.random.default_rng(0))
    assert learn(layout, Rows(np.ones((1, 2), np.float32)), np.random.default_rng(0)).n_rows == 1


def test_moments_are_of_the_values_that_are_there() -> None:
    values = np.array([[1.0], [2.0], [np.nan], [6.0]])
    (moments,) = plain_reference(values).moments
    assert (moments.mean, moments.least, moments.greatest, moments.share_missing) == (3.0, 1.0, 6.0, 0.25)
    assert moments.deviation == pytest.approx(np.std([1.0, 2.0, 6.0]))


def test_cells_have_about_the_same_share_and_groups_are_never_rare() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=4000), rng.poisson(1.0, 4000), np.where(rng.random(4000) < 0.99, 0.0, 1.0)):
        ordered = np.sort(values.astype(np.float32))
        edges = edges_of(ordered)
        counts = np.diff(ordered.searchsorted(edges, "right"))
        assert counts.sum() == 4000
        ends = np.unique(group_ends_of(counts))
        assert ends[-1] == CELLS
        assert (np.diff(np.cumsum(counts)[ends - 1], prepend=0) >= 0.02 * 4000).all()


def test_rare_categories_share_a_cell() -> None:
    assert cells_of_categories([50, 30, 20]) == (0, 1, 2)
    assert cells_of_categories([500, 300, 5, 4, 3, 1]) == (0, 1, 1, 1, 1, 1)
    many = cells_of_categories([10] * 40)
    assert (max(many), many[8], many[9], many[39]) == (9, 8, 9, 9)


def test_the_sample_keeps_the_cells_and_not_the_values() -> None:
    reference = plain_reference(np.array([[1.0], [2.0], [2.0], [np.nan]]))
    assert reference.sample.dtype == np.uint8
    assert sorted(reference.sample[:, 0].tolist()) == [0, 1, 1, NOT_THERE]
