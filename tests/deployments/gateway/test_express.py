from __future__ import annotations

import asyncio
import gc
import http.client
import re
import socket
import threading
import time
import weakref
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from deployments.gateway import express
from deployments.gateway.engine import Engine
from deployments.gateway.express import Express
from deployments.gateway.limits import Limits, Load
from deployments.gateway.messages import InferAnswer, InferRequest
from deployments.gateway.server import HttpServer, serve_http
from planner.calls import LocalCalls
from planner.cards import Card
from planner.catalogue import Catalogue
from planner.errors import ExtensionRaised, FenixError
from planner.features import DATATYPES, Array, Feature, Port, Rows
from planner.goals import Goal, Terms
from planner.plans import Answer, Plan
from planner.tokens import Token
from tests.deployments.gateway.engines import LoopThread, loop_thread

NUMERIC = [name for name, dtype in DATATYPES.items() if dtype.kind in "fiu" and name != "FP16"]
NUMBER, TWO = Feature("number", "FP32"), Feature("pair", "FP32", (2,))
LONG_S = 10.0

Work = Callable[[Mapping[str, Array]], dict[str, Rows]]


class Gate:
    """An extension that begins, and ends when it is let go."""

    def __init__(self) -> None:
        self.begun, self.open = threading.Event(), threading.Event()

    def __call__(self, rows: Mapping[str, Array]) -> dict[str, Rows]:
        self.begun.set()
        self.open.wait(LONG_S)
        return {"y": Rows(rows["x"])}


def sure(rows: Mapping[str, Array]) -> dict[str, Rows]:
    x = rows["x"]
    return {"y": Rows(x.sum(axis=1), (1 / (1 + np.abs(x[:, 0]))).astype(np.float32)), "twice": Rows(x * 2)}


def several(rows: Mapping[str, Array]) -> dict[str, Rows]:
    a, b = rows["a"], rows["b"]
    texts = np.empty(len(a), object)
    texts[:] = [f'"{n}%d" é\\'.encode() for n in b.ravel().tolist()]
    return {
        "100%d": Rows(a.reshape(len(a), 1, 2)),
        'said "so"': Rows(texts),
        "ü": Rows(b > 1),
        "half": Rows(a, np.full(len(a), 0.25, np.float32)),
        "third": Rows(b, np.linspace(0.1, 0.9, len(a), dtype=np.float32)),
    }


def not_utf8(rows: Mapping[str, Array]) -> dict[str, Rows]:
    texts = np.empty(len(rows["x"]), object)
    texts[:] = b"\xff"
    return {"text": Rows(texts)}


def raising(rows: Mapping[str, Array]) -> dict[str, Rows]:
    raise ExtensionRaised("raising@1 raised ValueError: no")


def echo(rows: Mapping[str, Array]) -> dict[str, Rows]:
    return {"y": Rows(rows["x"])}


def wide(rows: Mapping[str, Array]) -> dict[str, Rows]:
    return {"y": Rows(np.zeros((len(rows["x"]), 200_000), np.float32))}


def one(name: str, takes: Feature, gives: Mapping[str, Feature], work: Work) -> tuple[Card, Work]:
    return Card(name, "1", (Port("x", takes),), tuple(Port(out, feature) for out, feature in gives.items())), work


def extensions() -> list[tuple[Card, Work]]:
    two = Card(
        "several",
        "1",
        (Port("a", TWO), Port("b", Feature("count", "INT64"))),
        (
            Port("100%d", Feature("pairs", "FP32", (1, 2))),
            Port('said "so"', Feature("text", "BYTES")),
            Port("ü", Feature("truth", "BOOL")),
            Port("half", TWO),
            Port("third", Feature("count", "INT64")),
        ),
    )
    return [
        *(one(f"echo_{n.lower()}", f := Feature("any", n, (-1,)), {"y": f}, echo) for n in NUMERIC),
        one("echo_bytes", f := Feature("text", "BYTES", (-1,)), {"y": f}, echo),
        one("echo_bool", f := Feature("truth", "BOOL", (-1,)), {"y": f}, echo),
        one("echo_fp16", f := Feature("any", "FP16", (-1,)), {"y": f}, echo),
        one("halved", NUMBER, {"y": Feature("half", "FP16")}, lambda r: {"y": Rows(r["x"].astype(np.float16))}),
        one("sure", TWO, {"y": NUMBER, "twice": TWO}, sure),
        one("not_utf8", NUMBER, {"text": Feature("text", "BYTES")}, not_utf8),
        one("raising", NUMBER, {"y": NUMBER}, raising),
        one("wide", NUMBER, {"y": Feature("wide", "FP32", (200_000,))}, wide),
        (two, several),
    ]


GOAL = Goal(
    "summing", (Port("x", TWO),), (Port("y", NUMBER),), description="Sum.", terms=Terms(deadline_ms=LONG_S * 1e3)
)


class Watched(Engine):
    """An engine that counts what takes the usual way, and remembers the tokens of all that is run."""

    n_usual = 0

    def __init__(self, calls: LocalCalls) -> None:
        super().__init__(calls)
        self.tokens: list[Token] = []

    async def infer(self, request: InferRequest) -> InferAnswer:
        self.n_usual += 1
        return await super().infer(request)

    def _dispatch(
        self, plan: Plan, inputs: Mapping[str, Array], token: Token, alternatives: Sequence[Plan]
    ) -> Coroutine[Any, Any, Answer]:
        self.tokens.append(token)
        return super()._dispatch(plan, inputs, token, alternatives)


@dataclass
class Site:
    """A running gateway over real plans."""

    engine: Watched
    loop: LoopThread
    server: HttpServer

    def client(self) -> Client:
        return Client(self.server.port)

    def follow(self, *cards: Card, epoch: int) -> None:
        self.loop.run(self.engine.follow(Catalogue.of(cards, (), epoch=epoch)))

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for what happens on the server's side."""
        ends_s = time.monotonic() + LONG_S
        while not condition():
            assert time.monotonic() < ends_s
            time.sleep(0.002)


@contextmanager
def site(
    *, limits: Limits | None = None, more: Sequence[tuple[Card, Work]] = (), inline: bool = False
) -> Iterator[Site]:
    known = [*extensions(), *more]

    async def start() -> tuple[Watched, HttpServer]:
        engine = Watched(LocalCalls({card.id: work for card, work in known}))
        await engine.follow(Catalogue.of((card for card, _ in known), (GOAL,), epoch=1))
        if inline:
            for card, work in known:
                engine.placed.place(card, work)
        return engine, await serve_http(engine, "127.0.0.1", 0, limits)

    with loop_thread() as loop:
        engine, server = loop.run(start())
        try:
            yield Site(engine, loop, server)
        finally:
            loop.run(server.stop(0.2))


@dataclass(frozen=True)
class Got:
    """One response, its trace id and date taken out."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def outputs(self) -> list[Any]:
        return orjson.loads(self.body)["outputs"]

    @property
    def values(self) -> Any:
        return self.outputs[0]["data"]


class Client:
    """One connection, byte for byte."""

    def __init__(self, port: int, receive_bytes: int | None = None) -> None:
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(LONG_S)
        self.socket.connect(("127.0.0.1", port))
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Got:
        status = int(self._file.readline().split()[1])
        headers = {}
        while (line := self._file.readline().strip()) != b"":
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        body = self._file.read(int(headers["content-length"]))
        assert headers.pop("date")
        return Got(status, headers, re.sub(rb'"trace_id":"[0-9a-f]{32}"', b'"trace_id":""', body))

    def ask(self, data: bytes) -> Got:
        self.send(data)
        return self.receive()

    def is_closed(self) -> bool:
        return self._file.read(1) == b""


def target(model: str) -> bytes:
    return f"/v2/models/{model}/infer".encode()


JSON = b"application/json"
USUAL = b"application/json; charset=utf-8"  # which means the same, but is not what clients usually say


def http_request(model: str, body: bytes, media: bytes = JSON, *more: bytes, version: bytes = b"HTTP/1.1") -> bytes:
    head = [b"POST %s %s" % (target(model), version), b"host: h", b"content-type: " + media, *more]
    return b"\r\n".join([*head, b"content-length: %d" % len(body), b"", body])


def tensor(name: str, datatype: str, shape: Sequence[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": list(shape), "data": data}


def document(*tensors: dict[str, Any], **more: Any) -> bytes:
    return orjson.dumps({**more, "inputs": list(tensors)})


X = tensor("x", "FP32", [1, 2], [1.5, -2])
SUM = document(X)


def gate_card(name: str = "gate") -> Card:
    return Card(name, "1", (Port("x", NUMBER),), (Port("y", NUMBER),), deterministic=False)


def numbers(*values: float, **more: Any) -> bytes:
    return document(tensor("x", "FP32", [len(values)], list(values)), **more)


def both_ways(site: Site, model: str, body: bytes) -> tuple[Got, Got, int]:
    """The answers by the express, if it takes the request, and by the usual way; how many of the two were usual."""
    before = site.engine.n_usual
    with site.client() as client:
        first = client.ask(http_request(model, body))
        second = client.ask(http_request(model, body, USUAL))
    return first, second, site.engine.n_usual - before


@pytest.fixture(scope="module", params=["deployed", "inline"])
def gateway(request: pytest.FixtureRequest) -> Iterator[Site]:
    with site(inline=request.param == "inline") as running:
        yield running


@pytest.fixture(scope="module")
def plain() -> Iterator[Site]:
    with site() as running:
        yield running


# ---------------------------------------------------------------------------------------------- what is ordinary

LIMITS = {
    name: (np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype))
    for name, dtype in DATATYPES.items()
    if name in NUMERIC
}
A, B = tensor("a", "FP32", [2, 2], [1, 2.5, -3, 1e-9]), tensor("b", "INT64", [2], [1, 2])
ORDINARY = {
    **{
        f"echo_{n.lower()}": ("echo_" + n.lower(), document(tensor("x", n, [2, 1], [int(LIMITS[n].min) % 7, 1])))
        for n in NUMERIC
    },
    "largest whole numbers": (
        "echo_uint64",
        document(tensor("x", "UINT64", [1, 2], [2**64 - 1, 0])),
    ),
    "smallest whole numbers": ("echo_int64", document(tensor("x", "INT64", [1, 1], [-(2**63)]))),
    "a number near the largest": ("echo_fp32", document(tensor("x", "FP32", [1, 1], [3.4028234e38]))),
    "a whole number for a float": ("echo_fp64", document(tensor("x", "FP64", [1, 2], [3, -0.0]))),
    "a goal": ("summing", SUM),
    "a version": ("sure/versions/1", SUM),
    "a version behind @": ("sure@1", SUM),
    "confidence and two outputs": ("sure", SUM),
    "several rows": ("sure", document(tensor("x", "FP32", [3, 2], [1, 2, 3, 4, 5, 6]))),
    "an id": ("sure", document(X, id='a "quoted" %s id é')),
    "an empty id": ("sure", document(X, id="")),
    "the longest id": ("sure", document(X, id="i" * 256)),
    "terms": ("sure", document(X, parameters={"deadline_ms": 9000.5, "priority": 3, "user": "u", "max_cost": 10})),
    "no terms": ("sure", document(X, parameters={})),
    "null for terms": ("sure", document(X, parameters=None)),
    "five outputs with odd names and texts": ("several", document(A, B)),
    "the inputs in another order": ("several", document(B, A)),
    "the fields in another order": ("sure", orjson.dumps({"inputs": [dict(reversed(X.items()))], "id": "i"})),
    "as many rows as travel together": ("echo_fp32", document(tensor("x", "FP32", [256, 1], [0.5] * 256))),
    "an extension that raises": ("raising", numbers(1)),
    "an output that JSON does not carry": ("halved", numbers(1)),
    "an output that is not UTF-8": ("not_utf8", numbers(1)),
    "white space": ("sure", b' \n{ "inputs" : [' + orjson.dumps(X, option=orjson.OPT_INDENT_2) + b"]}\t"),
}


@pytest.mark.parametrize("case", ORDINARY)
def test_the_express_answers_like_the_usual_way(gateway: Site, case: str) -> None:
    model, body = ORDINARY[case]
    for _ in range(2):  # as the first of its kind, and as one that is known
        express_, usual, n_usual = both_ways(gateway, model, body)
        assert express_ == usual
        assert n_usual == 1


def test_answers_have_a_trace_id_each(plain: Site) -> None:
    with plain.client() as client:
        seen = set()
        for _ in range(5):
            client.send(http_request("sure", SUM))
            raw = client._file.readline() + b"".join(iter(client._file.readline, b"\r\n"))
            size = int(re.search(rb"content-length: (\d+)", raw).group(1))  # type: ignore[union-attr]
            seen.add(orjson.loads(client._file.read(size))["parameters"]["trace_id"])
        assert len(seen) == 5
        assert all(re.fullmatch("[0-9a-f]{32}", trace) for trace in seen)


def test_requests_that_travel_together_get_their_own_rows_id_and_confidence(gateway: Site) -> None:
    n_clients = 16
    clients = [gateway.client() for _ in range(n_clients)]
    try:
        for i, client in enumerate(clients):
            client.send(http_request("sure", document(tensor("x", "FP32", [1, 2], [i, 100]), id=f"i{i}")))
        for i, client in enumerate(clients):
            answer = orjson.loads(client.receive().body)
            assert answer["id"] == f"i{i}"
            assert answer["outputs"][0]["data"] == [100 + i]
            assert answer["outputs"][1]["data"] == [2 * i, 200]
            assert answer["parameters"]["confidence"] == pytest.approx(1 / (1 + i))
    finally:
        for client in clients:
            client.close()


# ------------------------------------------------------------------------------------------ what is not ordinary

KNOWN = ("echo_int32", document(tensor("x", "INT32", [2, 2], [1, 2, 3, 4])))


def int32(shape: Any, data: Any, **more: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "datatype": "INT32", "shape": shape, "data": data, **more}]})


FLAT = [1, 2, 3, 4]
SERVED = {  # by the usual way, and well
    "a wanted confidence": ("sure", document(X, parameters={"min_confidence": 0.9})),
    "an answer that may lack outputs": ("sure", document(X, parameters={"partial": True})),
    "nested data": ("echo_int32", int32([2, 2], [[1, 2], [3, 4]])),
    "chosen outputs": ("sure", document(X, outputs=[{"name": "twice"}])),
    "binary parameters of a tensor": ("echo_int32", int32([2, 2], FLAT, parameters={"binary_data_size": None})),
    "a null id": ("sure", document(X, id=None)),
    "BOOL": ("echo_bool", document(tensor("x", "BOOL", [1, 2], [True, False]))),
    "BYTES": ("echo_bytes", document(tensor("x", "BYTES", [1, 2], ["a", "é"]))),
    "more rows than travel together": ("echo_fp32", document(tensor("x", "FP32", [300, 1], [0.5] * 300))),
    "a square too large for the type": ("echo_fp64", document(tensor("x", "FP64", [1, 2], [1.7e308, 1.7e308]))),
}
REFUSED = {
    "a number that is infinite": (
        "echo_fp32",
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[1e999]}]}',
    ),
    "NaN": ("echo_fp32", b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1,1],"data":[NaN]}]}'),
    "a number that is infinite as FP32": ("echo_fp32", document(tensor("x", "FP32", [1, 1], [1e39]))),
    "null among numbers": ("echo_fp32", document(tensor("x", "FP32", [1, 1], [None]))),
    "true for a whole number": ("echo_int32", int32([2, 2], [True, 2, 3, 4])),
    "a text for a whole number": ("echo_int32", int32([2, 2], ["1", 2, 3, 4])),
    "a fraction for a whole number": ("echo_int32", int32([2, 2], [1.5, 2, 3, 4])),
    "a float for a whole number": ("echo_int32", int32([2, 2], [1.0, 2, 3, 4])),
    "a whole number out of range": ("echo_int32", int32([2, 2], [2**31, 2, 3, 4])),
    "a huge whole number": ("echo_int32", int32([2, 2], [2**63, 2, 3, 4])),
    "a whole number of thirty digits": (
        "echo_int64",
        b'{"inputs":[{"name":"x","datatype":"INT64","shape":[1,1],"data":[' + b"9" * 30 + b"]}]}",
    ),
    "a negative UINT8": ("echo_uint8", document(tensor("x", "UINT8", [1, 1], [-1]))),
    "true for a float": ("echo_fp32", document(tensor("x", "FP32", [1, 1], [True]))),
    "a text for data": ("echo_int32", int32([2, 2], "1234")),
    "an object for data": ("echo_int32", int32([2, 2], {"0": 1})),
    "too few numbers": ("echo_int32", int32([2, 2], [1, 2, 3])),
    "too many numbers": ("echo_int32", int32([2, 2], [*FLAT, 5])),
    "no numbers": ("echo_int32", int32([0, 2], [])),
    "nested data of another shape": ("echo_int32", int32([2, 2], [[1, 2, 3, 4]])),
    "a shape with true": ("echo_int32", int32([True, 4], FLAT)),
    "a shape with floats": ("echo_int32", int32([2.0, 2.0], FLAT)),
    "a shape with a text": ("echo_int32", int32(["2", 2], FLAT)),
    "a shape that is a text": ("echo_int32", int32("22", FLAT)),
    "a shape that is an object": ("echo_int32", int32({}, FLAT)),
    "a shape that is null": ("echo_int32", int32(None, FLAT)),
    "a negative shape": ("echo_int32", int32([-2, -2], FLAT)),
    "a shape of another rank": ("echo_int32", int32([4], FLAT)),
    "a huge shape": ("echo_int32", int32([2**62, 2**62], [])),
    "a shape beyond 64 bits": ("echo_int32", b'{"inputs":[{"name":"x","datatype":"INT32","shape":[1e30],"data":[]}]}'),
    "another type than the port's": ("echo_int32", document(tensor("x", "INT64", [2, 2], FLAT))),
    "a type that there is not": ("echo_int32", document(tensor("x", "INT33", [2, 2], FLAT))),
    "a type that is no text": ("echo_int32", int32([2, 2], FLAT, datatype=32)),
    "a type that is a list": ("echo_int32", int32([2, 2], FLAT, datatype=["INT32"])),
    "FP16": ("echo_fp16", document(tensor("x", "FP16", [1, 1], [1.0]))),
    "a name that is a number": ("echo_int32", int32([2, 2], FLAT, name=1)),
    "a name that is a list": ("echo_int32", int32([2, 2], FLAT, name=["x"])),
    "an empty name": ("echo_int32", int32([2, 2], FLAT, name="")),
    "an unknown name": ("echo_int32", int32([2, 2], FLAT, name="y")),
    "no name": ("echo_int32", b'{"inputs":[{"datatype":"INT32","shape":[1,1],"data":[1],"parameters":{}}]}'),
    "the same name twice": ("sure", document(X, X)),
    "one input too many": ("sure", document(X, {**X, "name": "z"})),
    "one input too few": ("several", document(A)),
    "inputs of different lengths": ("several", document(A, tensor("b", "INT64", [1], [1]))),
    "an unknown field of a tensor": ("echo_int32", int32([2, 2], FLAT, colour="red")),
    "an unknown field instead of data": (
        "echo_int32",
        b'{"inputs":[{"name":"x","datatype":"INT32","shape":[2,2],"d":[1]}]}',
    ),
    "parameters instead of data": (
        "echo_int32",
        b'{"inputs":[{"name":"x","datatype":"INT32","shape":[2,2],"parameters":{"binary_data_size":16}}]}',
    ),
    "an unknown field": ("sure", document(X, colour="red")),
    "an unknown parameter": ("sure", document(X, parameters={"dedline_ms": 3})),
    "a parameter of a wrong type": ("sure", document(X, parameters={"priority": True})),
    "parameters that are a list": ("sure", document(X, parameters=[])),
    "terms that cannot be met": ("sure", document(X, parameters={"deadline_ms": 0.001})),
    "an id that is a number": ("sure", document(X, id=1)),
    "an id that is too long": ("sure", document(X, id="i" * 257)),
    "no inputs": ("sure", b'{"inputs":[]}'),
    "inputs that are an object": ("sure", b'{"inputs":{"a":1}}'),
    "inputs that are an empty object": ("sure", b'{"inputs":{}}'),
    "inputs that are texts": ("sure", b'{"inputs":["abcd"]}'),
    "inputs that are a text": ("sure", b'{"inputs":"abcd"}'),
    "inputs that are null": ("sure", b'{"inputs":null}'),
    "inputs that are lists": ("sure", b'{"inputs":[[1,2,3,4]]}'),
    "no inputs at all": ("sure", b"{}"),
    "a list": ("sure", b'["inputs"]'),
    "a text": ("sure", b'"inputs"'),
    "a number": ("sure", b"1"),
    "null": ("sure", b"null"),
    "nothing": ("sure", b""),
    "half a document": ("sure", SUM[:-3]),
    "two documents": ("sure", SUM + SUM),
    "bytes that are not UTF-8": ("sure", b'{"inputs":"\xff"}'),
    "an unknown model": ("nobody", SUM),
    "an unknown version": ("sure/versions/9", SUM),
    "a version of a goal": ("summing/versions/9", SUM),
    "a goal's missing input": ("summing", document(tensor("z", "FP32", [1, 2], [1, 2]))),
}
assert len(set(SERVED) & set(REFUSED)) == 0


@pytest.mark.parametrize("case", [*SERVED, *REFUSED])
def test_what_is_not_ordinary_takes_the_usual_way(plain: Site, case: str) -> None:
    with plain.client() as client:  # kinds that look much like it are known
        for model, body in (KNOWN, ("sure", SUM), ("several", document(A, B))):
            assert client.ask(http_request(model, body)).status == 200
    model, body = {**SERVED, **REFUSED}[case]
    first, second, n_usual = both_ways(plain, model, body)
    assert first == second
    assert (first.status == 200) == (case in SERVED), first.body
    assert n_usual in ((2,) if case in SERVED else (0, 2))  # a body that does not decode reaches no engine


_NUMBERS = st.one_of(
    st.integers(-3, 3),
    st.floats(-4, 4),
    st.sampled_from([None, True, "1", 1e39, 1e300, 2**31, 2**63, -(2**63), [], [1]]),
)
_SHAPES = st.one_of(
    st.lists(st.integers(0, 3), max_size=3),
    st.sampled_from([[1, 2], [1, 2], [2, 2], [1.0, 2], [True, 2], "12", None, {}]),
)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Any]:
    plain = {
        "name": draw(st.sampled_from(["x", "x", "x", "y", "", 1])),
        "datatype": draw(st.sampled_from(["FP32", "FP32", "FP32", "FP64", "INT32", "BYTES", "fp32", 1])),
        "shape": draw(_SHAPES),
        "data": draw(st.one_of(st.lists(st.floats(-4, 4), min_size=2, max_size=2), st.lists(_NUMBERS, max_size=5))),
    }
    for name in draw(st.sets(st.sampled_from(["name", "data", "shape", "colour"]), max_size=1)):
        if plain.pop(name, None) is None:
            plain[name] = 1
    return plain


documents = st.fixed_dictionaries(
    {"inputs": st.one_of(st.lists(tensors(), min_size=1, max_size=2), st.sampled_from([None, {}, [[]], "x"]))},
    optional={
        "id": st.sampled_from(["a", "", None, 1]),
        "parameters": st.sampled_from([{}, None, {"priority": 1}, {"priority": "1"}, {"prio": 1}, [], {"user": "u"}]),
        "outputs": st.sampled_from([[], [{"name": "y"}], None]),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(document=documents)
def test_both_ways_say_the_same_of_whatever_is_sent(plain: Site, document: dict[str, Any]) -> None:
    body = orjson.dumps(document)
    with plain.client() as client:
        assert client.ask(http_request("sure", body)) == client.ask(http_request("sure", body, USUAL))


# ------------------------------------------------------------------------------------------------ how it is said


@pytest.mark.parametrize(
    ("request_", "n_usual"),
    [
        (http_request("sure", SUM), 0),
        (http_request("sure", SUM).replace(b"content-type: application/json\r\n", b""), 0),
        (http_request("sure", SUM, JSON, b"Accept: */*", b"user-agent: u"), 0),
        (http_request("sure", SUM, USUAL), 1),
        (http_request("sure", SUM, b"application/octet-stream"), 1),
        (http_request("sure", SUM, JSON, b"X-Request-Id: "), 1),
        (http_request("sure", SUM, JSON, b"inference-header-content-length: %d" % len(SUM)), 1),
        (http_request("sure", SUM, JSON, b"content-encoding: identity"), 1),
        (http_request("%73ure", SUM), 1),
        (http_request("sure", SUM).replace(b"/infer ", b"/infer?a=b "), 1),
    ],
)
def test_headers_and_paths_that_mean_more_than_usual_take_the_usual_way(
    plain: Site, request_: bytes, n_usual: int
) -> None:
    before = plain.engine.n_usual
    with plain.client() as client:
        got = client.ask(request_)
        assert (got.status, got.values) == (200, [-0.5])
        assert client.ask(http_request("sure", SUM)).body == got.body
    assert plain.engine.n_usual - before == n_usual


def test_media_that_are_not_served_are_refused(plain: Site) -> None:
    with plain.client() as client:
        got = client.ask(http_request("sure", SUM, b"text/plain"))
        assert (got.status, got.headers["fenix-error"]) == (415, "WrongMedia")


def test_a_client_that_waits_to_be_asked_for_its_body_is_asked(plain: Site) -> None:
    with plain.client() as client:
        request = http_request("sure", SUM, JSON, b"expect: 100-continue")
        client.send(request[: -len(SUM)])
        assert client._file.readline() == b"HTTP/1.1 100 Continue\r\n"
        assert client._file.readline() == b"\r\n"
        assert client.ask(SUM).values == [-0.5]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_chunked_body_is_read_whole(plain: Site, size: int) -> None:
    pieces = [SUM[i : i + size] for i in range(0, len(SUM), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    head = b"POST %s HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n" % target("sure")
    with plain.client() as client:
        for _ in range(2):
            assert client.ask(head + chunks + b"0\r\n\r\n").values == [-0.5]


def test_a_chunked_body_may_turn_out_too_large_for_the_express(plain: Site) -> None:
    body = document(tensor("x", "FP32", [8, 2_000], [0.25] * 16_000))
    head = b"POST %s HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n" % target("echo_fp32")
    before = plain.engine.n_usual
    with plain.client() as client:
        assert len(body) > express.MOST_BYTES
        got = client.ask(head + b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body))
        assert got.values == [0.25] * 16_000
        assert got == client.ask(http_request("echo_fp32", body))
    assert plain.engine.n_usual - before == 2


def test_a_request_may_come_in_many_packets(plain: Site) -> None:
    before = plain.engine.n_usual
    with plain.client() as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for byte in http_request("sure", SUM):
            client.send(bytes([byte]))
        assert client.receive().values == [-0.5]
    assert plain.engine.n_usual == before


def test_http_1_0_is_answered_and_closed(plain: Site) -> None:
    with plain.client() as client:
        assert client.ask(http_request("sure", SUM, version=b"HTTP/1.0")).values == [-0.5]
        assert client.is_closed()


def test_a_connection_is_kept_unless_the_client_wants_it_closed(plain: Site) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", plain.server.port, timeout=LONG_S)
    for _ in range(3):
        connection.request("POST", target("sure").decode(), SUM, {"content-type": "application/json"})
        assert connection.getresponse().read()
    socket_ = connection.sock
    assert socket_ is not None
    connection.close()
    with plain.client() as client:
        for model in ("sure", "raising", "nobody"):
            body = SUM if model != "raising" else numbers(1)
            assert "connection" not in client.ask(http_request(model, body)).headers
        got = client.ask(http_request("sure", SUM, JSON, b"connection: close"))
        assert got.headers["connection"] == "close"
        assert client.is_closed()


def test_what_comes_behind_a_last_request_is_not_answered(plain: Site) -> None:
    with plain.client() as client:
        last = http_request("sure", SUM, JSON, b"connection: close")
        assert client.ask(last + http_request("sure", SUM)).values == [-0.5]
        assert client.is_closed()


def test_a_malformed_request_behind_an_ordinary_one_is_told_so(plain: Site) -> None:
    with plain.client() as client:
        assert client.ask(http_request("sure", SUM)).status == 200
        client.send(b"NOT HTTP\r\n\r\n")
        assert client._file.readline() == b"HTTP/1.1 400 Bad Request\r\n"
        assert b"malformed HTTP request." in client._file.read()


# ------------------------------------------------------------------------------------------------- one behind another


@pytest.mark.parametrize("kinds", ["ee", "eu", "ue", "euue", "ueeuxe", "xeu"])
def test_pipelined_requests_are_answered_in_their_order(gateway: Site, kinds: str) -> None:
    """e takes the express, u the usual way, x is refused."""
    sent = b""
    for i, kind in enumerate(kinds):
        body = document(tensor("x", "FP32", [1, 2], [i, 0]), id=str(i))
        sent += http_request("nobody" if kind == "x" else "sure", body, USUAL if kind == "u" else JSON)
    with gateway.client() as client:
        client.send(sent)
        for i, kind in enumerate(kinds):
            got = client.receive()
            if kind == "x":
                assert got.status == 404
            else:
                assert (orjson.loads(got.body)["id"], got.values) == (str(i), [i])
        assert client.ask(http_request("sure", SUM)).values == [-0.5]


@pytest.mark.parametrize("media", [JSON, USUAL], ids=["express", "usual"])
@pytest.mark.parametrize("behind", [JSON, USUAL], ids=["express", "usual"])
def test_a_fast_request_waits_for_the_slow_one_before_it(media: bytes, behind: bytes) -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running, running.client() as client:
        client.send(http_request("gate", numbers(7), media))
        assert gate.begun.wait(LONG_S)
        client.send(http_request("sure", SUM, behind) * 2)
        client.socket.settimeout(0.05)
        with pytest.raises(TimeoutError):
            client.socket.recv(1, socket.MSG_PEEK)
        client.socket.settimeout(LONG_S)
        gate.open.set()
        assert [client.receive().values for _ in range(3)] == [[7], [-0.5], [-0.5]]


# --------------------------------------------------------------------------------------------- who leaves, who waits


def under_way(running: Site) -> int:
    return sum(len(convoy._under_way) for convoy in running.engine._convoys.values())


def test_a_client_that_leaves_ends_what_was_begun_for_it_and_makes_room() -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)], limits=Limits(max_concurrent=1)) as running:
        with running.client() as leaver:
            leaver.send(http_request("gate", numbers(7)))
            assert gate.begun.wait(LONG_S)
            with running.client() as client:
                assert client.ask(http_request("sure", SUM)).status == 503
        running.until(lambda: under_way(running) == 0)
        assert not gate.open.is_set()
        with running.client() as client:
            assert client.ask(http_request("sure", SUM)).status == 200
        gate.open.set()


def test_a_client_that_leaves_takes_nobody_along() -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running:
        leavers = [running.client() for _ in range(3)]
        with running.client() as stays:
            for i, client in enumerate([leavers[0], leavers[1], stays, leavers[2]]):
                client.send(http_request("gate", numbers(i)))
            assert gate.begun.wait(LONG_S)
            for leaver in leavers:
                leaver.close()
            running.until(lambda: len(running.server._server.server_state.connections) == 1)
            gate.open.set()
            assert stays.receive().values == [2]


def test_a_client_that_leaves_in_the_middle_of_a_body_leaves_nothing(plain: Site) -> None:
    before = plain.engine.n_usual, len(plain.engine.tokens)
    with plain.client() as client:
        client.send(http_request("sure", SUM)[:-5])
        plain.until(lambda: len(plain.server._server.server_state.connections) == 1)
    plain.until(lambda: not plain.server._server.server_state.connections)
    assert (plain.engine.n_usual, len(plain.engine.tokens)) == before


def test_both_ways_share_one_limit_of_requests_under_way() -> None:
    gate = Gate()
    with (
        site(more=[(gate_card(), gate)], limits=Limits(max_concurrent=2)) as running,
        running.client() as one,
        running.client() as two,
        running.client() as three,
    ):
        one.send(http_request("gate", numbers(1)))
        two.send(http_request("gate", numbers(2), USUAL))
        running.until(lambda: len(running.engine.tokens) + running.engine.n_usual >= 2)
        for media in (JSON, USUAL):
            got = three.ask(http_request("sure", SUM, media))
            assert (got.status, got.headers["fenix-error"]) == (503, "Overloaded")
            assert got.headers["retry-after"] == "1"
        gate.open.set()
        assert (one.receive().values, two.receive().values) == ([1], [2])
        assert three.ask(http_request("sure", SUM)).status == 200


def test_a_client_that_takes_no_answers_does_not_fill_the_memory() -> None:
    with site() as running:
        client = Client(running.server.port, receive_bytes=4096)
        with client:
            state = running.server._server.server_state
            for _ in range(20):
                client.send(http_request("wide", numbers(1)))
                n_seen, ends_s = len(running.engine.tokens), time.monotonic() + 0.05
                while len(running.engine.tokens) == n_seen and time.monotonic() < ends_s:
                    time.sleep(0.002)
            (connection,) = state.connections
            assert connection.transport.get_write_buffer_size() < 4_000_000
            assert len(running.engine.tokens) < 20


# ----------------------------------------------------------------------------------------------------- the end of it


def stop(running: Site, grace_s: float) -> asyncio.Future[None]:
    return asyncio.run_coroutine_threadsafe(running.server.stop(grace_s), running.loop.loop)  # type: ignore[return-value]


def test_requests_under_way_are_answered_when_the_server_stops() -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running, running.client() as client, running.client() as idle:
        assert idle.ask(http_request("sure", SUM)).status == 200
        client.send(http_request("gate", numbers(7)))
        assert gate.begun.wait(LONG_S)
        stopping = stop(running, LONG_S)
        assert idle.is_closed()
        gate.open.set()
        got = client.receive()
        assert (got.values, got.headers["connection"]) == ([7], "close")
        stopping.result(LONG_S)


def test_a_body_that_is_still_coming_when_the_server_stops_is_answered() -> None:
    with site() as running, running.client() as client, running.client() as idle:
        assert idle.ask(http_request("sure", SUM)).status == 200
        request = http_request("sure", SUM)
        client.send(request[:-5])
        running.until(lambda: any(c._held for c in running.server._server.server_state.connections))
        stopping = stop(running, LONG_S)
        assert idle.is_closed()
        client.send(request[-5:])
        assert client.receive().values == [-0.5]
        stopping.result(LONG_S)


@pytest.mark.parametrize("media", [JSON, USUAL], ids=["express", "usual"])
def test_who_is_not_answered_in_time_for_the_stop_is_told_so(media: bytes) -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running, running.client() as client:
        client.send(http_request("gate", numbers(7), media))
        assert gate.begun.wait(LONG_S)
        stop(running, 0.1).result(LONG_S)
        got = client.receive()
        assert (got.status, got.headers["fenix-error"]) == (503, "Overloaded")
        assert client.is_closed()
        running.until(lambda: under_way(running) == 0)
        gate.open.set()


# ------------------------------------------------------------------------------------------------ terms and catalogue


def test_a_deadline_in_the_parameters_is_kept() -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running, running.client() as client:
        began_s = time.monotonic()
        got = client.ask(http_request("gate", numbers(7, parameters={"deadline_ms": 60})))
        assert (got.status, got.headers["fenix-error"]) == (504, "DeadlineExceeded")
        assert time.monotonic() - began_s >= 0.058
        gate.open.set()


def test_an_answer_that_comes_after_the_deadline_is_none_on_either_way() -> None:
    def slow(rows: Mapping[str, Array]) -> dict[str, Rows]:
        time.sleep(0.05)
        return {"y": Rows(rows["x"])}

    with site(more=[(gate_card("slow"), slow)], inline=True) as running:
        got, usual, n_usual = both_ways(running, "slow", numbers(7, parameters={"deadline_ms": 30}))
        assert (got.status, got.headers["fenix-error"]) == (504, "DeadlineExceeded")
        assert got.status == usual.status
        assert n_usual == 1


def test_deadline_priority_and_user_go_along(plain: Site) -> None:
    with plain.client() as client:
        terms = {"deadline_ms": 5000, "priority": 2, "user": "ada", "tags": "pii"}
        first = client.ask(http_request("sure", document(X, parameters=terms)))
        token = plain.engine.tokens[-1]
        assert first.status == 200
        assert (token.priority, token.user, token.tags, token.hard) == (2, "ada", {"pii"}, True)
        assert client.ask(http_request("sure", SUM)).status == 200
        token = plain.engine.tokens[-1]
        assert (token.priority, token.user, token.tags, token.hard) == (5, "", frozenset(), False)


def test_requests_of_different_users_do_not_travel_together() -> None:
    gate = Gate()
    with site(more=[(gate_card(), gate)]) as running, running.client() as one, running.client() as two:
        for client, user in ((one, "ada"), (two, "bob")):
            client.send(http_request("gate", numbers(7, parameters={"user": user})))
        running.until(lambda: len(running.engine.tokens) == 2)
        assert {token.user for token in running.engine.tokens} == {"ada", "bob"}
        gate.open.set()
        assert one.receive().values == two.receive().values == [7]


def test_a_changed_catalogue_is_honoured_at_once() -> None:
    twice = Card("sure", "2", (Port("x", TWO),), (Port("twice", TWO),))
    with site(more=[(twice, lambda rows: {"twice": Rows(rows["x"] * 2)})]) as running, running.client() as client:
        old = next(card for card, _ in extensions() if card.name == "sure")
        running.follow(old, epoch=2)
        for _ in range(2):
            assert client.ask(http_request("sure", SUM)).values == [-0.5]
        running.follow(twice, epoch=3)
        for _ in range(2):
            got = client.ask(http_request("sure", SUM))
            assert orjson.loads(got.body)["model_version"] == "2"
            assert got.values == [3, -4]
        running.follow(epoch=4)
        assert client.ask(http_request("sure", SUM)).status == 404
        running.follow(twice, epoch=5)
        assert client.ask(http_request("sure", SUM)).values == [3, -4]


class Told:
    """A reply that is kept."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.errors: list[FenixError] = []
        self._more = asyncio.Event()

    def answer(self, body: bytes) -> None:
        self.bodies.append(body)
        self._more.set()

    def refuse(self, error: FenixError) -> None:
        self.errors.append(error)
        self._more.set()

    async def all(self, n_replies: int) -> None:
        async with asyncio.timeout(LONG_S):
            while len(self.bodies) + len(self.errors) < n_replies:
                self._more.clear()
                await self._more.wait()


def test_the_table_of_kinds_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(express, "MOST_KINDS", 5)

    async def scenario() -> None:
        engine = Watched(LocalCalls({card.id: work for card, work in extensions()}))
        await engine.follow(Catalogue.of((card for card, _ in extensions()), epoch=1))
        load, told = Load(1000), Told()
        line = Express(engine, Limits(), load)
        for i in range(23):
            assert line.take(("sure", ""), document(X, parameters={"user": f"u{i}"}), told) is not None
            assert 0 < len(line._kinds) <= 5
            for bad in (b"{}", document({**X, "name": f"n{i}"}), document(X, parameters={f"p{i}": 1})):
                assert line.take(("sure", ""), bad, told) is None
        await told.all(23)
        assert len(told.bodies) == 23
        assert told.errors == []

    asyncio.run(scenario())


def test_answers_are_forgotten_once_they_are_told() -> None:
    made: list[weakref.ref[Array]] = []

    def work(rows: Mapping[str, Array]) -> dict[str, Rows]:
        y = rows["x"] + 1
        made.append(weakref.ref(y))
        return {"y": Rows(y)}

    async def scenario() -> None:
        card = gate_card()
        engine = Watched(LocalCalls({card.id: work}))
        await engine.follow(Catalogue.of((card,), epoch=1))
        load, told = Load(1000), Told()
        line = Express(engine, Limits(), load)
        for i in range(10):
            line.take(("gate", ""), numbers(1, parameters={"user": f"u{i}"}), told)
            await told.all(i + 1)
        assert len(told.bodies) == 10
        gc.collect()
        assert sum(ref() is not None for ref in made) <= 2  # the last one, and the one whose turn it was

    asyncio.run(scenario())


def test_a_failed_answer_does_not_garble_the_next(plain: Site) -> None:
    with plain.client() as client:
        good = client.ask(http_request("sure", SUM))
        for model in ("halved", "not_utf8"):
            assert client.ask(http_request(model, numbers(1))).status == 400
            assert client.ask(http_request("sure", SUM)) == good


def test_requests_leave_nothing_behind() -> None:
    with site() as running, running.client() as client:
        for i in range(300):
            body = numbers(1) if i % 3 == 0 else SUM
            client.ask(http_request("raising" if i % 3 == 0 else "sure", body))
        async_tasks = running.loop.run(_tasks())
        assert async_tasks == 0
        assert under_way(running) == 0
        assert all(not c._waiting and c._timer is None for c in running.engine._convoys.values())


async def _tasks() -> int:
    """Tasks of the loop that belong to requests."""
    await asyncio.sleep(0.01)
    return sum("_go" in repr(task) or "run_asgi" in repr(task) for task in asyncio.all_tasks())
