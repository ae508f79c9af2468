"""Calls whose pace a test decides, and small plans and cards to run over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from planner.calls import Calls, Parts, Produced, Ran, join
from planner.cards import Card, ExtensionId, Resources
from planner.features import Array, Feature, Port
from planner.plans import REQUEST, Binding, Guard, Plan, Prediction, Source, Step, StepId

Work = Callable[[dict[str, Array]], Mapping[str, Produced]]


class PacedCalls(Calls):
    """Runs functions in the event loop; while `gate` is cleared, calls wait before they answer."""

    def __init__(self, work: Mapping[str, Work]) -> None:
        self._work = work
        self.gate = asyncio.Event()
        self.gate.set()
        self.batches: list[tuple[str, int]] = []  # extension and rows of every call begun
        self.under_way = 0
        self.most_under_way = 0

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        rows = {port: await join(arrays) for port, arrays in parts.items()}
        self.batches.append((extension, len(next(iter(rows.values())))))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await self.gate.wait()
            return Ran(self._work[extension](rows), 0.0)
        finally:
            self.under_way -= 1


def plus(by: float, confidence: Callable[[Array], Array] | None = None) -> Work:
    """x (n,) -> y (n,) = the sum of all inputs plus `by`."""

    def work(rows: dict[str, Array]) -> Mapping[str, Produced]:
        total = np.sum([v if v.ndim == 1 else v.sum(axis=1) for v in rows.values()], axis=0) + by
        return {"y": Produced(total.astype(np.float32), None if confidence is None else confidence(total))}

    return work


def failing(error: Exception) -> Work:
    def work(rows: dict[str, Array]) -> Mapping[str, Produced]:
        raise error

    return work


def card(name: str, inputs: Sequence[str] = ("x",), *, max_batch_rows: int = 256) -> Card:
    feature = Feature("number", "FP32")
    ports = tuple(Port(port, feature) for port in inputs)
    return Card(name, "1", ports, (Port("y", feature),), resources=Resources(max_batch_rows=max_batch_rows))


def bind(port: str, *sources: tuple[int, str]) -> Binding:
    return Binding(port, tuple(Source(StepId(step), name) for step, name in sources))


def step(id_: int, name: str, *inputs: Binding, fallbacks: Sequence[str] = (), guard: Guard | None = None) -> Step:
    given = inputs or (bind("x", (REQUEST if id_ == 0 else id_ - 1, "x" if id_ == 0 else "y")),)
    later = tuple(ExtensionId(f"{f}@1") for f in fallbacks)
    return Step(StepId(id_), ExtensionId(f"{name}@1"), tuple(given), later, guard=guard)


def plan_of(*steps: Step, output: Binding | None = None, accuracy: float = 1.0, id_: str = "plan") -> Plan:
    last = output or bind("y", (steps[-1].id, "y"))
    return Plan(id_, steps, (last,), Prediction(1.0, 2.0, 0.0, accuracy), score=0.0)
