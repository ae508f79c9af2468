"""The lineage graph in memory: who hails from whom, and what follows from it.

>>> from lineage.graph.memory import MemoryLineageStore
>>> from lineage.graph.records import Edge, EdgeKind, Version, VersionId
>>> a, b, c = (Version(VersionId(letter * 64)) for letter in "abc")
>>> store = MemoryLineageStore()
>>> edges = [Edge(a.id, b.id, EdgeKind.FINE_TUNE), Edge(b.id, c.id, EdgeKind.FINE_TUNE)]
>>> n_facts = store.add_all([a, b, c], edges)
>>> graph = LineageGraph()
>>> graph.follow(store.changes())
>>> graph.nearest_healthy_ancestor(c.id, {a.id: 0.02, b.id: 0.4}, at_most=0.1) == HealthyAncestor(a.id, 2, 0.02)
True

It holds no more than the links, by number, so that 100,000 versions take some 50 MiB; what edges bear, and signatures,
are in the store.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.graph.arrows import ALL, ANY, Arrows, Ints, grown
from lineage.graph.facts import Changes, Link
from lineage.graph.records import DatasetId, EdgeKind, SignatureId, VersionId
from lineage.graph.store import unknown

Floats = npt.NDArray[np.float64]
# How far the data of today are from what a version was trained on: 0 is like it, NaN or None is not known. By version,
# as a function that is asked as seldom as can be, or as an array in the order of `LineageGraph.versions`.
Drift = Mapping[VersionId, float] | Callable[[VersionId], float | None] | Floats
Kinds = Collection[EdgeKind] | None  # of edges that may be followed; None: all

_KINDS = tuple(EdgeKind)
_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_NEVER = np.iinfo(np.int64).max
_PIECE = 512  # nodes whose ids are looked up at a time
_ENOUGH = 1_000  # ancestors that are looked at before all are found
_FEW = 2_000  # ancestors that are looked up one by one in a dictionary before all of it is gone through


@dataclass(frozen=True, slots=True)
class HealthyAncestor:
    """An ancestor, how many edges away it is, and its drift."""

    version: VersionId
    hops: int
    drift: float


@dataclass(frozen=True, slots=True)
class CommonAncestor:
    """An ancestor of several versions, and how many edges it is away from each; 0: it is one of them."""

    version: VersionId
    hops: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Impact:
    """What is affected: `direct` is bad itself or was trained on bad data, `inherited` was made from such versions.
    Both with parents before their children."""

    direct: tuple[VersionId, ...]
    inherited: tuple[VersionId, ...]

    @property
    def versions(self) -> frozenset[VersionId]:
        """All of them."""
        return frozenset(self.direct + self.inherited)


@dataclass(frozen=True, slots=True)
class Path:
    """The way from the first of `versions` to the last; `links` are those between neighbours, whichever way they
    point."""

    versions: tuple[VersionId, ...]
    links: tuple[Link, ...]


class LineageGraph:
    """Versions and the links between them, as far as `follow` was told. Safe to use from several threads.

    Queries change nothing, and depend on nothing but the versions, links and times; they raise UnknownVersion.
    `through` says over which kinds of edges they go, by default over all.
    """

    def __init__(self) -> None:
        self.counter = 0
        self._lock = threading.RLock()
        self._arrows = Arrows()
        self._ids: list[VersionId] = []
        self._nodes: dict[VersionId, int] = {}
        self._made_s = np.zeros(1_024)
        self._ranks = np.zeros(1_024, np.uint64)  # the first digits of the ids, to put them in order
        self._names: dict[int, list[tuple[str, str]]] = {}
        self._named: dict[tuple[str, str], int] = {}
        self._signatures: dict[SignatureId, int] = {}  # numbered as they come
        self._datasets: list[DatasetId] = []  # by the number of a signature
        self._data = np.full(1_024, -1, np.int32)  # of a version the number of its signature
        self._trained: dict[DatasetId, list[int]] = {}
        self._transformed: dict[int, DatasetId] = {}  # by edge

    def follow(self, changes: Changes) -> None:
        """Takes up facts that were added to the store after `counter`."""
        with self._lock:
            self._arrows.add_nodes(len(changes.nodes))
            n = self._arrows.n_nodes
            self._made_s, self._ranks = grown(self._made_s, n, 0), grown(self._ranks, n, 0)
            self._data = grown(self._data, n, -1)
            for node in changes.nodes:
                number = self._nodes[node.id] = len(self._ids)
                self._ids.append(node.id)
                self._made_s[number] = node.made_s
                self._ranks[number] = int(node.id[:16], 16)
            for named in changes.names:
                number = self._nodes[named.version]
                self._names.setdefault(number, []).append((named.name, named.number))
                self._named[named.name, named.number] = number
            for trained in changes.trained:
                number = self._nodes[trained.version]
                if trained.signature not in self._signatures:
                    self._signatures[trained.signature] = len(self._datasets)
                    self._datasets.append(trained.dataset)
                self._data[number] = self._signatures[trained.signature]
                self._trained.setdefault(trained.dataset, []).append(number)
            for link in changes.links:
                parent, child = self._nodes[link.parent], self._nodes[link.child]
                if link.dataset is not None:
                    self._transformed[self._arrows.n_edges] = link.dataset
                    self._trained.setdefault(link.dataset, []).append(child)
                self._arrows.add_edge(parent, child, _CODES[link.kind])
            self.counter = changes.counter

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, version: object) -> bool:
        return version in self._nodes

    def versions(self) -> tuple[VersionId, ...]:
        """All versions, in the order of their adding."""
        with self._lock:
            return tuple(self._ids)

    def names(self, version: VersionId) -> tuple[tuple[str, str], ...]:
        """Under which names and numbers a version is registered in MLflow, the first one first."""
        with self._lock:
            return tuple(self._names.get(self._node(version), ()))

    def find(self, name: str, number: str) -> VersionId | None:
        """The version of this name and number in MLflow; None when it is not known."""
        with self._lock:
            node = self._named.get((name, number))
            return None if node is None else self._ids[node]

    def numbers(self, name: str) -> tuple[str, ...]:
        """Which numbers of a model are known, in the order of their adding."""
        with self._lock:
            return tuple(number for model, number in self._named if model == name)

    def models(self) -> tuple[str, ...]:
        """The names of all models, sorted."""
        with self._lock:
            return tuple(sorted({name for name, _ in self._named}))

    def beginning_with(self, prefix: str) -> tuple[VersionId, ...]:
        """The versions whose id begins like this."""
        with self._lock:
            return tuple(id_ for id_ in self._ids if id_.startswith(prefix))

    def made_s(self, version: VersionId) -> float:
        """When a version was made, since 1970."""
        with self._lock:
            return float(self._made_s[self._node(version)])

    def dataset(self, version: VersionId) -> DatasetId | None:
        """The data that a version was trained on, where they are known."""
        with self._lock:
            number = self._data[self._node(version)]
            return None if number < 0 else self._datasets[number]

    def links_into(self, version: VersionId) -> tuple[Link, ...]:
        """The links that lead to a version, by parent and kind."""
        with self._lock:
            return tuple(sorted(map(self._link, self._arrows.into(self._node(version))), key=_ends))

    def links_out_of(self, version: VersionId) -> tuple[Link, ...]:
        """The links that lead away from a version, by child and kind."""
        with self._lock:
            return tuple(sorted(map(self._link, self._arrows.out_of(self._node(version))), key=_ends))

    def ancestors(self, version: VersionId, through: Kinds = None) -> dict[VersionId, int]:
        """What a version was made from, directly or not, each with the number of edges in between, the nearest first
        (of those as near by id)."""
        return self._relatives(version, through, up=True)

    def descendants(self, version: VersionId, through: Kinds = None) -> dict[VersionId, int]:
        """What was made from a version, directly or not, as `ancestors`."""
        return self._relatives(version, through, down=True)

    def family(self, version: VersionId, through: Kinds = None) -> dict[VersionId, int]:
        """All that is connected with a version in any way, as `ancestors`; the version itself is not among them."""
        return self._relatives(version, through, up=True, down=True)

    def siblings(self, version: VersionId, through: Kinds = None) -> tuple[VersionId, ...]:
        """The other versions that were made from a parent of this one, by id."""
        with self._lock:
            node, mask, arrows = self._node(version), _mask(through), self._arrows
            parents = {arrows.edge(edge)[0] for edge in arrows.into(node, mask)}
            found = {arrows.edge(edge)[1] for parent in parents for edge in arrows.out_of(parent, mask)}
            return tuple(sorted(self._ids[child] for child in found - {node}))

    def nearest_common_ancestor(self, *versions: VersionId, through: Kinds = None) -> CommonAncestor | None:
        """The version from which all of these were made, directly or not, by the fewest edges in all; None when there
        is none.

        One of them may be it: what the others were made from. Of several as near, the one whose farthest descendant
        among these is nearer, then the latest made, then by id. Raises ValueError without versions.
        """
        if not versions:
            raise ValueError("an ancestor of no versions")
        with self._lock:
            mask = _mask(through)
            hops = np.array([self._arrows.reach([self._node(one)], up=True, mask=mask)[1] for one in versions])
            total = np.where((hops >= 0).all(axis=0), hops.sum(axis=0), _NEVER)
            nodes = np.flatnonzero(total == total.min())
            if total[nodes[0]] == _NEVER:
                return None
            order = np.lexsort((self._ranks[nodes], -self._made_s[nodes], hops[:, nodes].max(axis=0)))
            best = nodes[order[0]]
            return CommonAncestor(self._ids[best], tuple(int(n) for n in hops[:, best]))

    def nearest_healthy_ancestor(
        self, version: VersionId, drift: Drift, at_most: float, through: Kinds = None
    ) -> HealthyAncestor | None:
        """The nearest ancestor whose drift is `at_most`; None when there is none.

        Of several as near, the one of the lowest drift, then the latest made, then by id. A function is asked for the
        nearest first, once each, and for none that is farther away than the answer.
        """
        near = 0
        for enough in (_ENOUGH, ALL):  # mostly one of the first is healthy
            with self._lock:
                order, hops = self._reach(version, through, up=True, enough=enough)
            found = self._nearest(order[hops[order] > near], hops, drift, at_most)
            if found is not None or len(order) < enough:
                return found
            near = int(hops[order[-1]])
        return None

    def _nearest(self, order: Ints, hops: Ints, drift: Drift, at_most: float) -> HealthyAncestor | None:
        """Among these ancestors, the nearest first."""
        if isinstance(drift, np.ndarray):
            return self._best(order, hops, self._drift_of(order, drift), at_most)
        asked, n_most = (drift.get, _FEW) if isinstance(drift, Mapping) else (drift, len(order))
        n_asked = 0
        for found in map(asked, self._ids_of(order[:n_most])):
            n_asked += 1
            if found is not None and found <= at_most:
                break
        else:
            if not isinstance(drift, Mapping) or n_asked == len(order):
                return None
            return self._best(order, hops, self._low_of(drift, at_most)[order], at_most)
        level = hops[order[n_asked - 1]]
        order = order[n_asked - 1 : np.searchsorted(hops[order], level, "right")]
        values = [found, *(_known(asked(id_)) for id_ in self._ids_of(order[1:]))]
        return self._best(order, hops, np.array(values, np.float64), at_most)

    def nearest_ancestor_trained_on(
        self,
        version: VersionId,
        drift: Callable[[SignatureId], float | None],
        at_most: float,
        through: Kinds = None,
    ) -> HealthyAncestor | None:
        """As `nearest_healthy_ancestor`, with the drift from what versions were trained on: asked once for each
        signature, the nearest first. Ancestors whose training data are not known are passed over."""
        with self._lock:
            order, hops = self._reach(version, through, up=True)
            signatures = tuple(self._signatures)
            order = order[1:]
            order = order[self._data[order] >= 0]
            data = self._data[order]
        first = np.full(len(signatures), len(order))
        first[data[::-1]] = np.arange(len(order))[::-1]  # where a signature comes several times, the last one counts
        values = np.full(len(signatures), np.nan)
        level: int | None = None
        for number in np.argsort(first, kind="stable")[: int(np.count_nonzero(first < len(order)))].tolist():
            hop = int(hops[order[first[number]]])
            if level is not None and hop > level:
                break
            values[number] = _known(drift(signatures[number]))
            if level is None and values[number] <= at_most:
                level = hop
        return self._best(order, hops, values[data], at_most)

    def healthiest_ancestor(
        self, version: VersionId, drift: Drift, most_hops: int | None = None, through: Kinds = None
    ) -> HealthyAncestor | None:
        """The ancestor of the lowest drift, at most `most_hops` away; None when the drift of none is known. Of several
        as healthy the nearest, then the latest made, then by id. A function is asked for each of them once."""
        with self._lock:
            order, hops = self._reach(version, through, up=True)
        order = order[1:]
        if most_hops is not None:
            order = order[hops[order] <= most_hops]
        if isinstance(drift, np.ndarray):
            values = self._drift_of(order, drift)
        else:
            asked = drift.get if isinstance(drift, Mapping) else drift
            values = np.array([_known(asked(id_)) for id_ in self._ids_of(order)], np.float64)
        lowest = np.nanmin(values, initial=np.inf)
        return self._best(order, hops, np.where(values == lowest, values, np.nan), np.inf)

    def impact(
        self, versions: Collection[VersionId] = (), datasets: Collection[DatasetId] = (), through: Kinds = None
    ) -> Impact:
        """What is affected if these versions or data are bad. Data that no version knows affect none."""
        with self._lock:
            direct = {self._node(version) for version in versions}
            direct.update(node for dataset in datasets for node in self._trained.get(dataset, ()))
            order, _ = self._arrows.reach(direct, down=True, mask=_mask(through))
            in_order = [node for wave in self._in_waves(order) for node in wave]
            return Impact(
                tuple(self._ids[node] for node in in_order if node in direct),
                tuple(self._ids[node] for node in in_order if node not in direct),
            )

    def cascade(
        self, versions: Collection[VersionId] = (), datasets: Collection[DatasetId] = (), through: Kinds = None
    ) -> tuple[tuple[VersionId, ...], ...]:
        """What is to be made again, and in which order, once these versions have been replaced, or these data mended:
        waves, of which each needs those before it, while the versions of one need not wait for each other.

        These are the descendants of the versions, and all that was trained on the data with its descendants. The
        versions themselves are not among them, unless they hail from another one of them, or from such data.
        """
        with self._lock:
            mask, arrows = _mask(through), self._arrows
            again = {node for dataset in datasets for node in self._trained.get(dataset, ())}
            for version in versions:
                again.update(arrows.edge(edge)[1] for edge in arrows.out_of(self._node(version), mask))
            members, _ = arrows.reach(again, down=True, mask=mask)
            return tuple(tuple(self._ids[node] for node in wave) for wave in self._in_waves(members))

    def path(self, start: VersionId, end: VersionId, through: Kinds = None) -> Path | None:
        """The shortest way from one version to another: along the edges or against them where one hails from the
        other, else there and back as they come; None when they are not related. Of several the first by ids."""
        with self._lock:
            first, last, mask = self._node(start), self._node(end), _mask(through)
            for up, down in ((False, True), (True, False), (True, True)):
                _, hops = self._arrows.reach([first], up=up, down=down, mask=mask)
                if hops[last] >= 0:
                    return self._way_back(last, hops, up, down, mask)
            return None

    def to_networkx(self) -> Any:
        """The graph as a `networkx.MultiDiGraph`, for what else one may want to ask: nodes are ids, with `names` and
        `made_s`; edges lead from parent to child, with their kind as key."""
        import networkx as nx

        made = nx.MultiDiGraph()
        with self._lock:
            for node, id_ in enumerate(self._ids):
                made.add_node(id_, names=tuple(self._names.get(node, ())), made_s=float(self._made_s[node]))
            for edge in range(self._arrows.n_edges):
                link = self._link(edge)
                made.add_edge(link.parent, link.child, key=str(link.kind))
        return made

    def _node(self, version: VersionId) -> int:
        node = self._nodes.get(version)
        if node is None:
            raise unknown(version)
        return node

    def _reach(
        self, version: VersionId, through: Kinds, up: bool = False, down: bool = False, enough: int = ALL
    ) -> tuple[Ints, Ints]:
        return self._arrows.reach([self._node(version)], up=up, down=down, mask=_mask(through), enough=enough)

    def _relatives(
        self, version: VersionId, through: Kinds, up: bool = False, down: bool = False
    ) -> dict[VersionId, int]:
        with self._lock:
            order, hops = self._reach(version, through, up, down)
            order = order[1:]
            order = order[np.lexsort((self._ranks[order], hops[order]))]
            return dict(zip(self._ids_of(order), hops[order].tolist(), strict=True))

    def _ids_of(self, nodes: Ints) -> Iterator[VersionId]:
        """The ids of nodes, looked up as they are needed."""
        pieces = (nodes[at : at + _PIECE].tolist() for at in range(0, len(nodes), _PIECE))
        return map(self._ids.__getitem__, chain.from_iterable(pieces))

    def _drift_of(self, nodes: Ints, drift: Floats) -> Floats:
        """Of an array in the order of the versions; those that came later are not known."""
        values = np.full(len(self._ids), np.nan)
        values[: len(drift)] = drift[: len(values)]
        return values[nodes]

    def _low_of(self, drift: Mapping[VersionId, float], at_most: float) -> Floats:
        """Of every node the drift where it is so low. To go through a dictionary in its own order takes a sixth of the
        time of looking up as many versions in theirs, which is mostly waiting for memory."""
        values = np.full(len(self._ids), np.nan)
        for id_, value in drift.items():
            if value is not None and value <= at_most and id_ in self._nodes:
                values[self._nodes[id_]] = value
        return values

    def _best(self, nodes: Ints, hops: Ints, drift: Floats, at_most: float) -> HealthyAncestor | None:
        """Of the nodes with at most so much drift the nearest; then by drift, time and id."""
        healthy = np.flatnonzero(drift <= at_most)
        if not len(healthy):
            return None
        nodes, drift = nodes[healthy], drift[healthy]
        near = hops[nodes] == hops[nodes].min()
        nodes, drift = nodes[near], drift[near]
        best = np.lexsort((self._ranks[nodes], -self._made_s[nodes], drift))[0]
        return HealthyAncestor(self._ids[nodes[best]], int(hops[nodes[best]]), float(drift[best]))

    def _in_waves(self, nodes: Ints) -> list[list[int]]:
        """Parents before their children; what is of one wave by time and id."""
        if not len(nodes):
            return []
        wave = self._arrows.waves(nodes)
        order = np.lexsort((self._ranks[nodes], self._made_s[nodes], wave))
        ends = np.cumsum(np.bincount(wave))[:-1]
        return [part.tolist() for part in np.split(nodes[order], ends)]

    def _way_back(self, last: int, hops: Ints, up: bool, down: bool, mask: int) -> Path:
        """From where hops is 0 to `last`; back from there, always to the first by id that is one nearer."""
        arrows, nodes, links = self._arrows, [last], []
        while hops[nodes[-1]]:
            node = nodes[-1]
            # Whoever came down to it came from a parent.
            ways = [(arrows.edge(edge)[0], edge) for edge in arrows.into(node, mask) if down]
            ways += [(arrows.edge(edge)[1], edge) for edge in arrows.out_of(node, mask) if up]
            nearer = [(before, self._link(edge)) for before, edge in ways if hops[before] == hops[node] - 1]
            before, link = min(nearer, key=lambda way: (self._ids[way[0]], way[1].kind))
            nodes.append(before)
            links.append(link)
        return Path(tuple(self._ids[node] for node in reversed(nodes)), tuple(reversed(links)))

    def _link(self, edge: int) -> Link:
        parent, child, kind = self._arrows.edge(edge)
        return Link(self._ids[parent], self._ids[child], _KINDS[kind], self._transformed.get(edge))


def _ends(link: Link) -> tuple[str, str, str]:
    return link.parent, link.child, link.kind


def _mask(through: Kinds) -> int:
    return ANY if through is None else sum(1 << _CODES[kind] for kind in set(through))


def _known(drift: float | None) -> float:
    return math.nan if drift is None else drift
