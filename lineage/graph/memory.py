"""A lineage store in memory, for tests and for what need not be kept."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from lineage.graph.facts import (
    Changes,
    EdgeKey,
    Known,
    Link,
    Named,
    News,
    Node,
    Trained,
    closed_by,
    content_of,
    key_of,
    news_of,
)
from lineage.graph.records import DatasetId, DataSignature, Edge, SignatureId, Version, VersionId
from lineage.graph.store import PAGE_FACTS, LineageStore, unknown

_Fact = Node | Named | Trained | Link
_NextOf = Callable[[VersionId], Iterable[VersionId]]


class MemoryLineageStore(LineageStore):
    """Everything in dictionaries, and the facts in a list."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._facts: list[_Fact] = []
        self._nodes: dict[VersionId, Node] = {}
        self._named: dict[tuple[str, str], VersionId] = {}
        self._names: dict[VersionId, list[tuple[str, str]]] = {}
        self._trained: dict[VersionId, SignatureId] = {}
        self._signatures: dict[SignatureId, DataSignature] = {}
        self._edges: dict[EdgeKey, Edge] = {}
        self._into: dict[VersionId, list[EdgeKey]] = {}
        self._out_of: dict[VersionId, list[EdgeKey]] = {}
        self._on: dict[DatasetId, list[VersionId]] = {}
        self._numbers: dict[VersionId | EdgeKey, int] = {}

    def add_all(self, versions: Sequence[Version], edges: Sequence[Edge] = ()) -> int:
        with self._lock:
            keys = {key_of(edge) for edge in edges} & self._edges.keys()
            contents = {key: content_of(self._edges[key]) for key in keys}
            news = news_of(Known(self._nodes.keys(), self._named, self._trained, contents), versions, edges)
            self._check(news)
            self._write(news)
            return news.n_facts

    def versions(self, ids: Iterable[VersionId]) -> dict[VersionId, Version]:
        with self._lock:
            return {id_: self._version(self._nodes[id_]) for id_ in dict.fromkeys(ids) if id_ in self._nodes}

    def names(self, version: VersionId) -> tuple[tuple[str, str], ...]:
        with self._lock:
            return tuple(self._names.get(version, ()))

    def find(self, name: str, number: str) -> VersionId | None:
        with self._lock:
            return self._named.get((name, number))

    def signature(self, id: SignatureId) -> DataSignature:
        with self._lock:
            if id not in self._signatures:
                raise unknown(id)
            return self._signatures[id]

    def edges_into(self, children: Iterable[VersionId]) -> tuple[Edge, ...]:
        return self._edges_at(self._into, children)

    def edges_out_of(self, parents: Iterable[VersionId]) -> tuple[Edge, ...]:
        return self._edges_at(self._out_of, parents)

    def ancestors(self, version: VersionId) -> tuple[VersionId, ...]:
        with self._lock:
            return self._walk(version, lambda id_: [parent for parent, _, _ in self._into.get(id_, ())])

    def descendants(self, version: VersionId) -> tuple[VersionId, ...]:
        with self._lock:
            return self._walk(version, lambda id_: [child for _, child, _ in self._out_of.get(id_, ())])

    def trained_on(self, dataset: DatasetId) -> tuple[VersionId, ...]:
        with self._lock:
            return tuple(sorted(set(self._on.get(dataset, ())), key=self._numbers.__getitem__))

    def counter(self) -> int:
        with self._lock:
            return len(self._facts)

    def changes(self, since: int = 0, limit: int = PAGE_FACTS) -> Changes:
        with self._lock:
            page = self._facts[since : since + limit]
        return Changes(
            tuple(fact for fact in page if isinstance(fact, Node)),
            tuple(fact for fact in page if isinstance(fact, Named)),
            tuple(fact for fact in page if isinstance(fact, Trained)),
            tuple(fact for fact in page if isinstance(fact, Link)),
            since + len(page),
        )

    def close(self) -> None:
        """Nothing is open."""

    def _check(self, news: News) -> None:
        """Raises LineageCycle when the new edges close a cycle with those that are there."""
        new: dict[VersionId, list[VersionId]] = {}
        for edge in news.edges:
            new.setdefault(edge.child, []).append(edge.parent)

        def parents(id_: VersionId) -> list[VersionId]:
            return [*(parent for parent, _, _ in self._into.get(id_, ())), *new.get(id_, ())]

        for edge in news.suspects:
            if edge.child in _reached(edge.parent, parents):
                raise closed_by(edge)

    def _write(self, news: News) -> None:
        self._signatures.update(news.signatures)
        for node in news.nodes:
            self._nodes[node.id] = node
            self._numbers[node.id] = len(self._facts)
            self._facts.append(node)
        for named in news.names:
            self._named[named.name, named.number] = named.version
            self._names.setdefault(named.version, []).append((named.name, named.number))
            self._facts.append(named)
        for trained in news.trained:
            self._trained[trained.version] = trained.signature
            self._on.setdefault(trained.dataset, []).append(trained.version)
            self._facts.append(trained)
        for edge in news.edges:
            key = key_of(edge)
            self._edges[key] = edge
            self._numbers[key] = len(self._facts)
            self._into.setdefault(edge.child, []).append(key)
            self._out_of.setdefault(edge.parent, []).append(key)
            if edge.data is not None:
                self._on.setdefault(edge.data.dataset, []).append(edge.child)
            self._facts.append(Link(*key, None if edge.data is None else edge.data.dataset))

    def _version(self, node: Node) -> Version:
        name, number = self._names.get(node.id, [("", "")])[0]
        signature = self._trained.get(node.id)
        return Version(node.id, name, number, self._signatures[signature] if signature else None, node.made_s)

    def _edges_at(self, where: Mapping[VersionId, Sequence[EdgeKey]], ids: Iterable[VersionId]) -> tuple[Edge, ...]:
        with self._lock:
            keys = [key for id_ in dict.fromkeys(ids) for key in where.get(id_, ())]
            return tuple(self._edges[key] for key in sorted(keys, key=self._numbers.__getitem__))

    def _walk(self, version: VersionId, next_of: _NextOf) -> tuple[VersionId, ...]:
        if version not in self._nodes:
            raise unknown(version)
        return tuple(sorted(_reached(version, next_of) - {version}, key=self._numbers.__getitem__))


def _reached(start: VersionId, next_of: _NextOf) -> set[VersionId]:
    """Whatever can be reached from `start`, itself included."""
    seen, waiting = {start}, [start]
    while waiting:
        for id_ in next_of(waiting.pop()):
            if id_ not in seen:
                seen.add(id_)
                waiting.append(id_)
    return seen
