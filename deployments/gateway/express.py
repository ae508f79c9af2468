"""The express: the wholly ordinary infer request, from its bytes to its answer's bytes without a task, a coroutine or
a framework in between.

Ordinary is JSON with flat numbers, for a model by name, answered in JSON. What is said apart from the numbers
themselves (model, names, types, shapes, parameters) is looked up as a whole: a `Kind`, checked and planned once.
Everything else takes the usual way through `http.py`, which also says what is wrong with a request, so nothing is
refused here.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import orjson

from deployments.gateway.codec import MAX_ID_CHARS, decode_request, internal_error, json_data, output_arrays
from deployments.gateway.limits import Limits, Load
from deployments.gateway.messages import Engine, Route
from deployments.gateway.tally import Meter, Tally
from planner.convoys import MOST_ROWS, Rider
from planner.errors import FenixError
from planner.features import DATATYPES, Array, datatype_of
from planner.plans import Answer
from planner.tokens import Token

MOST_BYTES = 1 << 16  # of a body; larger ones spend their time on numbers anyway
MOST_KINDS = 10_000

_FIELDS = frozenset({"id", "parameters", "inputs"})
_NUMBERS, _WHOLE = frozenset({int, float}), frozenset({int})
_ALLOWED = {name: _NUMBERS if dtype.kind == "f" else _WHOLE for name, dtype in DATATYPES.items() if dtype.kind in "fiu"}
del _ALLOWED["FP16"]


class Reply(Protocol):
    """Where the answer to one request goes."""

    def answer(self, body: bytes) -> None:
        """Sends the answer."""

    def refuse(self, error: FenixError) -> None:
        """Sends an error instead."""


# An input: name, types of its numbers in JSON, dtype, whole shape, and the largest number of a floating point dtype.
_Tensor = tuple[str, frozenset[type], np.dtype[Any], tuple[int, ...], float]


class Kind:
    """Requests that differ in nothing but their numbers and their id."""

    __slots__ = ("_head", "_words", "meter", "route", "tensors")

    def __init__(self, route: Route, tensors: tuple[_Tensor, ...], words: _Words, meter: Meter):
        self.route = route
        self.meter = meter
        self.tensors = tensors
        self._words = words
        self._head = b'{"model_name":%s,"model_version":%s,' % (orjson.dumps(route.model), orjson.dumps(route.version))

    def encode(self, answer: Answer, start: int, stop: int, id: str, trace_id: str) -> bytes:
        """The body of the answer for rows `start` to `stop`, as `codec.encode_answer` would write it."""
        words = self._words
        if answer is not words.answer:
            words.prepare(answer)
        parts = [self._head]
        if id:
            parts += [b'"id":', orjson.dumps(id), b","]
        parts += [words.middle, trace_id.encode()]
        if words.confidence is not None:
            sure = words.confidence[start] if stop - start == 1 else words.confidence[start:stop].min()
            parts += [b'","confidence":', orjson.dumps(float(sure))]
            parts.append(words.tail)
        else:
            parts += [b'"', words.tail]
        n_rows = stop - start
        for name, label, values, shape in words.outputs:
            parts.append(label % n_rows)
            parts.append(shape)
            rows = values[start:stop]
            if rows.dtype.hasobject:
                parts.append(orjson.dumps(json_data(name, "BYTES", rows)))
            else:
                parts.append(orjson.dumps(rows.ravel(), option=orjson.OPT_SERIALIZE_NUMPY))
            parts.append(b"},")
        parts[-1] = b"}]}"
        return b"".join(parts)


class _Words:
    """What is the same for all requests of a group, written out. One for all kinds, as groups are told one by one."""

    __slots__ = ("answer", "confidence", "middle", "outputs", "tail")

    def __init__(self) -> None:
        self.answer: Answer | None = None  # whose words these are

    def prepare(self, answer: Answer) -> None:
        self.answer = None  # what follows may raise halfway
        self.middle = b'"parameters":{"plan":%s,"trace_id":"' % orjson.dumps(answer.plan.id)
        given = [rows.confidence for rows in answer.outputs.values() if rows.confidence is not None]
        self.confidence: Array | None = np.minimum.reduce(given) if given else None
        self.tail = b',"flags":%s},"outputs":[' % orjson.dumps(",".join(sorted(answer.flags)))
        self.outputs: list[tuple[str, bytes, Array, bytes]] = []
        for name, values in output_arrays(answer.outputs).items():
            if values.dtype == np.float16:
                json_data(name, "FP16", values)  # raises
            label = b'{"name":%s,"datatype":"%s","shape":[%%d' % (
                orjson.dumps(name).replace(b"%", b"%%"),
                datatype_of(values).encode(),
            )
            shape = "".join(f",{size}" for size in values.shape[1:]).encode() + b'],"data":'
            self.outputs.append((name, label, values, shape))
        self.answer = answer


class Ride(Rider):
    """One request on the express."""

    __slots__ = ("_began_s", "_done", "_id", "_kind", "_load", "_reply")

    def __init__(self, kind: Kind, inputs: dict[str, Array], token: Token, id: str, reply: Reply, load: Load) -> None:
        self.inputs, self.n_rows, self.token, self.group = inputs, kind.route.n_rows, token, None
        self._kind, self._id, self._reply, self._load = kind, id, reply, load
        self._done = False
        self._began_s = perf_counter()

    def arrive(self, answer: Answer, start: int, stop: int, trace_id: str) -> None:
        if self._end():
            try:
                body = self._kind.encode(answer, start, stop, self._id, trace_id)
            except FenixError as error:
                self._refuse(error)
            except Exception as error:
                self._refuse(internal_error(error))
            else:
                self._reply.answer(body)
                self._kind.meter.answered(perf_counter() - self._began_s)

    def fail(self, error: FenixError) -> None:
        if self._end():
            self._refuse(error)

    def _refuse(self, error: FenixError) -> None:
        self._reply.refuse(error)
        self._kind.meter.refused[error.status] += 1

    def leave(self) -> None:
        """The client has gone."""
        if self._end():
            self._kind.route.convoy.abandon(self)

    def _end(self) -> bool:
        """Whether this is the first word about the request."""
        if self._done:
            return False
        self._done = True
        self._load.running -= 1
        return True


class Express:
    """Takes the requests that are wholly ordinary."""

    def __init__(self, engine: Engine, limits: Limits, load: Load, tally: Tally | None = None) -> None:
        self._engine = engine
        self._limits = limits
        self._load = load
        self._tally = tally or Tally()
        self._kinds: dict[Any, Kind] = {}
        self._words = _Words()
        self._time_s: Callable[[], float] = asyncio.get_running_loop().time

    def take(self, target: tuple[str, str], body: bytes, reply: Reply) -> Ride | None:
        """Sets a request for (model, version) on its way; None when it has to take the usual way. Never raises."""
        try:
            document = orjson.loads(body)
            tensors = document["inputs"]
            if not document.keys() <= _FIELDS or len(tensors) > 16 or not tensors:
                return None
            said: list[Any] = [target]
            if "parameters" in document:
                said.append(orjson.dumps(document["parameters"], option=orjson.OPT_SORT_KEYS))
            for tensor in tensors:
                if len(tensor) != 4 or tensor["datatype"] not in _ALLOWED:
                    return None
                said += (tensor["name"], tensor["datatype"], *tensor["shape"])
                if not set(map(type, tensor["shape"])) <= _WHOLE:
                    return None
            key = tuple(said)
            kind = self._kinds.get(key)
            if kind is None or kind.route.generation != self._engine.generation:
                kind = self._kind(key, target, body)
                if kind is None:
                    return None
            inputs = {}
            for tensor, (name, allowed, dtype, shape, most) in zip(tensors, kind.tensors, strict=True):
                data = tensor["data"]
                if type(data) is not list or not set(map(type, data)) <= allowed:
                    return None
                # Cheaper than looking at each number; a square too large for its type only takes the usual way.
                if most and not math.hypot(*data) <= most:
                    return None
                inputs[name] = np.array(data, dtype).reshape(shape)
            id = document.get("id", "")
            if type(id) is not str or len(id) > MAX_ID_CHARS or self._load.full():
                return None
        except (orjson.JSONDecodeError, LookupError, TypeError, ValueError, AttributeError, OverflowError):
            return None
        ride = Ride(kind, inputs, Token.of(kind.route.terms, self._time_s()), id, reply, self._load)
        self._load.running += 1
        kind.route.convoy.join(ride)
        return ride

    def _kind(self, key: Any, target: tuple[str, str], body: bytes) -> Kind | None:
        """The kind of a request, checked and planned as the usual way does it; None when it is not ordinary."""
        try:
            request, form = decode_request(body, model=target[0], version=target[1], max_rows=self._limits.max_rows)
            route = self._engine.route(request)
        except FenixError:
            return None
        if form.binary or route.n_rows > MOST_ROWS or route.terms.alone:
            return None
        tensors = []
        for name, values in request.inputs.items():
            allowed = _ALLOWED.get(datatype_of(values))
            if allowed is None:
                return None
            most = float(np.finfo(values.dtype).max) if values.dtype.kind == "f" else 0.0
            tensors.append((name, allowed, values.dtype, values.shape, most))
        if len(self._kinds) >= MOST_KINDS:
            self._kinds.clear()
        kind = self._kinds[key] = Kind(route, tuple(tensors), self._words, self._tally.meter(route.model))
        return kind
