"""Small lineages for tests."""

from __future__ import annotations

import hashlib

from lineage.graph.family import Family, family_of
from lineage.graph.records import Column, DatasetId, DataSignature, Edge, EdgeKind, Moments, Version, VersionId


def id_of(name: str) -> VersionId:
    """An id that is always the same for the name."""
    return VersionId(hashlib.sha256(name.encode()).hexdigest())


def data_of(name: str, n_rows: int = 1_000) -> DataSignature:
    columns = (Column("pixels", "FP32", (64,), Moments(n_rows * 64, mean=0.3, variance=0.1)), Column("label", "INT64"))
    return DataSignature(DatasetId(hashlib.sha256(f"data {name}".encode()).hexdigest()), n_rows, columns)


def digits_family() -> Family:
    """A base; two fine-tunes, one of which drifted and was repaired; one quantised; a merge of two; a fusion."""
    clean, noisy = data_of("clean"), data_of("noisy", 200)
    versions = [
        Version(id_of("base"), "digits", "1", clean, 1_700_000_000.0),
        Version(id_of("tuned"), "digits", "2", noisy, 1_700_000_100.0),
        Version(id_of("other"), "digits", "3", noisy, 1_700_000_200.0),
        Version(id_of("small"), "digits-small", "1", None, 1_700_000_300.0),
        Version(id_of("repaired"), "digits", "4", noisy, 1_700_000_400.0),
        Version(id_of("merged"), "", "", None, 1_700_000_500.0),
        Version(id_of("fused"), "digits & co <fast>", "1", None, 1_700_000_600.0),
    ]

    def edge(parent: str, child: str, kind: EdgeKind, **more: float) -> Edge:
        params = {"epochs": 3, "layers": ["2.weight"], "how": 'by "hand" & <care>'}
        return Edge(id_of(parent), id_of(child), kind, params, more, noisy, {"psi": {"pixels": 0.31}}, 1_700_000_050.0)

    edges = [
        edge("base", "tuned", EdgeKind.FINE_TUNE, accuracy=0.97, loss=0.1),
        edge("base", "other", EdgeKind.FINE_TUNE, accuracy=0.95),
        edge("tuned", "small", EdgeKind.QUANTISE, accuracy=0.96),
        edge("other", "repaired", EdgeKind.REPAIR, accuracy=0.98),
        edge("base", "repaired", EdgeKind.REPAIR, accuracy=0.98),
        edge("tuned", "merged", EdgeKind.MERGE),
        edge("repaired", "merged", EdgeKind.MERGE),
        edge("small", "fused", EdgeKind.FUSE),
    ]
    return family_of(versions, edges)
