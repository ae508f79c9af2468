"""Where rollouts lie when nothing runs: a contract, a store in memory and the store in SQL."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Float,
    MetaData,
    String,
    Table,
    Text,
    delete,
    insert,
    select,
    update,
)

from lineage.database import open_database, transaction
from planner.rollout.codec import parse_rollout, rollout_to_dict
from planner.rollout.records import Rollout

KEPT_PAST = 50  # rollouts of one extension that are over, beside the last


@dataclass(frozen=True, slots=True)
class Known:
    """Everything that is kept: the last rollout of each extension; `held`, versions (`name@version`) that wait for
    their rollout; by gateway the number of its last report that counted; the last feedback that did; and by model the
    aliases that MLflow and the cluster agreed on."""

    rollouts: Mapping[str, Rollout] = field(default_factory=dict)
    held: frozenset[str] = frozenset()
    reports: Mapping[str, int] = field(default_factory=dict)
    feedback: int = 0
    aliases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Changed:
    """What one write changes: what is named replaces what there was. `forgotten` are extensions without a rollout from
    now on; `reports` are added."""

    rollouts: Sequence[Rollout] = ()
    forgotten: Sequence[str] = ()
    held: frozenset[str] | None = None
    reports: Mapping[str, int] = field(default_factory=dict)
    feedback: int | None = None
    aliases: Mapping[str, Mapping[str, str]] | None = None


class RolloutStore(ABC):
    """Keeps rollouts. One writer at a time. Every method raises StoreUnavailable when the store fails."""

    @abstractmethod
    def load(self) -> Known:
        """What was written last; nothing at first."""

    @abstractmethod
    def write(self, changed: Changed) -> None:
        """When this returns all of it is durable; when it raises, nothing was written."""

    @abstractmethod
    def past(self, extension: str) -> tuple[Rollout, ...]:
        """The rollouts of an extension, the latest first, at most `KEPT_PAST` that are over among them."""


class MemoryRolloutStore(RolloutStore):
    """For tests."""

    def __init__(self) -> None:
        self._known = Known()
        self._all: dict[str, Rollout] = {}

    def load(self) -> Known:
        return self._known

    def write(self, changed: Changed) -> None:
        for rollout in changed.rollouts:
            self._all.pop(rollout.id, None)
            self._all[rollout.id] = rollout
        self._known = after(self._known, changed)

    def past(self, extension: str) -> tuple[Rollout, ...]:
        found = sorted((r for r in self._all.values() if r.extension == extension), key=lambda r: -r.started_s)
        return tuple(found[: KEPT_PAST + 1])


def after(known: Known, changed: Changed) -> Known:
    """What is kept once a change is written."""
    rollouts = dict(known.rollouts)
    for rollout in changed.rollouts:
        rollouts[rollout.extension] = rollout
    for extension in changed.forgotten:
        rollouts.pop(extension, None)
    return replace(
        known,
        rollouts=rollouts,
        held=known.held if changed.held is None else changed.held,
        reports={**known.reports, **changed.reports},
        feedback=known.feedback if changed.feedback is None else changed.feedback,
        aliases=known.aliases if changed.aliases is None else changed.aliases,
    )


_METADATA = MetaData()
_ROLLOUTS = Table(
    "rollouts",
    _METADATA,
    Column("id", String(512), primary_key=True),
    Column("extension", String(255), nullable=False, index=True),
    Column("started_s", Float(53), nullable=False),
    Column("is_last", Boolean, nullable=False),
    Column("body", Text, nullable=False),
)
_REPORTS = Table(
    "rollout_reports",
    _METADATA,
    Column("gateway", String(64), primary_key=True),
    Column("number", BigInteger, nullable=False),
)
_STATE = Table(
    "rollout_state",
    _METADATA,
    Column("name", String(32), primary_key=True),
    Column("value", Text, nullable=False),
)


class SqlRolloutStore(RolloutStore):
    """A row per rollout, and what else there is, changed together in one transaction."""

    def __init__(self, url: str) -> None:
        self._engine = open_database(url)
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)

    def load(self) -> Known:
        with transaction(self._engine) as connection:
            rows = connection.execute(select(_ROLLOUTS.c.body).where(_ROLLOUTS.c.is_last)).scalars().all()
            reports = {row.gateway: row.number for row in connection.execute(select(_REPORTS))}
            state = {row.name: json.loads(row.value) for row in connection.execute(select(_STATE))}
        rollouts = [parse_rollout(json.loads(body)) for body in rows]
        return Known(
            {rollout.extension: rollout for rollout in rollouts},
            frozenset(state.get("held", ())),
            reports,
            int(state.get("feedback", 0)),
            state.get("aliases", {}),
        )

    def write(self, changed: Changed) -> None:
        with transaction(self._engine) as connection:
            for rollout in changed.rollouts:
                _put_rollout(connection, rollout)
            for extension in changed.forgotten:
                _no_last(connection, extension)
            for gateway, number in changed.reports.items():
                _put(connection, _REPORTS, {"gateway": gateway}, {"number": number})
            for name, value in (
                ("held", None if changed.held is None else sorted(changed.held)),
                ("feedback", changed.feedback),
                ("aliases", changed.aliases),
            ):
                if value is not None:
                    _put(connection, _STATE, {"name": name}, {"value": json.dumps(value)})

    def past(self, extension: str) -> tuple[Rollout, ...]:
        wanted = select(_ROLLOUTS.c.body).where(_ROLLOUTS.c.extension == extension)
        with transaction(self._engine) as connection:
            rows = connection.execute(wanted.order_by(_ROLLOUTS.c.started_s.desc()).limit(KEPT_PAST + 1))
            bodies = rows.scalars().all()
        return tuple(parse_rollout(json.loads(body)) for body in bodies)

    def close(self) -> None:
        """Closes the connections."""
        self._engine.dispose()


def _put_rollout(connection: Connection, rollout: Rollout) -> None:
    values = {
        "extension": rollout.extension,
        "started_s": rollout.started_s,
        "is_last": True,
        "body": json.dumps(rollout_to_dict(rollout)),
    }
    if connection.execute(update(_ROLLOUTS).where(_ROLLOUTS.c.id == rollout.id).values(values)).rowcount:
        return
    _no_last(connection, rollout.extension)
    connection.execute(insert(_ROLLOUTS).values(id=rollout.id, **values))
    over = select(_ROLLOUTS.c.id).where(_ROLLOUTS.c.extension == rollout.extension)
    over = over.order_by(_ROLLOUTS.c.started_s.desc()).offset(KEPT_PAST + 1)
    old = connection.execute(over).scalars().all()
    if old:
        connection.execute(delete(_ROLLOUTS).where(_ROLLOUTS.c.id.in_(old)))


def _no_last(connection: Connection, extension: str) -> None:
    connection.execute(update(_ROLLOUTS).where(_ROLLOUTS.c.extension == extension).values(is_last=False))


def _put(connection: Connection, table: Table, key: dict[str, str], values: dict[str, Any]) -> None:
    ((name, value),) = key.items()
    if not connection.execute(update(table).where(table.c[name] == value).values(values)).rowcount:
        connection.execute(insert(table).values(**key, **values))
