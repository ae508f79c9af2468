"""What `fenix status` shows of a cluster that is up."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest

from cluster.lifecycle import ClusterStatus
from deployments.health import Health
from deployments.live import Live
from deployments.steward import Event
from fenix.commands.lifecycle import _Report, _shown
from fenix.output import Format, emit
from lineage.quality import Finding
from planner.cards import ExtensionId

A, B, AB = ExtensionId("a@1"), ExtensionId("b@1"), ExtensionId("fused.a.b@7c1")
NOW_S = 1e9
QUIET = (1, 0, 0, 0, 0.0, None, None, None, 0.0, 50.0, None)
REPORT = _Report(
    ClusterStatus("up", "all there"),
    tuple(Health(id_, "running", 1, 1, "") for id_ in (A, AB, B, "gateway")),
    (
        Live(A, *QUIET, placement="inline", n_inline=1),
        Live(AB, *QUIET, placement="fused", parts=(A, B)),
        Live(B, *QUIET),
    ),
    tuple(
        Event(NOW_S - ago_s, "fused" if i % 2 else "retired", AB, (A, B), f"reason {i}")
        for i, ago_s in enumerate((900.0, 800.0, 700.0, 600.0, 500.0, 65.0))
    ),
    NOW_S,
)


def shown(report: _Report, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "200")
    emit(report.data(), Format.TABLE, lambda: _shown(report))
    return capsys.readouterr().out


def test_status_shows_where_each_extension_runs_what_is_fused_and_what_the_steward_did_last(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(REPORT, capsys, monkeypatch)
    for id_, runs in ((A, "inline"), (AB, "fused"), (B, "remote")):
        assert re.search(rf"^{re.escape(id_)} +running +{runs} +1 of 1", text, re.MULTILINE)
    assert re.search(r"^gateway +running +1 of 1", text, re.MULTILINE)
    assert re.search(rf"^{re.escape(AB)} +a@1, b@1", text, re.MULTILINE)
    assert re.search(rf"^1 min 5 s ago +fused +{re.escape(AB)} +reason 5", text, re.MULTILINE)
    assert "reason 1" in text
    assert "reason 0" not in text  # there is room for five


def test_status_says_nothing_of_a_steward_who_did_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = shown(_Report(REPORT.found, REPORT.health[:1], REPORT.live[:1]), capsys, monkeypatch)
    assert "fused" not in text
    assert "steward" not in text


def test_status_names_who_does_poorly_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = (Finding(A, "accuracy", "card", 0.0, 0.0, "wrong."), Finding(A, "errors", "past", 0.0, 0.0, "failed."))
    text = shown(replace(REPORT, poor=poor), capsys, monkeypatch)
    assert re.search(r"^does poorly: a@1 \(accuracy, errors\)\. `fenix describe a@1` says why\.$", text, re.MULTILINE)
    assert "does poorly" not in shown(REPORT, capsys, monkeypatch)
    assert replace(REPORT, poor=poor).data()["findings"][1]["sentence"] == "failed."


def test_status_as_json_has_all_of_it() -> None:
    data = json.loads(json.dumps(REPORT.data(), allow_nan=False))
    assert [(one["placement"], one["n_inline"], one["parts"]) for one in data["extensions"]] == [
        ("inline", 1, []),
        ("fused", 0, [A, B]),
        ("remote", 0, []),
    ]
    assert data["events"][-1]["why"] == "reason 5"
    assert data["events"][-1]["parts"] == [A, B]
    assert len(data["events"]) == 6
