"""A learner for the tests of what runs learners."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from lineage.chunks import Chunk
from lineage.journal import Joined


class Tally:
    """A learner that counts each request it heard of, and each truth; what was changed is taken back."""

    def __init__(self, name: str = "tally", broken: Callable[[Chunk], bool] = lambda _: False) -> None:
        self.name = name
        self.heard: Counter[int] = Counter()
        self.truths: Counter[str] = Counter()
        self._broken = broken

    def hear(self, chunk: Chunk) -> None:
        if self._broken(chunk):
            raise RuntimeError("broken")
        self.heard.update(int(seq) for group in chunk.groups() for seq in group.seqs)

    def told(self, joined: Sequence[Joined]) -> None:
        for one in joined:
            self.truths[f"{one.outcome.trace_id} {one.feedback.truth}"] += 1
            if one.before is not None:
                self.truths[f"{one.outcome.trace_id} {one.before.truth}"] -= 1

    def state(self) -> bytes:
        return json.dumps([self.heard, self.truths]).encode()

    def restore(self, state: bytes) -> None:
        heard, truths = json.loads(state)
        self.heard, self.truths = Counter({int(seq): n for seq, n in heard.items()}), Counter(truths)

    def answer(self, question: str, *arguments: Any) -> Any:
        return getattr(self, question)[arguments[0]]

    @property
    def right(self) -> dict[str, int]:
        return {key: n for key, n in self.truths.items() if n}
