"""The lineage graph: which model version was made from which others, how, on what data, and how well that went.

A version is known by the hash of its tensors, an edge says which transformation led from one to another. Both are only
ever added, to a store in SQL; a graph in memory follows it and answers questions.

    lineage = open_lineage("sqlite:///lineage.db")                      # lineage.graph.lineage
    lineage.store.add(child, [Edge(parent.id, child.id, EdgeKind.FINE_TUNE, params={"epochs": 3})])
    lineage.graph().ancestors(child.id)
    lineage.nearest_healthy_ancestor(child.id, drift_from, at_most=0.1)

The records alone are imported here: they are all that many need, and numba and SQLAlchemy take half a second.

records.py     the nouns: versions, signatures of training data, edges
signatures.py  the signature of training data, from arrays
codec.py       all of these as plain data and back

lineage.py     a store and its graph together: where to begin
store.py       the contract of stores
facts.py       what they keep, and which of it an addition brings
memory.py      a store in memory
sql.py         the store in SQL
graph.py       the graph in memory: ancestors, impact, cascades, paths
arrows.py      its edges as arrays, and how they are walked

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
