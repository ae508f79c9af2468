"""A part of the lineage as plain data: some versions and the edges between them, for pictures and exports."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count

from lineage.graph.records import Edge, EdgeKind, Version, VersionId
from lineage.graph.store import PAGE_FACTS, LineageStore

MOST_SHOWN = 40  # versions of a picture that is still read at a glance
_ONWARDS, _ASIDE = 1.0, 2.5  # how far a parent of an ancestor (a child of a descendant) is, and a sibling


@dataclass(frozen=True, slots=True)
class Family:
    """Versions by id, in the order of their adding, and the edges whose two ends are among them.

    `hidden` says of how many parents and children of a version are left out, where there are any.
    """

    versions: Mapping[VersionId, Version]
    edges: tuple[Edge, ...]
    hidden: Mapping[VersionId, int] = field(default_factory=dict)


def family_of(versions: Iterable[Version], edges: Iterable[Edge]) -> Family:
    """These versions, and those of the edges that run between them."""
    by_id = {version.id: version for version in versions}
    return Family(by_id, tuple(edge for edge in edges if edge.parent in by_id and edge.child in by_id))


def whole_family(store: LineageStore) -> Family:
    """Everything that a store knows."""
    return FamilyReader(store).family()


class FamilyReader:
    """Everything that a store knows, kept: each time only what was added since is read. Not for several threads."""

    def __init__(self, store: LineageStore) -> None:
        self._store = store
        self._versions: dict[VersionId, Version] = {}
        self._edges: dict[tuple[VersionId, VersionId, EdgeKind], Edge] = {}
        self.counter = 0  # the store's, up to which everything was read

    def family(self) -> Family:
        """The whole family as it is now."""
        while (page := self._store.changes(self.counter, PAGE_FACTS)).counter > self.counter:
            told = [node.id for node in page.nodes]
            told += [named.version for named in page.names] + [trained.version for trained in page.trained]
            found = self._store.versions(dict.fromkeys(told))
            self._versions |= {id: found[id] for id in told}
            children = dict.fromkeys(link.child for link in page.links)
            self._edges |= {(edge.parent, edge.child, edge.kind): edge for edge in self._store.edges_into(children)}
            self.counter = page.counter
        return family_of(self._versions.values(), self._edges.values())


def nearest_family(store: LineageStore, centre: VersionId, most: int = MOST_SHOWN) -> Family:
    """The `most` versions nearest to one, itself among them: ancestors and descendants before siblings and cousins.

    Asks the store once per version that is shown, however large the lineage is. Raises UnknownVersion.
    """
    store.version(centre)
    order = count()
    waiting: list[tuple[float, int, VersionId, str]] = [(0.0, next(order), centre, "")]
    shown: list[VersionId] = []
    around: dict[VersionId, list[Edge]] = {}
    while waiting and len(shown) < most:
        far, _, id, way = heapq.heappop(waiting)
        if id in around:
            continue
        shown.append(id)
        into, out = store.edges_into([id]), store.edges_out_of([id])
        around[id] = [*into, *out]
        for edges, onwards in ((into, "up"), (out, "down")):
            step = _ONWARDS if way in ("", onwards) else _ASIDE
            for edge in edges:
                other = edge.parent if onwards == "up" else edge.child
                if other not in around:
                    heapq.heappush(waiting, (far + step, next(order), other, onwards if step == _ONWARDS else "aside"))
    family = family_of(store.versions(shown).values(), (e for id in shown for e in around[id] if e.child == id))
    others = {id: {end for edge in edges for end in (edge.parent, edge.child)} for id, edges in around.items()}
    hidden = {id: len(of_it - around.keys()) for id, of_it in others.items()}
    return Family(family.versions, family.edges, {id: n for id, n in hidden.items() if n})
