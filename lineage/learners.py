"""Learners: what follows the journal and makes something of it. Each keeps its state, and where it was, in the database.

A learner reads every chunk of outcomes once, in the order in which they were committed, and every piece of feedback in
the order of its writing; its state and both places are written in one transaction, so that after a kill it goes on
where its last state was, and nothing counts twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lineage.chunks import Chunk
from lineage.journal import Joined


class Learner(Protocol):
    """Learns from what became of requests. Called by one thread at a time."""

    name: str  # unique; its state is kept under it

    def hear(self, chunk: Chunk) -> None:
        """Requests that ended, a few thousand at a time. Must not raise for anything that a chunk may hold."""

    def told(self, joined: Sequence[Joined]) -> None:
        """Truths and ratings that were given, with the outcomes that they are about. What was changed comes again, in
        full. Must not raise either."""

    def state(self) -> bytes:
        """All that it knows, of bounded size; not a pickle."""

    def restore(self, state: bytes) -> None:
        """Knows again what it knew. Raises ValueError for anything that `state` did not write."""

    def answer(self, question: str, *arguments: Any) -> Any:
        """What others ask of it, from other processes. Raises FenixError."""
