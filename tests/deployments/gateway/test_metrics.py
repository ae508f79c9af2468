"""What Prometheus reads of a gateway that really listens."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import numpy as np
import prometheus_client
import pytest
import tritonclient.grpc as triton
from prometheus_client.parser import text_string_to_metric_families
from tritonclient.utils import InferenceServerException

from deployments.gateway.quality import FRESH_S, STALE_S, QualityDesk
from deployments.gateway.tally import MOST_MODELS, NOBODY, OTHERS, Tally
from tests.deployments.gateway.engines import Served, served_grpc
from tests.deployments.gateway.qualities import engine, learned, observed

X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}


def scraped(served: Served) -> dict[tuple[str, ...], float]:
    """Every sample by its name and the values of its labels in the order of their names, but for the gateway's."""
    reply = httpx.get(served.url + "/metrics")
    assert (reply.status_code, reply.headers["content-type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "gateway")): sample.value
        for family in text_string_to_metric_families(reply.text)
        for sample in family.samples
    }


def test_requests_are_counted_by_model_and_status_whatever_way_they_came() -> None:
    with observed(learned()) as served:
        for _ in range(3):
            httpx.post(f"{served.url}/v2/models/double/infer", json={"inputs": [X]})
        httpx.post(f"{served.url}/v1/infer", json={"goal": "doubling", "inputs": [X]})
        httpx.post(f"{served.url}/v2/models/raising/infer", json={"inputs": [X]})
        httpx.post(f"{served.url}/v2/models/nobody/infer", json={"inputs": [X]})
        httpx.post(f"{served.url}/v2/models/double/infer", json={"inputs": []})
        httpx.post(f"{served.url}/v1/infer", json={"sentence": "make me a sandwich", "inputs": [X]})
        found = scraped(served)
    name = "fenix_requests_total"
    assert {key[1:]: value for key, value in found.items() if key[0] == name} == {
        ("200", "double"): 3.0,
        ("400", "double"): 1.0,
        ("200", "doubling"): 1.0,
        ("404", ""): 1.0,
        ("422", ""): 1.0,
        ("500", ""): 1.0,
    }
    assert found["fenix_request_duration_seconds_count", "double"] == 3.0
    assert found["fenix_request_duration_seconds_bucket", "+Inf", "double"] == 3.0
    assert 0.0 < found["fenix_request_duration_seconds_sum", "double"] < 3.0
    assert (found["fenix_ready",], found["fenix_catalogue_epoch",], found["fenix_catalogue_goals",]) == (1.0, 3.0, 1.0)


def test_grpc_requests_are_counted_too() -> None:
    tally = Tally()
    with served_grpc(tally=tally) as served, triton.InferenceServerClient(served.address) as client:
        x = triton.InferInput("x", [3, 2], "FP32").set_data_from_numpy(np.ones((3, 2), np.float32))
        client.infer("double", [x])
        with pytest.raises(InferenceServerException, match="nobody"):
            client.infer("nobody", [x])
    assert tally.meters["double"].n_answered == 1
    assert tally.meters[NOBODY].refused == {404: 1}


def test_any_number_of_models_has_a_bounded_number_of_labels() -> None:
    tally = Tally()
    for k in range(1000):
        tally.meter(f"m{k}").answered(0.5)
        tally.refused(f"unheard-of-{k}", 404)
    assert len(tally.meters) <= MOST_MODELS + 2
    assert tally.meters[OTHERS].n_answered + tally.meters["m0"].n_answered > 700
    n_refused = sum(meter.refused[404] for meter in tally.meters.values())
    assert n_refused == 1000
    assert sum(meter.n_answered for meter in tally.meters.values()) == 1000


def test_latencies_are_counted_between_the_edges() -> None:
    meter = Tally().meter("m")
    for took_s in (0.0001, 0.0005, 0.0006, 9.9, 11.0):
        meter.answered(took_s)
    assert (meter.buckets[0], meter.buckets[1], meter.buckets[-2], meter.buckets[-1]) == (2, 1, 1, 1)


def test_the_recorder_and_the_quality_figures_are_shown() -> None:
    with observed(learned()) as served:
        found = scraped(served)
    assert found["fenix_journal_outcomes_total", "added"] == 0.0
    assert (found["fenix_journal_waiting_bytes", "disk"], found["fenix_journal_failing",]) == (0.0, 0.0)
    assert found["fenix_quality_known",] == 1.0
    assert found["fenix_extension_accuracy", "double@1"] == 0.7
    assert found["fenix_extension_accuracy_low", "double@1"] < 0.7 < found["fenix_extension_accuracy_high", "double@1"]
    assert found["fenix_extension_error_rate", "double@1"] == pytest.approx(20 / 420)
    assert found["fenix_extension_ece", "double@1"] == pytest.approx(0.2, abs=0.05)
    assert found["fenix_extension_judged_rows", "double@1"] == 200.0
    assert found["fenix_extension_latency_seconds", "double@1", "0.99"] == pytest.approx(0.002, rel=0.02)
    assert found["fenix_plan_latency_seconds", "doubling", "p-double", "0.5"] == pytest.approx(0.003, rel=0.02)
    assert found["fenix_poor", "card", "accuracy", "double@1"] == 1.0
    assert not any(name == "fenix_extension_rating" for name, *_ in found)


def test_while_the_ledger_is_down_the_figures_are_absent_and_the_rest_is_there() -> None:
    ledger = learned()
    ledger.is_down = True
    with observed(ledger) as served:
        found = scraped(served)
    assert found["fenix_quality_known",] == 0.0
    assert not any(name.startswith("fenix_extension_") for name, *_ in found)
    assert found["fenix_ready",] == 1.0


def test_the_ledger_is_asked_once_in_a_while_and_what_is_old_is_not_shown() -> None:
    async def scenario() -> None:
        ledger, now = learned(), [0.0]
        desk = QualityDesk(engine(), ledger, lambda: now[0])
        first = await desk.lately()
        assert first is not None
        n_asked = ledger.n_asked
        now[0] = FRESH_S - 1.0
        assert await desk.lately() is not None
        assert ledger.n_asked == n_asked
        now[0] = FRESH_S + 1.0
        await desk.lately()
        assert ledger.n_asked > n_asked
        ledger.is_down = True
        now[0] += STALE_S - 1.0
        assert await desk.lately() is not None
        now[0] += 2.0
        assert await desk.lately() is None

    asyncio.run(scenario())


def test_a_ledger_that_hangs_does_not_hold_a_scrape_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deployments.gateway.quality.WAIT_S", 0.01)

    class Hanging:
        async def learned(self, name: str, question: str, *arguments: Any) -> Any:
            await asyncio.Event().wait()

    async def scenario() -> None:
        desk = QualityDesk(engine(), Hanging(), lambda: 0.0)
        assert [await desk.lately() for _ in range(3)] == [None] * 3
        assert len([task for task in asyncio.all_tasks() if task.get_name() == "fetch-quality"]) == 1

    asyncio.run(scenario())


def test_nothing_is_put_into_the_registry_that_others_export() -> None:
    before = {family.name for family in prometheus_client.REGISTRY.collect()}
    with observed(learned()) as served:
        scraped(served)
    assert {family.name for family in prometheus_client.REGISTRY.collect()} == before
    assert not any(name.startswith("fenix") for name in before)


def test_an_answer_that_makes_no_sense_is_logged_and_costs_no_scrape(caplog: pytest.LogCaptureFixture) -> None:
    class Broken:
        async def learned(self, name: str, question: str, *arguments: Any) -> Any:
            raise RuntimeError("broken")

    assert asyncio.run(QualityDesk(engine(), Broken(), lambda: 0.0).lately()) is None
    assert "could not be fetched" in caplog.text
