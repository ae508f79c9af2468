from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from deployments.gateway.codec import error_of
from deployments.gateway.limits import Limits
from deployments.gateway.protocol import (
    ModelInferRequest,
    ModelInferResponse,
    decode_infer_reply,
    encode_infer_request,
)
from planner.errors import Overloaded
from planner.features import DATATYPES
from tests.deployments.gateway.engines import NumpyEngine, Served, served_grpc
from tests.deployments.gateway.test_http import values_of

ONES = np.ones((3, 2), np.float32)
METHOD = "/inference.GRPCInferenceService/"


@pytest.fixture
def triton_client(grpc_served: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(grpc_served.address) as client:
        yield client


def tensor(values: np.ndarray[Any, Any], datatype: str = "FP32", name: str = "x") -> triton.InferInput:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values)


def call(served: Served, raw: bytes, method: str = "ModelInfer", timeout_s: float | None = None) -> bytes:
    """One unary call with bytes as they are."""
    with grpc.insecure_channel(served.address, [("grpc.max_receive_message_length", -1)]) as channel:
        return bytes(channel.unary_unary(METHOD + method)(raw, timeout=timeout_s))


@pytest.mark.parametrize("datatype", DATATYPES)
def test_tritonclient_gets_every_datatype_back(triton_client: triton.InferenceServerClient, datatype: str) -> None:
    sent = values_of(datatype)
    got = triton_client.infer(f"echo_{datatype.lower()}", [tensor(sent, datatype)]).as_numpy("y")
    if datatype == "BYTES":
        sent = np.array([text.encode() for text in sent.ravel()], object).reshape(sent.shape)
    assert got.tolist() == sent.tolist()


def test_tritonclient_finds_what_it_asks_for(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("double", "1")
    assert triton_client.get_server_metadata().name == "fenix"
    metadata = triton_client.get_model_metadata("doubling")
    assert (metadata.platform, list(metadata.versions)) == ("fenix_goal", ["1"])
    assert [(t.name, t.datatype, list(t.shape)) for t in metadata.inputs] == [("x", "FP32", [-1, -1])]
    index = [(model.name, model.state) for model in triton_client.get_model_repository_index().models]
    assert ("doubling", "READY") in index
    with pytest.raises(InferenceServerException) as caught:
        triton_client.is_model_ready("nobody")
    assert caught.value.status() == "StatusCode.NOT_FOUND"


def test_tritonclient_passes_its_own_parameters_and_ours(
    grpc_served: Served, triton_client: triton.InferenceServerClient
) -> None:
    result = triton_client.infer(
        "doubling",
        [tensor(ONES)],
        model_version="1",
        outputs=[triton.InferRequestedOutput("y.confidence")],
        request_id="i7",
        priority=2,
        timeout=1_500_000,
        parameters={"max_cost": 3, "user": "u"},
    )
    assert result.as_numpy("y.confidence").tolist() == [0.75] * 3
    response = result.get_response()
    assert (response.id, response.model_name, response.model_version) == ("i7", "doubling", "1")
    assert response.parameters["plan"].string_param == "p-double"
    assert response.parameters["confidence"].double_param == 0.75
    assert grpc_served.engine.seen[-1].terms == {"priority": 2, "deadline_ms": 1500.0, "max_cost": 3, "user": "u"}


def test_the_deadline_of_the_call_is_the_deadline_where_none_is_given(
    grpc_served: Served, triton_client: triton.InferenceServerClient
) -> None:
    triton_client.infer("double", [tensor(ONES)], client_timeout=5)
    assert 3_000 < grpc_served.engine.seen[-1].terms["deadline_ms"] < 6_000
    triton_client.infer("double", [tensor(ONES)], client_timeout=5, timeout=2_000_000)
    assert grpc_served.engine.seen[-1].terms["deadline_ms"] == 2_000
    triton_client.infer("double", [tensor(ONES)])
    assert grpc_served.engine.seen[-1].terms == {}


def test_an_answer_is_typed_where_the_request_was(grpc_served: Served) -> None:
    request = ModelInferRequest(model_name="double")
    request.inputs.add(name="x", datatype="FP32", shape=[1, 2]).contents.fp32_contents.extend([1, 2])
    response = ModelInferResponse.FromString(call(grpc_served, request.SerializeToString()))
    assert not response.raw_output_contents
    assert list(response.outputs[0].contents.fp32_contents) == [2, 4]


def test_our_own_client_half_talks_to_our_own_server(grpc_served: Served) -> None:
    reply = decode_infer_reply(call(grpc_served, encode_infer_request("double", {"x": ONES}, id="i")))
    assert reply.outputs["y"].tolist() == (ONES * 2).tolist()
    assert reply.id == "i"


@pytest.mark.parametrize(
    ("model", "code", "words"),
    [
        ("nobody", grpc.StatusCode.NOT_FOUND, "no extension 'nobody'."),
        ("full", grpc.StatusCode.UNAVAILABLE, "the queue of full@1 is full. Retry."),
        ("raising", grpc.StatusCode.INTERNAL, "internal error"),
        ("echo_int8", grpc.StatusCode.INVALID_ARGUMENT, "input 'x' has datatype FP32. It takes INT8."),
    ],
)
def test_errors_have_the_code_and_the_words_of_their_class(
    grpc_served: Served, model: str, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        call(grpc_served, encode_infer_request(model, {"x": ONES}))
    error = caught.value
    assert error.code() == code
    assert words in error.details()
    assert "secret" not in error.details()
    trailing = dict(error.trailing_metadata())
    again = error_of(trailing["fenix-error"], error.details(), float(trailing.get("retry-after", "nan")))
    assert again.grpc_status == code.name
    if isinstance(again, Overloaded):
        assert again.retry_after_s == 2.5


@pytest.mark.parametrize("method", ["ModelInfer", "ModelMetadata", "ServerLive", "RepositoryIndex"])
def test_garbage_is_refused_and_the_next_request_is_answered(grpc_served: Served, method: str) -> None:
    for garbage in (b"\xff", b"\x0a\xff\xff\xff\xff", b"GET / HTTP/1.1"):
        with pytest.raises(grpc.RpcError) as caught:
            call(grpc_served, garbage, method)
        assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
        assert "Use the Open Inference Protocol V2." in caught.value.details()
    assert call(grpc_served, encode_infer_request("double", {"x": ONES}))


def test_methods_that_are_not_served_say_so(triton_client: triton.InferenceServerClient) -> None:
    with pytest.raises(InferenceServerException) as caught:
        triton_client.get_model_config("double")
    assert caught.value.status() == "StatusCode.UNIMPLEMENTED"


def test_limits_on_bytes_and_rows_hold() -> None:
    with served_grpc(Limits(max_body_bytes=10_000, max_rows=100)) as served:
        for rows, words in ((101, "Send at most 100"), (5_000, "larger than max")):
            with pytest.raises(grpc.RpcError) as caught:
                call(served, encode_infer_request("double", {"x": np.ones((rows, 2), np.float32)}))
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert words in caught.value.details()
        assert call(served, encode_infer_request("double", {"x": ONES}))


def test_fifty_megabytes_are_answered(grpc_served: Served) -> None:
    large = np.zeros((1_000, 12_500), np.float32)
    assert len(call(grpc_served, encode_infer_request("double", {"x": large}))) > 50_000_000


def test_a_client_that_leaves_cancels_its_work() -> None:
    with served_grpc() as served, grpc.insecure_channel(served.address) as channel:
        future = channel.unary_unary(METHOD + "ModelInfer").future(encode_infer_request("hanging", {"x": ONES}))
        served.loop.run(served.engine.hanging.wait())
        future.cancel()
        served.loop.run(served.engine.cancelled.wait())


def test_a_deadline_that_passes_cancels_the_work() -> None:
    with served_grpc() as served:
        with pytest.raises(grpc.RpcError) as caught:
            call(served, encode_infer_request("hanging", {"x": ONES}), timeout_s=0.2)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        served.loop.run(served.engine.cancelled.wait())


def test_more_calls_at_a_time_than_the_limit_are_refused_at_once() -> None:
    with served_grpc(Limits(max_concurrent=1)) as served, grpc.insecure_channel(served.address) as channel:
        future = channel.unary_unary(METHOD + "ModelInfer").future(encode_infer_request("hanging", {"x": ONES}))
        served.loop.run(served.engine.hanging.wait())
        with pytest.raises(grpc.RpcError) as caught:
            call(served, encode_infer_request("double", {"x": ONES}))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        future.cancel()


def test_readiness_follows_the_engine() -> None:
    with (
        served_grpc(engine=NumpyEngine(is_ready=False)) as served,
        triton.InferenceServerClient(served.address) as client,
    ):
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("double")
