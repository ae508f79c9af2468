"""How the command line speaks: data on stdout as a table, JSON or YAML; everything else on stderr."""

from __future__ import annotations

import enum
import json
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from lineage.errors import FenixError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table


class Format(enum.StrEnum):
    """Of the data on stdout."""

    TABLE = "table"
    JSON = "json"
    YAML = "yaml"


# What the exit codes mean; docs/cli.md lists them, and `--help` does.
EXIT_CODES = {
    0: "it worked",
    1: "the request failed",
    2: "the command or what it was given is wrong",
    3: "no cluster answers",
    4: "there is nothing of that name",
    5: "nothing does what is wanted: no plan, terms that cannot be met, an unclear sentence",
}
_CODE_OF = {
    "BadRequest": 2,
    "ClusterDown": 3,
    "NotFound": 4,
    "ModelNotFound": 4,
    "RequestNotFound": 4,
    "FeedbackRefused": 2,
    "NotYourRequest": 2,
    "NoPlan": 5,
    "Unsure": 5,
}
_WAYS_OUT = {
    "BadRequest": "Correct it; `fenix COMMAND --help` shows how it is written.",
    "BadCard": "Nothing was changed; correct it and try again.",
    "ClusterDown": "Start a cluster with `fenix up`.",
    "FeedbackRefused": "Correct it; `fenix feedback --help` shows how it is written.",
    "NotYourRequest": "Leave out --user, or name the user of the request.",
    "RequestNotFound": "The answer's parameters have the trace id.",
    "NotFound": "`fenix get extensions` and `fenix get goals` list what there is.",
    "NoPlan": "`fenix plan` shows what was considered.",
    "Unsure": "`fenix get goals` lists what can be asked.",
    "Overloaded": "Try again in a moment.",
    "ShareExceeded": "Send slower, or less at once.",
    "DeadlineExceeded": "Allow more time with --deadline-ms, or see `fenix status`.",
    "StepFailed": "Try again; `fenix status` shows which extensions are healthy.",
    "StoreUnavailable": "`fenix status` shows whether the database and the model registry run.",
    "FenixError": "`fenix status` shows how the cluster is.",
}
_SECOND_SENTENCE = re.compile(r"[.!?:;] [A-Z`]")


def exit_code(error: FenixError) -> int:
    """The exit code for an error, by the nearest of its classes."""
    return next((_CODE_OF[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _CODE_OF), 1)


def explain(error: FenixError) -> str:
    """The message and what to do next; every error has something. A gateway's message has its own second sentence."""
    if error.hint or _SECOND_SENTENCE.search(error.message):
        return error.text()
    way_out = next(_WAYS_OUT[kind.__name__] for kind in type(error).__mro__ if kind.__name__ in _WAYS_OUT)
    return f"{error.message.rstrip('.')}. {way_out}"


def out() -> Console:
    """The console of the data."""
    from rich.console import Console

    return Console(file=sys.stdout, highlight=False, soft_wrap=False)


def err() -> Console:
    """The console of everything that is not data."""
    from rich.console import Console

    return Console(file=sys.stderr, highlight=False)


def emit(data: Any, format: Format, table: Callable[[], Iterable[RenderableType]]) -> None:
    """Writes `data` (plain, as JSON has it) to stdout; `table` renders it for people."""
    if format is Format.JSON:
        print(_json(data))
    elif format is Format.YAML:
        import yaml

        print(yaml.safe_dump(data, sort_keys=False, allow_unicode=True), end="")
    else:
        console = out()
        for part in table():
            console.print(part)


def _json(data: Any, indent: str = "") -> str:
    """JSON for people, too: a line per field and per object of a list, but tensors in one line."""
    inner = indent + "  "
    if isinstance(data, Mapping) and data:
        lines = [f"{inner}{json.dumps(key)}: {_json(value, inner)}" for key, value in data.items()]
        return "{\n" + ",\n".join(lines) + f"\n{indent}}}"
    if isinstance(data, list) and any(isinstance(item, Mapping) for item in data):
        return "[\n" + ",\n".join(inner + _json(item, inner) for item in data) + f"\n{indent}]"
    return json.dumps(data, ensure_ascii=False)


def fail(message: str) -> None:
    """Says on stderr what went wrong. The message is shown as it is, whatever brackets it has."""
    from rich.text import Text

    err().print(Text.assemble(("Error: ", "bold red"), message), soft_wrap=True)


def grid(columns: Sequence[str], rows: Iterable[Sequence[Any]], *, right: Sequence[str] = (), title: str = "") -> Table:
    """A plain table. `right` are the columns that hold numbers. Cells are text, never markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table(
        box=SIMPLE_HEAD, show_edge=False, pad_edge=False, title=title or None, title_justify="left", title_style="bold"
    )
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold", header_style="bold")
    for row in rows:
        table.add_row(*(cell if isinstance(cell, Text) else Text(str(cell)) for cell in row))
    return table


def pairs(values: Mapping[str, Any]) -> Table:
    """Names and values, one pair a line; empty values are left out."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in values.items():
        if value not in (None, "", [], {}):
            table.add_row(name, value if not isinstance(value, str | int | float) else Text(str(value)))
    return table


class Progress:
    """What goes on, on stderr: one line a step, with the seconds since the start."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._started_s = time.monotonic()

    def __call__(self, message: str) -> None:
        if not self._quiet:
            from rich.text import Text

            took_s = time.monotonic() - self._started_s
            err().print(Text.assemble((f"{took_s:6.1f} s  ", "dim"), message), soft_wrap=True)
