"""Quality from Python, over HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from fenix import AsyncClient, Client
from planner.errors import BadRequest, NotFound
from tests.deployments.gateway.engines import Served
from tests.deployments.gateway.qualities import learned, observed


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with observed(learned()) as served:
        yield served


def test_both_clients_tell_how_well_versions_and_goals_do(gateway: Served) -> None:
    async def asked() -> tuple[object, ...]:
        async with AsyncClient(gateway.url) as client:
            return (
                await client.extension_quality("double", window="1h"),
                await client.goal_quality("doubling", segment="ann"),
                await client.findings(window="1h"),
            )

    with Client(gateway.url) as client:
        version = client.extension_quality("double", window="1h")
        goal = client.goal_quality("doubling", segment="ann")
        found = client.findings(window="1h")
        assert client.extension_quality("double@1", segment="")["quality"]["n"] == 20
    assert (version["id"], version["quality"]["n"], version["window"]) == ("double@1", 420, "1h")
    assert [plan["quality"]["n"] for plan in goal["plans"]] == [380]
    assert found[0]["id"] == "double@1"
    again = asyncio.run(asked())
    assert again[1] == goal or again[1]["plans"][0]["quality"]["n"] == 380  # type: ignore[index]
    assert (again[0]["quality"]["n"], again[2]) == (420, found)  # type: ignore[index]


def test_what_is_wrong_is_raised(gateway: Served) -> None:
    with Client(gateway.url) as client:
        with pytest.raises(NotFound):
            client.extension_quality("dubble")
        with pytest.raises(BadRequest, match="15m"):
            client.findings(window="2h")
        with pytest.raises(BadRequest, match="the name is empty"):
            client.goal_quality("")
