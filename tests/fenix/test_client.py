"""One suite for both clients, against a gateway that really listens."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
import pytest

import fenix
from fenix.client import AsyncClient, Client, cast
from planner import errors
from planner.features import DATATYPES
from planner.goals import Terms
from tests.deployments.gateway.engines import Served, served_http

KINDS = ("sync", "async")


class Blocking:
    """An AsyncClient whose methods wait, so that one suite serves both clients."""

    def __init__(self, *given: Any, **options: Any) -> None:
        self._client = AsyncClient(*given, **options)
        self._loop = asyncio.new_event_loop()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        return lambda *given, **options: self._loop.run_until_complete(getattr(self._client, name)(*given, **options))

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *exception: object) -> None:
        self._loop.run_until_complete(self._client.close())
        self._loop.close()


def opened(kind: str, url: str, **options: Any) -> Any:
    return (Client if kind == "sync" else Blocking)(url, **options)


@pytest.fixture(scope="module")
def gateway() -> Iterator[Served]:
    with served_http() as served:
        yield served


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, gateway: Served) -> Iterator[Any]:
    with opened(request.param, f"http://{gateway.address}") as one:
        yield one


def rows(datatype: str) -> np.ndarray:
    """Two rows of three values that show a wrong order of bytes or of axes."""
    if datatype == "BYTES":
        return np.array([[b"a", b"", "hé".encode()], [b"\x00\xff", b"long" * 100, b"z"]], dtype=object)
    return (np.arange(6).reshape(2, 3) % (2 if datatype == "BOOL" else 99)).astype(DATATYPES[datatype])


class TestInfer:
    @pytest.mark.parametrize("datatype", DATATYPES)
    def test_every_datatype_comes_back_as_it_was_sent(self, client: Any, datatype: str) -> None:
        sent = rows(datatype)
        result = client.infer(f"echo_{datatype.lower()}", {"x": sent})
        assert result["y"].dtype == sent.dtype
        np.testing.assert_array_equal(result["y"], sent)

    def test_says_how_the_answer_came_about(self, client: Any) -> None:
        result = client.infer("doubling", {"x": np.ones((2, 3), np.float32)}, id="r7")
        assert (result.model, result.version, result.id) == ("doubling", "1", "r7")
        assert (result.confidence, result.plan, result.trace_id, result.flags) == (0.75, "p-double", "t1", frozenset())
        assert result.parameters["plan"] == "p-double"

    def test_says_which_outputs_are_missing_and_why(self) -> None:
        from fenix.client import _missing

        assert _missing({"missing": '{"label": "gone"}'}) == {"label": "gone"}
        assert _missing({}) == _missing({"missing": 3}) == _missing({"missing": "two of them"}) == {}

    def test_one_array_will_do_where_there_is_one_input(self, client: Any) -> None:
        np.testing.assert_array_equal(client.infer("doubling", np.ones((1, 2), np.float32))["y"], [[2.0, 2.0]])

    def test_lists_become_arrays_of_the_inputs_datatype(self, client: Any) -> None:
        np.testing.assert_array_equal(client.infer("doubling", [[1, 2]])["y"], [[2.0, 4.0]])
        np.testing.assert_array_equal(client.infer("echo_bytes", {"x": [["a", "b"]]})["y"], [[b"a", b"b"]])
        with pytest.raises(errors.BadInput, match="do not fit into INT8"):
            client.infer("echo_int8", [[1.5]])
        with pytest.raises(errors.BadInput, match="ragged"):
            client.infer("doubling", [[1], [2, 3]])

    def test_arrays_are_never_cast_behind_your_back(self, client: Any) -> None:
        with pytest.raises(errors.BadInput, match="FP64"):
            client.infer("doubling", {"x": np.ones((1, 2))})

    def test_selects_outputs_and_the_confidence_of_each_row(self, client: Any) -> None:
        result = client.infer("doubling", np.ones((2, 1), np.float32), outputs=["y.confidence"])
        assert set(result.outputs) == {"y.confidence"}
        np.testing.assert_allclose(result["y.confidence"], [0.75, 0.75])

    def test_large_arrays_travel_as_binary(self, client: Any) -> None:
        sent = np.random.default_rng(0).random((1000, 1000), np.float32)
        np.testing.assert_array_equal(client.infer("doubling", sent)["y"], sent * 2)

    @pytest.mark.parametrize(
        ("terms", "arrive"),
        [
            (Terms(deadline_ms=500.0, tags=frozenset({"pii", "eu"})), {"deadline_ms": 500.0, "tags": ["eu", "pii"]}),
            ({"max_cost": 2, "tags": "pii, eu", "user": None}, {"max_cost": 2, "tags": ["pii", "eu"]}),
            ({"priority": 0}, {"priority": 0}),
            (Terms(priority=0, user="ann"), {"priority": 0, "user": "ann"}),
            (None, {}),
        ],
    )
    def test_terms_arrive_as_they_were_meant(self, client: Any, gateway: Served, terms: Any, arrive: Any) -> None:
        client.infer("doubling", np.ones((1, 1), np.float32), terms=terms, id="r8")
        assert gateway.engine.seen[-1].terms == arrive
        assert gateway.engine.seen[-1].id == "r8"

    def test_versions_are_asked_for_by_number(self, client: Any) -> None:
        assert client.infer("double", np.ones((1, 1), np.float32), version="1").version == "1"
        with pytest.raises(errors.NotFound):
            client.infer("double", np.ones((1, 1), np.float32), version="2")
        with pytest.raises(errors.NotFound):
            client.infer("double", [[1]], version="2")


class TestOtherWaysToAsk:
    def test_by_sentence(self, client: Any) -> None:
        np.testing.assert_array_equal(client.ask("double it", {"x": np.ones((1, 2), np.float32)})["y"], [[2.0, 2.0]])
        np.testing.assert_array_equal(client.ask("double it", {"x": [[1, 2]]})["y"], [[2.0, 4.0]])

    def test_a_sentence_with_much_data_finds_its_goal_first_and_then_sends_binary(
        self, client: Any, gateway: Served
    ) -> None:
        sent = np.random.default_rng(0).random((100, 1000), np.float32)
        np.testing.assert_array_equal(client.ask("double it", {"x": sent})["y"], sent * 2)
        assert (gateway.engine.seen[-1].model, gateway.engine.seen[-1].sentence) == ("doubling", "")

    def test_by_wanted_features(self, client: Any, gateway: Served) -> None:
        values = np.ones((1, 2), np.float32)
        result = client.want("vector/out", {"x": values}, types={"x": "vector"}, outputs=["y"])
        np.testing.assert_array_equal(result["y"], [[2.0, 2.0]])
        assert gateway.engine.seen[-1].types == {"x": "vector"}
        assert [step["extension"] for step in result.steps] == ["double@1"]

    def test_what_json_cannot_carry_is_refused_with_the_way_out(self, client: Any) -> None:
        for values in (np.ones((1, 1), np.float16), np.array([[b"\xff"]], dtype=object)):
            with pytest.raises(errors.BadInput) as caught:
                client.want("vector/out", {"x": values})
            assert "goal's name" in caught.value.hint
        with pytest.raises(errors.BadInput, match="NaN or infinity in row 1"):
            client.want("vector/out", {"x": np.array([[1.0], [np.nan]], np.float32)})

    def test_plans_are_explained_without_running(self, client: Any, gateway: Served) -> None:
        ran = len(gateway.engine.seen)
        for explanation in (
            client.plan("doubling"),
            client.plan("doubling", {"x": [[1], [2]]}),
            client.plan(sentence="double it", terms={"deadline_ms": 100}),
            client.plan(wanted="vector/out", inputs={"x": np.ones((4, 2), np.float32)}, types={"x": "vector"}),
        ):
            assert explanation["chosen"]["id"] == "p-double"
            assert explanation["rejected"][0]["reason"] == "dearer"
        assert len(gateway.engine.seen) == ran


class TestCatalogue:
    def test_lists_and_describes(self, client: Any, gateway: Served) -> None:
        assert {card["id"] for card in client.extensions()} == set(gateway.engine.catalogue.cards)
        assert [goal["name"] for goal in client.goals()] == ["doubling"]
        assert client.extension("double@1")["name"] == client.extension("double")["name"] == "double"
        assert client.goal("doubling")["description"] == "Twice as much."
        assert client.model("doubling")["inputs"] == [{"name": "x", "datatype": "FP32", "shape": [-1, -1]}]

    def test_reads_all_pages(self, client: Any, gateway: Served, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("fenix.client._PAGE", 4)
        assert len(client.extensions()) == len(gateway.engine.catalogue.cards) > 8

    def test_health_is_yes_or_no(self, client: Any, gateway: Served) -> None:
        assert client.health() is True
        gateway.engine.is_ready = False
        try:
            assert client.health() is False
        finally:
            gateway.engine.is_ready = True


class TestErrors:
    @pytest.mark.parametrize(
        ("ask", "kind", "says"),
        [
            (lambda c: c.infer("doubling", {"z": np.ones((1, 1), np.float32)}), errors.BadInput, "no input 'z'"),
            (lambda c: c.infer("doublin", [[1]]), errors.NotFound, "Nearest: doubling"),
            (lambda c: c.infer("a b/c?d", {"x": np.ones((1, 1))}), errors.NotFound, "a b/c"),
            (lambda c: c.infer("doubling", [[1]], terms={"priorty": 1}), errors.BadTerms, "priority"),
            (lambda c: c.infer("doubling", [[1]], outputs=["z"]), errors.BadRequest, "no output 'z'"),
            (lambda c: c.infer("raising", [[1]]), errors.FenixError, "internal error"),
            (lambda c: c.infer("", [[1]]), errors.BadRequest, "empty"),
            (lambda c: c.ask("fly me", {"x": np.ones((1, 1), np.float32)}), errors.Unsure, "Nearest: doubling"),
            (lambda c: c.want("moon", {"x": np.ones((1, 1), np.float32)}), errors.NoPlan, "vector/out"),
            (lambda c: c.plan(), errors.BadRequest, "exactly one way"),
            (lambda c: c.goal("nope"), errors.NotFound, "nope"),
        ],
    )
    def test_are_those_of_the_gateway(self, client: Any, ask: Any, kind: type[Exception], says: str) -> None:
        with pytest.raises(kind) as caught:
            ask(client)
        assert type(caught.value) is kind
        assert says in caught.value.text()

    def test_a_full_queue_says_when_to_come_back(self, client: Any) -> None:
        with pytest.raises(errors.Overloaded) as caught:
            client.infer("full", [[1]])
        assert caught.value.retry_after_s == 3.0  # 2.5 in whole seconds

    @pytest.mark.parametrize("kind", KINDS)
    def test_nobody_there(self, kind: str) -> None:
        with opened(kind, "http://127.0.0.1:1") as client:
            for ask in (client.goals, lambda: client.infer("x", [[1]]), lambda: client.plan("x")):
                with pytest.raises(errors.ClusterDown) as caught:
                    ask()
                assert "http://127.0.0.1:1" in caught.value.message
                assert "fenix up" in caught.value.hint
            assert client.health() is False

    @pytest.mark.parametrize("kind", KINDS)
    def test_an_answer_that_does_not_come(self, kind: str, gateway: Served) -> None:
        with opened(kind, f"http://{gateway.address}", timeout_s=0.3) as client:
            with pytest.raises(errors.DeadlineExceeded, match=r"within 0\.3 s"):
                client.infer("hanging", {"x": np.ones((1, 1), np.float32)})
            assert client.health() is True

    @pytest.mark.parametrize("kind", KINDS)
    @pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x"])
    def test_no_address(self, kind: str, url: str) -> None:
        with pytest.raises(errors.BadRequest, match="no address"):
            opened(kind, url)

    @pytest.mark.parametrize("kind", KINDS)
    def test_a_server_that_is_no_gateway(self, kind: str) -> None:
        with other_server() as url, opened(kind, url) as client:
            with pytest.raises(errors.ClusterDown, match="no Fenix gateway"):
                client.goals()
            with pytest.raises(errors.ExtensionBroken, match="not Open Inference"):
                client.infer("x", {"x": np.ones((1, 1))})
            with pytest.raises(errors.BadRequest, match="answered 400"):
                client.goal("teapot")
            assert client.health() is False

    def test_a_model_that_changed_is_looked_up_again(self, client: Any) -> None:
        client.infer("doubling", [[1]])
        wire = (client._client if isinstance(client, Blocking) else client)._wire
        wire._inputs_of[("doubling", "")] = [{"name": "old", "datatype": "FP32", "shape": [-1, -1]}]
        with pytest.raises(errors.BadInput):
            client.infer("doubling", [[1]])
        np.testing.assert_array_equal(client.infer("doubling", [[1]])["y"], [[2.0]])


@contextmanager
def other_server() -> Iterator[str]:
    """An HTTP server that answers GET and POST with a page of its own, and /v1/goals/teapot with 400."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", 0)))
            body = b"<html>hello</html>"
            self.send_response(400 if self.path.endswith("teapot") else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_both_clients_have_the_same_methods() -> None:
    def methods(kind: type) -> dict[str, inspect.Signature]:
        return {name: inspect.signature(f) for name, f in vars(kind).items() if name[0] != "_" and callable(f)}

    assert methods(Client) == methods(AsyncClient)
    assert all(inspect.iscoroutinefunction(getattr(AsyncClient, name)) for name in methods(AsyncClient))


def test_the_async_client_carries_many_requests_at_once(gateway: Served) -> None:
    async def ask_all() -> list[fenix.Result]:
        async with fenix.AsyncClient(f"http://{gateway.address}") as client:
            return await asyncio.gather(*(client.infer("doubling", np.full((1, 1), n, np.float32)) for n in range(50)))

    assert [float(result["y"][0, 0]) for result in asyncio.run(ask_all())] == [2.0 * n for n in range(50)]


def test_casting_keeps_what_it_can_and_refuses_what_it_cannot() -> None:
    assert cast("x", [1, 2], "FP32").dtype == np.float32
    assert cast("x", np.array([1.0, 2.0]), "INT64").tolist() == [1, 2]
    assert cast("x", [True], "BOOL").dtype == np.bool_
    assert cast("x", ["a"], "BYTES").dtype == object
    assert cast("x", [1, 2]).dtype == np.int64
    for values, datatype in (([1.5], "INT8"), ([300], "UINT8"), ([-1], "UINT64"), (["a"], "FP32"), ([2], "BOOL")):
        with pytest.raises(errors.BadInput, match="'x'"):
            cast("x", values, datatype)


def test_public_names_are_all_there_and_imported_on_use_only() -> None:
    import subprocess
    import sys

    for name in fenix.__all__:
        assert getattr(fenix, name) is not None
        assert name in dir(fenix)
    with pytest.raises(AttributeError, match="nope"):
        _ = fenix.nope
    code = "import fenix, sys; print([m for m in ('numpy', 'httpx', 'ray', 'torch') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
