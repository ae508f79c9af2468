"""Where an extension runs, decided from what was measured: in its own deployment, or inline in the gateway's process.

Inline saves the way there and back, about a millisecond, and costs every other request of the gateway the time that it
runs, and all of them if it takes the process down. So it is for what is tiny, asks for no resources of its own, and has
proven in its own deployment that it neither fails nor hangs.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from planner.cards import Card, ExtensionId

KINDS = frozenset({"function", "rule", "torch", "sklearn", "mlflow", "fused"})  # whose work is done where they are
ENOUGH_CALLS = 8  # to say what one takes
PROVEN_CALLS = 50
PROVEN_S = 3.0  # since the first call
MOST_RUN_MS = 1.0  # median of a call, from the outside of its code
LONG_RUN_MS = 50.0  # of one call: a few of them so close together that it was not the machine end it
MOST_LONG, LONG_WITHIN = 3, 300  # calls
REST_S = 300.0  # how long an extension that failed or was slow has to prove itself elsewhere again
_WINDOW = 256


@dataclass(slots=True)
class _Record:
    """What is known of one extension."""

    first_s: float
    n_calls: int = 0
    ran_ms: deque[float] = field(default_factory=lambda: deque(maxlen=_WINDOW))
    long: deque[int] = field(default_factory=lambda: deque(maxlen=MOST_LONG))  # numbers of the last long calls
    barred_until_s: float = 0.0


def may_run_inline(card: Card) -> bool:
    """Whether the card allows it at all: pure, local, and without resources of its own."""
    needs = card.resources
    if needs.placement != "auto":
        return needs.placement == "inline"
    free = needs.num_cpus == needs.num_gpus == needs.memory_mib == 0 and needs.max_replicas == 1
    return free and card.kind in KINDS and card.deterministic and card.site == "local"


class Placements:
    """What extensions have proven. `now_s` is any steady clock; not for several threads at once."""

    def __init__(self) -> None:
        self._records: dict[ExtensionId, _Record] = {}

    def ran(self, extension: ExtensionId, ran_ms: float, now_s: float) -> None:
        """A call took `ran_ms` inside the extension, wherever it ran."""
        record = self._record(extension, now_s)
        record.n_calls += 1
        record.ran_ms.append(ran_ms)
        if ran_ms > LONG_RUN_MS and record.n_calls > 3:  # the first ones load libraries
            record.long.append(record.n_calls)
            if len(record.long) == MOST_LONG and record.n_calls - record.long[0] < LONG_WITHIN:
                self.bar(extension, now_s)

    def failed(self, extension: ExtensionId, now_s: float) -> None:
        """A call failed by the extension's own fault."""
        self.bar(extension, now_s)

    def bar(self, extension: ExtensionId, now_s: float, for_s: float = REST_S) -> None:
        """Keeps an extension out for a while; then it has to prove itself anew."""
        self._records[extension] = _Record(now_s + for_s, barred_until_s=now_s + for_s)

    def inline(self, card: Card, now_s: float) -> bool:
        """Whether the extension should run in the gateway's process now."""
        record = self._records.get(card.id)
        if not may_run_inline(card) or (record is not None and now_s < record.barred_until_s):
            return False
        if card.resources.placement == "inline":
            return True
        if record is None or record.n_calls < PROVEN_CALLS or now_s - record.first_s < PROVEN_S:
            return False
        return float(np.median(record.ran_ms)) <= MOST_RUN_MS

    def run_ms(self, extension: ExtensionId) -> float | None:
        """The median of the last calls, from the outside of its code; None where too few are known."""
        record = self._records.get(extension)
        if record is None or len(record.ran_ms) < ENOUGH_CALLS:
            return None
        return float(np.median(record.ran_ms))

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone."""
        self._records = {id_: record for id_, record in self._records.items() if id_ in extensions}

    def _record(self, extension: ExtensionId, now_s: float) -> _Record:
        record = self._records.get(extension)
        if record is None:
            record = self._records[extension] = _Record(now_s)
        return record
