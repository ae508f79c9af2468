"""One HTTP connection: uvicorn's, with limits against slow and endless clients, and the way onto the express."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Literal

import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from deployments.gateway.codec import encode_error
from deployments.gateway.express import MOST_BYTES, Express, Ride
from deployments.gateway.http import error_headers, target_of
from deployments.gateway.limits import Limits
from planner.errors import FenixError, Overloaded

# Headers that change what a body means, or how it has to be answered: such requests take the usual way.
_PARTICULAR = frozenset(
    {b"content-encoding", b"expect", b"inference-header-content-length", b"upgrade", b"x-request-id"}
)
_USUAL: dict[str, tuple[list[tuple[bytes, bytes]], bytes]] = {}  # written out, of the last response of any connection
_OK = b"HTTP/1.1 200 OK\r\n"


def connection_class(limits: Limits, express: Express) -> type[HttpToolsProtocol]:
    """The protocol class for uvicorn: connections with these limits, on this express."""
    return type("Connection", (Connection,), {"limits": limits, "express": express})


class Fare:
    """One request on the express. For uvicorn it is the connection's cycle of request and response, with the
    attributes that uvicorn looks at."""

    __slots__ = ("connection", "disconnected", "keep_alive", "message_event", "response_complete", "ride")

    response_started = False  # what it sends, it sends at once

    def __init__(self, connection: Connection, keep_alive: bool) -> None:
        self.connection = connection
        self.keep_alive = keep_alive
        self.response_complete = self.disconnected = False
        self.ride: Ride | None = None
        self.message_event = self  # which uvicorn sets when the client leaves

    def set(self) -> None:
        if not self.response_complete and self.ride is not None:
            self.ride.leave()

    def stop(self) -> None:
        """The server waits no longer."""
        if not self.response_complete:
            self.set()
            self.refuse(Overloaded("the gateway is stopping.", hint="Retry."))

    def answer(self, body: bytes) -> None:
        self._send(_OK, b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body), body)

    def refuse(self, error: FenixError) -> None:
        body = encode_error(error)
        headers = b"".join([b"%s: %s\r\n" % header for header in error_headers(error)])
        status = b"HTTP/1.1 %d %s\r\n" % (error.status, _phrase(error.status))
        self._send(status, b"%scontent-length: %d\r\n" % (headers, len(body)), body)

    def _send(self, status: bytes, headers: bytes, body: bytes) -> None:
        connection = self.connection
        self.response_complete = True
        if self.disconnected or connection.transport.is_closing():
            return
        ending = b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"
        connection.transport.write(b"".join((status, connection.usual_headers(), headers, ending, body)))
        if not self.keep_alive:
            connection.transport.close()
        connection.on_response_complete()


def _phrase(status: int) -> bytes:
    try:
        return HTTPStatus(status).phrase.encode()
    except ValueError:  # 499 is nginx's
        return b""


class Connection(HttpToolsProtocol):
    """One HTTP connection that does not wait for ever, nor for endless headers.

    The body of a request that looks ordinary is held back until it is complete; then the express takes it, or uvicorn
    gets it after all and goes the usual way. A single timer per connection looks at it twice per `read_timeout_s`,
    which costs a request nothing; so a slow client is cut after 1 to 1.5 times that. It is told why (408, 431), in the
    one error shape.
    """

    limits: Limits
    express: Express

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._phase: Literal["silent", "headers", "body", "done"] = "silent"  # what we wait for: "done" is nothing
        self._began_s = self._heard_s = self.loop.time()
        self._header_bytes = self._body_bytes = self._unsent_bytes = self._stuck_ticks = 0
        self._tick = self.loop.call_later(self.limits.read_timeout_s / 2, self._look)
        self._fare: Fare | None = None  # the last request on the express
        self._held: bytes | None = None  # the body so far of a request that may go on the express
        self._most_held = min(MOST_BYTES, self.limits.max_body_bytes)
        self._ordinary = True  # no header so far speaks against it

    def usual_headers(self) -> bytes:
        """Those that uvicorn adds to every response. It makes them anew once a second."""
        known = _USUAL.get("headers")
        if known is None or known[0] is not self.server_state.default_headers:
            said = b"".join([b"%s: %s\r\n" % header for header in self.server_state.default_headers])
            known = _USUAL["headers"] = (self.server_state.default_headers, said)
        return known[1]

    def connection_lost(self, exc: Exception | None) -> None:
        self._tick.cancel()
        if self._fare is not None and not self._fare.response_complete:  # others may be in line behind it
            self._fare.disconnected = True
            self._fare.set()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._held is not None:
            self._release()
        super().shutdown()
        grace_s = self.config.timeout_graceful_shutdown
        if grace_s is not None and self._fare is not None and not self._fare.response_complete:
            self.loop.call_later(grace_s, self._fare.stop)

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
        self._ordinary = True
        self._header_bytes = self._body_bytes = 0
        self._began_s = self.loop.time()

    def on_header(self, name: bytes, value: bytes) -> None:
        super().on_header(name, value)
        name = self.headers[-1][0]
        if name == b"content-length":
            held = len(value) <= 6 and value.isdigit() and int(value) <= self._most_held
            self._ordinary = self._ordinary and held
        elif name in _PARTICULAR or (name == b"content-type" and value != b"application/json"):
            self._ordinary = False

    def on_headers_complete(self) -> None:
        self._phase = "body"
        self._heard_s = self.loop.time()
        if (
            self._ordinary
            and self.url.endswith(b"/infer")
            and (self.cycle is None or self.cycle.response_complete)
            and not self.flow.write_paused  # the usual way waits for a client that does not take its answers
            and self.parser.get_method() == b"POST"
            and self.parser.get_http_version() == "1.1"
        ):
            self._held = b""
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._heard_s = self.loop.time()
        if self._held is None:
            super().on_body(body)
            return
        self._held += body
        if len(self._held) > self._most_held:
            self._release()

    def on_message_complete(self) -> None:
        self._phase = "done"
        if self._held is not None:
            target = target_of(self.url.decode("ascii", "replace"))
            if target is not None and b"%" not in self.url:
                fare = Fare(self, self.parser.should_keep_alive())
                fare.ride = self.express.take(target, self._held, fare)
                if fare.ride is not None:
                    self._held = None
                    self._fare = fare
                    self.cycle = fare  # type: ignore[assignment]
                    return
            self._release()
        super().on_message_complete()

    def _release(self) -> None:
        """The usual way after all."""
        held, self._held = self._held, None
        super().on_headers_complete()
        if held:
            super().on_body(held)

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
