"""Whether a Cypher statement only reads. What is not known to read is refused, and so is what reads files or the net.

A database that is open for reading still writes files (`COPY ... TO`, `EXPORT DATABASE`), reads them (`LOAD FROM`),
fetches extensions and changes its settings (`CALL`), so it is not enough to open it that way.
"""

from __future__ import annotations

import re

from lineage.errors import LineageRefused

_BEGINNINGS = frozenset({"MATCH", "OPTIONAL", "UNWIND", "WITH", "RETURN"})
# fmt: off
_REFUSED = frozenset({
    "ALTER", "ATTACH", "BEGIN", "CALL", "CHECKPOINT", "COMMENT", "COMMIT", "COPY", "CREATE", "DELETE", "DETACH",
    "DROP", "EXPORT", "EXTENSION", "FOREACH", "FORCE", "GRANT", "IMPORT", "INSERT", "INSTALL", "LOAD", "MERGE",
    "REMOVE", "REVOKE", "ROLLBACK", "SET", "UNINSTALL", "UPDATE", "USE",
})
# fmt: on
_TOKEN = re.compile(
    r"""
    (?P<text> '(?:[^'\\]|\\.)*' | "(?:[^"\\]|\\.)*" )
  | (?P<quoted> `[^`]*` )
  | (?P<comment> //[^\n\r]* | /\*.*?\*/ )
  | (?P<param> \$\w+ )
  | (?P<word> [^\W\d]\w* )
  | (?P<end> ; )
  | (?P<open> ['"`] | /\* )
  | (?P<other> . )
    """,
    re.VERBOSE | re.DOTALL,
)


def check_reads(statement: str) -> frozenset[str]:
    """The names of its parameters. Raises LineageRefused unless it is one statement that only reads the graph."""
    words: list[str] = []
    params: set[str] = set()
    ended = False
    for token in _TOKEN.finditer(statement):
        kind = token.lastgroup
        if kind == "open":
            raise LineageRefused("the statement has a quote or comment that is not closed.")
        if kind == "comment" or (kind == "other" and token[0].isspace()):
            continue
        if ended:
            raise LineageRefused("one statement at a time.", hint="Leave out what follows the semicolon.")
        if kind == "param":
            params.add(token[0][1:])
        if kind == "word":
            words.append(token[0].upper())
        ended = kind == "end"
    if not words or words[0] not in _BEGINNINGS:
        begins = words[0] if words else "nothing"
        raise LineageRefused(
            f"the statement begins with {begins}.", hint=f"It may begin with {', '.join(sorted(_BEGINNINGS))}."
        )
    writing = [word for word in words if word in _REFUSED]
    if writing:
        raise LineageRefused(
            f"{writing[0]} does more than read the lineage.",
            hint="This is a copy for reading; quote a name that is the same word in backticks.",
        )
    return frozenset(params)
