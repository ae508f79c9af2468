"""What the gateway says of itself and of its models: goals and extensions alike, for HTTP and gRPC."""

from __future__ import annotations

from collections.abc import Container, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import islice
from typing import Literal

from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import NotFound, near
from planner.features import Port

SERVER_NAME = "fenix"
PROTOCOL_EXTENSIONS = ("binary_tensor_data", "model_repository")
Running = Literal["inline", "remote", "fused"]


def server_version() -> str:
    """The version of the installed distribution, "0" when run from a checkout."""
    try:
        return version("fenix-serve")
    except PackageNotFoundError:
        return "0"


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a model. `shape` starts with -1 for the rows."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A goal or an extension as the Open Inference Protocol shows a model."""

    name: str
    version: str  # the one that inputs and outputs describe
    versions: tuple[str, ...]
    platform: Literal["fenix_goal", "fenix_extension"]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def find_model(catalogue: Catalogue, name: str, version: str = "") -> ModelInfo:
    """The goal of that name, else the extension (`name` or `name@version`); of several versions the latest.

    Raises NotFound with the nearest names or the versions there are.
    """
    goal = catalogue.goals.get(name)
    if goal is not None:
        if version not in ("", goal.version):
            raise NotFound(f"goal {name!r} has no version {version!r}.", hint=f"It has {goal.version!r}.")
        return ModelInfo(
            name, goal.version, (goal.version,), "fenix_goal", _tensors(goal.inputs), _tensors(goal.outputs)
        )
    bare, _, inner = name.partition("@")
    cards = catalogue.versions(bare)
    if not cards:
        known = islice((*catalogue.goals, *(card.name for card in catalogue.cards.values())), 10_000)
        raise NotFound(f"no model {name[:128]!r}.", hint=near(name[:128], known))
    wanted = {inner, version} - {""}
    fitting = [card for card in cards if not wanted or {card.version} == wanted]
    if not fitting:
        there = ", ".join(card.version for card in cards)
        raise NotFound(f"model {bare!r} has no version {'/'.join(sorted(wanted))[:128]!r}.", hint=f"It has {there}.")
    card = fitting[-1]
    return ModelInfo(
        name,
        card.version,
        tuple(card.version for card in cards),
        "fenix_extension",
        _tensors(card.inputs),
        _tensors(card.outputs),
    )


def placement_of(card: Card, inline: Container[ExtensionId]) -> Running:
    """Where an extension runs as things are: in the gateway's own process, which runs those of `inline`; in a
    deployment of its own; or, with all its parts, in one deployment."""
    if card.id in inline:
        return "inline"
    return "fused" if card.kind == "fused" else "remote"


def parts_of(card: Card) -> tuple[ExtensionId, ...]:
    """What a fused extension is made of, in order; of others nothing."""
    parts = card.options.get("parts", ()) if card.kind == "fused" else ()
    return tuple(ExtensionId(f"{part['name']}@{part['version']}") for part in parts)


def all_models(catalogue: Catalogue) -> Iterator[tuple[str, str]]:
    """Name and version of every goal and every extension version."""
    for goal in catalogue.goals.values():
        yield goal.name, goal.version
    for card in catalogue.cards.values():
        yield card.name, card.version


def _tensors(ports: tuple[Port, ...]) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(
            port.name,
            port.feature.datatype,
            (-1, -1, *port.feature.shape) if port.many > 1 else (-1, *port.feature.shape),
        )
        for port in ports
    )
