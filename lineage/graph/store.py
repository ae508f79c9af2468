"""The contract of lineage stores: versions and edges are added, and never changed or taken away."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence

from lineage.errors import LineageRefused, UnknownVersion
from lineage.graph.facts import Changes
from lineage.graph.records import DatasetId, DataSignature, Edge, SignatureId, Version, VersionId

PAGE_FACTS = 50_000


class LineageStore(ABC):
    """Keeps a lineage. Methods may be called from several threads; each raises StoreUnavailable when the store fails,
    and then nothing was written.

    A version is known by the hash of its tensors. The same tensors added again are accepted once: another name is kept
    beside the first, training data where none were known are kept too, and other training data are refused; `made_s`
    stays that of the first time.
    """

    def add(self, version: Version, edges: Iterable[Edge] = ()) -> bool:
        """Adds a version with the edges that lead to it, all or nothing; whether any of it is new.

        When this returns it is durable; doing it again changes nothing. Raises, with nothing written, LineageRefused
        for an edge to another version, and what `add_all` raises.
        """
        edges = tuple(edges)
        for edge in edges:
            if edge.child != version.id:
                raise LineageRefused(f"the edge {edge} does not lead to {version}.", hint="Use `link`, or `add_all`.")
        return self.add_all([version], edges) > 0

    def link(self, *edges: Edge) -> bool:
        """Adds edges between versions that are known, all or nothing; whether any is new. Raises as `add_all`."""
        return self.add_all((), edges) > 0

    @abstractmethod
    def add_all(self, versions: Sequence[Version], edges: Sequence[Edge] = ()) -> int:
        """Adds versions and edges, in any order, all or nothing; returns how many facts were new.

        When this returns it is durable; doing it again changes nothing. Raises, with nothing written, UnknownVersion
        for an edge from or to a version that is neither known nor among these, LineageCycle, and LineageConflict for
        what is known with other content.
        """

    @abstractmethod
    def versions(self, ids: Iterable[VersionId]) -> dict[VersionId, Version]:
        """Those of these versions that are known, with the first name of each."""

    @abstractmethod
    def names(self, version: VersionId) -> tuple[tuple[str, str], ...]:
        """Under which names and numbers a version is registered in MLflow, the first one first."""

    @abstractmethod
    def find(self, name: str, number: str) -> VersionId | None:
        """The version of this name and number in MLflow; None when it is not known."""

    @abstractmethod
    def signature(self, id: SignatureId) -> DataSignature:
        """A signature by its id. Raises UnknownVersion."""

    @abstractmethod
    def edges_into(self, children: Iterable[VersionId]) -> tuple[Edge, ...]:
        """The edges that lead to these versions, in the order of their adding."""

    @abstractmethod
    def edges_out_of(self, parents: Iterable[VersionId]) -> tuple[Edge, ...]:
        """The edges that lead away from these versions, in the order of their adding."""

    @abstractmethod
    def ancestors(self, version: VersionId) -> tuple[VersionId, ...]:
        """What a version was made from, directly or not, in the order of their adding. Raises UnknownVersion."""

    @abstractmethod
    def descendants(self, version: VersionId) -> tuple[VersionId, ...]:
        """What was made from a version, directly or not, in the order of their adding. Raises UnknownVersion."""

    @abstractmethod
    def trained_on(self, dataset: DatasetId) -> tuple[VersionId, ...]:
        """The versions that were trained, or made by a transformation, on these rows, in the order of their adding."""

    @abstractmethod
    def counter(self) -> int:
        """Rises with every fact that is added, by one; 0 while there is none."""

    @abstractmethod
    def changes(self, since: int = 0, limit: int = PAGE_FACTS) -> Changes:
        """The next facts after `since`, at most `limit`, in the order of their adding."""

    @abstractmethod
    def close(self) -> None:
        """Gives back what the store holds open."""

    def version(self, id: VersionId) -> Version:
        """A version by its id. Raises UnknownVersion."""
        found = self.versions([id]).get(id)
        if found is None:
            raise unknown(id)
        return found

    def edges(self) -> tuple[Edge, ...]:
        """All edges, in the order of their adding."""
        return self.edges_into(self.ids())

    def ids(self) -> tuple[VersionId, ...]:
        """All versions, in the order of their adding."""
        found: list[VersionId] = []
        since = 0
        while (page := self.changes(since)).counter > since:
            found.extend(node.id for node in page.nodes)
            since = page.counter
        return tuple(found)


def unknown(id: str) -> UnknownVersion:
    """The error for a version that is not in the lineage."""
    return UnknownVersion(f"the lineage knows no version {id[:64]}.", hint="Was it registered with its lineage?")
