"""`fenix rollout` and the clients' methods, against a gateway that really listens and rollouts that are really kept."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from deployments.gateway.rollout_routes import rollout_routes
from deployments.gateway.server import serve_http
from deployments.rollouts import Rollouts
from fenix.client import AsyncClient, Client
from planner.catalogue import Catalogue
from planner.errors import BadCard, BadRequest, Conflict, NotFound
from planner.rollout.store import MemoryRolloutStore
from tests.deployments.gateway.engines import NumpyEngine, Served, loop_thread
from tests.fenix.test_cli import run
from tests.planner.doubles import card


@pytest.fixture
def gateway() -> Iterator[Served]:
    """With two versions of `digits` and nothing that was tried yet."""
    catalogue = Catalogue.of([card("digits"), card("digits").but(version="2"), card("b")])
    rollouts = Rollouts(MemoryRolloutStore(), lambda: catalogue, lambda: 1_700_000_000.0)
    with loop_thread() as loop:
        engine = NumpyEngine()
        server = loop.run(serve_http(engine, "127.0.0.1", 0, routers=[rollout_routes(rollouts)]))
        try:
            yield Served(engine, loop, server)
        finally:
            loop.run(server.stop(0.2))


def test_a_version_is_tried_promoted_and_gone_back_from_on_the_command_line(gateway: Served, tmp_path: Path) -> None:
    assert "Nothing was tried yet" in run("rollout", "status", gateway=gateway).stdout
    plan = tmp_path / "plan.yaml"
    plan.write_text("min_agreement: 0.9\nsteps: [{share: 0.0, mirrored: 0.5}, {share: 0.1}]\n")
    result = run("rollout", "start", "digits@2", "--plan", str(plan), "-p", "require_truth=false", gateway=gateway)
    assert (result.exit_code, result.stderr) == (0, "")
    assert re.search(r"stage +shadow, step 1 of 2: 2 against 1", result.stdout)
    assert "2 answers 50.0 % of what 1 serves" in result.stdout
    assert "(paused)" in run("rollout", "pause", "digits", gateway=gateway).stdout
    assert "(paused)" not in run("rollout", "resume", "digits", gateway=gateway).stdout
    result = run("rollout", "promote", "digits", "--reason", "it is good", "-o", "json", gateway=gateway)
    data = json.loads(result.stdout)
    assert (data["stage"], data["champion"], data["shares"], data["warm"]) == ("champion", "2", {"2": 1.0}, ["1"])
    assert data["history"][-1]["reason"] == "it is good"
    result = run("rollout", "rollback", "digits", "--to", "1", gateway=gateway)
    assert re.search(r"serve +1: 100.0 %", result.stdout)
    table = run("rollout", "status", gateway=gateway, width=160).stdout
    assert re.search(r"^digits +rolled back +1: 100.0 %", table, re.MULTILINE)
    told = run("rollout", "status", "digits", gateway=gateway, width=160).stdout
    for words in ("2023-11-14 22:13:20", "start", "pause", "resume", "promote", "it is good", "roll back"):
        assert words in told


def test_the_evidence_is_shown(gateway: Served) -> None:
    run("rollout", "start", "digits@2", gateway=gateway)
    told = run("rollout", "status", "digits", gateway=gateway, width=160).stdout
    for test in ("errors", "accuracy", "latency p95", "agreement"):
        assert re.search(rf"^{test} +open", told, re.MULTILINE)
    assert "outcomes are missing in this step" in told


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("start", "digits"), 2, "names no version"),
        (("start", "digits@9"), 4, "not deployed"),
        (("start", "dogits@1"), 4, "Nearest: digits"),
        (("start", "b@1"), 2, "only version"),
        (("start", "digits@2", "-p", "stepz=1"), 2, "stepz"),
        (("promote", "digits"), 4, "no rollout yet"),
        (("rollback", "digits@1"), 2, "Leave the version out"),
        (("abort", "nothing"), 4, "no extension"),
        (("status", "digits"), 4, "no rollout yet"),
    ],
)
def test_what_cannot_be_done_is_said_with_a_way_out(
    gateway: Served, words: tuple[str, ...], code: int, said: str
) -> None:
    result = run("rollout", *words, gateway=gateway)
    assert result.exit_code == code, result.stderr
    assert said in " ".join(result.stderr.split())


def test_both_clients_say_the_same(gateway: Served) -> None:
    with Client(gateway.url) as client:
        assert client.rollouts() == []
        with pytest.raises(BadRequest):
            client.start_rollout("digits@2", "2")
        with pytest.raises(BadCard, match="share"):
            client.start_rollout("digits", "2", plan={"steps": [{"share": 2.0}]})
        assert client.start_rollout("digits", "2", champion="1")["running"]
        with pytest.raises(Conflict, match="has a rollout already"):
            client.start_rollout("digits@2")
        assert client.pause_rollout("digits")["paused"]
        assert not client.resume_rollout("digits")["paused"]
        assert client.rollout("digits")["plan"]["alpha"] == 0.05

    async def scenario() -> None:
        async with AsyncClient(gateway.url) as client:
            assert (await client.abort_rollout("digits"))["stage"] == "aborted"
            assert (await client.promote("digits", "2"))["champion"] == "2"
            assert (await client.roll_back("digits"))["champion"] == "1"
            assert [one["extension"] for one in await client.rollouts()] == ["digits"]
            with pytest.raises(NotFound):
                await client.rollout("b")
            with pytest.raises(Conflict):
                await client.pause_rollout("digits")
            with pytest.raises(Conflict):
                await client.resume_rollout("digits")
            with pytest.raises(Conflict, match="serves all requests already"):
                await client.promote("digits", "1")
            assert (await client.start_rollout("digits@2"))["stage"] == "shadow"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"extension": "digits"}, 400),
        ({"extension": "digits", "version": 2}, 400),
        ({"extension": "digits", "version": "2", "pläne": {}}, 400),
        ({"extension": "digits", "version": "2", "plan": {"alpha": 7}}, 422),
        ([], 400),
    ],
)
def test_a_body_that_is_wrong_starts_nothing(gateway: Served, body: object, status: int) -> None:
    answer = httpx.post(f"{gateway.url}/v1/rollouts", json=body)
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert httpx.get(f"{gateway.url}/v1/rollouts").json() == {"rollouts": []}


def test_the_routes_are_in_the_openapi_document_and_take_no_body_where_none_is_needed(gateway: Served) -> None:
    paths = httpx.get(f"{gateway.url}/openapi.json").json()["paths"]
    verbs = {path.rpartition("/")[2] for path in paths if path.startswith("/v1/rollouts/{extension}/")}
    assert verbs == {"promote", "rollback", "pause", "resume", "abort"}
    httpx.post(f"{gateway.url}/v1/rollouts", json={"extension": "digits", "version": "2"})
    assert httpx.post(f"{gateway.url}/v1/rollouts/digits/promote").json()["champion"] == "2"
    assert httpx.post(f"{gateway.url}/v1/rollouts/digits/rollback").json()["champion"] == "1"
