from __future__ import annotations

import numpy as np
import pytest

from lineage.drift import Sketch
from lineage.drift.nearness import Live
from tests.lineage.drift.tables import plain_reference, reference_of, sketch_of, table


def test_live_rows_are_nearest_to_the_version_that_was_trained_on_such_rows() -> None:
    served = reference_of(table(3000, 0))
    others = {shift: reference_of(table(2000, 5, shift)) for shift in (0.0, 0.5, 1.0, 2.0)}
    live = Live(sketch_of(served, table(1000, 1, shift=1.0)))
    distances = {shift: live.to(reference) for shift, reference in others.items()}
    assert min(distances, key=lambda shift: distances[shift].distance) == 1.0
    assert distances[0.0].column == "x[1]"
    assert distances[0.0].farthest == pytest.approx(0.38, abs=0.06)  # of two normals, a deviation apart


def test_categories_and_columns_that_only_one_side_has_count() -> None:
    served = reference_of(table(3000, 0))
    data = table(1000, 1)
    data["inputs"]["city"][:500] = "atlantis"
    assert Live(sketch_of(served, data)).to(served).column == "city"
    other = plain_reference(np.arange(40.0).reshape(-1, 1))
    assert Live(sketch_of(served, data)).to(other).distance == 1.0
    assert Live(Sketch(served.bins)).to(served).farthest == 1.0
