from __future__ import annotations

import numpy as np
import pytest
from datasketches import kll_floats_sketch

from lineage.drift.estimates import AccuracyModel, learn_accuracy
from lineage.drift.sketches import Points, points_of


def points(confidence: np.ndarray) -> Points:
    sketch = kll_floats_sketch(800)
    sketch.update(confidence.astype(np.float32))
    return points_of(sketch)


def overconfident(rng: np.random.Generator, n: int, a: float) -> tuple[np.ndarray, np.ndarray]:
    """Confidences of which the square is how often they are right."""
    confidence = rng.beta(a, 2.0, n)
    return confidence, rng.random(n) < confidence**2


def test_the_loss_of_accuracy_under_a_shift_of_inputs_is_estimated_without_labels() -> None:
    rng = np.random.default_rng(0)
    model = learn_accuracy(*overconfident(rng, 5000, 12.0))
    hits = 0
    for _ in range(60):
        confidence, right = overconfident(rng, 400, 5.0)
        estimate = model.cbpe(points(confidence), 400)
        assert estimate.lost > 0.1
        hits += estimate.low <= right.mean() <= estimate.high
    assert hits >= 52  # of 57


def test_atc_gives_the_accuracy_of_the_labelled_rows_back_also_with_ties() -> None:
    rng = np.random.default_rng(1)
    for confidence in (rng.beta(8.0, 2.0, 2000), np.round(rng.beta(8.0, 2.0, 2000), 1), np.full(2000, 0.5)):
        right = rng.random(2000) < confidence
        estimate = learn_accuracy(confidence, right).atc(points(confidence), 2000)
        assert estimate.value == pytest.approx(right.mean(), abs=0.01)
        assert estimate.lost_low <= 0.0 <= estimate.lost_high


@pytest.mark.parametrize("right", [np.ones(50, bool), np.zeros(50, bool)], ids=["all right", "all wrong"])
def test_labelled_rows_of_one_kind_give_an_estimate(right: np.ndarray) -> None:
    confidence = np.linspace(0.3, 1.0, 50)
    for estimate in learn_accuracy(confidence, right).estimates(points(confidence), 50):
        assert estimate.value == pytest.approx(right.mean())
        assert estimate.low <= estimate.value <= estimate.high
        assert estimate.high - estimate.low > 0.01


def test_a_single_row_and_no_rows_at_all_are_borne() -> None:
    model = learn_accuracy(np.array([0.7]), np.array([True]))
    assert [estimate.method for estimate in model.estimates(points(np.array([0.6])), 1)] == ["cbpe", "atc"]
    assert model.estimates(points(np.empty(0)), 0) == ()
    with pytest.raises(ValueError, match="the truth"):
        learn_accuracy(np.array([np.nan]), np.array([True]))


def test_a_model_survives_its_bytes() -> None:
    rng = np.random.default_rng(2)
    confidence, right = overconfident(rng, 300, 6.0)
    model = learn_accuracy(confidence, right)
    live = points(rng.random(100))
    assert AccuracyModel.from_bytes(model.to_bytes()).estimates(live, 100) == model.estimates(live, 100)
    with pytest.raises(ValueError, match="unpack"):
        AccuracyModel.from_bytes(b"?")
