"""What is compared in `bench_serving`: how each subject is started, asked, checked and stopped.

Every subject runs alone, in processes that carry a mark in their environment, so that its processor time is counted
and nothing of it is left behind.
"""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from planner.features import Array
from tests.benchmarks.load import DIGITS, Load, wrk
from tests.benchmarks.workload import reference

ROOT = Path(__file__).parents[2]
MARK = "SERVING_BENCHMARK"
STARTS_WITHIN_S = 180.0
_REPLICA = "ray::ServeReplica:"
_VARIED = 3.141592  # stands in a body where its digits after the point shall vary


class Failed(Exception):
    """A subject did not start, did not answer, or answered wrongly."""


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    body: str = ""


Ask = Callable[[str, Sequence[float]], Request]  # workload and row -> the request
Read = Callable[[Mapping[str, object]], Sequence[float]]  # the answer in JSON -> the probabilities


@dataclass(frozen=True, slots=True)
class Subject:
    """One way to serve the workloads. `command` is completed by `{workload}`, `{port}` and `{folder}` (an empty one).

    `called` is its name for a workload where that is another. `expected` gives the probabilities of rows (n, 64) for a
    workload. A subject ends when its standard input closes
    (`ends_at_eof`) or by SIGTERM. `moves`: what runs where is only settled some time into the load.
    """

    name: str
    workloads: tuple[str, ...]
    command: tuple[str, ...]
    ask: Ask
    read: Read
    environment: Mapping[str, str] = field(default_factory=dict)
    called: Mapping[str, str] = field(default_factory=dict)
    expected: Callable[[Array, str], Array] = reference
    ends_at_eof: bool = False
    moves: bool = False

    def asked(self, workload: str, row: Array) -> Request:
        return self.ask(workload, row.tolist())

    def bodies(self, workload: str, rows: Array) -> tuple[Request, list[bytes]]:
        """The first request, and the bodies of all as `load.wrk` takes them: never twice the same row."""
        requests = [self.ask(workload, [_VARIED, *row[1:].tolist()]) for row in rows]
        return requests[0], [request.body.replace(str(_VARIED), f"3.{DIGITS}", 1).encode() for request in requests]


# --- how they are asked


def ask_openly(workload: str, row: Sequence[float]) -> Request:
    """A request of the Open Inference Protocol."""
    name, values = ("x", [0.5]) if workload == "noop" else ("row", list(row))
    tensor = {"name": name, "shape": [1, len(values)], "datatype": "FP32", "data": values}
    return Request("POST", f"/v2/models/{workload}/infer", json.dumps({"inputs": [tensor]}))


def read_openly(answer: Mapping[str, object]) -> Sequence[float]:
    (probs,) = [o["data"] for o in answer["outputs"] if o["name"] == "probs"]  # type: ignore[attr-defined]
    return list(np.ravel(probs))


def ask_plainly(path: str) -> Ask:
    """A row as JSON; the no-op is a GET."""

    def ask(workload: str, row: Sequence[float]) -> Request:
        return Request("GET", "/noop") if workload == "noop" else Request("POST", path, json.dumps({"row": list(row)}))

    return ask


def read_plainly(answer: Mapping[str, object]) -> Sequence[float]:
    probs: list[float] = answer["probs"]  # type: ignore[assignment]
    return probs


def _ours(module: str, *arguments: str, python: str = sys.executable) -> tuple[str, ...]:
    return python, "-m", f"tests.benchmarks.{module}", *arguments


FENIX, REMOTE, BY_HAND, UVICORN = "fenix", "fenix-remote", "by-hand", "uvicorn-bare"
RAY_FAST, RAY_DEFAULT = "ray-serve-fast", "ray-serve-default"
_RAY = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled"}
_FAST = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_SERVE_ENABLE_HA_PROXY": "1"}
_ALL = ("chain", "fan", "noop")
_RAY_COMMAND = _ours("ray_serve_chain", "{port}")
OURS = (
    Subject(
        FENIX,
        _ALL,
        _ours("fenix_chain", "{workload}", "auto", "{port}", "{folder}"),
        ask_openly,
        read_openly,
        ends_at_eof=True,
        moves=True,
    ),
    Subject(
        REMOTE,
        ("chain", "fan"),
        _ours("fenix_chain", "{workload}", "remote", "{port}", "{folder}"),
        ask_openly,
        read_openly,
        ends_at_eof=True,
    ),
    Subject(BY_HAND, _ALL, _ours("by_hand", "{workload}", "{port}"), ask_plainly("/predict"), read_plainly),
    Subject(RAY_FAST, ("chain",), _RAY_COMMAND, ask_plainly("/"), read_plainly, _RAY | _FAST, ends_at_eof=True),
    Subject(RAY_DEFAULT, ("chain",), _RAY_COMMAND, ask_plainly("/"), read_plainly, _RAY, ends_at_eof=True),
    Subject(UVICORN, ("noop",), _ours("fronts", "uvicorn", "{port}"), ask_plainly("/"), read_plainly),
)


def granian(python: Path) -> tuple[Subject, ...]:
    """Granian's two interfaces, on an interpreter that has it."""
    return tuple(
        Subject(
            f"granian-{interface}",
            ("noop",),
            _ours("fronts", f"granian-{interface}", "{port}", python=str(python)),
            ask_plainly("/"),
            read_plainly,
        )
        for interface in ("asgi", "rsgi")
    )


# --- a subject while it runs


@dataclass(frozen=True, slots=True)
class Used:
    """Processor time of a whole process tree under load, in milliseconds per request; and whether Fenix's gateway did
    all of the work itself (True for others)."""

    ms_per_request: float
    is_inline: bool


class Running:
    """A subject that serves one workload."""

    def __init__(self, subject: Subject, workload: str, port: int, mark: str) -> None:
        self.subject, self.workload = subject, workload
        self._port, self._mark = port, mark
        self._resting = 0.0  # share of a processor that Fenix's deployments take without load

    def processes(self) -> list[psutil.Process]:
        """Its whole process tree."""
        found: dict[int, psutil.Process] = {}
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARK) == self._mark:
                    found[process.pid] = process
                    # Some write over their environment to change their title.
                    found.update((child.pid, child) for child in process.children(recursive=True))
            except (psutil.Error, OSError, ValueError):
                continue
        return list(found.values())

    def processor_s(self) -> dict[int, tuple[str, float]]:
        """Title and processor time so far, by process id."""
        used = {}
        for process in self.processes():
            try:
                times = process.cpu_times()
                used[process.pid] = process.name(), times.user + times.system
            except psutil.Error:
                continue
        return used

    def ask(self, row: Array) -> tuple[int, bytes]:
        """One request: status and body. Raises Failed when there is no answer."""
        request = self.subject.asked(self.workload, row)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30.0)
        try:
            headers = {"Content-Type": "application/json"} if request.body else {}
            connection.request(request.method, request.path, request.body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"no answer: {error!r}") from None
        finally:
            connection.close()

    def check(self, rows: Array) -> None:
        """Each row alone, then all of them from 32 clients at once. Raises Failed when there is no answer, or one that
        differs from the reference by more than 1e-4."""
        expected = None if self.workload == "noop" else self.subject.expected(rows, self.workload)

        def one(i: int) -> None:
            status, body = self.ask(rows[i])
            if status != 200:
                raise Failed(f"answers {status}: {body[:300]!r}")
            if expected is None:
                return
            given = self.subject.read(json.loads(body))
            if not np.allclose(given, expected[i], atol=1e-4):
                raise Failed(f"answers wrongly: {given} instead of {expected[i].tolist()}")

        for i in range(len(rows)):
            one(i)
        with ThreadPoolExecutor(32) as pool:
            list(pool.map(one, range(len(rows))))

    def load(self, rows: Array, connections: int, seconds: float) -> tuple[Load, Used]:
        """What wrk found, and what it took."""
        first, bodies = self.subject.bodies(self.workload, rows)
        before = self.processor_s()
        found = wrk(f"http://127.0.0.1:{self._port}{first.path}", bodies, connections, seconds, first.method)
        total_s, gateway_s, deployments_s = _split(before, self.processor_s())
        # Deployments that rest take a little too; at work they take a quarter of what the gateway takes, and more.
        is_inline = deployments_s - self._resting * seconds <= 0.1 * gateway_s
        return found, Used(total_s * 1e3 / max(found.n_requests, 1), is_inline)

    def settle(self, rows: Array, seconds: float) -> None:
        """Warms up at 32 connections; a subject that moves for up to 15 s, until its gateway does all of the work."""
        if self.subject.moves:
            before = self.processor_s()
            time.sleep(2.0)
            self._resting = _split(before, self.processor_s())[2] / 2.0
        self.load(rows, 32, seconds)
        if self.subject.moves:
            for _ in range(15):
                if self.load(rows, 32, 1.0)[1].is_inline:
                    break


def _split(
    before: Mapping[int, tuple[str, float]], after: Mapping[int, tuple[str, float]]
) -> tuple[float, float, float]:
    """Seconds of processor time between the two: of all, of Fenix's gateway, of its deployments."""
    total = gateway = deployments = 0.0
    for pid, (title, seconds) in after.items():
        took = seconds - before.get(pid, (title, 0.0))[1]
        total += took
        if title.startswith(_REPLICA + "gateway"):
            gateway += took
        elif title.startswith(_REPLICA):
            deployments += took
    return total, gateway, deployments


@contextmanager
def running(subject: Subject, workload: str, row: Array) -> Iterator[Running]:
    """The subject, answering; ended with all its processes afterwards. Raises Failed when it does not start."""
    mark, port = uuid.uuid4().hex, _free_port()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "FENIX_", "MLFLOW_"))}
    with tempfile.TemporaryDirectory(prefix="fenix-bench-", ignore_cleanup_errors=True) as folder:
        fields = {"workload": subject.called.get(workload, workload), "port": str(port), "folder": folder}
        process_log = Path(folder) / "output"
        with process_log.open("wb") as log:
            process = subprocess.Popen(
                [part.format(**fields) for part in subject.command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                cwd=folder,
                env=environment
                | {"PYTHONPATH": str(ROOT), MARK: mark}
                | {name: value.format(**fields) for name, value in subject.environment.items()},
            )
        now = Running(subject, workload, port, mark)
        try:
            _wait(now, process, process_log, row)
            yield now
        finally:
            _end(now, process)


def _free_port() -> int:
    """A port with two free neighbours, which some peers take too."""
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        try:
            for neighbour in (port + 1, port + 2):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", neighbour))
            return port
        except (OSError, OverflowError):
            continue


def _wait(subject: Running, process: subprocess.Popen[bytes], log: Path, row: Array) -> None:
    deadline_s = time.monotonic() + STARTS_WITHIN_S
    while time.monotonic() < deadline_s and process.poll() is None:
        try:
            if subject.ask(row)[0] == 200:
                return
        except Failed:
            pass
        time.sleep(0.25)
    raise Failed(f"did not start:\n{log.read_text(errors='replace')[-3000:]}")


def _end(subject: Running, process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    if not subject.subject.ends_at_eof:
        process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=60.0)
    except subprocess.TimeoutExpired:
        process.kill()
    for left in subject.processes():
        try:
            left.kill()
        except psutil.Error:
            continue
    process.wait()
