"""Outcomes: what became of requests, recorded for groups of requests that travelled together.

The nouns alone; `chunks.py` turns groups into bytes and back. What the requests of a group share is a `Setting`. A
request's trace id names the run of the gateway that answered it (20 hex digits) and a number that counts up within the
run (12 hex digits), so it is found by range.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

Array = npt.NDArray[Any]

_TRACE_ID = re.compile(r"[0-9a-f]{32}")
RUN = re.compile(r"[0-9a-f]{20}")


def trace_id_of(run: str, seq: int) -> str:
    """The trace id of a request: 32 hex digits."""
    return f"{run}{seq:012x}"


def split_trace_id(trace_id: str) -> tuple[str, int]:
    """The run and the number that a trace id consists of. Raises ValueError unless it is 32 lower-case hex digits."""
    if not _TRACE_ID.fullmatch(trace_id):
        raise ValueError(f"{trace_id[:40]!r} is not a trace id")
    return trace_id[:20], int(trace_id[20:], 16)


@dataclass(frozen=True, slots=True)
class Setting:
    """What the requests of a group share. Make one and hand it in again and again: it is looked up by identity first.

    `model` and `version` as the client asked for them, `goal` where one was meant; the terms as the group had them;
    `plan` as it was run, with `steps` as (step id, extension id); the catalogue's `epoch`; the answer's flags. `error`
    is the name of the error that was the answer, or empty. `considered` are the plan ids that the chooser could have
    taken, each with the probability with which it takes it, and `chosen` the one it took (empty: `plan`). `giver` is
    the extension whose outputs the answer is made of, empty where that is not a single one; `failed` are those that
    were tried and did not do it, as far as that is known. Of the plan that was taken `expected_ms`, `expected_cost`
    (per row) and `expected_accuracy` had been predicted, 0 where that is not known; `reason` is why it was.
    Raises ValueError for a probability outside [0, 1].
    """

    model: str
    version: str = ""
    goal: str = ""
    plan: str = ""
    steps: tuple[tuple[int, str], ...] = ()
    epoch: int = 0
    deadline_ms: float | None = None
    max_cost: float | None = None
    min_accuracy: float | None = None
    priority: int = 5
    user: str = ""
    tags: frozenset[str] = frozenset()
    purpose: str = ""
    flags: frozenset[str] = frozenset()
    considered: tuple[tuple[str, float], ...] = ()
    chosen: str = ""
    error: str = ""
    giver: str = ""
    failed: tuple[str, ...] = ()
    expected_ms: float = 0.0
    expected_cost: float = 0.0
    reason: str = ""
    expected_accuracy: float = 0.0

    def __post_init__(self) -> None:
        for plan, propensity in self.considered:
            if not 0.0 <= propensity <= 1.0:
                raise ValueError(f"plan {plan!r} is taken with probability {propensity}")

    @property
    def propensity(self) -> float | None:
        """The probability with which the chooser took what it took; 1 where it had no choice, None when unknown."""
        if not self.considered:
            return 1.0
        return dict(self.considered).get(self.chosen or self.plan)


@dataclass(frozen=True, slots=True)
class StepTimes:
    """How one step went, for a whole group. Times are ms; `batch_rows` are those of the whole call, 0: all known."""

    step: int
    extension: str
    waited_ms: float
    ran_ms: float
    took_ms: float
    batch_rows: int


@dataclass(frozen=True, slots=True, eq=False)
class Kept:
    """The rows that are kept of one side of a group or a request.

    `full` has arrays of shape (n_rows, *row), of objects (bytes, or None where it was too long) for texts. `best` has,
    for score vectors that were too long to keep, the index of the highest score per row, int32 of shape (n_rows,).
    `left_out` names what is not kept at all.
    """

    full: Mapping[str, Array] = field(default_factory=dict)
    best: Mapping[str, Array] = field(default_factory=dict)
    left_out: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        return self.left_out.union(self.full, self.best)

    def rows(self, start: int, stop: int) -> Kept:
        return Kept(
            {name: values[start:stop] for name, values in self.full.items()},
            {name: values[start:stop] for name, values in self.best.items()},
            self.left_out,
        )


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Requests that travelled together; one entry per request in each array, and all their rows in `outputs`.

    `at_s` is when they were answered, since 1970. `seqs` int64; `latencies_ms` float32 from arrival to answer; `n_rows`
    int32; `confidences` float32 in [0, 1], of the least sure row, NaN where there is none. `inputs` is None unless this
    group was sampled.
    """

    setting: Setting
    at_s: float
    seqs: Array
    latencies_ms: Array
    n_rows: Array
    confidences: Array
    steps: tuple[StepTimes, ...]
    outputs: Kept
    inputs: Kept | None


@dataclass(frozen=True, slots=True, eq=False)
class Outcome:
    """What became of one request; see `Group`. `confidence` is None where there is none."""

    trace_id: str
    setting: Setting
    at_s: float
    latency_ms: float
    n_rows: int
    confidence: float | None
    steps: tuple[StepTimes, ...]
    outputs: Kept
    inputs: Kept | None
