"""The whole of Fenix on a real local cluster: deploy, plan, infer over HTTP and gRPC; and what if parts die."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from cluster import lifecycle
from cluster.settings import Settings
from planner.errors import BadCard, Conflict
from planner.features import Port
from planner.goals import Goal
from tests import faulty
from tests.benchmarks.workload import CHAIN, SOURCES, reference, rows

pytestmark = pytest.mark.cluster

DOUBLE = Goal(
    "double",
    (Port("x", faulty.NUMBER),),
    (Port("y", faulty.DOUBLED),),
    description="Double a number.",
    examples=("multiply this number by two",),
)


def quiet(text: str) -> None:
    """Progress of deployments is not part of the tests' output."""


@pytest.fixture(scope="module")
def deployed(running_cluster: lifecycle.Running) -> Iterator[Settings]:
    """The cluster with the chain of three and the moody doubler."""
    from deployments.deployer import deploy

    settings = running_cluster.settings
    with lifecycle.connected(settings):
        installation = lifecycle.installation(settings)
        moody = [f"tests.faulty:{name}" for name in ("moody_double", "pass_on", "total")]
        deploy([*SOURCES, *moody], [CHAIN, DOUBLE], installation, quiet)
        yield settings


@pytest.fixture
def http(deployed: Settings) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=deployed.http_url, timeout=30.0) as client:
        yield client


def tensor(name: str, values: np.ndarray, datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(values.shape), "datatype": datatype, "data": values.tolist()}


def wait_until(holds: Callable[[], bool], within_s: float) -> None:
    """For what another process does in its own time. Raises AssertionError when it does not."""
    until_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < until_s, f"not within {within_s} s"
        time.sleep(0.05)


def double(http: httpx.Client, *values: float, **terms: Any) -> httpx.Response:
    body = {"inputs": [tensor("x", np.array(values))], "parameters": terms}
    return http.post("/v2/models/double/infer", json=body)


def test_a_goal_of_three_extensions_answers_as_the_reference_does(http: httpx.Client) -> None:
    batch = rows(20)
    answer = http.post("/v2/models/chain/infer", json={"inputs": [tensor("row", batch)]}).json()
    outputs = {output["name"]: np.array(output["data"]).reshape(output["shape"]) for output in answer["outputs"]}
    np.testing.assert_allclose(outputs["probs"], reference(batch), atol=1e-5)
    assert outputs["label"].tolist() == reference(batch).argmax(axis=1).tolist()
    assert answer["parameters"]["flags"] == ""
    assert 0.0 < answer["parameters"]["confidence"] <= 1.0


def test_many_clients_at_once_each_get_their_own_rows(http: httpx.Client) -> None:
    batch = rows(64)
    expected = reference(batch).argmax(axis=1)

    def ask(i: int) -> int:
        answer = http.post("/v2/models/chain/infer", json={"inputs": [tensor("row", batch[i : i + 1])]}).json()
        (label,) = [output["data"][0] for output in answer["outputs"] if output["name"] == "label"]
        return int(label)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(64))) == expected.tolist()


def test_an_unmodified_triton_client_is_served_over_http_and_grpc(deployed: Settings) -> None:
    import tritonclient.grpc as triton_grpc
    import tritonclient.http as triton_http

    batch = rows(3)
    for module, address in (
        (triton_http, f"{deployed.reachable_host}:{deployed.http_port}"),
        (triton_grpc, f"{deployed.reachable_host}:{deployed.grpc_port}"),
    ):
        client = module.InferenceServerClient(address)
        assert client.is_server_ready()
        assert client.is_model_ready("chain")
        given = module.InferInput("row", list(batch.shape), "FP32")
        given.set_data_from_numpy(batch)
        answer = client.infer("chain", [given])
        np.testing.assert_allclose(answer.as_numpy("probs"), reference(batch), atol=1e-5)
        client.close()


def test_arrays_of_many_mebibytes_pass_from_step_to_step(http: httpx.Client) -> None:
    values = np.arange(3_000_000, dtype=np.float32).reshape(3, -1) % 7
    tensors = [{"name": "x", "type": "blob", "shape": list(values.shape), "datatype": "FP32"}]
    tensors[0]["data"] = values.ravel().tolist()
    answer = http.post("/v1/infer", json={"wanted": ["number/total"], "inputs": tensors, "terms": {}}).json()
    assert answer["outputs"][0]["data"] == values.sum(axis=1, dtype=np.float64).tolist()
    assert [step["extension"] for step in answer["steps"]] == ["pass-on@1", "total@1"]


def test_an_extension_that_raises_harms_only_the_requests_that_asked_for_it(http: httpx.Client) -> None:
    with ThreadPoolExecutor(16) as pool:
        values = [faulty.RAISE if i % 8 == 3 else float(i) for i in range(64)]
        answers = list(pool.map(lambda value: double(http, value), values))
    for value, answer in zip(values, answers, strict=True):
        if value == faulty.RAISE:
            assert answer.status_code == 502
            assert "told to raise" in answer.json()["error"]
            assert "Traceback" not in answer.text
        else:
            assert answer.json()["outputs"][0]["data"] == [2 * value]


def test_an_extension_that_returns_a_wrong_shape_is_named(http: httpx.Client) -> None:
    answer = double(http, faulty.WRONG_LENGTH)
    assert answer.status_code == 502
    assert "moody-double@1" in answer.json()["error"]
    assert double(http, 4.0).json()["outputs"][0]["data"] == [8.0]


def test_an_extension_that_hangs_costs_its_request_the_deadline_and_no_more(http: httpx.Client) -> None:
    answer = double(http, faulty.HANG, deadline_ms=1500)
    assert answer.status_code == 504
    batch = rows(1)
    other = http.post("/v2/models/chain/infer", json={"inputs": [tensor("row", batch)]})
    assert other.status_code == 200


def test_an_extension_that_kills_its_process_is_restarted_and_others_never_notice(http: httpx.Client) -> None:
    stop = threading.Event()
    failures: list[str] = []

    def others() -> None:
        while not stop.is_set():
            answer = http.post("/v2/models/chain/infer", json={"inputs": [tensor("row", rows(1))]})
            if answer.status_code != 200:
                failures.append(answer.text)

    beside = threading.Thread(target=others)
    beside.start()
    try:
        answer = double(http, faulty.DIE, deadline_ms=10_000)
        assert answer.status_code in (503, 504)
        assert double(http, 4.0, deadline_ms=60_000).json()["outputs"][0]["data"] == [8.0]
    finally:
        stop.set()
        beside.join()
    assert failures == []


def test_a_better_version_takes_over_and_the_first_plan_falls_back_to_another(
    deployed: Settings, http: httpx.Client
) -> None:
    from deployments.deployer import deploy, remove

    deploy(["tests.faulty:steady_double"], [], lifecycle.installation(deployed), quiet)
    try:
        answer = double(http, faulty.RAISE)
        assert answer.json()["outputs"][0]["data"] == [2 * faulty.RAISE]
        assert "fallback" in answer.json()["parameters"]["flags"]
    finally:
        remove(["steady-double"], [], quiet)
    assert double(http, faulty.RAISE).status_code == 502


def test_what_does_not_start_or_breaks_the_contract_changes_nothing(deployed: Settings, http: httpx.Client) -> None:
    from deployments.deployer import deploy

    before = http.get("/v1/extensions").json()
    for source, why in (
        ("tests.faulty:NeverStarts", "the weights are gone"),
        ("tests.faulty:depends_on_batch", "batch"),
    ):
        with pytest.raises(BadCard, match=why):
            deploy([source], [], lifecycle.installation(deployed), quiet)
    after = http.get("/v1/extensions").json()
    assert [card["id"] for card in after["extensions"]] == [card["id"] for card in before["extensions"]]


def test_the_catalogue_survives_the_death_of_its_actor(deployed: Settings, http: httpx.Client) -> None:
    import ray

    from deployments.actors import NAMESPACE
    from deployments.deployer import deploy
    from deployments.registry import ACTOR_NAME

    ray.kill(ray.get_actor(ACTOR_NAME, namespace=NAMESPACE), no_restart=False)
    assert double(http, 3.0).status_code == 200
    again = Goal("double-again", DOUBLE.inputs, DOUBLE.outputs)
    deploy([], [again], lifecycle.installation(deployed), quiet)
    wait_until(lambda: http.get("/v1/goals/double-again").status_code == 200, within_s=10.0)
    assert http.get("/v1/goals/chain").status_code == 200


def test_a_killed_gateway_is_back_within_seconds_and_still_knows_everything(deployed: Settings) -> None:
    def answers() -> bool:
        try:
            with httpx.Client(base_url=deployed.http_url, timeout=5.0) as client:
                return double(client, 5.0).status_code == 200
        except httpx.TransportError:
            return False

    assert answers()
    (gateway,) = [
        process
        for process in psutil.process_iter(["name", "cmdline", "environ"])
        if "ray::ServeReplica:gateway" in " ".join(process.info["cmdline"] or [])
        and str(deployed.state_dir) in " ".join((process.info["environ"] or {}).values())
    ]
    gateway.kill()
    gateway.wait(5.0)
    wait_until(answers, within_s=30.0)


def test_an_id_cannot_change_its_meaning(deployed: Settings) -> None:
    from deployments.deployer import deploy
    from deployments.loading import describe

    card = describe("tests.faulty:steady_double").but(name="moody-double")
    with pytest.raises(Conflict, match="moody-double@1"):
        deploy([card], [], lifecycle.installation(deployed), quiet)


def test_a_sentence_reaches_its_goal_and_an_unclear_one_is_asked_back(http: httpx.Client) -> None:
    body = {"sentence": "please double this number", "inputs": [tensor("x", np.array([21.0]))]}
    assert http.post("/v1/infer", json=body).json()["outputs"][0]["data"] == [42.0]
    refused = http.post("/v1/infer", json={**body, "sentence": "book me a flight to the moon"})
    assert refused.status_code == 422
    assert "double" in refused.json()["error"]
