from __future__ import annotations

import random
import subprocess
import sys

import numpy as np

from lineage.drift import Gatherer
from tests.lineage.drift.tables import reference_of, sketch_of, table

REFERENCE = reference_of(table(500, 0))


def offer(gatherer: Gatherer, data: dict, at: slice) -> None:
    gatherer.offer(
        at.stop - at.start,
        {name: values[at] for name, values in data["inputs"].items()},
        {"label": data["outputs"]["label"][at]},
        data["confidence"][at],
    )


def test_batches_offered_one_by_one_count_as_all_rows_at_once() -> None:
    data = table(300, 1)
    data["inputs"]["city"][:20] = "nowhere"
    gatherer = Gatherer(REFERENCE, random.Random(0), 100.0)
    for start in range(0, 300, 10):
        offer(gatherer, data, slice(start, start + 10))
    assert gatherer.fold(101.0) == 300
    pane = gatherer.cut(102.0)
    assert pane is not None
    whole = sketch_of(REFERENCE, data)
    assert (pane.from_s, pane.to_s, pane.sketch.n_rows) == (100.0, 102.0, 300)
    assert np.array_equal(pane.sketch.counts, whole.counts)
    assert pane.sketch.categories == whole.categories
    assert gatherer.cut(103.0) is None


def test_batches_of_other_shapes_and_types_are_counted_beside_the_usual_ones() -> None:
    data = table(40, 1)
    gatherer = Gatherer(REFERENCE, random.Random(0), 0.0)
    offer(gatherer, data, slice(0, 10))
    gatherer.offer(5, {"x": np.zeros((5, 9), np.float32)})
    gatherer.offer(1, {"x": np.float32(3.0)})  # type: ignore[dict-item]
    gatherer.offer(3, {name: values[:3] for name, values in data["inputs"].items()})
    offer(gatherer, data, slice(10, 20))
    gatherer.fold(1.0)
    pane = gatherer.cut(1.0)
    assert pane is not None
    assert pane.sketch.n_rows == 28
    assert pane.sketch.n_misfits == 8


def test_more_than_the_rate_is_left_out_at_random_and_counted() -> None:
    data = table(10, 1)
    gatherer = Gatherer(REFERENCE, random.Random(0), 0.0, most_rows_per_s=1000.0)
    for _ in range(400):
        offer(gatherer, data, slice(0, 10))
    gatherer.fold(1.0)  # it came four times too fast
    for _ in range(400):
        offer(gatherer, data, slice(0, 10))
    assert 700 <= gatherer.fold(2.0) <= 1300
    pane = gatherer.cut(2.0)
    assert pane is not None
    assert pane.sketch.n_rows + pane.sketch.n_skipped == 8000


def test_what_waits_is_bounded() -> None:
    data = table(10, 1)
    gatherer = Gatherer(REFERENCE, random.Random(0), 0.0, most_waiting_rows=50)
    for _ in range(100):
        offer(gatherer, data, slice(0, 10))
    assert gatherer.fold(1.0) == 50
    pane = gatherer.cut(1.0)
    assert pane is not None
    assert pane.sketch.n_skipped == 950


def test_what_a_replica_imports_for_it_is_small() -> None:
    script = (
        "import sys, lineage.drift; print([m for m in ('scipy', 'river', 'matplotlib', 'pandas') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
