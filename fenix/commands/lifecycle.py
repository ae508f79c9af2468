"""`fenix up`, `fenix down` and `fenix status`: the cluster of this machine."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import Output, Overrides, Quiet, SettingsFile, load_settings, silence_serve
from fenix.commands.quality import poor_line
from fenix.output import Format, Progress, emit, fail, grid, pairs

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.text import Text

    from cluster.lifecycle import ClusterStatus
    from cluster.settings import Settings
    from deployments.health import Health
    from deployments.live import Live, Look
    from deployments.steward import Event
    from lineage.quality import Finding

WATCH_S = 1.0  # between two looks of `status --watch`
LOOKS_A_REPORT = 5  # of them only each fifth asks Serve and counts processes, which costs a quarter of a second

_STYLES = {"up": "bold green", "starting": "bold yellow", "broken": "bold red", "down": "bold red"}
_EVENTS_SHOWN = 5
_EVENTS = {"fused": "bold green", "retired": "", "failed": "bold red"}
_BREAKERS = {"closed": "green", "half-open": "bold yellow", "open": "bold red"}


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
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again every second, until Ctrl-C.")] = False,
    output: Output = Format.TABLE,
) -> None:
    """Show processes, addresses, and how each extension fares right now."""
    wanted = load_settings(settings, set_)
    if watch:
        _watch(wanted, replicas, output)
        return
    report = _report(wanted, replicas)
    emit(report.data(), output, lambda: _shown(report))
    if report.found.state != "up":
        raise typer.Exit(3 if report.found.state == "down" else 1)


@dataclass(frozen=True, slots=True)
class _Report:
    """What one look at the cluster found."""

    found: ClusterStatus
    health: tuple[Health, ...] = ()
    live: tuple[Live, ...] = ()
    events: tuple[Event, ...] = ()
    at_s: float = 0.0  # since 1970
    poor: tuple[Finding, ...] = ()

    def data(self) -> dict[str, Any]:
        """As JSON has it."""
        found = self.found
        return {
            "state": found.state,
            "detail": found.detail,
            "run_id": found.run_id,
            "up_for_s": round(found.up_for_s, 1),
            "n_processes": found.n_processes,
            "memory_mib": round(found.memory_mib, 1),
            "addresses": dict(found.addresses),
            "services": [asdict(service) for service in found.services],
            "applications": [asdict(one) for one in self.health],
            "extensions": [asdict(one) for one in self.live],
            "events": [asdict(one) for one in self.events],
            "findings": [asdict(one) for one in self.poor],
        }


def _report(settings: Settings, replicas: bool, before: _Report | None = None) -> _Report:
    """Looks at the cluster; where there is a report from before, only at what changes fast."""
    from cluster import lifecycle

    found = lifecycle.status(settings) if before is None else before.found
    if not replicas or found.state != "up":
        return _Report(found)
    with lifecycle.connected(lifecycle.running_settings(settings)):
        from deployments.health import health

        now = _look()
        checked = health() if before is None else before.health
        return _Report(found, checked, now.extensions, now.events, time.time(), now.poor)


def _look() -> Look:
    from deployments.live import Look, look
    from planner.errors import ClusterDown

    try:
        return look()
    except ClusterDown as error:  # the rest can be shown without
        fail(error.text())
        return Look()


def _watch(settings: Settings, replicas: bool, output: Format) -> None:
    """Shows report after report: on a terminal each in the place of the last, else one after the other, JSON as one
    line each."""
    from contextlib import ExitStack

    from rich.console import Group
    from rich.live import Live as Screen

    from cluster import lifecycle
    from fenix.output import out

    console = out()
    with ExitStack() as stack:
        try:
            screen = None
            if output is Format.TABLE and console.is_terminal:
                screen = stack.enter_context(Screen(console=console, screen=True, auto_refresh=False))
            if replicas and lifecycle.status(settings).state == "up":
                stack.enter_context(lifecycle.connected(lifecycle.running_settings(settings)))
            # Ctrl-C is taken between two looks: in the middle of a call to Ray it may get lost.
            stopped = threading.Event()
            before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
            stack.callback(signal.signal, signal.SIGINT, before)
            looks, report = 0, None
            while not stopped.is_set():
                report = _report(settings, replicas, None if looks % LOOKS_A_REPORT == 0 else report)
                if screen is not None:
                    screen.update(Group(*_shown(report)), refresh=True)
                elif output is Format.JSON:
                    print(json.dumps(report.data(), ensure_ascii=False), flush=True)
                else:
                    emit(report.data(), output, lambda shown=report: [*_shown(shown), ""])  # type: ignore[misc]
                looks += 1
                stopped.wait(WATCH_S)
        except KeyboardInterrupt:
            return


def _shown(report: _Report) -> Iterator[RenderableType]:
    from rich.text import Text

    found = report.found
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
    if report.health:
        yield ""
        live = {one.id: one for one in report.live}
        columns = ("queue", "calls", "mean", "sd", "errors", "cpu", "memory")
        yield grid(
            ("serves", "state", "runs", "replicas", *columns, "breaker", "detail"),
            [
                (
                    one.id,
                    Text(one.state, "green" if one.state == "running" else "bold red"),
                    live[one.id].placement if one.id in live else "",
                    f"{one.n_running} of {one.n_replicas}",
                    *_cells(live.get(one.id)),
                    one.message or (live[one.id].why if one.id in live else ""),
                )
                for one in report.health
            ],
            right=("replicas", *columns),
        )
    if fused := [one for one in report.live if one.parts]:
        yield ""
        yield grid(("fused", "of"), [(one.id, ", ".join(one.parts)) for one in fused])
    if report.poor:
        yield ""
        yield poor_line([asdict(one) for one in report.poor])
    if report.events:
        yield ""
        yield grid(
            ("when", "did", "extension", "because"),
            [
                (
                    f"{_duration(report.at_s - event.at_s)} ago",
                    Text(event.action, _EVENTS[event.action]),
                    event.extension,
                    event.why,
                )
                for event in report.events[-_EVENTS_SHOWN:]
            ],
            title="What the steward did last",
        )


def _cells(one: Live | None) -> tuple[str | Text, ...]:
    """How an extension fares, in the last ten seconds; blank where nobody says."""
    from rich.text import Text

    if one is None:
        return ("",) * 8
    return (
        str(one.queue_rows),
        str(one.n_calls),
        "" if one.latency_mean_ms is None else f"{one.latency_mean_ms:.1f} ms",
        "" if one.latency_sd_ms is None else f"{one.latency_sd_ms:.1f} ms",
        Text(f"{one.error_rate:.1%}", "bold red" if one.error_rate > 0.0 else "") if one.n_calls else "",
        f"{one.cpu_share:.1%}",
        f"{one.memory_mib:.0f} MiB",
        Text(one.breaker, _BREAKERS.get(one.breaker, "")),
    )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
