"""Calibration: temperatures from evidence, and confidences scaled by them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration import fit_temperature, scaled, scaled_rows, temperature_of
from planner.cards import Evidence
from tests.planner.doubles import card


def drawn(temperature: float, n_rows: int = 20_000) -> tuple[np.ndarray, np.ndarray]:
    """Confidences that claim `temperature` times the log odds they should."""
    rng = np.random.default_rng(5)
    logits = rng.normal(1.0, 1.0, n_rows)
    right = rng.random(n_rows) < 1.0 / (1.0 + np.exp(-logits))
    return 1.0 / (1.0 + np.exp(-logits * temperature)), right


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_behind_the_confidences_is_found(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.06)


def test_scaling_by_the_fitted_temperature_brings_confidence_to_accuracy() -> None:
    confidence, right = drawn(2.0)
    temperature = fit_temperature(confidence, right)
    assert confidence.mean() - right.mean() > 0.05
    assert np.mean([scaled(c, temperature) for c in confidence.tolist()]) == pytest.approx(right.mean(), abs=0.01)


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans()), max_size=50))
@settings(deadline=None)
def test_a_temperature_is_always_within_its_bounds(rows: list[tuple[float, bool]]) -> None:
    confidence, right = np.array([c for c, _ in rows]), np.array([r for _, r in rows], dtype=bool)
    assert 0.05 <= fit_temperature(confidence, right) <= 20.0


def test_rows_that_are_all_right_do_not_ask_for_certainty() -> None:
    temperature = fit_temperature(np.full(10, 0.7), np.ones(10, dtype=bool))
    assert scaled(0.7, temperature) == pytest.approx(11 / 12, abs=0.01)


def test_a_card_without_evidence_or_confidence_keeps_its_confidences() -> None:
    confidence, right = drawn(3.0)
    assert temperature_of(card("a")) == 1.0
    assert temperature_of(card("a").but(evidence=Evidence.of("d", right, None))) == 1.0
    assert temperature_of(card("a").but(evidence=Evidence.of("d", right, confidence))) == pytest.approx(3.0, rel=0.1)
    assert scaled(0.7, 1.0) == 0.7
    assert scaled(0.0, 3.0) == 0.0
    assert scaled(1.0, 3.0) == 1.0


@given(st.lists(st.floats(0.0, 1.0), min_size=1), st.floats(0.05, 20.0))
def test_rows_are_scaled_as_one_by_one(sure: list[float], temperature: float) -> None:
    rows = scaled_rows(np.array(sure), temperature)
    assert rows.tolist() == pytest.approx([scaled(c, temperature) for c in sure], abs=1e-9)
