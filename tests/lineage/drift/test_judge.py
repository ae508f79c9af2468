from __future__ import annotations

import numpy as np
import pytest

from lineage.drift import BinsDiffer, Sketch
from lineage.drift.estimates import learn_accuracy
from lineage.drift.judge import Judge
from lineage.drift.report import DriftReport
from lineage.drift.thresholds import DriftSettings
from tests.lineage.drift.tables import plain_reference, reference_of, sketch_of, table

TRAINING = table(4000, 1)
REFERENCE = reference_of(TRAINING)
JUDGE = Judge(REFERENCE, DriftSettings(simulated=400), model="sales/3")


def test_a_window_like_training_is_no_drift_and_a_shifted_one_names_its_column() -> None:
    calm = JUDGE.report(sketch_of(REFERENCE, table(400, 2)), 10.0, 20.0)
    assert not calm.drifted
    assert not calm.alarms
    shifted = JUDGE.report(sketch_of(REFERENCE, table(400, 3, shift=0.7)), 10.0, 20.0)
    assert shifted.drifted
    assert shifted.drifted_columns == ("x[1]",)
    assert JUDGE.level(sketch_of(REFERENCE, table(400, 3, shift=0.7))) == shifted.level
    assert shifted.alarms[0].sentence.startswith("x[1] is distributed otherwise than in training: ")
    first = shifted.columns[0]
    assert first.median is not None
    assert first.median_before is not None
    assert first.median - first.median_before == pytest.approx(0.7, abs=0.25)


def test_what_is_new_is_a_finding_that_says_how_much_of_it_there_is() -> None:
    data = table(300, 4)
    data["inputs"]["x"][:30, 0] = np.nan
    data["inputs"]["x"][:20, 1] = 1e9
    data["inputs"]["city"][:10] = "atlantis"
    report = JUDGE.report(sketch_of(REFERENCE, data), 0.0, 1.0)
    found = {(finding.kind, finding.column): finding for finding in report.alarms}
    assert "missing in 30 of 300 rows (10.00%)" in found["missing", "x[0]"].sentence
    assert "(0 below, 20 above)" in found["range", "x[1]"].sentence
    assert found["unseen", "city"].sentence.endswith(
        "10 of 300 rows (3.33%) in categories not seen in training: 'atlantis'."
    )


def test_rows_of_another_shape_are_a_finding() -> None:
    data = table(100, 5)
    data["inputs"]["x"] = data["inputs"]["x"][:, :2]
    report = JUDGE.report(sketch_of(REFERENCE, data), 0.0, 1.0)
    assert "shape" in {finding.kind for finding in report.alarms}


@pytest.mark.parametrize("n", [0, 1, 4, 5])
def test_windows_with_hardly_any_rows_are_judged_without_a_crash(n: int) -> None:
    sketch = Sketch(REFERENCE.bins)
    sketch.add(REFERENCE.layout.rows(**table(10, 6)).take(np.arange(n)))
    report = JUDGE.report(sketch, 0.0, 1.0)
    assert not report.drifted
    assert (report.findings[0].kind == "few" if report.findings else n == 5) or n == 5
    assert DriftReport.from_json(report.to_json()).n_rows == n


def test_a_window_in_which_everything_is_missing_is_drift() -> None:
    data = table(200, 7)
    data["inputs"]["x"][:] = np.nan
    data["inputs"]["city"][:] = None
    data["confidence"][:] = np.nan
    report = JUDGE.report(sketch_of(REFERENCE, data), 0.0, 1.0)
    assert {"x[0]", "city", "confidence"} <= {finding.column for finding in report.alarms}
    assert DriftReport.from_json(report.to_json()).to_json() == report.to_json()


def test_a_constant_column_that_moves_is_drift_and_one_that_was_always_missing_may_come() -> None:
    training = np.stack([np.full(1000, 3.0), np.full(1000, np.nan), np.arange(1000.0)], axis=1)
    reference = plain_reference(training)
    judge = Judge(reference, DriftSettings(simulated=200))

    def report(values: np.ndarray) -> DriftReport:
        return judge.report(sketch_of(reference, {"inputs": {"x": values.astype(np.float32)}}), 0.0, 1.0)

    assert not report(training[:300:1][np.random.default_rng(0).permutation(300)] * [1, 1, 10 / 3]).drifted
    moved = training[::5].copy()
    moved[:, 0] = 2.5
    assert "x[0]" in {finding.column for finding in report(moved).alarms}
    came = training[::5].copy()
    came[:, 1] = 1.0
    assert "x[1]" in {finding.column for finding in report(came).alarms}


def test_accuracy_is_estimated_where_the_confidences_have_a_worth() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(4000) < TRAINING["confidence"]
    judge = Judge(REFERENCE, DriftSettings(simulated=200), accuracy=learn_accuracy(TRAINING["confidence"], right))
    unsure = table(500, 8)
    unsure["confidence"] *= 0.8
    estimates = judge.report(sketch_of(REFERENCE, unsure), 0.0, 1.0).accuracy
    assert [estimate.method for estimate in estimates] == ["cbpe", "atc"]
    assert estimates[0].low <= float(unsure["confidence"].mean()) <= estimates[0].high
    assert estimates[0].lost == pytest.approx(0.16, abs=0.05)


def test_a_report_survives_json_and_other_json_is_refused() -> None:
    report = JUDGE.report(sketch_of(REFERENCE, table(100, 9, shift=1.0)), 5.0, 6.0)
    assert DriftReport.from_json(report.to_json()) == report
    for bad in (b"{}", b"[]", b'{"columns": [1]}', b"null"):
        with pytest.raises(ValueError, match="no drift report"):
            DriftReport.from_json(bad)


def test_a_sketch_of_other_training_data_is_not_judged() -> None:
    other = plain_reference(np.arange(50.0).reshape(-1, 1))
    with pytest.raises(BinsDiffer):
        JUDGE.report(Sketch(other.bins), 0.0, 1.0)


def test_what_was_prepared_is_what_is_used() -> None:
    judge = Judge(REFERENCE, DriftSettings(simulated=200))
    judge.prepare(0)
    judge.prepare(250)
    window = sketch_of(REFERENCE, table(250, 10))
    assert judge.level(window) == Judge(REFERENCE, DriftSettings(simulated=200)).level(window)
