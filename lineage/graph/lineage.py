"""A lineage: a store, and the graph in memory that follows it.

>>> from lineage.graph.memory import MemoryLineageStore
>>> from lineage.graph.records import Version, VersionId
>>> lineage = Lineage(MemoryLineageStore())
>>> lineage.store.add(Version(VersionId("a" * 64), "digits", "1"))
True
>>> lineage.resolve("digits@1") == lineage.resolve("aaaaaa") == "a" * 64
True
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from difflib import get_close_matches

from lineage.errors import LineageRefused, UnknownVersion
from lineage.graph.graph import HealthyAncestor, Kinds, LineageGraph
from lineage.graph.records import DatasetId, DataSignature, Edge, VersionId
from lineage.graph.sql import SqlLineageStore
from lineage.graph.store import LineageStore, unknown
from lineage.models import named

_WHOLE = re.compile("[0-9a-f]{64}")
_PREFIX = re.compile("[0-9a-f]{6,63}")
_MOST_TOLD = 5


@dataclass(frozen=True, slots=True)
class Derivation:
    """A version that is to be made again, and all edges that lead to it: from what, how, and with which parameters."""

    version: VersionId
    edges: tuple[Edge, ...]


class Lineage:
    """Questions to a lineage. Safe to use from several threads; every method raises StoreUnavailable when the store
    fails."""

    def __init__(self, store: LineageStore) -> None:
        self.store = store
        self._lock = threading.Lock()
        self._graph = LineageGraph()

    def graph(self) -> LineageGraph:
        """The graph, with all that was added to the store before this call. What is asked of it later does not see
        what was added since."""
        with self._lock:
            counter = self.store.counter()
            if counter < self._graph.counter:  # another database stands in its place
                self._graph = LineageGraph()
            while self._graph.counter < counter:
                self._graph.follow(self.store.changes(self._graph.counter))
            return self._graph

    def resolve(self, text: str) -> VersionId:
        """The version that a text names: its id or the first six digits of it or more, `name@3`, or `models:/name/3`.

        Raises UnknownVersion, with what is near; LineageRefused where the digits begin several ids.
        """
        graph = self.graph()
        if text in graph:
            return VersionId(text)
        in_mlflow = named(text)
        name, _, number = (in_mlflow.name, "@", in_mlflow.version) if in_mlflow else text.rpartition("@")
        if name:
            found = graph.find(name, number)
            if found is None:
                raise UnknownVersion(f"the lineage knows no {name[:80]}@{number[:32]}.", hint=_near(graph, name))
            return found
        if _PREFIX.fullmatch(text):
            several = graph.beginning_with(text)
            if len(several) == 1:
                return several[0]
            if several:
                told = ", ".join(id_[:12] for id_ in several[:_MOST_TOLD])
                raise LineageRefused(
                    f"{text} begins the ids of {len(several)} versions: {told}.", hint="Give more digits."
                )
        if _WHOLE.fullmatch(text) or _PREFIX.fullmatch(text):
            raise unknown(text)
        raise UnknownVersion(f"{text[:80]!r} names no version.", hint=_near(graph, text))

    def nearest_healthy_ancestor(
        self,
        version: VersionId,
        drift: Callable[[DataSignature], float | None],
        at_most: float,
        through: Kinds = None,
    ) -> HealthyAncestor | None:
        """The nearest ancestor for which the `drift` of today's data from what it was trained on is `at_most`.

        `drift` is asked once for each signature, the nearest first, and for none farther away than the answer; NaN or
        None means that it cannot be told. Ancestors whose training data are not known are passed over. Of several as
        near, the one of the lowest drift, then the latest made, then by id. Raises UnknownVersion.
        """
        return self.graph().nearest_ancestor_trained_on(
            version, lambda signature: drift(self.store.signature(signature)), at_most, through
        )

    def cascade(
        self, versions: Collection[VersionId] = (), datasets: Collection[DatasetId] = (), through: Kinds = None
    ) -> tuple[tuple[Derivation, ...], ...]:
        """What is to be made again, in waves, once these versions have been replaced or these data mended, and how
        each was made the last time. See `LineageGraph.cascade`."""
        waves = self.graph().cascade(versions, datasets, through)
        into: dict[VersionId, list[Edge]] = {version: [] for wave in waves for version in wave}
        for edge in self.store.edges_into(into):
            into[edge.child].append(edge)
        return tuple(tuple(Derivation(version, tuple(into[version])) for version in wave) for wave in waves)

    def close(self) -> None:
        """Closes the store."""
        self.store.close()


def open_lineage(url: str) -> Lineage:
    """The lineage in the database at a SQLAlchemy URL, `sqlite:///path/fenix.db` or `postgresql+psycopg://host/fenix`,
    which is made where it is missing. Raises StoreUnavailable."""
    return Lineage(SqlLineageStore(url))


def _near(graph: LineageGraph, name: str) -> str:
    numbers = graph.numbers(name)
    if numbers:
        return f"{name} has {', '.join(f'{name}@{number}' for number in numbers[-_MOST_TOLD:])}."
    close = get_close_matches(name, graph.models(), n=3, cutoff=0.5)
    return f"Nearest: {', '.join(close)}." if close else "Write an id, name@3, or models:/name/3."
