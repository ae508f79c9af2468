"""A small real engine over numpy functions, and a server of it on a loop of its own, for the tests of the wires."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import uvloop

from deployments.gateway.feedback import FeedbackDesk
from deployments.gateway.limits import Limits
from deployments.gateway.messages import Explanation, InferAnswer, InferRequest
from deployments.gateway.server import GrpcServer, HttpServer, serve_grpc, serve_http
from deployments.gateway.tally import Tally
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import BadInput, BadRequest, NoPlan, NotFound, Overloaded, Unsure, near
from planner.features import DATATYPES, Array, Feature, Port, Rows, check_rows
from planner.goals import Goal, Terms
from planner.plans import (
    REQUEST,
    Binding,
    Plan,
    PlanSet,
    Prediction,
    Rejected,
    Source,
    Step,
    StepId,
    StepRecord,
)

T = TypeVar("T")
Function = Callable[[dict[str, Array]], dict[str, Rows]]


def _port(name: str, datatype: str = "FP32", shape: tuple[int, ...] = (-1,), type: str = "vector") -> Port:
    return Port(name, Feature(type, datatype, shape))


def _double(inputs: dict[str, Array]) -> dict[str, Rows]:
    x = inputs["x"]
    return {"y": Rows(x * np.float32(2), np.full(len(x), 0.75, np.float32))}


def _echo(inputs: dict[str, Array]) -> dict[str, Rows]:
    return {"y": Rows(inputs["x"])}


def _raise(inputs: dict[str, Array]) -> dict[str, Rows]:
    raise RuntimeError("secret detail of the implementation")


def _full(inputs: dict[str, Array]) -> dict[str, Rows]:
    raise Overloaded("the queue of full@1 is full.", hint="Retry.", retry_after_s=2.5)


def _flat(name: str, function: Function, datatype: str = "FP32") -> tuple[Card, Function]:
    card = Card(name, "1", (_port("x", datatype),), (_port("y", datatype, type="vector/out"),), description=name)
    return card, function


FUNCTIONS: dict[ExtensionId, tuple[Card, Function]] = {
    card.id: (card, function)
    for card, function in (
        _flat("double", _double),
        _flat("raising", _raise),
        _flat("full", _full),
        _flat("hanging", _echo),
        *(_flat(f"echo_{datatype.lower()}", _echo, datatype) for datatype in DATATYPES),
    )
}
GOAL = Goal(
    "doubling",
    (_port("x"),),
    (_port("y", type="vector/out"),),
    description="Twice as much.",
    examples=("double this",),
)


@dataclass
class NumpyEngine:
    """Answers each request with one function, run on the loop. `hanging` answers when `let_go` is set."""

    catalogue: Catalogue = field(
        default_factory=lambda: Catalogue.of((card for card, _ in FUNCTIONS.values()), (GOAL,), epoch=3)
    )
    is_ready: bool = True
    placed: frozenset[ExtensionId] = frozenset()  # what is said to run inline
    seen: list[InferRequest] = field(default_factory=list)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)  # a request has begun to hang
    cancelled: asyncio.Event = field(default_factory=asyncio.Event)  # and was cancelled
    let_go: asyncio.Event = field(default_factory=asyncio.Event)

    def ready(self) -> bool:
        return self.is_ready

    def inline(self) -> frozenset[ExtensionId]:
        return self.placed

    async def infer(self, request: InferRequest) -> InferAnswer:
        self.seen.append(request)
        card, function = self._found(request)
        self._check(request, card)
        if card.name == "hanging":
            self.hanging.set()
            try:
                await self.let_go.wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise
        outputs = function(dict(request.inputs))
        plan = self._plan(card)
        record = StepRecord(StepId(0), card.id, len(outputs["y"]), len(outputs["y"]), 0.1, 0.0, 0.2, 0.3)
        return InferAnswer(
            model=request.model or GOAL.name,
            version=card.version,
            id=request.id,
            outputs=self._chosen(outputs, request.outputs),
            parameters={"plan": plan.id, "trace_id": "t1", "confidence": 0.75, "flags": ""},
            plan=plan,
            steps=(record,),
        )

    async def explain(self, request: InferRequest) -> Explanation:
        card, _ = self._found(request)
        if request.inputs:
            self._check(request, card)
        plan = self._plan(card)
        plans = PlanSet((plan, plan), (Rejected(plan, "dearer"),), self.catalogue.epoch, True, 3, 0.5)
        return Explanation(GOAL.name if card.name == "double" else "", 1.0, plans)

    def _found(self, request: InferRequest) -> tuple[Card, Function]:
        terms = Terms.parse(request.terms)
        if request.sentence:
            if "double" not in request.sentence:
                raise Unsure(f"{request.sentence[:40]!r} could mean anything.", hint="Nearest: doubling.")
            name = "double"
        elif request.wanted:
            if request.wanted != ("vector/out",):
                raise NoPlan(f"nothing produces {request.wanted[0]!r}.", hint="Nearest: vector/out.")
            name = "double"
        else:
            name = "double" if request.model == GOAL.name else request.model
        if terms.min_accuracy == 1.0:
            raise NoPlan("no plan is right all the time.", hint="Ask for less.")
        if request.version not in ("", "1"):
            raise NotFound(f"{name!r} has no version {request.version!r}.", hint="It has 1.")
        return FUNCTIONS[self.catalogue.card(name).id]

    @staticmethod
    def _check(request: InferRequest, card: Card) -> None:
        for name, values in request.inputs.items():
            if name != "x":
                raise BadInput(f"there is no input {name!r}.", hint=near(name, ("x",)))
            check_rows(name, values, card.inputs[0].feature)

    @staticmethod
    def _chosen(outputs: Mapping[str, Rows], names: tuple[str, ...]) -> Mapping[str, Rows]:
        chosen: dict[str, Rows] = {}
        for name in names or tuple(outputs):
            rows = outputs.get(name.removesuffix(".confidence"))
            if rows is None or (name not in outputs and rows.confidence is None):
                raise BadRequest(f"there is no output {name!r}.", hint=near(name, outputs))
            if name in outputs:
                chosen[name] = rows
            else:
                assert rows.confidence is not None
                chosen[name] = Rows(rows.confidence)
        return chosen

    @staticmethod
    def _plan(card: Card) -> Plan:
        step = Step(StepId(0), card.id, (Binding("x", (Source(REQUEST, "x"),)),), p50_ms=0.2)
        return Plan(
            id="p-" + card.name,
            steps=(step,),
            outputs=(Binding("y", (Source(StepId(0), "y"),)),),
            prediction=Prediction(0.2, 0.4, 0.0, 1.0),
            score=0.1,
            reason="the only one",
        )


class LoopThread:
    """An event loop on a thread of its own, so that blocking clients can talk to servers that run on it."""

    def __init__(self, new_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
        self.loop = new_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self._thread.start()

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def run(self, work: Coroutine[Any, Any, T], timeout_s: float = 30.0) -> T:
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(timeout_s)

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()


@contextmanager
def loop_thread() -> Iterator[LoopThread]:
    thread = LoopThread(uvloop.new_event_loop)
    try:
        yield thread
    finally:
        thread.close()


@dataclass(frozen=True)
class Served:
    """A running server of an engine: its loop, its port and the server itself."""

    engine: NumpyEngine
    loop: LoopThread
    server: HttpServer | GrpcServer

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"


@contextmanager
def served_http(
    limits: Limits | None = None, engine: NumpyEngine | None = None, desk: FeedbackDesk | None = None
) -> Iterator[Served]:
    """HTTP on a free port of this machine, until the block ends."""
    with loop_thread() as loop:
        engine = engine or NumpyEngine()
        server = loop.run(serve_http(engine, "127.0.0.1", 0, limits, desk=desk))
        try:
            yield Served(engine, loop, server)
        finally:
            loop.run(server.stop(0.2))


@contextmanager
def served_grpc(
    limits: Limits | None = None, engine: NumpyEngine | None = None, tally: Tally | None = None
) -> Iterator[Served]:
    """gRPC on a free port of this machine, until the block ends."""
    with loop_thread() as loop:
        engine = engine or NumpyEngine()
        server = loop.run(serve_grpc(engine, "127.0.0.1", 0, limits, tally=tally))
        try:
            yield Served(engine, loop, server)
        finally:
            loop.run(server.stop(0.2))
