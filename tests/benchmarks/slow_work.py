"""Extensions whose capacity is set by their own time: a call sleeps `FIXED_MS + PER_ROW_MS * n_rows`, and takes at most
`MOST_ROWS` rows. So two cores can offer several times what they bear, and what a drill finds is the work of queues,
not of processors. They know no cache, and stay deployments.

    chain    first -> second
    join     first -> second and other -> second: two goals, whose plans end in the same extension
    fork     first -> second and first -> slower: two goals, whose plans begin with the same extension
"""

from __future__ import annotations

import time
from typing import Any, ClassVar

from deployments.extension import Extension
from planner.cards import Resources
from planner.features import Array, Feature, Port
from planner.goals import Goal

FIXED_MS, PER_ROW_MS, MOST_ROWS, WIDTH = 4.0, 1.6, 8, 4
ROWS_PER_S = MOST_ROWS / (FIXED_MS + PER_ROW_MS * MOST_ROWS) * 1e3  # of one replica in full calls

RAW, OTHER_RAW, MIDDLE, END, OTHER_END = (
    Feature(f"numbers/{name}", "FP32", (WIDTH,)) for name in ("raw", "other-raw", "middle", "end", "other-end")
)


class _Slow(Extension):
    """(n, WIDTH) -> (n, WIDTH): times `times`, plus `plus`."""

    resources = Resources(max_batch_rows=MOST_ROWS, placement="remote")
    cache = "off"
    times: ClassVar[float] = 1.0
    plus: ClassVar[float] = 0.0
    slower: ClassVar[float] = 1.0

    def infer(self, *, row: Array, **_: Any) -> Array:
        time.sleep(self.slower * (FIXED_MS + PER_ROW_MS * len(row)) / 1e3)
        return row * self.times + self.plus


class First(_Slow):
    """Doubles."""

    name = "drill-first"
    inputs = {"row": RAW}
    outputs = {"row": MIDDLE}
    times = 2.0


class Other(_Slow):
    """Triples."""

    name = "drill-other"
    inputs = {"row": OTHER_RAW}
    outputs = {"row": MIDDLE}
    times = 3.0


class Second(_Slow):
    """Adds one."""

    name = "drill-second"
    inputs = {"row": MIDDLE}
    outputs = {"row": END}
    plus = 1.0


class Slower(_Slow):
    """Adds two, and takes three times as long for it."""

    name = "drill-slower"
    inputs = {"row": MIDDLE}
    outputs = {"row": OTHER_END}
    plus = 2.0
    slower = 3.0


def _goal(name: str, given: Feature, wanted: Feature) -> Goal:
    return Goal(name, (Port("row", given),), (Port("row", wanted),))


CHAIN = _goal("drill-chain", RAW, END)
OTHER_CHAIN = _goal("drill-other-chain", OTHER_RAW, END)
SLOWER_CHAIN = _goal("drill-slower-chain", RAW, OTHER_END)


def _sources(*stages: type[Extension]) -> tuple[str, ...]:
    return tuple(f"{__name__}:{stage.__name__}" for stage in stages)


# What a request's numbers become, by goal: times and plus.
MAKES = {CHAIN.name: (2.0, 1.0), OTHER_CHAIN.name: (3.0, 1.0), SLOWER_CHAIN.name: (2.0, 2.0)}
# Variant -> its goals, and what they are composed of.
VARIANTS = {
    "chain": ((CHAIN,), _sources(First, Second)),
    "join": ((CHAIN, OTHER_CHAIN), _sources(First, Other, Second)),
    "fork": ((CHAIN, SLOWER_CHAIN), _sources(First, Second, Slower)),
}
