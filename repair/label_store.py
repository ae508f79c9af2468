"""The label queue in SQL."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Float,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    case,
    delete,
    func,
    insert,
    select,
    update,
)

from lineage.database import open_database, transaction
from repair.labels import (
    LEASE_S,
    MOST_LABEL_CHARS,
    MOST_NAME_CHARS,
    Figures,
    Item,
    Label,
    Labelled,
    LabelQueue,
    Refusal,
    Taken,
    check_lease,
    unknown_item,
)

_METADATA = MetaData()
_ITEMS = Table(
    "label_items",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("id", String(MOST_NAME_CHARS), nullable=False, unique=True),
    Column("repair", String(MOST_NAME_CHARS), nullable=False, index=True),
    Column("data", Text, nullable=False),
    Column("reason", String(64), nullable=False),
    Column("n_wanted", Integer, nullable=False),
    Column("asked_s", Float(53), nullable=False),
    Column("closed", Boolean, nullable=False),
)
_LABELS = Table(
    "label_answers",
    _METADATA,
    Column("number", Integer, primary_key=True, autoincrement=True),
    Column("item", String(MOST_NAME_CHARS), nullable=False, index=True),
    Column("annotator", String(MOST_NAME_CHARS), nullable=False),
    Column("label", String(MOST_LABEL_CHARS), nullable=False),
    Column("at_s", Float(53), nullable=False),
)
_LEASES = Table(
    "label_leases",
    _METADATA,
    Column("item", String(MOST_NAME_CHARS), primary_key=True),
    Column("annotator", String(MOST_NAME_CHARS), primary_key=True),
    Column("until_s", Float(53), nullable=False),
)
# Who changes the queue first changes this row: it puts writers one after the other, on PostgreSQL too.
_TURNS = Table("label_turns", _METADATA, Column("id", Integer, primary_key=True), Column("n", Integer, nullable=False))
_PIECE = 500  # ids in one statement


class SqlLabelQueue(LabelQueue):
    """A row per item, per label and per lease. Several processes may use the same database."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)
            if connection.execute(select(_TURNS.c.id)).first() is None:
                connection.execute(insert(_TURNS).values(id=1, n=0))

    def ask(self, items: Sequence[Item], now_s: float) -> int:
        wanted = {item.id: item for item in reversed(items)}
        with transaction(self._engine) as connection:
            _take_turn(connection)
            known = set(_known(connection, wanted))
            new = [wanted[id_] for id_ in dict.fromkeys(item.id for item in items) if id_ not in known]
            if new:
                rows = [
                    {
                        "id": item.id,
                        "repair": item.repair,
                        "data": json.dumps(dict(item.data)),
                        "reason": item.reason[:64],
                        "n_wanted": item.n_wanted,
                        "asked_s": now_s,
                        "closed": False,
                    }
                    for item in new
                ]
                connection.execute(insert(_ITEMS), rows)
        return len(new)

    def lease(
        self, annotator: str, n: int, now_s: float, *, lease_s: float = LEASE_S, repair: str = ""
    ) -> tuple[Item, ...]:
        check_lease(annotator, n, lease_s)
        labels = select(func.count()).where(_LABELS.c.item == _ITEMS.c.id).scalar_subquery()
        running = (_LEASES.c.item == _ITEMS.c.id) & (_LEASES.c.until_s > now_s)
        answered = select(_LABELS.c.number).where(
            (_LABELS.c.item == _LEASES.c.item) & (_LABELS.c.annotator == _LEASES.c.annotator)
        )
        others = (
            select(func.count())
            .where(running, _LEASES.c.annotator != annotator, ~answered.exists())
            .correlate(_ITEMS)
            .scalar_subquery()
        )
        mine = select(_LEASES.c.item).where(running, _LEASES.c.annotator == annotator).correlate(_ITEMS).exists()
        done = select(_LABELS.c.item).where(_LABELS.c.item == _ITEMS.c.id, _LABELS.c.annotator == annotator).exists()
        wanted = select(_ITEMS).where(~_ITEMS.c.closed, ~done, labels + others < _ITEMS.c.n_wanted)
        if repair:
            wanted = wanted.where(_ITEMS.c.repair == repair)
        wanted = wanted.order_by(case((mine, 0), else_=1), _ITEMS.c.number).limit(n)
        with transaction(self._engine) as connection:
            _take_turn(connection)
            connection.execute(delete(_LEASES).where(_LEASES.c.until_s <= now_s))
            found = tuple([_item(row) for row in connection.execute(wanted).mappings()])
            if found:
                ids = [item.id for item in found]
                held = _LEASES.c.item.in_(ids) & (_LEASES.c.annotator == annotator)
                connection.execute(delete(_LEASES).where(held))
                until_s = now_s + lease_s
                connection.execute(
                    insert(_LEASES), [{"item": id_, "annotator": annotator, "until_s": until_s} for id_ in ids]
                )
        return found

    def give(self, labels: Sequence[Label]) -> Taken:
        new = repeated = changed = 0
        refused = []
        with transaction(self._engine) as connection:
            _take_turn(connection)
            known = set(_known(connection, {label.item for label in labels}))
            before = {
                (row.item, row.annotator): row.label
                for piece in _pieces(sorted(known))
                for row in connection.execute(select(_LABELS).where(_LABELS.c.item.in_(piece)))
            }
            for position, label in enumerate(labels):
                key = label.item, label.annotator
                values = {"label": label.label, "at_s": label.at_s}
                if label.item not in known:
                    refused.append(Refusal(position, unknown_item(label.item)))
                    continue
                if key not in before:
                    new += 1
                    connection.execute(insert(_LABELS).values(item=key[0], annotator=key[1], **values))
                elif before[key] == label.label:
                    repeated += 1
                    continue
                else:
                    changed += 1
                    this = (_LABELS.c.item == key[0]) & (_LABELS.c.annotator == key[1])
                    connection.execute(update(_LABELS).where(this).values(values))
                before[key] = label.label
        return Taken(new, repeated, changed, tuple(refused))

    def want(self, items: Iterable[str], n_wanted: int) -> None:
        ids = list(items)
        with transaction(self._engine) as connection:
            _take_turn(connection)
            missing = set(ids) - set(_known(connection, ids))
            if missing:
                raise unknown_item(min(missing))
            for piece in _pieces(ids):
                fewer = _ITEMS.c.id.in_(piece) & (_ITEMS.c.n_wanted < n_wanted)
                connection.execute(update(_ITEMS).where(fewer).values(n_wanted=n_wanted))

    def close(self, repair: str) -> int:
        with transaction(self._engine) as connection:
            _take_turn(connection)
            n_open = _figures(connection, repair).n_open
            connection.execute(update(_ITEMS).where(_ITEMS.c.repair == repair).values(closed=True))
        return n_open

    def labelled(self, repair: str) -> tuple[Labelled, ...]:
        of_repair = _ITEMS.c.repair == repair
        with transaction(self._engine) as connection:
            items = connection.execute(select(_ITEMS).where(of_repair).order_by(_ITEMS.c.number)).mappings().all()
            answers = connection.execute(
                select(_LABELS).join(_ITEMS, _ITEMS.c.id == _LABELS.c.item).where(of_repair).order_by(_LABELS.c.number)
            ).all()
        by_item: dict[str, list[Label]] = {row["id"]: [] for row in items}
        for row in answers:
            if row.item in by_item:
                by_item[row.item].append(Label(row.item, row.annotator, row.label, row.at_s))
        return tuple([Labelled(_item(row), tuple(by_item[row["id"]]), bool(row["closed"])) for row in items])

    def figures(self, repair: str = "") -> Figures:
        with transaction(self._engine) as connection:
            return _figures(connection, repair)

    def shut(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _take_turn(connection: Connection) -> None:
    connection.execute(update(_TURNS).where(_TURNS.c.id == 1).values(n=_TURNS.c.n + 1))


def _known(connection: Connection, ids: Iterable[str]) -> list[str]:
    return [
        id_
        for piece in _pieces(sorted(set(ids)))
        for id_ in connection.execute(select(_ITEMS.c.id).where(_ITEMS.c.id.in_(piece))).scalars()
    ]


def _pieces(ids: Sequence[str]) -> list[Sequence[str]]:
    return [ids[i : i + _PIECE] for i in range(0, len(ids), _PIECE)]


def _figures(connection: Connection, repair: str) -> Figures:
    labels = select(func.count()).where(_LABELS.c.item == _ITEMS.c.id).scalar_subquery()
    is_open = case((~_ITEMS.c.closed & (labels < _ITEMS.c.n_wanted), 1), else_=0)
    wanted = select(is_open.label("is_open"), labels.label("n_labels"))
    if repair:
        wanted = wanted.where(_ITEMS.c.repair == repair)
    of = wanted.subquery()
    summed = select(func.count(), func.coalesce(func.sum(of.c.is_open), 0), func.coalesce(func.sum(of.c.n_labels), 0))
    n_items, n_open, n_labels = connection.execute(summed).one()
    return Figures(n_items, int(n_open), int(n_labels))


def _item(row: RowMapping) -> Item:
    return Item(row["id"], row["repair"], json.loads(row["data"]), row["reason"], row["n_wanted"])
