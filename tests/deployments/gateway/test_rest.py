from __future__ import annotations

import gzip
import io
import math
import re
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import httpx
import numpy as np
import orjson
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from pyarrow import parquet
from schemathesis.specs.openapi.checks import positive_data_acceptance

from deployments.gateway.http import HttpApp
from deployments.gateway.limits import Limits
from deployments.gateway.messages import InferAnswer
from deployments.gateway.rest import create_app
from deployments.gateway.schemas import EXAMPLE_TRACE_ID, AnswerBody, Inference, InferenceReply, OutcomeInfo
from lineage.outcomes import Kept, Outcome, Setting
from planner.cards import ExtensionId
from planner.choice.posteriors import Belief
from planner.features import Rows
from planner.plans import Plan, Prediction
from tests.deployments.gateway.engines import GOAL, NumpyEngine, Served, served_http
from tests.deployments.gateway.journals import MISSING, desk_over, journal
from tests.lineage.outcomes import trace

X = {"name": "x", "datatype": "FP32", "shape": [2, 2], "data": [[1, 2], [3, 4.5]]}


def post(served: Served, path: str, body: Any) -> httpx.Response:
    return httpx.post(served.url + path, json=body)


@pytest.mark.parametrize("wish", [{"goal": "doubling"}, {"sentence": "double it"}, {"wanted": ["vector/out"]}])
def test_infer_finds_its_way_by_goal_sentence_or_wanted_features(http: Served, wish: dict[str, Any]) -> None:
    terms = {"deadline_ms": 100.5, "tags": ["pii"]}
    answer = post(http, "/v1/infer", {**wish, "inputs": [{**X, "type": "vector"}], "terms": terms, "id": "i"})
    assert answer.status_code == 200
    body = answer.json()
    assert body["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [2, 2], "data": [2, 4, 6, 9]}]
    assert body["parameters"] == {"plan": "p-double", "trace_id": "t1", "confidence": 0.75, "flags": ""}
    assert body["plan"]["steps"][0]["extension"] == "double@1"
    assert body["steps"][0]["took_ms"] == 0.3
    assert body["explanation"] is None
    seen = http.engine.seen[-1]
    assert (seen.terms, seen.types, seen.id) == (terms, {"x": "vector"}, "i")


def test_infer_selects_outputs_and_explains_itself_when_asked(http: Served) -> None:
    body = {"goal": "doubling", "inputs": [X], "outputs": ["y.confidence"], "explain": True}
    answer = post(http, "/v1/infer", body).json()
    assert answer["outputs"][0]["data"] == [0.75, 0.75]
    assert answer["explanation"]["chosen"]["reason"] == "the only one"


def test_infer_shows_what_is_not_finite_as_null() -> None:
    plan = Plan("p", (), (), Prediction(1, 1, 1, 1), math.inf)
    values = np.array([[1.5, np.nan], [np.inf, 2]], np.float32)
    shown = AnswerBody.of(InferAnswer("m", "1", "", {"y": Rows(values)}, {}, plan, ()))
    assert shown.outputs[0].data == [1.5, None, None, 2.0]
    assert shown.plan.score is None


def test_infer_carries_texts_but_no_half_floats(http: Served) -> None:
    texts = {"name": "x", "datatype": "BYTES", "shape": [1, 1], "data": ["ß"]}
    assert post(http, "/v1/infer", {"goal": "echo_bytes", "inputs": [texts]}).json()["outputs"][0]["data"] == ["ß"]
    halves = {"name": "x", "datatype": "FP16", "shape": [1, 1], "data": [1.5]}
    answer = post(http, "/v1/infer", {"goal": "echo_fp16", "inputs": [halves]})
    assert (answer.status_code, "FP16, which JSON does not carry" in answer.text) == (400, True)


@pytest.mark.parametrize("inputs", [[], [X], [{"name": "x", "datatype": "FP32", "shape": [4096, 3]}]])
def test_plan_explains_without_running(http: Served, inputs: list[Any]) -> None:
    before = len(http.engine.seen)
    answer = post(http, "/v1/plan", {"goal": "doubling", "inputs": inputs})
    assert answer.status_code == 200
    body = answer.json()
    assert (body["chosen"]["id"], len(body["others"]), body["rejected"][0]["reason"]) == ("p-double", 1, "dearer")
    assert (body["goal"], body["complete"], body["expanded"], body["elapsed_ms"]) == ("doubling", True, 3, 0.5)
    assert len(http.engine.seen) == before


@pytest.mark.parametrize(
    ("path", "changes", "status", "words"),
    [
        ("/v1/infer", {"sentence": "make me a sandwich", "goal": None}, 422, "Nearest: doubling."),
        ("/v1/infer", {"wanted": ["label"], "goal": None}, 422, "nothing produces 'label'"),
        ("/v1/infer", {"goal": "nobody"}, 404, "no extension 'nobody'"),
        ("/v1/infer", {"goal": None}, 400, "exactly one way"),
        ("/v1/infer", {"sentence": "double"}, 400, "exactly one way"),
        ("/v1/infer", {"sentenc": "double"}, 400, "sentenc: Extra inputs are not permitted"),
        ("/v1/infer", {"terms": {"deadline": 3}}, 400, "terms.deadline: Extra"),
        ("/v1/infer", {"terms": {"deadline_ms": "3"}}, 400, "terms.deadline_ms: Input should be a valid number"),
        ("/v1/infer", {"terms": {"deadline_ms": -3}}, 400, "terms.deadline_ms: Input should be greater than 0"),
        ("/v1/infer", {"terms": {"min_accuracy": 1}}, 422, "no plan is right all the time"),
        ("/v1/infer", {"explain": 1}, 400, "explain: Input should be a valid boolean"),
        ("/v1/infer", {"inputs": []}, 400, "inputs: List should have at least 1 item"),
        ("/v1/infer", {"inputs": [X, X]}, 400, "input 'x' is there twice"),
        ("/v1/infer", {"inputs": [{**X, "shape": [3, 2], "data": [1]}]}, 400, "1 elements. Shape [3, 2] takes 6."),
        ("/v1/infer", {"inputs": [{**X, "datatype": "FP31"}]}, 400, "inputs.0.datatype"),
        ("/v1/infer", {"inputs": [{**X, "data": [1, 2, 3, "4"]}]}, 400, "'4' at position 3"),
        ("/v1/infer", {"outputs": ["y", "y"]}, 400, "output 'y' is there twice"),
        ("/v1/infer", {"outputs": ["q"]}, 400, "there is no output 'q'"),
        ("/v1/plan", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [0, 3]}]}, 400, "no rows"),
        ("/v1/plan", {"inputs": [{"name": "x", "datatype": "FP32", "shape": [2**40, 2**40]}]}, 413, "Split it."),
        ("/v1/plan", {"inputs": [X, {"name": "z", "datatype": "FP32", "shape": [3, 2]}]}, 400, "has 3 rows"),
    ],
)
def test_bad_bodies_are_refused_with_the_reason(
    http: Served, path: str, changes: dict[str, Any], status: int, words: str
) -> None:
    answer = post(http, path, {"goal": "doubling", "inputs": [X], **changes})
    assert (answer.status_code, list(answer.json())) == (status, ["error"])
    assert words in answer.json()["error"]


@pytest.mark.parametrize("sent", [b"", b"{", b"[1]", b"NaN", b"\xff", b"[" * 50_000])
def test_malformed_bodies_are_refused(http: Served, sent: bytes) -> None:
    answer = httpx.post(http.url + "/v1/infer", content=sent, headers={"content-type": "application/json"})
    assert (answer.status_code, list(answer.json())) == (400, ["error"])
    assert answer.headers["fenix-error"] == "BadRequest"
    assert re.search(r"[.:] [A-Z]", answer.json()["error"]), "a second sentence says what to do"


def test_a_large_body_that_does_not_validate_is_refused_like_a_small_one(http: Served) -> None:
    for n_elements in (1, 1 << 18):
        answer = post(http, "/v1/infer", {"goal": "doubling", "inputs": [{**X, "data": [1.5] * n_elements, "u": 1}]})
        assert (answer.status_code, answer.headers["fenix-error"]) == (400, "BadInput")
        assert answer.json()["error"].startswith("inputs.0.u: Extra inputs are not permitted.")


def test_extensions_and_goals_can_be_looked_at(http: Served) -> None:
    catalogue = httpx.get(http.url + "/v1/catalogue").json()
    assert catalogue == {"epoch": 3, "extensions": 17, "goals": 1}
    page = httpx.get(http.url + "/v1/extensions", params={"limit": 2, "offset": 1}).json()
    assert (page["total"], [card["id"] for card in page["extensions"]]) == (17, ["raising@1", "full@1"])
    card = httpx.get(http.url + "/v1/extensions/double@1").json()
    assert card == httpx.get(http.url + "/v1/extensions/double").json()
    assert card["inputs"] == [{"name": "x", "type": "vector", "datatype": "FP32", "shape": [-1], "many": 1}]
    assert card["accuracy"] == {"mean": 1.0, "n_rows": 0, "low": 0.0, "high": 1.0}
    assert (card["placement"], card["placement_asked"], card["parts"]) == ("remote", "auto", [])
    http.engine.placed = frozenset({ExtensionId("double@1")})
    try:
        assert httpx.get(http.url + "/v1/extensions/double").json()["placement"] == "inline"
        page = httpx.get(http.url + "/v1/extensions", params={"limit": 2}).json()
        assert [card["placement"] for card in page["extensions"]] == ["inline", "remote"]
    finally:
        http.engine.placed = frozenset()
    (goal,) = httpx.get(http.url + "/v1/goals").json()["goals"]
    assert goal == httpx.get(http.url + "/v1/goals/doubling").json()
    assert (goal["description"], goal["examples"]) == (GOAL.description, list(GOAL.examples))
    for path in ("/v1/goals/dubbling", "/v1/extensions/dubble", "/v1/goals/%2e%2e"):
        assert httpx.get(http.url + path).status_code == 404
    for query, words in (
        ("limit=0", "limit: Input should be greater than or equal to 1"),
        ("limit=1&limit=2", "'limit' is there twice"),
        ("limt=1", "Nearest: limit."),
    ):
        answer = httpx.get(http.url + "/v1/goals?" + query)
        assert (answer.status_code, words in answer.json()["error"]) == (400, True)


def test_the_document_describes_the_raw_infer_routes_as_they_are(http: Served) -> None:
    document = httpx.get(http.url + "/openapi.json").json()
    operation = document["paths"]["/v2/models/{model}/infer"]["post"]
    assert {"200", "400", "404", "413", "415", "422", "429", "500", "502", "503", "504"} == set(operation["responses"])
    (example,) = document["components"]["schemas"]["Inference"]["examples"]
    Inference.model_validate(example)
    answer = post(http, "/v2/models/double/infer", example)
    assert answer.status_code == 200
    InferenceReply.model_validate(answer.json())


@pytest.fixture(scope="module")
def journalled() -> Iterator[Served]:
    """A gateway that keeps a journal, with the requests of `journal`."""
    with journal() as store, served_http(desk=desk_over(store)[0]) as served:
        yield served


def give(served: Served, body: Any, media: str = "application/json") -> httpx.Response:
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    return httpx.post(served.url + "/v1/feedback", content=content, headers={"content-type": media})


def test_feedback_is_acknowledged_once_it_is_in_the_journal(journalled: Served) -> None:
    reply = give(journalled, {"trace_id": trace(0), "truth": 3, "user": "ann", "about_s": None})
    assert reply.status_code == 200
    assert reply.json() == {"new": 1, "repeated": 0, "changed": 0, "refused": 0, "errors": []}
    assert give(journalled, {"trace_id": trace(0), "truth": 3}).json()["repeated"] == 1
    assert give(journalled, {"trace_id": trace(0), "truth": 4}, "application/vnd.mine+json").json()["changed"] == 1


@pytest.mark.parametrize(
    ("sent", "status", "kind", "words"),
    [
        ({"trace_id": trace(0), "truth": 3, "user": "eve"}, 403, "NotYourRequest", "not one of user 'eve'"),
        ({"trace_id": MISSING, "truth": 3}, 404, "RequestNotFound", "knows no request"),
        ({"trace_id": "7", "truth": 3}, 400, "FeedbackRefused", "32 hex digits"),
        ({"truth": 3}, 400, "FeedbackRefused", "trace_id is missing"),
        ({"trace_id": trace(0), "thruth": 3}, 400, "FeedbackRefused", "Nearest: truth."),
        ({"trace_id": trace(0)}, 400, "FeedbackRefused", "neither a truth nor a rating"),
        ({"trace_id": trace(0), "truth": {"a": 1}}, 400, "FeedbackRefused", "a label, a number or a flat list"),
        ({"trace_id": trace(0), "rating": "good"}, 400, "FeedbackRefused", "rating is a number"),
        ({"trace_id": trace(0), "rating": 1.5}, 400, "FeedbackRefused", "between 0 and 1"),
        ({"trace_id": trace(0), "truth": 3, "about_s": 1e12}, 400, "FeedbackRefused", "in the future"),
        ({"trace_id": trace(0), "truth": "x" * 100_000}, 400, "FeedbackRefused", "1024 characters"),
        (b'{"trace_id": "%b", "rating": NaN}' % trace(0).encode(), 400, "BadRequest", "malformed JSON"),
        (b"", 400, "BadRequest", "malformed JSON"),
        ([{"trace_id": trace(0), "truth": 3}], 400, "FeedbackRefused", "feedback is an object"),
        ({"items": {}}, 400, "FeedbackRefused", "items is a list"),
        ({"items": [], "user": "ann"}, 400, "FeedbackRefused", "'user' beside items"),
        ({"items": [{}] * 10_001}, 413, "BodyTooLarge", "at most 10000"),
    ],
)
def test_feedback_that_is_wrong_is_refused_with_the_reason(
    journalled: Served, sent: Any, status: int, kind: str, words: str
) -> None:
    reply = give(journalled, sent)
    assert (reply.status_code, reply.headers["fenix-error"], list(reply.json())) == (status, kind, ["error"])
    assert words in reply.json()["error"]
    assert len(reply.content) < 500


def test_of_many_pieces_of_feedback_the_good_are_taken(journalled: Served) -> None:
    items = [{"trace_id": trace(1), "truth": 1}, {"trace_id": MISSING, "truth": 1}, "truth", {"trace_id": trace(1)}]
    reply = give(journalled, {"items": items}).json()
    assert (reply["new"], reply["refused"]) == (1, 3)
    assert [(fault["index"], fault["kind"], "row" in fault) for fault in reply["errors"]] == [
        (1, "RequestNotFound", False),
        (2, "FeedbackRefused", False),
        (3, "FeedbackRefused", False),
    ]
    assert give(journalled, {"items": []}).json()["new"] == 0


def test_files_of_feedback_are_taken(journalled: Served) -> None:
    reply = give(journalled, f"trace_id,truth\n{trace(2)},4\n{trace(3)},no\n".encode(), "text/csv; charset=utf-8")
    assert (reply.status_code, reply.json()["new"], reply.json()["errors"][0]["row"]) == (200, 1, 2)
    file = io.BytesIO()
    parquet.write_table(pa.table({"trace_id": [trace(4)], "truth": [5]}), file)
    assert give(journalled, file.getvalue(), "application/vnd.apache.parquet").json()["new"] == 1
    packed = gzip.compress(f"trace_id,rating\n{trace(5)},1\n".encode())
    headers = {"content-type": "text/csv", "content-encoding": "gzip"}
    assert httpx.post(journalled.url + "/v1/feedback", content=packed, headers=headers).json()["new"] == 1


@pytest.mark.parametrize(
    ("body", "media", "status", "words"),
    [
        (b"PAR1", "application/vnd.apache.parquet", 400, "not Parquet"),
        (b"", "application/vnd.apache.parquet", 400, "not Parquet"),
        (b"a,b\n1,2\n", "text/csv", 400, "unknown column 'a'"),
        (b"", "text/csv", 400, "no column trace_id"),
        (b"{}", "text/plain", 415, "text/plain"),
        (b"{}", "application/octet-stream", 415, "application/octet-stream"),
        (b"trace_id,truth\n", "application/json", 400, "malformed JSON"),
    ],
)
def test_files_that_are_none_are_refused(journalled: Served, body: bytes, media: str, status: int, words: str) -> None:
    reply = give(journalled, body, media)
    assert (reply.status_code, list(reply.json())) == (status, ["error"])
    assert words in reply.json()["error"]
    assert (
        httpx.post(journalled.url + "/v1/plan", content=body, headers={"content-type": "text/csv"}).status_code == 415
    )


def test_the_outcome_of_a_request_is_told(journalled: Served) -> None:
    reply = httpx.get(f"{journalled.url}/v1/outcomes/{trace(5).upper()}")
    assert reply.status_code == 200
    told = reply.json()
    assert (told["trace_id"], told["model"], told["plan"], told["chosen"]) == (trace(5), "digits", "plan-1", "plan-1")
    assert (told["n_rows"], told["latency_ms"], told["confidence"], told["error"]) == (1, 1.5, None, "")
    assert [(s["step"], s["extension"], s["batch_rows"]) for s in told["steps"]] == [
        (0, "scale@1", 8),
        (1, "read@2", 8),
    ]
    assert told["outputs"] == [{"name": "digit", "shape": [1], "data": [9], "best": False}]
    assert (told["probability"], told["considered"], told["terms"]["user"]) == (1.0, [], "ann")
    for trace_id in (MISSING, "7", "%00", "é"):
        reply = httpx.get(f"{journalled.url}/v1/outcomes/{trace_id}")
        assert (reply.status_code, reply.headers["fenix-error"]) == (404, "RequestNotFound")


def test_outcomes_show_what_could_have_been_taken_and_what_was_kept() -> None:
    setting = Setting(
        "m",
        plan="b",
        considered=(("a", 0.25), ("b", 0.75)),
        flags=frozenset({"hedged", "cached"}),
        reason="the best so far",
    )
    kept = Kept(
        {"t": np.array([b"\xc3\x9f", None], object), "x": np.array([[1.5, np.nan], [np.inf, 2]], np.float16)},
        {"scores": np.array([3, 1], np.int32)},
        frozenset({"image"}),
    )
    beliefs = {"b": Belief(0.9, 99.0, 0.01, 50.0, 4.0, 0.1, 0.5)}
    told = OutcomeInfo.of(Outcome(trace(0), setting, 1.0, 2.0, 2, 0.5, (), kept, None), beliefs)
    assert told.reason == "the best so far"
    a, b = [c.believed for c in told.considered]
    assert a is None
    assert b is not None
    assert (b.accuracy, b.failures, b.p50_ms, b.cost) == (0.9, 0.01, 4.0, 0.5)
    assert 0.8 < b.accuracy_low < 0.9 < b.accuracy_high < 1.0
    assert (told.probability, told.flags, told.not_kept, told.sampled) == (0.75, ["cached", "hedged"], ["image"], False)
    assert [(c.plan, c.probability) for c in told.considered] == [("a", 0.25), ("b", 0.75)]
    assert [(o.name, o.shape, o.data, o.best) for o in told.outputs] == [
        ("t", [2], ["ß", None], False),
        ("x", [2, 2], [1.5, None, None, 2.0], False),
        ("scores", [2], [3, 1], True),
    ]


def test_without_a_journal_feedback_is_refused(http: Served) -> None:
    for reply in (give(http, {"trace_id": trace(0), "truth": 3}), httpx.get(f"{http.url}/v1/outcomes/{trace(0)}")):
        assert (reply.status_code, reply.headers["fenix-error"]) == (503, "StoreUnavailable")
        assert "this gateway keeps no journal." in reply.json()["error"]


def test_every_example_of_the_document_is_answered(http: Served, journalled: Served) -> None:
    document = httpx.get(http.url + "/openapi.json").json()
    schemas = document["components"]["schemas"]
    for name in ("FeedbackBody", "FeedbackItems"):
        for example in schemas[name]["examples"]:
            said = orjson.dumps(example).decode().replace(EXAMPLE_TRACE_ID, trace(0)).replace('"seven"', "7")
            assert give(journalled, said.encode()).json()["refused"] == 0
    rows = document["paths"]["/v1/feedback"]["post"]["requestBody"]["content"]["text/csv"]["example"]
    assert give(journalled, rows.replace(EXAMPLE_TRACE_ID, trace(0)).encode(), "text/csv").json()["refused"] == 0
    schemas = httpx.get(http.url + "/openapi.json").json()["components"]["schemas"]
    for path, name in (("/v1/infer", "InferBody"), ("/v1/plan", "PlanBody")):
        for example in schemas[name]["examples"]:
            assert post(http, path, example).status_code == 200


# Whether data fit a shape, or a goal exists, no schema says: so what the schema allows may well be refused.
_BEYOND_SCHEMAS = [positive_data_acceptance]


@schemathesis.serializer("application/vnd.apache.parquet")
def _as_it_is(context: Any, value: Any) -> bytes:
    return value if isinstance(value, bytes) else str(value).encode()


_ENGINE, _LIMITS = NumpyEngine(), Limits()
_CLOSING = ExitStack()
_DESK = desk_over(_CLOSING.enter_context(journal()))[0]
schema = schemathesis.openapi.from_asgi("/openapi.json", HttpApp(_ENGINE, create_app(_ENGINE, _LIMITS, _DESK), _LIMITS))


@pytest.fixture(scope="module", autouse=True)
def _closed_in_the_end() -> Iterator[None]:
    with _CLOSING:
        yield


FUZZ = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


@schema.parametrize()
@FUZZ
def test_whatever_is_sent_is_answered_as_documented(case: schemathesis.Case) -> None:
    case.call_and_validate(excluded_checks=_BEYOND_SCHEMAS)


@schema.include(path_regex=r"^/v2/.*/infer$").parametrize()
@FUZZ
def test_whatever_is_sent_to_a_model_that_exists_is_answered_as_documented(case: schemathesis.Case) -> None:
    case.path_parameters = {**case.path_parameters, "model": "double"}
    case.call_and_validate(excluded_checks=_BEYOND_SCHEMAS)
