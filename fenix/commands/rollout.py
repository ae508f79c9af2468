"""`fenix rollout`: versions on trial, and one command back to any former one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.catalogue import percent
from fenix.commands.options import Output, SettingsFile, TimeoutS, Url, assignments, open_client
from fenix.output import Format, emit, grid, pairs
from planner.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

Extension = Annotated[
    str, typer.Argument(metavar="EXTENSION", show_default=False, help="An extension, without its version.")
]
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; it is kept in the history.")]

rollout = typer.Typer(
    name="rollout",
    help="Try a new version on some of the traffic, let it serve, or go back to a former one.",
    no_args_is_help=True,
    rich_markup_mode="rich",
)


@rollout.command()
def start(
    version: Annotated[
        str, typer.Argument(metavar="EXTENSION@VERSION", show_default=False, help="A version that is deployed.")
    ],
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="A YAML file with steps and margins.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-p", metavar="KEY=VALUE", help="One part of the plan; repeatable."),
    ] = None,
    against: Annotated[
        str, typer.Option("--against", metavar="VERSION", help="What it is tried against, where that is not clear.")
    ] = "",
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Begin to try a version: in the shadow first, then on a growing share, by itself."""
    with open_client(url, settings, timeout_s) as client:
        data = client.start_rollout(version, plan=read_plan(plan, option), champion=against)
    emit(data, output, lambda: _shown(data))


@rollout.command()
def status(
    extension: Annotated[
        str, typer.Argument(metavar="[EXTENSION]", show_default=False, help="One extension, in full.")
    ] = "",
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Show which versions serve, what is tried and how it does."""
    with open_client(url, settings, timeout_s) as client:
        if extension:
            data: Any = client.rollout(extension)
            emit(data, output, lambda: _described(data))
        else:
            data = client.rollouts()
            emit(data, output, lambda: _listed(data))


@rollout.command()
def promote(
    extension: Annotated[
        str,
        typer.Argument(metavar="EXTENSION[@VERSION]", show_default=False, help="Without a version, what is tried."),
    ],
    reason: Reason = "",
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Let the version that is tried serve all requests at once, whatever the evidence."""
    name, _, version = extension.partition("@")
    with open_client(url, settings, timeout_s) as client:
        data = client.promote(name, version, reason=reason)
    emit(data, output, lambda: _shown(data))


@rollout.command()
def rollback(
    extension: Extension,
    to: Annotated[
        str, typer.Option("--to", metavar="VERSION", help="Where to; else to who served before.", show_default=False)
    ] = "",
    reason: Reason = "",
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Go back to a version that served before, at once. It is still warm."""
    with open_client(url, settings, timeout_s) as client:
        data = client.roll_back(extension, to, reason=reason)
    emit(data, output, lambda: _shown(data))


@rollout.command()
def pause(
    extension: Extension,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Keep the share where it is. What does harm is rolled back all the same."""
    with open_client(url, settings, timeout_s) as client:
        data = client.pause_rollout(extension)
    emit(data, output, lambda: _shown(data))


@rollout.command()
def resume(
    extension: Extension,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """Let a paused rollout go on."""
    with open_client(url, settings, timeout_s) as client:
        data = client.resume_rollout(extension)
    emit(data, output, lambda: _shown(data))


@rollout.command()
def abort(
    extension: Extension,
    output: Output = Format.TABLE,
    url: Url = "",
    settings: SettingsFile = None,
    timeout_s: TimeoutS = 30.0,
) -> None:
    """End a rollout without a judgement; who served goes on."""
    with open_client(url, settings, timeout_s) as client:
        data = client.abort_rollout(extension)
    emit(data, output, lambda: _shown(data))


def read_plan(file: Path | None, options: list[str] | None) -> dict[str, Any] | None:
    """The plan of a rollout from a YAML file and `key=value` options; None where there is neither."""
    given: dict[str, Any] = {}
    if file is not None:
        import yaml

        try:
            read = yaml.safe_load(file.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise BadRequest(f"{file} cannot be read: {str(error).splitlines()[0]}.") from None
        if not isinstance(read, dict):
            raise BadRequest(f"{file} holds no plan.", hint="Write it like `accuracy_margin: 0.01`.")
        given.update(read)
    given.update(assignments(options, "--option"))
    return given or None


# ------------------------------------------------------------------------------------------------------------ tables


def _shares(data: Mapping[str, Any]) -> str:
    return ", ".join(f"{version}: {percent(share)}" for version, share in data["shares"].items())


def _shown(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield pairs(
        {
            "extension": data["extension"],
            "stage": _stage(data),
            "serve": _shares(data),
            "unseen": _unseen(data),
            "waits for": data["waits_for"],
            "warm": ", ".join(data["warm"]),
            "gateways": "" if data["followed"] else "not all of them have followed yet",
        }
    )


def _stage(data: Mapping[str, Any]) -> str:
    stage: str = data["stage"].replace("_", " ")
    if data["running"]:
        stage += f", step {data['step'] + 1} of {data['n_steps']}: {data['challenger']} against {data['champion']}"
    return stage + (" (paused)" if data["paused"] else "")


def _unseen(data: Mapping[str, Any]) -> str:
    said = []
    if data["mirrored"]:
        said.append(f"{data['challenger']} answers {percent(data['mirrored'])} of what {data['champion']} serves")
    if data["checked"]:
        said.append(f"{data['champion']} answers {percent(data['checked'])} of what {data['challenger']} serves")
    return "; ".join(said)


def _listed(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "Nothing was tried yet. `fenix rollout start EXTENSION@VERSION` does."
        return
    rows = [(one["extension"], _stage(one), _shares(one), ", ".join(one["warm"]), one["waits_for"]) for one in data]
    yield grid(("extension", "stage", "serve", "warm", "waits for"), rows)


def _described(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield from _shown(data)
    if data["findings"]:
        rows = [
            (
                one["test"],
                one["verdict"],
                _value(one, "champion"),
                _value(one, "challenger"),
                str(one["n_champion"]),
                str(one["n_challenger"]),
                f"{one['log_e_worse']:.1f} of {one['log_needed']:.1f}",
                f"{one['log_e_not_worse']:.1f} of {one['log_enough']:.1f}",
            )
            for one in data["findings"]
        ]
        numbers = ("champion", "challenger", "n champion", "n challenger", "worse", "not worse")
        yield ""
        yield grid(("test", "verdict", *numbers), rows, right=numbers, title="Evidence (logarithms of e-values)")
    yield ""
    yield grid(("when", "what", "by", "stage", "share", "why"), _history(data), right=("share",), title="History")
    for past in data["past"]:
        yield ""
        title = f"Before: {past['challenger']} against {past['champion']}"
        yield grid(("when", "what", "by", "stage", "share", "why"), _history(past), right=("share",), title=title)
    if data["remarks"]:
        yield ""
        yield grid(("when", "remark"), [(_when(one["at_s"]), one["said"]) for one in data["remarks"]])


def _history(data: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for event in data["history"]:
        yield (
            _when(event["at_s"]),
            event["action"].replace("_", " "),
            event["by"],
            event["stage"].replace("_", " "),
            percent(event["share"]),
            event["reason"],
        )


def _value(finding: Mapping[str, Any], of: str) -> str:
    value = finding[of]
    if not finding[f"n_{of}"]:
        return ""
    return f"{value:.2f} ms" if finding["test"].startswith("latency") else f"{100 * value:.2f} %"


def _when(at_s: float) -> str:
    return datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
