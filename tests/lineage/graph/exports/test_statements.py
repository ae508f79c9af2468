"""Cypher that does more than read the graph is refused before a database sees it."""

from __future__ import annotations

import pytest

from lineage.errors import LineageRefused
from lineage.graph.exports.statements import check_reads


@pytest.mark.parametrize(
    "statement",
    [
        "MATCH (v:Version) RETURN v.id",
        "  // which ones\n match (v) where v.name = 'CREATE; DROP' return v;",
        "OPTIONAL MATCH (v) RETURN v.`set` /* DELETE; */ ; ",
        "UNWIND [1, 2] AS x WITH x RETURN x ORDER BY x",
        'RETURN "it\\"s; LOAD" AS text',
        "MATCH (v) RETURN v.created, v.dataset, v.offset",
    ],
)
def test_reading_is_allowed(statement: str) -> None:
    check_reads(statement)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("CREATE (v:Version {id: 'x'})", "begins with CREATE"),
        ("MATCH (v) SET v.name = 'x'", "SET does more"),
        ("MATCH (v) DETACH DELETE v", "DETACH does more"),
        ("MATCH (v) merge (w:Version {id: v.id})", "MERGE does more"),
        ("COPY (MATCH (v) RETURN v) TO '/tmp/x.csv'", "begins with COPY"),
        ("LOAD FROM '/etc/passwd' RETURN *", "begins with LOAD"),
        ("WITH 1 AS x LOAD FROM '/etc/passwd' RETURN *", "LOAD does more"),
        ("CALL timeout=0", "begins with CALL"),
        ("MATCH (v) CALL show_tables() RETURN *", "CALL does more"),
        ("EXPORT DATABASE '/tmp/x'", "begins with EXPORT"),
        ("INSTALL httpfs", "begins with INSTALL"),
        ("MATCH (v) RETURN v; DROP TABLE Version", "one statement"),
        ("MATCH (v) RETURN v;;", "one statement"),
        ("RETURN 1 /* /* */ CREATE (v:Version)", "CREATE does more"),
        ("RETURN 'a' // 'b\n SET x = 1", "SET does more"),
        ("RETURN 'not closed", "not closed"),
        ("RETURN 1 /* not closed", "not closed"),
        ("RETURN `not closed", "not closed"),
        ("", "begins with nothing"),
        ("// only a comment", "begins with nothing"),
        ("EXPLAIN MATCH (v) RETURN v", "begins with EXPLAIN"),
    ],
)
def test_all_else_is_refused(statement: str, said: str) -> None:
    with pytest.raises(LineageRefused, match=said):
        check_reads(statement)
