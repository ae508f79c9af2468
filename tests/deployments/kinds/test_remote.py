"""A model of another server is a node like any other: typed, bounded in time, and its errors are those of a step."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest

from deployments.contract import check_contract
from deployments.extension import execute
from deployments.kinds.remote import RemoteExtension
from deployments.loading import describe, load
from planner.errors import (
    BadCard,
    BadInput,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionTimeout,
    ExtensionUnavailable,
)
from planner.features import Feature
from tests.deployments.gateway.engines import Served, served_grpc, served_http

HOME = "http://host:port/v2/models/name"
TYPES = {"x": "vector", "y": "vector/out"}


@pytest.fixture(scope="module")
def http() -> Iterator[Served]:
    with served_http() as served:
        yield served


@pytest.fixture(scope="module")
def grpc_served() -> Iterator[Served]:
    with served_grpc() as served:
        yield served


@contextmanager
def opened(address: str, types: Any = TYPES, **options: Any) -> Iterator[RemoteExtension]:
    made = RemoteExtension(address, types, **options)
    made.setup()
    try:
        yield made
    finally:
        made.close()


@pytest.fixture(params=["http", "grpc"])
def server(request: pytest.FixtureRequest, http: Served, grpc_served: Served) -> str:
    """The address of models on a real gateway, over each wire; `{}` stands for the model."""
    return f"{http.url}/v2/models/{{}}" if request.param == "http" else f"grpc://{grpc_served.address}/{{}}"


def test_a_remote_model_is_typed_by_its_metadata_and_the_operator(server: str) -> None:
    card = describe(server.format("double"), {"types": TYPES})
    assert (card.name, card.version, card.kind) == ("double", "1", "remote")
    assert card.inputs[0].feature == Feature("vector", "FP32", (-1,))
    assert card.outputs[0].feature == Feature("vector/out", "FP32", (-1,))
    assert card.site.startswith("127.0.0.1:")
    assert load(card).card() == card


def test_a_remote_model_computes_with_confidence_and_holds_to_the_contract(server: str) -> None:
    with opened(server.format("double"), confidence="y.confidence") as made:
        rows = execute(made, {"x": np.array([[1, 2], [3, 4]], np.float32)})["y"]
        assert rows.values.tolist() == [[2, 4], [6, 8]]
        assert rows.confidence is not None
        assert rows.confidence.tolist() == [0.75, 0.75]
        report = check_contract(made, np.random.default_rng(0))
        assert report.passed, report.failures


@pytest.mark.parametrize("datatype", ["bytes", "bool", "fp16", "int64", "uint8"])
def test_every_sort_of_tensor_goes_there_and_back(server: str, datatype: str) -> None:
    with opened(server.format(f"echo_{datatype}")) as made:
        rows = made.samples(3, np.random.default_rng(0))
        assert np.array_equal(execute(made, rows)["y"].values, rows["x"])


def test_plain_json_does_as_well(http: Served) -> None:
    with opened(f"{http.url}/v2/models/double/versions/1", binary=False) as made:
        assert execute(made, {"x": np.ones((2, 1), np.float32)})["y"].values.tolist() == [[2], [2]]


@pytest.mark.parametrize(
    ("model", "kind", "said"),
    [
        ("raising", ExtensionRaised, "internal error"),
        ("full", ExtensionUnavailable, "full"),
        ("hanging", ExtensionTimeout, r"within 0\.5 s"),
    ],
)
def test_a_model_that_raises_or_is_full_or_hangs_is_a_failed_step(
    server: str, model: str, kind: type[Exception], said: str
) -> None:
    with opened(server.format(model), timeout_s=0.5) as made, pytest.raises(kind, match=said):
        execute(made, {"x": np.ones((1, 1), np.float32)})


def test_what_a_fenix_server_calls_bad_input_is_the_clients_mistake(server: str) -> None:
    with opened(server.format("double")) as made, pytest.raises(BadInput, match="NaN"):
        execute(made, {"x": np.full((1, 1), np.nan, np.float32)})


def test_a_model_that_is_not_there_is_unavailable(server: str) -> None:
    with pytest.raises(ExtensionUnavailable, match=r"404|NOT_FOUND"):
        describe(server.format("nothing"), {"types": TYPES})


@pytest.mark.parametrize("address", ["http://127.0.0.1:{}/v2/models/m", "grpc://127.0.0.1:{}/m"])
def test_a_server_that_is_not_there_is_unavailable(address: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        with pytest.raises((ExtensionUnavailable, ExtensionTimeout)):
            describe(address.format(taken.getsockname()[1]), {"timeout_s": 2.0})


@pytest.mark.parametrize(
    ("options", "said", "hint"),
    [
        ({}, "input 'x' (FP32[-1]) has no semantic type", 'types: {"x": "image/digit"}'),
        ({"types": {"x": "vector"}}, "output 'y'", ""),
        ({"types": {**TYPES, "z": "vector"}}, "has no tensor 'z'", ""),
        ({"typos": TYPES}, "typos", "types"),
    ],
)
def test_types_that_do_not_fit_are_explained(server: str, options: Any, said: str, hint: str) -> None:
    with pytest.raises(BadCard) as caught:
        describe(server.format("double"), options)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    "address",
    [
        "http://host/models/m",
        "http://host/v2/models/m/infer",
        "http:///v2/models/m",
        "http://me:secret@host/v2/models/m",
        "http://host:port/v2/models/m",
        "http://host/v2/models/m?token=1",
        "grpc://host",
        "grpc://host/a/b/c",
    ],
)
def test_an_address_that_is_none_is_explained(address: str) -> None:
    with pytest.raises(BadCard) as caught:
        describe(address, {"types": TYPES})
    assert HOME in caught.value.hint


TENSOR = {"name": "x", "datatype": "FP32", "shape": [-1]}
METADATA = {"inputs": [TENSOR], "outputs": [{**TENSOR, "name": "y"}]}


@contextmanager
def answering(metadata: Any, reply: Any = None, status: int = 200) -> Iterator[str]:
    """A server that gives these answers whatever it is asked; bytes go out as they are."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.answer(200, metadata)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.answer(status, reply)

        def answer(self, status: int, body: Any) -> None:
            raw = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v2/models/m"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("metadata", "kind", "said"),
    [
        (b"<html>", ExtensionBroken, "not Open Inference"),
        ([], ExtensionBroken, "not Open Inference"),
        ({"inputs": ["x"]}, ExtensionBroken, "not Open Inference"),
        ({"inputs": [{**TENSOR, "shape": "x"}]}, ExtensionBroken, "not Open Inference"),
        ({"inputs": [{**TENSOR, "datatype": "BF16"}]}, BadCard, "BF16, which Fenix does not carry"),
        ({"inputs": [{**TENSOR, "shape": [1, 3]}]}, BadCard, "takes no batches"),
        ({"inputs": [{**TENSOR, "shape": []}]}, BadCard, "takes no batches"),
        ({"outputs": [TENSOR]}, BadCard, "declares no `inputs`"),
    ],
)
def test_metadata_that_does_not_do_is_refused(metadata: Any, kind: type[Exception], said: str) -> None:
    with answering(metadata) as address, pytest.raises(kind, match=said):
        describe(address, {"types": {"x": "vector"}})


@pytest.mark.parametrize(
    ("reply", "status", "kind", "said"),
    [
        (b"<html>", 200, ExtensionBroken, "not Open Inference"),
        ({"outputs": []}, 200, ExtensionBroken, "no output 'y'"),
        ({"outputs": [{**TENSOR, "name": "y", "shape": [1], "data": [1]}]}, 200, ExtensionBroken, "1 rows for 2 rows"),
        ({"error": "no memory"}, 500, ExtensionRaised, "answered 500: no memory"),
        ({"error": "bad shape"}, 400, ExtensionRaised, "answered 400: bad shape"),
        ({"error": "not loaded"}, 503, ExtensionUnavailable, "answered 503: not loaded"),
        (b"", 504, ExtensionTimeout, "answered 504"),
        (b"", 302, ExtensionRaised, "answered 302"),
    ],
)
def test_answers_that_do_not_do_are_a_failed_step(reply: Any, status: int, kind: type[Exception], said: str) -> None:
    with answering(METADATA, reply, status) as address, opened(address) as made, pytest.raises(kind, match=said):
        execute(made, {"x": np.ones(2, np.float32)})


def test_a_server_that_has_gone_is_unavailable() -> None:
    with answering(METADATA) as address:
        made = RemoteExtension(address, TYPES)
    made.setup()
    with pytest.raises(ExtensionUnavailable, match="cannot be reached"):
        execute(made, {"x": np.ones(2, np.float32)})
    made.close()
