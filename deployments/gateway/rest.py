"""Everything over HTTP that is not the V2 infer route: health, metadata, `/v1` and the OpenAPI document."""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from time import perf_counter
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, FastAPI, Header, Path, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from deployments.gateway.codec import (
    MAX_ID_CHARS,
    check_inputs,
    check_names,
    check_shape,
    decode_inputs,
    encode_error,
    internal_error,
    parse_json,
)
from deployments.gateway.feedback import FeedbackDesk
from deployments.gateway.http import aside, error_headers, values_bytes
from deployments.gateway.limits import Limits
from deployments.gateway.messages import Engine, InferRequest
from deployments.gateway.metadata import (
    PROTOCOL_EXTENSIONS,
    SERVER_NAME,
    all_models,
    find_model,
    server_version,
)
from deployments.gateway.schemas import (
    EXAMPLE_TRACE_ID,
    AnswerBody,
    CatalogueInfo,
    ErrorBody,
    ExplanationInfo,
    ExtensionInfo,
    Extensions,
    FeedbackBody,
    FeedbackItems,
    FeedbackReply,
    GoalInfo,
    Goals,
    IndexEntry,
    IndexRequest,
    InferBody,
    Inference,
    InferenceReply,
    Live,
    ModelMetadata,
    ModelReady,
    NotReady,
    OutcomeInfo,
    PlanBody,
    ServerMetadata,
    Spec,
    Tensor,
    TermsBody,
)
from deployments.gateway.tally import Tally
from deployments.gateway.uploads import FEEDBACK_PATH
from deployments.gateway.uploads import MEDIA as UPLOAD_MEDIA
from planner.errors import (
    BadInput,
    BadRequest,
    BodyTooLarge,
    FeedbackRefused,
    FenixError,
    NotFound,
    StoreUnavailable,
    WrongMedia,
    WrongMethod,
    near,
)
from planner.features import DATATYPES, Array

_MEANING = {
    400: "The request is wrong; sending it again fails again.",
    403: "The request is another user's.",
    404: "No such goal, extension, version, request or route.",
    405: "The route does not take this method.",
    409: "Something of that name is there already, or under way.",
    413: "Over the limit on bytes or rows. Split it.",
    415: "A media type or content encoding that is not served.",
    422: "The sentence is unclear, or nothing leads to what is wanted within the terms.",
    429: "Your own rows that wait fill your share; retry after `Retry-After` seconds.",
    500: "A fault of the gateway, logged under the id in the message.",
    502: "An extension failed, and so did its alternatives.",
    503: "Overloaded or not ready; retry after `Retry-After` seconds.",
    504: "The deadline passed.",
}


def may_answer(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": ErrorBody, "description": _MEANING[status]} for status in statuses}


_READING = may_answer(400, 404, 500)
_RUNNING = may_answer(400, 404, 413, 415, 422, 429, 500, 502, 503, 504)
_Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class _Request(Request):
    """Reads JSON as the infer routes do, and large bodies on a thread: FastAPI would do it on the loop."""

    body_field: Any  # what FastAPI knows of the endpoint's body

    async def json(self) -> Any:
        """The endpoint's model, not the document. Raises BadRequest or RequestValidationError."""
        body = await self.body()

        def read() -> Any:
            document = parse_json(body)
            made, faults = self.body_field.validate(document, {}, loc=("body",))
            if faults:
                raise RequestValidationError(faults)
            return made  # which passes FastAPI's own validation as it is

        return await aside(len(body), read)


class _Route(APIRoute):
    """Turns whatever an endpoint raises into the one error shape, so that no framework page and no trace gets out."""

    def get_route_handler(self) -> _Handler:
        handle = super().get_route_handler()
        body_field = self.body_field

        async def handle_or_explain(request: Request) -> Response:
            try:
                if body_field is not None:
                    request = _Request(request.scope, request.receive)
                    request.body_field = body_field
                return await handle(request)
            except RequestValidationError:
                raise
            except HTTPException as error:
                # FastAPI hides whatever reading the body raised behind one of its own
                if isinstance(error.__cause__, FenixError):
                    return _refusal(error.__cause__)
                if isinstance(error.__cause__, RequestValidationError):
                    raise error.__cause__ from None
                raise
            except FenixError as error:
                return _refusal(error)
            except Exception as error:
                return _refusal(internal_error(error))

        return handle_or_explain


class StrictRoute(_Route):
    """Also refuses query parameters that are unknown or repeated, which FastAPI would silently drop."""

    def get_route_handler(self) -> _Handler:
        handle = super().get_route_handler()
        known = [parameter.alias for parameter in self.dependant.query_params]

        async def check_and_handle(request: Request) -> Response:
            names = [name for name, _ in request.query_params.multi_items()]
            for name in names:
                if name not in known:
                    hint = near(name[:128], known) or "There are none."
                    return _refusal(BadRequest(f"unknown query parameter {name[:128]!r}.", hint=hint))
                if names.count(name) > 1:
                    return _refusal(BadRequest(f"query parameter {name!r} is there twice.", hint="Give it once."))
            return await handle(request)

        return check_and_handle


def create_app(
    engine: Engine,
    limits: Limits,
    desk: FeedbackDesk | None = None,
    routers: Sequence[APIRouter] = (),
    tally: Tally | None = None,
) -> FastAPI:
    """The FastAPI application over `engine`, and over the journal behind `desk`, if there is one; `routers` have more
    routes, `tally` counts the requests. Also serves `/openapi.json`, which includes the raw infer routes."""
    app = FastAPI(
        title="Fenix",
        version=server_version(),
        description="Models that compose themselves for each request. Open Inference Protocol V2, and `/v1`.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.add_exception_handler(HTTPException, _explain_http)
    app.add_exception_handler(RequestValidationError, _explain_validation)
    app.include_router(_v2(engine))
    app.include_router(_v1(engine, limits, tally or Tally()))
    app.include_router(_journal(desk))
    for router in routers:
        app.include_router(router)
    document: dict[str, Any] = {}

    def openapi() -> dict[str, Any]:
        if not document:
            document.update(_document(app))
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it
    return app


# --------------------------------------------------------------------------------------------------------------- V2


def _v2(engine: Engine) -> APIRouter:
    router = APIRouter(prefix="/v2", tags=["Open Inference Protocol"], route_class=_Route)

    @router.get("")
    async def server_metadata() -> ServerMetadata:
        """Name, version and protocol extensions of this server."""
        return ServerMetadata(name=SERVER_NAME, version=server_version(), extensions=list(PROTOCOL_EXTENSIONS))

    @router.get("/health/live")
    async def live() -> Live:
        """Whether the gateway answers at all."""
        return Live(live=True, ready=engine.ready())

    @router.get("/health/ready", response_model=Live, responses={503: {"model": NotReady, "description": "Not ready."}})
    async def ready() -> Any:
        """Whether the gateway can answer requests: its catalogue is there and followed."""
        if engine.ready():
            return Live(live=True, ready=True)
        body = NotReady(live=True, ready=False, error="the gateway is not ready: it has no catalogue yet. Retry.")
        return JSONResponse(body.model_dump(), status_code=503, headers={"Retry-After": "1"})

    @router.post("/repository/index", responses=may_answer(400, 413, 415, 500, 503))
    async def repository_index(request: IndexRequest | None = None) -> list[IndexEntry]:
        """Every model: goals and extension versions. Triton's model repository extension."""
        return [IndexEntry(name=name, version=version) for name, version in all_models(engine.catalogue)]

    async def model_metadata(model: str, version: str = "") -> ModelMetadata:
        return ModelMetadata.of(find_model(engine.catalogue, model, version))

    async def model_ready(model: str, version: str = "") -> ModelReady:
        return ModelReady(name=find_model(engine.catalogue, model, version).name, ready=engine.ready())

    @router.get("/models/{model}", responses=_READING)
    async def metadata_of_model(model: str) -> ModelMetadata:
        """Inputs and outputs of a goal or an extension."""
        return await model_metadata(model)

    @router.get("/models/{model}/versions/{version}", responses=_READING)
    async def metadata_of_version(model: str, version: str) -> ModelMetadata:
        """Inputs and outputs of one version."""
        return await model_metadata(model, version)

    @router.get("/models/{model}/ready", responses=_READING)
    async def readiness_of_model(model: str) -> ModelReady:
        """Whether a goal or an extension can be asked."""
        return await model_ready(model)

    @router.get("/models/{model}/versions/{version}/ready", responses=_READING)
    async def readiness_of_version(model: str, version: str) -> ModelReady:
        """Whether one version can be asked."""
        return await model_ready(model, version)

    return router


# --------------------------------------------------------------------------------------------------------------- /v1

_Limit = Annotated[int, Query(ge=1, le=10_000, description="At most this many.")]
_RequestId = Annotated[str, Header(max_length=MAX_ID_CHARS, description="The id of a request whose body has none.")]
_Offset = Annotated[int, Query(ge=0, le=2**53, description="Leave out the first ones.")]


def _v1(engine: Engine, limits: Limits, tally: Tally) -> APIRouter:
    router = APIRouter(prefix="/v1", tags=["Fenix"], route_class=StrictRoute)

    @router.post("/infer", response_model=AnswerBody, responses=_RUNNING)
    async def infer(body: InferBody, request: Request, x_request_id: _RequestId = "") -> Any:
        """Finds the best plan for a sentence, wanted feature types or a goal, runs it, and says how it went."""
        n_bytes = len(await request.body())
        inputs = await aside(n_bytes, lambda: decode_inputs(_tensors(body.inputs), limits.max_rows))
        asked = replace(_request(body, inputs, tuple(body.outputs), body.id or x_request_id), detailed=True)
        began_s = perf_counter()
        try:
            explanation = await engine.explain(asked) if body.explain else None
            answer = await engine.infer(asked)
        except FenixError as error:
            tally.refused(asked.model, error.status)
            raise
        tally.meter(answer.model).answered(perf_counter() - began_s)
        # Written here, for FastAPI would do it on the loop.
        text = await aside(values_bytes(answer), lambda: AnswerBody.of(answer, explanation).model_dump_json())
        return Response(text, media_type="application/json")

    @router.post("/plan", responses=_RUNNING)
    async def plan(body: PlanBody, request: Request) -> ExplanationInfo:
        """What infer would do, without doing it: the plan chosen, the others, and the rejected with the reason."""
        inputs = await aside(len(await request.body()), lambda: _specified(body.inputs, limits))
        return ExplanationInfo.of(await engine.explain(_request(body, inputs)))

    @router.get("/extensions", responses=may_answer(400, 500))
    async def extensions(limit: _Limit = 1000, offset: _Offset = 0) -> Extensions:
        """All extension versions, a page at a time."""
        catalogue = engine.catalogue
        page, inline = list(catalogue.cards.values())[offset : offset + limit], engine.inline()
        return Extensions(
            epoch=catalogue.epoch,
            total=len(catalogue.cards),
            extensions=[ExtensionInfo.of(card, inline) for card in page],
        )

    @router.get("/extensions/{id}", responses=_READING)
    async def extension(id: str) -> ExtensionInfo:
        """One extension version, `name@version`; a bare name will do where there is one version."""
        return ExtensionInfo.of(engine.catalogue.card(id), engine.inline())

    @router.get("/goals", responses=may_answer(400, 500))
    async def goals(limit: _Limit = 1000, offset: _Offset = 0) -> Goals:
        """All goals, a page at a time."""
        catalogue = engine.catalogue
        page = list(catalogue.goals.values())[offset : offset + limit]
        return Goals(epoch=catalogue.epoch, total=len(catalogue.goals), goals=[GoalInfo.of(goal) for goal in page])

    @router.get("/goals/{name}", responses=_READING)
    async def goal(name: str) -> GoalInfo:
        """One goal."""
        return GoalInfo.of(engine.catalogue.goal(name))

    @router.get("/catalogue", responses=may_answer(400, 500))
    async def catalogue() -> CatalogueInfo:
        """The epoch and size of the catalogue that this gateway follows."""
        now = engine.catalogue
        return CatalogueInfo(epoch=now.epoch, extensions=len(now.cards), goals=len(now.goals))

    return router


# ------------------------------------------------------------------------------------------------ feedback, outcomes


def _journal(desk: FeedbackDesk | None) -> APIRouter:
    router = APIRouter(tags=["Feedback"], route_class=StrictRoute)

    def at_desk() -> FeedbackDesk:
        if desk is None:
            raise StoreUnavailable("this gateway keeps no journal.", hint="It is switched off in the settings.")
        return desk

    @router.post(
        FEEDBACK_PATH,
        responses=may_answer(400, 403, 404, 413, 415, 500, 503),
        response_model=FeedbackReply,
        openapi_extra={"requestBody": _FEEDBACK_BODY},
    )
    async def feedback(request: Request) -> Any:
        """Takes the truth about answers, or ratings of them, for one request or for many. When this answers, what
        counts as new, repeated or changed is durable; giving it again is safe, and counts once.

        One piece of feedback that is wrong is an error. Of many the good are taken, and the others told in `errors`.
        """
        taker = at_desk()
        body = await request.body()
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        place: Literal["index", "row"] = "index"
        if media in UPLOAD_MEDIA:
            place, given = "row", await taker.give_file(body, UPLOAD_MEDIA[media])
        elif media == "application/json" or media.endswith("+json"):
            document = await aside(len(body), lambda: parse_json(body))
            if isinstance(document, dict) and "items" in document:
                given = await taker.give_documents(_items(document))
            else:
                given = await taker.give_one(document)
        else:
            raise WrongMedia(
                f"feedback is not taken as {media[:60]!r}.", hint=f"Send application/json, {' or '.join(UPLOAD_MEDIA)}."
            )
        return JSONResponse(FeedbackReply.of(given, place).model_dump(exclude_none=True))

    @router.get("/v1/outcomes/{trace_id}", responses=may_answer(400, 404, 500, 503))
    async def outcome(
        trace_id: Annotated[str, Path(description="As the answer's parameters have it.", examples=[EXAMPLE_TRACE_ID])],
    ) -> OutcomeInfo:
        """What became of one request: what could have answered it, what did, step by step, and what is kept of it."""
        found = await at_desk().find(trace_id)
        return OutcomeInfo.of(found, at_desk().beliefs(found.setting))

    return router


def _items(document: dict[str, Any]) -> list[Any]:
    for name in document:
        if name != "items":
            raise FeedbackRefused(f"unknown field {name[:40]!r} beside items.", hint="Each item has its own fields.")
    if not isinstance(document["items"], list):
        raise FeedbackRefused("items is a list.", hint="GET /openapi.json describes it.")
    return document["items"]


_FEEDBACK_BODY: dict[str, Any] = {
    "required": True,
    "description": "One object, or many under `items`; or a file of at most 2,000,000 rows with the columns trace_id "
    "and any of output, truth, rating, about_s, user. In CSV (UTF-8) a truth is read as JSON where it is a number, "
    "true, false, a list or a quoted text, else as a text.",
    "content": {
        "application/json": {
            "schema": {
                "anyOf": [
                    {"$ref": "#/components/schemas/FeedbackBody"},
                    {"$ref": "#/components/schemas/FeedbackItems"},
                ]
            }
        },
        "text/csv": {
            "schema": {"type": "string"},
            "example": f"trace_id,truth,rating\n{EXAMPLE_TRACE_ID},7,\n{EXAMPLE_TRACE_ID},,0.5\n",
        },
        "application/vnd.apache.parquet": {"schema": {"type": "string", "format": "binary"}},
    },
}


# ------------------------------------------------------------------------------------------------------------- input


def _request(
    body: InferBody | PlanBody, inputs: dict[str, Array], outputs: tuple[str, ...] = (), id: str = ""
) -> InferRequest:
    if sum(way is not None for way in (body.sentence, body.wanted, body.goal)) != 1:
        raise BadRequest("say what you want in exactly one way.", hint="Give `sentence`, `wanted` or `goal`.")
    check_names(outputs, "output")
    return InferRequest(
        inputs=inputs,
        model=body.goal or "",
        sentence=body.sentence or "",
        wanted=tuple(body.wanted or ()),
        outputs=outputs,
        terms=_given(body.terms),
        types={tensor.name: tensor.type for tensor in body.inputs if tensor.type is not None},
        id=id,
    )


def _given(terms: TermsBody) -> dict[str, Any]:
    return {name: value for name, value in terms if value is not None}


def _tensors(inputs: list[Tensor] | list[Spec]) -> list[dict[str, Any]]:
    return [{"name": t.name, "datatype": t.datatype, "shape": t.shape, "data": t.data} for t in inputs]


def _specified(inputs: list[Spec], limits: Limits) -> dict[str, Array]:
    """The arrays of inputs that may lack their data; those are zeros that take no memory, whatever their shape."""
    if not inputs:
        return {}
    check_names([spec.name for spec in inputs], "input")
    arrays = (
        decode_inputs(_tensors([spec for spec in inputs if spec.data is not None]), limits.max_rows)
        if any(spec.data is not None for spec in inputs)
        else {}
    )
    for spec in inputs:
        if spec.data is None:
            shape = check_shape(f"input {spec.name!r}", spec.shape)
            dtype = DATATYPES[spec.datatype]
            if math.prod(shape) * dtype.itemsize > limits.max_body_bytes:
                raise BodyTooLarge(f"input {spec.name!r} is more than {limits.max_body_bytes} bytes.", hint="Split it.")
            arrays[spec.name] = np.broadcast_to(np.zeros((), dtype), shape)
    check_inputs(arrays, limits.max_rows)
    return {spec.name: arrays[spec.name] for spec in inputs}


# ------------------------------------------------------------------------------------------------------------ errors


def _refusal(error: FenixError, allow: str = "") -> Response:
    headers = {name.decode(): value.decode() for name, value in error_headers(error, allow)}
    return Response(encode_error(error), error.status, headers)


async def _explain_http(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: unknown routes, wrong methods."""
    assert isinstance(error, HTTPException)
    path = request.url.path[:128]
    if error.status_code == 404:
        return _refusal(NotFound(f"there is no {path}.", hint="GET /openapi.json lists the routes."))
    if error.status_code == 405:
        allow = (error.headers or {}).get("Allow", "")
        said = f"{path} does not take {request.method[:16]}."
        return _refusal(WrongMethod(said, hint=f"It takes {allow}."), allow)
    return _refusal(BadRequest(f"{error.detail}.", hint="GET /openapi.json describes what is taken."))


async def _explain_validation(request: Request, error: Exception) -> Response:
    """What pydantic refused: the first fault, by its path in the body."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:])[:256] or "the body"
    kind = BadInput if where.startswith("inputs") else BadRequest
    return _refusal(kind(f"{where}: {first['msg']}.", hint="GET /openapi.json describes it."))


# ----------------------------------------------------------------------------------------------------------- OpenAPI


def _document(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI document: FastAPI's own, and by hand the infer routes, which FastAPI does not serve."""
    document = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
    _, schemas = models_json_schema(
        [
            (Inference, "validation"),
            (InferenceReply, "serialization"),
            (FeedbackBody, "validation"),
            (FeedbackItems, "validation"),
        ],
        ref_template="#/components/schemas/{model}",
    )
    components = document["components"]["schemas"]
    components.update(schemas["$defs"])
    for path, parameters in (
        ("/v2/models/{model}/infer", ("model",)),
        ("/v2/models/{model}/versions/{version}/infer", ("model", "version")),
    ):
        document["paths"][path] = {"post": _infer_operation(parameters)}
    for operations in document["paths"].values():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]  # FastAPI's default; ours are 400
    components.pop("HTTPValidationError", None)
    components.pop("ValidationError", None)
    return document


def _infer_operation(parameters: tuple[str, ...]) -> dict[str, Any]:
    error = {"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}}
    reply = {"schema": {"$ref": "#/components/schemas/InferenceReply"}}
    return {
        "tags": ["Open Inference Protocol"],
        "summary": "Infer",
        "description": "Runs a goal or an extension over a batch of rows. Tensors as JSON, or as binary data behind "
        "the JSON, whose size is then in the header `Inference-Header-Content-Length`.",
        "operationId": "infer_" + "_".join(parameters),
        "parameters": [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in parameters
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Inference"}}},
        },
        "responses": {
            "200": {"description": "The outputs.", "content": {"application/json": reply}},
            **{str(status): {"description": _MEANING[int(status)], "content": error} for status in _RUNNING},
        },
    }
