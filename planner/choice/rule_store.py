"""The rules in SQL. What was acknowledged is durable."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Column, Engine, Float, MetaData, String, Table, delete, func, insert, select

from lineage.database import transaction
from planner.choice.rules import Rule
from planner.errors import BadRequest, Conflict, NotFound, near

MOST_RULES = 1_000
MOST_CHARS = 512

_METADATA = MetaData()
_RULES = Table(
    "choice_rules",
    _METADATA,
    Column("rule", String(MOST_CHARS), primary_key=True),
    Column("added_s", Float(53), nullable=False),
)


@dataclass(frozen=True, slots=True)
class StoredRule:
    """A rule, and since when it is in force, since 1970."""

    rule: Rule
    added_s: float


class RuleStore:
    """Rules in a database, at most `MOST_RULES`. May be called from several threads; every method raises
    StoreUnavailable when the database fails, and then nothing was changed."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        with transaction(self._engine) as connection:
            _METADATA.create_all(connection)

    def rules(self) -> tuple[StoredRule, ...]:
        """All of them, the oldest first."""
        with transaction(self._engine) as connection:
            rows = connection.execute(select(_RULES).order_by(_RULES.c.added_s, _RULES.c.rule)).all()
        return tuple([StoredRule(Rule.parse(row.rule), row.added_s) for row in rows])

    def add(self, text: str, now_s: float) -> StoredRule:
        """Takes the rule of a line. One that is there already stays as it is. Raises BadRequest, and Conflict when
        there are too many."""
        rule = Rule.parse(text)
        if len(str(rule)) > MOST_CHARS:
            raise BadRequest(f"a rule has at most {MOST_CHARS} characters.")
        with transaction(self._engine) as connection:
            for known in connection.execute(select(_RULES).where(_RULES.c.rule == str(rule))):
                return StoredRule(rule, known.added_s)
            if connection.execute(select(func.count()).select_from(_RULES)).scalar_one() >= MOST_RULES:
                raise Conflict(f"there are {MOST_RULES} rules already.", hint="Remove some, or use patterns.")
            connection.execute(insert(_RULES), [{"rule": str(rule), "added_s": now_s}])
        return StoredRule(rule, now_s)

    def remove(self, text: str) -> None:
        """Takes a rule back. Raises BadRequest, and NotFound where there is none like it."""
        rule = str(Rule.parse(text))
        with transaction(self._engine) as connection:
            if not connection.execute(delete(_RULES).where(_RULES.c.rule == rule)).rowcount:
                known = connection.execute(select(_RULES.c.rule)).scalars().all()
                raise NotFound(f"there is no rule {rule!r}.", hint=near(rule, known))
