from __future__ import annotations

import asyncio
import gzip
import http.client
import json
import logging
import socket
import threading
import zlib
from collections.abc import Iterator
from pkgutil import resolve_name
from typing import Any

import httpx
import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from deployments.gateway.codec import decode_error, decode_reply, encode_request
from deployments.gateway.http import target_of
from deployments.gateway.limits import Limits
from planner.errors import NotFound, Overloaded
from planner.features import DATATYPES
from tests.deployments.gateway.engines import NumpyEngine, Served, served_http

X = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]]}
DOUBLE = "/v2/models/double/infer"
VALUES = {
    "BOOL": np.array([[True, False], [False, True]]),
    "FP16": np.array([[1.5, -2], [0, 65504]], np.float16),
    "BYTES": np.array([["a", "ß"], ["", "\x00b"]], object),
}


@pytest.fixture
def triton_client(http: Served) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(http.address) as client:
        yield client


def post(served: Served, path: str = DOUBLE, content: bytes | None = None, **headers: str) -> httpx.Response:
    body = orjson.dumps({"inputs": [X]}) if content is None else content
    sent = {"content-type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(served.url + path, content=body, headers=sent, timeout=30)


def values_of(datatype: str) -> np.ndarray[Any, Any]:
    if datatype in VALUES:
        return VALUES[datatype]
    dtype = DATATYPES[datatype]
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    return np.array([[limits.min, limits.max], [0, 1]], dtype)


@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(name, binary) for name in DATATYPES for binary in (True, False) if binary or name != "FP16"],
)
def test_tritonclient_gets_every_datatype_back(
    triton_client: triton.InferenceServerClient, datatype: str, binary: bool
) -> None:
    sent = values_of(datatype)
    tensor = triton.InferInput("x", list(sent.shape), datatype).set_data_from_numpy(sent, binary_data=binary)
    wanted = triton.InferRequestedOutput("y", binary_data=binary)
    got = triton_client.infer(f"echo_{datatype.lower()}", [tensor], outputs=[wanted]).as_numpy("y")
    if datatype == "BYTES":
        sent = np.array([text.encode() if binary else text for text in sent.ravel()], object).reshape(sent.shape)
    assert got.tolist() == sent.tolist()


def test_tritonclient_finds_what_it_asks_for(triton_client: triton.InferenceServerClient) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready("doubling")
    assert triton_client.is_model_ready("double", "1")
    assert not triton_client.is_model_ready("nobody")
    assert triton_client.get_server_metadata()["name"] == "fenix"
    assert triton_client.get_model_metadata("doubling") == {
        "name": "doubling",
        "versions": ["1"],
        "platform": "fenix_goal",
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [-1, -1]}],
    }
    assert triton_client.get_model_metadata("double", "1")["platform"] == "fenix_extension"
    index = triton_client.get_model_repository_index()
    assert {"name": "doubling", "version": "1", "state": "READY", "reason": ""} in index


@pytest.mark.parametrize("algorithm", [None, "gzip", "deflate"])
def test_tritonclient_passes_its_own_parameters_and_ours(
    http: Served, triton_client: triton.InferenceServerClient, algorithm: str | None
) -> None:
    sent = np.ones((3, 2), np.float32)
    tensor = triton.InferInput("x", [3, 2], "FP32").set_data_from_numpy(sent)
    result = triton_client.infer(
        "doubling",
        [tensor],
        model_version="1",
        outputs=[triton.InferRequestedOutput("y.confidence")],
        request_id="i7",
        priority=2,
        timeout=1_500_000,
        parameters={"max_cost": 3, "user": "u"},
        request_compression_algorithm=algorithm,
    )
    assert result.as_numpy("y.confidence").tolist() == [0.75] * 3
    response = result.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("i7", "doubling", "1")
    assert response["parameters"] == {"plan": "p-double", "trace_id": "t1", "confidence": 0.75, "flags": ""}
    assert http.engine.seen[-1].terms == {"priority": 2, "deadline_ms": 1500.0, "max_cost": 3, "user": "u"}


def test_tritonclient_reads_our_errors(triton_client: triton.InferenceServerClient) -> None:
    tensor = triton.InferInput("z", [1, 2], "FP32").set_data_from_numpy(np.ones((1, 2), np.float32))
    with pytest.raises(InferenceServerException) as caught:
        triton_client.infer("double", [tensor])
    assert caught.value.status() == "400"
    assert caught.value.message() == "there is no input 'z'. There are: x."


def test_our_own_client_half_talks_to_our_own_server(http: Served) -> None:
    sent = np.arange(6, dtype=np.float32).reshape(3, 2)
    for binary in (True, False):
        request = encode_request({"x": sent}, outputs=("y",), terms={"deadline_ms": 100.0}, id="i", binary=binary)
        sizes = {} if request.header_bytes is None else {"Inference_Header_Content_Length": str(request.header_bytes)}
        answer = post(http, content=request.body, **sizes)
        size = answer.headers.get("inference-header-content-length")
        reply = decode_reply(answer.content, None if size is None else int(size))
        assert reply.outputs["y"].tolist() == (sent * 2).tolist()
        assert reply.id == "i"
    refused = post(http, "/v2/models/nobody/infer")
    error = decode_error(refused.status_code, refused.content, kind=refused.headers["fenix-error"])
    assert type(error) is NotFound


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("/v2/models/m/infer", ("m", "")),
        ("/v2/models/m/versions/3/infer", ("m", "3")),
        ("/v2/models/m@3/infer", ("m@3", "")),
        ("/v2/models/infer", None),
        ("/v2/models//infer", None),
        ("/v2/models/a/b/infer", None),
        ("/v2/models/m/versions//infer", None),
        ("/v2/models/m/versions/1/2/infer", None),
        ("/v2/models/m", None),
        ("/v1/infer", None),
    ],
)
def test_infer_routes_name_a_model_and_perhaps_a_version(path: str, target: tuple[str, str] | None) -> None:
    assert target_of(path) == target


def test_the_header_names_a_request_whose_body_does_not(http: Served) -> None:
    assert post(http, x_request_id="h1").json()["id"] == "h1"
    assert post(http, content=orjson.dumps({"inputs": [X], "id": "b1"}), x_request_id="h1").json()["id"] == "b1"
    assert post(http, x_request_id="h" * 300).status_code == 400
    sent = orjson.dumps({"goal": "double", "inputs": [X]})
    assert post(http, "/v1/infer", sent, x_request_id="h1").json()["id"] == "h1"
    assert post(http, "/v1/infer", sent, x_request_id="h" * 300).status_code == 400


@pytest.mark.parametrize(
    ("method", "path", "status", "words"),
    [
        ("GET", "/nowhere", 404, "there is no /nowhere"),
        ("POST", "/v2/models/a/b/infer", 404, "there is no"),
        ("GET", DOUBLE, 405, "takes POST, not GET"),
        ("DELETE", DOUBLE, 405, "takes POST, not DELETE"),
        ("PUT", "/v2/health/live", 405, "does not take PUT. It takes GET."),
        ("OPTIONS", "/v2/health/live", 405, "does not take OPTIONS. It takes GET."),
        ("OPTIONS", "/v1/infer", 405, "does not take OPTIONS. It takes POST."),
        ("DELETE", "/v2/repository/index", 405, "It takes POST."),
        ("OPTIONS", DOUBLE, 405, "Send a body with POST."),
        ("GET", "/v2/models/dubble", 404, "Nearest: double"),
        ("GET", "/v2/models/double/versions/9", 404, "It has 1."),
        ("GET", "/v2/models/doubling/versions/9/ready", 404, "It has '1'."),
    ],
)
def test_wrong_routes_and_methods_get_the_one_error_shape(
    http: Served, method: str, path: str, status: int, words: str
) -> None:
    answer = httpx.request(method, http.url + path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert list(answer.json()) == ["error"]
    assert words in answer.json()["error"]
    assert answer.headers["fenix-error"] == ("NotFound" if status == 404 else "WrongMethod")


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "PUT", "TRACE"])
@pytest.mark.parametrize(
    ("path", "takes"),
    [(DOUBLE, {"POST"}), ("/v1/infer", {"POST"}), ("/v1/goals", {"GET"}), ("/openapi.json", {"GET", "HEAD"})],
)
def test_a_wrong_method_is_told_the_right_ones(http: Served, method: str, path: str, takes: set[str]) -> None:
    answer = httpx.request(method, http.url + path)
    if method in takes:
        assert answer.status_code == 200
        return
    assert (answer.status_code, answer.headers["fenix-error"]) == (405, "WrongMethod")
    assert set(answer.headers["allow"].split(", ")) == takes


@pytest.mark.parametrize("n_elements", [4, 1 << 18])
def test_large_bodies_and_outputs_leave_the_loop_to_others(
    http: Served, monkeypatch: pytest.MonkeyPatch, n_elements: int
) -> None:
    places: list[bool] = []
    rest = ("rest.parse_json", "rest.decode_inputs", "rest.AnswerBody.of")
    for name in ("http.decode_request", "http.encode_answer", *rest):
        _note_thread(monkeypatch, f"deployments.gateway.{name}", http, places)
    x = {"name": "x", "datatype": "FP32", "shape": [1, n_elements], "data": [1.25] * n_elements}
    assert post(http, DOUBLE, orjson.dumps({"inputs": [x]})).status_code == 200
    answer = post(http, "/v1/infer", orjson.dumps({"goal": "doubling", "inputs": [x]}))
    assert answer.json()["outputs"][0]["data"][-1] == 2.5
    assert places == [n_elements == 4] * 5


def _note_thread(monkeypatch: pytest.MonkeyPatch, target: str, served: Served, on_loop: list[bool]) -> None:
    """Notes at each call of `target` whether it runs on the server's loop."""
    function = resolve_name(target)

    def noting(*given: Any, **named: Any) -> Any:
        on_loop.append(threading.get_ident() == served.loop.thread_id)
        return function(*given, **named)

    monkeypatch.setattr(target, noting)


@pytest.mark.parametrize(
    ("headers", "status", "words"),
    [
        ({"content_type": "text/xml"}, 415, "media type 'text/xml' is not served"),
        ({"content_type": "multipart/form-data; boundary=x"}, 415, "media type 'multipart/form-data'"),
        ({"content_encoding": "br"}, 415, "content encoding 'br' is not served"),
        ({"content_encoding": "gzip"}, 400, "does not decompress"),
        ({"inference_header_content_length": "-1"}, 400, "is a whole number, not '-1'"),
        ({"inference_header_content_length": "1e3"}, 400, "is a whole number, not '1e3'"),
        ({"inference_header_content_length": "99999"}, 400, "Inference-Header-Content-Length is 99999"),
        ({"content_type": "application/json; charset=utf-8"}, 200, ""),
        ({"content_type": "application/vnd.mine+json"}, 200, ""),
        ({"content_type": ""}, 200, ""),
    ],
)
def test_headers_are_checked(http: Served, headers: dict[str, str], status: int, words: str) -> None:
    for path in (DOUBLE, "/v1/infer") if status == 415 else (DOUBLE,):
        answer = post(http, path, **headers)
        assert answer.status_code == status
        assert words in answer.text


@pytest.mark.parametrize("squeeze", [gzip.compress, zlib.compress])
def test_a_compressed_bomb_is_refused(http: Served, squeeze: Any) -> None:
    encoding = "gzip" if squeeze is gzip.compress else "deflate"
    answer = post(http, content=squeeze(b" " * (65 * 1024 * 1024)), content_encoding=encoding)
    assert answer.status_code == 413
    cut = post(http, content=squeeze(orjson.dumps({"inputs": [X]}))[:-9], content_encoding=encoding)
    assert cut.status_code == 400


def test_what_nobody_foresaw_is_logged_once_and_told_without_a_trace(
    http: Served, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        for path, body in (
            ("/v2/models/raising/infer", {"inputs": [X]}),
            ("/v1/infer", {"goal": "raising", "inputs": [X]}),
        ):
            caplog.clear()
            answer = post(http, path, orjson.dumps(body))
            assert answer.status_code == 500
            assert "secret" not in answer.text
            (record,) = caplog.records
            assert str(record.args[0]) in answer.json()["error"]  # type: ignore[index]
            assert record.exc_info is not None
    assert post(http).status_code == 200


def test_an_overloaded_engine_says_when_to_come_back(http: Served) -> None:
    answer = post(http, "/v2/models/full/infer")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")
    assert type(decode_error(503, answer.content, kind=answer.headers["fenix-error"])) is Overloaded


def test_readiness_follows_the_engine() -> None:
    with served_http(engine=NumpyEngine(is_ready=False)) as served:
        ready = httpx.get(served.url + "/v2/health/ready")
        assert ready.status_code == 503
        assert {"live": True, "ready": False}.items() <= ready.json().items()
        live = httpx.get(served.url + "/v2/health/live")
        assert (live.status_code, live.json()) == (200, {"live": True, "ready": False})


def test_ten_thousand_rows_and_fifty_megabytes_are_answered(http: Served) -> None:
    rows = np.zeros((10_000, 4), np.float32)
    request = encode_request({"x": rows}, binary=False)
    assert post(http, content=request.body).json()["outputs"][0]["shape"] == [10_000, 4]
    large = np.zeros((1_000, 12_500), np.float32)
    request = encode_request({"x": large})
    assert len(request.body) > 50_000_000
    answer = post(http, content=request.body, inference_header_content_length=str(request.header_bytes))
    assert answer.status_code == 200
    assert len(answer.content) > 50_000_000


def test_more_rows_than_the_limit_are_refused() -> None:
    with served_http(Limits(max_rows=1)) as served:
        answer = post(served)
        assert (answer.status_code, answer.json()) == (
            413,
            {"error": "the request has 2 rows. Send at most 1 at a time."},
        )
        v1 = post(served, "/v1/infer", orjson.dumps({"goal": "double", "inputs": [X]}))
        assert v1.status_code == 413


def connection(served: Served) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)


@pytest.mark.parametrize("path", [DOUBLE, "/v1/infer", "/nowhere"])
def test_an_announced_body_over_the_limit_is_refused_before_it_comes(path: str) -> None:
    with served_http(Limits(max_body_bytes=1000)) as served:
        client = connection(served)
        client.putrequest("POST", path)
        client.putheader("Content-Length", "5000000")
        client.endheaders()
        answer = client.getresponse()
        assert answer.status == 413
        assert answer.getheader("connection") == "close"
        assert "5000000 bytes" in json.loads(answer.read())["error"]
        client.close()
        assert post(served).status_code == 200


def test_a_client_that_sends_all_of_a_body_too_large_still_reads_the_refusal() -> None:
    with served_http(Limits(max_body_bytes=1000)) as served:
        for chunked in (False, True):
            client = connection(served)
            content: Any = iter([b"x" * 100_000] * 50) if chunked else b"x" * 5_000_000
            client.request(
                "POST",
                DOUBLE,
                content,
                encode_chunked=chunked,
                headers={"Transfer-Encoding": "chunked"} if chunked else {},
            )
            answer = client.getresponse()
            assert answer.status == 413
            assert "Send at most 1000" in json.loads(answer.read())["error"]
            client.close()


def test_a_small_chunked_body_over_the_limit_is_refused_too() -> None:
    with served_http(Limits(max_body_bytes=10)) as served:
        client = connection(served)
        client.request("POST", DOUBLE, iter([b"x" * 11]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"})
        assert client.getresponse().status == 413
        client.close()


def test_a_chunked_body_is_put_together(http: Served) -> None:
    whole = orjson.dumps({"inputs": [X]})
    client = connection(http)
    client.request(
        "POST", DOUBLE, iter([whole[:7], whole[7:]]), encode_chunked=True, headers={"Transfer-Encoding": "chunked"}
    )
    answer = client.getresponse()
    assert answer.status == 200
    answer.read()
    client.request("POST", DOUBLE, whole)  # the connection serves on
    assert client.getresponse().status == 200
    client.close()


def request_bytes(path: str, body: bytes) -> bytes:
    return b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % (path.encode(), len(body)) + body


@pytest.mark.parametrize("path", ["/v2/models/hanging/infer", "/v1/infer"])
def test_a_client_that_leaves_cancels_its_work(path: str) -> None:
    with served_http() as served:
        body = {"inputs": [X]} if path.startswith("/v2") else {"goal": "hanging", "inputs": [X]}
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(request_bytes(path, orjson.dumps(body)))
            served.loop.run(served.engine.hanging.wait())
        served.loop.run(served.engine.cancelled.wait())
        assert post(served).status_code == 200


def test_a_client_that_waits_is_answered_long_after_the_watch_began() -> None:
    with served_http() as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(request_bytes("/v2/models/hanging/infer", orjson.dumps({"inputs": [X]})))
            served.loop.run(served.engine.hanging.wait())

            served.loop.run(asyncio.sleep(0.1))
            served.loop.loop.call_soon_threadsafe(served.engine.let_go.set)
            assert client.recv(100).startswith(b"HTTP/1.1 200")
        assert not served.engine.cancelled.is_set()


def test_more_requests_at_a_time_than_the_limit_are_refused_at_once() -> None:
    with served_http(Limits(max_concurrent=1)) as served:
        with socket.create_connection(("127.0.0.1", served.port)) as client:
            client.sendall(request_bytes("/v2/models/hanging/infer", orjson.dumps({"inputs": [X]})))
            served.loop.run(served.engine.hanging.wait())
            for path in (DOUBLE, "/v1/infer"):
                refused = post(served, path)
                assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
            assert httpx.get(served.url + "/v2/health/live").status_code == 200
        served.loop.run(served.engine.cancelled.wait())
        assert post(served).status_code == 200
