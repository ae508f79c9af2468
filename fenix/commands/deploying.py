"""`fenix deploy` and `fenix remove`: what the cluster can do, changed while it serves."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.commands.options import (
    Output,
    Overrides,
    Quiet,
    SettingsFile,
    assignments,
    load_settings,
    silence_serve,
)
from fenix.output import Format, Progress, emit, grid
from planner.errors import BadRequest

if TYPE_CHECKING:
    from rich.console import RenderableType

    from planner.cards import Card
    from planner.goals import Goal


def deploy(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE",
            help="A YAML file with cards and goals, module:attribute, file.py:attribute, models:/name@alias, "
            "http://host:port/v2/models/name or grpc://host:port/name.",
            show_default=False,
        ),
    ] = None,
    goal: Annotated[
        list[Path] | None, typer.Option("--goal", "-g", metavar="FILE", help="A YAML file with goals; repeatable.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-p", metavar="KEY=VALUE", help="An option of the extension; repeatable."),
    ] = None,
    rollout: Annotated[
        bool,
        typer.Option("--rollout", help="A new version of what serves already is tried first, on part of the traffic."),
    ] = False,
    plan: Annotated[
        Path | None, typer.Option("--plan", metavar="FILE", help="How it is tried, as YAML; with --rollout.")
    ] = None,
    settings: SettingsFile = None,
    set_: Overrides = None,
    output: Output = Format.TABLE,
    quiet: Quiet = False,
) -> None:
    """Deploy extensions and goals: each is started, checked and measured before it serves."""
    from fenix.commands.rollout import read_plan
    from fenix.commands.sources import is_file_of_cards, read_goals

    if not sources and not goal:
        raise BadRequest("there is nothing to deploy.", hint="Give a SOURCE, or --goal FILE.")
    if plan is not None and not rollout:
        raise BadRequest("--plan says how a version is tried.", hint="Add --rollout.")
    given = (read_plan(plan, None) or {}) if rollout else None
    options = assignments(option, "--option")
    if options and all(is_file_of_cards(source) for source in sources or ()):
        raise BadRequest("--option belongs to code or a model.", hint="In a YAML file, write `options:` into the card.")
    goals = [found for path in goal or () for found in read_goals(path)]
    cards, goals = _deploy(sources or (), goals, options, settings, set_, Progress(quiet), given)
    data = {
        "extensions": [{"id": card.id, "kind": card.kind, "source": card.source} for card in cards],
        "goals": [{"name": one.name, "version": one.version} for one in goals],
    }
    emit(data, output, lambda: _shown(cards, goals))


def remove(
    ids: Annotated[
        list[str] | None, typer.Argument(metavar="ID", help="Extensions, as NAME@VERSION.", show_default=False)
    ] = None,
    goal: Annotated[list[str] | None, typer.Option("--goal", "-g", metavar="NAME", help="A goal; repeatable.")] = None,
    settings: SettingsFile = None,
    set_: Overrides = None,
    output: Output = Format.TABLE,
    quiet: Quiet = False,
) -> None:
    """Take extensions and goals out of the catalogue and end their replicas."""
    if not ids and not goal:
        raise BadRequest("there is nothing to remove.", hint="Give an ID, or --goal NAME; see `fenix get extensions`.")
    from cluster import lifecycle

    silence_serve()
    with lifecycle.connected(lifecycle.running_settings(load_settings(settings, set_))):
        from deployments import deployer

        deployer.remove(ids or (), goal or (), Progress(quiet))
    data = {"extensions": ids or [], "goals": goal or []}
    emit(data, output, lambda: [f"Removed {', '.join([*data['extensions'], *data['goals']])}."])


def _deploy(
    sources: Sequence[str],
    goals: list[Goal],
    options: Mapping[str, Any],
    file: Path | None,
    overrides: list[str] | None,
    report: Progress,
    rollout: Mapping[str, Any] | None,
) -> tuple[Sequence[Card], list[Goal]]:
    from cluster import lifecycle
    from planner.rollout.codec import parse_plan

    plan = None if rollout is None else parse_plan(rollout)
    running = lifecycle.running_settings(load_settings(file, overrides))
    sys.path[:0] = [str(path) for path in running.import_paths if str(path) not in sys.path]
    silence_serve()
    with lifecycle.connected(running):  # before anything imports Ray: it sets Ray's flags
        from deployments import deployer, loading
        from fenix.commands.sources import read_source

        installation = lifecycle.installation(running)

        def describe(source: str, given: Mapping[str, Any]) -> Card:
            return loading.describe(source, given, mlflow_uri=installation.mlflow_uri, cache_dir=installation.cache_dir)

        cards = []
        for source in sources:
            its_cards, its_goals = read_source(source, options, describe, running.state_dir / "sources")
            cards += its_cards
            goals = goals + its_goals
        return deployer.deploy(cards, goals, installation, report, plan), goals


def _shown(cards: Sequence[Card], goals: Sequence[Goal]) -> Iterator[RenderableType]:
    if cards:
        rows = [
            (
                card.id,
                card.kind,
                f"{100 * card.accuracy.mean:.1f} %" + ("" if card.accuracy.n_rows else " (a guess)"),
                f"{card.profile.p50_ms(1):.2f}",
            )
            for card in cards
        ]
        yield grid(("extension", "kind", "accuracy", "ms a row"), rows, right=("accuracy", "ms a row"))
    if cards and goals:
        yield ""
    if goals:
        yield grid(("goal", "description"), [(one.name, one.description) for one in goals])
