"""A ledger that has learned something, for the tests of what shows it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from deployments.gateway.metrics import observing_routes
from deployments.gateway.recorder import Recorder
from deployments.gateway.server import serve_http
from deployments.gateway.tally import Tally
from lineage.chunks import Chunk, ChunkBuilder
from lineage.feedback import Feedback
from lineage.journal import Joined
from lineage.outcomes import Setting
from lineage.quality.learner import QualityLearner
from planner.cards import Accuracy, LatencyProfile
from planner.catalogue import Catalogue
from planner.errors import ClusterDown, FenixError
from tests.deployments.gateway.engines import NumpyEngine, Served, loop_thread
from tests.lineage.outcomes import RUN, trace

ASKED = Setting("doubling", goal="doubling", plan="p-double", steps=((0, "double@1"),), giver="double@1", user="ann")


class Learned:
    """The ledger's `learned` over a learner in this process."""

    def __init__(self, learner: QualityLearner) -> None:
        self.learner = learner
        self.is_down = False
        self.n_asked = 0

    async def learned(self, name: str, question: str, *arguments: Any) -> Any:
        assert name == "quality"
        await asyncio.sleep(0)
        self.n_asked += 1
        if self.is_down:
            raise ClusterDown("the ledger does not answer.", hint="Try again.")
        return self.learner.answer(question, *arguments)


def learned(wrong: int = 60, n: int = 400) -> Learned:
    """It knows of `n` requests to double@1, most of user ann; of 200 of them the label, which is wrong in `wrong`."""
    now_s = time.time()
    builder = ChunkBuilder(RUN)
    labels = np.arange(n) % 10
    for begin, user in ((0, "ann"), (n - 40, "bob"), (n - 20, "")):
        end = {0: n - 40, n - 40: n - 20, n - 20: n}[begin]
        setting = Setting(**{**{f: getattr(ASKED, f) for f in ASKED.__slots__}, "user": user})
        k = end - begin
        builder.add(
            setting, begin, now_s - 30.0, [3.0] * k, [1] * k, [0.9] * k, [(0.1, 0.2, 2.0, 4)],
            {"y": labels[begin:end]},
        )  # fmt: skip
    failed = Setting("doubling", goal="doubling", plan="p-double", error="StepFailed", failed=("double@1",), user="ann")
    builder.add(failed, n, now_s - 30.0, [9.0] * 20, [1] * 20, [float("nan")] * 20)
    chunk = Chunk.decode(builder.encode())
    learner = QualityLearner()
    learner.hear(chunk)
    told = []
    for seq in range(200):
        outcome = chunk.find(seq)
        assert outcome is not None
        truth = (int(labels[seq]) + (seq < wrong)) % 10
        told += [Joined(outcome, Feedback(trace(seq), truth=truth), now_s)]
    learner.told(told)
    return Learned(learner)


def engine() -> NumpyEngine:
    """One whose card of double@1 promises more than that: 99 % of 1,000 right, and 0.5 ms."""
    made = NumpyEngine()
    cards = [
        card.but(accuracy=Accuracy(0.99, 1000), profile=LatencyProfile(0.5, 0.0, 0.0, 2.0, 100))
        if card.id == "double@1"
        else card
        for card in made.catalogue.cards.values()
    ]
    made.catalogue = Catalogue.of(cards, made.catalogue.goals.values(), epoch=3)
    return made


async def _unwritten(run: str, chunks: Any) -> None:
    raise FenixError("not now")


@contextmanager
def observed(ledger: Learned | None, tally: Tally | None = None) -> Iterator[Served]:
    """A gateway over HTTP that shows what it counts, and what a ledger has learned."""
    with loop_thread() as loop:
        made, tally = engine(), tally or Tally()
        recorder = None if ledger is None else Recorder(_unwritten, run="0123456789abcdef0123")
        routers = observing_routes(made, tally, ledger, recorder)
        server = loop.run(serve_http(made, "127.0.0.1", 0, routers=routers, tally=tally))
        try:
            yield Served(made, loop, server)
        finally:
            loop.run(server.stop(0.2))
