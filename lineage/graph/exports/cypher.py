"""Ad-hoc Cypher on the lineage, by LadybugDB: a copy for reading, thrown away and made anew when the lineage changed.

The graph is that of `rows.py`. Needs the extra `fenix-serve[cypher]`.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from lineage.errors import LineageRefused, StoreUnavailable
from lineage.graph.exports.rows import Part, property_graph
from lineage.graph.exports.statements import check_reads
from lineage.graph.family import FamilyReader
from lineage.graph.store import LineageStore

MOST_ROWS = 10_000
TIMEOUT_S = 10.0
MOST_HOPS = 1_000  # of a path without an upper bound

_MEMORY_BYTES = 256 << 20
_ADDRESSES_BYTES = 8 << 30  # by default it asks for 8 TiB of addresses, which some machines refuse
_INNER = ("_ID", "_SRC", "_DST", "_LABEL")
_SCHEMA = (
    "CREATE NODE TABLE Version(id STRING PRIMARY KEY, name STRING, number STRING, made_s DOUBLE)",
    "CREATE NODE TABLE Dataset(id STRING PRIMARY KEY, n_rows INT64, columns STRING[])",
    "CREATE NODE TABLE Metric(name STRING PRIMARY KEY)",
    "CREATE REL TABLE BECAME(FROM Version TO Version, kind STRING, params STRING, drift STRING, dataset STRING,"
    " made_s DOUBLE)",
    "CREATE REL TABLE TRAINED_ON(FROM Version TO Dataset, signature STRING)",
    "CREATE REL TABLE MEASURED(FROM Version TO Metric, kind STRING, parent STRING, value DOUBLE)",
)


@dataclass(frozen=True, slots=True)
class Table:
    """What a statement returned: plain values, nodes and relationships as their properties with `_label`. `is_whole` is
    False where there were more rows than asked for."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    is_whole: bool


class CypherGraph:
    """Answers Cypher about a store. Statements see what was added before they began. Safe to use from several threads,
    which wait for each other; close it, or use it as a context manager, to remove the copy."""

    def __init__(self, store: LineageStore, *, timeout_s: float = TIMEOUT_S) -> None:
        self._store = store
        self._timeout_ms = max(1, round(timeout_s * 1_000))
        self._lock = threading.Lock()
        self._reader = FamilyReader(store)
        self._folder: Path | None = None
        self._database: Any = None
        self._counter = -1
        self.n_builds = 0  # how often the copy was made

    def query(self, statement: str, params: Mapping[str, Any] | None = None, most_rows: int = MOST_ROWS) -> Table:
        """Runs one statement that only reads. `params` are what it calls `$name`.

        Raises LineageRefused for one that writes, that LadybugDB does not understand, or that takes longer than the
        timeout; StoreUnavailable without the extra, and when the store fails.
        """
        missing = check_reads(statement) - (params or {}).keys()
        if missing:  # LadybugDB would take them for null
            raise LineageRefused(f"the statement asks for ${', $'.join(sorted(missing))}, which is not given.")
        with self._lock:
            self._renew()
            ladybug = _import_ladybug()
            with ladybug.Connection(self._database, num_threads=1) as connection:
                try:
                    connection.execute(f"CALL var_length_extend_max_depth={MOST_HOPS}")
                    connection.set_query_timeout(self._timeout_ms)
                    result = connection.execute(statement, dict(params or {}))
                except RuntimeError as error:
                    raise _refused(error, self._timeout_ms) from None
                columns = tuple(result.get_column_names())
                rows: list[tuple[Any, ...]] = []
                while result.has_next() and len(rows) < most_rows:
                    rows.append(tuple(_plain(value) for value in result.get_next()))
                is_whole = not result.has_next()
                result.close()
        return Table(columns, tuple(rows), is_whole)

    def close(self) -> None:
        """Removes the copy. A query after that makes another."""
        with self._lock:
            self._discard()

    def __enter__(self) -> CypherGraph:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _renew(self) -> None:
        counter = self._store.counter()  # first: what is added while the copy is made shows next time
        if self._database is not None and counter == self._counter:
            return
        ladybug = _import_ladybug()
        parts = property_graph(self._reader.family())
        folder = Path(tempfile.mkdtemp(prefix="fenix-cypher-"))
        try:
            _build(ladybug, folder / "graph", parts)
            database = _open(ladybug, folder / "graph", read_only=True)
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        self._discard()
        self._folder, self._database, self._counter = folder, database, counter
        self.n_builds += 1

    def _discard(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _build(ladybug: Any, path: Path, parts: tuple[Part, ...]) -> None:
    import pandas as pd

    with _open(ladybug, path, read_only=False) as database, ladybug.Connection(database, num_threads=1) as connection:
        for statement in _SCHEMA:
            connection.execute(statement)
        for part in parts:
            if part.rows:  # 20,000 relationships: 0.2 s in this way, 60 s merged one by one
                connection.execute(f"COPY {part.name} FROM $rows", {"rows": pd.DataFrame(part.rows)})


def _open(ladybug: Any, path: Path, *, read_only: bool) -> Any:
    return ladybug.Database(
        str(path),
        read_only=read_only,
        buffer_pool_size=_MEMORY_BYTES,
        max_db_size=_ADDRESSES_BYTES,
        max_num_threads=1,
    )


def _plain(value: Any) -> Any:
    """Nodes and relationships without inner ids, and without the properties of others, which come as None."""
    if isinstance(value, dict) and "_LABEL" in value:
        own = {name: _plain(one) for name, one in value.items() if name not in _INNER and one is not None}
        return {"_label": value["_LABEL"], **own}
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list) else value


def _refused(error: RuntimeError, timeout_ms: int) -> LineageRefused:
    said = str(error).strip()
    if said.startswith("Interrupted"):
        return LineageRefused(
            f"the statement took longer than {timeout_ms / 1_000:g} s.", hint="Bound its paths, such as [:BECAME*1..5]."
        )
    return LineageRefused(f"the statement was not understood: {said[:400]}", hint="`docs/lineage.md` names the graph.")


def _import_ladybug() -> Any:
    try:
        import ladybug
    except ImportError:
        raise StoreUnavailable(
            "Cypher needs LadybugDB, which is not installed.", hint="Install it: pip install 'fenix-serve[cypher]'."
        ) from None
    return ladybug
