"""The sockets: HTTP and gRPC served on an event loop that is already running, on ports of our own.

Both listen with SO_REUSEPORT, so that several gateway processes of one node share a port and the kernel spreads
connections over them. uvicorn parses HTTP (httptools); what it lacks against slow and endless clients is added in
`_Connection`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from http import HTTPStatus
from typing import Literal

import grpc
import orjson
import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.gateway.grpc import Service
from deployments.gateway.http import HttpApp
from deployments.gateway.limits import Limits
from deployments.gateway.messages import Engine
from deployments.gateway.rest import create_app


class HttpServer:
    """A bound HTTP listener. Use `serve_http` to get one."""

    def __init__(self, server: uvicorn.Server, listener: socket.socket, serving: asyncio.Task[None]) -> None:
        self._server = server
        self._serving = serving
        self.port: int = listener.getsockname()[1]

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stops listening and lets running requests finish for `grace_s`; the rest is cancelled and answered with 503.

        Calling it again does nothing.
        """
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # asyncio takes fractions
        self._server.should_exit = True
        await self._serving


async def serve_http(engine: Engine, host: str, port: int, limits: Limits | None = None) -> HttpServer:
    """Serves `engine` over HTTP on the running loop; returns when connections are accepted. Port 0 picks a free one.

    Raises OSError when the address cannot be bound.
    """
    limits = limits or Limits()
    listener = listening_socket(host, port)
    config = uvicorn.Config(
        HttpApp(engine, create_app(engine, limits), limits),
        http=_connection_class(limits),
        ws="none",
        loop="none",  # the running one
        interface="asgi3",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=limits.keep_alive_s,  # type: ignore[arg-type]  # handed to call_later, which takes fractions
        reset_contextvars=True,  # a request must not inherit what the listener was started with
    )
    server = _Server(config)
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=[listener]))
    while not server.started:
        if serving.done():
            await serving
        await asyncio.sleep(0.001)
    return HttpServer(server, listener, serving)


class GrpcServer:
    """A bound gRPC listener. Use `serve_grpc` to get one."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stops listening and lets running calls finish for `grace_s`; the rest is cancelled."""
        await self._server.stop(grace_s)


async def serve_grpc(engine: Engine, host: str, port: int, limits: Limits | None = None) -> GrpcServer:
    """Serves `engine` over gRPC on the running loop, without TLS. Port 0 picks a free one.

    Raises OSError when the address cannot be bound.
    """
    limits = limits or Limits()
    server = grpc.aio.server(
        options=[
            ("grpc.so_reuseport", 1),
            ("grpc.max_receive_message_length", limits.max_body_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", limits.max_header_bytes),
            ("grpc.server_handshake_timeout_ms", int(limits.read_timeout_s * 1e3)),
        ]
    )
    server.add_generic_rpc_handlers((Service(engine, limits).handler(),))
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    try:
        bound = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: {error}") from None
    await server.start()
    return GrpcServer(server, bound)


def listening_socket(host: str, port: int) -> socket.socket:
    """A TCP listener that shares its port with other processes of this user. Raises OSError."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind(address)
        listener.listen(2048)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


class _Server(uvicorn.Server):
    """Leaves the process's signals to whoever owns the process."""

    def capture_signals(self) -> contextlib.AbstractContextManager[None]:  # type: ignore[override]
        return contextlib.nullcontext()


def _connection_class(limits: Limits) -> type[HttpToolsProtocol]:
    return type("Connection", (_Connection,), {"limits": limits})


class _Connection(HttpToolsProtocol):
    """One HTTP connection that does not wait for ever, nor for endless headers.

    A single timer per connection looks at it twice per `read_timeout_s`, which costs a request nothing; so a slow
    client is cut after 1 to 1.5 times that. It is told why (408, 431), in the one error shape.
    """

    limits: Limits

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._phase: Literal["silent", "headers", "body", "done"] = "silent"  # what we wait for: "done" is nothing
        self._began_s = self._heard_s = self.loop.time()
        self._header_bytes = self._body_bytes = self._unsent_bytes = self._stuck_ticks = 0
        self._tick = self.loop.call_later(self.limits.read_timeout_s / 2, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._tick.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        in_headers = self._phase == "headers"
        super().data_received(data)
        if in_headers and self._phase == "headers":
            self._header_bytes += len(data)
            if self._header_bytes > self.limits.max_header_bytes:
                self._cut(431, f"the headers are over {self.limits.max_header_bytes} bytes.")

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._phase = "headers"
        self._header_bytes = self._body_bytes = 0
        self._began_s = self.loop.time()

    def on_headers_complete(self) -> None:
        self._phase = "body"
        self._heard_s = self.loop.time()
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._heard_s = self.loop.time()
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._phase = "done"
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        self._cut(400, "malformed HTTP request.")

    def _look(self) -> None:
        """The timer: cuts a client that sends too slowly, or does not take its answer."""
        timeout_s = self.limits.read_timeout_s
        self._tick = self.loop.call_later(timeout_s / 2, self._look)
        unsent_bytes = self.transport.get_write_buffer_size()
        self._stuck_ticks = self._stuck_ticks + 1 if 0 < unsent_bytes == self._unsent_bytes else 0
        self._unsent_bytes = unsent_bytes
        if self._stuck_ticks == 2:
            self.transport.abort()
        elif self.flow.read_paused:  # it is us who do not read
            self._heard_s = self.loop.time()
        else:
            self._look_at_reading(self.loop.time(), timeout_s)

    def _look_at_reading(self, now_s: float, timeout_s: float) -> None:
        took_s = now_s - self._began_s
        if self._phase == "silent" and took_s > timeout_s:
            self.transport.close()
        elif self._phase == "headers" and took_s > timeout_s:
            self._cut(408, f"the headers took more than {timeout_s:g} s.")
        elif self._phase == "body" and now_s - self._heard_s > timeout_s:
            self._cut(408, f"the body paused for more than {timeout_s:g} s.")
        elif self._phase == "body" and took_s > timeout_s + self._body_bytes / self.limits.min_body_bytes_per_s:
            self._cut(408, f"the body came at less than {self.limits.min_body_bytes_per_s:g} bytes per second.")

    def _cut(self, status: int, message: str) -> None:
        """Says why, unless an answer is on its way already, and closes."""
        if self.transport.is_closing():
            return
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            body = orjson.dumps({"error": message})
            head = f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\ncontent-type: application/json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self.transport.close()
