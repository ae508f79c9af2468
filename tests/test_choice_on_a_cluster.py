"""Choosing on a real local cluster: who is served badly gets another plan, and keeps it, whoever dies in between."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest

from cluster import lifecycle
from cluster.settings import Settings
from planner.features import Port
from planner.goals import Goal
from tests.choosable import NUMBER, ROUNDED
from tests.test_journal_on_a_cluster import kill, quiet, within

pytestmark = pytest.mark.cluster

GOAL = Goal("rounded", (Port("x", NUMBER),), (Port("y", ROUNDED),), description="Make it whole.")
FAVOURITE, OTHER = "round-up@1", "round-down@1"


@pytest.fixture(scope="module")
def settings(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    from deployments.deployer import deploy

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        sources = ["tests.choosable:round_up", "tests.choosable:round_down"]
        deploy(sources, [GOAL], lifecycle.installation(settings), quiet)
        yield settings


@pytest.fixture
def http(settings: Settings) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=settings.http_url, timeout=30.0) as client:
        yield client


def ask(http: httpx.Client, user: str, x: float = 2.5) -> tuple[str, int]:
    """Trace id and answer."""
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [x]}
    answer = http.post("/v2/models/rounded/infer", json={"inputs": [tensor], "parameters": {"user": user}})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    (y,) = found["outputs"][0]["data"]
    return found["parameters"]["trace_id"], y


def serve(http: httpx.Client, user: str, n: int, truth: int | None = None) -> Counter[str]:
    """Who served so many requests of a user; the truth about each is told, where it is given."""
    asked = [ask(http, user) for _ in range(n)]
    if truth is not None:
        items = [{"trace_id": trace_id, "truth": truth, "user": user} for trace_id, _ in asked]
        told = http.post("/v1/feedback", json={"items": items}).json()
        assert told["new"] == n, told
    return Counter({3: FAVOURITE, 2: OTHER}[y] for _, y in asked)


def outcome(http: httpx.Client, trace_id: str) -> dict[str, Any]:
    found: dict[str, Any] = http.get(f"/v1/outcomes/{trace_id}").json()
    return found


def serves(settings: Settings, user: str, who: str, truth: int | None = None) -> Callable[[], bool]:
    def holds() -> bool:
        try:
            with httpx.Client(base_url=settings.http_url, timeout=5.0) as client:
                return serve(client, user, 10, truth)[who] >= 9
        except httpx.TransportError:
            return False

    return holds


def test_a_user_whom_the_favourite_serves_badly_is_served_by_the_other_and_keeps_it(settings: Settings) -> None:
    with httpx.Client(base_url=settings.http_url, timeout=30.0) as http:
        assert serve(http, "ann", 20, truth=2)[FAVOURITE] >= 10  # the card promises more
        for _ in range(2):
            serve(http, "ann", 20, truth=2)
            serve(http, "bob", 20, truth=3)
        within(10.0, serves(settings, "ann", OTHER, truth=2))
        within(10.0, serves(settings, "bob", FAVOURITE, truth=3))
        assert serve(http, "ann", 20)[OTHER] >= 16
        assert serve(http, "bob", 20)[FAVOURITE] >= 16

        found = outcome(http, ask(http, "ann")[0])
        assert len(found["considered"]) >= 2
        assert sum(one["probability"] for one in found["considered"]) == pytest.approx(1.0)
        assert found["probability"] is not None
        assert found["reason"]
        believed = {one["plan"]: one["believed"]["accuracy"] for one in found["considered"] if one["believed"]}
        assert len(believed) == len(found["considered"])
        assert max(believed.values()) > 0.8 > 0.5 > min(believed.values())

    def is_saved() -> bool:
        with sqlite3.connect(settings.state_dir / "fenix.db") as database:
            rows = database.execute("select state from journal_learners where name = 'choice'").fetchall()
        return bool(rows) and b'"user=ann"' in rows[0][0]

    within(10.0, is_saved)
    kill(settings, "ray::LedgerActor")
    assert serves(settings, "ann", OTHER)()  # nobody needs the ledger to be served
    kill(settings, "ray::ServeReplica:gateway")
    within(30.0, serves(settings, "ann", OTHER))
    within(10.0, serves(settings, "bob", FAVOURITE))


def test_rules_hold_as_soon_as_they_are_acknowledged(http: httpx.Client) -> None:
    assert http.post("/v1/rules", json={"rule": "keep round-up"}).status_code == 400
    added = http.post("/v1/rules", json={"rule": "pin round-down for carl"}).json()
    assert serve(http, "carl", 10) == {OTHER: 10}
    assert added in http.get("/v1/rules").json()["rules"]
    http.post("/v1/rules", json={"rule": "exclude round-* for dora"})
    tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [2.5]}
    refused = http.post("/v2/models/rounded/infer", json={"inputs": [tensor], "parameters": {"user": "dora"}})
    assert refused.status_code == 422
    assert "exclude round-* for dora" in refused.json()["error"]
    for rule in ("pin round-down for carl", "exclude round-* for dora"):
        assert http.delete("/v1/rules", params={"rule": rule}).status_code == 200
    assert http.delete("/v1/rules", params={"rule": "pin round-down for carl"}).status_code == 404
    assert serve(http, "dora", 5).total() == 5
