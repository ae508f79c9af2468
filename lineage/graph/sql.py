"""The lineage in SQL, on SQLite or PostgreSQL: the truth about which version was made from which.

A row per fact, numbered in the order of the commits by a counter whose row is locked first of all: so writers take
turns, cycles cannot slip in between two of them, and readers follow by number. Rows are never changed or deleted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import Any, TypeVar

from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Float,
    Index,
    LargeBinary,
    MetaData,
    Row,
    String,
    Table,
    Text,
    and_,
    bindparam,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects import postgresql, sqlite

from lineage.database import open_database, transaction
from lineage.errors import StoreUnavailable
from lineage.graph.codec import signature_from_bytes, signature_to_bytes
from lineage.graph.facts import (
    Changes,
    Content,
    EdgeKey,
    Known,
    Link,
    Named,
    News,
    Node,
    Trained,
    check_acyclic,
    closed_by,
    content_of,
    key_of,
    news_of,
)
from lineage.graph.records import DatasetId, DataSignature, Edge, EdgeKind, SignatureId, Version, VersionId
from lineage.graph.store import PAGE_FACTS, LineageStore, unknown

MANY = 300  # values in one condition
MOST_WALKS = 30  # edges that are looked into one by one for a cycle; for more, all edges are read
MOST_TRIES = 5  # at making the tables, when several processes do so at once
_Item = TypeVar("_Item")

_METADATA = MetaData()
_VERSIONS = Table(
    "lineage_versions",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("made_s", Float(53), nullable=False),
    Column("number", BigInteger, nullable=False, unique=True),  # in the order of the commits, as all below
)
_NAMES = Table(
    "lineage_names",
    _METADATA,
    Column("name", String(256), primary_key=True),
    Column("version_number", String(32), primary_key=True),
    Column("version", String(64), nullable=False, index=True),
    Column("number", BigInteger, nullable=False, unique=True),
)
_TRAINED = Table(
    "lineage_trained",
    _METADATA,
    Column("version", String(64), primary_key=True),
    Column("signature", String(64), nullable=False),
    Column("dataset", String(64), nullable=False, index=True),
    Column("number", BigInteger, nullable=False, unique=True),
)
_EDGES = Table(
    "lineage_edges",
    _METADATA,
    Column("parent", String(64), primary_key=True),
    Column("child", String(64), primary_key=True),
    Column("kind", String(16), primary_key=True),
    Column("params", Text, nullable=False),
    Column("metrics", Text, nullable=False),
    Column("drift", Text, nullable=False),
    Column("signature", String(64)),
    Column("dataset", String(64), index=True),
    Column("made_s", Float(53), nullable=False),
    Column("number", BigInteger, nullable=False, unique=True),
    Index("lineage_edges_child", "child", "parent"),
)
_SIGNATURES = Table(
    "lineage_signatures",
    _METADATA,
    Column("id", String(64), primary_key=True),
    Column("body", LargeBinary, nullable=False),
)
_COUNTERS = Table(
    "lineage_counters", _METADATA, Column("name", String(32), primary_key=True), Column("value", BigInteger)
)
_FACTS = _COUNTERS.c.name == "facts"
_COUNT = select(_COUNTERS.c.value).where(_FACTS)
_LOCK = update(_COUNTERS).where(_FACTS).values(value=_COUNTERS.c.value).returning(_COUNTERS.c.value)
_NAME = tuple_(_NAMES.c.name, _NAMES.c.version_number)
_ENDS = tuple_(_EDGES.c.parent, _EDGES.c.child)


class SqlLineageStore(LineageStore):
    """A lineage in a database. For several processes at once."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        for tries_left in reversed(range(MOST_TRIES)):
            try:
                with transaction(self._engine) as connection:
                    _METADATA.create_all(connection)
                    connection.execute(_ignoring(connection, _COUNTERS), [{"name": "facts", "value": 0}])
                return
            except StoreUnavailable:
                if not tries_left:
                    raise

    def add_all(self, versions: Sequence[Version], edges: Sequence[Edge] = ()) -> int:
        if not versions and not edges:
            return 0
        with transaction(self._engine) as connection:
            # First of all, so that who writes at the same time waits here.
            last = connection.execute(_LOCK).scalar_one()
            news = news_of(_known(connection, versions, edges), versions, edges)
            _write(connection, news, last)
            _check(connection, news)
            return news.n_facts

    def versions(self, ids: Iterable[VersionId]) -> dict[VersionId, Version]:
        wanted = list(dict.fromkeys(ids))
        with transaction(self._engine) as connection:
            made = {row.id: row.made_s for row in _rows(connection, _VERSIONS, _VERSIONS.c.id, wanted)}
            trained = {row.version: row.signature for row in _rows(connection, _TRAINED, _TRAINED.c.version, wanted)}
            names: dict[str, tuple[str, str]] = {}
            for row in sorted(_rows(connection, _NAMES, _NAMES.c.version, wanted), key=lambda row: -row.number):
                names[row.version] = row.name, row.version_number
            signatures = _signatures(connection, trained.values())
        return {
            id_: Version(id_, *names.get(id_, ("", "")), signatures.get(trained.get(id_, "")), made[id_])
            for id_ in wanted
            if id_ in made
        }

    def names(self, version: VersionId) -> tuple[tuple[str, str], ...]:
        wanted = select(_NAMES).where(_NAMES.c.version == version).order_by(_NAMES.c.number)
        with transaction(self._engine) as connection:
            return tuple((row.name, row.version_number) for row in connection.execute(wanted))

    def find(self, name: str, number: str) -> VersionId | None:
        wanted = select(_NAMES.c.version).where(_NAMES.c.name == name, _NAMES.c.version_number == number)
        with transaction(self._engine) as connection:
            return connection.execute(wanted).scalar_one_or_none()

    def signature(self, id: SignatureId) -> DataSignature:
        with transaction(self._engine) as connection:
            found = _signatures(connection, [id]).get(id)
        if found is None:
            raise unknown(id)
        return found

    def edges_into(self, children: Iterable[VersionId]) -> tuple[Edge, ...]:
        return self._edges(_EDGES.c.child, children)

    def edges_out_of(self, parents: Iterable[VersionId]) -> tuple[Edge, ...]:
        return self._edges(_EDGES.c.parent, parents)

    def ancestors(self, version: VersionId) -> tuple[VersionId, ...]:
        return self._walk(version, _EDGES.c.child, _EDGES.c.parent)

    def descendants(self, version: VersionId) -> tuple[VersionId, ...]:
        return self._walk(version, _EDGES.c.parent, _EDGES.c.child)

    def trained_on(self, dataset: DatasetId) -> tuple[VersionId, ...]:
        on = select(_TRAINED.c.version).where(_TRAINED.c.dataset == dataset)
        by = select(_EDGES.c.child).where(_EDGES.c.dataset == dataset)
        wanted = select(_VERSIONS.c.id).where(or_(_VERSIONS.c.id.in_(on), _VERSIONS.c.id.in_(by)))
        with transaction(self._engine) as connection:
            return tuple(connection.execute(wanted.order_by(_VERSIONS.c.number)).scalars())

    def counter(self) -> int:
        with transaction(self._engine) as connection:
            return _counter(connection)

    def changes(self, since: int = 0, limit: int = PAGE_FACTS) -> Changes:
        with transaction(self._engine) as connection:
            upto = max(since, min(_counter(connection), since + limit))
            nodes, names, trained = (
                connection.execute(_between(table, since, upto)).all() for table in (_VERSIONS, _NAMES, _TRAINED)
            )
            links = connection.execute(
                _between(_EDGES, since, upto).with_only_columns(
                    _EDGES.c.parent, _EDGES.c.child, _EDGES.c.kind, _EDGES.c.dataset
                )
            ).all()
        kinds = {str(kind): kind for kind in EdgeKind}  # a dictionary is quicker than the call
        return Changes(
            tuple(Node(row.id, row.made_s) for row in nodes),
            tuple(Named(row.version, row.name, row.version_number) for row in names),
            tuple(Trained(row.version, row.signature, row.dataset) for row in trained),
            tuple(Link(parent, child, kinds[kind], dataset) for parent, child, kind, dataset in links),
            upto,
        )

    def close(self) -> None:
        self._engine.dispose()

    def _edges(self, end: Column[str], ids: Iterable[VersionId]) -> tuple[Edge, ...]:
        with transaction(self._engine) as connection:
            rows = _rows(connection, _EDGES, end, list(dict.fromkeys(ids)))
            signatures = _signatures(connection, [row.signature for row in rows if row.signature])
        return tuple(
            Edge(
                row.parent,
                row.child,
                row.kind,
                json.loads(row.params),
                json.loads(row.metrics),
                signatures.get(row.signature),
                json.loads(row.drift),
                row.made_s,
            )
            for row in sorted(rows, key=lambda row: row.number)
        )

    def _walk(self, version: VersionId, near: Column[str], far: Column[str]) -> tuple[VersionId, ...]:
        """Whatever edges lead to from `version`, over and over, in the order of their adding."""
        with transaction(self._engine) as connection:
            if connection.execute(select(_VERSIONS.c.id).where(_VERSIONS.c.id == version)).first() is None:
                raise unknown(version)
            reached = _reached(version, near, far)
            wanted = select(_VERSIONS.c.id).join(reached, _VERSIONS.c.id == reached.c.id)
            return tuple(connection.execute(wanted.order_by(_VERSIONS.c.number)).scalars())


def _known(connection: Connection, versions: Sequence[Version], edges: Sequence[Edge]) -> Known:
    """What the database knows of all that these mention."""
    ids = list(dict.fromkeys([v.id for v in versions] + [end for edge in edges for end in (edge.parent, edge.child)]))
    names = list(dict.fromkeys((version.name, version.number) for version in versions if version.name))
    known_ids = {row.id for row in _rows(connection, _VERSIONS, _VERSIONS.c.id, ids)}
    with_data = list({version.id for version in versions if version.data is not None} & known_ids)
    return Known(
        known_ids,
        {(row.name, row.version_number): row.version for row in _rows(connection, _NAMES, _NAME, names)},
        {row.version: row.signature for row in _rows(connection, _TRAINED, _TRAINED.c.version, with_data)},
        _known_edges(connection, [edge for edge in edges if edge.parent in known_ids and edge.child in known_ids]),
    )


def _known_edges(connection: Connection, edges: Sequence[Edge]) -> dict[EdgeKey, Content]:
    rows = _rows(connection, _EDGES, _ENDS, list(dict.fromkeys((edge.parent, edge.child) for edge in edges)))
    return {
        (row.parent, row.child, EdgeKind(row.kind)): (row.params, row.metrics, row.drift, row.signature) for row in rows
    }


def _write(connection: Connection, news: News, last: int) -> None:
    if news.signatures:  # some may be there: other versions were trained on the same data
        bodies = [{"id": id_, "body": signature_to_bytes(data)} for id_, data in news.signatures.items()]
        connection.execute(_ignoring(connection, _SIGNATURES), bodies)
    number = last
    rows: dict[Table, list[dict[str, Any]]] = {
        _VERSIONS: [{"id": node.id, "made_s": node.made_s} for node in news.nodes],
        _NAMES: [
            {"name": named.name, "version_number": named.number, "version": named.version} for named in news.names
        ],
        _TRAINED: [
            {"version": trained.version, "signature": trained.signature, "dataset": trained.dataset}
            for trained in news.trained
        ],
        _EDGES: [_row_of(edge) for edge in news.edges],
    }
    for table, found in rows.items():
        for row in found:
            number += 1
            row["number"] = number
        if found:
            connection.execute(insert(table), found)
    if number > last:
        connection.execute(update(_COUNTERS).where(_FACTS).values(value=number))


def _row_of(edge: Edge) -> dict[str, Any]:
    params, metrics, drift, signature = content_of(edge)
    parent, child, kind = key_of(edge)
    return {
        "parent": parent,
        "child": child,
        "kind": str(kind),
        "params": params,
        "metrics": metrics,
        "drift": drift,
        "signature": signature,
        "dataset": edge.data and edge.data.dataset,
        "made_s": edge.made_s,
    }


def _check(connection: Connection, news: News) -> None:
    """Raises LineageCycle when the new edges, which are written, close a cycle with those that were there."""
    if len(news.suspects) > MOST_WALKS:
        rows = connection.execute(select(_EDGES.c.parent, _EDGES.c.child))
        check_acyclic((parent, child) for parent, child in rows)
        return
    for edge in news.suspects:
        reached = _reached(edge.child, _EDGES.c.parent, _EDGES.c.child)
        if connection.execute(select(reached.c.id).where(reached.c.id == edge.parent).limit(1)).first() is not None:
            raise closed_by(edge)


def _reached(start: VersionId, near: Column[str], far: Column[str]) -> Any:
    """A recursive query: the ids that edges lead to from `start`, from their `near` to their `far` ends, over and
    over. Each comes once, so it ends even on a cycle."""
    reached = select(far.label("id")).where(near == literal(start)).cte("reached", recursive=True)
    return reached.union(select(far).where(and_(near == reached.c.id)))


def _counter(connection: Connection) -> int:
    value: int = connection.execute(_COUNT).scalar_one()
    return value


def _between(table: Table, since: int, upto: int) -> Any:
    return select(table).where(table.c.number > since, table.c.number <= upto).order_by(table.c.number)


def _rows(connection: Connection, table: Table, column: Any, values: Sequence[Any]) -> list[Row[Any]]:
    """The rows with one of these values, in several questions where they are many."""
    wanted = _with_one_of(table, column)
    return [row for part in _parts(values, MANY) for row in connection.execute(wanted, {"values": part})]


@cache
def _with_one_of(table: Table, column: Any) -> Any:
    """Made once: to make a statement takes as long as to run it on SQLite."""
    return select(table).where(column.in_(bindparam("values", expanding=True)))


def _signatures(connection: Connection, ids: Iterable[str]) -> dict[str, DataSignature]:
    rows = _rows(connection, _SIGNATURES, _SIGNATURES.c.id, list(dict.fromkeys(ids)))
    return {row.id: signature_from_bytes(bytes(row.body)) for row in rows}


def _parts(values: Sequence[_Item], most: int) -> Iterator[Sequence[_Item]]:
    for at in range(0, len(values), most):
        yield values[at : at + most]


def _ignoring(connection: Connection, table: Table) -> Any:
    """An insert that passes over rows whose primary key is there already."""
    if connection.dialect.name == "postgresql":
        return postgresql.insert(table).on_conflict_do_nothing()
    return sqlite.insert(table).on_conflict_do_nothing()
