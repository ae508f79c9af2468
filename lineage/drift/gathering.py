"""Takes rows on the request's path for nearly nothing, and counts them off it.

`offer` only holds on to a batch; `fold`, called about once a second by another thread or task, counts all that came.
Where more comes than `most_rows_per_s`, whole batches are left out at random, and counted as skipped.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping

import numpy as np

from lineage.drift.columns import Array, Rows
from lineage.drift.reference import Reference
from lineage.drift.sketches import Sketch
from lineage.drift.windows import Pane

MOST_ROWS_PER_S = 5_000  # at 2 to 4 us a row, 1 to 2 % of a core
MOST_WAITING_ROWS = 8_192  # 2 MB of 64 columns
_AT_ONCE = 1024

_Batch = tuple[int, Mapping[str, Array] | None, Mapping[str, Array] | None, Array | None]


class Gatherer:
    """Beside one replica. `offer` is for the thread of the requests, the rest for one other thread."""

    def __init__(
        self,
        reference: Reference,
        rng: random.Random,
        now_s: float,
        *,
        most_rows_per_s: float = MOST_ROWS_PER_S,
        most_waiting_rows: int = MOST_WAITING_ROWS,
    ) -> None:
        self._layout = reference.layout
        self._random = rng.random
        self._most_per_s, self._most_waiting = most_rows_per_s, most_waiting_rows
        self._waiting: deque[_Batch] = deque()
        self._n_offered = self._n_taken = self._n_folded = self._n_skipped = 0
        self._n_offered_before = self._n_skipped_before = 0
        self._share = 1.0
        self._sketch = Sketch(reference.bins)
        self._from_s = self._folded_s = now_s

    def offer(
        self,
        n_rows: int,
        inputs: Mapping[str, Array] | None = None,
        outputs: Mapping[str, Array] | None = None,
        confidence: Array | None = None,
    ) -> None:
        """A batch, rows first. The arrays are held until they are folded and must not change meanwhile. Takes well
        under a microsecond."""
        self._n_offered += n_rows
        is_full = self._n_taken - self._n_folded >= self._most_waiting
        if is_full or (self._share < 1.0 and self._random() >= self._share):
            self._n_skipped += n_rows
        else:
            self._n_taken += n_rows
            self._waiting.append((n_rows, inputs, outputs, confidence))

    def fold(self, now_s: float) -> int:
        """Counts what waits; returns how many rows that were."""
        before = self._n_folded
        batches: list[_Batch] = []
        n = 0
        while self._waiting:
            batch = self._waiting.popleft()
            batches.append(batch)
            n += batch[0]
            self._n_folded += batch[0]
            if n >= _AT_ONCE:
                self._count(batches)
                batches, n = [], 0
        self._count(batches)
        self._pace(now_s)
        return self._n_folded - before

    def cut(self, now_s: float) -> Pane | None:
        """What was counted since the last cut, to be sent; None where nothing was."""
        sketch = self._sketch
        skipped = self._n_skipped
        sketch.n_skipped, self._n_skipped_before = skipped - self._n_skipped_before, skipped
        if not sketch.n_rows and not sketch.n_skipped:
            return None
        pane = Pane(self._from_s, now_s, sketch)
        self._sketch, self._from_s = sketch.empty(), now_s
        return pane

    @property
    def n_rows(self) -> int:
        """Rows counted since the last cut."""
        return self._sketch.n_rows

    def _count(self, batches: list[_Batch]) -> None:
        made = [self._layout.rows(inputs, outputs, confidence) for _, inputs, outputs, confidence in _joined(batches)]
        if len(made) == 1:
            self._sketch.add(made[0])
        elif made:
            numbers = np.concatenate([rows.numbers for rows in made])
            categories = zip(*(rows.categories for rows in made), strict=True)
            joined = tuple(np.concatenate([values.astype(object) for values in column]) for column in categories)
            self._sketch.add(Rows(numbers, joined, sum(rows.n_misfits for rows in made)))

    def _pace(self, now_s: float) -> None:
        passed_s = now_s - self._folded_s
        if passed_s <= 0.0:
            return
        offered = self._n_offered
        rate = (offered - self._n_offered_before) / passed_s
        self._share = min(1.0, self._most_per_s / rate) if rate > 0.0 else 1.0
        self._n_offered_before, self._folded_s = offered, now_s


def _joined(batches: list[_Batch]) -> list[_Batch]:
    """Batches in which every tensor has the same name, type and shape of a row, put together: 10 times quicker than
    making columns of each batch."""
    groups: dict[object, list[_Batch]] = {}
    for batch in batches:
        _, inputs, outputs, confidence = batch
        key = (_shape(inputs), _shape(outputs), None if confidence is None else confidence.shape[1:])
        groups.setdefault(key, []).append(batch)
    made = []
    for group in groups.values():
        first = group[0]
        if len(group) == 1:
            made.append(first)
            continue
        confidences = [batch[3] for batch in group if batch[3] is not None]
        made.append(
            (
                sum(batch[0] for batch in group),
                _stacked([batch[1] for batch in group if batch[1] is not None]),
                _stacked([batch[2] for batch in group if batch[2] is not None]),
                np.concatenate(confidences) if confidences else None,
            )
        )
    return made


def _shape(tensors: Mapping[str, Array] | None) -> object:
    return (
        None
        if tensors is None
        else tuple((name, v.shape[1:] if v.ndim else id(v), v.dtype.kind) for name, v in tensors.items())
    )


def _stacked(all_tensors: list[Mapping[str, Array]]) -> dict[str, Array] | None:
    if not all_tensors:
        return None
    return {name: np.concatenate([tensors[name] for tensors in all_tensors]) for name in all_tensors[0]}
