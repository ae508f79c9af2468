"""The gRPC face: the Open Inference service over an engine, on grpc.aio.

Messages are parsed here rather than by grpc, so that garbage gets a clear INVALID_ARGUMENT. An error has the gRPC
code of its class, its message and hint as details, and trailing metadata `fenix-error` (the class's name) and
`retry-after` (seconds) as over HTTP. A call's gRPC deadline is its `deadline_ms` where none is given. grpc.aio
cancels a call whose client left or whose deadline passed, and so the engine's work.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import perf_counter
from typing import Any

import grpc

from deployments.gateway import metadata
from deployments.gateway.codec import internal_error
from deployments.gateway.limits import Limits
from deployments.gateway.messages import Engine
from deployments.gateway.protocol import SERVICE, decode_infer_request, encode_infer_answer, message, parse
from deployments.gateway.tally import Tally
from planner.errors import FenixError, Overloaded

# HTTP/2 headers are bounded (8 KiB by default in most clients), and details travel in one.
_MAX_DETAILS_CHARS = 2_000

_Answer = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class Service:
    """The methods of GRPCInferenceService. Each takes and gives a message, but for ModelInfer, which takes bytes."""

    def __init__(self, engine: Engine, limits: Limits, tally: Tally | None = None) -> None:
        self._engine = engine
        self._limits = limits
        self._tally = tally or Tally()
        self._running = 0

    def handler(self) -> grpc.GenericRpcHandler:
        """What a grpc.aio server needs to serve this."""
        answers: dict[str, _Answer] = {
            "ServerLive": self._server_live,
            "ServerReady": self._server_ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "RepositoryIndex": self._repository_index,
        }
        methods = {name: _unary(_with_messages(name, answer)) for name, answer in answers.items()}
        methods["ModelInfer"] = _unary(self._model_infer)
        return grpc.method_handlers_generic_handler(SERVICE.full_name, methods)

    async def _model_infer(self, raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if self._running >= self._limits.max_concurrent:
            raise Overloaded(f"{self._running} requests are under way.", hint="Retry later.")
        self._running += 1
        began_s, model = perf_counter(), ""
        try:
            request, typed = decode_infer_request(raw, self._limits.max_rows)
            model = request.model
            remaining_s = context.time_remaining()
            if remaining_s is not None and "deadline_ms" not in request.terms:
                request = replace(request, terms={**request.terms, "deadline_ms": max(remaining_s * 1e3, 0.001)})
            answer = await self._engine.infer(request)
            encoded = encode_infer_answer(answer, typed)
            self._tally.meter(answer.model).answered(perf_counter() - began_s)
            return encoded
        except FenixError as error:
            self._tally.refused(model, error.status)
            raise
        finally:
            self._running -= 1

    async def _server_live(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return message("ServerReadyResponse")(ready=self._engine.ready())

    async def _model_ready(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        metadata.find_model(self._engine.catalogue, request.name, request.version)
        return message("ModelReadyResponse")(ready=self._engine.ready())

    async def _server_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        return message("ServerMetadataResponse")(
            name=metadata.SERVER_NAME,
            version=metadata.server_version(),
            extensions=metadata.PROTOCOL_EXTENSIONS,
        )

    async def _model_metadata(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        model = metadata.find_model(self._engine.catalogue, request.name, request.version)
        response = message("ModelMetadataResponse")(name=model.name, versions=model.versions, platform=model.platform)
        for ours, theirs in ((model.inputs, response.inputs), (model.outputs, response.outputs)):
            for tensor in ours:
                theirs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        return response

    async def _repository_index(self, request: Any, context: grpc.aio.ServicerContext) -> Any:
        response = message("RepositoryIndexResponse")()
        for name, version in metadata.all_models(self._engine.catalogue):
            response.models.add(name=name, version=version, state="READY")
        return response


def _with_messages(method: str, answer: _Answer) -> _Answer:
    kind = message(SERVICE.methods_by_name[method].input_type.name)

    async def answer_bytes(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        return bytes((await answer(parse(kind, raw), context)).SerializeToString())

    return answer_bytes


def _unary(answer: _Answer) -> grpc.RpcMethodHandler:
    async def answer_or_explain(raw: bytes, context: grpc.aio.ServicerContext) -> bytes:
        try:
            return bytes(await answer(raw, context))
        except FenixError as error:
            return await _refuse(context, error)
        except Exception as error:
            return await _refuse(context, internal_error(error))

    return grpc.unary_unary_rpc_method_handler(answer_or_explain)


async def _refuse(context: grpc.aio.ServicerContext, error: FenixError) -> bytes:
    trailing = [("fenix-error", type(error).__name__)]
    if isinstance(error, Overloaded):
        trailing.append(("retry-after", f"{error.retry_after_s:g}"))
    code = grpc.StatusCode[error.grpc_status]
    await context.abort(code, error.text()[:_MAX_DETAILS_CHARS], tuple(trailing))  # raises
    raise AssertionError("abort returned")
