"""The lineage into a Neo4j server, as the graph of `rows.py`: merged, so that doing it again changes nothing.

Needs the extra `fenix-serve[neo4j]`. What was taken in once stays: nothing is ever taken out of a lineage.
"""

from __future__ import annotations

from typing import Any, Protocol

from lineage.errors import StoreUnavailable
from lineage.graph.exports.rows import KEYS, property_graph
from lineage.graph.family import Family

BATCH_ROWS = 1_000  # in one transaction


class Driver(Protocol):
    """What of Neo4j's driver is used; `connect` gives one."""

    def execute_query(
        self, query_: Any, parameters_: dict[str, Any] | None = ..., *, database_: str | None = ...
    ) -> Any:
        """Runs a statement in a transaction of its own, again where the server says that this helps."""
        ...


def connect(uri: str, user: str = "", password: str = "") -> Any:
    """A driver for `bolt://host:7687` or `neo4j+s://host`; close it, or use it as a context manager.

    Raises StoreUnavailable without the extra, and when the server does not answer.
    """
    try:
        import neo4j
    except ImportError:
        raise StoreUnavailable(
            "Neo4j needs its driver, which is not installed.", hint="Install it: pip install 'fenix-serve[neo4j]'."
        ) from None
    try:
        driver = neo4j.GraphDatabase.driver(uri, auth=(user, password) if user else None)
    except (neo4j.exceptions.ConfigurationError, ValueError) as error:
        raise StoreUnavailable(f"{uri!r} is no address of a Neo4j server: {error}") from None
    try:
        driver.verify_connectivity()
    except (neo4j.exceptions.Neo4jError, neo4j.exceptions.DriverError) as error:
        driver.close()
        raise StoreUnavailable(
            f"the Neo4j server at {uri} does not answer: {str(error).splitlines()[0]}", hint="Is it running there?"
        ) from error
    return driver


def export_to_neo4j(driver: Driver, family: Family, *, database: str | None = None) -> dict[str, int]:
    """Merges a family, batch by batch; returns how many rows of each kind were sent.

    Each batch is a transaction; when it raises, sending all of it again is safe. Raises what the driver raises.
    """
    for label, key in KEYS.items():  # also makes the merging quick
        driver.execute_query(
            f"CREATE CONSTRAINT fenix_{label.lower()} IF NOT EXISTS FOR (n:{label}) REQUIRE n.{key} IS UNIQUE",
            database_=database,
        )
    sent = {}
    for part in property_graph(family):
        for at in range(0, len(part.rows), BATCH_ROWS):
            driver.execute_query(part.merge, {"rows": part.rows[at : at + BATCH_ROWS]}, database_=database)
        sent[part.name] = len(part.rows)
    return sent
