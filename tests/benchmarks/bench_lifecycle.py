"""What changes of extensions and goals do to requests: 64 connections ask without a pause while versions are deployed,
tried, promoted, rolled back, replaced and removed, goals are changed, and broken versions are refused.

    python -m tests.benchmarks.bench_lifecycle [--connections 64] [--strict]

Printed is what each step took, how many requests failed all along (the term: none), how long after the command the
last request was sent that the former version answered (the term: 1 s), and which share of the requests a bad version
answered before it was rolled back by itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from cluster.settings import Settings
from planner.cards import Card
from planner.errors import FenixError
from planner.features import Port
from planner.goals import Goal
from tests.benchmarks.own_cluster import own_cluster
from tests.trying import NUMBER, PARITY, parity

MOST_EFFECT_S = 1.0
MOST_HURT = 0.05
ROUNDS = 8  # of promotions and rollbacks by command
SETTLE_S = 1.0  # of load after each step
GOAL = Goal("odd", (Port("x", NUMBER),), (Port("odd", PARITY),), description="Is it odd?")
SLOW = {"steps": [{"share": 0.0, "mirrored": 1.0, "min_s": 600.0}], "require_truth": False}
CANARY = {
    "steps": [{"share": 0.05, "min_outcomes": 100_000}],
    "min_agreement": 0.9,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    parser.add_argument("--load", help=argparse.SUPPRESS)  # what the load's own process is told
    chosen = parser.parse_args()
    if chosen.load:
        url, _, file = chosen.load.partition(" ")
        asyncio.run(_Asking(int(url.rpartition(":")[2]), chosen.connections).run(Path(file)))
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with own_cluster([parity("1")], [GOAL]) as settings, tempfile.TemporaryDirectory() as folder:
        met = drill(settings, Path(folder) / "asked.json", chosen.connections)
    if chosen.strict and not met:
        raise SystemExit(1)


def drill(settings: Settings, file: Path, connections: int) -> bool:
    """Everything under load; prints what came of it, and returns whether the terms are met."""
    from cluster import lifecycle
    from deployments import deployer
    from fenix.client import Client
    from planner.rollout.codec import parse_plan

    installation = lifecycle.installation(settings)
    commands: list[tuple[float, str, str]] = []  # when, and from which version to which
    plans: dict[str, str] = {}  # of the goal, by id
    bad: tuple[float, float] = (0.0, 0.0)

    def deploy(version: str, plan: dict[str, Any] | None, **options: Any) -> None:
        given = None if plan is None else parse_plan(plan)
        deployer.deploy([parity(version, **options)], [], installation, _quiet, given)

    def refused(card: Card) -> None:
        try:
            deployer.deploy([card], [], installation, _quiet, parse_plan(SLOW))
        except FenixError:
            return
        raise SystemExit("a broken version was deployed")

    def promote(version: str) -> None:
        commands.append((time.monotonic(), client.rollout("parity")["champion"], version))
        client.promote("parity", version)
        learn()

    def learn() -> None:
        """Which version the goal's plan has now."""
        plan = client.plan("odd")["chosen"]
        plans[plan["id"]] = plan["steps"][0]["extension"].rpartition("@")[2]

    def roll_back() -> None:
        found = client.rollout("parity")
        commands.append((time.monotonic(), found["champion"], found["former"][-1]))
        client.roll_back("parity")
        learn()

    def tried_and_lost() -> None:
        nonlocal bad
        began_s = time.monotonic()
        deploy("4", CANARY, wrong=0.4)
        while client.rollout("parity")["running"]:
            time.sleep(0.05)
        bad = began_s, time.monotonic()

    steps: list[tuple[str, Callable[[], object]]] = [
        ("deploy a version with a rollout", lambda: deploy("2", SLOW)),
        ("promote it", lambda: promote("2")),
        ("roll back", roll_back),
    ]
    for _ in range(ROUNDS - 1):
        steps += [("promote it", lambda: promote("2")), ("roll back", roll_back)]
    steps += [
        ("refuse one that does not load", lambda: refused(parity("3").but(options={"nonsense": 1}))),
        ("refuse one that breaks the contract", lambda: refused(parity("3", always_wrong_type=True))),
        ("a bad one, rolled back by itself", tried_and_lost),
        ("replace: deploy another", lambda: deploy("3", SLOW)),
        ("replace: promote it", lambda: promote("3")),
        ("replace: remove the former", lambda: deployer.remove(["parity@1", "parity@2", "parity@4"], [], _quiet)),
        ("change the goal", lambda: deployer.deploy([], [_changed(GOAL)], installation, _quiet)),
    ]
    with Client(settings.http_url, timeout_s=60.0) as client, asking(settings.http_url, connections, file):
        time.sleep(2.0)
        learn()
        took: dict[str, list[float]] = {}
        for name, step in steps:
            began_s = time.monotonic()
            step()
            took.setdefault(name, []).append(time.monotonic() - began_s)
            time.sleep(SETTLE_S)
    return told(json.loads(file.read_text()), took, commands, bad, plans)


def told(
    asked: dict[str, Any],
    took: dict[str, list[float]],
    commands: list[tuple[float, str, str]],
    bad: tuple[float, float],
    plans: dict[str, str],
) -> bool:
    """Prints the figures; returns whether the terms are met."""
    sent_s = np.array(asked["sent_s"])
    versions = np.array([plans.get(plan, plan.rpartition("@")[2]) for plan in asked["plans"]])
    direct = np.array([plan.startswith("direct") for plan in asked["plans"]])
    n, n_failed = len(sent_s) + asked["failed"], asked["failed"]
    rate = len(sent_s) / float(sent_s.max() - sent_s.min())
    for name, spans in took.items():
        times = f"{len(spans)} times, " if len(spans) > 1 else ""
        print(f"{name:38} {times}{np.median(spans):6.2f} s, at most {max(spans):.2f}")
    effects = []
    for at_s, former, new in commands:
        late = sent_s[(sent_s > at_s) & (sent_s < at_s + SETTLE_S) & (versions == former)]
        assert ((sent_s > at_s) & (versions == new)).any()
        effects.append(float(late.max() - at_s) if len(late) else 0.0)
    effect = max(effects)
    during = direct & (sent_s >= bad[0]) & (sent_s <= bad[1])
    hurt = float((versions[during] == "4").mean())
    verdict = "met" if n_failed == 0 else "MISSED"
    print(f"\n{n:,} requests, {rate:,.0f} a second; failed: {n_failed} (none: {verdict}) {asked['errors'][:3] or ''}")
    verdict = "met" if effect <= MOST_EFFECT_S else "MISSED"
    print(
        f"promotions and rollbacks by command in effect after {np.median(effects) * 1e3:.0f} ms,"
        f" at most {effect * 1e3:.0f} ms of {len(effects)} (1 s: {verdict})"
    )
    print(f"a version that errs on 40 % answered {hurt:.2%} of the requests, from its deployment to its rollback")
    return n_failed == 0 and effect <= MOST_EFFECT_S and hurt <= MOST_HURT


def _changed(goal: Goal) -> Goal:
    from dataclasses import replace

    return replace(goal, description="Is it an odd number?")


def _quiet(text: str) -> None:
    return


# -------------------------------------------------------------------------------------------------------------- load


@contextmanager
def asking(url: str, connections: int, file: Path) -> Iterator[None]:
    """Load from a process of its own until the block ends; then `file` says what became of it."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_lifecycle", "--connections", str(connections)]
    process = subprocess.Popen([*command, "--load", f"{url} {file}"])
    try:
        yield
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(20.0)


class _Asking:
    """Asks over some connections, without a pause: by turns the extension and the goal."""

    def __init__(self, port: int, connections: int) -> None:
        self._port = port
        self._connections = connections
        self._sent_s: list[float] = []
        self._plans: list[str] = []
        self._errors: list[str] = []
        self._n_failed = 0
        self._ends = asyncio.Event()

    async def run(self, file: Path) -> None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGINT, self._ends.set)
        await asyncio.gather(*(self._ask(k) for k in range(self._connections)))
        asked = {"sent_s": self._sent_s, "plans": self._plans, "failed": self._n_failed, "errors": self._errors[:20]}
        await asyncio.to_thread(file.write_text, json.dumps(asked))

    async def _ask(self, k: int) -> None:
        model = "odd" if k % 2 else "parity"
        number = 100_000 * k + 1_000
        while not self._ends.is_set():
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                while not self._ends.is_set():
                    number += 1
                    body = b'{"inputs":[{"name":"x","shape":[1],"datatype":"FP32","data":[%d]}]}' % number
                    head = b"POST /v2/models/%s/infer HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                    sent_s = time.monotonic()
                    writer.write(head % model.encode() + b"content-length: %d\r\n\r\n" % len(body) + body)
                    answer = await self._read(reader)
                    self._note(sent_s, *answer)
                writer.close()
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._n_failed += 1
                self._errors.append(repr(error))
                await asyncio.sleep(0.05)

    @staticmethod
    async def _read(reader: asyncio.StreamReader) -> tuple[int, bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return int(head[9:12]), await reader.readexactly(int(length.partition(b":")[2]))

    def _note(self, sent_s: float, status: int, body: bytes) -> None:
        if status != 200:
            self._n_failed += 1
            self._errors.append(body.decode()[:200])
            return
        self._sent_s.append(sent_s)
        self._plans.append(json.loads(body)["parameters"]["plan"])


if __name__ == "__main__":
    main()
