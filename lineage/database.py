"""The one module that knows SQL engines: SQLite by default, PostgreSQL by URL, the same tables on both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from lineage.errors import StoreUnavailable


def open_database(url: str) -> Engine:
    """An engine for a SQLAlchemy URL such as `sqlite:///path/fenix.db` or `postgresql+psycopg://host/fenix`.

    On SQLite a commit is durable when it returns (write-ahead log, synchronous FULL), writers wait up to 10 s for
    each other, and the folder is made when it is missing. Raises StoreUnavailable when the database does not answer.
    """
    try:
        parsed = make_url(url)
        on_sqlite = parsed.get_backend_name() == "sqlite"
        if on_sqlite and parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        engine = create_engine(parsed, pool_pre_ping=not on_sqlite)
        if on_sqlite:
            event.listen(engine, "connect", _prepare_sqlite)
        with engine.connect():
            pass
    except (SQLAlchemyError, ArgumentError, ImportError, OSError) as error:
        raise StoreUnavailable(
            f"the database does not open: {str(error).splitlines()[0]}", hint="Check the `database` setting."
        ) from error
    return engine


def is_missing(url: str) -> bool:
    """Whether the URL is that of an SQLite file which is not there; `open_database` would make an empty one."""
    try:
        parsed = make_url(url)
    except ArgumentError:
        return False  # opening it says what is wrong
    file = parsed.database if parsed.get_backend_name() == "sqlite" else None
    return bool(file) and file != ":memory:" and not Path(str(file)).exists()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    """A transaction, committed at the end of the block. Raises StoreUnavailable when the database fails; then nothing
    was written."""
    try:
        with engine.begin() as connection:
            yield connection
    except SQLAlchemyError as error:
        raise StoreUnavailable(
            f"the database refused: {str(error).splitlines()[0]}", hint="Nothing was written; try again."
        ) from error


def _prepare_sqlite(connection: Any, _record: Any) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "busy_timeout=10000", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()
