"""Where the time of a request goes in the gateway: its budget, part by part, in microseconds of processor time.

    python -m tests.benchmarks.bench_budget [--workload chain] [--connections 32] [--seconds 5]

A gateway of its own, in one process with the extensions inside it, is loaded twice: as it is, and with a stopwatch at
the seams between its parts. A part's time is its own, without what it calls; `waiting` is by the clock, from the
moment a request is understood to the moment its group leaves. The stopwatch costs time itself: compare the totals.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from deployments.extension import Extension, execute
from deployments.gateway.connection import Connection, Fare
from deployments.gateway.engine import Engine
from deployments.gateway.express import Express, Kind
from deployments.gateway.server import serve_http
from deployments.loading import describe, load
from planner.calls import LocalCalls
from planner.catalogue import Catalogue
from planner.convoys import Convoy, Rider
from planner.placed import Function
from tests.benchmarks.load import wrk
from tests.benchmarks.subjects import OURS, Subject
from tests.benchmarks.workload import WORKLOADS, rows

PARTS = ("http", "decode", "plan", "dispatch", "models", "encode", "write")


class Stopwatch:
    """Time per part, each without what it calls. For one thread, and for calls that do not wait."""

    def __init__(self) -> None:
        self.own_s = dict.fromkeys(PARTS, 0.0)
        self._running: list[tuple[str, float]] = []  # the parts that wait for an inner one, and their time so far
        self._since_s = 0.0

    def around(self, kind: type, method: str, part: str) -> None:
        """Measures a method of a class from now on."""
        setattr(kind, method, self.timed(getattr(kind, method), part))

    def timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        def measured(*given: Any, **named: Any) -> Any:
            self._turn_to(part)
            try:
                return function(*given, **named)
            finally:
                self._turn_back()

        return measured

    def _turn_to(self, part: str) -> None:
        now_s = time.perf_counter()
        if self._running:
            outer, so_far_s = self._running[-1]
            self._running[-1] = outer, so_far_s + now_s - self._since_s
        self._running.append((part, 0.0))
        self._since_s = time.perf_counter()

    def _turn_back(self) -> None:
        now_s = time.perf_counter()
        part, so_far_s = self._running.pop()
        self.own_s[part] += so_far_s + now_s - self._since_s
        self._since_s = time.perf_counter()


class Waits:
    """How long riders wait for their group, and how many travel together."""

    def __init__(self) -> None:
        self.waited_s = 0.0
        self.n_riders = self.n_groups = 0
        self._since_s: dict[int, float] = {}
        join, go_now = Convoy.join, Convoy._go_now

        def joined(convoy: Convoy, rider: Rider) -> None:
            self._since_s[id(rider)] = time.perf_counter()
            join(convoy, rider)

        def gone(convoy: Convoy, riders: list[Rider]) -> None:
            now_s = time.perf_counter()
            self.n_groups += 1
            for rider in riders:
                self.waited_s += now_s - self._since_s.pop(id(rider), now_s)
                self.n_riders += 1
            go_now(convoy, riders)

        Convoy.join, Convoy._go_now = joined, gone  # type: ignore[method-assign, assignment]


def inside(extension: Extension) -> Function:
    """The extension as it runs inline."""
    return lambda inputs: execute(extension, inputs)


async def serve(workload: str, port: int, measured: bool) -> None:
    """Serves until the standard input closes, then prints what was measured as JSON."""
    watch = Stopwatch() if measured else None
    waits = Waits() if measured else None
    goal, sources = WORKLOADS[workload]
    cards = [describe(source) for source in sources]
    engine = Engine(LocalCalls({}))
    await engine.follow(Catalogue.of(cards, [goal]))
    for card in cards:
        extension = load(card)
        extension.setup()
        function: Function = inside(extension)
        engine.placed.place(card, watch.timed(function, "models") if watch else function)
    if watch:
        watch.around(Connection, "data_received", "http")
        watch.around(Express, "take", "decode")
        watch.around(Express, "_kind", "plan")
        watch.around(Convoy, "_leave", "dispatch")
        watch.around(Kind, "encode", "encode")
        watch.around(Fare, "_send", "write")
    await serve_http(engine, "127.0.0.1", port)
    print("ready", flush=True)
    loop = asyncio.get_running_loop()
    used_s = time.process_time()
    await loop.run_in_executor(None, sys.stdin.read)
    told = {"cpu_s": time.process_time() - used_s}
    if watch and waits:
        told |= watch.own_s | {"waiting": waits.waited_s, "n_groups": waits.n_groups, "n_riders": waits.n_riders}
    print(json.dumps(told), flush=True)


@contextmanager
def gateway(workload: str, port: int, measured: bool) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_budget", "--serve", str(port), "--workload", workload]
    if measured:
        command.append("--measured")
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise SystemExit("the gateway did not start")
            yield process
        finally:
            process.kill()


def loaded(workload: str, connections: int, seconds: float, measured: bool) -> tuple[float, float, dict[str, float]]:
    """Requests per second, p50 in ms, and microseconds per request of each part."""
    subject: Subject = OURS[0]
    request, bodies = subject.bodies(workload, rows())
    from cluster.processes import free_ports

    (port,) = free_ports(1)
    with gateway(workload, port, measured) as process:
        seen = wrk(f"http://127.0.0.1:{port}{request.path}", bodies, connections, seconds, request.method)
        if seen.failed:
            raise SystemExit(f"{seen.failed} of {seen.n_requests} requests failed")
        told, _ = process.communicate(timeout=10)
    found = json.loads(told)
    n_groups, n_riders = found.pop("n_groups", 1), found.pop("n_riders", 1)
    per_request = {name: 1e6 * value / seen.n_requests for name, value in found.items()}
    return seen.rate, seen.p50_ms, per_request | {"group": n_riders / n_groups}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=list(WORKLOADS), default="chain")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 32, 128])
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--serve", type=int, metavar="PORT", help=argparse.SUPPRESS)
    parser.add_argument("--measured", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        uvloop.run(serve(arguments.workload, arguments.serve, arguments.measured))
        return
    for connections in arguments.connections:
        rate, p50_ms, plain = loaded(arguments.workload, connections, arguments.seconds, measured=False)
        _, _, parts = loaded(arguments.workload, connections, arguments.seconds, measured=True)
        print(f"\n{arguments.workload}, {connections} connections: {rate:,.0f} req/s, p50 {p50_ms:.2f} ms")
        rest = parts["cpu_s"] - sum(parts[part] for part in PARTS)
        for part in PARTS:
            print(f"  {part:10} {parts[part]:7.1f} us")
        print(f"  {'the rest':10} {rest:7.1f} us  (the event loop, the sockets' system calls)")
        print(f"  {'total':10} {parts['cpu_s']:7.1f} us  ({plain['cpu_s']:.1f} without the stopwatch)")
        print(f"  a request waits {parts['waiting']:.0f} us for its group; {parts['group']:.1f} travel together")


if __name__ == "__main__":
    main()
