from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.service_pb2 as triton
from google.protobuf import descriptor_pb2
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway import protocol
from deployments.gateway.messages import InferAnswer
from deployments.gateway.protocol import (
    ModelInferRequest,
    ModelInferResponse,
    decode_infer_reply,
    decode_infer_request,
    encode_infer_answer,
    encode_infer_request,
    read_proto,
)
from planner.errors import BadInput, BadRequest, BadTerms, BodyTooLarge, ExtensionBroken
from planner.features import DATATYPES, Array, Rows
from planner.plans import Plan, Prediction
from tests.deployments.gateway.arrays import arrays, same

TYPED_DATATYPES = [name for name in DATATYPES if name != "FP16"]


def messages_of(file: Any) -> dict[str, Any]:
    """Every message of a file descriptor by its full name, the nested ones too."""

    def nested(message: Any) -> dict[str, Any]:
        found = {message.full_name: message}
        for inner in message.nested_types:
            found |= nested(inner)
        return found

    return {name: m for top in file.message_types_by_name.values() for name, m in nested(top).items()}


OURS = messages_of(ModelInferRequest.DESCRIPTOR.file)
THEIRS = messages_of(triton.DESCRIPTOR)


def shape_of(field: Any) -> tuple[Any, ...]:
    oneof = field.containing_oneof.name if field.containing_oneof else None
    kind = field.message_type.full_name if field.message_type else field.type
    entry = bool(field.message_type and field.message_type.GetOptions().map_entry)
    return field.number, kind, field.is_repeated, oneof, entry


@pytest.mark.parametrize("name", sorted(OURS))
def test_every_message_has_the_fields_of_the_official_one(name: str) -> None:
    theirs = {field.name: shape_of(field) for field in THEIRS[name].fields}
    assert {field.name: shape_of(field) for field in OURS[name].fields} == theirs


def test_every_method_has_the_official_messages() -> None:
    theirs = triton.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert protocol.SERVICE.full_name == theirs.full_name
    assert len(protocol.SERVICE.methods) == 7
    for method in protocol.SERVICE.methods:
        official = theirs.methods_by_name[method.name]
        assert method.input_type.full_name == official.input_type.full_name
        assert method.output_type.full_name == official.output_type.full_name


@pytest.mark.parametrize("text", ["import x;", "message A { int32 a 1; }", "service S { rpc A(B) gives (C) {} }"])
def test_a_proto_text_beyond_the_reader_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"openinference\.proto"):
        read_proto(text)


def test_reading_a_proto_text_gives_its_descriptor() -> None:
    file = read_proto('syntax = "proto3"; package p; message A { repeated bytes b = 2; oneof c { bool d = 3; } }')
    fields = file.message_type[0].field
    assert [(f.name, f.number) for f in fields] == [("b", 2), ("d", 3)]
    assert fields[0].type == descriptor_pb2.FieldDescriptorProto.TYPE_BYTES
    assert fields[1].HasField("oneof_index")


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_raw_requests_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype))
    terms = {"deadline_ms": 2.5, "priority": 3, "user": "u", "tags": ["b", "a"]}
    raw = encode_infer_request("m", {"x": sent, "z": sent}, version="2", outputs=("y",), terms=terms, id="i")
    request, typed = decode_infer_request(raw)
    assert same(request.inputs["x"], sent)
    assert same(request.inputs["z"], sent)
    assert not typed
    assert (request.model, request.version, request.id, request.outputs) == ("m", "2", "i", ("y",))
    assert request.terms == {**terms, "tags": "a,b"}


@pytest.mark.parametrize("datatype", DATATYPES)
@pytest.mark.parametrize("typed", [False, True])
@given(data=st.data())
def test_answers_arrive_as_they_were_sent(datatype: str, typed: bool, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype))
    plan = Plan("p", (), (), Prediction(1, 1, 1, 1), 0)
    parameters = {"plan": "p", "flags": "", "confidence": 0.5, "n": 3, "b": True}
    raw = encode_infer_answer(InferAnswer("m", "1", "7", {"y": Rows(sent)}, parameters, plan, ()), typed)
    reply = decode_infer_reply(raw)
    assert same(reply.outputs["y"], sent)
    assert (reply.model, reply.version, reply.id, reply.parameters) == ("m", "1", "7", parameters)
    assert bool(ModelInferResponse.FromString(raw).raw_output_contents) == (not typed or datatype == "FP16")


def with_contents(datatype: str, shape: list[int], **contents: Any) -> bytes:
    request = ModelInferRequest(model_name="m")
    tensor = request.inputs.add(name="x", datatype=datatype, shape=shape)
    for name, elements in contents.items():
        getattr(tensor.contents, name).extend(elements)
    return bytes(request.SerializeToString())


def with_raw(*raw: bytes, datatype: str = "FP32", shape: tuple[int, ...] = (1,)) -> bytes:
    request = ModelInferRequest(model_name="m", raw_input_contents=raw)
    request.inputs.add(name="x", datatype=datatype, shape=shape)
    return bytes(request.SerializeToString())


@pytest.mark.parametrize("datatype", TYPED_DATATYPES)
@given(data=st.data())
def test_typed_requests_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    sent: Array = data.draw(arrays(datatype))
    contents = {protocol.CONTENTS[datatype]: sent.ravel().tolist()}
    request, typed = decode_infer_request(with_contents(datatype, list(sent.shape), **contents))
    assert same(request.inputs["x"], sent)
    assert typed


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"\xff\xff\xff\xff", "are no ModelInferRequest"),
        (b"", "no inputs"),
        (with_raw(), "0 elements. Shape [1] takes 1"),
        (with_raw(b"\x00" * 4, b"\x00" * 4), "2 raw contents for 1 inputs"),
        (with_raw(b"\x00" * 3), "3 bytes of binary data"),
        (with_raw(b"\x00" * 4, shape=(-1,)), "shape [-1]"),
        (with_raw(b"\x00" * 4, shape=(2**62, 2**62)), "4 bytes of binary data"),
        (with_raw(b"", shape=(0, 3)), "no rows"),
        (with_raw(b"\x00\x00\xc0\x7f"), "NaN or infinity"),
        (with_raw(b"\x07\x00\x00\x00ab", datatype="BYTES"), "7 bytes announced, 2 are there"),
        (with_raw(b"\x00" * 4, datatype="float32"), "datatype 'float32'"),
        (with_contents("FP16", [1], fp32_contents=[1]), "FP16, which has no typed contents"),
        (with_contents("FP32", [2], fp64_contents=[1, 2]), "has fp64_contents. Use fp32_contents"),
        (with_contents("INT8", [1], int_contents=[128]), "128 at position 0. INT8 goes from -128 to 127"),
        (with_contents("UINT16", [1], uint_contents=[65536]), "65536 at position 0"),
        (with_contents("FP32", [3], fp32_contents=[1]), "1 elements. Shape [3] takes 3"),
        (with_contents("FP32", [1], fp32_contents=[float("nan")]), "NaN or infinity"),
    ],
)
def test_bad_requests_are_refused_with_the_reason(sent: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_infer_request(sent)
    assert words in caught.value.text()


def test_raw_and_typed_contents_do_not_mix() -> None:
    request = ModelInferRequest.FromString(with_contents("FP32", [1], fp32_contents=[1]))
    request.raw_input_contents.append(b"\x00" * 4)
    with pytest.raises(BadInput, match="both raw and typed"):
        decode_infer_request(request.SerializeToString())


def test_terms_keep_their_types() -> None:
    terms = {"partial": True, "min_confidence": 0.5, "priority": 2, "user": "ada"}
    request, _ = decode_infer_request(encode_infer_request("m", {"x": np.ones(1, np.float32)}, terms=terms))
    assert request.terms == terms
    assert type(request.terms["partial"]) is bool


def test_names_and_parameters_are_held_to_the_rules_of_http() -> None:
    request = ModelInferRequest.FromString(with_contents("FP32", [1], fp32_contents=[1]))
    request.parameters["deadline"].double_param = 1
    with pytest.raises(BadTerms, match="unknown parameter 'deadline'"):
        decode_infer_request(request.SerializeToString())
    request.parameters.clear()
    request.parameters["user"].SetInParent()
    with pytest.raises(BadTerms, match="'user' has no value"):
        decode_infer_request(request.SerializeToString())
    request.parameters.clear()
    request.inputs[0].parameters["shared_memory_region"].string_param = "r"
    with pytest.raises(BadInput, match="shared memory"):
        decode_infer_request(request.SerializeToString())
    request.inputs[0].parameters.clear()
    request.inputs.append(request.inputs[0])
    with pytest.raises(BadInput, match="'x' is there twice"):
        decode_infer_request(request.SerializeToString())
    del request.inputs[1]
    request.outputs.add(name="")
    with pytest.raises(BadInput, match="output name"):
        decode_infer_request(request.SerializeToString())
    del request.outputs[:]
    request.id = "i" * 300
    with pytest.raises(BadRequest, match="id is a text"):
        decode_infer_request(request.SerializeToString())
    request.id = ""
    with pytest.raises(BodyTooLarge):
        decode_infer_request(request.SerializeToString(), max_rows=0)


@given(st.binary(max_size=200))
def test_garbage_is_refused_and_never_anything_else(sent: bytes) -> None:
    with pytest.raises(BadRequest):
        decode_infer_request(sent)


def test_terms_that_grpc_cannot_carry_are_refused() -> None:
    for value in (None, 2**70, {"a": 1}):
        with pytest.raises(BadTerms, match="does not carry"):
            encode_infer_request("m", {"x": np.ones(1)}, terms={"user": value})


def test_a_reply_that_is_none_is_the_servers_fault() -> None:
    with pytest.raises(ExtensionBroken):
        decode_infer_reply(b"\xff\xff")
