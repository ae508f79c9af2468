from __future__ import annotations

import numpy as np
import pytest

from repair.errors import ParametersDiffer, TruthLacking
from repair.normalisation import restandardised

SCALER = {"mean": np.zeros(3, np.float32), "scale": np.ones(3, np.float32), "head": np.ones((2, 3), np.float32)}


def test_the_scaler_gets_mean_and_deviation_of_recent_rows() -> None:
    rows = np.random.default_rng(0).normal([1.0, 2.0, 3.0], [1.0, 4.0, 0.5], (5000, 3))
    made = restandardised(SCALER, "mean", "scale", rows)
    np.testing.assert_allclose(made["mean"], [1.0, 2.0, 3.0], atol=0.2)
    np.testing.assert_allclose(made["scale"], [1.0, 4.0, 0.5], rtol=0.05)
    assert made["mean"].dtype == np.float32
    assert SCALER["mean"].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_array_equal(made["head"], SCALER["head"])


def test_features_that_say_nothing_keep_what_they_had() -> None:
    rows = np.random.default_rng(0).normal(5.0, 1.0, (100, 3))
    rows[:, 0] = 7.0
    rows[5:, 1] = np.nan
    rows[0, 2] = np.inf
    made = restandardised(SCALER, "mean", "scale", rows)
    assert made["mean"][:2].tolist() == [0.0, 0.0]
    assert made["scale"][:2].tolist() == [1.0, 1.0]
    assert made["mean"][2] == pytest.approx(5.0, abs=0.5)


def test_what_has_no_scaler_or_too_few_rows_is_refused() -> None:
    with pytest.raises(ParametersDiffer, match="no scaler"):
        restandardised(SCALER, "center", "scale", np.ones((50, 3)))
    with pytest.raises(ParametersDiffer, match="a row of"):
        restandardised(SCALER, "mean", "scale", np.ones((50, 2)))
    with pytest.raises(TruthLacking):
        restandardised(SCALER, "mean", "scale", np.ones((5, 3)))
