"""Groups of outcomes for the tests of the journal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from lineage.chunks import ChunkBuilder
from lineage.outcomes import Setting, trace_id_of

RUN = "0123456789abcdef0123"
DIGIT = Setting("digits", "1", "digits", "plan-1", ((0, "scale@1"), (1, "read@2")), 7, user="ann")


def trace(seq: int, run: str = RUN) -> str:
    return trace_id_of(run, seq)


def add(
    builder: ChunkBuilder,
    seqs: int | Sequence[int],
    labels: Sequence[int],
    *,
    setting: Setting = DIGIT,
    at_s: float = 1000.0,
    outputs: Mapping[str, Any] | None = None,
) -> None:
    """A group of requests with one row each, answered with these labels."""
    n = len(labels)
    steps = [(0.1, 0.2, 0.4, 8)] * len(setting.steps)
    given = {"digit": np.array(labels, np.int64)} if outputs is None else outputs
    builder.add(setting, seqs, at_s, [1.5] * n, [1] * n, [nan] * n, steps, given)


def chunk(
    seqs: int | Sequence[int], labels: Sequence[int], *, run: str = RUN, setting: Setting = DIGIT, at_s: float = 1000.0
) -> bytes:
    """A chunk of one such group."""
    builder = ChunkBuilder(run)
    add(builder, seqs, labels, setting=setting, at_s=at_s)
    return builder.encode()
