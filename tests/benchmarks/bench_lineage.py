"""A lineage of 100,000 versions: what one more takes, and how soon the nearest healthy ancestor is found.

    python -m tests.benchmarks.bench_lineage [--versions N] [--shapes tree,chain,...] [--postgres]

Four shapes: a `tree` in which every version hails from one of the last 50 and every tenth is a merge, a `chain`, a
`star` (all from one), and `merges`, where each hails from two of the last thousand. Each lies in a database of its own
on disk; SQLite is durable when an insert returns (write-ahead log, synchronous FULL). Questions are for versions drawn
at random, each with the look whether the store has something new. How many versions are healthy is drawn, too: one in
three, one in a hundred, or the first version alone, so that all ancestors are looked at; drift comes from a function, a
dictionary or an array. Beside it, in the same run, the same search on networkx.
The terms: the nearest healthy ancestor within 10 ms (p99), an insert within 5 ms (p50). A missed term is printed; with
`--strict` it also is the exit status.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import count

import networkx as nx
import numpy as np
import psutil

from lineage.graph.graph import Drift
from lineage.graph.lineage import Lineage
from lineage.graph.records import Column, DatasetId, DataSignature, Edge, EdgeKind, Moments, Version, VersionId
from lineage.graph.sql import SqlLineageStore
from tests.postgres import postgres_server

MOST_MS, MOST_INSERT_MS = 10.0, 5.0
SHAPES = ("tree", "chain", "star", "merges")
N_COLUMNS, SKETCH_BYTES = 64, 1_000
HEALTHY = 0.1
DATA = [DataSignature(DatasetId(sha256(f"rows {i}".encode()).hexdigest()), 10_000) for i in range(50)]


@dataclass(frozen=True, slots=True)
class Times:
    """Of many calls, ms; and of the processor time alone, which other processes disturb less."""

    p50: float
    p99: float
    most: float
    cpu_p50: float
    cpu_p99: float

    def __str__(self) -> str:
        processor = f"(processor: {self.cpu_p50:.2f}, {self.cpu_p99:.2f})"
        return f"p50 {self.p50:.2f}, p99 {self.p99:.2f}, most {self.most:.1f} ms {processor}"


def parents(shape: str, i: int, rng: random.Random) -> set[int]:
    """What version `i` was made from."""
    if not i:
        return set()
    if shape == "chain":
        return {i - 1}
    if shape == "star":
        return {0}
    if shape == "merges":
        return {rng.randrange(max(0, i - 1_000), i) for _ in range(2)}
    near = range(max(0, i - 50), i)
    return {rng.choice(near), *([rng.choice(near)] if rng.random() < 0.1 else [])}


def id_of(i: int) -> VersionId:
    return VersionId(sha256(f"version {i}".encode()).hexdigest())


def version(i: int, data: DataSignature | None = None) -> Version:
    return Version(id_of(i), "digits", str(i), data, 1.7e9 + i)


def edges(shape: str, i: int, rng: random.Random) -> list[Edge]:
    found = sorted(parents(shape, i, rng))
    kind = EdgeKind.MERGE if len(found) > 1 else EdgeKind.FINE_TUNE
    params = {"learning_rate": 1e-3, "epochs": 3, "seed": i}
    return [Edge(id_of(p), id_of(i), kind, params, {"accuracy": 0.95}, made_s=1.7e9 + i) for p in found]


def signature(i: int, rng: random.Random) -> DataSignature:
    moments = Moments(10_000, 0, 0.5, 1.0, 0.0, 3.0, -4.0, 4.0)
    columns = (Column(f"c{j}", "FP32", (), moments, rng.randbytes(SKETCH_BYTES)) for j in range(N_COLUMNS))
    return DataSignature(DatasetId(sha256(f"data {i}".encode()).hexdigest()), 10_000, tuple(columns))


def measured(calls: Sequence[Callable[[], object]]) -> Times:
    """How long each takes, pauses of the garbage collector included."""
    gc.collect()
    took, cpu = [], []
    for call in calls:
        began, began_cpu = time.perf_counter(), time.thread_time()
        call()
        took.append((time.perf_counter() - began) * 1e3)
        cpu.append((time.thread_time() - began_cpu) * 1e3)
    return Times(*(float(value) for value in (*np.percentile(took, (50, 99, 100)), *np.percentile(cpu, (50, 99)))))


def filled(store: SqlLineageStore, shape: str, n: int) -> None:
    rng = random.Random(1)
    all_edges = [edge for i in range(n) for edge in edges(shape, i, rng)]
    began = time.perf_counter()
    store.add_all([version(i, DATA[i * len(DATA) // n]) for i in range(n)], all_edges)
    took_s = time.perf_counter() - began
    print(f"{shape}: {n:,} versions, {len(all_edges):,} edges, written at once in {took_s:.1f} s", flush=True)


def memory_mib() -> float:
    gc.collect()
    return float(psutil.Process().memory_info().rss) / 2**20


def asked(lineage: Lineage, n: int, n_asked: int) -> bool:
    """Prints how long questions take; whether the term is met by all."""
    before = memory_mib()
    began = time.perf_counter()
    graph = lineage.graph()
    print(f"  read into memory in {time.perf_counter() - began:.1f} s, {memory_mib() - before:.0f} MiB")
    rng = random.Random(2)
    ids = [id_of(rng.randrange(n // 2, n)) for _ in range(n_asked)]
    n_above = [len(graph.ancestors(id_)) for id_ in ids[:50]]
    print(f"  ancestors of a version: {np.mean(n_above):,.0f} on average")
    met = True
    for what, share in (("one in three", 1 / 3), ("one in a hundred", 0.01), ("the first alone", 0.0)):
        drift = {id_of(i): 1.0 if rng.random() >= share else 0.05 for i in range(n)}
        drift[id_of(0)] = 0.05
        array = np.array([drift[id_] for id_ in graph.versions()])
        ways: dict[str, Drift] = {"function": drift.__getitem__, "dictionary": drift, "array": array}
        for name, way in ways.items():
            times = measured(
                [lambda id_=id_, way=way: lineage.graph().nearest_healthy_ancestor(id_, way, HEALTHY) for id_ in ids]  # type: ignore[misc]
            )
            met &= told(f"nearest healthy ancestor, healthy {what}, {name}", times, times.p99, MOST_MS)
    by_data = {data.id: 1.0 for data in DATA} | {DATA[0].id: 0.05}
    times = measured(
        [lambda id_=id_: lineage.graph().nearest_ancestor_trained_on(id_, by_data.get, HEALTHY) for id_ in ids]  # type: ignore[misc]
    )
    met &= told("nearest ancestor trained on healthy data, the first of 50 alone", times, times.p99, MOST_MS)
    first, last = id_of(0), id_of(n - 1)
    pairs = list(zip(ids, reversed(ids), strict=True))[:100]
    for name, calls in (
        ("nearest common ancestor of two", [lambda a=a, b=b: graph.nearest_common_ancestor(a, b) for a, b in pairs]),
        ("path between two", [lambda a=a, b=b: graph.path(a, b) for a, b in pairs[:20]]),
        ("what is affected by the first", [lambda: graph.impact([first])] * 3),
        ("order of a cascade from the first", [lambda: graph.cascade([first])] * 3),
        ("all ancestors of the last, in SQL", [lambda: lineage.store.ancestors(last)] * 3),
    ):
        print(f"  {name}: {measured(calls)}", flush=True)
    return met


def told(what: str, times: Times, ms: float, most_ms: float) -> bool:
    is_met = ms <= most_ms
    print(f"  {what}: {times}{'' if is_met else f'; MISSED: {most_ms:.0f} ms'}", flush=True)
    return is_met


def inserted(lineage: Lineage, shape: str, n: int, n_inserts: int) -> bool:
    """Prints how long it takes to add one version with its edges; whether the term is met."""
    rng = random.Random(3)
    fresh = count(n)
    plain = [(version(i), edges(shape, i, rng)) for i in (next(fresh) for _ in range(n_inserts))]
    full = [(version(i, signature(i, rng)), edges(shape, i, rng)) for i in (next(fresh) for _ in range(n_inserts))]
    store, met = lineage.store, True
    for what, items in (
        ("", plain),
        (f" with {N_COLUMNS} columns, {N_COLUMNS * SKETCH_BYTES // 1000} kB of sketches", full),
    ):
        times = measured([lambda v=v, e=e: store.add(v, e) for v, e in items])  # type: ignore[misc]
        met &= told(f"insert{what}", times, times.p50, MOST_INSERT_MS)
    times = measured([lambda: lineage.graph()] * 1)
    print(f"  following these {2 * n_inserts} inserts: {times.most:.1f} ms")
    return met


def bare_disk(folder: str, n: int) -> None:
    """What the disk itself takes, for comparison: 4 KiB at the end of a file, and on disk."""
    with open(f"{folder}/bare", "wb") as file:

        def write() -> None:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())

        print(f"  4 KiB written and synchronised by itself: {measured([write] * n)}")


def with_networkx(shape: str, n: int, n_asked: int) -> None:
    """The same search on a `networkx.DiGraph`."""
    rng = random.Random(1)
    before = memory_mib()
    began = time.perf_counter()
    graph = nx.DiGraph()
    ids = [id_of(i) for i in range(n)]
    graph.add_nodes_from(ids)
    for i in range(n):
        graph.add_edges_from((ids[p], ids[i]) for p in sorted(parents(shape, i, rng)))
    took_s = time.perf_counter() - began
    print(f"  networkx: made in {took_s:.1f} s, {memory_mib() - before:.0f} MiB")
    rng = random.Random(2)
    chosen = [ids[rng.randrange(n // 2, n)] for _ in range(n_asked)]
    for what, share in (("one in three", 1 / 3), ("one in a hundred", 0.01), ("the first alone", 0.0)):
        drift = {id_: 1.0 if rng.random() >= share else 0.05 for id_ in ids}
        drift[ids[0]] = 0.05

        def search(start: VersionId, drift: dict[VersionId, float] = drift) -> VersionId | None:
            for level in nx.bfs_layers(graph.reverse(copy=False), start):
                healthy = [id_ for id_ in level if id_ != start and drift[id_] <= HEALTHY]
                if healthy:
                    return min(healthy, key=lambda id_: (drift[id_], id_))
            return None

        times = measured([lambda id_=id_: search(id_) for id_ in chosen])  # type: ignore[misc]
        print(f"  networkx: nearest healthy ancestor, healthy {what}: {times}", flush=True)


@contextmanager
def databases(folder: str, on_postgres: bool) -> Iterator[Callable[[], str]]:
    """Gives the URLs of new databases."""
    if on_postgres:
        with postgres_server() as server:
            yield server.database
        return
    numbers = count()
    yield lambda: f"sqlite:///{folder}/{next(numbers)}.db"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100_000)
    parser.add_argument("--shapes", type=lambda text: text.split(","), default=list(SHAPES))
    parser.add_argument("--asked", type=int, default=300, help="questions of each sort")
    parser.add_argument("--inserts", type=int, default=300, help="of each sort")
    parser.add_argument(
        "--folder", default=None, help="where the databases are made; on the disk that is to be measured"
    )
    parser.add_argument(
        "--postgres", action="store_true", help="on PostgreSQL (not synchronised to disk) instead of SQLite"
    )
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    met = True
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder, databases(folder, chosen.postgres) as new_database:
        for shape in chosen.shapes:
            store = SqlLineageStore(new_database())
            filled(store, shape, chosen.versions)
            lineage = Lineage(store)
            met &= asked(lineage, chosen.versions, chosen.asked)
            met &= inserted(lineage, shape, chosen.versions, chosen.inserts)
            lineage.close()
            with_networkx(shape, chosen.versions, min(chosen.asked, 30))
        bare_disk(folder, chosen.inserts)
    if chosen.strict and not met:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
