"""Where the catalogue lies when nothing runs: a contract, a store in memory and the store in SQL."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sqlalchemy import JSON, Column, Connection, Integer, MetaData, String, Table, delete, insert, select, update

from lineage.database import open_database, transaction
from planner.card_codec import card_to_dict, goal_to_dict, parse_card, parse_goal
from planner.catalogue import Catalogue, Change


class CatalogueStore(ABC):
    """Keeps the newest catalogue. One writer at a time."""

    @abstractmethod
    def load(self) -> Catalogue:
        """The catalogue as last written; epoch 0 and empty at first."""

    @abstractmethod
    def write(self, change: Change) -> None:
        """Applies one change. When this returns it is durable; when it raises, nothing was written.

        Raises ValueError unless the change follows the stored epoch, StoreUnavailable when the store fails.
        """


class MemoryCatalogueStore(CatalogueStore):
    """For tests and for a catalogue that need not outlive its process."""

    def __init__(self) -> None:
        self._catalogue = Catalogue()

    def load(self) -> Catalogue:
        return self._catalogue

    def write(self, change: Change) -> None:
        self._catalogue = self._catalogue.apply(change)


_METADATA = MetaData()
_EPOCH = Table("catalogue_epoch", _METADATA, Column("id", Integer, primary_key=True), Column("epoch", Integer))
_CARDS = Table(
    "catalogue_cards",
    _METADATA,
    Column("id", String(255), primary_key=True),
    Column("position", Integer, nullable=False),  # order of registration
    Column("body", JSON, nullable=False),
)
_GOALS = Table(
    "catalogue_goals",
    _METADATA,
    Column("name", String(127), primary_key=True),
    Column("position", Integer, nullable=False),
    Column("body", JSON, nullable=False),
)


class SqlCatalogueStore(CatalogueStore):
    """One row per card and goal, and the epoch, changed together in one transaction."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)
            if connection.execute(select(_EPOCH.c.epoch)).first() is None:
                connection.execute(insert(_EPOCH).values(id=1, epoch=0))

    def load(self) -> Catalogue:
        with transaction(self._engine) as connection:
            epoch = connection.execute(select(_EPOCH.c.epoch)).scalar_one()
            cards = connection.execute(select(_CARDS.c.id, _CARDS.c.body).order_by(_CARDS.c.position)).all()
            goals = connection.execute(select(_GOALS.c.name, _GOALS.c.body).order_by(_GOALS.c.position)).all()
        return Catalogue.of(
            (parse_card(body, where=f"stored card {id_}") for id_, body in cards),
            (parse_goal(body, where=f"stored goal {name}") for name, body in goals),
            epoch=epoch or 0,
        )

    def write(self, change: Change) -> None:
        with transaction(self._engine) as connection:
            moved = connection.execute(
                update(_EPOCH).where(_EPOCH.c.epoch == change.epoch - 1).values(epoch=change.epoch)
            )
            if moved.rowcount != 1:
                raise ValueError(f"change {change.epoch} does not follow the stored epoch")
            for card in change.put_cards:
                _put(connection, _CARDS, "id", card.id, change.epoch, card_to_dict(card))
            for goal in change.put_goals:
                _put(connection, _GOALS, "name", goal.name, change.epoch, goal_to_dict(goal))
            for id_ in change.removed_cards:
                connection.execute(delete(_CARDS).where(_CARDS.c.id == id_))
            for name in change.removed_goals:
                connection.execute(delete(_GOALS).where(_GOALS.c.name == name))

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _put(connection: Connection, table: Table, key: str, value: str, epoch: int, body: dict[str, object]) -> None:
    changed = connection.execute(update(table).where(table.c[key] == value).values(body=body))
    if changed.rowcount == 0:
        connection.execute(insert(table).values({key: value, "position": epoch, "body": body}))
