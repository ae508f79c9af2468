from __future__ import annotations

import numpy as np
import pytest

from deployments.extension import Scored, execute
from fenix.demo import data
from fenix.demo.digits import fuse_scores, normalise, parity, read_network, stroke_features
from planner.errors import BadInput


def test_normalise_brings_grey_values_into_zero_to_one() -> None:
    scans = data.digits().train.x
    pixels = execute(normalise(), {"image": scans})["pixels"].values
    assert pixels.shape == (len(scans), 64)
    assert pixels.min() == 0.0
    assert pixels.max() == 1.0


def test_normalise_refuses_grey_values_that_no_scan_has_and_names_the_row() -> None:
    scans = data.digits().train.x[:3].copy()
    scans[1, 2, 2] = 200
    with pytest.raises(BadInput, match="above 16 in row 1"):
        execute(normalise(), {"image": scans})


def _strokes(image: np.ndarray) -> np.ndarray:
    rows = execute(stroke_features(), {"pixels": image.reshape(1, 64).astype(np.float32)})
    return rows["strokes"].values.reshape(9, 8)


def test_strokes_of_an_upright_edge_point_across_and_of_a_level_edge_down() -> None:
    upright, level = np.zeros((8, 8)), np.zeros((8, 8))
    upright[:, 4:] = 1.0
    level[4:, :] = 1.0
    middle = 4  # of the nine blocks: it lies away from the border of the image
    assert _strokes(upright)[middle].argmax() == 0
    assert _strokes(level)[middle].argmax() == 2


def test_strokes_hardly_change_with_the_brightness() -> None:
    image = data.digits().train.x[0] / 16
    assert np.allclose(_strokes(image), _strokes(image / 2), atol=0.01)


def test_a_blank_image_has_strokes_without_nan() -> None:
    assert np.array_equal(_strokes(np.zeros((8, 8))), np.zeros((9, 8)))


def _scores(*likely: tuple[int, float]) -> np.ndarray:
    rows = [np.full(10, (1 - p) / 9) for _, p in likely]
    for row, (digit, p) in zip(rows, likely, strict=True):
        row[digit] = p
    return np.array(rows, dtype=np.float32)


def test_two_unsure_models_that_agree_outvote_one_that_is_certain() -> None:
    made = fuse_scores.function(_scores((3, 0.6)), _scores((3, 0.6)), _scores((8, 1.0)))
    assert isinstance(made, Scored)
    assert made.outputs == [3]


def test_fused_confidence_is_higher_when_the_models_agree() -> None:
    agree = fuse_scores.function(_scores((3, 0.7)), _scores((3, 0.7)), _scores((3, 0.7)))
    differ = fuse_scores.function(_scores((3, 0.7)), _scores((3, 0.7)), _scores((8, 0.7)))
    assert isinstance(agree, Scored)
    assert isinstance(differ, Scored)
    assert agree.confidence[0] == pytest.approx(0.7, abs=1e-5)
    assert differ.confidence[0] < agree.confidence[0]


def test_a_reader_gives_the_likeliest_digit_and_its_score() -> None:
    rows = execute(read_network(), {"scores": _scores((4, 0.9), (0, 0.5))})["digit"]
    assert rows.values.tolist() == [4, 0]
    assert rows.confidence is not None
    assert rows.confidence == pytest.approx([0.9, 0.5])


def test_parity_of_all_digits() -> None:
    rows = execute(parity(), {"digit": np.arange(10)})["parity"]
    assert rows.values.tolist() == [0, 1] * 5
