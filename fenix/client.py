"""Asking a Fenix cluster from Python, synchronously (`Client`) or not (`AsyncClient`), over HTTP.

What is said on the wire is written once, in `_Wire`: each method is a generator that yields requests, is sent the
responses, and returns the result. The two clients only differ in how they carry them.
"""

from __future__ import annotations

import asyncio
import math
import sys
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import quote

import httpx
import numpy as np
import orjson

from deployments.gateway.codec import decode_error, decode_reply, encode_request
from deployments.gateway.uploads import FEEDBACK_PATH, read_upload
from fenix.quality import AsyncQualityMethods, QualityMethods
from fenix.rollouts import AsyncRolloutMethods, RolloutMethods
from fenix.rules import AsyncRuleMethods, RuleMethods
from lineage.bulk import format_of
from lineage.feedback import Feedback
from planner.errors import BadInput, BadRequest, ClusterDown, DeadlineExceeded, FenixError, Overloaded
from planner.features import DATATYPES, Array, check_finite, datatype_of
from planner.goals import Terms

DEFAULT_URL = "http://127.0.0.1:8000"

Inputs = Mapping[str, Any] | Any  # arrays by input name; or one array, where the goal has one input
GivenTerms = Terms | Mapping[str, Any] | None
T = TypeVar("T")

_PAGE = 1000
_MOST_JSON_BYTES = 4096
_NO_TERMS = Terms()
_FEEDBACK_FIELDS = [field.name for field in fields(Feedback)]
_MOST_UPLOAD_BYTES = 4 << 20
_MOST_TOLD = 100
_PATIENCE_S = 60.0


@dataclass(frozen=True, slots=True)
class Result:
    """One answer.

    `outputs` are arrays of shape (n_rows, *row shape) by name; `confidence` is the lowest over the rows, None where
    no step gives one; `plan` and `trace_id` say what answered; `flags` are honest remarks such as `fallback`;
    `missing` are the outputs that the terms allowed to be left out (`partial`), each with the reason; `parameters` are
    all of these as they were sent. `steps` are the times of each step where the route tells them
    (`ask` and `want` do).
    """

    outputs: Mapping[str, Array]
    model: str = ""
    version: str = ""
    id: str = ""
    confidence: float | None = None
    plan: str = ""
    trace_id: str = ""
    flags: frozenset[str] = frozenset()
    missing: Mapping[str, str] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[Mapping[str, Any], ...] = ()

    def __getitem__(self, output: str) -> Array:
        return self.outputs[output]


class _Ask(NamedTuple):
    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = {}  # a NamedTuple's default, never changed


class _Pause(NamedTuple):
    seconds: float


class _End(NamedTuple):
    result: Any


# Is sent the response to what it asks, and nothing after a pause.
_Talk = Generator[_Ask | _Pause, Any, T]


def _next(talk: _Talk[Any], response: httpx.Response | None) -> _Ask | _Pause | _End:
    try:
        return talk.send(response)
    except StopIteration as end:
        return _End(end.value)


class Client(RolloutMethods, QualityMethods, RuleMethods):
    """A cluster's gateway at `url`. Thread-safe; close it, or use it in a `with` block.

    `timeout_s` bounds connecting, and each wait for the answer. Every method raises the errors of
    `planner/errors.py` as the gateway raised them; ClusterDown when nothing answers; DeadlineExceeded after
    `timeout_s`; Overloaded carries `retry_after_s`.
    """

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self._wire = _Wire(url, timeout_s)
        self._http = httpx.Client(
            base_url=self._wire.url, timeout=timeout_s, headers=dict(headers or {}), trust_env=False
        )

    def infer(
        self,
        name: str,
        inputs: Inputs,
        *,
        terms: GivenTerms = None,
        outputs: Sequence[str] = (),
        id: str = "",
        version: str = "",
    ) -> Result:
        """Asks a goal or an extension by name.

        Arrays are sent as they are, so their dtype must be the one of the input; lists are converted to it.
        `outputs` selects by name, empty means all; `<name>.confidence` is the confidence per row.
        """
        return self._run(self._wire.infer(name, inputs, terms, outputs, id, version))

    def ask(
        self, sentence: str, inputs: Mapping[str, Any], *, terms: GivenTerms = None, outputs: Sequence[str] = ()
    ) -> Result:
        """Asks in your own words. Raises Unsure, naming the nearest goals, when they could mean several or none."""
        return self._run(self._wire.ask(sentence, inputs, terms, outputs))

    def want(
        self,
        wanted: str | Sequence[str],
        inputs: Mapping[str, Any],
        *,
        types: Mapping[str, str] | None = None,
        terms: GivenTerms = None,
        outputs: Sequence[str] = (),
    ) -> Result:
        """Asks for feature types (`label/digit`). `types` gives those of inputs whose name leaves them open."""
        return self._run(self._wire.want(wanted, inputs, types, terms, outputs))

    def plan(
        self,
        goal: str = "",
        inputs: Mapping[str, Any] | None = None,
        *,
        sentence: str = "",
        wanted: str | Sequence[str] = (),
        types: Mapping[str, str] | None = None,
        terms: GivenTerms = None,
    ) -> dict[str, Any]:
        """What would be done, without doing it: `goal`, `sureness`, and the plans `chosen`, `others`, `rejected`.

        Give one of `goal`, `sentence`, `wanted`. Without inputs, one row of each input is meant.
        """
        return self._run(self._wire.plan(goal, inputs, sentence, wanted, types, terms))

    def model(self, name: str, version: str = "") -> dict[str, Any]:
        """Name, versions, inputs and outputs of a goal or an extension, as the Open Inference Protocol has them."""
        return self._run(self._wire.get(_model_path(name, version)))

    def extensions(self) -> list[dict[str, Any]]:
        """All extension versions in the catalogue."""
        return self._run(self._wire.pages("extensions"))

    def extension(self, id: str) -> dict[str, Any]:
        """One extension version, by `name@version` or by a bare name where there is one version."""
        return self._run(self._wire.get(f"/v1/extensions/{_quoted(id)}"))

    def goals(self) -> list[dict[str, Any]]:
        """All goals in the catalogue."""
        return self._run(self._wire.pages("goals"))

    def goal(self, name: str) -> dict[str, Any]:
        """One goal."""
        return self._run(self._wire.get(f"/v1/goals/{_quoted(name)}"))

    def feedback(
        self,
        trace_id: str,
        *,
        truth: Any = None,
        rating: float | None = None,
        output: str = "",
        about_s: float | None = None,
        user: str = "",
    ) -> dict[str, Any]:
        """Says what the right answer was (`truth`), or how good the answer was (`rating`, in [0, 1]). `trace_id` is
        that of the `Result`.

        A truth is a label or a number, an array or list of them for several rows, with None for what is not known;
        `output` names the output where there are several. `about_s` is when it was seen, since 1970; `user` in whose
        name it comes. Returns how many were `new`, `repeated` and `changed`. When this returns, it is durable; doing
        it again is safe, and counts once. Raises FeedbackRefused, NotYourRequest and RequestNotFound.
        """
        return self._run(self._wire.feedback(trace_id, truth, rating, output, about_s, user))

    def feedback_file(self, path: str | Path) -> dict[str, Any]:
        """Gives feedback from a file of CSV or Parquet, in pieces, so it may be of any length. The columns are trace_id
        and any of output, truth, rating, about_s, user.

        Returns how many rows were `new`, `repeated`, `changed` and `refused`, and in `errors` the first hundred of the
        refused, each with `row` (from 1), `trace_id`, `error` and its `kind`. Raises FeedbackRefused for a file that
        cannot be read to its end, and what the gateway raises; both say how far it came. Doing it again is safe.
        """
        return self._run(self._wire.feedback_file(Path(path)))

    def outcome(self, trace_id: str) -> dict[str, Any]:
        """What became of one request: what could have answered it, what did, the times of its steps, and what is kept
        of it. Raises RequestNotFound."""
        return self._run(self._wire.outcome(trace_id))

    def health(self) -> bool:
        """Whether the cluster is there and ready to answer. Raises nothing."""
        try:
            return bool(self._run(self._wire.get("/v2/health/ready")).get("ready"))
        except FenixError:
            return False

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return self._run(self._wire.get(path) if body is None else self._wire.post(path, body))

    def _drop(self, path: str) -> dict[str, Any]:
        return self._run(self._wire.delete(path))

    def _run(self, talk: _Talk[T]) -> T:
        response: httpx.Response | None = None
        while True:
            step = _next(talk, response)
            if isinstance(step, _End):
                result: T = step.result
                return result
            if isinstance(step, _Pause):
                time.sleep(step.seconds)
                response = None
                continue
            try:
                response = self._http.request(
                    step.method, step.path, content=step.body or None, headers=dict(step.headers)
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = self._wire.failure(error)
                talk.throw(failure)  # so that it can say how far it came
                raise failure from error


class AsyncClient(AsyncRolloutMethods, AsyncQualityMethods, AsyncRuleMethods):
    """`Client` for asyncio: the same methods, to be awaited, and `async with`. For one event loop."""

    def __init__(
        self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0, headers: Mapping[str, str] | None = None
    ) -> None:
        self._wire = _Wire(url, timeout_s)
        self._http = httpx.AsyncClient(
            base_url=self._wire.url, timeout=timeout_s, headers=dict(headers or {}), trust_env=False
        )

    async def infer(
        self,
        name: str,
        inputs: Inputs,
        *,
        terms: GivenTerms = None,
        outputs: Sequence[str] = (),
        id: str = "",
        version: str = "",
    ) -> Result:
        """See `Client.infer`."""
        return await self._run(self._wire.infer(name, inputs, terms, outputs, id, version))

    async def ask(
        self, sentence: str, inputs: Mapping[str, Any], *, terms: GivenTerms = None, outputs: Sequence[str] = ()
    ) -> Result:
        """See `Client.ask`."""
        return await self._run(self._wire.ask(sentence, inputs, terms, outputs))

    async def want(
        self,
        wanted: str | Sequence[str],
        inputs: Mapping[str, Any],
        *,
        types: Mapping[str, str] | None = None,
        terms: GivenTerms = None,
        outputs: Sequence[str] = (),
    ) -> Result:
        """See `Client.want`."""
        return await self._run(self._wire.want(wanted, inputs, types, terms, outputs))

    async def plan(
        self,
        goal: str = "",
        inputs: Mapping[str, Any] | None = None,
        *,
        sentence: str = "",
        wanted: str | Sequence[str] = (),
        types: Mapping[str, str] | None = None,
        terms: GivenTerms = None,
    ) -> dict[str, Any]:
        """See `Client.plan`."""
        return await self._run(self._wire.plan(goal, inputs, sentence, wanted, types, terms))

    async def model(self, name: str, version: str = "") -> dict[str, Any]:
        """See `Client.model`."""
        return await self._run(self._wire.get(_model_path(name, version)))

    async def extensions(self) -> list[dict[str, Any]]:
        """See `Client.extensions`."""
        return await self._run(self._wire.pages("extensions"))

    async def extension(self, id: str) -> dict[str, Any]:
        """See `Client.extension`."""
        return await self._run(self._wire.get(f"/v1/extensions/{_quoted(id)}"))

    async def goals(self) -> list[dict[str, Any]]:
        """See `Client.goals`."""
        return await self._run(self._wire.pages("goals"))

    async def goal(self, name: str) -> dict[str, Any]:
        """See `Client.goal`."""
        return await self._run(self._wire.get(f"/v1/goals/{_quoted(name)}"))

    async def feedback(
        self,
        trace_id: str,
        *,
        truth: Any = None,
        rating: float | None = None,
        output: str = "",
        about_s: float | None = None,
        user: str = "",
    ) -> dict[str, Any]:
        """See `Client.feedback`."""
        return await self._run(self._wire.feedback(trace_id, truth, rating, output, about_s, user))

    async def feedback_file(self, path: str | Path) -> dict[str, Any]:
        """See `Client.feedback_file`."""
        return await self._run(self._wire.feedback_file(Path(path)), on_thread=True)

    async def outcome(self, trace_id: str) -> dict[str, Any]:
        """See `Client.outcome`."""
        return await self._run(self._wire.outcome(trace_id))

    async def health(self) -> bool:
        """See `Client.health`."""
        try:
            return bool((await self._run(self._wire.get("/v2/health/ready"))).get("ready"))
        except FenixError:
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        return await self._run(self._wire.get(path) if body is None else self._wire.post(path, body))

    async def _drop(self, path: str) -> dict[str, Any]:
        return await self._run(self._wire.delete(path))

    async def _run(self, talk: _Talk[T], *, on_thread: bool = False) -> T:
        response: httpx.Response | None = None
        while True:
            step = await asyncio.to_thread(_next, talk, response) if on_thread else _next(talk, response)
            if isinstance(step, _End):
                result: T = step.result
                return result
            if isinstance(step, _Pause):
                await asyncio.sleep(step.seconds)
                response = None
                continue
            try:
                response = await self._http.request(
                    step.method, step.path, content=step.body or None, headers=dict(step.headers)
                )
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = self._wire.failure(error)
                talk.throw(failure)  # so that it can say how far it came
                raise failure from error


class _Wire:
    """What is said to a gateway and what its answers mean; carries nothing itself."""

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url.rstrip("/")
        if not self.url.startswith(("http://", "https://")):
            raise BadRequest(f"{url!r} is no address of a gateway.", hint=f"Write it like {DEFAULT_URL}.")
        self._timeout_s = timeout_s
        self._inputs_of: dict[tuple[str, str], list[dict[str, Any]]] = {}  # learnt from metadata, forgotten on errors

    # ------------------------------------------------------------------------------------------------- requests

    def infer(
        self, name: str, inputs: Inputs, terms: GivenTerms, outputs: Sequence[str], id: str, version: str
    ) -> _Talk[Result]:
        arrays = yield from self._arrays(name, version, inputs)
        given = _terms(terms)
        try:
            # Open Inference says of priority 0 that it is "the default"; for ours, the most urgent, /v1 is the way.
            if given.get("priority") == 0:
                goal = f"{name}@{version}" if version else name
                return (yield from self._infer_v1({"goal": goal, "id": id}, arrays, None, given, outputs))
            encoded = encode_request(arrays, outputs=outputs, terms=given, id=id)
            headers = {"content-type": "application/json"}
            if encoded.header_bytes is not None:
                headers = {
                    "content-type": "application/octet-stream",
                    "inference-header-content-length": str(encoded.header_bytes),
                }
            response = yield _Ask("POST", f"{_model_path(name, version)}/infer", encoded.body, headers)
            self._raise_for(response)
        except FenixError:
            self._inputs_of.pop((name, version), None)
            raise
        length = response.headers.get("inference-header-content-length")
        reply = decode_reply(response.content, None if length is None else int(length))
        return _result(reply.outputs, reply.parameters, model=reply.model, version=reply.version, id=reply.id)

    def ask(self, sentence: str, inputs: Mapping[str, Any], terms: GivenTerms, outputs: Sequence[str]) -> _Talk[Result]:
        given = _terms(terms)
        arrays = {name: values for name, values in inputs.items() if isinstance(values, np.ndarray)}
        is_complete = len(arrays) == len(inputs)  # lists have no dtype until the goal is known
        if is_complete and all(map(_suits_json, arrays.values())):
            return (yield from self._infer_v1({"sentence": sentence}, arrays, None, given, outputs))
        body: dict[str, Any] = {"sentence": sentence, "terms": given}
        if is_complete:
            body["inputs"] = [_spec(name, _as_array(name, values), None) for name, values in arrays.items()]
        found = yield from self.post("/v1/plan", body)
        return (yield from self.infer(found["goal"], inputs, terms, outputs, "", ""))

    def want(
        self,
        wanted: str | Sequence[str],
        inputs: Mapping[str, Any],
        types: Mapping[str, str] | None,
        terms: GivenTerms,
        outputs: Sequence[str],
    ) -> _Talk[Result]:
        wish = {"wanted": _listed(wanted)}
        arrays = {name: _as_array(name, values) for name, values in inputs.items()}
        return (yield from self._infer_v1(wish, arrays, types, _terms(terms), outputs))

    def plan(
        self,
        goal: str,
        inputs: Mapping[str, Any] | None,
        sentence: str,
        wanted: str | Sequence[str],
        types: Mapping[str, str] | None,
        terms: GivenTerms,
    ) -> _Talk[dict[str, Any]]:
        wish = {"goal": goal, "sentence": sentence, "wanted": _listed(wanted)}
        body: dict[str, Any] = {name: value for name, value in wish.items() if value}
        body["terms"] = _terms(terms)
        if inputs:
            if goal:
                arrays = yield from self._arrays(goal, "", inputs)
            else:
                arrays = {name: _as_array(name, values) for name, values in inputs.items()}
            body["inputs"] = [_spec(name, values, types) for name, values in arrays.items()]
        return (yield from self.post("/v1/plan", body))

    def get(self, path: str) -> _Talk[dict[str, Any]]:
        response = yield _Ask("GET", path)
        return self._object(response)

    def delete(self, path: str) -> _Talk[dict[str, Any]]:
        response = yield _Ask("DELETE", path)
        return self._object(response)

    def pages(self, what: str) -> _Talk[list[dict[str, Any]]]:
        found: list[dict[str, Any]] = []
        while True:
            page = yield from self.get(f"/v1/{what}?limit={_PAGE}&offset={len(found)}")
            found += page[what]
            if len(page[what]) < _PAGE:
                return found

    def feedback(
        self, trace_id: str, truth: Any, rating: Any, output: str, about_s: Any, user: str
    ) -> _Talk[dict[str, Any]]:
        document = {
            "trace_id": trace_id,
            "output": output,
            "truth": _flat(truth),
            "rating": _flat(rating),
            "about_s": _flat(about_s),
            "user": user,
        }
        Feedback.parse(document, math.inf)  # when it is now, the gateway knows
        return (yield from self.post(FEEDBACK_PATH, document))

    def feedback_file(self, path: Path) -> _Talk[dict[str, Any]]:
        total: dict[str, Any] = {"new": 0, "repeated": 0, "changed": 0, "refused": 0, "errors": []}
        try:
            for piece in read_upload(path, format_of(path), math.inf, sys.maxsize):
                total["refused"] += piece.n_errors
                total["errors"] += [
                    {"row": f.row, "trace_id": "", "error": f.error.text(), "kind": type(f.error).__name__}
                    for f in piece.errors
                ]
                begin = 0
                for items in _bodies(piece.feedback):
                    reply = yield from self._patiently(b'{"items":[%b]}' % b",".join(items))
                    for count in ("new", "repeated", "changed", "refused"):
                        total[count] += reply[count]
                    for fault in reply["errors"]:
                        row = piece.rows[begin + fault.pop("index")]
                        total["errors"].append({"row": row, **fault})
                    begin += len(items)
                total["errors"] = sorted(total["errors"], key=lambda fault: fault["row"])[:_MOST_TOLD]
        except FenixError as error:
            if any(total[count] for count in ("new", "repeated", "changed", "refused")):
                counts = ", ".join(f"{total[count]} {count}" for count in ("new", "repeated", "changed", "refused"))
                error.hint = f"{error.hint} Before that: {counts}. Giving the file again is safe.".strip()
            raise
        return total

    def _patiently(self, body: bytes) -> _Talk[dict[str, Any]]:
        """Gives feedback, and comes back later as often as the gateway has too much of it, for about a minute."""
        left_s = _PATIENCE_S
        while True:
            response = yield _Ask("POST", FEEDBACK_PATH, body, {"content-type": "application/json"})
            try:
                return self._object(response)
            except Overloaded as error:
                left_s -= error.retry_after_s
                if left_s < 0.0:
                    raise
                yield _Pause(error.retry_after_s)

    def outcome(self, trace_id: str) -> _Talk[dict[str, Any]]:
        if not trace_id:
            raise BadRequest("the trace id is empty.", hint="It is in the answer's parameters.")
        return (yield from self.get(f"/v1/outcomes/{quote(trace_id, safe='')}"))

    def _infer_v1(
        self,
        wish: Mapping[str, Any],
        arrays: Mapping[str, Array],
        types: Mapping[str, str] | None,
        terms: Mapping[str, Any],
        outputs: Sequence[str],
    ) -> _Talk[Result]:
        body = {
            **wish,
            "inputs": [_tensor(name, values, types) for name, values in arrays.items()],
            "terms": terms,
            "outputs": list(outputs),
        }
        answer = yield from self.post("/v1/infer", body)
        return _result(
            {output["name"]: _from_json(output) for output in answer["outputs"]},
            answer["parameters"],
            model=answer["model"],
            version=answer["version"],
            id=answer["id"],
            steps=tuple(answer["steps"]),
        )

    def post(self, path: str, body: Mapping[str, Any]) -> _Talk[dict[str, Any]]:
        try:
            encoded = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        except TypeError as error:
            raise BadRequest(f"JSON cannot carry this request: {error}.") from None
        response = yield _Ask("POST", path, encoded, {"content-type": "application/json"})
        return self._object(response)

    def _arrays(self, name: str, version: str, inputs: Inputs) -> _Talk[dict[str, Array]]:
        """The inputs as arrays by name; looks the model up only where names or dtypes are missing."""
        by_name: Mapping[str, Any] | None = inputs if isinstance(inputs, Mapping) else None
        if by_name is not None and all(isinstance(values, np.ndarray) for values in by_name.values()):
            return {port: _as_array(port, values) for port, values in by_name.items()}
        key = (name, version)
        if key not in self._inputs_of:
            self._inputs_of[key] = (yield from self.get(_model_path(name, version)))["inputs"]
        ports = self._inputs_of[key]
        if by_name is None:
            if len(ports) != 1:
                names = ", ".join(port["name"] for port in ports)
                raise BadInput(f"{name!r} has {len(ports)} inputs.", hint=f"Give a mapping with {names}.")
            by_name = {ports[0]["name"]: inputs}
        datatypes = {port["name"]: port["datatype"] for port in ports}
        return {port: _as_array(port, values, datatypes.get(port, "")) for port, values in by_name.items()}

    # -------------------------------------------------------------------------------------------------- answers

    def _raise_for(self, response: httpx.Response) -> None:
        if response.status_code != 200:
            wait = response.headers.get("retry-after", "")
            raise decode_error(
                response.status_code,
                response.content,
                kind=response.headers.get("fenix-error", ""),
                retry_after_s=float(wait) if wait.isdigit() else None,
            )

    def _object(self, response: httpx.Response) -> dict[str, Any]:
        self._raise_for(response)
        try:
            document = orjson.loads(response.content)
        except orjson.JSONDecodeError:
            document = None
        if not isinstance(document, dict):
            raise ClusterDown(
                f"what answers at {self.url} is no Fenix gateway.", hint="`fenix status` prints the address of yours."
            )
        return document

    def failure(self, error: Exception) -> FenixError:
        """The error of ours that stands for one of httpx's."""
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            return ClusterDown(
                f"nothing answers at {self.url}.", hint="Start a cluster with `fenix up`, or give the address of one."
            )
        if isinstance(error, httpx.TimeoutException):
            return DeadlineExceeded(
                f"{self.url} did not answer within {self._timeout_s:g} s.", hint="Allow the client a longer timeout_s."
            )
        if isinstance(error, httpx.InvalidURL | httpx.UnsupportedProtocol):
            return BadRequest(f"{self.url!r} is no address: {error}.", hint=f"Write it like {DEFAULT_URL}.")
        return ClusterDown(f"the connection to {self.url} broke: {error}.", hint="Retry; `fenix status` says more.")


def _model_path(name: str, version: str) -> str:
    path = f"/v2/models/{_quoted(name)}"
    return f"{path}/versions/{_quoted(version)}" if version else path


def _quoted(name: str) -> str:
    if not name:
        raise BadRequest("the name is empty.", hint="`fenix get goals` lists what can be asked.")
    return quote(name, safe="@")


def _flat(value: Any) -> Any:
    """Truths as they travel: a scalar of Python, and for several (in an array or nested lists) a flat list."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        parts = [_flat(item) for item in value]
        items = [item for part in parts for item in (part if isinstance(part, list) else [part])]
        return items[0] if len(items) == 1 else items
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else value


def _bodies(items: Sequence[Feedback]) -> Iterator[list[bytes]]:
    """The items in JSON, in lists of bearable size."""
    found: list[bytes] = []
    n_bytes = 0
    for item in items:
        document = {name: value for name in _FEEDBACK_FIELDS if (value := getattr(item, name)) is not None}
        found.append(orjson.dumps(document))
        n_bytes += len(found[-1])
        if n_bytes > _MOST_UPLOAD_BYTES:
            yield found
            found, n_bytes = [], 0
    if found:
        yield found


def _listed(names: str | Sequence[str]) -> list[str]:
    return [names] if isinstance(names, str) and names else list(names)


def _terms(terms: GivenTerms) -> dict[str, Any]:
    """Terms as they travel: what differs from no terms at all, tags as a list."""
    if isinstance(terms, Terms):
        given = {
            f.name: value for f in fields(Terms) if (value := getattr(terms, f.name)) != getattr(_NO_TERMS, f.name)
        }
    else:
        given = {name: value for name, value in (terms or {}).items() if value is not None}
    tags = given.get("tags")
    if isinstance(tags, str):
        given["tags"] = [tag.strip() for tag in tags.split(",") if tag.strip()]
    elif isinstance(tags, set | frozenset | tuple):
        given["tags"] = sorted(tags)
    return given


def _as_array(name: str, values: Any, datatype: str = "") -> Array:
    """Arrays as they are; what is no array yet becomes one of `datatype`."""
    if isinstance(values, np.ndarray):
        return values.astype(object) if values.dtype.kind in "US" else values
    return cast(name, values, datatype)


def cast(name: str, values: Any, datatype: str = "") -> Array:
    """The values as an array of that Open Inference datatype ("": whichever they have).

    Raises BadInput when they are ragged, or when the datatype would lose something, such as a fraction.
    """
    try:
        found = np.asarray(values)
    except ValueError:
        raise BadInput(f"input {name!r} is ragged.", hint="Each row has the same shape.") from None
    dtype = DATATYPES.get(datatype)
    if found.dtype.kind in "US" or dtype == np.object_:
        found = found.astype(object)
    if dtype is None or found.dtype == dtype:
        return found
    with np.errstate(all="ignore"):
        try:
            fitted: Array = found.astype(dtype)
        except (TypeError, ValueError):
            raise BadInput(f"input {name!r} holds values that are no {datatype}.") from None
    if dtype.kind in "iub" and not np.array_equal(fitted, found):
        raise BadInput(f"input {name!r} holds values that do not fit into {datatype}.")
    return fitted


def _suits_json(values: Array) -> bool:
    """Whether JSON in one trip is faster than asking for the goal first and then sending binary data to it.

    Measured on one machine: 64 floats 1.6 against 3.7 ms, 4,096 floats 8.0 against 2.4, a million 650 against 32.
    FP16, and bytes that are not UTF-8, have to be binary.
    """
    return values.nbytes <= _MOST_JSON_BYTES and values.dtype != np.float16 and values.dtype.kind != "O"


def _spec(name: str, values: Array, types: Mapping[str, str] | None) -> dict[str, Any]:
    spec = {"name": name, "datatype": datatype_of(values), "shape": list(values.shape)}
    if types and name in types:
        spec["type"] = types[name]
    return spec


def _tensor(name: str, values: Array, types: Mapping[str, str] | None) -> dict[str, Any]:
    """A tensor in JSON. Raises BadInput for what JSON does not carry."""
    values = _as_array(name, values)
    spec = _spec(name, values, types)
    check_finite(name, values)
    if spec["datatype"] == "FP16":
        raise BadInput(f"input {name!r} is FP16, which JSON does not carry.", hint="Ask by the goal's name, or cast.")
    if spec["datatype"] != "BYTES":
        return {**spec, "data": np.ascontiguousarray(values).ravel()}
    try:
        texts = [text.decode() if isinstance(text, bytes) else str(text) for text in values.ravel().tolist()]
    except UnicodeDecodeError:
        raise BadInput(f"input {name!r} has bytes that are not UTF-8.", hint="Ask by the goal's name.") from None
    return {**spec, "data": texts}


def _from_json(output: Mapping[str, Any]) -> Array:
    """The array of an output tensor in JSON, where NaN and infinity read null."""
    data, dtype = output["data"], DATATYPES[output["datatype"]]
    if dtype.kind == "O":
        data = [text.encode() for text in data]
    elif dtype.kind == "f":
        data = [np.nan if value is None else value for value in data]
    array = np.empty(len(data), dtype)
    array[:] = data
    return array.reshape(output["shape"])


def _result(
    outputs: Mapping[str, Array],
    parameters: Mapping[str, Any],
    *,
    model: str,
    version: str,
    id: str,
    steps: tuple[Mapping[str, Any], ...] = (),
) -> Result:
    confidence = parameters.get("confidence")
    return Result(
        outputs=outputs,
        model=model,
        version=version,
        id=id,
        confidence=None if confidence is None else float(confidence),
        plan=str(parameters.get("plan", "")),
        trace_id=str(parameters.get("trace_id", "")),
        flags=frozenset(flag for flag in str(parameters.get("flags", "")).split(",") if flag),
        missing=_missing(parameters),
        parameters=parameters,
        steps=steps,
    )


def _missing(parameters: Mapping[str, Any]) -> dict[str, str]:
    """The missing outputs, as Fenix tells them; other servers may use the name for something else."""
    try:
        told = orjson.loads(str(parameters.get("missing", "{}")))
    except orjson.JSONDecodeError:
        return {}
    return {str(name): str(reason) for name, reason in told.items()} if isinstance(told, dict) else {}
