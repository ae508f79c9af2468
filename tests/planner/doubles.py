"""Calls and queues whose pace a test decides, and small plans and cards to run over them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from planner.batching import Done
from planner.calls import Calls, Part, Parts, Produced, Ran, join
from planner.cards import Card, ExtensionId, Resources
from planner.errors import DeadlineExceeded, ExtensionTimeout, StepFailed
from planner.features import Array, Feature, Port
from planner.placed import Queue
from planner.plans import REQUEST, Binding, Guard, Plan, Prediction, Source, Step, StepId
from planner.tokens import Token
from tests.clocks import JumpingLoop

T = TypeVar("T")
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


def jump(work: Coroutine[Any, Any, T]) -> T:
    """Runs work on a loop whose clock begins at 0 and jumps to the next timer."""
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(work)


class Lines:
    """Queues of extensions that take as long as a test says by name (0: no time) on the loop's clock, and then fail, or
    do their work: to add the number of the name's first letter, where nothing else is said."""

    def __init__(self, work: Mapping[str, Work] | None = None, **takes_ms: float) -> None:
        self.work = work or {}
        self.takes_ms = takes_ms
        self.failures: dict[str, StepFailed] = {}
        self.told: list[tuple[str, str, float]] = []  # extension, what happened, when
        self.ended_s = 0.0  # for a test to note
        self.rests_s: list[float] = []  # what was said to come after the rows, of all that came

    def of(self, card: Card) -> Queue:
        return _Line(self, card.name)

    def when(self, name: str, what: str) -> list[float]:
        """At which ms an extension `began`, was `done` or `cancelled`."""
        return [round(at_s * 1e3, 3) for who, happened, at_s in self.told if (who, happened) == (name, what)]


class _Line:
    def __init__(self, lines: Lines, name: str) -> None:
        self._lines = lines
        self._name = name

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        loop, name, lines = asyncio.get_running_loop(), self._name, self._lines
        left_s = max(0.0, (token.until_s if until_s is None else until_s) - loop.time())
        takes_s = lines.takes_ms.get(name, 0.0) / 1e3
        lines.told.append((name, "began", loop.time()))
        lines.rests_s.append(token.rest_s)
        try:
            await asyncio.sleep(min(takes_s, left_s))
        except asyncio.CancelledError:
            lines.told.append((name, "cancelled", loop.time()))
            raise
        if takes_s > left_s:
            told = f"{name} was not done in time."
            raise DeadlineExceeded(told) if loop.time() >= token.until_s else ExtensionTimeout(told)
        if name in lines.failures:
            raise lines.failures[name]
        lines.told.append((name, "done", loop.time()))
        rows = {port: await join([part]) for port, part in inputs.items()}
        return Done(lines.work.get(name, plus(ord(name[0])))(rows), n_rows, 0.0, 0.0)


class SlowCalls(Calls):
    """Calls that take as many ms of the loop's clock as a test says by name, and add the number of the name's first
    letter."""

    def __init__(self, **takes_ms: float) -> None:
        self._takes_ms = takes_ms
        self.cancelled: list[str] = []

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        name = extension.partition("@")[0]
        try:
            await asyncio.sleep(self._takes_ms[name] / 1e3)
        except asyncio.CancelledError:
            self.cancelled.append(name)
            raise
        return Ran(plus(ord(name[0]))({port: await join(arrays) for port, arrays in parts.items()}), 0.0)


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
