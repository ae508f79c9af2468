"""Rules from Python and from the command line, over HTTP and a real ledger without Ray."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from deployments.gateway.rule_routes import rule_routes
from deployments.gateway.server import serve_http
from deployments.ledger import Ledger
from fenix import AsyncClient, Client
from lineage.database import open_database
from lineage.journal import JournalStore
from planner.errors import BadRequest, ClusterDown, NotFound, StoreUnavailable
from tests.deployments.gateway.engines import NumpyEngine, Served, loop_thread
from tests.fenix.test_cli import run

CHANGES: list[int] = []


async def followed() -> None:
    CHANGES.append(1)
    if len(CHANGES) % 2:
        raise ClusterDown("the ledger does not answer.")  # it is acknowledged all the same


@pytest.fixture(params=["kept"])
def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    ledger = Ledger(JournalStore(open_database(f"sqlite:///{tmp_path}/fenix.db")))
    with loop_thread() as loop:
        engine = NumpyEngine()
        routers = [rule_routes(ledger if request.param == "kept" else None, followed)]
        server = loop.run(serve_http(engine, "127.0.0.1", 0, routers=routers))
        try:
            yield Served(engine, loop, server)
        finally:
            loop.run(server.stop(0.2))
            ledger.close()


def test_both_clients_add_rules_show_them_and_take_them_back(gateway: Served) -> None:
    async def asked() -> list[str]:
        async with AsyncClient(gateway.url) as client:
            await client.add_rule("exclude draft-* for team/* in digits")
            await client.remove_rule("pin reader@2 for ann")
            return [one["rule"] for one in await client.rules()]

    with Client(gateway.url) as client:
        assert client.rules() == []
        added = client.add_rule("pin   reader@2 for ann")
        assert added["rule"] == "pin reader@2 for ann"
        assert client.rules() == [added]
        assert asyncio.run(asked()) == ["exclude draft-* for team/* in digits"]
        assert client.remove_rule("exclude draft-* for team/* in digits") == []
    assert len(CHANGES) >= 4


def test_what_is_wrong_with_a_rule_is_raised(gateway: Served) -> None:
    with Client(gateway.url) as client:
        with pytest.raises(BadRequest, match="'keep' is unknown"):
            client.add_rule("keep reader")
        with pytest.raises(BadRequest):
            client.add_rule("x" * 1_000)
        with pytest.raises(NotFound, match="there is no rule"):
            client.remove_rule("pin reader")
        assert client.rules() == []


@pytest.mark.parametrize("gateway", ["none"], indirect=True)
def test_a_gateway_without_a_journal_keeps_none(gateway: Served) -> None:
    with Client(gateway.url) as client, pytest.raises(StoreUnavailable, match="keeps no rules"):
        client.rules()


def test_the_command_line_adds_shows_and_removes_them(gateway: Served) -> None:
    assert "There are no rules." in run("rules", "list", gateway=gateway).stdout
    added = run("rules", "add", "pin", "reader@2", "for", "ann", gateway=gateway)
    assert (added.exit_code, added.stderr) == (0, "")
    assert run("rules", "add", "pin reader@2 for ann", gateway=gateway).exit_code == 0
    shown = run("rules", "list", gateway=gateway).stdout
    assert len(re.findall(r"^pin reader@2 for ann +\d{4}-\d\d-\d\d \d\d:\d\d UTC", shown, re.MULTILINE)) == 1
    (one,) = json.loads(run("rules", "list", "-o", "json", gateway=gateway).stdout)
    assert one["rule"] == "pin reader@2 for ann"
    wrong = run("rules", "add", "pin reader to ann", gateway=gateway)
    assert wrong.exit_code == 2
    assert "'to' is not understood" in wrong.stderr
    assert "There are no rules." in run("rules", "remove", "pin", "reader@2", "for", "ann", gateway=gateway).stdout
    assert run("rules", "remove", "pin", "reader@2", gateway=gateway).exit_code == 4
