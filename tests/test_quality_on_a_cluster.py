"""How well versions and plans do, on a real local cluster: from the journal to who looks, also after a kill."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import psutil
import pytest

from cluster import lifecycle
from cluster.settings import Settings
from fenix import Client
from planner.errors import FenixError
from planner.features import Feature, Port
from planner.goals import Goal
from tests import faulty

pytestmark = pytest.mark.cluster

MEASURED = Feature("number/measured", "FP32")
GOAL = Goal("measured", (Port("x", faulty.NUMBER),), (Port("y", MEASURED),), description="Double, and measure.")
ID = "measured-double@1"


def quiet(text: str) -> None:
    """Progress of deployments is not part of the tests' output."""


@pytest.fixture(scope="module")
def settings(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    from deployments.deployer import deploy, remove

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        deploy(["tests.faulty:measured_double"], [GOAL], lifecycle.installation(settings), quiet)
        try:
            yield settings
        finally:
            remove([ID], [GOAL.name], quiet)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings.http_url) as client:
        yield client


def within(seconds: float, look: Callable[[], Any]) -> Any:
    until_s = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until_s, f"not within {seconds} s"
        time.sleep(0.2)
    return found


def quality(client: Client, n: int, n_rated: int) -> dict[str, Any] | None:
    """The figures, once they hold so many requests and ratings."""
    try:
        found: dict[str, Any] = client.extension_quality(ID, window="1h")["quality"]
    except FenixError:  # the ledger is away
        return None
    rated = 0 if found["rating"] is None else found["rating"]["n"]
    return found if (found["n"], rated) == (n, n_rated) else None


def test_requests_and_what_is_said_of_them_become_figures_that_survive_the_ledger(
    client: Client, settings: Settings
) -> None:
    for k in range(20):
        result = client.infer("measured", [float(k + 1)], terms={"user": "ann" if k < 15 else "bob"})
        assert result.plan
        if k < 10:
            client.feedback(result.trace_id, truth=[2.0 * (k + 1) + 1.0])
            client.feedback(result.trace_id, rating=0.5)
    found = within(20.0, lambda: quality(client, 20, 10))
    assert (found["n_failed"], found["rating"]["value"]) == (0, 0.5)
    assert found["errors"]["mae"]["value"] == pytest.approx(1.0)
    assert found["p50_ms"]["value"] > 0.0
    assert {one["segment"]: one["n"] for one in found["segments"]} == {"ann": 15, "bob": 5}
    client.feedback(result.trace_id, rating=1.0)
    (plan,) = client.goal_quality("measured", window="1h")["plans"]
    assert plan["quality"]["n"] == 20
    time.sleep(6.0)  # the learner's state is saved
    (ledger,) = [
        process
        for process in psutil.process_iter(["cmdline", "environ"])
        if " ".join(process.info["cmdline"] or []).startswith("ray::LedgerActor")
        and str(settings.state_dir) in " ".join((process.info["environ"] or {}).values())
    ]
    ledger.kill()
    ledger.wait(5.0)
    again = within(60.0, lambda: quality(client, 20, 11))
    assert again["rating"]["value"] == pytest.approx(6.0 / 11.0)


def test_prometheus_sees_requests_the_journal_and_the_figures(client: Client, settings: Settings) -> None:
    client.infer("measured", [1.0])
    text = within(20.0, lambda: _with_figures(settings))
    assert f'fenix_extension_error_rate{{extension="{ID}"}}' in text
    assert 'model="measured"' in text
    assert "fenix_journal_failing" in text


def _with_figures(settings: Settings) -> str:
    text = httpx.get(f"{settings.http_url}/metrics", timeout=10.0).text
    return text if "fenix_quality_known 1.0" in text else ""


def test_a_version_that_fails_is_named_with_the_reason(client: Client) -> None:
    for _ in range(60):
        with pytest.raises(FenixError):
            client.infer(ID, [float(faulty.RAISE)])
    within(30.0, lambda: any(one["id"] == ID and one["check"] == "errors" for one in client.findings(window="15m")))
    (said,) = {one["sentence"] for one in client.findings(window="15m") if (one["id"], one["check"]) == (ID, "errors")}
    assert "up to 1 % is borne" in said


def test_status_names_who_does_poorly(settings: Settings) -> None:
    from deployments.live import look

    with lifecycle.connected(settings):
        assert within(15.0, lambda: any(one.id == ID for one in look().poor))
