from __future__ import annotations

import math

import pytest

from repair.diagnosis import Ancestor, FeatureDrift, diagnose, nearest_healthy
from repair.errors import RepairRefused

TIMES = (10.0, 20.0, 30.0, 40.0, 50.0)


def drift(*scores: float, feature: str = "x", threshold: float = 1.0) -> FeatureDrift:
    return FeatureDrift(feature, TIMES[: len(scores)], scores, threshold)


def test_features_are_named_since_they_drift_the_worst_first() -> None:
    found = diagnose(
        "digits@3",
        [
            drift(0.1, 2.0, 3.0),
            drift(5.0, 0.2, 0.1, feature="over"),
            drift(0.0, 0.0, 9.0, feature="worst"),
        ],
        0.9,
        0.7,
    )
    assert [(one.feature, one.since_s) for one in found.features] == [("worst", 30.0), ("x", 20.0)]
    assert (found.since_s, found.lost) == (20.0, pytest.approx(0.2))
    assert (
        found.text() == "digits@3 drifts in worst (9.0x), x (3.0x) and has lost an estimated 20.0 points of accuracy."
    )


def test_a_single_calm_window_does_not_end_a_run_and_two_do() -> None:
    assert diagnose("v", [drift(2.0, 0.1, 2.0, 2.0)]).since_s == 10.0
    assert diagnose("v", [drift(2.0, 0.1, 0.1, 2.0)]).since_s == 40.0


def test_windows_that_could_not_tell_are_left_out_and_said() -> None:
    found = diagnose("v", [drift(math.nan, 2.0, math.nan), drift(math.nan, math.nan, feature="dark")])
    assert [one.since_s for one in found.features] == [20.0]
    assert found.unclear == ("dark",)


def test_without_drift_and_loss_nothing_is_ill() -> None:
    found = diagnose("v", [drift(0.1, 0.2)], 0.8, 0.85)
    assert (found.is_ill, found.lost, found.since_s) == (False, 0.0, None)
    assert "no drift" in found.text()
    assert diagnose("v", []).lost is None


def test_a_loss_alone_is_ill() -> None:
    assert diagnose("v", [], 0.8, 0.7).is_ill


def test_what_is_no_figure_is_refused() -> None:
    with pytest.raises(RepairRefused):
        diagnose("v", [], 1.2, 0.3)
    with pytest.raises(RepairRefused):
        FeatureDrift("x", (1.0,), (1.0, 2.0), 1.0)
    with pytest.raises(RepairRefused):
        FeatureDrift("x", (2.0, 1.0), (1.0, 2.0), 1.0)


def test_the_ancestor_with_the_least_drift_comes_first_and_bad_ones_never() -> None:
    choice = nearest_healthy(
        [
            Ancestor("near", 0.5, "healthy"),
            Ancestor("bad", 0.0, "bad"),
            Ancestor("dark", math.nan, "healthy"),
            Ancestor("far", 0.1, "healthy"),
        ],
        0.8,
    )
    assert choice.ranked == ("far", "near")
    assert dict(choice.passed_over) == {"bad": "it did badly itself", "dark": "its drift is not known"}
    assert (choice.version, choice.fits) == ("far", True)


def test_between_equals_the_healthy_and_then_the_nearest_counts() -> None:
    same = [Ancestor("unsure", 0.2), Ancestor("near", 0.2, "healthy"), Ancestor("far", 0.2, "healthy")]
    assert nearest_healthy(same).ranked == ("near", "far", "unsure")


def test_a_lineage_without_a_healthy_ancestor_has_none_to_offer() -> None:
    choice = nearest_healthy([Ancestor("bad", 0.0, "bad")], 0.3)
    assert (choice.version, choice.ranked, choice.fits) == (None, (), None)
    assert nearest_healthy([Ancestor("a", 0.4)], 0.3).fits is False
