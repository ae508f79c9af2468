from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.gateway.codec import (
    Form,
    decode_error,
    decode_reply,
    decode_request,
    encode_answer,
    encode_error,
    encode_request,
    terms_of,
)
from deployments.gateway.messages import InferAnswer
from deployments.gateway.protocol import encode_infer_answer
from deployments.gateway.schemas import AnswerBody
from planner.errors import (
    BadInput,
    BadRequest,
    BadTerms,
    BodyTooLarge,
    ExtensionBroken,
    FenixError,
    NotFound,
    Overloaded,
)
from planner.features import DATATYPES, Array, Rows
from planner.plans import Plan, Prediction
from tests.deployments.gateway.arrays import arrays, same

JSON_DATATYPES = [name for name in DATATYPES if name != "FP16"]
TENSOR = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [1, 2, 3, 4.5]}


def body(*tensors: object, **fields: Any) -> bytes:
    return orjson.dumps({"inputs": list(tensors), **fields})


def tensor(**changes: Any) -> dict[str, Any]:
    merged = {**TENSOR, **changes}
    return {name: value for name, value in merged.items() if value is not ...}


def answer(**outputs: Array) -> InferAnswer:
    plan = Plan("p", (), (), Prediction(1, 1, 1, 1), 0)
    return InferAnswer("m", "1", "7", {n: Rows(v) for n, v in outputs.items()}, {"plan": "p", "flags": ""}, plan, ())


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_binary_requests_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype))
    encoded = encode_request({"x": sent, "z": sent}, id="i", terms={"max_cost": 2})
    request, form = decode_request(encoded.body, model="m", header_bytes=encoded.header_bytes)
    assert same(request.inputs["x"], sent)
    assert same(request.inputs["z"], sent)
    assert (request.id, request.terms, form.binary) == ("i", {"max_cost": 2}, True)


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@given(data=st.data())
def test_json_requests_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype, utf8=True))
    encoded = encode_request({"x": sent}, binary=False)
    assert encoded.header_bytes is None
    request, form = decode_request(encoded.body, model="m")
    assert same(request.inputs["x"], sent)
    assert not form.binary


@pytest.mark.parametrize("datatype", JSON_DATATYPES)
@given(data=st.data())
def test_nested_data_means_the_same_as_flat_data(datatype: str, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype, utf8=True))
    nested = sent.tolist()
    if datatype == "BYTES":
        nested = np.array([text.decode() for text in sent.ravel()], object).reshape(sent.shape).tolist()
    request, _ = decode_request(
        body({"name": "x", "datatype": datatype, "shape": list(sent.shape), "data": nested}), model="m"
    )
    assert same(request.inputs["x"], sent)


@pytest.mark.parametrize("datatype", DATATYPES)
@given(data=st.data())
def test_answers_arrive_as_they_were_sent(datatype: str, data: st.DataObject) -> None:
    sent = data.draw(arrays(datatype))
    encoded = encode_answer(answer(y=sent), Form(binary=True))
    reply = decode_reply(encoded.body, encoded.header_bytes)
    assert same(reply.outputs["y"], sent)
    assert (reply.model, reply.version, reply.id) == ("m", "1", "7")
    assert reply.parameters == {"plan": "p", "flags": ""}


def test_the_form_of_an_answer_is_what_the_request_asks_for() -> None:
    asked = body(
        TENSOR,
        parameters={"binary_data_output": True},
        outputs=[{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}],
    )
    request, form = decode_request(asked, model="m")
    assert request.outputs == ("a", "b")
    encoded = encode_answer(answer(a=np.ones(2), b=np.ones(2)), form)
    head = orjson.loads(encoded.body[: encoded.header_bytes])
    assert head["outputs"] == [
        {"name": "a", "datatype": "FP64", "shape": [2], "parameters": {"binary_data_size": 16}},
        {"name": "b", "datatype": "FP64", "shape": [2], "data": [1.0, 1.0]},
    ]


def test_a_binary_tensor_behind_a_json_part_of_odd_length_is_aligned() -> None:
    for padding in range(8):
        encoded = encode_request({"x": np.arange(3.0)}, id="i" * padding)
        request, _ = decode_request(encoded.body, model="m", header_bytes=encoded.header_bytes)
        assert request.inputs["x"].flags.aligned


def test_what_is_null_or_left_out_has_its_default() -> None:
    request, form = decode_request(body(TENSOR, id=None, parameters=None, outputs=None), model="m", id="from-header")
    assert (request.id, request.terms, request.outputs, form.binary) == ("from-header", {}, (), False)


def test_nothing_received_is_unpickled() -> None:
    pickled = b"cos\nsystem\n(S'true'\ntR."
    raw = struct.pack("<I", len(pickled)) + pickled
    head = body({"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}})
    request, _ = decode_request(head + raw, model="m", header_bytes=len(head))
    assert request.inputs["x"].tolist() == [pickled]


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (b"", "malformed JSON"),
        (b"{", "malformed JSON"),
        (b"\xff\xfe", "malformed JSON"),
        (b'{"inputs": [NaN]}', "malformed JSON"),
        (b'{"inputs": [1e999]}', "malformed JSON"),
        (b'{"id": "\xff"}', "malformed JSON"),
        (b"[" * 100_000 + b"]" * 100_000, "malformed JSON"),
        (b"[]", "the body is no JSON object"),
        (b"3", "the body is no JSON object"),
        (b"{}", "'inputs' is a list"),
        (body(), "no inputs"),
        (body(TENSOR, ouputs=[]), "unknown field 'ouputs'. Nearest: outputs"),
        (orjson.dumps({"inputs": TENSOR}), "'inputs' is a list"),
        (body(*[TENSOR] * 300), "at most 256"),
        (body(3), "each input is no JSON object"),
        (body(tensor(dtype="FP32")), "unknown field 'dtype'. Nearest: datatype"),
        (body(tensor(name=...)), "input name"),
        (body(tensor(name=3)), "input name"),
        (body(tensor(name=["x"])), "input name"),
        (body(tensor(name="x" * 1000)), "input name"),
        (body(TENSOR, TENSOR), "input 'x' is there twice"),
        (body(tensor(datatype="FLOAT32")), "datatype 'FLOAT32'"),
        (body(tensor(datatype="FP23")), "Nearest: FP32"),
        (body(tensor(datatype=...)), "datatype None"),
        (body(tensor(datatype=["FP32"])), "datatype ['FP32']"),
        (body(tensor(datatype="BF16")), "datatype 'BF16'"),
        (body(tensor(shape=...)), "shape None"),
        (body(tensor(shape=[2, -2])), "shape [2, -2]"),
        (body(tensor(shape=[2.0, 2])), "shape [2.0, 2]"),
        (body(tensor(shape=[True, 4])), "shape [True, 4]"),
        (body(tensor(shape="[2,2]")), "shape '[2,2]'"),
        (body(tensor(shape=[2, 3])), "4 elements. Shape [2, 3] takes 6"),
        (body(tensor(shape=[2**62, 2**62])), "4 elements"),
        (body(tensor(shape=[1] * 40, data=[1])), "40 dimensions"),
        (body(tensor(shape=[], data=[1])), "no rows"),
        (body(tensor(shape=[0, 2], data=[])), "no rows"),
        (body(tensor(shape=[0, 2**62, 2**62], data=[])), "too large"),
        (body(tensor(data=...)), "no data"),
        (body(tensor(data=None)), "no list in 'data'"),
        (body(tensor(data="1234")), "no list in 'data'"),
        (body(tensor(data={"0": 1})), "no list in 'data'"),
        (body(tensor(data=[1, 2, 3])), "3 elements"),
        (body(tensor(data=[1, 2, 3, "4"])), "'4' at position 3. FP32 takes numbers"),
        (body(tensor(data=[1, 2, 3, True])), "True at position 3"),
        (body(tensor(data=[1, 2, 3, None])), "None at position 3"),
        (body(tensor(data=[1, 2, 3, {}])), "{} at position 3"),
        (body(tensor(data=[[1, 2], [3]])), "nested data that is not [2, 2]"),
        (body(tensor(data=[[1, 2], 3, 4])), "nested data that is not [2, 2]"),
        (body(tensor(data=[[1, 2], [3, [4]]])), "nested deeper"),
        (body(tensor(data=[[1, 2], [3, "4"]])), "'4' at position 3"),
        (body(tensor(data=[[1, 2, 3, 4]])), "nested data that is not [2, 2]"),
        (body(tensor(data=[1e39, 1, 1, 1])), "NaN or infinity in row 0"),
        (body(tensor(datatype="UINT8", data=[1, 2, 3, 300])), "300 at position 3. UINT8 goes from 0 to 255"),
        (body(tensor(datatype="UINT8", data=[1, 2, 3, -1])), "-1 at position 3"),
        (body(tensor(datatype="INT64", data=[1, 2, 3, 2**63])), f"{2**63} at position 3"),
        (body(tensor(datatype="INT32", data=[1, 2, 3, 4.0])), "4.0 at position 3. INT32 takes whole numbers"),
        (body(tensor(datatype="INT32", data=[1, 2, 3, True])), "True at position 3"),
        (body(tensor(datatype="BOOL", data=[True, True, True, 1])), "1 at position 3. BOOL takes true or false"),
        (body(tensor(datatype="BYTES", data=["a", "b", "c", 4])), "4 at position 3. BYTES takes texts"),
        (body(tensor(datatype="FP16")), "FP16, which JSON does not carry"),
        (body(TENSOR, id=7), "id is a text"),
        (body(TENSOR, id={}), "id is a text"),
        (body(TENSOR, id=False), "id is a text"),
        (body(TENSOR, id="x" * 100_000), "id is a text"),
        (body(TENSOR, parameters=[]), "'parameters' of the request"),
        (body(TENSOR, parameters={"deadline": 3}), "unknown parameter 'deadline'. Nearest: deadline_ms"),
        (body(TENSOR, parameters={"binary_data_output": 1}), "binary_data_output is true or false"),
        (body(TENSOR, parameters={"sequence_id": 7}), "sequences are not served"),
        (body(TENSOR, parameters={"timeout": "1"}), "timeout is a whole number"),
        (body(TENSOR, parameters={"timeout": -1}), "timeout is a whole number"),
        (body(TENSOR, outputs={}), "'outputs' is a list"),
        (body(TENSOR, outputs=["y"]), "each output is no JSON object"),
        (body(TENSOR, outputs=[{}]), "output name"),
        (body(TENSOR, outputs=[{"name": "y"}, {"name": "y"}]), "output 'y' is there twice"),
        (body(TENSOR, outputs=[{"name": "y", "parameters": {"binary_data": "yes"}}]), "binary_data is true or false"),
        (body(TENSOR, outputs=[{"name": "y", "parameters": {"classification": 3}}]), "unknown parameter"),
        (body(tensor(parameters={"shared_memory_region": "r"})), "shared memory"),
        (body(tensor(data=..., parameters={"binary_data_size": 16})), "needs Inference-Header-Content-Length"),
        (body(tensor(parameters={"binary_data_size": 16})), "both 'data' and 'binary_data_size'"),
    ],
)
def test_bad_json_is_refused_with_the_reason(sent: bytes, words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_request(sent, model="m")
    assert words in caught.value.text()
    assert len(caught.value.text()) < 500


def test_an_input_of_other_length_than_the_first_is_refused() -> None:
    with pytest.raises(BadInput, match="input 'z' has 1 rows, another input has 2"):
        decode_request(body(TENSOR, tensor(name="z", shape=[1, 4])), model="m")


def test_too_many_rows_are_refused_as_too_large() -> None:
    with pytest.raises(BodyTooLarge, match="2 rows"):
        decode_request(body(TENSOR), model="m", max_rows=1)


def binary(raw: bytes, **changes: Any) -> tuple[bytes, int]:
    fields = {"name": "x", "datatype": "FP32", "shape": [2, 2], "parameters": {"binary_data_size": len(raw)}, **changes}
    head = body(fields)
    return head + raw, len(head)


FOUR = np.arange(4, dtype=np.float32).tobytes()


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ((binary(FOUR)[0], 0), "Inference-Header-Content-Length is 0"),
        ((binary(FOUR)[0], 10_000), "Inference-Header-Content-Length is 10000"),
        ((binary(FOUR)[0], 20), "malformed JSON"),
        (binary(FOUR[:-1]), "15 bytes of binary data. Shape [2, 2] of FP32 takes 16"),
        (binary(FOUR, shape=[2**62, 2**62]), "16 bytes of binary data"),
        (binary(FOUR, parameters={"binary_data_size": 17}), "binary_data_size 17. 16 bytes are there"),
        (binary(FOUR, parameters={"binary_data_size": -1}), "binary_data_size -1"),
        (binary(FOUR, parameters={"binary_data_size": "16"}), "binary_data_size '16'"),
        (binary(FOUR, parameters={"binary_data_size": True}), "binary_data_size True"),
        (binary(FOUR + b"!", parameters={"binary_data_size": 16}), "1 bytes of binary data belong to no input"),
        (binary(np.array([0, 0, np.nan, 0], np.float32).tobytes()), "input 'x' has NaN or infinity in row 1"),
        (binary(np.array([0, 0, np.inf, 0], np.float16).tobytes(), datatype="FP16"), "NaN or infinity in row 1"),
        (binary(b"\x00\x01\x02\x00", datatype="BOOL"), "neither 0 nor 1"),
        (binary(b"\x01\x00", datatype="BYTES", shape=[1]), "ends within a length prefix"),
        (binary(b"\xff\xff\xff\xffa", datatype="BYTES", shape=[1]), "4294967295 bytes announced, 1 are there"),
        (binary(b"\x00" * 12, datatype="BYTES", shape=[2]), "3 elements. Shape [2] takes 2"),
        (binary(b"\x00" * 4, datatype="BYTES", shape=[2]), "1 elements. Shape [2] takes 2"),
        (binary(b"", datatype="FP32", shape=[0, 4]), "no rows"),
    ],
)
def test_bad_binary_data_is_refused_with_the_reason(sent: tuple[bytes, int], words: str) -> None:
    with pytest.raises(BadRequest) as caught:
        decode_request(sent[0], model="m", header_bytes=sent[1])
    assert words in caught.value.text()


@given(st.binary(max_size=200), st.integers(-1, 250))
def test_garbage_is_refused_and_never_anything_else(sent: bytes, header_bytes: int) -> None:
    with pytest.raises(BadRequest):
        decode_request(sent, model="m", header_bytes=None if header_bytes < 0 else header_bytes)


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*TENSOR, "inputs", "parameters", "id"]), inner)
    ),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"inputs": st.lists(st.fixed_dictionaries(dict.fromkeys(TENSOR, json)), max_size=2)}))
def test_wrong_types_anywhere_are_refused_and_never_anything_else(sent: dict[str, Any]) -> None:
    try:
        encoded = orjson.dumps(sent)
    except TypeError:  # integers that JSON readers do not take
        return
    with pytest.raises(FenixError) as caught:
        decode_request(encoded, model="m")
    assert isinstance(caught.value, BadRequest)


def test_timeout_and_priority_of_the_protocol_become_terms() -> None:
    assert terms_of({"timeout": 1500, "priority": 3}) == {"deadline_ms": 1.5, "priority": 3}
    assert terms_of({"timeout": 1500, "deadline_ms": 7}) == {"deadline_ms": 7}
    assert terms_of({"timeout": 0, "priority": 0}) == {}
    assert terms_of({"priority": False}) == {"priority": False}  # for Terms.parse to refuse


def test_parameters_that_say_nothing_are_accepted() -> None:
    assert (
        terms_of({"sequence_id": 0, "sequence_start": False, "sequence_end": False, "triton_x": 1, "headers_a": ""})
        == {}
    )


def test_sequences_and_unknown_parameters_are_refused() -> None:
    for parameters in ({"sequence_id": "s"}, {"sequence_start": True}, {"sequence_end": 0}, {"x": 1}):
        with pytest.raises(BadTerms):
            terms_of(parameters)


@pytest.mark.parametrize("values", [np.ones(1, np.float16), np.array([b"\xff"], object)])
def test_json_does_not_carry_what_it_cannot(values: Array) -> None:
    with pytest.raises(BadRequest) as caught:
        encode_answer(answer(y=values))
    assert caught.value.hint == "Ask for binary data."


def test_an_output_of_no_known_datatype_is_the_extensions_fault() -> None:
    for encode in (encode_answer, encode_infer_answer, AnswerBody.of):
        with pytest.raises(ExtensionBroken, match="output 'y' has dtype complex128"):
            encode(answer(y=np.ones(1, np.complex128)))


@pytest.mark.parametrize("sent", [b"", b"[]", b'{"outputs": 3}', b'{"outputs": [{"name": "y"}]}'])
def test_a_reply_that_is_none_is_the_servers_fault(sent: bytes) -> None:
    with pytest.raises(ExtensionBroken):
        decode_reply(sent)


def test_errors_come_back_as_the_class_they_were() -> None:
    error = NotFound("no goal 'digts'.", hint="Nearest: digits.")
    back = decode_error(404, encode_error(error), kind="NotFound")
    assert (type(back), back.text()) == (NotFound, error.text())


def test_errors_of_other_servers_are_told_by_their_status() -> None:
    assert type(decode_error(400, b'{"error": "no"}')) is BadRequest
    assert type(decode_error(500, b"<html>")) is FenixError
    assert decode_error(500, b"<html>").text() == "the server answered 500."
    overloaded = decode_error(503, b'{"error": "full"}', retry_after_s=3.0)
    assert isinstance(overloaded, Overloaded)
    assert overloaded.retry_after_s == 3.0
