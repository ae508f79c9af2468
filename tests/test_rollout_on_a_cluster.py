"""Versions on a real local cluster under load: bad ones are rolled back by themselves, good ones promoted, and no
request fails all along."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
from sklearn.linear_model import LogisticRegression

from cluster import lifecycle
from cluster.settings import Settings
from fenix.client import Client
from planner.errors import BadCard, BadRequest, Conflict
from planner.rollout.codec import parse_plan
from tests.trying import parity

pytestmark = pytest.mark.cluster

QUICK = {
    "steps": [
        {"share": 0.0, "mirrored": 1.0, "min_outcomes": 60, "min_s": 1.0},
        {"share": 0.5, "min_outcomes": 60, "min_s": 1.0},
    ],
    "careful_share": 0.5,
    "error_margin": 0.1,
    "latency_ratio": 8.0,
    "min_agreement": 0.9,
    "require_truth": False,
}


def quiet(text: str) -> None:
    """Progress of deployments is not part of the tests' output."""


class Load:
    """Clients that ask for parities without a pause, and tell the truth about some of the answers."""

    def __init__(self, url: str, n_clients: int = 3) -> None:
        self._url = url
        self._stop = threading.Event()
        self.versions = Counter[str]()
        self.errors: list[str] = []
        self._threads = [threading.Thread(target=self._run, args=(k,)) for k in range(n_clients)]
        for thread in self._threads:
            thread.start()

    def end(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, k: int) -> None:
        number = 1_000_000 * k + 1_000
        with httpx.Client(base_url=self._url, timeout=30.0) as http:
            while not self._stop.is_set():
                number += 1
                tensor = {"name": "x", "shape": [1], "datatype": "FP32", "data": [float(number)]}
                try:
                    answer = http.post("/v2/models/parity/infer", json={"inputs": [tensor]})
                    assert answer.status_code == 200, answer.text
                    self.versions[answer.json()["parameters"]["plan"].rpartition("@")[2]] += 1
                except Exception as error:
                    self.errors.append(repr(error))
                time.sleep(0.002)


@pytest.fixture(scope="module")
def settings(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    from deployments.deployer import deploy, remove

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        deploy([parity("1")], [], lifecycle.installation(settings), quiet)
        yield settings
        with Client(settings.http_url) as client:
            ids = [one["id"] for one in client.extensions() if one["id"].startswith("parity@")]
        remove(ids, [], quiet)


@pytest.fixture
def client(settings: Settings) -> Iterator[Client]:
    with Client(settings.http_url) as client:
        yield client


@pytest.fixture
def load(settings: Settings) -> Iterator[Load]:
    load = Load(settings.http_url)
    try:
        yield load
    finally:
        load.end()
    assert load.errors == []


def try_(settings: Settings, version: str, **options: Any) -> None:
    from deployments.deployer import deploy

    deploy([parity(version, **options)], [], lifecycle.installation(settings), quiet, parse_plan(QUICK))


def ended(client: Client, within_s: float = 25.0) -> dict[str, Any]:
    until_s = time.monotonic() + within_s
    while (found := client.rollout("parity"))["running"]:
        assert time.monotonic() < until_s, found
        time.sleep(0.1)
    return found


def within(seconds: float, holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until_s, f"not within {seconds} s"
        time.sleep(0.05)


def test_a_bad_version_is_rolled_back_by_itself_and_hurts_nobody(
    settings: Settings, client: Client, load: Load
) -> None:
    try_(settings, "2", wrong=0.4)
    found = ended(client)
    assert (found["stage"], found["champion"], found["shares"]) == ("rolled_back", "1", {"1": 1.0})
    last = found["history"][-1]
    assert (last["by"], last["action"]) == ("controller", "roll_back")
    assert "agrees with the champion" in last["reason"]
    assert last["findings"]
    assert load.versions["2"] == 0
    # With its version it answers all the same.
    assert client.infer("parity", {"x": np.array([1.0], np.float32)}, version="2").plan == "direct-parity@2"


def test_a_good_version_is_promoted_and_one_command_goes_back_to_the_one_before(
    settings: Settings, client: Client, load: Load
) -> None:
    try_(settings, "3")
    found = ended(client)
    assert (found["stage"], found["champion"], found["warm"][-1]) == ("champion", "3", "1"), found["history"][-1]
    assert [event["action"] for event in found["history"]] == ["start", "step", "promote"]
    assert load.versions["3"] > 50

    with pytest.raises(Conflict, match="serves"):
        remove(["parity@3"])
    began_s = time.monotonic()
    found = client.roll_back("parity", reason="it is Friday")
    assert time.monotonic() - began_s < 1.0
    assert (found["champion"], found["followed"], found["history"][-1]["reason"]) == ("1", True, "it is Friday")
    load.versions.clear()
    within(5.0, lambda: load.versions["1"] > 20)
    assert load.versions["3"] <= 3  # of those under way when the command was given


def remove(ids: list[str]) -> None:
    from deployments import deployer

    deployer.remove(ids, [], quiet)


def test_a_version_that_fails_is_answered_for_and_rolled_back_though_the_keeper_dies(
    settings: Settings, client: Client, load: Load
) -> None:
    try_(settings, "4", failing=0.5)
    kill(settings, "ray::RolloutsActor")
    found = ended(client)
    assert (found["stage"], found["champion"]) == ("rolled_back", "1")
    assert found["history"][0]["action"] == "start"
    assert "fails" in found["history"][-1]["reason"]


def test_what_was_decided_survives_the_death_of_keeper_and_gateway(settings: Settings, client: Client) -> None:
    client.promote("parity", "3")
    before = client.rollout("parity")
    kill(settings, "ray::RolloutsActor")
    kill(settings, "ray::ServeReplica:gateway")

    def answers() -> bool:
        try:
            with Client(settings.http_url) as fresh:
                after = fresh.rollout("parity")
                x = np.array([1.0], np.float32)
                return after["history"] == before["history"] and fresh.infer("parity", {"x": x}).version == "3"
        except Exception:
            return False

    within(40.0, answers)


def test_what_cannot_be_tried_is_refused_and_never_serves(settings: Settings, client: Client) -> None:
    from deployments.deployer import deploy

    installation = lifecycle.installation(settings)
    with pytest.raises(BadRequest, match="champion already"):
        client.start_rollout("parity@3")
    with pytest.raises(Exception, match="not deployed"):
        client.start_rollout("parity@99")
    with pytest.raises(BadCard):
        client.start_rollout("parity@1", plan={"stepz": []})
    other = parity("5")
    with pytest.raises(BadCard):  # it does not load, so nothing is registered
        deploy([other.but(options={"failing": 2.0, "nonsense": 1})], [], installation, quiet, parse_plan(QUICK))
    assert "parity@5" not in {one["id"] for one in client.extensions()}


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


def test_aliases_in_mlflow_follow_and_are_followed(settings: Settings, client: Client, tmp_path: Path) -> None:
    from deployments.deployer import deploy, remove
    from deployments.kinds.sklearn import save_sklearn
    from lineage.models import ModelRegistry

    installation = lifecycle.installation(settings)
    registry = ModelRegistry(installation.mlflow_uri, tmp_path / "cache")
    card = {
        "inputs": [{"name": "x", "type": "flower", "datatype": "FP64", "shape": [2]}],
        "outputs": [{"name": "y", "type": "label/flower", "datatype": "INT64"}],
    }
    for k in (1, 2):
        estimator = LogisticRegression().fit(np.array([[0.0, 1.0], [1.0, 0.0], [1.0, k]]), [0, 1, 1])
        content = save_sklearn(estimator, tmp_path / str(k))
        registry.register("flowers", tmp_path / str(k), content=content, card=card, alias="champion" if k == 1 else "")
    deploy(["models:/flowers@champion"], [], installation, quiet)
    registry.move_alias("flowers", "challenger", "2")

    def stage() -> str:
        return next((one["stage"] for one in client.rollouts() if one["extension"] == "flowers"), "")

    within(90.0, lambda: stage() == "shadow")  # it was not deployed yet
    assert client.rollout("flowers")["history"][0]["by"] == "MLflow"
    client.promote("flowers")
    within(15.0, lambda: registry.aliases()["flowers"] == {"champion": "2"})
    registry.move_alias("flowers", "champion", "1")
    within(15.0, lambda: client.rollout("flowers")["champion"] == "1")
    assert client.infer("flowers", {"x": np.zeros((1, 2))}).version == "1"
    remove(["flowers@1", "flowers@2"], [], quiet)
