"""The HTTP face: a raw ASGI application. The infer routes are handled here, without any framework; everything else
is handed to FastAPI (`rest.py`) once its body is read and found bearable.

Every answer that is not the wanted one has the same shape, `{"error": "<message and what to do>"}`, the status of its
error class and the class's name in the header `fenix-error`. No trace leaves the process: an unexpected exception is
logged once under an id, and the id is what the client sees.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import zlib
from collections.abc import Callable, Iterable, MutableMapping
from time import perf_counter
from typing import Any, TypeVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from deployments.gateway.codec import decode_request, encode_answer, encode_error, internal_error
from deployments.gateway.limits import Limits, Load
from deployments.gateway.messages import Engine, InferAnswer
from deployments.gateway.tally import Tally
from deployments.gateway.uploads import FEEDBACK_PATH
from deployments.gateway.uploads import MEDIA as UPLOAD_MEDIA
from planner.errors import BadRequest, BodyTooLarge, Cancelled, FenixError, Overloaded, WrongMedia, WrongMethod

Header = tuple[bytes, bytes]
_T = TypeVar("_T")

_JSON: Header = (b"content-type", b"application/json")
_BINARY: Header = (b"content-type", b"application/octet-stream")
_MEDIA = frozenset({b"application/json", b"application/octet-stream", b""})
_MORE_MEDIA = {FEEDBACK_PATH: frozenset(media.encode() for media in UPLOAD_MEDIA)}  # by path
_NO_MEDIA: frozenset[bytes] = frozenset()
_WINDOW_BITS = {b"gzip": 31, b"x-gzip": 31, b"deflate": 15}  # of zlib

# Most requests are answered sooner; only later ones pay for watching whether their client is still there.
_WATCH_AFTER_S = 0.02
# From this size on, a thread reads and writes bodies. 48 MiB of JSON then hold the others up for at most 0.25 s at a
# time, mostly in the one call of orjson that parses, rather than for the 0.6 s (V2) to 1.0 s (/v1) of all the work.
_LARGE_BYTES = 1 << 20
# How long a refused body is still read, so that the client gets to see the refusal rather than a reset connection.
_LINGER_S = 2.0


def target_of(path: str) -> tuple[str, str] | None:
    """Model and version ("" when it has none) of an infer route, None for any other path."""
    if not (path.startswith("/v2/models/") and path.endswith("/infer")):
        return None
    model, versioned, version = path[11:-6].partition("/versions/")
    if not model or "/" in model or "/" in version or (versioned and not version):
        return None
    return model, version


async def aside(n_bytes: int, work: Callable[[], _T]) -> _T:
    """What `work` returns; where it deals with many bytes it runs on a thread, so that the loop goes on answering."""
    return work() if n_bytes < _LARGE_BYTES else await asyncio.to_thread(work)


def values_bytes(answer: InferAnswer) -> int:
    """How large the outputs of an answer are; of texts, the references alone are counted."""
    return sum(rows.values.nbytes for rows in answer.outputs.values())


def error_headers(error: FenixError, allow: str = "POST") -> list[Header]:
    """The headers that go with an error's body, but for its length. `allow`: the methods a WrongMethod should have."""
    headers = [_JSON, (b"fenix-error", type(error).__name__.encode())]
    if isinstance(error, Overloaded):
        headers.append((b"retry-after", str(max(1, math.ceil(error.retry_after_s))).encode()))
    if isinstance(error, WrongMethod):
        headers.append((b"allow", allow.encode()))
    return headers


class HttpApp:
    """The ASGI application of one gateway."""

    def __init__(
        self, engine: Engine, rest: ASGIApp, limits: Limits, load: Load | None = None, tally: Tally | None = None
    ) -> None:
        self._engine = engine
        self._rest = rest
        self._limits = limits
        self._load = load or Load(limits.max_concurrent)
        self._tally = tally or Tally()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._rest(scope, receive, send)
            return
        exchange = _Exchange(receive, send)
        target = target_of(scope["path"])
        try:
            if target is None and scope["method"] != "POST":
                await self._rest(scope, receive, exchange.send)  # short, bodiless and never refused: health, metadata
                return
            if self._load.full():
                raise Overloaded(f"{self._load.running} requests are under way.", hint="Retry later.")
            self._load.running += 1
            try:
                if target is None:
                    await self._hand_over(scope, exchange)
                else:
                    await self._infer(scope, exchange, *target)
            finally:
                self._load.running -= 1
                exchange.unwatch()
        except FenixError as error:
            await self._refuse(exchange, target, error)
        except asyncio.CancelledError:
            # This task is the server's and ends here in any case. Either the client left, and nobody reads what we
            # say, or the server stops without waiting any longer.
            if not exchange.client_left:
                await exchange.refuse(Overloaded("the gateway is stopping.", hint="Retry."))
        except Exception as error:
            await self._refuse(exchange, target, internal_error(error))

    async def _refuse(self, exchange: _Exchange, target: tuple[str, str] | None, error: FenixError) -> None:
        if target is not None:
            self._tally.refused(target[0], error.status)
        await exchange.refuse(error)

    async def _infer(self, scope: Scope, exchange: _Exchange, model: str, version: str) -> None:
        if scope["method"] != "POST":
            raise WrongMethod(f"{scope['path']} takes POST, not {scope['method']}.", hint="Send a body with POST.")
        head = _Head(scope["headers"])
        body = await exchange.body(head, self._limits.max_body_bytes)
        request, form = await aside(
            len(body),
            lambda: decode_request(
                body,
                model=model,
                version=version,
                header_bytes=head.header_bytes,
                id=head.request_id,
                max_rows=self._limits.max_rows,
            ),
        )
        exchange.watch()
        began_s = perf_counter()
        answer = await self._engine.infer(request)
        encoded = await aside(values_bytes(answer), lambda: encode_answer(answer, form))
        length = (b"content-length", b"%d" % len(encoded.body))
        if encoded.header_bytes is None:
            headers = [_JSON, length]
        else:
            headers = [_BINARY, length, (b"inference-header-content-length", b"%d" % encoded.header_bytes)]
        self._tally.meter(answer.model).answered(perf_counter() - began_s)  # before the client can ask for the count
        await exchange.send({"type": "http.response.start", "status": 200, "headers": headers})
        await exchange.send({"type": "http.response.body", "body": encoded.body})

    async def _hand_over(self, scope: MutableMapping[str, Any], exchange: _Exchange) -> None:
        head = _Head(scope["headers"], _MORE_MEDIA.get(scope["path"], _NO_MEDIA))
        body = await exchange.body(head, self._limits.max_body_bytes)
        exchange.watch()
        pending = [body]

        async def receive() -> Message:
            if pending:
                return {"type": "http.request", "body": pending.pop(), "more_body": False}
            return await exchange.receive()

        if head.media == b"":  # FastAPI reads JSON only where it is announced
            scope["headers"] = [*scope["headers"], _JSON]
        await self._rest(scope, receive, exchange.send)


class _Head:
    """What the gateway reads of a request's headers. Raises BadRequest or WrongMedia."""

    __slots__ = ("content_bytes", "encoding", "header_bytes", "media", "request_id")

    def __init__(self, headers: Iterable[Header], more_media: frozenset[bytes] = _NO_MEDIA) -> None:
        self.content_bytes = 0
        self.header_bytes: int | None = None
        self.media = self.encoding = b""
        self.request_id = ""
        for name, value in headers:
            if name == b"content-length":
                self.content_bytes = _whole("Content-Length", value)
            elif name == b"content-type":
                self.media = value
            elif name == b"inference-header-content-length":
                self.header_bytes = _whole("Inference-Header-Content-Length", value)
            elif name == b"x-request-id":
                self.request_id = value.decode("latin-1")
            elif name == b"content-encoding":
                self.encoding = value.strip().lower()
        if self.media not in _MEDIA:
            plain = self.media.partition(b";")[0].strip().lower()
            if plain not in _MEDIA and plain not in more_media and not plain.endswith(b"+json"):
                raise WrongMedia(
                    f"media type {plain[:60].decode('latin-1')!r} is not served.",
                    hint="Send Content-Type: application/json, or application/octet-stream for binary tensors.",
                )
        if self.encoding not in _WINDOW_BITS and self.encoding not in (b"", b"identity"):
            raise WrongMedia(
                f"content encoding {self.encoding[:60].decode('latin-1')!r} is not served.",
                hint="Send the body as it is, or with gzip or deflate.",
            )


class _Exchange:
    """One request on its way: whether its body was read, its answer begun, its client gone."""

    __slots__ = ("_send", "_task", "_timer", "_watcher", "client_left", "receive", "started", "unread")

    def __init__(self, receive: Receive, send: Send) -> None:
        self.receive = receive
        self._send = send
        self.started = False
        self.unread = False  # the refused rest of a body is still to come
        self.client_left = False
        self._timer: asyncio.TimerHandle | None = None
        self._watcher: asyncio.Task[None] | None = None

    async def send(self, message: Message) -> None:
        self.started = True
        await self._send(message)

    async def refuse(self, error: FenixError) -> None:
        """Answers with the error, unless an answer was begun. A body too large is read on for a moment, unkept."""
        if self.started:
            return
        body = encode_error(error)
        headers = error_headers(error)
        headers.append((b"content-length", b"%d" % len(body)))
        if self.unread:
            headers.append((b"connection", b"close"))
        await self.send({"type": "http.response.start", "status": error.status, "headers": headers})
        if self.unread:
            await self.send({"type": "http.response.body", "body": body, "more_body": True})
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LINGER_S):
                    while (await self.receive()).get("more_body"):
                        pass
            body = b""
        await self.send({"type": "http.response.body", "body": body})

    async def body(self, head: _Head, max_bytes: int) -> bytes:
        """The whole body, decompressed. Raises BodyTooLarge as early as it can be known, Cancelled, BadRequest."""
        if head.content_bytes > max_bytes:
            self.unread = True
            raise _too_large(f"the body has {head.content_bytes} bytes", max_bytes)
        message = await self.receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body") or message["type"] != "http.request":
            body = await self._longer_body(message, max_bytes)
        elif len(body) > max_bytes:
            raise _too_large(f"the body has {len(body)} bytes", max_bytes)
        if head.encoding in _WINDOW_BITS:
            return await asyncio.to_thread(_inflate, body, _WINDOW_BITS[head.encoding], max_bytes)
        return body

    async def _longer_body(self, message: Message, max_bytes: int) -> bytes:
        chunks: list[bytes] = []
        n_bytes = 0
        while True:
            if message["type"] != "http.request":
                raise Cancelled("the client left before its request was there.")
            chunks.append(message.get("body", b""))
            n_bytes += len(chunks[-1])
            more = message.get("more_body", False)
            if n_bytes > max_bytes:
                self.unread = more
                raise _too_large(f"the body has more than {max_bytes} bytes", max_bytes)
            if not more:
                return b"".join(chunks)
            message = await self.receive()

    def watch(self) -> None:
        """From soon on until `unwatch`, cancels the calling task when the client leaves.

        A timer that is nearly always cancelled costs 1 us; a task per request would cost 15.
        """
        task = asyncio.current_task()
        assert task is not None
        self._task = task
        self._timer = asyncio.get_running_loop().call_later(_WATCH_AFTER_S, self._start_watching)

    def _start_watching(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._until_gone())

    async def _until_gone(self) -> None:
        while (await self.receive())["type"] != "http.disconnect":
            pass
        self.client_left = True
        self._task.cancel()

    def unwatch(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()


def _whole(header: str, value: bytes) -> int:
    if not value.isdigit() or len(value) > 15:
        raise BadRequest(f"{header} is a whole number, not {value[:60].decode('latin-1')!r}.")
    return int(value)


def _too_large(what: str, max_bytes: int) -> BodyTooLarge:
    return BodyTooLarge(f"{what}.", hint=f"Send at most {max_bytes}; split the rows over several requests.")


def _inflate(body: bytes, window_bits: int, max_bytes: int) -> bytes:
    decoder = zlib.decompressobj(window_bits)
    try:
        plain = decoder.decompress(body, max_bytes + 1)
    except zlib.error as error:
        raise BadRequest(f"the body does not decompress: {error}.") from None
    if len(plain) > max_bytes:
        raise _too_large("the decompressed body is too large", max_bytes)
    if not decoder.eof or decoder.unused_data:
        raise BadRequest("the compressed body ends too early or too late.")
    return plain
