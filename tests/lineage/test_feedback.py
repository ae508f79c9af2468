from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lineage.chunks import Chunk, ChunkBuilder
from lineage.errors import FeedbackRefused, FenixError, NotYourRequest
from lineage.feedback import MOST_CHARS, MOST_TRUTHS, Feedback, Truth, judge
from lineage.outcomes import Outcome, Setting
from tests.lineage.outcomes import RUN, trace

NOW_S = 1e9


def answered(n_rows: int = 1, setting: Setting | None = None, **outputs: Any) -> Outcome:
    """The outcome of one request with these outputs."""
    builder = ChunkBuilder(RUN)
    arrays = {name: np.asarray(values) for name, values in outputs.items()}
    builder.add(setting or Setting("m", user="ann"), 7, 1.0, [1.0], [n_rows], [0.5], (), arrays)
    found = Chunk.decode(builder.encode()).find(7)
    assert found is not None
    return found


def said(truth: Truth | None = None, output: str = "", **more: Any) -> Feedback:
    return Feedback(trace(7), output, truth, **more)


def test_feedback_is_read_from_what_a_client_sends() -> None:
    given = {
        "trace_id": trace(7).upper(),
        "truth": [1, None, "x"],
        "about_s": NOW_S + 59,
        "user": "ann",
        "rating": None,
    }
    assert Feedback.parse(given, NOW_S) == Feedback(trace(7), "", (1, None, "x"), None, NOW_S + 59, "ann")
    rated = Feedback.parse({"trace_id": trace(7), "output": "y", "rating": 1}, NOW_S)
    assert (rated.rating, rated.kind, rated.output) == (1.0, "rating", "y")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ratign": 1}, "ratign"),
        ({"trace_id": None}, "trace_id is missing"),
        ({"trace_id": 12}, "trace_id is missing"),
        ({"trace_id": "12"}, "32 hex digits"),
        ({"trace_id": "g" * 32}, "32 hex digits"),
        ({"truth": None}, "neither"),
        ({"rating": 0.5}, "both"),
        ({"truth": None, "rating": 1.01}, "between 0 and 1"),
        ({"truth": None, "rating": True}, "rating is a number"),
        ({"truth": None, "rating": "good"}, "rating is a number"),
        ({"truth": None, "rating": float("nan")}, "finite"),
        ({"truth": float("inf")}, "finite"),
        ({"truth": [1.0, float("nan")]}, "finite"),
        ({"truth": 1 << 70}, "64 bits"),
        ({"truth": 10**400}, "finite"),
        ({"truth": {}}, "flat list"),
        ({"truth": [[1]]}, "flat list"),
        ({"truth": []}, "1 to"),
        ({"truth": [1] * (MOST_TRUTHS + 1)}, "1 to"),
        ({"truth": [None, None]}, "null"),
        ({"truth": "x" * (MOST_CHARS + 1)}, "at most 1024 characters"),
        ({"truth": "\ud800"}, "no text"),
        ({"truth": "a\0b"}, "no text"),
        ({"output": "x" * 257}, "output is a text"),
        ({"user": 3}, "user is a text"),
        ({"about_s": NOW_S + 61}, "61 s in the future"),
        ({"about_s": "now"}, "about_s is a number"),
        ({"about_s": float("-inf")}, "finite"),
    ],
)
def test_whatever_is_wrong_with_feedback_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FeedbackRefused, match=message):
        Feedback.parse({"trace_id": trace(7), "truth": 1, **changes}, NOW_S)


def test_an_unknown_field_is_answered_with_the_nearest() -> None:
    with pytest.raises(FeedbackRefused) as error:
        Feedback.parse({"trace_id": trace(7), "ratign": 1}, NOW_S)
    assert "rating" in error.value.hint
    with pytest.raises(FeedbackRefused, match="an object"):
        Feedback.parse([], NOW_S)  # type: ignore[arg-type]


def test_labels_are_right_or_wrong_row_by_row() -> None:
    verdict = judge(answered(3, y=[4, 5, 6]), said((4, 9, None)))
    assert (verdict.kind, verdict.output, verdict.rows) == ("label", "y", (0, 1))
    assert (verdict.said, verdict.true, verdict.right) == ((4, 5), (4, 9), (True, False))


@pytest.mark.parametrize(
    ("label", "truth", "right"),
    [
        (7, 7, True),
        (7, 7.0, True),
        (7, "7", True),
        (1, True, True),
        (True, 1, True),
        (True, False, False),
        (b"cat", "cat", True),
        (b"7", 7, True),
        (b"7", 7.0, True),
        (b"true", True, True),
        ("é".encode(), "é", True),
        (b"cat", "dog", False),
    ],
)
def test_a_label_is_the_same_in_whatever_type_the_truth_comes(label: Any, truth: Truth, right: bool) -> None:
    values = np.array([label], object) if isinstance(label, bytes) else [label]
    assert judge(answered(y=values), said(truth)).right == (right,)


@pytest.mark.parametrize(("label", "truth"), [(7, 7.5), (7, "cat"), (True, 2), (True, "yes")])
def test_a_truth_that_cannot_be_such_a_label_is_refused(label: Any, truth: Truth) -> None:
    with pytest.raises(FeedbackRefused, match=repr(str(truth))):
        judge(answered(y=[label]), said(truth))


def test_scores_are_judged_by_the_best_of_them_be_they_kept_or_not() -> None:
    scores = np.zeros((2, 5), np.float32)
    scores[0, 3] = scores[1, 4] = 0.9
    assert judge(answered(2, y=scores), said((3, 3))).right == (True, False)
    many = np.zeros((2, 500))
    many[0, 77] = many[1, 400] = 0.9
    outcome = answered(2, y=many)
    assert "y" in outcome.outputs.best
    assert judge(outcome, said((77, 3))).right == (True, False)


def test_numbers_have_an_absolute_and_a_squared_error() -> None:
    verdict = judge(answered(2, y=[[1.0], [5.0]]), said((1, 2.0)))
    assert (verdict.kind, verdict.rows) == ("value", (0, 1))
    assert (verdict.absolute, verdict.squared) == ((0.0, 3.0), (0.0, 9.0))
    whole = judge(answered(2, y=[[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), said((1.0, 2.0, 3.0, None, None, 8.0)))
    assert (whole.rows, whole.absolute) == ((0, 0, 0, 1), (0.0, 0.0, 0.0, 2.0))


@pytest.mark.parametrize("truth", ["high", True])
def test_a_label_is_no_truth_for_a_number(truth: Truth) -> None:
    with pytest.raises(FeedbackRefused, match="is a number"):
        judge(answered(y=[0.5]), said(truth))


def test_rows_of_several_labels_are_right_when_all_of_them_are() -> None:
    outcome = answered(3, y=[[1, 2], [3, 4], [5, 6]])
    verdict = judge(outcome, said((1, 2, 3, 0, 5, None)))
    assert (verdict.rows, verdict.right, verdict.said) == ((0, 1), (True, False), ("[1, 2]", "[3, 4]"))


def test_a_rating_is_taken_as_it_is_for_the_whole_answer_or_one_output() -> None:
    outcome = answered(y=[1], z=[2])
    assert judge(outcome, said(rating=0.25)).rating == 0.25
    assert judge(outcome, said(output="z", rating=0.25)).output == "z"
    failed = answered(setting=Setting("m", error="Overloaded"))
    assert judge(failed, said(rating=0.0)).rating == 0.0


LONG = np.array([b"x" * 300, b"short"], object)


def test_a_text_that_was_too_long_to_keep_is_not_judged() -> None:
    assert judge(answered(2, y=LONG), said(("x", "short"))).rows == (1,)


@pytest.mark.parametrize(
    ("outcome", "feedback", "message"),
    [
        (answered(2, y=[1, 2]), said(1), "2 rows, and the truth 1 values"),
        (answered(y=[1]), said((1, 2)), "1 row, and the truth 2 values"),
        (answered(2, y=np.zeros((2, 3))), said((1.0, 2.0, 3.0)), "2 rows"),
        (answered(y=[1]), said(1, "z"), "no output 'z'"),
        (answered(y=[1]), said(output="z", rating=1.0), "no output 'z'"),
        (answered(y=[1], z=[1]), said(1), "several outputs"),
        (answered(setting=Setting("m", error="Overloaded")), said(1), "ended in Overloaded"),
        (answered(y=np.zeros((1, 300), np.uint8)), said(1), "too large"),
    ],
)
def test_feedback_that_does_not_fit_the_answer_is_refused(outcome: Outcome, feedback: Feedback, message: str) -> None:
    with pytest.raises(FeedbackRefused, match=message):
        judge(outcome, feedback)


def test_nobody_judges_in_the_name_of_another_user() -> None:
    assert judge(answered(y=[1]), said(1, user="ann")).right == (True,)
    for feedback in (said(1, user="bob"), said(rating=1.0, user="bob")):
        with pytest.raises(NotYourRequest) as error:
            judge(answered(y=[1]), feedback)
        assert isinstance(error.value, FenixError)
        assert error.value.status == 403
