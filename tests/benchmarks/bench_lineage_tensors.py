"""What a family of networks costs to keep, how often a claimed parent is judged rightly, and Cypher on a large lineage.

    python -m tests.benchmarks.bench_lineage_tensors [--versions N]

The family are networks for digits (64-256-128-10): a base, and versions of it in which some layers were trained
further, all layers were, or weights were rounded or pruned. Each is kept in one store, and, for comparison, in a
safetensors file of its own. Claims of parentage are true ones, and false ones between networks that were trained apart.
"""

from __future__ import annotations

import argparse
import hashlib
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from lineage.graph.blobs import FolderBlobs
from lineage.graph.differences import diff_stored
from lineage.graph.exports.cypher import CypherGraph
from lineage.graph.memory import MemoryLineageStore
from lineage.graph.parentage import check_parentage
from lineage.graph.records import Edge, EdgeKind, Version, VersionId
from lineage.graph.tensors import TensorStore
from tests.lineage.graph.networks import Tensors, accuracy, fresh, trained

_HIDDEN = (256, 128)
_FIRST, _MIDDLE, _HEAD = (("0.weight", "0.bias"), ("1.weight", "1.bias"), ("2.weight", "2.bias"))
_SEEDS = range(6)


def rounded(tensors: Tensors) -> Tensors:
    """To 256 levels, matrix by matrix."""
    made = {}
    for name, array in tensors.items():
        step = np.ptp(array) / 255 if array.ndim > 1 else 0.0
        made[name] = (np.round(array / step) * step).astype(np.float32) if step else array
    return made


def pruned(tensors: Tensors) -> Tensors:
    """Half of each matrix."""
    return {
        name: np.where(np.abs(array) < np.median(np.abs(array)), np.float32(0), array) if array.ndim > 1 else array
        for name, array in tensors.items()
    }


def family(base: Tensors) -> list[tuple[str, EdgeKind, list[Tensors]]]:
    """What was done, as which kind of edge, and the versions that it made."""

    def tuned(*frozen: str) -> list[Tensors]:
        return [trained(base, seed, 300, frozen=frozen, noise=0.4) for seed in _SEEDS]

    return [
        ("head trained further", EdgeKind.FINE_TUNE, tuned(*_FIRST, *_MIDDLE)),
        ("last two layers", EdgeKind.FINE_TUNE, tuned(*_FIRST)),
        ("first layer", EdgeKind.SPECIALISE, tuned(*_MIDDLE, *_HEAD)),
        ("all layers", EdgeKind.FINE_TUNE, tuned()),
        ("rounded", EdgeKind.QUANTISE, [rounded(base)]),
        ("half pruned", EdgeKind.PRUNE, [pruned(base)]),
    ]


def measure_store(folder: Path, base: Tensors, made: list[tuple[str, EdgeKind, list[Tensors]]]) -> None:
    store = TensorStore(FolderBlobs(folder / "store"))
    first = store.put(base)
    print(f"the base: {first.n_bytes / 1e3:,.0f} kB, right on {accuracy(base):.1%} of the digits")
    print(
        f"{'what was done':24}{'versions':>9}{'right':>8}   kB each: {'alone':>6}{'changed':>9}{'kept':>8}{'saved':>8}"
    )
    contents = [first.content]
    for what, _, versions in made:
        before = store.figures()
        contents += [store.put(version).content for version in versions]
        after = store.figures()
        alone, kept = after.bytes_named - before.bytes_named, after.bytes_kept - before.bytes_kept
        changed = after.bytes_distinct - before.bytes_distinct
        right = float(np.mean([accuracy(version) for version in versions]))
        alone_kb, changed_kb, kept_kb = (n / len(versions) / 1e3 for n in (alone, changed, kept))
        sizes = f"{alone_kb:18,.1f}{changed_kb:9,.1f}{kept_kb:8,.1f}{1 - kept / alone:8.1%}"
        print(f"{what:24}{len(versions):9}{right:8.1%}{sizes}")
    figures = store.figures()
    print(
        f"the family of {figures.n_versions}: {figures.bytes_named / 1e3:,.0f} kB by themselves,"
        f" {figures.bytes_kept / 1e3:,.0f} kB kept: {figures.saved_share:.1%} saved,"
        f" {figures.bytes_kept / figures.bytes_distinct - 1:.1%} more than what differs"
        f" ({figures.n_tensors} tensors for {figures.n_named} names)"
    )
    print(f"diff of the base and the last but two: {diff_stored(store, first.content, contents[-3]).sentence()}")


def measure_speed(folder: Path) -> None:
    rng = np.random.default_rng(0)
    large: Tensors = {f"{i}.weight": rng.normal(size=(1024, 4096)).astype(np.float32) for i in range(8)}
    store = TensorStore(FolderBlobs(folder / "large"))
    path = folder / "large.safetensors"
    n_mb = sum(array.nbytes for array in large.values()) / 1e6
    content = store.put(large).content
    save_file(large, path)

    def read(load: Callable[[], dict[str, npt.NDArray[Any]]]) -> float:
        return sum(float(array[0, 0]) for array in load().values())

    for what, doing in (
        ("stored again, nothing new", lambda: store.put(large)),
        ("loaded and checked", lambda: read(lambda: store.load(content))),
        ("safetensors: loaded, unchecked", lambda: read(lambda: load_file(path))),
    ):
        begun_s = time.perf_counter()
        doing()
        print(f"{n_mb:.0f} MB {what}: {n_mb / (time.perf_counter() - begun_s):,.0f} MB/s")


def measure_claims(base: Tensors, made: list[tuple[str, EdgeKind, list[Tensors]]]) -> None:
    rng = np.random.default_rng(0)
    strangers = [trained(fresh(100 + seed, *_HIDDEN), seed, 300) for seed in _SEEDS]
    held = [check_parentage(kind, version, [base], rng).holds for _, kind, versions in made for version in versions]
    of_strangers = [
        check_parentage(kind, change(stranger), [base], rng).holds
        for stranger in strangers
        for kind, change in ((EdgeKind.FINE_TUNE, dict), (EdgeKind.QUANTISE, rounded), (EdgeKind.PRUNE, pruned))
    ]
    print(
        f"claims of parentage: {held.count(True)} of {len(held)} true ones hold,"
        f" {of_strangers.count(True)} of {len(of_strangers)} false ones do"
    )


def measure_cypher(n: int) -> None:
    rng = np.random.default_rng(0)
    ids = [VersionId(hashlib.sha256(str(i).encode()).hexdigest()) for i in range(n)]
    versions = [Version(id, "digits", str(i)) for i, id in enumerate(ids)]
    parents = [int(rng.integers(max(0, i - 1_000), i)) for i in range(1, n)]
    edges = [
        Edge(ids[parent], ids[i], EdgeKind.FINE_TUNE, metrics={"accuracy": 0.9}) for i, parent in enumerate(parents, 1)
    ]
    store = MemoryLineageStore()
    store.add_all(versions, edges)
    with CypherGraph(store) as graph:
        for what, statement in (
            ("the copy made, and versions counted", "MATCH (v:Version) RETURN count(*)"),
            ("ancestors of the last", f"MATCH (a)-[:BECAME*]->(:Version {{id: '{ids[-1]}'}}) RETURN count(*)"),
            ("metrics of a hundred", "MATCH (v:Version)-[m:MEASURED]->(d) RETURN v.id, d.name, m.value LIMIT 100"),
        ):
            begun_s = time.perf_counter()
            found = graph.query(statement)
            print(f"Cypher on {n:,} versions, {what}: {1e3 * (time.perf_counter() - begun_s):,.0f} ms, {found.rows[0]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--versions", type=int, default=100_000, help="of the lineage that Cypher is asked about")
    chosen = parser.parse_args()
    base = trained(fresh(0, *_HIDDEN), 0, 800)
    made = family(base)
    with tempfile.TemporaryDirectory() as folder:
        measure_store(Path(folder), base, made)
        measure_speed(Path(folder))
    measure_claims(base, made)
    measure_cypher(chosen.versions)


if __name__ == "__main__":
    main()
