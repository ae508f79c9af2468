"""Feedback: what somebody says, later, of one answer; and how it is held against the answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Literal

from lineage.errors import FeedbackRefused, NotYourRequest
from lineage.outcomes import Array, Outcome, split_trace_id

MOST_TRUTHS = 65_536  # of one answer
MOST_CHARS = 1_024  # of a label
MOST_NAME_CHARS = 256
AHEAD_S = 60.0  # how far clocks may differ

Scalar = str | int | float | bool
Truth = Scalar | tuple[Scalar | None, ...]

_FIELDS = ("trace_id", "output", "truth", "rating", "about_s", "user")


@dataclass(frozen=True, slots=True)
class Feedback:
    """The truth about one output of an answer, or a rating in [0, 1]; one of the two is None.

    `output` '' is the only output, or for a rating the whole answer. `truth` is a label or a number; for several rows,
    or a row of several numbers, they follow each other row by row, with None for what is not known. `about_s` is when
    it was seen, since 1970, `user` in whose name it comes (empty: nobody's).
    """

    trace_id: str
    output: str = ""
    truth: Truth | None = None
    rating: float | None = None
    about_s: float | None = None
    user: str = ""

    @property
    def kind(self) -> Literal["truth", "rating"]:
        return "rating" if self.truth is None else "truth"

    @classmethod
    def parse(cls, given: Mapping[str, Any], now_s: float) -> Feedback:
        """Feedback from a JSON object; a field that is null counts as left out. `now_s` is since 1970.

        Raises FeedbackRefused for an unknown field (with the nearest), a wrong type, numbers that are not finite, both
        or neither of truth and rating, and an `about_s` more than a minute ahead.
        """
        if not isinstance(given, Mapping):
            raise FeedbackRefused("feedback is an object.", hint=f"Its fields are {', '.join(_FIELDS)}.")
        for name in given:
            if name not in _FIELDS:
                close = get_close_matches(str(name), _FIELDS, n=1)
                hint = f"Nearest: {close[0]}." if close else f"There are: {', '.join(_FIELDS)}."
                raise FeedbackRefused(f"unknown field {str(name)[:40]!r}.", hint=hint)
        trace_id = given.get("trace_id")
        if not isinstance(trace_id, str):
            raise FeedbackRefused("trace_id is missing, or not a text.", hint="It is in the answer's parameters.")
        trace_id = trace_id.lower()
        try:
            split_trace_id(trace_id)
        except ValueError:
            raise FeedbackRefused(f"trace_id has 32 hex digits, unlike {trace_id[:40]!r}.") from None
        truth, rating, about_s = given.get("truth"), given.get("rating"), given.get("about_s")
        if (truth is None) == (rating is None):
            both = "both a truth and a rating" if truth is not None else "neither a truth nor a rating"
            raise FeedbackRefused(f"there is {both}.", hint="Give one of the two.")
        if rating is not None and not 0.0 <= _number("rating", rating) <= 1.0:
            raise FeedbackRefused(f"a rating lies between 0 and 1, unlike {rating}.")
        if about_s is not None and _number("about_s", about_s) > now_s + AHEAD_S:
            raise FeedbackRefused(
                f"about_s is {about_s - now_s:.0f} s in the future.", hint="It is in seconds since 1970."
            )
        return cls(
            trace_id,
            _text("output", given.get("output")),
            None if truth is None else _truth(truth),
            None if rating is None else float(rating),
            None if about_s is None else float(about_s),
            _text("user", given.get("user")),
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """How an answer did. The tuples have an entry per row that was judged, `rows` says which; those of numbers an
    entry per number.

    `label`: what the answer `said`, what is `true`, and whether that is the same. `value`: the same as numbers, with
    the `absolute` and the `squared` error. `rating`: only that.
    """

    output: str
    kind: Literal["label", "value", "rating"]
    rows: tuple[int, ...] = ()
    said: tuple[Scalar, ...] = ()
    true: tuple[Scalar, ...] = ()
    right: tuple[bool, ...] = ()
    absolute: tuple[float, ...] = ()
    squared: tuple[float, ...] = ()
    rating: float | None = None


def judge(outcome: Outcome, feedback: Feedback) -> Verdict:
    """Holds feedback against the answer it is about.

    Labels are compared as they are: numbers with texts of the same digits too. For a vector of scores, one whole number
    per row is the index of the true class, as many numbers as there are scores are their true values.
    Raises NotYourRequest when it names another user than the request, FeedbackRefused when it does not fit the answer.
    """
    if feedback.user and feedback.user != outcome.setting.user:
        raise NotYourRequest(f"request {outcome.trace_id} is not one of user {feedback.user[:40]!r}.")
    name = output_of(outcome, feedback)
    if feedback.truth is None:
        return Verdict(name, "rating", rating=feedback.rating)
    if outcome.setting.error:
        raise FeedbackRefused(f"request {outcome.trace_id} ended in {outcome.setting.error}: there is no answer.")
    truths: list[Scalar | None] = list(feedback.truth) if isinstance(feedback.truth, tuple) else [feedback.truth]
    if name in outcome.outputs.best:
        return _judge_labels(name, outcome.outputs.best[name].tolist(), 1, truths)
    values = outcome.outputs.full.get(name)
    if values is None:
        raise FeedbackRefused(
            f"output {name!r} is too large to be kept, so no truth can be compared with it.", hint="Give a rating."
        )
    n_rows = len(values)
    width = values.size // n_rows if n_rows else 1
    if values.dtype.kind != "f":
        return _judge_labels(name, _labels_of(values), width, truths)
    if values.ndim == 2 and width > 1 and len(truths) == n_rows:
        return _judge_labels(name, values.argmax(axis=1).tolist(), 1, truths)
    return _judge_values(name, values, width, truths)


def output_of(outcome: Outcome, feedback: Feedback) -> str:
    """The output that feedback is about, by name; '' for a rating of the whole answer. Raises FeedbackRefused."""
    names = outcome.outputs.names
    if feedback.output:
        if feedback.output not in names:
            known = f"There are: {', '.join(sorted(names))}." if names else "The answer has none."
            raise FeedbackRefused(f"there is no output {feedback.output[:40]!r}.", hint=known)
        return feedback.output
    if feedback.truth is None:
        return ""
    if len(names) > 1:
        raise FeedbackRefused("the answer has several outputs.", hint=f"Name one of {', '.join(sorted(names))}.")
    return next(iter(names), "")


def _labels_of(values: Array) -> list[Any]:
    """All labels, row by row; None where one was not kept."""
    found = values.ravel().tolist()
    if values.dtype.hasobject:
        return [None if item is None else item.decode("utf-8", "replace") for item in found]
    return found


def _judge_labels(name: str, said: list[Any], width: int, truths: list[Scalar | None]) -> Verdict:
    """`said` has `width` labels per row; a row is right when all of them are."""
    _check_length(name, len(said), len(said) // width, width, truths)
    rows, told, true, right = [], [], [], []
    for at, (label, truth) in enumerate(zip(said, truths, strict=True)):
        if label is None or truth is None:
            continue
        truth = _as_label(name, truth, label)
        rows.append(at // width)
        told.append(label)
        true.append(truth)
        right.append(truth == label)
    if width > 1:
        return _whole_rows(name, width, rows, told, true)
    return Verdict(name, "label", tuple(rows), tuple(told), tuple(true), tuple(right))


def _whole_rows(name: str, width: int, rows: list[int], told: list[Any], true: list[Scalar]) -> Verdict:
    """Puts the labels of a row together, for the rows of which all are known."""
    begins = [k for k, row in enumerate(rows) if rows[k : k + width] == [row] * width]
    said = tuple([str(told[k : k + width]) for k in begins])
    truth = tuple([str(true[k : k + width]) for k in begins])
    right = tuple([told[k : k + width] == true[k : k + width] for k in begins])
    return Verdict(name, "label", tuple([rows[k] for k in begins]), said, truth, right)


def _judge_values(name: str, values: Array, width: int, truths: list[Scalar | None]) -> Verdict:
    said = values.ravel().tolist()
    _check_length(name, len(said), len(values), width, truths)
    rows, told, true = [], [], []
    for at, (number, truth) in enumerate(zip(said, truths, strict=True)):
        if truth is None:
            continue
        if isinstance(truth, bool | str):
            raise FeedbackRefused(f"output {name!r} is a number, and {str(truth)[:40]!r} is not.")
        rows.append(at // width)
        told.append(number)
        true.append(float(truth))
    errors = [abs(a - b) for a, b in zip(told, true, strict=True)]
    squared = [error * error for error in errors]
    return Verdict(name, "value", tuple(rows), tuple(told), tuple(true), (), tuple(errors), tuple(squared))


def _check_length(name: str, n: int, n_rows: int, width: int, truths: list[Scalar | None]) -> None:
    if len(truths) != n:
        each = "one value per row" if width == 1 else f"{width} values per row"
        raise FeedbackRefused(
            f"output {name!r} has {n_rows} row{'s' * (n_rows != 1)}, and the truth {len(truths)} values.",
            hint=f"Give {each}, null where it is not known.",
        )


def _as_label(name: str, truth: Scalar, said: Scalar) -> Scalar:
    """The truth as what the answer is: a boolean, a whole number or a text."""
    if isinstance(said, str):
        if isinstance(truth, bool):
            return "true" if truth else "false"
        if isinstance(truth, float) and truth.is_integer():
            return str(int(truth))
        return str(truth)
    try:
        whole = int(truth)
    except (ValueError, OverflowError):
        whole = None
    if (
        whole is None
        or (isinstance(truth, float) and whole != truth)
        or (isinstance(said, bool) and whole not in (0, 1))
    ):
        kind = "true or false" if isinstance(said, bool) else "a whole number"
        raise FeedbackRefused(f"output {name!r} is {kind}, and {str(truth)[:40]!r} is not.")
    return bool(whole) if isinstance(said, bool) else whole


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise FeedbackRefused(f"{name} is a number, not {str(value)[:40]!r}.")
    try:
        finite = math.isfinite(value)
    except OverflowError:
        finite = False
    if not finite:
        raise FeedbackRefused(f"{name} is a finite number.")
    return value


def _text(name: str, value: Any) -> str:
    if value is None:
        return ""
    if not isinstance(value, str) or len(value) > MOST_NAME_CHARS:
        raise FeedbackRefused(f"{name} is a text of at most {MOST_NAME_CHARS} characters, not {str(value)[:40]!r}.")
    return _clean(name, value)


def _truth(value: Any) -> Truth:
    if not isinstance(value, list | tuple):
        return _scalar(value)
    if not 1 <= len(value) <= MOST_TRUTHS:
        raise FeedbackRefused(f"a truth has 1 to {MOST_TRUTHS} values, not {len(value)}.")
    found = tuple([None if item is None else _scalar(item) for item in value])
    if all(item is None for item in found):
        raise FeedbackRefused("all values of the truth are null.")
    return found


def _scalar(value: Any) -> Scalar:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        if len(value) > MOST_CHARS:
            raise FeedbackRefused(f"a label has at most {MOST_CHARS} characters, not {len(value)}.")
        return _clean("truth", value)
    if isinstance(value, int | float):
        _number("truth", value)
        if isinstance(value, int) and not -(1 << 63) <= value < 1 << 63:
            raise FeedbackRefused("truth is a whole number of more than 64 bits.")
        return value
    raise FeedbackRefused(f"a truth is a label, a number or a flat list of them, not {str(value)[:40]!r}.")


def _clean(name: str, value: str) -> str:
    """Raises FeedbackRefused for what no database takes as a text."""
    try:
        value.encode()
    except UnicodeEncodeError:
        value = "\0"
    if "\0" in value:
        raise FeedbackRefused(f"{name} has a character in it that is no text.")
    return value
