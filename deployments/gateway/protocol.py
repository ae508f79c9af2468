"""Open Inference Protocol V2 over gRPC: protobuf messages to numpy arrays, and back.

The message classes are made from `openinference.proto` when this module is imported, in a descriptor pool of their
own: other clients of the protocol (tritonclient, say) register the same names in protobuf's default pool, and both
must live in one process. No compiler is needed, hence no grpcio-tools, which holds protobuf back.

Both halves live here: `decode_infer_request` and `encode_infer_answer` for the gateway, `encode_infer_request` and
`decode_infer_reply` for a client. Parameters and values mean what they mean over HTTP (`codec.py`).

An answer has its outputs in the form of the request's inputs: raw for raw, typed for typed. An FP16 output has no
typed form, so all outputs are raw then (the protocol does not let them mix).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from deployments.gateway.codec import (
    Reply,
    check_datatype,
    check_id,
    check_inputs,
    check_names,
    check_shape,
    check_tensor_parameters,
    from_json,
    from_raw,
    output_arrays,
    shaped,
    terms_of,
    to_raw,
)
from deployments.gateway.messages import InferAnswer, InferRequest
from planner.errors import BadInput, BadRequest, BadTerms, ExtensionBroken
from planner.features import Array, datatype_of

# ------------------------------------------------------------------------------------- the messages, from the text

_TOKENS = re.compile(r'"[^"]*"|[A-Za-z_][\w.]*|\d+|[{}()<>=;,]')
_Field = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    name: _Field.Type.Value(f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


def read_proto(text: str) -> descriptor_pb2.FileDescriptorProto:
    """The descriptor of a proto3 text, as far as `openinference.proto` goes: messages, maps, oneofs, services.

    Raises ValueError at the first word that is not understood.
    """
    file = descriptor_pb2.FileDescriptorProto(name="openinference.proto")
    words = iter(_TOKENS.findall(re.sub(r"//.*", "", text)))
    for word in words:
        if word == "syntax":
            _, syntax, _ = next(words), next(words), next(words)
            file.syntax = syntax.strip('"')
        elif word == "package":
            file.package, _ = next(words), next(words)
        elif word == "message":
            _read_message(words, file.message_type.add(name=next(words)))
        elif word == "service":
            _read_service(words, file.service.add(name=next(words)))
        else:
            raise ValueError(f"openinference.proto: {word!r} is not understood")
    return file


def _expect(words: Iterator[str], wanted: str) -> None:
    for want in wanted:
        if (word := next(words)) != want:
            raise ValueError(f"openinference.proto: {word!r} where {want!r} belongs")


def _read_service(words: Iterator[str], service: descriptor_pb2.ServiceDescriptorProto) -> None:
    _expect(words, "{")
    while next(words) == "rpc":
        method = service.method.add(name=next(words))
        _expect(words, "(")
        method.input_type = next(words)
        _expect(words, ")")
        if next(words) != "returns":
            raise ValueError(f"openinference.proto: rpc {method.name} returns nothing")
        _expect(words, "(")
        method.output_type = next(words)
        _expect(words, "){}")


def _read_message(words: Iterator[str], message: descriptor_pb2.DescriptorProto) -> None:
    _expect(words, "{")
    while (word := next(words)) != "}":
        if word == "message":
            _read_message(words, message.nested_type.add(name=next(words)))
        elif word == "oneof":
            message.oneof_decl.add(name=next(words))
            _expect(words, "{")
            while (inner := next(words)) != "}":
                _read_field(words, inner, message).oneof_index = len(message.oneof_decl) - 1
        else:
            _read_field(words, word, message)


def _read_field(words: Iterator[str], word: str, message: descriptor_pb2.DescriptorProto) -> _Field:
    field = message.field.add(label=_Field.LABEL_REPEATED if word in ("repeated", "map") else _Field.LABEL_OPTIONAL)
    if word == "map":
        _expect(words, "<")
        entry = message.nested_type.add()
        entry.options.map_entry = True
        _typed(entry.field.add(name="key", number=1, label=_Field.LABEL_OPTIONAL), next(words))
        _expect(words, ",")
        _typed(entry.field.add(name="value", number=2, label=_Field.LABEL_OPTIONAL), next(words))
        _expect(words, ">")
        field.name = next(words)
        entry.name = field.name.title().replace("_", "") + "Entry"
        _typed(field, entry.name)
    else:
        _typed(field, next(words) if word == "repeated" else word)
        field.name = next(words)
    _expect(words, "=")
    field.number = int(next(words))
    _expect(words, ";")
    return field


def _typed(field: _Field, type_: str) -> None:
    if type_ in _SCALARS:
        field.type = _SCALARS[type_]
    else:
        field.type, field.type_name = _Field.TYPE_MESSAGE, type_


_pool = descriptor_pool.DescriptorPool()
_pool.Add(read_proto(files(__package__).joinpath("openinference.proto").read_text("utf-8")))
SERVICE = _pool.FindServiceByName("inference.GRPCInferenceService")


def message(name: str) -> Any:
    """The message class of that name, `ModelInferRequest` for example."""
    return message_factory.GetMessageClass(_pool.FindMessageTypeByName(f"inference.{name}"))


ModelInferRequest = message("ModelInferRequest")
ModelInferResponse = message("ModelInferResponse")

# The field of InferTensorContents that holds a datatype's elements.
CONTENTS = {
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    **{name: f"{name.lower()}_contents" for name in ("BOOL", "INT64", "UINT64", "FP32", "FP64", "BYTES")},
}


def parse(kind: Any, raw: bytes) -> Any:
    """The message in `raw`. Raises BadRequest for bytes that are none."""
    try:
        return kind.FromString(raw)
    except DecodeError:
        raise BadRequest(
            f"these {len(raw)} bytes are no {kind.DESCRIPTOR.name}.", hint="Use the Open Inference Protocol V2."
        ) from None


# ---------------------------------------------------------------------------------------------- the gateway's half


def decode_infer_request(raw: bytes, max_rows: int | None = None) -> tuple[InferRequest, bool]:
    """The request in a serialized ModelInferRequest, and whether its answer is to have typed contents.

    Raises BadRequest, BadInput, BadTerms, or BodyTooLarge for more than `max_rows` rows.
    """
    request = parse(ModelInferRequest, raw)
    outputs = tuple(output.name for output in request.outputs)
    check_names(outputs, "output")
    arrays = _arrays("input", request.inputs, request.raw_input_contents)
    check_inputs(arrays, max_rows)
    return InferRequest(
        inputs=arrays,
        model=request.model_name,
        version=request.model_version,
        outputs=outputs,
        terms=terms_of(_values(request.parameters)),
        id=check_id(request.id),
    ), not request.raw_input_contents


def encode_infer_answer(answer: InferAnswer, typed: bool = False) -> bytes:
    """The answer as a serialized ModelInferResponse. Raises ExtensionBroken for an array that the
    protocol has no datatype for."""
    response = ModelInferResponse(model_name=answer.model, model_version=answer.version, id=answer.id)
    _set_values(response.parameters, answer.parameters)
    arrays = output_arrays(answer.outputs)
    typed = typed and all(values.dtype != np.float16 for values in arrays.values())
    _add_tensors(response.outputs, arrays, None if typed else response.raw_output_contents)
    return bytes(response.SerializeToString())


# ---------------------------------------------------------------------------------------------- the client's half


def encode_infer_request(
    model: str,
    inputs: Mapping[str, Array],
    *,
    version: str = "",
    outputs: Sequence[str] = (),
    terms: Mapping[str, Any] | None = None,
    id: str = "",
) -> bytes:
    """A serialized ModelInferRequest with raw contents, for arrays of shape (n_rows, *row shape).

    Raises BadInput for an array whose dtype the protocol does not have, BadTerms for a term it cannot carry.
    """
    request = ModelInferRequest(model_name=model, model_version=version, id=id)
    given = {
        name: ",".join(sorted(v)) if name == "tags" and not isinstance(v, str) else v
        for name, v in (terms or {}).items()
    }
    _set_values(request.parameters, given)
    _add_tensors(request.inputs, inputs, request.raw_input_contents)
    for name in outputs:
        request.outputs.add(name=name)
    return bytes(request.SerializeToString())


def decode_infer_reply(raw: bytes) -> Reply:
    """The answer of any Open Inference server. Raises ExtensionBroken when it does not follow the protocol."""
    try:
        response = parse(ModelInferResponse, raw)
        arrays = _arrays("output", response.outputs, response.raw_output_contents)
        parameters = _values(response.parameters)
    except BadRequest as error:
        raise ExtensionBroken(f"the server's reply is not Open Inference: {error.text()}") from error
    return Reply(response.model_name, response.model_version, response.id, arrays, parameters)


# ------------------------------------------------------------------------------------------------- the parts of it


def _values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise BadTerms(f"parameter {name[:128]!r} has no value.")
        values[name] = getattr(parameter, kind)
    return values


def _set_values(parameters: Any, values: Mapping[str, Any]) -> None:
    for name, value in values.items():
        field = _PARAMETER_FIELDS.get(type(value))
        try:
            if field is None:
                raise TypeError
            setattr(parameters[name], field, value)
        except (TypeError, ValueError):
            raise BadTerms(f"gRPC does not carry parameter {name!r} with value {str(value)[:40]!r}.") from None


_PARAMETER_FIELDS = {bool: "bool_param", int: "int64_param", float: "double_param", str: "string_param"}


def _arrays(what: str, tensors: Sequence[Any], raw_contents: Sequence[bytes]) -> dict[str, Array]:
    check_names([tensor.name for tensor in tensors], what)
    if raw_contents and len(raw_contents) != len(tensors):
        raise BadInput(f"there are {len(raw_contents)} raw contents for {len(tensors)} {what}s.", hint="Give each one.")
    arrays: dict[str, Array] = {}
    for at, tensor in enumerate(tensors):
        label = f"{what} {tensor.name!r}"
        check_datatype(label, tensor.datatype)
        shape = check_shape(label, list(tensor.shape))
        if tensor.parameters:
            check_tensor_parameters(label, tensor.parameters)
        if not raw_contents:
            arrays[tensor.name] = _from_contents(label, tensor.datatype, shape, tensor.contents)
        elif tensor.HasField("contents"):
            raise BadInput(f"{label} has both raw and typed contents.", hint="Leave one out.")
        else:
            arrays[tensor.name] = from_raw(label, tensor.datatype, shape, raw_contents[at])
    return arrays


def _from_contents(label: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Array:
    if datatype == "FP16":
        raise BadInput(f"{label} is FP16, which has no typed contents.", hint="Send raw contents.")
    right = CONTENTS[datatype]
    for field, _ in contents.ListFields():
        if field.name != right:
            raise BadInput(f"{label} is {datatype}, but has {field.name}.", hint=f"Use {right}.")
    elements = list(getattr(contents, right))
    if datatype != "BYTES":
        return from_json(label, datatype, shape, elements)
    texts = np.empty(len(elements), object)
    texts[:] = elements
    return shaped(label, texts, shape)


def _add_tensors(tensors: Any, arrays: Mapping[str, Array], raw_contents: Any | None) -> None:
    for name, values in arrays.items():
        datatype = datatype_of(values)
        tensor = tensors.add(name=name, datatype=datatype, shape=values.shape)
        if raw_contents is not None:
            raw_contents.append(to_raw(values))
            continue
        elements = values.ravel().tolist()
        if datatype == "BYTES":
            elements = [text if isinstance(text, bytes) else str(text).encode() for text in elements]
        getattr(tensor.contents, CONTENTS[datatype]).extend(elements)
