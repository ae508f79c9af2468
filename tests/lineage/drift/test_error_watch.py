from __future__ import annotations

import numpy as np
import pytest

from lineage.drift.error_watch import ErrorWatch


def errors(n: int, rate: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(n) < rate


def test_more_errors_are_an_alarm_and_fewer_are_none() -> None:
    watch = ErrorWatch()
    calm = watch.add(errors(1500, 0.1, 0), np.arange(1500.0))
    assert calm == []
    (alarm,) = watch.add(errors(400, 0.6, 1), np.arange(1500.0, 1900.0))[:1]
    assert alarm.detector in ("adwin", "page_hinkley")
    assert 1500.0 <= alarm.at_s < 1900.0
    assert alarm.rate > alarm.rate_before
    better = ErrorWatch()
    assert better.add(np.concatenate([errors(800, 0.5, 2), errors(800, 0.05, 3)]), np.arange(1600.0)) == []


def test_distances_of_regression_count_as_errors_and_what_is_not_finite_is_passed_over() -> None:
    watch = ErrorWatch(page_hinkley_threshold=5.0)
    far = np.concatenate([np.full(300, 0.1), [np.nan, np.inf], np.full(200, 3.0)])
    assert len(watch.add(far, np.arange(502.0))) >= 1
    assert ErrorWatch().add(np.empty(0), np.empty(0)) == []


def test_a_watch_goes_on_from_its_bytes() -> None:
    watch = ErrorWatch()
    watch.add(errors(1000, 0.1, 0), np.arange(1000.0))
    again = ErrorWatch.from_bytes(watch.to_bytes())
    assert again.rate == watch.rate
    later = errors(500, 0.6, 1), np.arange(1000.0, 1500.0)
    assert again.add(*later) == watch.add(*later) != []
    with pytest.raises(ValueError, match="unpack"):
        ErrorWatch.from_bytes(b"")
