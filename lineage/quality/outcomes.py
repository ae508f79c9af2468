"""Outcomes as they come in: a batch of answered requests, with what is known of the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Labels = tuple[str | None, ...]

WHOLE = ""  # the segment of those that have none


@dataclass(frozen=True, slots=True)
class Outcomes:
    """A batch of n outcomes, checked. Missing numbers are NaN, missing labels None. Make it with `of`.

    `predicted` and `truth` are labels where the task is to choose a class, floats where it is to say a number. An
    outcome is judged where both are there and the request did not fail.
    """

    at_s: Floats
    latency_ms: Floats
    failed: npt.NDArray[np.bool_]
    confidence: Floats
    predicted: Labels | Floats
    truth: Labels | Floats
    rating: Floats
    segment: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.at_s)

    @property
    def numeric(self) -> bool:
        return isinstance(self.truth, np.ndarray)

    @classmethod
    def of(
        cls,
        at_s: Any,
        *,
        latency_ms: Any = None,
        failed: Any = None,
        confidence: Any = None,
        predicted: Any = None,
        truth: Any = None,
        rating: Any = None,
        segment: str | Sequence[str] = WHOLE,
        classes: Sequence[Any] | None = None,
        numeric: bool | None = None,
    ) -> Outcomes:
        """Outcomes from arrays or lists of length n; None and NaN stand for what is missing.

        `at_s` is when the request came, in seconds since the epoch; `segment` one for all or one each. `predicted` has
        a label (text, whole number, boolean) or a number each, or a vector of scores per class, shape (n, n_classes):
        then the best is the label, named by `classes` or else numbered, and where the scores are a distribution its
        score is the confidence, if none is given. `numeric` says which task it is; None tells from the values: numbers
        where predictions are floats. Labels are compared as texts, so that 3, 3.0 and "3" are the same.

        Raises ValueError for arrays of different lengths, times that are not finite, negative latencies, confidences
        outside [0, 1], and values of the wrong type.
        """
        at = _floats("at_s", at_s, None)
        n = len(at)
        if not np.isfinite(at).all():
            raise ValueError("at_s is finite.")
        latency = _floats("latency_ms", latency_ms, n)
        if np.any(latency < 0.0) or np.isinf(latency).any():
            raise ValueError("latency_ms is finite and at least 0.")
        sure = _floats("confidence", confidence, n)
        if np.any(sure < 0.0) or np.any(sure > 1.0):
            raise ValueError("a confidence lies in [0, 1].")
        rated = _floats("rating", rating, n)
        if np.isinf(rated).any():
            raise ValueError("a rating is finite.")
        scores = _scores(predicted)
        if scores is not None:
            _same_length("predicted", scores, n)
            names = [str(i) for i in range(scores.shape[1])] if classes is None else [_label(c) for c in classes]
            if len(names) != scores.shape[1]:
                raise ValueError(f"predicted has {scores.shape[1]} scores per row, classes {len(names)} names.")
            known = np.asarray(np.isfinite(scores).all(axis=1))
            best = np.argmax(np.where(known[:, None], scores, 0.0), axis=1)
            predicted = [names[i] if there else None for i, there in zip(best.tolist(), known.tolist(), strict=True)]
            spread = known & (scores >= 0.0).all(axis=1) & (np.abs(scores.sum(axis=1) - 1.0) < 1e-3)
            sure = np.where(np.isnan(sure) & spread, np.minimum(scores[np.arange(n), best], 1.0), sure)
            numeric = False
        said = _listed("predicted", predicted, n)
        true = _listed("truth", truth, n)
        if numeric is None:
            numeric = any(isinstance(value, float | np.floating) and value == value for value in said)
        segments = (segment,) * n if isinstance(segment, str) else tuple(segment)
        _same_length("segment", segments, n)
        if not all(isinstance(name, str) for name in segments):
            raise ValueError("a segment is a text.")
        down = np.zeros(n, dtype=bool) if failed is None else np.asarray(failed, dtype=bool)
        _same_length("failed", down, n)
        if numeric:
            return cls(at, latency, down, sure, _numbers(said), _numbers(true), rated, segments)
        return cls(at, latency, down, sure, _labels(said), _labels(true), rated, segments)


@dataclass(frozen=True, slots=True)
class Requests:
    """n requests of one segment of which nothing is known but that they were answered, or failed. Arrays of shape (n,),
    as in `Outcomes`."""

    at_s: Floats
    latency_ms: Floats
    failed: npt.NDArray[np.bool_]
    confidence: Floats

    def __len__(self) -> int:
        return len(self.at_s)

    def part(self, which: npt.NDArray[np.bool_]) -> Requests:
        """Those for which `which`, of shape (n,), holds."""
        return Requests(self.at_s[which], self.latency_ms[which], self.failed[which], self.confidence[which])


def _floats(name: str, values: Any, n: int | None) -> Floats:
    if values is None:
        return np.full(n or 0, np.nan)
    try:
        made = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} holds numbers.") from None
    if made.ndim != 1:
        raise ValueError(f"{name} has one value per outcome, not shape {made.shape}.")
    if n is not None:
        _same_length(name, made, n)
    return made


def _same_length(name: str, values: Any, n: int) -> None:
    if len(values) != n:
        raise ValueError(f"{name} has {len(values)} values for {n} outcomes.")


def _scores(predicted: Any) -> Floats | None:
    """Score vectors, shape (n, n_classes); None where predictions are single values."""
    if isinstance(predicted, np.ndarray) and predicted.ndim == 2 and predicted.shape[1] > 0:
        return predicted.astype(np.float64)
    return None


def _listed(name: str, values: Any, n: int) -> list[Any]:
    if values is None:
        return [None] * n
    if isinstance(values, np.ndarray) and values.ndim != 1:
        raise ValueError(f"{name} has one value per outcome, or one score per class, not shape {values.shape}.")
    listed = values.tolist() if isinstance(values, np.ndarray) else list(values)
    _same_length(name, listed, n)
    return listed


def _numbers(values: list[Any]) -> Floats:
    try:
        made = np.array([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("where the task is to say a number, truth and predictions are numbers.") from None
    made[np.isinf(made)] = np.nan  # an infinite prediction has no error that could be averaged
    return made


def _labels(values: list[Any]) -> Labels:
    return tuple(None if value is None or value != value else _label(value) for value in values)


def _label(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    if isinstance(value, int | np.integer):
        return str(int(value))
    if isinstance(value, float | np.floating):
        return str(int(value)) if float(value).is_integer() else str(float(value))
    raise ValueError(f"a label is a text, a number or a boolean, not {type(value).__name__}.")
