"""The quality of versions and plans over `/v1`, from a ledger that has really learned it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deployments.gateway.http import HttpApp
from deployments.gateway.limits import Limits
from deployments.gateway.metrics import observing_routes
from deployments.gateway.quality_schemas import EstimateInfo, FindingInfo
from deployments.gateway.rest import create_app
from deployments.gateway.tally import Tally
from tests.deployments.gateway.engines import Served
from tests.deployments.gateway.qualities import Learned, engine, learned, observed


@pytest.fixture(scope="module")
def ledger() -> Learned:
    return learned()


@pytest.fixture(scope="module")
def gateway(ledger: Learned) -> Iterator[Served]:
    with observed(ledger) as served:
        yield served


def get(served: Served, path: str, **parameters: Any) -> Any:
    reply = httpx.get(served.url + path, params=parameters)
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_the_figures_of_a_version_come_with_intervals_users_and_findings(gateway: Served) -> None:
    told = get(gateway, "/v1/extensions/double/quality")
    assert (told["id"], told["window"], told["segment"]) == ("double@1", "1d", None)
    quality = told["quality"]
    assert (quality["n"], quality["n_failed"], quality["n_judged"], quality["n_right"]) == (420, 20, 200, 140)
    accuracy = quality["accuracy"]
    assert accuracy["value"] == 0.7
    assert 0.62 < accuracy["low"] < 0.7 < accuracy["high"] < 0.77
    assert quality["p50_ms"]["value"] == pytest.approx(2.0, rel=0.02)
    assert (len(quality["classes"]), len(quality["confused"])) == (10, 10)
    assert quality["calibration"]["ece"]["value"] == pytest.approx(0.2, abs=0.05)
    assert quality["calibration"]["bins"][0]["confidence"] == pytest.approx(0.9)
    assert (quality["errors"], quality["rating"]) == (None, None)
    users = {segment["segment"]: segment["n"] for segment in quality["segments"]}
    assert users == {"": 20, "ann": 380, "bob": 20}
    found = {(finding["id"], finding["check"], finding["against"]) for finding in told["findings"]}
    assert found == {("double@1", check, "card") for check in ("accuracy", "errors")} | {
        ("double@1", "confidence", "itself")
    }


def test_the_figures_may_be_of_one_user_and_of_a_shorter_time(gateway: Served) -> None:
    told = get(gateway, "/v1/extensions/double@1/quality", segment="bob", window="15m")
    assert (told["segment"], told["quality"]["n"], told["quality"]["segments"]) == ("bob", 20, [])
    assert get(gateway, "/v1/extensions/double@1/quality", segment="")["quality"]["n"] == 20
    assert get(gateway, "/v1/extensions/double@1/quality", segment="eve")["quality"]["n"] == 0


def test_an_extension_that_nobody_asked_has_empty_figures(gateway: Served) -> None:
    told = get(gateway, "/v1/extensions/raising/quality", window="all")
    assert (told["quality"]["n"], told["quality"]["accuracy"], told["findings"]) == (0, None, [])


def test_the_figures_of_a_goal_are_those_of_its_plans(gateway: Served) -> None:
    told = get(gateway, "/v1/goals/doubling/quality", window="1h")
    assert [(plan["plan"], plan["quality"]["n"]) for plan in told["plans"]] == [("p-double", 420)]
    assert told["plans"][0]["steps"] == ["double@1"]
    assert told["plans"][0]["quality"]["p50_ms"]["value"] == pytest.approx(3.0, rel=0.02)
    assert {finding["id"] for finding in told["findings"]} == {"doubling/p-double"}


def test_everything_that_does_poorly_is_told_with_the_reason(gateway: Served) -> None:
    told = get(gateway, "/v1/quality")
    assert {finding["id"] for finding in told["findings"]} == {"double@1", "doubling/p-double"}
    sentences = [finding["sentence"] for finding in told["findings"]]
    assert any(s == "wrong on 30.0 % (24.1 to 36.7) of 200 judged requests; its card promises 1 %." for s in sentences)


@pytest.mark.parametrize(
    ("path", "status", "words"),
    [
        ("/v1/extensions/dubble/quality", 404, "Nearest: double@1"),
        ("/v1/goals/dubbling/quality", 404, "Nearest: doubling"),
        ("/v1/quality?window=2h", 400, "window: Input should be '15m'"),
        ("/v1/quality?windw=1h", 400, "Nearest: window"),
        ("/v1/quality?window=1h&window=1d", 400, "is there twice"),
        (f"/v1/extensions/double/quality?segment={'x' * 300}", 400, "at most 256 characters"),
    ],
)
def test_what_is_wrong_is_refused_with_the_reason(gateway: Served, path: str, status: int, words: str) -> None:
    reply = httpx.get(gateway.url + path)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert words in reply.json()["error"]


def test_while_the_ledger_is_down_it_is_said(gateway: Served, ledger: Learned) -> None:
    ledger.is_down = True
    try:
        for path in ("/v1/extensions/double/quality", "/v1/goals/doubling/quality", "/v1/quality"):
            reply = httpx.get(gateway.url + path)
            assert (reply.status_code, reply.headers["fenix-error"]) == (503, "ClusterDown")
    finally:
        ledger.is_down = False


def test_without_a_journal_nothing_is_known() -> None:
    with observed(None) as served:
        reply = httpx.get(served.url + "/v1/quality")
        assert (reply.status_code, reply.headers["fenix-error"]) == (503, "StoreUnavailable")
        assert "fenix_quality_known 0.0" in httpx.get(served.url + "/metrics").text


def test_the_examples_of_the_document_are_what_is_answered(gateway: Served) -> None:
    schemas = get(gateway, "/openapi.json")["components"]["schemas"]
    for name, kind in (("EstimateInfo", EstimateInfo), ("FindingInfo", FindingInfo)):
        for example in schemas[name]["examples"]:
            kind.model_validate(example)


_ENGINE, _LIMITS, _TALLY = engine(), Limits(), Tally()
_ROUTERS = observing_routes(_ENGINE, _TALLY, learned(), None)
schema = schemathesis.openapi.from_asgi(
    "/openapi.json",
    HttpApp(_ENGINE, create_app(_ENGINE, _LIMITS, None, _ROUTERS, _TALLY), _LIMITS, None, _TALLY),
)


@schema.include(path_regex=r"quality|/metrics").parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_is_answered_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=[positive_data_acceptance])


@schema.include(path_regex=r"/v1/extensions/.*quality").parametrize()
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_whatever_is_asked_of_an_extension_that_exists_is_answered(case: schemathesis.Case) -> None:
    case.path_parameters = {**case.path_parameters, "id": "double"}
    case.call_and_validate()
