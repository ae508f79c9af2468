"""`fenix schedule` and `fenix jobs`: what runs beside serving, at times or when asked."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from fenix.commands.options import Output, SettingsFile, load_settings
from fenix.output import Format, emit, grid, pairs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.jobs.actor import JobsClient
    from cluster.jobs.keeper import Planned
    from cluster.jobs.records import Job
    from cluster.settings import Settings

_T = TypeVar("_T")
LOG_LINES = 20
MOST_SHOWN = 48  # characters of a command in a list

Name = Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="The schedule.")]
Id = Annotated[str, typer.Argument(metavar="ID", show_default=False, help="The job.")]
Command = Annotated[
    list[str],
    typer.Argument(metavar="COMMAND", show_default=False, help="What is run; after --."),
]
Lane = Annotated[str, typer.Option("--lane", help="Of the jobs of one lane one runs at a time.")]

schedule = typer.Typer(
    name="schedule", help="Run commands at times, by cron expressions.", no_args_is_help=True, rich_markup_mode="rich"
)
jobs = typer.Typer(
    name="jobs", help="What runs beside serving, and what has run.", no_args_is_help=True, rich_markup_mode="rich"
)


@schedule.command("list")
def list_schedules(output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Show the schedules and when each is next."""
    _planned(settings, lambda client: client.schedules(), output)


@schedule.command("add")
def add_schedule(
    name: Annotated[str, typer.Argument(metavar="NAME", show_default=False, help="What it is called.")],
    cron: Annotated[
        str,
        typer.Argument(
            metavar="CRON", show_default=False, help='Minute, hour, day of month, month, day of week: "0 3 * * *".'
        ),
    ],
    command: Command,
    lane: Lane = "",
    timezone: Annotated[str, typer.Option("--timezone", help="IANA name of the zone that CRON is in.")] = "UTC",
    missed: Annotated[
        str,
        typer.Option("--missed", help="Times that passed unseen: skip, latest (one run for all) or all."),
    ] = "latest",
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
) -> None:
    """Run a command at each time that CRON names. It is durable when this returns."""
    from cluster.jobs.records import Schedule

    made = Schedule(name, cron, tuple(command), lane, timezone, missed)  # type: ignore[arg-type]  # it checks that
    _planned(settings, lambda client: client.add(made), output)


@schedule.command("remove")
def remove_schedule(name: Name, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Forget a schedule; its jobs stay."""
    _planned(settings, lambda client: client.remove(name), output)


@schedule.command("pause")
def pause_schedule(name: Name, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Run nothing from now on, until it is resumed."""
    _planned(settings, lambda client: client.pause(name), output)


@schedule.command("resume")
def resume_schedule(name: Name, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Go on with a paused schedule; what it paused for is not caught up with."""
    _planned(settings, lambda client: client.resume(name), output)


@schedule.command("run-now")
def run_schedule_now(name: Name, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Run the command of a schedule once, now, beside its times."""
    _jobs(settings, lambda client: client.run_now(name), output)


@jobs.command("list")
def list_jobs(
    most: Annotated[int, typer.Option("--most", min=1, help="How many of the latest.")] = 20,
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
) -> None:
    """Show the latest jobs."""
    _jobs(settings, lambda client: client.jobs(most), output)


@jobs.command("submit")
def submit_job(
    command: Command,
    id: Annotated[
        str, typer.Option("--id", help="Its id; one that is known already is not run again.", show_default="a new one")
    ] = "",
    lane: Lane = "",
    output: Output = Format.TABLE,
    settings: SettingsFile = None,
) -> None:
    """Run a command once, beside serving. It is durable when this returns."""
    from cluster.jobs.records import Job

    job = Job(id or f"job-{time.time_ns() // 1_000_000}", tuple(command), lane)
    _jobs(settings, lambda client: client.submit(job), output)


@jobs.command("stop")
def stop_job(id: Id, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """End a job that runs or waits."""
    _jobs(settings, lambda client: client.stop(id), output)


@jobs.command("show")
def show_job(id: Id, output: Output = Format.TABLE, settings: SettingsFile = None) -> None:
    """Show one job and the end of what it printed."""
    job, running = _asked(settings, lambda client: client.job(id))
    printed = _printed(running, job)
    data = {**asdict(job), "printed": printed}
    emit(data, output, lambda: _shown_job(data))


def _asked(file: SettingsFile, question: Callable[[JobsClient], Awaitable[_T]]) -> tuple[_T, Settings]:
    """Asks the keeper of jobs of the cluster that runs here, which it starts where there was nothing to do so far."""
    from cluster import lifecycle

    running = lifecycle.running_settings(load_settings(file, None))
    with lifecycle.connected(running):
        from cluster.jobs.actor import JobsClient, start_jobs

        start_jobs(running)

        async def ask() -> _T:
            return await question(JobsClient())

        return asyncio.run(ask()), running


def _planned(
    file: SettingsFile,
    question: Callable[[JobsClient], Awaitable[Planned | tuple[Planned, ...]]],
    output: Format,
) -> None:
    found, _ = _asked(file, question)
    data = [{**asdict(one.schedule), "next_s": one.next_s} for one in (found if isinstance(found, tuple) else (found,))]
    emit(data, output, lambda: _shown_schedules(data))


def _jobs(
    file: SettingsFile,
    question: Callable[[JobsClient], Awaitable[Job | tuple[Job, ...]]],
    output: Format,
) -> None:
    found, _ = _asked(file, question)
    data = [asdict(one) for one in (found if isinstance(found, tuple) else (found,))]
    emit(data, output, lambda: _shown_jobs(data))


def _printed(settings: Settings, job: Job) -> list[str]:
    """The last lines that a job printed here; those of Ray's own jobs are in its dashboard."""
    from cluster.jobs.actor import log_folder

    try:
        text = (log_folder(settings.state_dir) / f"{job.id}.log").read_text(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-LOG_LINES:]


def _shown_schedules(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "There are no schedules."
        return
    rows = [
        (
            one["name"],
            one["cron"] + ("" if one["timezone"] == "UTC" else f" ({one['timezone']})"),
            "paused" if one["paused"] else _when(one["next_s"]),
            one["missed"],
            _short(one["command"]),
        )
        for one in data
    ]
    yield grid(("schedule", "cron", "next (UTC)", "missed", "command"), rows)


def _shown_jobs(data: Sequence[Mapping[str, Any]]) -> Iterator[RenderableType]:
    if not data:
        yield "There are no jobs."
        return
    rows = [
        (
            one["id"],
            one["state"],
            _when(one["submitted_s"]),
            _took(one),
            _short(one["command"]),
            one["said"][:MOST_SHOWN],
        )
        for one in data
    ]
    yield grid(("job", "state", "submitted (UTC)", "took", "command", "why"), rows, right=("took",))


def _shown_job(data: Mapping[str, Any]) -> Iterator[RenderableType]:
    yield pairs(
        {
            "job": data["id"],
            "command": " ".join(data["command"]),
            "state": data["state"],
            "why": data["said"],
            "lane": data["lane"],
            "by": data["by"],
            "submitted": _when(data["submitted_s"]),
            "took": _took(data),
            "started": f"{data['attempts']} times" if data["attempts"] != 1 else "once",
        }
    )
    if data["printed"]:
        yield ""
        yield from data["printed"]


def _short(command: Sequence[str]) -> str:
    said = " ".join(" ".join(command).split())
    return said if len(said) <= MOST_SHOWN else said[: MOST_SHOWN - 1] + "…"


def _took(data: Mapping[str, Any]) -> str:
    if data["started_s"] is None or data["ended_s"] is None:
        return ""
    return f"{data['ended_s'] - data['started_s']:.0f} s"


def _when(at_s: float | None) -> str:
    return "never" if at_s is None else datetime.fromtimestamp(at_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
