"""Options that several commands share, and what they stand for."""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fenix.output import Format
from planner.errors import BadRequest, ClusterDown

if TYPE_CHECKING:
    from cluster.settings import Settings
    from fenix.client import Client

Output = Annotated[Format, typer.Option("--output", "-o", help="Form of the data on stdout.")]
Url = Annotated[
    str,
    typer.Option("--url", metavar="URL", help="Address of the gateway.", show_default="the cluster of this machine"),
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", "-s", metavar="FILE", help="YAML file of settings.", show_default="$FENIX_SETTINGS"),
]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; may be repeated.")
]
TimeoutS = Annotated[float, typer.Option("--timeout-s", min=0.001, help="How long to wait for the gateway, in s.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]


def load_settings(file: Path | None, overrides: list[str] | None) -> Settings:
    """The settings of this machine. Raises BadCard or BadRequest with the place of the fault."""
    from cluster.settings import load

    return load(file, overrides=assignments(overrides, "--set"))


def open_client(url: str, file: Path | None, timeout_s: float) -> Client:
    """A client of the gateway at `url`; else of the cluster that runs here, else of the one in the settings."""
    from fenix.client import Client

    return Client(url or _url_here(file), timeout_s=timeout_s)


def _url_here(file: Path | None) -> str:
    from cluster.lifecycle import running_settings

    settings = load_settings(file, None)
    with contextlib.suppress(ClusterDown):  # the client will say it, with the address
        settings = running_settings(settings)  # `up --set http_port=...` counts
    return settings.http_url


def assignments(given: list[str] | None, option: str) -> dict[str, Any]:
    """`key=value` options as a mapping; values are read as YAML, so that numbers are numbers."""
    if not given:
        return {}
    import yaml

    values: dict[str, Any] = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise BadRequest(f"{option} {text!r} has no '='.", hint=f"Write {option} key=value.")
        try:
            values[key.strip()] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise BadRequest(f"{option} {text!r}: the value is no YAML.", hint="Put it in quotes.") from None
    return values


def silence_serve() -> None:
    """Keeps Serve's own remarks off stderr, where our progress goes; its warnings stay."""
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)
