"""What it costs to take down every outcome: a gateway that keeps its journal in turns, under one steady load.

    python -m tests.benchmarks.bench_journal [--turns N] [--seconds S] [--connections 32,128]

Two loads that run one after the other, or beside each other, differ by more than the journal costs. So this process is
the gateway: the same engine and sockets, with the chain of three placed inline, in a cluster of its own whose ledger
writes to its database beside it. Every other turn the notes go to the journal. Printed are the rates of neighbouring
turns as ratios, with the median's 95 % interval, and the processor time a request took here. What a turn leaves for the
next one to encode and send is part of the cost, so turns are many times as long as the second in which that is done.
The term: at most 2 % of the request rate.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import uvloop

from planner.catalogue import Catalogue
from planner.choosing import Chosen
from planner.convoys import Notes, Rider, Unnoted
from planner.errors import FenixError
from planner.goals import Terms
from planner.plans import Answer, PlanSet
from tests.benchmarks.load import wrk
from tests.benchmarks.own_cluster import own_cluster
from tests.benchmarks.subjects import FENIX, OURS
from tests.benchmarks.workload import CHAIN, SOURCES, rows

MOST_COST = 0.02


class InTurns:
    """Notes that are taken down, or not."""

    def __init__(self, taken: Notes, counts: Counts) -> None:
        self._taken, self._free, self._counts = taken, Unnoted(), counts

    def answered(self, riders: Sequence[Rider], answer: Answer, chosen: Chosen) -> Sequence[str]:
        self._counts.n_requests += len(riders)
        self._counts.n_groups += 1
        notes = self._taken if self._counts.journal else self._free
        return notes.answered(riders, answer, chosen)

    def failed(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None) -> None:
        raise AssertionError(f"{len(riders)} requests failed") from error


@dataclass(slots=True)
class Counts:
    """What was answered, and whether it is being taken down."""

    journal: bool = False
    n_requests: int = 0
    n_groups: int = 0


@dataclass(frozen=True, slots=True)
class Turn:
    """Requests a second, us of this process's processors a request, and requests a group."""

    rate: float
    us: float
    group: float


async def gateway(connections: Sequence[int], turns: int, seconds: float) -> bool:
    """Serves, and loads itself with so many connections one after the other; whether the term is met each time."""
    from deployments.extension import execute  # imports Ray, which must come after the flags
    from deployments.gateway.engine import Engine
    from deployments.gateway.notes import NoteBook
    from deployments.gateway.recorder import Recorder
    from deployments.gateway.server import serve_http
    from deployments.ledger import LedgerClient
    from deployments.loading import describe, load
    from planner.calls import LocalCalls

    counts = Counts()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(LedgerClient().append, Path(folder))
        recorder.start()
        book = NoteBook(recorder)

        def notes_for(model: str, version: str, goal: str, terms: Terms, plans: PlanSet) -> Notes:
            return InTurns(book.notes_for(model, version, goal, terms, plans), counts)

        cards = [describe(source) for source in SOURCES]
        engine = Engine(LocalCalls({}), notes_for=notes_for)
        await engine.follow(Catalogue.of(cards, [CHAIN]))
        for card in cards:
            extension = load(card)
            extension.setup()
            engine.placed.place(card, partial(execute, extension))
        server = await serve_http(engine, "127.0.0.1", 0)
        try:
            met = [await _measured(server.port, n, counts, turns, seconds) for n in connections]
        finally:
            await server.stop(1.0)
            await recorder.close(5.0)
    return all(met)


async def _measured(port: int, connections: int, counts: Counts, turns: int, seconds: float) -> bool:
    url = f"http://127.0.0.1:{port}/v2/models/{CHAIN.name}/infer"
    (subject,) = [one for one in OURS if one.name == FENIX]
    _, bodies = subject.bodies("chain", rows())
    loading = asyncio.create_task(asyncio.to_thread(wrk, url, bodies, connections, 2 * turns * seconds + 3.0))
    await asyncio.sleep(2.0)
    found: dict[bool, list[Turn]] = {True: [], False: []}
    for turn in range(turns):
        for journal in (True, False) if turn % 2 else (False, True):
            counts.journal = journal
            found[journal].append(await _turn(counts, seconds))
    loaded = await loading
    if loaded.failed:
        raise SystemExit(f"{loaded.failed} requests failed")
    return _told(connections, found)


async def _turn(counts: Counts, seconds: float) -> Turn:
    began_s, used_s = time.perf_counter(), time.process_time()
    n_requests, n_groups = counts.n_requests, counts.n_groups
    await asyncio.sleep(seconds)
    n = counts.n_requests - n_requests
    return Turn(
        n / (time.perf_counter() - began_s),
        (time.process_time() - used_s) / n * 1e6,
        n / (counts.n_groups - n_groups),
    )


def _told(connections: int, found: dict[bool, list[Turn]]) -> bool:
    pairs = list(zip(found[True], found[False], strict=True))
    rates = [kept.rate / free.rate for kept, free in pairs]
    costs = [kept.us - free.us for kept, free in pairs]
    low, high = _interval(rates)
    usual = {journal: statistics.median(turn.rate for turn in turns) for journal, turns in found.items()}
    us = statistics.median(turn.us for turn in found[False])
    is_met = statistics.median(rates) >= 1.0 - MOST_COST
    print(
        f"{connections} connections, {statistics.median(turn.group for turn in found[True]):.0f} requests a group:"
        f" {usual[True]:,.0f} requests/s with the journal, {usual[False]:,.0f} without:"
        f" {statistics.median(rates):.3f} ({low:.3f} to {high:.3f});"
        f" {statistics.median(costs):+.2f} us of processor time a request, which takes {us:.1f};"
        f" at most 2 % of the rate: {'met' if is_met else 'MISSED'}",
        flush=True,
    )
    return is_met


def _interval(values: Sequence[float]) -> tuple[float, float]:
    """A 95 % interval of their median, by drawing them again (bootstrap)."""
    drawn = np.random.default_rng(1).choice(np.array(values), (2000, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=8, help="with the journal, and as many without")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a turn")
    parser.add_argument(
        "--connections", type=lambda text: [int(number) for number in text.split(",")], default=[32, 128]
    )
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    with own_cluster([], []):
        met = uvloop.run(gateway(chosen.connections, chosen.turns, chosen.seconds))
    if chosen.strict and not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
