"""Load that does not wait for answers: requests go out when they are due, however the ones before them fare.

    python -m tests.benchmarks.open_loop < OFFER   (an `Offer` in JSON; the answer is a `Tally` in JSON)

A process of its own, so that what it measures is not what it disturbs. Arrivals are a Poisson process from a seed, the
bytes of all requests are made beforehand, and they go over raw connections that are kept open, one request at a time
on each; more are opened as they are needed. Latency counts from the moment at which a request was due: a load that
falls behind cannot hide that (coordinated omission: Tene 2013, How NOT to measure latency).
"""

from __future__ import annotations

import asyncio
import json
import math
import random
import subprocess
import sys
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import uvloop

ROOT = Path(__file__).parents[2]
HUNG = "hung"  # no answer for `patience_s`
CUT = "cut"  # the connection ended without an answer
WRONG = "wrong"  # a 200 that is not the expected answer


@dataclass(frozen=True, slots=True)
class Class:
    """Requests of one kind: their share of all, model, terms, most rows, and what the model makes of a row of numbers:
    `times * row + plus` in the output `output`."""

    name: str
    share: float
    model: str
    terms: Mapping[str, Any]
    times: float = 1.0
    plus: float = 0.0
    n_rows: Sequence[int] = (1,)  # drawn from
    width: int = 4
    input: str = "row"
    output: str = "row"


@dataclass(frozen=True, slots=True)
class Offer:
    """`rate_per_s` requests a second for `seconds`, at 127.0.0.1:`port`; an answer is in time within `within_ms`."""

    port: int
    rate_per_s: float
    seconds: float
    classes: Sequence[Class]
    within_ms: float = math.inf
    seed: int = 1
    connections: int = 256  # opened beforehand
    patience_s: float = 30.0


@dataclass(slots=True)
class Latencies:
    """Percentiles in ms; nan where nothing was counted."""

    n: int = 0
    p50_ms: float = math.nan
    p99_ms: float = math.nan
    max_ms: float = math.nan

    @classmethod
    def of(cls, values_ms: array[float]) -> Latencies:
        if not values_ms:
            return cls()
        p50, p99, most = np.quantile(np.frombuffer(values_ms, np.float32), (0.5, 0.99, 1.0))
        return cls(len(values_ms), float(p50), float(p99), float(most))


@dataclass(slots=True)
class ClassTally:
    """What became of the requests of one class. `statuses` has HTTP statuses, and `hung`, `cut` and `wrong`."""

    offered: int = 0
    in_time: int = 0  # answered with 200 within the limit
    statuses: dict[str, int] = field(default_factory=dict)
    answered: Latencies = field(default_factory=Latencies)  # 200
    refused: Latencies = field(default_factory=Latencies)  # 429 and 503
    late: Latencies = field(default_factory=Latencies)  # 504
    refused_without_retry_after: int = 0
    said: dict[str, int] = field(default_factory=dict)  # the first words of errors


@dataclass(slots=True)
class Tally:
    """What became of all. `sent_late_p99_ms` is how far the load itself was behind; `processor` its share of a core."""

    seconds: float
    classes: dict[str, ClassTally]
    sent_late_p99_ms: float
    processor: float
    connections: int

    @property
    def in_time_per_s(self) -> float:
        return sum(one.in_time for one in self.classes.values()) / self.seconds

    def count(self, *statuses: str) -> int:
        """Requests that ended so; all that ended, if none is named."""
        found = [one.statuses for one in self.classes.values()]
        return sum(n for counted in found for status, n in counted.items() if not statuses or status in statuses)


def offer(load: Offer, nice: int = 0) -> Tally:
    """Offers the load from a process of its own, and waits for what comes back. Raises CalledProcessError."""
    command = [sys.executable, "-m", "tests.benchmarks.open_loop"]
    if nice:
        command = ["nice", "-n", str(nice), *command]
    process = subprocess.run(
        command, input=json.dumps(asdict(load)), stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT
    )
    return _tally_of(json.loads(process.stdout))


async def offer_beside(load: Offer) -> Tally:
    """The same beside other tasks."""
    return await asyncio.to_thread(offer, load)


def _tally_of(told: dict[str, Any]) -> Tally:
    latencies = ("answered", "refused", "late")
    classes = {
        name: ClassTally(**one | {key: Latencies(**one[key]) for key in latencies})
        for name, one in told.pop("classes").items()
    }
    return Tally(classes=classes, **told)


# --- the process

_DIGITS = str.maketrans("0123456789", "#" * 10)


@dataclass(slots=True)
class _Prepared:
    """A request's bytes, and the numbers that a right answer has."""

    sent: bytes
    expected: list[float]


class _Counter:
    """What one class saw."""

    def __init__(self, class_: Class, load: Offer, rng: np.random.Generator) -> None:
        self.class_ = class_
        self.tally = ClassTally()
        self.answered_ms, self.refused_ms, self.late_ms = array("f"), array("f"), array("f")
        self.prepared = [_prepare(class_, load.port, rng) for _ in range(2000)]
        self._within_ms = load.within_ms

    def count(self, status: str, took_ms: float) -> None:
        statuses = self.tally.statuses
        statuses[status] = statuses.get(status, 0) + 1
        if status == "200":
            self.answered_ms.append(took_ms)
            self.tally.in_time += took_ms <= self._within_ms
        elif status in ("429", "503"):
            self.refused_ms.append(took_ms)
        elif status == "504":
            self.late_ms.append(took_ms)

    def note(self, said: str) -> None:
        """Counts what errors say, with their numbers blanked."""
        if said in self.tally.said or len(self.tally.said) < 100:
            self.tally.said[said] = self.tally.said.get(said, 0) + 1

    def done(self) -> ClassTally:
        self.tally.answered = Latencies.of(self.answered_ms)
        self.tally.refused = Latencies.of(self.refused_ms)
        self.tally.late = Latencies.of(self.late_ms)
        return self.tally


def _prepare(class_: Class, port: int, rng: np.random.Generator) -> _Prepared:
    n_rows = int(rng.choice(list(class_.n_rows)))
    row = rng.integers(0, 1 << 16, n_rows * class_.width).astype(np.float32) / 16
    tensor = {"name": class_.input, "shape": [n_rows, class_.width], "datatype": "FP32", "data": row.tolist()}
    body = orjson.dumps({"inputs": [tensor], "parameters": dict(class_.terms)})
    head = (
        f"POST /v2/models/{class_.model}/infer HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return _Prepared(head.encode() + body, (row * class_.times + class_.plus).tolist())


class _Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, load: _Load) -> None:
        self._load = load
        self._transport: asyncio.Transport | None = None
        self._heard = b""
        self._of: tuple[_Counter, _Prepared, float] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport

    def send(self, counter: _Counter, request: _Prepared, due_s: float) -> None:
        assert self._transport is not None
        self._of = counter, request, due_s
        self._load.under_way[self] = due_s
        self._transport.write(request.sent)

    def data_received(self, data: bytes) -> None:
        self._heard = heard = self._heard + data if self._heard else data
        end = heard.find(b"\r\n\r\n")
        if end < 0:
            return
        head = heard[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(heard) < end + 4 + length or self._of is None:
            return
        counter, request, due_s = self._of
        status = heard[9:12].decode()
        took_ms = (time.perf_counter() - due_s) * 1e3
        body = heard[end + 4 :]
        if status == "200" and not _is_right(body, counter.class_.output, request.expected):
            status = WRONG
        counter.count(status, took_ms)
        if status in ("429", "503") and b"retry-after:" not in head:
            counter.tally.refused_without_retry_after += 1
        if status != "200":
            counter.note(f"{status} {body[:160].decode(errors='replace').translate(_DIGITS)}")
        self._heard, self._of = b"", None
        self._load.free(self)
        if b"connection: close" in head:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end(CUT)

    def close(self, as_what: str = CUT) -> None:
        self._end(as_what)
        if self._transport is not None:
            self._transport.close()

    def _end(self, as_what: str) -> None:
        if self._of is not None:
            counter, _, due_s = self._of
            counter.count(as_what, (time.perf_counter() - due_s) * 1e3)
            self._of = None
        self._load.lost(self)


def _is_right(body: bytes, output: str, expected: list[float]) -> bool:
    data = next((made["data"] for made in orjson.loads(body)["outputs"] if made["name"] == output), None)
    if data is None or len(data) != len(expected):
        return False
    return all(abs(given - right) <= 1e-3 + 1e-5 * abs(right) for given, right in zip(data, expected, strict=True))


class _Load:
    """The load as it goes out."""

    def __init__(self, load: Offer) -> None:
        self._load = load
        self._rng = random.Random(load.seed)
        numbers = np.random.default_rng(load.seed)
        self._counters = [_Counter(class_, load, numbers) for class_ in load.classes]
        self._shares = [class_.share for class_ in load.classes]
        self._idle: list[_Connection] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._n_opened = 0
        self._behind_ms = array("f")
        self.under_way: dict[_Connection, float] = {}

    async def run(self) -> Tally:
        load, loop = self._load, asyncio.get_running_loop()
        for _ in range(load.connections):
            self._idle.append(await self._open())
        watching = loop.create_task(self._watch())
        used_s = time.process_time()
        due_s = began_s = time.perf_counter()
        while True:
            due_s += self._rng.expovariate(load.rate_per_s)
            if due_s - began_s > load.seconds:
                break
            wait_s = due_s - time.perf_counter()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._go(due_s)
        await asyncio.sleep(max(0.0, began_s + load.seconds - time.perf_counter()))
        seconds, used_s = time.perf_counter() - began_s, time.process_time() - used_s
        while self.under_way or self._opening:  # noqa: ASYNC110  # this is no place to be quick
            await asyncio.sleep(0.01)
        watching.cancel()
        for connection in self._idle.copy():
            connection.close()
        return Tally(
            seconds,
            {counter.class_.name: counter.done() for counter in self._counters},
            Latencies.of(self._behind_ms).p99_ms,
            used_s / seconds,
            self._n_opened,
        )

    def _go(self, due_s: float) -> None:
        (counter,) = self._rng.choices(self._counters, self._shares)
        request = self._rng.choice(counter.prepared)
        counter.tally.offered += 1
        if self._idle:
            self._behind_ms.append((time.perf_counter() - due_s) * 1e3)
            self._idle.pop().send(counter, request, due_s)
        else:
            task = asyncio.get_running_loop().create_task(self._go_anew(counter, request, due_s))
            self._opening.add(task)
            task.add_done_callback(self._opening.discard)

    async def _go_anew(self, counter: _Counter, request: _Prepared, due_s: float) -> None:
        try:
            async with asyncio.timeout(self._load.patience_s):
                connection = await self._open()
        except OSError:  # TimeoutError is one
            counter.count(CUT, (time.perf_counter() - due_s) * 1e3)
            return
        self._behind_ms.append((time.perf_counter() - due_s) * 1e3)
        connection.send(counter, request, due_s)

    async def _open(self) -> _Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._load.port)
        self._n_opened += 1
        return connection

    def free(self, connection: _Connection) -> None:
        self.under_way.pop(connection, None)
        self._idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self.under_way.pop(connection, None)
        if connection in self._idle:
            self._idle.remove(connection)

    async def _watch(self) -> None:
        """Gives up on what hangs."""
        while True:
            await asyncio.sleep(0.5)
            before_s = time.perf_counter() - self._load.patience_s
            for connection in [one for one, due_s in self.under_way.items() if due_s < before_s]:
                connection.close(HUNG)


def main() -> None:
    told = json.load(sys.stdin)
    load = Offer(**told | {"classes": [Class(**one) for one in told["classes"]]})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        tally = runner.run(_Load(load).run())
    print(json.dumps(asdict(tally)))


if __name__ == "__main__":
    main()
