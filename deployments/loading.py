"""From a card to its extension, in any process: nothing is pickled, everything is found again by `Card.source`.

| source | what it is |
|---|---|
| `module:attribute` | a class or a decorated function that can be imported |
| `file:<path>#<sha256>:attribute` | the same in a single file, which must still have that digest |
| `models:/name@alias`, `models:/name/3`, `models:/name/3#<sha256>` | a model version in MLflow; `#` pins its files |
| `http://host:port/v2/models/m[/versions/v]`, `grpc://host:port/m[/v]` | a model of another Open Inference server |
| `fused:name@version+name@version` | several of the above in one, as the cluster puts them together; see `options` |
"""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
import types
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from deployments.extension import Extension
from lineage.identity import hash_file
from planner.cards import Card
from planner.errors import ArtifactRefused, BadCard, ExtensionRaised, FenixError, near
from planner.wiring import FUSED, parse_group

_MODELS = "models:/"
_REMOTE = ("http://", "https://", "grpc://")
_FILE = "file:"
_DEPLOYED = "deployed_"  # begins the name of a module made from a single file


def describe(
    source: str, options: Mapping[str, Any] | None = None, *, mlflow_uri: str = "", cache_dir: str | Path = ""
) -> Card:
    """The card that the author of `source` wrote, with a `source` that stays the same thing (see `pin`). Raises what
    `load` raises."""
    if source.startswith(FUSED):
        raise BadCard(f"{source!r} is put together by the cluster itself.", hint="Deploy its parts.")
    pinned = pin(source, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
    return _make(pinned, options or {}, mlflow_uri, Path(cache_dir)).card()


def load(card: Card, *, mlflow_uri: str = "", cache_dir: str | Path = "") -> Extension:
    """The extension of a card: constructed, not set up yet. The operator's word in the card counts.

    `cache_dir` keeps model versions that were fetched; only they need it. A pinned version that is in there is loaded
    without asking the registry and without importing MLflow. Raises BadCard for a source that cannot be found or
    options that do not fit, ArtifactRefused for code or a model that is not what the card says or cannot be loaded
    safely, ModelNotFound, StoreUnavailable, ExtensionUnavailable (a remote server), ExtensionRaised (its own code).
    """
    made = _make(card.source, card.options, mlflow_uri, Path(cache_dir))
    _check_ports(made, card)
    made.name, made.version = card.name, card.version
    made.resources, made.deterministic = card.resources, card.deterministic
    return made


def pin(source: str, *, mlflow_uri: str = "", cache_dir: str | Path = "") -> str:
    """`source` such that it names the same thing for ever: `models:/name@alias` becomes `models:/name/3#<sha256>`,
    which is then in `cache_dir`, and `file:path:attribute` gets the file's digest. What is pinned stays as it is."""
    if source.startswith(_MODELS):
        from lineage.models import ModelRegistry, pinned

        if pinned(source) is not None:
            return source
        registry = ModelRegistry(mlflow_uri, Path(cache_dir))
        version = registry.resolve(source)
        # A version that Fenix did not make has no digest in the registry: it gets the one of what is there now.
        return replace(version, digest=registry.fetch(version).name).pinned_uri
    if source.startswith(_FILE) and "#" not in source:
        path, _, attribute = source.removeprefix(_FILE).rpartition(":")
        if not Path(path).is_file():
            raise BadCard(f"{source!r}: there is no file {path!r}.", hint="Write file:path/to/file.py:ClassOrFunction.")
        return f"{_FILE}{path}#{hash_file(Path(path))}:{attribute}"
    return source


def _make(source: str, options: Mapping[str, Any], mlflow_uri: str, cache_dir: Path) -> Extension:
    if source.startswith(_MODELS):
        from deployments.kinds.mlflow import find_model, model_name

        kind, version, folder = find_model(source, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
        made = _construct(kind, {**options, "folder": str(folder)}, source)
        made.name = made.name if "name" in made.__dict__ else model_name(version)
        made.version = version.version
        made.options = dict(options)
    elif source.startswith(_REMOTE):
        from deployments.kinds.remote import RemoteExtension

        made = _construct(RemoteExtension, {**options, "address": source}, source)
        made.options = dict(options)
    elif source.startswith(FUSED):
        group = parse_group(options, source)
        if group.compiled:
            from deployments.kinds.compiled import CompiledExtension

            made = CompiledExtension(group, mlflow_uri, str(cache_dir))
        else:
            from deployments.kinds.fused import FusedExtension

            parts = [load(card, mlflow_uri=mlflow_uri, cache_dir=cache_dir) for card in group.cards]
            made = FusedExtension(group, parts)
        made.options = dict(options)
    else:
        module, attribute = _file(source) if source.startswith(_FILE) else _module(source)
        made = _construct(_class(module, attribute, source), options, source)
    made.source = source
    return made


def _module(source: str) -> tuple[types.ModuleType, str]:
    name, colon, attribute = source.partition(":")
    if not colon or not name or not attribute:
        raise BadCard(
            f"source {source!r} is none that can be loaded.",
            hint="Write module:Class, file:path.py:Class, models:/name@alias, http://... or grpc://...",
        )
    if "<locals>" in attribute:
        raise BadCard(
            f"source {source!r} is defined inside a function, where no other process finds it.",
            hint="Move it to the top of a module.",
        )
    try:
        return importlib.import_module(name), attribute
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise BadCard(f"source {source!r}: there is no module {error.name!r}.") from None
        raise BadCard(f"source {source!r} needs the module {error.name!r}.", hint="Install it.") from None
    except Exception as error:
        raise _raised(source, "importing it", error) from error


def _file(source: str) -> tuple[types.ModuleType, str]:
    """Runs a single file as a module of its own, once per content and process."""
    place, _, attribute = source.removeprefix(_FILE).rpartition(":")
    path, _, digest = place.rpartition("#")
    if not path:
        raise BadCard(
            f"source {source!r} has no digest.", hint="Deploy it again; `file:<path>#<sha256>:Class` is kept."
        )
    try:
        code = Path(path).read_bytes()
    except OSError as error:
        raise ArtifactRefused(f"{path} cannot be read: {error.strerror}.", hint="Deploy the file again.") from None
    if hashlib.sha256(code).hexdigest() != digest:
        raise ArtifactRefused(
            f"{path} is not the file that was deployed.", hint="Deploy it again to accept the change."
        )
    name = f"{_DEPLOYED}{digest[:16]}"
    if name not in sys.modules:
        module = types.ModuleType(name)
        module.__file__ = path
        sys.modules[name] = module  # before it runs: dataclasses look their module up
        try:
            exec(compile(code, path, "exec"), module.__dict__)
        except Exception as error:
            del sys.modules[name]
            raise _raised(source, "running it", error) from error
    return sys.modules[name], attribute


def _class(module: types.ModuleType, attribute: str, source: str) -> type[Extension]:
    found: Any = module
    for part in attribute.split("."):
        if not hasattr(found, part):
            place = Path(module.__file__ or "").name if found.__name__.startswith(_DEPLOYED) else found.__name__
            here = [name for name, value in vars(found).items() if _may_be_meant(value, module)]
            raise BadCard(f"source {source!r}: there is no {part!r} in {place}.", hint=near(part, here))
        found = getattr(found, part)
    if not _is_extension(found):
        what = "a plain function" if inspect.isfunction(found) else f"a {type(found).__name__}"
        hint = "Put @extension(inputs=..., outputs=...) above it." if inspect.isfunction(found) else ""
        raise BadCard(f"source {source!r} is {what}, not an extension.", hint=hint)
    made: type[Extension] = found
    return made


def _may_be_meant(value: Any, module: types.ModuleType) -> bool:
    return _is_extension(value) or (inspect.isfunction(value) and value.__module__ == module.__name__)


def _is_extension(value: Any) -> bool:
    return isinstance(value, type) and issubclass(value, Extension) and not inspect.isabstract(value)


def _construct(kind: type[Extension], options: Mapping[str, Any], source: str) -> Extension:
    # Not `signature(kind)`: that would look at `Extension.__new__`, which takes anything.
    signature = inspect.signature(kind.__init__)
    try:
        signature.bind(None, **options)
    except TypeError as error:
        known = [name for name in signature.parameters if name != "self"]
        hint = f"{kind.__name__} takes {', '.join(known) or 'no options'}."
        raise BadCard(f"source {source!r}: the options do not fit: {error}.", hint=hint) from None
    try:
        return kind(**options)
    except FenixError:
        raise
    except Exception as error:
        raise _raised(source, "making it", error) from error


def _check_ports(made: Extension, card: Card) -> None:
    for side in ("inputs", "outputs"):
        now = made.input_ports if side == "inputs" else made.output_ports
        then = card.inputs if side == "inputs" else card.outputs
        if now != then:
            raise ArtifactRefused(
                f"the {side} of {card.id} are {_shown(then)} in the catalogue, but {_shown(now)} in {card.source!r}.",
                hint="It has changed since it was deployed: deploy it again.",
            )


def _shown(ports: tuple[Any, ...]) -> str:
    return ", ".join(f"{port.name} ({port.feature})" for port in ports)


def _raised(source: str, doing: str, error: Exception) -> ExtensionRaised:
    return ExtensionRaised(f"source {source!r}: {doing} raised {type(error).__name__}: {error}")
