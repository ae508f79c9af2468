"""`fenix feedback` and `fenix explain`, against a gateway that really listens and keeps a real journal."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fenix.commands.feedback import _explained, _value
from fenix.output import out
from lineage.outcomes import Setting
from planner.choice.posteriors import Belief
from tests.deployments.gateway.engines import Served, served_http
from tests.deployments.gateway.journals import MISSING, desk_over, journal
from tests.fenix.test_cli import run
from tests.lineage.outcomes import chunk, trace

RUN = "b" * 20
TAKEN = Setting(
    "doubling",
    goal="doubling",
    plan="p-other",
    steps=((0, "double@1"),),
    considered=(("p-double", 0.25), ("p-gone", 0.75)),
    reason="tried: it may be better than p-gone",
    chosen="p-double",
    flags=frozenset({"replanned"}),
    deadline_ms=200.0,
    tags=frozenset({"pii"}),
)
BELIEF = Belief(0.9, 99.0, 0.02, 50.0, 3.0, 0.1, 0.0)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with journal() as store:
        desk = desk_over(store)[0]
        desk.beliefs = lambda setting: {"p-double": BELIEF}
        with served_http(desk=desk) as served:
            store.append(RUN, [chunk(0, [1] * 40, run=RUN), chunk(40, [7], run=RUN, setting=TAKEN)])
            yield served


def test_feedback_is_given_and_counted(gateway: Served) -> None:
    first = run("feedback", trace(0), "--truth", "3", gateway=gateway)
    assert (first.exit_code, first.stdout.split(), first.stderr) == (0, ["new", "1"], "")
    again = run(
        "feedback", trace(0), "--truth", "3", "--output", "digit", "--user", "ann", "-o", "json", gateway=gateway
    )
    assert json.loads(again.stdout) == {"new": 0, "repeated": 1, "changed": 0, "refused": 0, "errors": []}
    other = run("feedback", trace(0), "--truth", "[-1]", "--format", "yaml", gateway=gateway)
    assert yaml.safe_load(other.stdout)["changed"] == 1
    assert run("feedback", trace(0), "--rating", "0.8", gateway=gateway).stdout.split() == ["new", "1"]


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("7", 7),
        ("-1.5", -1.5),
        ("true", True),
        ('["a", null]', ["a", None]),
        ('"7"', "7"),
        ("seven", "seven"),
        ("", ""),
        ("null", "null"),
        ("{}", "{}"),
        (None, None),
    ],
)
def test_a_truth_is_json_where_it_can_be(written: str | None, value: Any) -> None:
    assert _value(written) == value


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ([], 2, "Give a TRACE_ID, or --file"),
        ([trace(0)], 2, "Give --truth, or --rating"),
        ([trace(0), "--truth", "1", "--rating", "1"], 2, "in one way"),
        ([trace(0), "--file", "x.csv"], 2, "Give a TRACE_ID, or --file"),
        (["--file", "x.csv", "--truth", "1"], 2, "everything is in the file"),
        (["--file", "none.csv"], 2, "cannot be read"),
        (["--file", "none.txt"], 2, "neither .csv nor .parquet"),
        ([trace(0), "--rating", "nan"], 2, "finite"),
        ([trace(0), "--rating", "2"], 2, "between 0 and 1"),
        ([trace(0), "--rating", "good"], 2, "valid number"),
        ([trace(0), "--truth", "a"], 2, "whole number"),
        ([trace(0), "--truth", "x" * 2_000], 2, "1024 characters"),
        ([trace(0), "--truth", "1", "--output", "json"], 2, "There are: digit."),
        ([trace(0), "--truth", "1", "--user", "eve"], 2, "not one of user 'eve'"),
        (["7", "--truth", "1"], 2, "32 hex digits"),
        ([MISSING, "--truth", "1"], 4, "knows no request"),
    ],
)
def test_what_is_wrong_is_said_with_the_way_out(gateway: Served, words: list[str], code: int, says: str) -> None:
    result = run("feedback", *words, gateway=gateway)
    assert (result.exit_code, result.stdout) == (code, "")
    assert says in " ".join(re.sub(r"[│╭╮╰╯─]", " ", result.stderr).split())


def test_files_are_given_and_their_bad_rows_told(gateway: Served, tmp_path: Path) -> None:
    path = tmp_path / "truths.csv"
    path.write_text("trace_id,truth\n" + "".join(f"{trace(k, RUN)},1\n" for k in range(40)))
    result = run("feedback", "--file", str(path), gateway=gateway)
    assert (result.exit_code, result.stdout.split()) == (0, ["new", "40"])
    path.write_text("trace_id,truth\n" + f"{trace(0, RUN)},1\n" + f"{trace(1, RUN)},a[b]\n" * 20)
    result = run("feedback", "--file", str(path), gateway=gateway)
    assert result.exit_code == 1
    assert re.search(r"^refused +20 *$", result.stdout, re.MULTILINE)
    assert re.search(rf"^ *2 +{trace(1, RUN)} ", result.stdout, re.MULTILINE)
    assert "'a[b]'" in result.stdout
    assert "... and 8 more" in result.stdout


def test_a_request_is_explained(gateway: Served) -> None:
    result = run("explain", trace(40, RUN), gateway=gateway, width=160)
    assert result.exit_code == 0
    for pattern in (
        r"^plan +p-other$",
        r"^because +of 2 plans within the terms p-double was taken with probability 0.25; "
        r"tried: it may be better than p-gone; p-other took over on the way",
        r"^terms +deadline_ms 200, priority 5, tags pii$",
        r"^flags +replanned$",
        r"^ *0 +double@1 +0.10 ms +0.20 ms +0.40 ms +8$",
        r"^p-double +25.0 % +double@1 +100.0 % +0.20 ms +0 +84.1 % to 95.9 % right, 2.0 % fail, 3.00 ms +taken$",
        r"^p-gone +75.0 % +not planned now",
        r"^digit +7$",
    ):
        assert re.search(pattern, re.sub(r" +$", "", result.stdout, flags=re.MULTILINE), re.MULTILINE), pattern


def test_an_explanation_is_json_too_and_needs_no_plans(gateway: Served) -> None:
    told = json.loads(run("explain", trace(0), "-o", "json", gateway=gateway).stdout)
    assert (told["plan"], told["steps"][0]["extension"], told["considered"]) == ("plan-1", "scale@1", [])
    result = run("explain", trace(0), gateway=gateway)  # its goal is not in the catalogue
    assert "there was no other to choose from" in result.stdout


def test_what_was_not_kept_is_said_and_long_outputs_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    values = {"name": "y", "shape": [40, 1], "data": [0.123456789, None, "x" * 100] + [1] * 37, "best": False}
    best = {"name": "scores", "shape": [1], "data": [3], "best": True}
    outcome = {
        **dict.fromkeys(("trace_id", "version", "goal", "plan", "chosen", "reason", "error"), ""),
        **{"model": "m", "answered_s": 0.0, "n_rows": 40, "latency_ms": 12.0, "confidence": 0.5, "probability": None},
        **{"terms": {}, "flags": [], "steps": [], "considered": [], "outputs": [values, best], "not_kept": ["image"]},
    }
    console = out()
    with console.capture() as captured:
        for part in _explained(outcome, {}):
            console.print(part)
    text = captured.get()
    assert re.search(r"y +0.1235 - x{60}\.\.\.", text)
    assert "(40x1)" in text
    assert re.search(r"best of scores +3", text)
    assert re.search(r"image +not kept", text)


@pytest.mark.parametrize(("words", "code"), [([MISSING], 4), (["7"], 4), ([], 2)])
def test_what_is_unknown_cannot_be_explained(gateway: Served, words: list[str], code: int) -> None:
    result = run("explain", *words, gateway=gateway)
    assert (result.exit_code, result.stdout) == (code, "")
