"""What a lineage store keeps: facts that are only ever added. And, decided purely, which facts an addition brings.

A store is asked what it knows of all that an addition mentions (`Known`), `news_of` says what of it is new, or why it
is refused, and the store writes that down.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter

from lineage.errors import LineageConflict, LineageCycle, UnknownVersion
from lineage.graph.records import DatasetId, DataSignature, Edge, EdgeKind, SignatureId, Version, VersionId

EdgeKey = tuple[VersionId, VersionId, EdgeKind]
Content = tuple[str, str, str, SignatureId | None]  # of an edge, as it is compared


@dataclass(frozen=True, slots=True)
class Node:
    """There is a version of this id, made then (seconds since 1970)."""

    id: VersionId
    made_s: float


@dataclass(frozen=True, slots=True)
class Named:
    """A version is registered in MLflow under this name and number."""

    version: VersionId
    name: str
    number: str


@dataclass(frozen=True, slots=True)
class Trained:
    """A version was trained on data of this signature."""

    version: VersionId
    signature: SignatureId
    dataset: DatasetId


@dataclass(frozen=True, slots=True)
class Link:
    """An edge without what it bears, but for the data of its transformation."""

    parent: VersionId
    child: VersionId
    kind: EdgeKind
    dataset: DatasetId | None = None


@dataclass(frozen=True, slots=True)
class Changes:
    """Facts in the order in which they were added. Go on with `counter`; while it is what was asked for, there is no
    more."""

    nodes: tuple[Node, ...] = ()
    names: tuple[Named, ...] = ()
    trained: tuple[Trained, ...] = ()
    links: tuple[Link, ...] = ()
    counter: int = 0


@dataclass(frozen=True, slots=True)
class Known:
    """What a store knows of the versions, names and edges that are mentioned; of others it need not speak."""

    versions: Collection[VersionId] = ()
    names: Mapping[tuple[str, str], VersionId] = field(default_factory=dict)
    trained: Mapping[VersionId, SignatureId] = field(default_factory=dict)
    edges: Mapping[EdgeKey, Content] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class News:
    """What is to be written. `suspects` are those of the new edges that could close a cycle with edges of the store:
    their children were there before."""

    nodes: tuple[Node, ...]
    names: tuple[Named, ...]
    trained: tuple[Trained, ...]
    signatures: Mapping[SignatureId, DataSignature]
    edges: tuple[Edge, ...]
    suspects: tuple[Edge, ...]

    @property
    def n_facts(self) -> int:
        """How many are numbered."""
        return len(self.nodes) + len(self.names) + len(self.trained) + len(self.edges)


def key_of(edge: Edge) -> EdgeKey:
    """What there is at most one edge of."""
    return edge.parent, edge.child, edge.kind


def content_of(edge: Edge) -> Content:
    """What an edge says, as texts that are equal if it says the same. When it was made does not count."""
    return (to_text(edge.params), to_text(edge.metrics), to_text(edge.drift), edge.data.id if edge.data else None)


def to_text(value: object) -> str:
    """Plain data as JSON, the same text for the same data. Pure ASCII without NUL: every database takes it."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def news_of(known: Known, versions: Sequence[Version], edges: Sequence[Edge]) -> News:
    """What adding these brings that is not known.

    A version that is known may be added again: another name, or its training data where none were known, is news then.
    Raises LineageConflict for other training data than known, a name that belongs to another version, and an edge
    that is known with other content; UnknownVersion for an edge from or to nowhere; LineageCycle for a cycle among
    the new edges alone.
    """
    ids: dict[VersionId, Node] = {}
    names: dict[tuple[str, str], Named] = {}
    trained: dict[VersionId, Trained] = {}
    signatures: dict[SignatureId, DataSignature] = {}
    for version in versions:
        if version.id not in known.versions:
            ids.setdefault(version.id, Node(version.id, version.made_s))
        if version.name:
            _add_name(version, known, names)
        if version.data is not None:
            _add_data(version, version.data, known, trained, signatures)
    new_edges: dict[EdgeKey, Edge] = {}
    contents: dict[EdgeKey, Content] = {}
    for edge in edges:
        key, content = key_of(edge), content_of(edge)
        for end in (edge.parent, edge.child):
            if end not in known.versions and end not in ids:
                raise UnknownVersion(
                    f"the edge {edge} needs version {end[:12]}, which the lineage does not know.",
                    hint="Add the parents before their children, or all of them at once.",
                )
        said = known.edges.get(key) or contents.get(key)
        if said is None:
            new_edges[key], contents[key] = edge, content
            if edge.data is not None and content[3] is not None:
                signatures[content[3]] = edge.data
        elif said != content:
            what = ", ".join(
                what for what, a, b in zip(("params", "metrics", "drift", "data"), said, content, strict=True) if a != b
            )
            raise LineageConflict(f"the edge {edge} is known with other {what}.", hint="What was said first stays.")
    _check_among(new_edges.values())
    return News(
        tuple(ids.values()),
        tuple(names.values()),
        tuple(trained.values()),
        signatures,
        tuple(new_edges.values()),
        tuple(edge for edge in new_edges.values() if edge.child in known.versions),
    )


def closed_by(edge: Edge) -> LineageCycle:
    """The error for an edge whose parent descends from its child."""
    return LineageCycle(
        f"the edge {edge} would close a cycle: {edge.parent[:12]} descends from {edge.child[:12]}.",
        hint="Was it meant the other way round?",
    )


def check_acyclic(edges: Iterable[tuple[VersionId, VersionId]]) -> None:
    """Raises LineageCycle, with the cycle, when these edges (parent, child) have one."""
    sorter: TopologicalSorter[VersionId] = TopologicalSorter()
    for parent, child in edges:
        sorter.add(child, parent)
    try:
        sorter.prepare()
    except CycleError as error:
        cycle = " -> ".join(str(id_)[:12] for id_ in error.args[1])
        raise LineageCycle(
            f"these edges go round in a cycle: {cycle}.", hint="No version is its own ancestor."
        ) from None


def _check_among(edges: Iterable[Edge]) -> None:
    ends = [(edge.parent, edge.child) for edge in edges]
    for parent, child in ends:
        if parent == child:
            raise LineageCycle(
                f"version {parent[:12]} is said to be its own parent.",
                hint="A transformation that changes no tensor makes no new version.",
            )
    if len(ends) > 1 and {parent for parent, _ in ends} & {child for _, child in ends}:
        check_acyclic(ends)


def _add_name(version: Version, known: Known, names: dict[tuple[str, str], Named]) -> None:
    key = version.name, version.number
    before = known.names.get(key) or (names[key].version if key in names else None)
    if before is None:
        names[key] = Named(version.id, *key)
    elif before != version.id:
        raise LineageConflict(
            f"{version} is version {before[:12]} already, and not {version.id[:12]}.",
            hint="In MLflow a number is given once; what it names does not change.",
        )


def _add_data(
    version: Version,
    data: DataSignature,
    known: Known,
    trained: dict[VersionId, Trained],
    signatures: dict[SignatureId, DataSignature],
) -> None:
    id_ = data.id
    before = known.trained.get(version.id) or (trained[version.id].signature if version.id in trained else None)
    if before is None:
        trained[version.id] = Trained(version.id, id_, data.dataset)
        signatures[id_] = data
    elif before != id_:
        raise LineageConflict(
            f"{version} is known with other training data (signature {before[:12]}, not {id_[:12]}).",
            hint="What was said first stays; the data of a transformation belong to its edge.",
        )
