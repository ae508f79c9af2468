"""`fenix up`, `fenix down` and `fenix status`: the cluster of this machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from fenix.commands.options import Output, Overrides, Quiet, SettingsFile, load_settings, silence_serve
from fenix.output import Format, Progress, emit, fail, grid, pairs

if TYPE_CHECKING:
    from rich.console import RenderableType

    from cluster.lifecycle import ClusterStatus
    from cluster.settings import Settings
    from deployments.health import Health

_STYLES = {"up": "bold green", "starting": "bold yellow", "broken": "bold red", "down": "bold red"}


def up(
    settings: SettingsFile = None, set_: Overrides = None, output: Output = Format.TABLE, quiet: Quiet = False
) -> None:
    """Start the cluster of this machine, and wait until it answers."""
    from cluster import lifecycle

    silence_serve()
    running = lifecycle.up(load_settings(settings, set_), Progress(quiet))
    data = {
        "run_id": running.run_id,
        "adopted": running.adopted,
        "took_s": round(running.took_s, 3),
        "addresses": running.addresses,
    }
    emit(data, output, lambda: [pairs(running.addresses)])


def down(
    settings: SettingsFile = None, set_: Overrides = None, output: Output = Format.TABLE, quiet: Quiet = False
) -> None:
    """Let running requests finish and end the cluster. What it knows survives."""
    from cluster import lifecycle

    ended = lifecycle.down(load_settings(settings, set_), Progress(quiet))
    data = {"n_ended": ended.n_ended, "survivors": list(ended.survivors), "took_s": round(ended.took_s, 3)}
    emit(data, output, lambda: [f"{ended.n_ended} processes ended."] if ended.n_ended else ["Nothing ran."])
    if ended.survivors:
        fail(f"{len(ended.survivors)} processes did not end: {', '.join(ended.survivors)}. End them by their ids.")
        raise typer.Exit(1)


def status(
    settings: SettingsFile = None,
    set_: Overrides = None,
    replicas: Annotated[
        bool, typer.Option("--replicas/--no-replicas", help="Ask Ray for the health of each extension (3 s).")
    ] = True,
    output: Output = Format.TABLE,
) -> None:
    """Show processes, addresses and the health of each extension."""
    from cluster import lifecycle

    wanted = load_settings(settings, set_)
    found = lifecycle.status(wanted)
    extensions = _health(lifecycle.running_settings(wanted)) if replicas and found.state == "up" else ()
    data = {
        "state": found.state,
        "detail": found.detail,
        "run_id": found.run_id,
        "up_for_s": round(found.up_for_s, 1),
        "n_processes": found.n_processes,
        "memory_mib": round(found.memory_mib, 1),
        "addresses": dict(found.addresses),
        "services": [asdict(service) for service in found.services],
        "applications": [asdict(one) for one in extensions],
    }
    emit(data, output, lambda: _shown(found, extensions))
    if found.state != "up":
        raise typer.Exit(3 if found.state == "down" else 1)


def _health(settings: Settings) -> tuple[Health, ...]:
    from cluster.lifecycle import connected

    with connected(settings):
        from deployments.health import health

        return health()


def _shown(found: ClusterStatus, extensions: tuple[Health, ...]) -> Iterator[RenderableType]:
    from rich.text import Text

    yield Text.assemble((found.state, _STYLES[found.state]), f"  {found.detail}")
    if found.state == "down":
        return
    yield ""
    yield pairs(
        {
            "up for": _duration(found.up_for_s),
            "processes": f"{found.n_processes}, {found.memory_mib / 1024:.1f} GiB together",
            **dict(found.addresses),
        }
    )
    yield ""
    rows = [
        (
            service.name,
            service.pid or "",
            Text("alive", "green") if service.alive else Text("dead", "bold red"),
            service.n_restarts,
            service.log,
        )
        for service in found.services
    ]
    yield grid(("process", "pid", "state", "restarts", "log"), rows, right=("pid", "restarts"))
    if extensions:
        yield ""
        yield grid(
            ("serves", "state", "replicas", "detail"),
            [
                (
                    one.id,
                    Text(one.state, "green" if one.state == "running" else "bold red"),
                    f"{one.n_running} of {one.n_replicas}",
                    one.message,
                )
                for one in extensions
            ],
            right=("replicas",),
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
