"""How `fenix describe` shows quality, against a gateway that really listens and a ledger that has learned something."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import yaml

from deployments.gateway.quality import USUAL
from deployments.gateway.quality import Window as Windows
from fenix.commands.quality import Window, poor_line
from fenix.quality import USUAL_WINDOW
from tests.deployments.gateway.engines import Served, served_http
from tests.deployments.gateway.qualities import Learned, learned, observed
from tests.fenix.test_cli import run


@pytest.fixture(scope="module")
def ledger() -> Learned:
    return learned()


@pytest.fixture(scope="module")
def gateway(ledger: Learned) -> Iterator[Served]:
    with observed(ledger) as served:
        yield served


def test_an_extension_is_shown_with_its_figures_their_intervals_and_what_it_does_poorly(gateway: Served) -> None:
    result = run("describe", "double", gateway=gateway, width=140)
    assert (result.exit_code, result.stderr) == (0, "")
    for pattern in (
        r"^extension +double@1",
        r"^Quality over the last day \(with 95 % intervals\)$",
        r"^requests +420, \S+ \(\S+ to \S+\) a second",
        r"^failed +4\.8 % \(3\.1 to 7\.2\)",
        r"^latency +p50 1\.99 ms \(1\.97 to 2\.01\)",
        r"^right +70\.0 % \(63\.3 to 75\.9\) of 200 rows whose label is known",
        r"^calibration error +20\.0 % \(1\d\.\d to 2\d\.\d\)",
        r"^9 +20 +70\.0 % \(48\.1 to 85\.5\)",
        r"^0 +9 +6$",
        r"^87 to 93 % +90\.0 % +70\.0 % \(63\.3 to 75\.9\) +200",
        r"^ann +380 +5\.3 \(3\.4 to 8\.0\)",
        r"^\(no user\) +20 ",
        r"^accuracy +card +wrong on 30\.0 % \(24\.1 to 36\.7\) of 200 judged requests; its card promises 1 %\.",
        r"^confidence +itself +is 90 % sure on average, but right on 70 %",
    ):
        assert re.search(pattern, result.stdout, re.MULTILINE), pattern


def test_a_goal_is_shown_with_the_figures_of_its_plans(gateway: Served) -> None:
    result = run("describe", "doubling", "--window", "1h", gateway=gateway, width=140)
    assert "Quality over the last hour" in result.stdout
    assert re.search(r"^p-double +420 +4\.8 \(3\.1 to 7\.2\) +2\.97", result.stdout, re.MULTILINE)
    assert re.search(r"^  double@1 ", result.stdout, re.MULTILINE)
    assert re.search(r"^errors +card +\(p-double\) failed 4\.8 %", result.stdout, re.MULTILINE)


def test_the_figures_may_be_of_one_user(gateway: Served) -> None:
    result = run("describe", "double", "--segment", "bob", "--window", "15m", gateway=gateway)
    assert "Quality over the last 15 minutes, user bob" in result.stdout
    assert re.search(r"^requests +20,", result.stdout, re.MULTILINE)
    assert "right  " not in result.stdout


def test_what_nobody_asked_is_said_to_have_had_no_requests(gateway: Served) -> None:
    result = run("describe", "raising", gateway=gateway)
    assert "No requests." in result.stdout


def test_figures_come_as_json_and_yaml_beside_the_card(gateway: Served) -> None:
    for form, read in (("json", json.loads), ("yaml", yaml.safe_load)):
        data = read(run("describe", "double", "-o", form, gateway=gateway).stdout)
        assert (data["id"], data["window"], data["segment"]) == ("double@1", "1d", None)
        assert data["quality"]["accuracy"]["value"] == 0.7
        assert {finding["check"] for finding in data["findings"]} == {"accuracy", "confidence", "errors"}
        goal = read(run("describe", "doubling", "-o", form, gateway=gateway).stdout)
        assert goal["plans"][0]["quality"]["n"] == 420


def test_without_figures_the_rest_is_shown(gateway: Served, ledger: Learned) -> None:
    ledger.is_down = True
    try:
        result = run("describe", "double", gateway=gateway)
        assert (result.exit_code, "extension    double@1" in result.stdout) == (0, True)
        assert "how well it does is not known: the ledger does not answer." in result.stderr
        assert "Quality" not in result.stdout
        data = json.loads(run("describe", "double", "-o", "json", gateway=gateway).stdout)
        assert (data["id"], data["quality"], data["findings"]) == ("double@1", None, None)
    finally:
        ledger.is_down = False


def test_a_gateway_without_a_journal_says_so() -> None:
    with observed(None) as served:
        result = run("describe", "double", gateway=served)
    assert (result.exit_code, "this gateway keeps no journal" in result.stderr) == (0, True)


def test_a_wrong_window_is_refused(gateway: Served) -> None:
    result = run("describe", "double", "--window", "2h", gateway=gateway)
    assert (result.exit_code, "'15m', '1h'" in " ".join(result.stderr.split())) == (2, True)


def test_the_windows_are_those_of_the_gateway() -> None:
    assert [window.value for window in Window] == list(get_args(Windows))
    assert USUAL_WINDOW == USUAL


def test_who_does_poorly_is_said_in_a_line() -> None:
    found: list[dict[str, Any]] = [
        {"id": "digits@2", "check": "accuracy"},
        {"id": "digits@2", "check": "accuracy"},
        {"id": "read/p1", "check": "latency"},
        {"id": "digits@2", "check": "errors"},
    ]
    assert str(poor_line(found)) == (
        "does poorly: digits@2 (accuracy, errors), read/p1 (latency). `fenix describe digits@2` says why."
    )
    assert "`fenix describe read`" in str(poor_line(found[2:3]))


def test_a_gateway_of_before_is_borne() -> None:
    with served_http() as served:
        result = run("describe", "double", gateway=served)
    assert (result.exit_code, "how well it does is not known" in result.stderr) == (0, True)
