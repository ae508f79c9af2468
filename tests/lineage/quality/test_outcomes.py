from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lineage.quality import Outcomes


def test_labels_are_compared_as_texts_whatever_their_type() -> None:
    outcomes = Outcomes.of([0.0] * 5, predicted=np.array([3, 1, 0, 2, 7]), truth=["3", 1.0, None, float("nan"), True])
    assert outcomes.predicted == ("3", "1", "0", "2", "7")
    assert outcomes.truth == ("3", "1", None, None, "true")
    assert not outcomes.numeric


def test_of_a_score_vector_the_best_is_the_label_and_its_score_the_confidence() -> None:
    scores = np.array([[0.1, 0.9], [0.7, 0.3], [np.nan, 0.3]])
    outcomes = Outcomes.of([0.0] * 3, predicted=scores, truth=["dog", "dog", "cat"], classes=["cat", "dog"])
    assert outcomes.predicted == ("dog", "cat", None)
    assert outcomes.confidence[:2].tolist() == [0.9, 0.7]
    assert np.isnan(outcomes.confidence[2])


def test_scores_that_are_no_distribution_say_nothing_of_confidence() -> None:
    outcomes = Outcomes.of([0.0, 0.0], predicted=np.array([[2.0, -1.0], [0.5, 3.0]]), confidence=[None, 0.4])
    assert np.isnan(outcomes.confidence[0])
    assert outcomes.confidence[1] == 0.4


def test_float_predictions_are_numbers_unless_it_is_said_otherwise() -> None:
    assert Outcomes.of([0.0], predicted=np.array([3.0]), truth=[3]).numeric
    assert not Outcomes.of([0.0], predicted=np.array([3.0]), truth=[3], numeric=False).numeric
    assert not Outcomes.of([0.0], predicted=[None], truth=["a"]).numeric


@pytest.mark.parametrize(
    "wrong",
    [
        {"at_s": [0.0, np.inf]},
        {"latency_ms": [1.0]},
        {"latency_ms": [1.0, -1.0]},
        {"latency_ms": ["soon", 1.0]},
        {"confidence": [0.5, 1.5]},
        {"predicted": np.zeros((2, 2, 2))},
        {"predicted": np.zeros((2, 3)), "classes": ["a", "b"]},
        {"predicted": [1.0, 2.0], "truth": ["a", "b"]},
        {"predicted": [[1], [2]], "truth": [1, 2]},
        {"truth": [1]},
        {"failed": [True]},
        {"segment": ["a"]},
        {"segment": ["a", 3]},
        {"rating": [np.inf, 1.0]},
    ],
)
def test_what_does_not_fit_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        Outcomes.of(**{"at_s": [0.0, 1.0], **wrong})
