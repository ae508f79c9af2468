"""`fenix rules`: what users are to be served by, or not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import Output, SettingsFile, TimeoutS, Url, open_client
from fenix.output import Format, emit, grid

if TYPE_CHECKING:
    from rich.console import RenderableType

Words = Annotated[
    list[str],
    typer.Argument(metavar="RULE", show_default=False, help="The rule, such as: pin reader@2 for ann."),
]

rules = typer.Typer(
    name="rules",
    help="Pin or exclude extensions and plans, per user, segment or goal.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@rules.command("list")
def list_rules(
    output: Output = Format.TABLE, url: Url = "", settings: SettingsFile = None, timeout_s: TimeoutS = 30.0
) -> None:
    """Show the rules that are in force."""
    with open_client(url, settings, timeout_s) as client:
        data = client.rules()
    emit(data, output, lambda: _listed(data))


@rules.command()
def add(
    rule: Words, output: Output = Format.TABLE, url: Url = "", settings: SettingsFile = None, timeout_s: TimeoutS = 30.0
) -> None:
    """Add a rule. It is durable when this returns, and in force within two seconds."""
    with open_client(url, settings, timeout_s) as client:
        data = client.add_rule(" ".join(rule))
    emit(data, output, lambda: _listed([data]))


@rules.command()
def remove(
    rule: Words, output: Output = Format.TABLE, url: Url = "", settings: SettingsFile = None, timeout_s: TimeoutS = 30.0
) -> None:
    """Take a rule back."""
    with open_client(url, settings, timeout_s) as client:
        data = client.remove_rule(" ".join(rule))
    emit(data, output, lambda: _listed(data))


def _listed(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "There are no rules."
        return
    rows = [(one["rule"], datetime.fromtimestamp(one["added_s"], UTC).strftime("%Y-%m-%d %H:%M UTC")) for one in data]
    yield grid(("rule", "since"), rows)
