"""A chain of three models behind HTTP: Fenix beside plain Ray Serve composition, default and with its fast flags.

    python -m tests.benchmarks.bench_composition [--rounds 3] [--seconds 5]

In each round every subject is started, its answers are checked against a reference, it is loaded by wrk at 1, 32 and
128 connections, and stopped; the order rotates. Printed are medians and the ratios with their spread over rounds.
Terms: at least 4 times Ray Serve's fast flags at 32 and at 128 connections.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from tests.benchmarks.load import Load, ratio, wrk
from tests.benchmarks.workload import reference, rows

CONNECTIONS = (1, 32, 128)
OURS, PEER = "fenix", "ray serve, fast flags"
FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to serve the chain: the module that does, its environment, and how it is asked."""

    name: str
    module: str
    path: str
    environment: dict[str, str] = field(default_factory=dict)

    def body(self, row: np.ndarray) -> bytes:
        if self.module == "fenix_chain":
            tensor = {"name": "row", "shape": [1, 64], "datatype": "FP32", "data": row.tolist()}
            return json.dumps({"inputs": [tensor]}).encode()
        return json.dumps({"row": row.tolist()}).encode()

    def probabilities(self, answer: dict[str, object]) -> list[float]:
        if self.module == "fenix_chain":
            (probs,) = [o["data"] for o in answer["outputs"] if o["name"] == "probs"]  # type: ignore[attr-defined]
            return list(probs)
        return list(answer["probs"])  # type: ignore[call-overload]


SUBJECTS = (
    Subject(OURS, "fenix_chain", "/v2/models/chain/infer"),
    Subject("ray serve, default", "ray_serve_chain", "/"),
    Subject(PEER, "ray_serve_chain", "/", FAST),
)


@contextmanager
def serving(subject: Subject) -> Iterator[str]:
    """The subject's URL while it runs; stops it, by closing its standard input, afterwards."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FENIX_", "MLFLOW_"))}
    clean |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", **subject.environment}
    if subject.module == "fenix_chain":
        del clean["RAY_AUTH_MODE"]
    with tempfile.TemporaryDirectory(prefix="fenix-bench-") as folder:
        command = [sys.executable, "-m", f"tests.benchmarks.{subject.module}", str(port), folder]
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=clean
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == "READY":
                    break
            else:
                raise SystemExit(f"{subject.name} did not start:\n{process.communicate()[1][-3000:]}")
            yield f"http://127.0.0.1:{port}{subject.path}"
        finally:
            try:
                process.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def check(subject: Subject, url: str, batch: np.ndarray) -> None:
    """Raises SystemExit when an answer differs from the reference by more than 1e-4."""
    for row, expected in zip(batch, reference(batch), strict=True):
        request = urllib.request.Request(url, subject.body(row), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=30) as answer:
            given = subject.probabilities(json.load(answer))
        if not np.allclose(given, expected, atol=1e-4):
            raise SystemExit(f"{subject.name} answers wrongly: {given} instead of {expected.tolist()}")


def run(rounds: int, seconds: float) -> None:
    batch = rows()
    loads: dict[tuple[str, int], list[Load]] = {(s.name, c): [] for s in SUBJECTS for c in CONNECTIONS}
    for turn in range(rounds):
        for subject in SUBJECTS[turn % len(SUBJECTS) :] + SUBJECTS[: turn % len(SUBJECTS)]:
            print(f"round {turn + 1} of {rounds}: {subject.name}", file=sys.stderr, flush=True)
            with serving(subject) as url:
                check(subject, url, batch)
                bodies = [subject.body(row) for row in batch]
                wrk(url, bodies, 32, 2.0)
                for connections in CONNECTIONS:
                    loads[subject.name, connections].append(wrk(url, bodies, connections, seconds))
                check(subject, url, batch[:8])
    print(f"\nChain of three, {rounds} rounds of {seconds:g} s, {os.cpu_count()} cores (medians)\n")
    print(f"{'subject':24} {'conn.':>5} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'failed':>6}  ours/theirs")
    for connections in CONNECTIONS:
        ours = [load.rate for load in loads[OURS, connections]]
        for subject in SUBJECTS:
            found = loads[subject.name, connections]
            rate, p50, p99 = (
                statistics.median(getattr(x, name) for x in found) for name in ("rate", "p50_ms", "p99_ms")
            )
            failed = sum(load.failed for load in found)
            beside = "" if subject.name == OURS else str(ratio(ours, [load.rate for load in found]))
            print(f"{subject.name:24} {connections:5} {rate:8.0f} {p50:8.2f} {p99:8.2f} {failed:6}  {beside}")
    for connections in (32, 128):
        found = ratio(
            [load.rate for load in loads[OURS, connections]], [load.rate for load in loads[PEER, connections]]
        )
        verdict = "met" if found.median >= 4.0 else "MISSED"
        print(f"term at {connections} connections: at least 4 times {PEER}: {found}: {verdict}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0)
    arguments = parser.parse_args()
    run(arguments.rounds, arguments.seconds)


if __name__ == "__main__":
    main()
