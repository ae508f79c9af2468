"""The sockets: HTTP and gRPC served on an event loop that is already running, on ports of our own.

Both listen with SO_REUSEPORT, so that several gateway processes of one node share a port and the kernel spreads
connections over them. uvicorn parses HTTP (httptools); what we add to it is in `connection.py`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

import grpc
import uvicorn
from fastapi import APIRouter

from deployments.gateway.connection import connection_class
from deployments.gateway.express import Express
from deployments.gateway.feedback import FeedbackDesk
from deployments.gateway.grpc import Service
from deployments.gateway.http import HttpApp
from deployments.gateway.limits import Limits, Load
from deployments.gateway.messages import Engine
from deployments.gateway.rest import create_app
from deployments.gateway.tally import Tally

# Descriptors of the one listening socket. libuv accepts one connection per descriptor and turn of the loop; with one
# alone, 128 clients that came while requests were served waited for up to 0.4 s to be let in.
DOORS = 16


class HttpServer:
    """A bound HTTP listener. Use `serve_http` to get one."""

    def __init__(
        self, server: uvicorn.Server, listener: socket.socket, serving: asyncio.Task[None], load: Load
    ) -> None:
        self._server = server
        self._serving = serving
        self.port: int = listener.getsockname()[1]
        self.load = load

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stops listening and lets running requests finish for `grace_s`; the rest is cancelled and answered with 503.

        Calling it again does nothing.
        """
        self._server.config.timeout_graceful_shutdown = grace_s  # type: ignore[assignment]  # asyncio takes fractions
        self._server.should_exit = True
        await self._serving


async def serve_http(
    engine: Engine,
    host: str,
    port: int,
    limits: Limits | None = None,
    *,
    desk: FeedbackDesk | None = None,
    routers: Sequence[APIRouter] = (),
    tally: Tally | None = None,
) -> HttpServer:
    """Serves `engine` over HTTP on the running loop; returns when connections are accepted. Port 0 picks a free one.
    `desk` takes feedback; without one that is refused. `routers` have more routes than there are anyway,
    `tally` counts the requests.

    Raises OSError when the address cannot be bound.
    """
    limits = limits or Limits()
    load, tally = Load(limits.max_concurrent), tally or Tally()
    listener = listening_socket(host, port)
    config = uvicorn.Config(
        HttpApp(engine, create_app(engine, limits, desk, routers, tally), limits, load, tally),
        http=connection_class(limits, Express(engine, limits, load, tally)),
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
    doors = [listener, *(listener.dup() for _ in range(DOORS - 1))]
    serving = asyncio.get_running_loop().create_task(server.serve(sockets=doors))
    while not server.started:
        if serving.done():
            await serving
        await asyncio.sleep(0.001)
    return HttpServer(server, listener, serving, load)


class GrpcServer:
    """A bound gRPC listener. Use `serve_grpc` to get one."""

    def __init__(self, server: grpc.aio.Server, port: int) -> None:
        self._server = server
        self.port = port

    async def stop(self, grace_s: float = 10.0) -> None:
        """Stops listening and lets running calls finish for `grace_s`; the rest is cancelled."""
        await self._server.stop(grace_s)


async def serve_grpc(
    engine: Engine, host: str, port: int, limits: Limits | None = None, *, tally: Tally | None = None
) -> GrpcServer:
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
    server.add_generic_rpc_handlers((Service(engine, limits, tally).handler(),))
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
