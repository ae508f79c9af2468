from __future__ import annotations

import numpy as np

from lineage.drift.columns import MOST_COLUMNS, layout_of
from tests.lineage.drift.tables import table


def test_tensors_become_numbers_and_categories_in_one_order() -> None:
    data = table(200, 0)
    layout = layout_of(**data)
    assert [column.name for column in layout.numbers] == ["x[0]", "x[1]", "x[2]", "x[3]", "still", "confidence"]
    assert [(column.name, column.role) for column in layout.categories] == [("city", "input"), ("label", "output")]
    rows = layout.rows(**data)
    assert rows.numbers.shape == (200, 6)
    assert np.array_equal(rows.numbers[:, :4], data["inputs"]["x"])
    assert rows.categories[1].tolist() == data["outputs"]["label"].tolist()
    assert rows.n_misfits == 0


def test_a_wide_tensor_is_watched_by_the_means_of_neighbours() -> None:
    image = np.arange(2 * 32 * 32, dtype=np.float32).reshape(2, 32, 32)
    layout = layout_of({"image": image})
    assert len(layout.numbers) == MOST_COLUMNS
    assert layout.numbers[1].name == "image[4:8]"
    assert layout.rows({"image": image}).numbers[0, 1] == np.mean([4, 5, 6, 7])


def test_texts_that_are_mostly_distinct_are_watched_by_their_length() -> None:
    texts = np.array([f"{'a' * (i % 7)}{i:04d}" for i in range(100)], dtype=object)
    layout = layout_of({"text": texts})
    assert [column.kind for column in layout.numbers] == ["number"]
    assert layout.rows({"text": texts}).numbers[3, 0] == 7


def test_rows_of_another_shape_or_type_are_missing_and_counted() -> None:
    data = table(50, 0)
    layout = layout_of(**data)
    narrow = layout.rows({**data["inputs"], "x": data["inputs"]["x"][:, :3]}, data["outputs"], data["confidence"])
    assert np.isnan(narrow.numbers[:, :4]).all()
    assert not np.isnan(narrow.numbers[:, 4]).any()
    assert narrow.n_misfits == 50
    words = layout.rows({**data["inputs"], "x": np.full((50, 4), "red", dtype=object)}, data["outputs"])
    assert np.isnan(words.numbers[:, :4]).all()
    assert words.n_misfits == 50
    nothing = layout.rows()
    assert len(nothing) == 0
