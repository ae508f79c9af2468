"""What `fenix deploy` is given, as cards and goals: YAML files, code, MLflow models, remote endpoints."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lineage.identity import hash_file
from planner.card_codec import parse_card, parse_card_fields, parse_goal
from planner.cards import Card
from planner.errors import BadCard, FenixError, near
from planner.goals import Goal

Describe = Callable[[str, Mapping[str, Any]], Card]

_YAML = (".yaml", ".yml")
_ADDRESSES = ("models:/", "http://", "https://", "grpc://", "file:")


def is_file_of_cards(source: str) -> bool:
    return source.endswith(_YAML)


def read_source(
    source: str, options: Mapping[str, Any], describe: Describe, store: Path
) -> tuple[list[Card], list[Goal]]:
    """The cards and goals of one SOURCE. `describe` makes a card of a loadable source; single files of code are
    kept in `store`, so that editing the original does not touch what is deployed. Raises BadCard."""
    if is_file_of_cards(source):
        return _from_yaml(Path(source).expanduser(), describe, store)
    return [_described(source, options, Path(), describe, store)], []


def read_goals(path: Path) -> list[Goal]:
    """The goals of a YAML file: one goal, or several under `goals`."""
    document = _document(path)
    if "goals" not in document:
        return [_goal(document, str(path), path)]
    _check_keys(document, ("goals",), path)
    return [_goal(goal, f"{path}: goals[{i}]", path) for i, goal in enumerate(_entries(document, "goals", path))]


def loadable(source: str, folder: Path, store: Path) -> str:
    """The source as `deployments.loading` reads it: `file.py:Class` becomes the address of a stored copy.

    A relative path starts at `folder`. The copy is named by its content. Raises BadCard when there is no such file.
    """
    place, colon, attribute = source.rpartition(":")
    if source.startswith(_ADDRESSES) or not place.endswith(".py"):
        return source
    path = folder / Path(place).expanduser()
    if not colon or not attribute.replace(".", "").isidentifier():
        raise BadCard(f"source {source!r} names nothing in {place}.", hint="Write file.py:ClassOrFunction.")
    if not path.is_file():
        raise BadCard(f"source {source!r}: there is no file {path}.", hint="Check the path.")
    digest = hash_file(path)
    kept = store / digest[:16] / path.name
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        partial = kept.with_suffix(".partial")
        shutil.copyfile(path, partial)
        partial.replace(kept)  # whole or not at all
    return f"file:{kept.absolute()}#{digest}:{attribute}"


def _described(source: str, options: Mapping[str, Any], folder: Path, describe: Describe, store: Path) -> Card:
    """The card of a source. Errors name the source as it was written, not the stored copy."""
    address = loadable(source, folder, store)
    try:
        return describe(address, options)
    except FenixError as error:
        raise type(error)(error.message.replace(address, source), hint=error.hint) from error.__cause__


def _from_yaml(path: Path, describe: Describe, store: Path) -> tuple[list[Card], list[Goal]]:
    document = _document(path)
    _check_keys(document, ("cards", "goals"), path)
    cards = [
        _card(card, f"{path}: cards[{i}]", path.parent, describe, store)
        for i, card in enumerate(_entries(document, "cards", path))
    ]
    goals = [_goal(goal, f"{path}: goals[{i}]", path) for i, goal in enumerate(_entries(document, "goals", path))]
    return cards, goals


def _card(given: Any, where: str, folder: Path, describe: Describe, store: Path) -> Card:
    """A card in full, or a source whose own card is changed in the fields that are given."""
    if isinstance(given, Mapping) and isinstance(given.get("source"), str):
        if "inputs" not in given or "outputs" not in given:
            fields = parse_card_fields(given, where)
            source, options = fields.pop("source"), fields.pop("options", {})
            return _described(source, options, folder, describe, store).but(**fields)
        given = {**given, "source": loadable(given["source"], folder, store)}
    return parse_card(given, where)


def _goal(given: Any, where: str, path: Path) -> Goal:
    goal = parse_goal(given, where)
    if not goal.validation:
        return goal
    return replace(goal, validation=str((path.parent / Path(goal.validation).expanduser()).absolute()))


def _document(path: Path) -> Mapping[str, Any]:
    import yaml

    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise BadCard(f"{path} cannot be read: {error}.", hint="Check the path.") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise BadCard(f"{path}, line {line}: {error.problem or 'no YAML'}.", hint="Correct the YAML.") from None
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise BadCard(f"{path} holds no `key: value` lines.", hint="Write `cards:` and `goals:`, each with a list.")
    return document


def _check_keys(document: Mapping[str, Any], known: Sequence[str], path: Path) -> None:
    for key in document:
        if key not in known:
            raise BadCard(f"{path}: there is no {key!r} here.", hint=near(key, known))


def _entries(document: Mapping[str, Any], key: str, path: Path) -> list[Any]:
    entries = document.get(key) or []
    if not isinstance(entries, list):
        raise BadCard(f"{path}: {key} is no list.", hint="Begin each entry with a dash.")
    return entries
