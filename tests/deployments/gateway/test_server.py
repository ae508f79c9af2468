from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
import time

import orjson
import pytest

from deployments.gateway.limits import Limits
from deployments.gateway.server import serve_grpc, serve_http
from planner.errors import BadCard
from tests.deployments.gateway.engines import NumpyEngine, Served, loop_thread, served_http

X = {"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [1, 2]}
BODY = orjson.dumps({"inputs": [X]})
HEAD = b"POST /v2/models/%b/infer HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n"
IMPATIENT = Limits(read_timeout_s=0.2, min_body_bytes_per_s=100.0)


def connect(served: Served) -> socket.socket:
    return socket.create_connection(("127.0.0.1", served.port), timeout=10)


def rest_of(client: socket.socket) -> bytes:
    """Everything until the server closes."""
    parts = []
    while part := client.recv(65536):
        parts.append(part)
    return b"".join(parts)


def status_and_error(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)["error"]


@pytest.mark.parametrize("sent", [b"P", b"POST / HTTP/1.1\r\nhost: x\r\n"])
def test_a_client_that_never_ends_its_headers_is_cut(sent: bytes) -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        client.sendall(sent)
        assert status_and_error(rest_of(client)) == (408, "the headers took more than 0.2 s.")


def test_a_client_that_never_sends_anything_is_cut() -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        assert rest_of(client) == b""


def test_a_client_that_pauses_in_its_body_is_cut() -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        client.sendall(HEAD % (b"double", 1000) + b"{")
        assert status_and_error(rest_of(client)) == (408, "the body paused for more than 0.2 s.")


def test_a_client_that_drips_its_body_is_cut() -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        client.sendall(HEAD % (b"double", 100_000))
        gone = threading.Event()

        def drip() -> None:
            while not gone.wait(0.05):
                try:
                    client.sendall(b"[")
                except OSError:
                    return

        dripping = threading.Thread(target=drip)
        dripping.start()
        try:
            assert status_and_error(client.recv(65536))[0] == 408
        finally:
            gone.set()
            dripping.join()


def test_a_client_that_never_takes_its_answer_is_cut() -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        rows = orjson.dumps({"inputs": [{**X, "shape": [1000, 2000], "data": [1.25] * 2_000_000}]})
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.sendall(HEAD % (b"double", len(rows)) + rows)

        async def open_connections() -> int:
            return len(served.server._server.server_state.connections)  # type: ignore[union-attr]

        until_s = time.monotonic() + 10
        while served.loop.run(open_connections()) and time.monotonic() < until_s:
            time.sleep(0.02)
        assert served.loop.run(open_connections()) == 0
        assert len(served.engine.seen) == 1


def test_an_idle_connection_is_kept_only_so_long() -> None:
    with served_http(Limits(read_timeout_s=0.2, keep_alive_s=0.1)) as served, connect(served) as client:
        client.sendall(HEAD % (b"double", len(BODY)) + BODY)
        assert rest_of(client).startswith(b"HTTP/1.1 200")


def test_a_request_that_waits_for_its_answer_is_not_taken_for_a_slow_one() -> None:
    with served_http(IMPATIENT) as served, connect(served) as client:
        client.sendall(HEAD % (b"hanging", len(BODY)) + BODY)
        served.loop.run(served.engine.hanging.wait())
        served.loop.run(asyncio.sleep(0.6))
        served.loop.loop.call_soon_threadsafe(served.engine.let_go.set)
        assert client.recv(100).startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("endless", [b"x-a: " + b"a" * 20_000, b"x-a: b\r\n" * 2_500])
def test_endless_headers_are_refused(endless: bytes) -> None:
    with served_http(Limits(max_header_bytes=10_000)) as served, connect(served) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\n")
        served.loop.run(asyncio.sleep(0))
        client.sendall(endless)
        answer = client.recv(65536)
        assert status_and_error(answer) == (431, "the headers are over 10000 bytes.")


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",  # a TLS hello
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v2/models/double/infer HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v2/models/double/infer HTTP/1.1\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET http://[ HTTP/1.1\r\nhost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_are_refused(sent: bytes) -> None:
    with served_http() as served:
        with connect(served) as client:
            client.sendall(sent)
            assert status_and_error(client.recv(65536)) == (400, "malformed HTTP request.")
        with connect(served) as client:
            client.sendall(HEAD % (b"double", len(BODY)) + BODY)
            assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_a_request_that_asks_for_another_protocol_is_answered_in_this_one() -> None:
    with served_http() as served, connect(served) as client:
        client.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
        assert client.recv(100).startswith(b"HTTP/1.1 200")


def test_many_who_come_at_once_are_let_in_within_a_few_turns_of_a_busy_loop() -> None:
    async def opened() -> int:
        """Turns of the loop until all are in."""
        turns = 0
        while len(state.connections) < 64:
            turns += 1
            await asyncio.sleep(0)
        return turns

    with served_http() as served, contextlib.ExitStack() as stack:
        state = served.server._server.server_state  # type: ignore[union-attr]
        held, let_go = threading.Event(), threading.Event()

        def hold() -> None:
            held.set()
            let_go.wait(10.0)

        served.loop.loop.call_soon_threadsafe(hold)
        assert held.wait(10.0)
        for _ in range(64):
            stack.enter_context(connect(served))
        counting = asyncio.run_coroutine_threadsafe(opened(), served.loop.loop)
        let_go.set()
        assert counting.result(10.0) <= 16


def test_two_servers_share_a_port() -> None:
    with loop_thread() as loop:

        async def share() -> tuple[int, ...]:
            engine, ports = NumpyEngine(), []
            for serve in (serve_http, serve_grpc):
                first = await serve(engine, "127.0.0.1", 0)
                second = await serve(engine, "127.0.0.1", first.port)
                ports += [first.port, second.port]
                await first.stop(0.1)
                await second.stop(0.1)
            return tuple(ports)

        http, http_too, grpc, grpc_too = loop.run(share())
        assert (http, grpc) == (http_too, grpc_too)


@pytest.mark.parametrize("serve", [serve_http, serve_grpc])
def test_an_address_that_is_not_ours_is_an_os_error(serve: object) -> None:
    with loop_thread() as loop, pytest.raises(OSError, match=r"203|assign"):
        loop.run(serve(NumpyEngine(), "203.0.113.1", 0))  # type: ignore[operator]


def test_stopping_lets_a_running_request_finish() -> None:
    with served_http() as served, connect(served) as client:
        client.sendall(HEAD % (b"hanging", len(BODY)) + BODY)
        served.loop.run(served.engine.hanging.wait())
        stopping = asyncio.run_coroutine_threadsafe(served.server.stop(10.0), served.loop.loop)
        served.loop.run(asyncio.sleep(0.15))
        assert not stopping.done()
        with pytest.raises(ConnectionRefusedError):
            connect(served)
        served.loop.loop.call_soon_threadsafe(served.engine.let_go.set)
        assert rest_of(client).startswith(b"HTTP/1.1 200")
        stopping.result(5)


def test_stopping_answers_what_does_not_finish_in_time() -> None:
    with served_http() as served, connect(served) as client:
        client.sendall(HEAD % (b"hanging", len(BODY)) + BODY)
        served.loop.run(served.engine.hanging.wait())
        served.loop.run(served.server.stop(0.05))
        assert status_and_error(rest_of(client)) == (503, "the gateway is stopping. Retry.")
        assert served.engine.cancelled.is_set()


def test_limits_below_what_makes_sense_are_refused() -> None:
    with pytest.raises(BadCard, match="max_rows is above 0"):
        Limits(max_rows=0)
