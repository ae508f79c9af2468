"""Open Inference Protocol V2 over HTTP: JSON and the binary tensor extension to numpy arrays, and back.

Both halves live here: what the gateway needs (`decode_request`, `encode_answer`, `encode_error`) and what a client
needs (`encode_request`, `decode_reply`, `decode_error`). gRPC (`protocol.py`) shares the checks of tensors and
parameters, so that both wires refuse the same things with the same words. Nothing received is unpickled.

Where the protocol leaves a choice:

- JSON data may be flat (row-major) or nested exactly as the shape says. Outputs in JSON are flat.
- JSON types are taken literally: `"1"` is no number, `true` is no 1, `1.0` is no integer, 300 is no UINT8.
- FP16 travels as binary only, and so does a BYTES element that is not UTF-8.
- NaN and infinity are refused in every input, binary ones too. In JSON outputs they read `null`.
- Request parameters are terms (`planner.goals.TERM_NAMES`). Triton's `timeout` (microseconds, 0 for none) is
  `deadline_ms` where that is not given. Triton's `priority` has the name of our term and the same direction
  (1 is the most urgent), but its 0 says "the default", and so it does here; `/v1` knows no such 0.
  Sequences are not served: their parameters are accepted at their default values only.
"""

from __future__ import annotations

import logging
import math
import secrets
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import numpy as np
import orjson

import planner.errors
from deployments.gateway.messages import InferAnswer, InferRequest
from planner.errors import (
    BadInput,
    BadRequest,
    BadTerms,
    BodyTooLarge,
    ExtensionBroken,
    FenixError,
    Overloaded,
    near,
)
from planner.features import DATATYPES, Array, Rows, check_finite, datatype_of
from planner.goals import TERM_NAMES

log = logging.getLogger(__name__)

MAX_NAME_CHARS = 128
MAX_ID_CHARS = 256
MAX_INPUTS = 256
MAX_DIMENSIONS = 32

DTYPES = frozenset(DATATYPES.values())

_REQUEST_FIELDS = frozenset({"id", "parameters", "inputs", "outputs"})
_INPUT_FIELDS = frozenset({"name", "datatype", "shape", "data", "parameters"})
_OUTPUT_FIELDS = frozenset({"name", "parameters"})
_TENSOR_PARAMETERS = frozenset({"binary_data_size", "binary_data", "content_type"})
_SEQUENCE_DEFAULTS: dict[str, tuple[Any, ...]] = {
    "sequence_id": (0, ""),
    "sequence_start": (False,),
    "sequence_end": (False,),
}
_PROTOCOL_PARAMETERS = frozenset({"binary_data_output", "timeout", "headers", *_SEQUENCE_DEFAULTS})
_PARAMETER_NAMES = TERM_NAMES | _PROTOCOL_PARAMETERS
_IGNORED_PREFIXES = ("headers_", "triton_")

_NUMBERS = frozenset({int, float})
_JSON_TYPES: dict[str, frozenset[type]] = {
    **dict.fromkeys(("FP32", "FP64"), _NUMBERS),
    **dict.fromkeys((name for name, dtype in DATATYPES.items() if dtype.kind in "iu"), frozenset({int})),
    "BOOL": frozenset({bool}),
    "BYTES": frozenset({str}),
}
_JSON_WORDS = {"FP32": "numbers", "FP64": "numbers", "BOOL": "true or false", "BYTES": "texts"}


@dataclass(frozen=True, slots=True)
class Form:
    """In which form a client wants its outputs: `binary` unless `named` says otherwise for one of them."""

    binary: bool = False
    named: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, output: str) -> bool:
        return self.named.get(output, self.binary)


@dataclass(frozen=True, slots=True)
class Encoded:
    """A body ready to be sent. `header_bytes` is the value of Inference-Header-Content-Length: the size of the
    JSON part where binary tensors follow it, None where the whole body is JSON."""

    body: bytes
    header_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """One decoded answer, as a client sees it. Arrays have shape (n_rows, *row shape)."""

    model: str
    version: str
    id: str
    outputs: Mapping[str, Array]
    parameters: Mapping[str, Any]


# ---------------------------------------------------------------------------------------------- the gateway's half


def decode_request(
    body: bytes,
    *,
    model: str,
    version: str = "",
    header_bytes: int | None = None,
    id: str = "",
    max_rows: int | None = None,
) -> tuple[InferRequest, Form]:
    """The request in `body`, and the form its answer shall have. `id` is used when the body has none.

    `header_bytes` is the parsed Inference-Header-Content-Length. Arrays of binary tensors are read-only views of
    `body`. Raises BadRequest, BadInput, BadTerms, or BodyTooLarge for more than `max_rows` rows.
    """
    head, tail = _split(body, header_bytes)
    document = _object("the body", parse_json(head), _REQUEST_FIELDS)
    parameters = _parameters("the request", document)
    outputs, form = _requested(document.get("outputs"), parameters)
    own_id = document.get("id")
    return InferRequest(
        inputs=_inputs(document.get("inputs"), tail, max_rows),
        model=model,
        version=version,
        outputs=outputs,
        terms=terms_of(parameters) if parameters else {},
        id=check_id(id if own_id is None or own_id == "" else own_id),
    ), form


def decode_inputs(tensors: object, max_rows: int | None = None) -> dict[str, Array]:
    """The arrays of a JSON list of input tensors that carry their data. Raises BadInput or BodyTooLarge."""
    return _inputs(tensors, None, max_rows)


def encode_answer(answer: InferAnswer, form: Form = Form()) -> Encoded:
    """The answer as JSON, followed by the outputs that the client wants as binary.

    Raises BadRequest when JSON cannot carry an output (FP16, or BYTES that are not UTF-8), ExtensionBroken for one
    that the protocol has no datatype for.
    """
    outputs, parts = _tensors(output_arrays(answer.outputs), form)
    head: dict[str, Any] = {"model_name": answer.model, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    head["parameters"] = answer.parameters
    head["outputs"] = outputs
    return _join(head, parts)


def output_arrays(outputs: Mapping[str, Rows]) -> dict[str, Array]:
    """The arrays of an answer by name. Raises ExtensionBroken for one that the protocol has no datatype for."""
    arrays = {name: rows.values for name, rows in outputs.items()}
    for name, values in arrays.items():
        if values.dtype not in DTYPES:
            raise ExtensionBroken(f"output {name!r} has dtype {values.dtype}, which no Open Inference datatype fits.")
    return arrays


def encode_error(error: FenixError) -> bytes:
    """The one shape of an error body."""
    return orjson.dumps({"error": error.text()})


# ---------------------------------------------------------------------------------------------- the client's half


def encode_request(
    inputs: Mapping[str, Array],
    *,
    outputs: Sequence[str] = (),
    terms: Mapping[str, Any] | None = None,
    id: str = "",
    binary: bool = True,
) -> Encoded:
    """A request for `inputs`, arrays of shape (n_rows, *row shape). `binary` is for both directions.

    Raises BadInput for an array whose dtype the protocol does not have, BadRequest when JSON cannot carry it.
    """
    tensors, parts = _tensors(inputs, Form(binary))
    head: dict[str, Any] = {"id": id} if id else {}
    parameters = {
        name: sorted(value) if isinstance(value, frozenset) else value for name, value in (terms or {}).items()
    }
    if binary:
        parameters["binary_data_output"] = True
    if parameters:
        head["parameters"] = parameters
    head["inputs"] = tensors
    if outputs:
        head["outputs"] = [{"name": name} for name in outputs]
    return _join(head, parts)


def decode_reply(body: bytes, header_bytes: int | None = None) -> Reply:
    """The answer of any Open Inference server. Raises ExtensionBroken when it does not follow the protocol."""
    try:
        head, tail = _split(body, header_bytes)
        document = _object("the reply", parse_json(head))
        found = _arrays("output", document.get("outputs"), tail)
        return Reply(
            model=str(document.get("model_name") or ""),
            version=str(document.get("model_version") or ""),
            id=str(document.get("id") or ""),
            outputs=found,
            parameters=_parameters("the reply", document),
        )
    except BadRequest as error:
        raise ExtensionBroken(f"the server's reply is not Open Inference: {error.text()}") from error


_KINDS: dict[str, type[FenixError]] = {
    name: kind
    for name in planner.errors.__all__
    if isinstance(kind := getattr(planner.errors, name), type) and issubclass(kind, FenixError)
}
_KIND_OF_STATUS: dict[int, str] = {400: "BadRequest", 404: "NotFound", 409: "Conflict", 413: "BodyTooLarge"}
_KIND_OF_STATUS |= {422: "NoPlan", 429: "ShareExceeded", 502: "StepFailed", 503: "Overloaded", 504: "DeadlineExceeded"}


def decode_error(status: int, body: bytes, *, kind: str = "", retry_after_s: float | None = None) -> FenixError:
    """The error a server answered with. `kind` is its `fenix-error` header, which names the exact class; another
    server has none, then the status decides."""
    try:
        said = orjson.loads(body)["error"]
    except (orjson.JSONDecodeError, TypeError, KeyError):
        said = ""
    return error_of(
        kind or _KIND_OF_STATUS.get(status, ""), str(said or f"the server answered {status}."), retry_after_s
    )


def internal_error(error: Exception) -> FenixError:
    """Logs an exception that nobody foresaw, with its trace, and gives the error that the client may see of it."""
    incident = secrets.token_hex(6)
    log.error("internal error %s", incident, exc_info=error)
    return FenixError(f"internal error {incident}.", hint="The gateway's log says more under this id.")


def error_of(kind: str, text: str, retry_after_s: float | None = None) -> FenixError:
    """The error of that class name (FenixError when unknown), saying `text`."""
    error = _KINDS.get(kind, FenixError)(text)
    if isinstance(error, Overloaded) and retry_after_s is not None:
        error.retry_after_s = retry_after_s
    return error


# ---------------------------------------------------------------------- parameters, shared with gRPC (protocol.py)


def terms_of(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The terms among a request's parameters; values are left to `Terms.parse`.

    Raises BadTerms for a parameter that is neither a term nor the protocol's own, naming the nearest.
    """
    terms: dict[str, Any] = {}
    for name, value in parameters.items():
        if name == "priority":
            if value != 0 or isinstance(value, bool | float):
                terms[name] = value
        elif name in TERM_NAMES:
            terms[name] = value
        elif name in _SEQUENCE_DEFAULTS:
            if not any(value == default and type(value) is type(default) for default in _SEQUENCE_DEFAULTS[name]):
                raise BadTerms(f"parameter {name!r}: sequences are not served.", hint="Leave it out.")
        elif name not in _PROTOCOL_PARAMETERS and not name.startswith(_IGNORED_PREFIXES):
            raise BadTerms(f"unknown parameter {_short(name)}.", hint=near(name[:MAX_NAME_CHARS], _PARAMETER_NAMES))
    timeout_us = parameters.get("timeout")
    if timeout_us is not None:
        if type(timeout_us) is not int or timeout_us < 0:
            raise BadTerms(f"timeout is a whole number of microseconds, not {_short(timeout_us)}.")
        if timeout_us and "deadline_ms" not in terms:
            terms["deadline_ms"] = timeout_us / 1e3
    return terms


def parse_json(head: bytes | memoryview) -> object:
    """The document in `head`. Raises BadRequest for what is no JSON or nested too deep."""
    try:
        return orjson.loads(head)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"malformed JSON: {error}.", hint="NaN and Infinity are no JSON either.") from None


def check_id(id: object) -> str:
    """The request id, when it is a text of bearable length. Raises BadRequest."""
    if type(id) is not str or len(id) > MAX_ID_CHARS:
        raise BadRequest(f"id is a text of at most {MAX_ID_CHARS} characters, not {_short(id)}.")
    return id


def check_names(names: Sequence[str], what: str) -> None:
    """Raises BadInput for an empty, endless or repeated name."""
    for name in names:
        if type(name) is not str or not 0 < len(name) <= MAX_NAME_CHARS:
            raise BadInput(f"{what} name is a text of 1 to {MAX_NAME_CHARS} characters, not {_short(name)}.")
    if len(set(names)) != len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise BadInput(f"{what} {twice!r} is there twice.", hint="Give each name once.")


# -------------------------------------------------------------------------- tensors, shared with gRPC (protocol.py)


def check_inputs(arrays: Mapping[str, Array], max_rows: int | None) -> None:
    """Raises BadInput unless all arrays have the same number of rows, at least one, and finite values; BodyTooLarge
    for more than `max_rows`."""
    if not arrays:
        raise BadInput("the request has no inputs.", hint="Send at least one tensor in 'inputs'.")
    n_rows = -1
    for name, values in arrays.items():
        if values.ndim == 0 or len(values) == 0:
            raise BadInput(f"input {name!r} has no rows.", hint="The first dimension of its shape counts the rows.")
        if n_rows not in (-1, len(values)):
            raise BadInput(f"input {name!r} has {len(values)} rows, another input has {n_rows}.")
        n_rows = len(values)
        check_finite(name, values)
    if max_rows is not None and n_rows > max_rows:
        raise BodyTooLarge(f"the request has {n_rows} rows.", hint=f"Send at most {max_rows} at a time.")


def check_tensor_parameters(label: str, names: Iterable[str]) -> None:
    """Raises BadInput for a tensor parameter that would change what the tensor means."""
    for name in names:
        if name.startswith("shared_memory"):
            raise BadInput(f"{label} is in shared memory, which is not served.", hint="Send its data.")
        if name not in _TENSOR_PARAMETERS and not name.startswith(_IGNORED_PREFIXES):
            raise BadInput(
                f"{label} has an unknown parameter {_short(name)}.",
                hint=near(name[:MAX_NAME_CHARS], _TENSOR_PARAMETERS),
            )


def check_shape(label: str, shape: object) -> tuple[int, ...]:
    """The shape, when it is a list of a few non-negative whole numbers. Raises BadInput."""
    if not isinstance(shape, list) or (shape and set(map(type, shape)) != {int}) or (shape and min(shape) < 0):
        raise BadInput(f"{label} has shape {_short(shape)}.", hint="A shape is a list of whole numbers from 0.")
    if len(shape) > MAX_DIMENSIONS:
        raise BadInput(f"{label} has {len(shape)} dimensions.", hint=f"There are at most {MAX_DIMENSIONS}.")
    return tuple(shape)


def check_datatype(label: str, datatype: object) -> np.dtype[Any]:
    """The numpy dtype of an Open Inference datatype. Raises BadInput with what is near."""
    dtype = DATATYPES.get(datatype) if type(datatype) is str else None
    if dtype is None:
        hint = near(str(datatype)[:16].upper(), DATATYPES) or f"There are: {', '.join(DATATYPES)}."
        raise BadInput(f"{label} has datatype {_short(datatype)}, which the protocol does not have.", hint=hint)
    return dtype


def shaped(label: str, flat: Array, shape: tuple[int, ...]) -> Array:
    """`flat` (n_elements,) in that shape. Raises BadInput when the numbers of elements differ."""
    if len(flat) != math.prod(shape):
        raise _wrong_count(label, len(flat), shape)
    try:
        return flat.reshape(shape)
    except ValueError:  # an empty array in an absurd shape, such as [0, 2**62, 2**62]
        raise BadInput(f"{label} has shape {list(shape)}, which is too large.") from None


def from_raw(label: str, datatype: str, shape: tuple[int, ...], raw: bytes | memoryview) -> Array:
    """The array in `raw`: little-endian, row-major; BYTES elements each behind a 4-byte length. A view if possible.

    Raises BadInput when `raw` has another size than shape and datatype say, or does not decode.
    """
    n_elements = math.prod(shape)
    if datatype == "BYTES":
        return shaped(label, _split_texts(label, raw, n_elements), shape)
    dtype = DATATYPES[datatype]
    if len(raw) != n_elements * dtype.itemsize:
        raise BadInput(
            f"{label} has {len(raw)} bytes of binary data.",
            hint=f"Shape {list(shape)} of {datatype} takes {n_elements * dtype.itemsize}.",
        )
    flat = np.frombuffer(raw, dtype)
    if not flat.flags.aligned:  # behind a JSON part of odd length; some libraries need alignment
        flat = flat.copy()
    if datatype == "BOOL" and n_elements and flat.view(np.uint8).max() > 1:
        raise BadInput(f"{label} has a BOOL byte that is neither 0 nor 1.")
    return shaped(label, flat, shape)


def to_raw(values: Array) -> bytes:
    """The inverse of `from_raw`. Texts in a BYTES tensor are encoded as UTF-8."""
    if values.dtype.kind != "O":
        return values.tobytes()
    parts: list[bytes] = []
    for element in values.ravel().tolist():
        text = element if isinstance(element, bytes) else str(element).encode()
        parts += (struct.pack("<I", len(text)), text)
    return b"".join(parts)


def from_json(label: str, datatype: str, shape: tuple[int, ...], data: object) -> Array:
    """The array in JSON `data`, flat or nested as the shape says.

    Raises BadInput for wrong lengths, types and ranges, naming the first bad element.
    """
    if type(data) is not list:
        raise BadInput(f"{label} has no list in 'data', but {_short(data)}.")
    flat, types = data, set(map(type, data))
    if list in types:
        flat, types = _flatten(label, data, types, shape)
    if len(flat) != math.prod(shape):
        raise _wrong_count(label, len(flat), shape)
    if datatype == "FP16":
        raise BadInput(f"{label} is FP16, which JSON does not carry.", hint="Send it as binary data, or as FP32.")
    if not types <= _JSON_TYPES[datatype]:
        raise _wrong_type(label, datatype, flat)
    if datatype == "BYTES":
        texts = np.empty(len(flat), object)
        texts[:] = [text.encode() for text in flat]
        return shaped(label, texts, shape)
    try:
        with np.errstate(over="ignore"):  # a float beyond FP32 becomes infinite, which check_finite refuses
            return shaped(label, np.array(flat, DATATYPES[datatype]), shape)
    except OverflowError:
        limits = np.iinfo(DATATYPES[datatype])
        at, value = next((i, v) for i, v in enumerate(flat) if not limits.min <= v <= limits.max)
        raise BadInput(
            f"{label} has {_short(value)} at position {at}.",
            hint=f"{datatype} goes from {limits.min} to {limits.max}.",
        ) from None


def json_data(name: str, datatype: str, values: Array) -> Any:
    """What JSON carries for an array: a flat one, or for BYTES a flat list of texts. Raises BadRequest for FP16 and
    for bytes that are not UTF-8."""
    if datatype == "FP16":
        raise BadRequest(f"tensor {name!r} is FP16, which JSON does not carry.", hint="Ask for binary data.")
    if datatype != "BYTES":
        return values.ravel()
    try:
        return [text.decode() if isinstance(text, bytes) else str(text) for text in values.ravel().tolist()]
    except UnicodeDecodeError:
        raise BadRequest(f"tensor {name!r} has bytes that are not UTF-8.", hint="Ask for binary data.") from None


# ------------------------------------------------------------------------------------------------- the parts of it


def _short(value: object, most: int = 60) -> str:
    """The value as an error message may show it."""
    if isinstance(value, str | bytes):
        value = value[:most]  # before repr: it may be megabytes
    elif isinstance(value, list | dict) and len(value) > most:
        return f"a {type(value).__name__} of {len(value)}"
    text = repr(value)
    return text if len(text) <= most + 2 else text[:most] + "..."


def _split(body: bytes, header_bytes: int | None) -> tuple[bytes | memoryview, memoryview | None]:
    if header_bytes is None:
        return body, None
    if not 0 < header_bytes <= len(body):
        raise BadRequest(
            f"Inference-Header-Content-Length is {header_bytes}, the body has {len(body)} bytes.",
            hint="It is the size of the JSON part, in bytes.",
        )
    whole = memoryview(body)
    return whole[:header_bytes], whole[header_bytes:]


def _object(what: str, value: object, known: frozenset[str] | None = None) -> dict[str, Any]:
    if type(value) is not dict:
        raise BadRequest(f"{what} is no JSON object, but {_short(value)}.")
    if known is not None and not value.keys() <= known:
        name = min(value.keys() - known)
        raise BadRequest(f"{what} has an unknown field {_short(name)}.", hint=near(name[:MAX_NAME_CHARS], known))
    return value


def _parameters(what: str, holder: Mapping[str, Any]) -> dict[str, Any]:
    parameters = holder.get("parameters")
    return {} if parameters is None else _object(f"'parameters' of {what}", parameters)


def _tensor_parameters(label: str, tensor: Mapping[str, Any]) -> dict[str, Any]:
    parameters = _parameters(label, tensor)
    check_tensor_parameters(label, parameters)
    return parameters


def _inputs(tensors: object, tail: memoryview | None, max_rows: int | None) -> dict[str, Array]:
    arrays = _arrays("input", tensors, tail, _INPUT_FIELDS)
    check_inputs(arrays, max_rows)
    return arrays


def _arrays(
    what: str, tensors: object, tail: memoryview | None, known: frozenset[str] | None = None
) -> dict[str, Array]:
    """The arrays of a JSON list of tensors; binary ones take their bytes from `tail`, in order."""
    if type(tensors) is not list or len(tensors) > MAX_INPUTS:
        raise BadInput(f"'{what}s' is a list of at most {MAX_INPUTS} tensors, not {_short(tensors)}.")
    arrays: dict[str, Array] = {}
    offset = 0
    check_names([_object(f"each {what}", tensor, known).get("name", "") for tensor in tensors], what)
    for tensor in tensors:
        name = tensor["name"]
        label = f"{what} {name!r}"
        check_datatype(label, datatype := tensor.get("datatype"))
        shape = check_shape(label, tensor.get("shape"))
        size = _tensor_parameters(label, tensor).get("binary_data_size") if "parameters" in tensor else None
        if size is None:
            if "data" not in tensor:
                raise BadInput(f"{label} has no data.", hint="Give 'data', or 'binary_data_size' and binary data.")
            arrays[name] = from_json(label, datatype, shape, tensor["data"])
            continue
        if "data" in tensor:
            raise BadInput(f"{label} has both 'data' and 'binary_data_size'.", hint="Leave one out.")
        if tail is None:
            raise BadInput(f"{label} is binary.", hint="Such a request needs Inference-Header-Content-Length.")
        if type(size) is not int or not 0 <= size <= len(tail) - offset:
            raise BadInput(
                f"{label} has binary_data_size {_short(size)}.", hint=f"{len(tail) - offset} bytes are there for it."
            )
        arrays[name] = from_raw(label, datatype, shape, tail[offset : offset + size])
        offset += size
    if tail is not None and offset != len(tail):
        raise BadInput(
            f"{len(tail) - offset} bytes of binary data belong to no {what}.", hint="Check binary_data_size."
        )
    return arrays


def _requested(outputs: object, parameters: Mapping[str, Any]) -> tuple[tuple[str, ...], Form]:
    binary = parameters.get("binary_data_output", False)
    if type(binary) is not bool:
        raise BadRequest(f"binary_data_output is true or false, not {_short(binary)}.")
    if not outputs and (outputs is None or outputs == []):
        return (), Form(binary)
    if type(outputs) is not list or len(outputs) > MAX_INPUTS:
        raise BadRequest(f"'outputs' is a list of at most {MAX_INPUTS} objects, not {_short(outputs)}.")
    names = [_object("each output", output, _OUTPUT_FIELDS).get("name", "") for output in outputs]
    check_names(names, "output")
    named: dict[str, bool] = {}
    for name, output in zip(names, outputs, strict=True):
        wish = _tensor_parameters(f"output {name!r}", output).get("binary_data")
        if wish is not None:
            if type(wish) is not bool:
                raise BadRequest(f"output {name!r}: binary_data is true or false, not {_short(wish)}.")
            named[name] = wish
    return tuple(names), Form(binary, named)


def _flatten(label: str, data: list[Any], types: set[type], shape: tuple[int, ...]) -> tuple[list[Any], set[type]]:
    """The elements of nested lists in row-major order and their types; level by level, so that C does the work."""
    flat, n_lists = data, 1
    for size, inner in pairwise(shape):
        n_lists *= size
        if types != {list} or len(flat) != n_lists or (flat and set(map(len, flat)) != {inner}):
            raise BadInput(
                f"{label} has nested data that is not {list(shape)}.", hint="Nest by the shape, or not at all."
            )
        flat = list(chain.from_iterable(flat))
        types = set(map(type, flat))
    if list in types:
        raise BadInput(f"{label} has data nested deeper than its shape {list(shape)}.")
    return flat, types


def _wrong_count(label: str, n_elements: int, shape: tuple[int, ...]) -> BadInput:
    return BadInput(f"{label} has {n_elements} elements.", hint=f"Shape {list(shape)} takes {math.prod(shape)}.")


def _wrong_type(label: str, datatype: str, flat: Iterable[Any]) -> BadInput:
    allowed = _JSON_TYPES[datatype]
    at, value = next((i, v) for i, v in enumerate(flat) if type(v) not in allowed)
    return BadInput(
        f"{label} has {_short(value)} at position {at}.",
        hint=f"{datatype} takes {_JSON_WORDS.get(datatype, 'whole numbers')}.",
    )


def _split_texts(label: str, raw: bytes | memoryview, n_elements: int) -> Array:
    texts: list[bytes] = []
    offset, end = 0, len(raw)
    while offset < end and len(texts) <= n_elements:
        start = offset + 4
        if start > end:
            raise BadInput(
                f"{label} ends within a length prefix.", hint="Each element is a 4-byte length and its bytes."
            )
        (size,) = struct.unpack_from("<I", raw, offset)
        offset = start + size
        if offset > end:
            raise BadInput(f"{label}, element {len(texts)}: {size} bytes announced, {end - start} are there.")
        texts.append(bytes(raw[start:offset]))
    flat = np.empty(len(texts), object)
    flat[:] = texts
    return flat


def _tensors(arrays: Mapping[str, Array], form: Form) -> tuple[list[dict[str, Any]], list[bytes]]:
    """The JSON objects of tensors, and the binary parts that follow them."""
    tensors: list[dict[str, Any]] = []
    parts: list[bytes] = []
    for name, values in arrays.items():
        datatype = datatype_of(values)
        tensor: dict[str, Any] = {"name": name, "datatype": datatype, "shape": values.shape}
        if form.is_binary(name):
            raw = to_raw(values)
            tensor["parameters"] = {"binary_data_size": len(raw)}
            parts.append(raw)
        else:
            tensor["data"] = json_data(name, datatype, values)
        tensors.append(tensor)
    return tensors, parts


def _join(head: dict[str, Any], parts: list[bytes]) -> Encoded:
    try:
        text = orjson.dumps(head, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as error:
        raise BadRequest(f"JSON cannot carry this: {error}.") from None
    if not parts:
        return Encoded(text)
    return Encoded(b"".join((text, *parts)), len(text))
