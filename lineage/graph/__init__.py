"""The lineage graph: which model version was made from which others, how, on what data, and how well that went.

records.py     the nouns: versions, signatures of training data, edges

tensors.py     parameters, kept once per distinct tensor
blobs.py       where their bytes are kept
differences.py what became of each tensor from one version to another
parentage.py   whether weights bear out a claimed edge
rounding.py    whether one tensor is another, rounded
family.py      a part of the lineage, for pictures and exports
picture.py     a family as SVG
layout.py      where the versions of a picture stand
exports/       to OpenLineage, CycloneDX, Cypher and Neo4j, and from MLflow
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
