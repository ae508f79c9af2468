"""Feedback and outcomes through both clients, against a gateway that really listens and keeps a real journal."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest
from pyarrow import parquet

from fenix.client import _Ask, _flat, _Pause, _Wire
from planner import errors
from tests.deployments.gateway.engines import served_http
from tests.deployments.gateway.journals import MISSING, desk_over, journal
from tests.fenix.test_client import KINDS, opened
from tests.lineage.outcomes import chunk, trace

LONG = "a" * 20  # a run of many requests


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with journal() as store, served_http(desk=desk_over(store)[0]) as served:
        store.append(LONG, [chunk(0, [1] * 12_000, run=LONG)])
        yield f"http://{served.address}"


@pytest.fixture(params=KINDS)
def client(request: pytest.FixtureRequest, url: str) -> Iterator[Any]:
    with opened(request.param, url) as one:
        yield one


def counts(reply: dict[str, Any]) -> list[int]:
    return [reply[name] for name in ("new", "repeated", "changed", "refused")]


def test_truths_and_ratings_are_given_one_by_one(client: Any) -> None:
    client.feedback(trace(0), truth=3)
    assert counts(client.feedback(trace(0), truth=np.array([3]), user="ann")) == [0, 1, 0, 0]
    assert counts(client.feedback(trace(0), truth=np.int64(4), output="digit", about_s=1.5)) == [0, 0, 1, 0]
    assert counts(client.feedback(trace(0), truth=b"3")) == [0, 0, 1, 0]
    assert client.feedback(trace(0), rating=np.float32(0.5))["refused"] == 0


def test_truths_travel_flat_and_as_plain_values() -> None:
    assert _flat(np.array([[1, 2], [3, 4]])) == [1, 2, 3, 4]
    assert _flat(np.array([b"a", None], object)) == ["a", None]
    assert _flat([[1], (2.5, None)]) == [1, 2.5, None]
    assert (_flat(np.float32(0.5)), _flat(np.bool_(True)), _flat("7"), _flat(None)) == (0.5, True, "7", None)


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (((MISSING,), {"truth": 1}), errors.RequestNotFound, "knows no request"),
        (((trace(0),), {"truth": 1, "user": "eve"}), errors.NotYourRequest, "eve"),
        (((trace(0),), {"truth": "a"}), errors.FeedbackRefused, "whole number"),
        ((("t1",), {"truth": 1}), errors.FeedbackRefused, "32 hex digits"),
        (((trace(0),), {}), errors.FeedbackRefused, "neither"),
        (((trace(0),), {"truth": 1, "rating": 1}), errors.FeedbackRefused, "both"),
        (((trace(0),), {"truth": float("nan")}), errors.FeedbackRefused, "finite"),
        (((trace(0),), {"rating": float("inf")}), errors.FeedbackRefused, "finite"),
        (((trace(0),), {"truth": {"a": 1}}), errors.FeedbackRefused, "flat list"),
        (((trace(0),), {"truth": 1, "about_s": 1e12}), errors.FeedbackRefused, "future"),
    ],
)
def test_what_is_wrong_raises_the_gateways_error(client: Any, given: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind) as caught:
        client.feedback(*given[0], **given[1])
    assert type(caught.value) is kind
    assert words in caught.value.text()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_files_of_any_length_are_given_in_pieces(client: Any, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"truths.{ending}"
    ids = [trace(k, LONG) for k in range(12_000)]
    ids[7], ids[11_000] = "nonsense", MISSING
    if ending == "csv":
        path.write_text("trace_id,truth\n" + "".join(f"{one},1\n" for one in ids))
    else:
        parquet.write_table(pa.table({"trace_id": ids, "truth": [1] * 12_000}), path)
    reply = client.feedback_file(path)
    assert reply["refused"] == 2
    assert reply["new"] + reply["repeated"] == 11_998
    assert [(fault["row"], fault["kind"]) for fault in reply["errors"]] == [
        (8, "FeedbackRefused"),
        (11_001, "RequestNotFound"),
    ]
    assert counts(client.feedback_file(str(path))) == [0, 11_998, 0, 2]


def test_a_file_that_cannot_be_read_raises(client: Any, tmp_path: Path) -> None:
    for name, body, words in (
        ("a.txt", b"", "neither .csv nor .parquet"),
        ("none.csv", None, "cannot be read"),
        ("none.parquet", None, "cannot be read"),
        ("a.csv", b"a,b\n", "unknown column"),
        ("a.parquet", b"PAR1", "not Parquet"),
        ("b.csv", b"trace_id,rating\n" + f"{trace(1)},1\n".encode() * 5_000 + b'"', "Giving the file again is safe"),
    ):
        if body is not None:
            (tmp_path / name).write_bytes(body)
        with pytest.raises(errors.FeedbackRefused) as caught:
            client.feedback_file(tmp_path / name)
        assert words in caught.value.text()


def test_a_file_waits_while_the_gateway_has_too_much(tmp_path: Path) -> None:
    path = tmp_path / "truths.csv"
    path.write_text(f"trace_id,truth\n{trace(0)},3\n")
    full = httpx.Response(503, json={"error": "4 uploads."}, headers={"fenix-error": "Overloaded", "retry-after": "2"})
    taken = httpx.Response(200, json={"new": 1, "repeated": 0, "changed": 0, "refused": 0, "errors": []})
    talk = _Wire("http://x", 1.0).feedback_file(path)
    first = next(talk)
    assert isinstance(first, _Ask)
    assert talk.send(full) == _Pause(2.0)
    assert next(talk) == first
    with pytest.raises(StopIteration) as end:
        talk.send(taken)
    assert end.value.value["new"] == 1
    talk = _Wire("http://x", 1.0).feedback_file(path)
    next(talk)
    for _ in range(30):
        assert talk.send(full) == _Pause(2.0)
        next(talk)
    with pytest.raises(errors.Overloaded):
        talk.send(full)


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_for_nobody_says_so(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "truths.csv"
    path.write_text(f"trace_id,truth\nnonsense,3\n{trace(0)},3\n")
    with opened(kind, "http://127.0.0.1:1") as client, pytest.raises(errors.ClusterDown) as caught:
        client.feedback_file(path)
    assert "Before that: 0 new, 0 repeated, 0 changed, 1 refused." in caught.value.hint


def test_long_truths_are_split_over_several_requests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fenix.client._MOST_UPLOAD_BYTES", 500)
    path = tmp_path / "truths.csv"
    path.write_text("trace_id,truth\n" + "".join(f"{trace(k)},{'x' * 200}\n" for k in range(7)))
    talk = _Wire("http://x", 1.0).feedback_file(path)
    refused = {"new": 0, "repeated": 0, "changed": 0, "refused": 1}
    fault = {"index": 0, "trace_id": "", "error": "no.", "kind": "FeedbackRefused"}
    reply = httpx.Response(200, json={**refused, "errors": [fault]})
    next(talk)
    talk.send(reply)
    talk.send(reply)
    talk.send(reply)
    with pytest.raises(StopIteration) as end:
        talk.send(reply)
    assert [one["row"] for one in end.value.value["errors"]] == [1, 3, 5, 7]


def test_outcomes_are_looked_up(client: Any) -> None:
    told = client.outcome(trace(1))
    assert (told["trace_id"], told["plan"], [step["extension"] for step in told["steps"]]) == (
        trace(1),
        "plan-1",
        ["scale@1", "read@2"],
    )
    for trace_id in (MISSING, "7", "a/b?c", "é"):
        with pytest.raises(errors.NotFound if "/" in trace_id else errors.RequestNotFound):
            client.outcome(trace_id)
    with pytest.raises(errors.BadRequest, match="empty"):
        client.outcome("")
