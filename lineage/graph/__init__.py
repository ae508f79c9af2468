"""The lineage graph: which model version was made from which others, how, on what data, and how well that went.

records.py     the nouns: versions, signatures of training data, edges
"""

from lineage.graph.records import (
    Column,
    DatasetId,
    DataSignature,
    Edge,
    EdgeKind,
    Moments,
    SignatureId,
    Version,
    VersionId,
    id_of_parts,
)

__all__ = [
    "Column",
    "DataSignature",
    "DatasetId",
    "Edge",
    "EdgeKind",
    "Moments",
    "SignatureId",
    "Version",
    "VersionId",
    "id_of_parts",
]
