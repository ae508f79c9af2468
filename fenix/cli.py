"""The command line, `fenix`. Each command is a small module in fenix/commands/; heavy imports happen inside them, so
that `fenix --help` answers at once."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fenix.commands.asking import infer, plan
from fenix.commands.catalogue import describe, get
from fenix.commands.choice import choice
from fenix.commands.deploying import deploy, remove
from fenix.commands.feedback import explain as explain_request
from fenix.commands.feedback import feedback
from fenix.commands.jobs import jobs, schedule
from fenix.commands.lifecycle import down, status, up
from fenix.commands.lineage import lineage
from fenix.commands.rollout import rollout
from fenix.commands.rules import rules
from fenix.output import EXIT_CODES, exit_code, explain, fail
from lineage.errors import FenixError


class _Commands(TyperGroup):
    """Turns errors into a message with a way out and an exit code; a trace is shown with --debug only."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except FenixError as error:
            if ctx.params.get("debug"):
                raise
            fail(explain(error))
            raise typer.Exit(exit_code(error)) from None
        except BrokenPipeError:  # whoever read has enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it ends
            raise typer.Exit(1) from None
        except Exception as error:
            # typer's own (Exit, Abort, wrong usage) pass: it shows them itself
            if ctx.params.get("debug") or type(error).__module__.startswith("typer"):
                if isinstance(message := getattr(error, "message", None), str):
                    error.message = message.removeprefix("Value error, ")  # type: ignore[attr-defined]
                raise
            fail(f"{type(error).__name__}: {error}. This should not happen; `fenix --debug ...` shows where it did.")
            raise typer.Exit(1) from None


app = typer.Typer(
    name="fenix",
    cls=_Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + "; ".join(f"{code} {meaning}" for code, meaning in EXIT_CODES.items()) + ".",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        from deployments.gateway.metadata import server_version

        print(f"fenix {server_version()}")
        raise typer.Exit


@app.callback(help="Models that compose themselves for each request. Data goes to stdout, progress to stderr.")
def fenix(
    debug: Annotated[bool, typer.Option("--debug", help="Show the trace of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and end.")
    ] = False,
) -> None:
    pass


for command in (up, down, status, deploy, remove, get, describe, plan, infer, feedback):
    app.command()(command)
app.command("explain")(explain_request)
app.add_typer(rollout)
app.add_typer(rules)
app.add_typer(choice)
app.add_typer(lineage)
app.add_typer(schedule)
app.add_typer(jobs)


def main() -> None:
    """The console script."""
    app()
