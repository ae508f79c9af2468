"""Versions and edges by short names, and families of them for property tests."""

from __future__ import annotations

import hashlib

from hypothesis import strategies as st

from lineage.graph.records import Column, DatasetId, DataSignature, Edge, EdgeKind, Moments, Version, VersionId


def version_id(name: object) -> VersionId:
    return VersionId(hashlib.sha256(f"version {name}".encode()).hexdigest())


def dataset_id(name: object) -> DatasetId:
    return DatasetId(hashlib.sha256(f"data {name}".encode()).hexdigest())


def version(name: object, made_s: float = 0.0, data: DataSignature | None = None) -> Version:
    return Version(version_id(name), f"model-{name}", "1", data, made_s)


def edge(parent: object, child: object, kind: EdgeKind = EdgeKind.FINE_TUNE, **said: object) -> Edge:
    return Edge(version_id(parent), version_id(child), kind, **said)  # type: ignore[arg-type]


def data(name: object, n_rows: int = 100) -> DataSignature:
    moments = Moments(n_rows, 0, 0.5, 1.25, -0.1, 3.0, -4.0, 4.0)
    pixels = Column("pixels", "FP32", (8, 8), moments, b"a sketch \x00\n of " + str(name).encode())
    return DataSignature(dataset_id(name), n_rows, (pixels, Column("text", "BYTES")))


@st.composite
def families(draw: st.DrawFn, most: int = 12) -> tuple[list[Version], list[Edge]]:
    """Versions, and edges without cycles among them, in any order. Some share what they were trained on."""
    n = draw(st.integers(1, most))
    made_s = draw(st.lists(st.integers(0, 3), min_size=n, max_size=n))
    datasets = draw(st.lists(st.sampled_from(["", "a", "b"]), min_size=n, max_size=n))
    versions = [version(i, float(made_s[i]), data(datasets[i]) if datasets[i] else None) for i in range(n)]
    pairs = [(a, b) for b in range(n) for a in range(b)]
    kinds = st.sampled_from(EdgeKind)
    chosen = draw(st.lists(st.tuples(st.sampled_from(pairs), kinds), unique=True, max_size=3 * n)) if pairs else []
    edges = [edge(a, b, kind, data=data("c") if (a + b) % 5 == 0 else None) for (a, b), kind in chosen]
    return draw(st.permutations(versions)), draw(st.permutations(edges))
