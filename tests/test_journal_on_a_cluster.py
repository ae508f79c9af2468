"""The journal on a real local cluster: outcomes are found, feedback is kept, whoever dies in between."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from cluster import lifecycle
from cluster.settings import Settings
from planner.features import Port
from planner.goals import Goal
from tests import faulty

pytestmark = pytest.mark.cluster

GOAL = Goal("journaled", (Port("x", faulty.NUMBER),), (Port("y", faulty.DOUBLED),), description="Double, and remember.")


def quiet(text: str) -> None:
    """Progress of deployments is not part of the tests' output."""


@pytest.fixture(scope="module")
def settings(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    from deployments.deployer import deploy

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        deploy(["tests.faulty:moody_double"], [GOAL], lifecycle.installation(settings), quiet)
        yield settings


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=settings.http_url, timeout=30.0) as client:
        yield client


def ask(http: httpx.Client, *values: float, **terms: Any) -> str:
    """The trace id of a request that was answered."""
    tensor = {"name": "x", "shape": [len(values)], "datatype": "FP32", "data": list(values)}
    answer = http.post("/v2/models/journaled/infer", json={"inputs": [tensor], "parameters": terms})
    assert answer.status_code == 200, answer.text
    trace_id: str = answer.json()["parameters"]["trace_id"]
    return trace_id


def give(http: httpx.Client, trace_id: str, **feedback: Any) -> httpx.Response:
    return http.post("/v1/feedback", json={"trace_id": trace_id, **feedback})


def kill(settings: Settings, title: str) -> None:
    """Kills the one process of this cluster that calls itself so."""
    (found,) = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if " ".join(process.info["cmdline"] or []).startswith(title)
        and str(settings.state_dir) in " ".join((process.info["environ"] or {}).values())
    ]
    found.kill()
    found.wait(5.0)


def within(seconds: float, holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s, f"not within {seconds} s"
        time.sleep(0.1)


def test_what_became_of_a_request_is_found_by_its_trace_id(http: httpx.Client) -> None:
    trace_id = ask(http, 1, 2, user="ann", purpose="a test")
    outcome = http.get(f"/v1/outcomes/{trace_id}").json()
    assert (outcome["trace_id"], outcome["model"], outcome["n_rows"]) == (trace_id, "journaled", 2)
    assert [step["extension"] for step in outcome["steps"]] == ["moody-double@1"]


def test_feedback_counts_once_and_is_refused_from_strangers(http: httpx.Client) -> None:
    trace_id = ask(http, 3, user="ann")
    assert give(http, trace_id, truth=6.0, user="ann").json()["new"] == 1
    assert give(http, trace_id, truth=6.0, user="ann").json()["repeated"] == 1
    assert give(http, trace_id, truth=7.0, user="ann").json()["changed"] == 1
    assert give(http, trace_id, truth=6.0, user="bob").status_code == 403
    assert give(http, "0" * 32, truth=6.0).status_code == 404
    assert give(http, trace_id, truth={}).status_code == 400


def test_what_was_acknowledged_survives_the_death_of_ledger_and_gateway(settings: Settings, http: httpx.Client) -> None:
    known = [ask(http, float(value)) for value in range(5)]
    assert all(give(http, trace_id, truth=1.0).json()["new"] == 1 for trace_id in known)
    kill(settings, "ray::LedgerActor")
    meanwhile = ask(http, 9)  # serving goes on, and what became of it waits for the ledger

    def is_back() -> bool:
        return give(http, meanwhile, truth=18.0).status_code == 200

    within(30.0, is_back)
    assert [give(http, trace_id, truth=1.0).json()["repeated"] for trace_id in known] == [1] * 5
    kill(settings, "ray::ServeReplica:gateway")

    def answers() -> bool:
        try:
            with httpx.Client(base_url=settings.http_url, timeout=5.0) as fresh:
                return give(fresh, meanwhile, truth=18.0).json().get("repeated") == 1
        except httpx.TransportError:
            return False

    within(30.0, answers)
