"""Model versions in MLflow: register, resolve, list, fetch. The one module that knows MLflow's registry.

A version that Fenix makes is a folder with an `MLmodel` file (our flavour, `fenix`), the weights, and `fenix.json`:
how to load them, and the card as its author wrote it. Its digest is kept as a tag in the registry and checked by
whoever fetches it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from lineage.errors import ArtifactRefused, ModelNotFound, StoreUnavailable
from lineage.identity import hash_folder

FLAVOUR = "fenix"
DESCRIPTOR = "fenix.json"
DIGEST_TAG = "fenix.digest"  # over all files of the version
CONTENT_TAG = "fenix.content"  # over the tensors alone: the same weights have the same content

_EXPERIMENT = "fenix"
_PARENT_RUN = "mlflow.parentRunId"
_MLFLOW_SETTINGS = {
    # Otherwise a dead server is tried for several minutes.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "20",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    # Standard output is for data.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
_DIGEST = re.compile("[0-9a-f]{64}")
_URI = re.compile(
    r"models:/(?P<name>[^/@]+)"
    rf"(?:/(?P<version>\d+)(?:#(?P<digest>{_DIGEST.pattern}))?|@(?P<alias>[^/@]+))"
)


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One version in the registry. `digest` and `content` are "" for a version that Fenix did not make."""

    name: str
    version: str
    digest: str = ""
    content: str = ""
    aliases: tuple[str, ...] = ()
    tags: Mapping[str, str] | None = None
    run_id: str = ""
    created_ms: int = 0

    @property
    def uri(self) -> str:
        """`models:/name/version`, which names this version for ever; an alias may move."""
        return f"models:/{self.name}/{self.version}"

    @property
    def pinned_uri(self) -> str:
        """`models:/name/version#digest`, which names its content as well: found again without asking the registry."""
        return f"{self.uri}#{self.digest}"


@dataclass(frozen=True, slots=True)
class RunNotes:
    """What the run of a version noted: parameters and tags as texts, the last value of each metric, and the run that it
    was part of, "" where there was none."""

    params: Mapping[str, str]
    metrics: Mapping[str, float]
    tags: Mapping[str, str]
    parent_id: str = ""


def pinned(uri: str) -> ModelVersion | None:
    """What `models:/name/3#<sha256>` names, from the address alone; None for one that leaves the content open."""
    match = _URI.fullmatch(uri)
    return ModelVersion(match["name"], match["version"], match["digest"]) if match and match["digest"] else None


def named(uri: str) -> ModelVersion | None:
    """What `models:/name/3`, with or without a digest, names, from the address alone; None for anything else."""
    match = _URI.fullmatch(uri)
    return ModelVersion(match["name"], match["version"], match["digest"] or "") if match and match["version"] else None


def describe_folder(folder: Path, loader: Mapping[str, Any]) -> None:
    """Makes `folder` a model of our flavour: writes `fenix.json` with how to load it, and the `MLmodel` file."""
    _write_json(folder / DESCRIPTOR, {"loader": dict(loader)})
    _write_json(folder / "MLmodel", {"artifact_path": "model", "flavors": {FLAVOUR: {"descriptor": DESCRIPTOR}}})


def read_descriptor(folder: Path) -> dict[str, Any] | None:
    """What `fenix.json` says (`loader`, and `card` once registered); None for a model of another flavour.

    Raises ArtifactRefused when the file is damaged.
    """
    path = folder / DESCRIPTOR
    if not path.is_file():
        return None
    try:
        descriptor = json.loads(path.read_text())
    except ValueError as error:
        raise ArtifactRefused(f"{DESCRIPTOR} is not JSON: {error}") from None
    if not isinstance(descriptor, dict) or not isinstance(descriptor.get("loader"), dict):
        raise ArtifactRefused(f"{DESCRIPTOR} does not say how to load the model.", hint="Register it again.")
    return descriptor


class ModelRegistry:
    """The registry at an MLflow tracking URI, and a folder of fetched versions, addressed by content.

    `uri` is a server (`http://host:5000`) or a database (`sqlite:///path`); with a database, `artifact_root` says
    where artifacts are kept, a server knows that itself. Safe to use from several threads and processes.
    Every method raises StoreUnavailable when the registry does not answer, within a minute at the most; so does
    the constructor for an empty `uri`.
    """

    def __init__(self, uri: str, cache_dir: Path, *, artifact_root: Path | None = None) -> None:
        if not uri:  # MLflow would take the process-wide one, or make a database in the working directory
            raise StoreUnavailable("no model registry is set.", hint="Say where MLflow is, or start one: `fenix up`.")
        if cache_dir == Path():
            raise ValueError("cache_dir is empty: versions would be fetched into the working directory")
        self.uri = uri
        self._cache_dir = cache_dir
        self._artifact_root = artifact_root

    def register(
        self,
        name: str,
        folder: Path,
        *,
        content: str,
        card: Mapping[str, Any] | None = None,
        params: Mapping[str, Any] | None = None,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        alias: str = "",
    ) -> ModelVersion:
        """A new version from a folder that `describe_folder` completed; `card` (plain data) is written into it.

        `content` is the digest of the weights (`lineage.identity`). When this returns, the version and its artifacts
        are in the registry; when it raises, there is no new version and sending it again is safe.
        Raises ArtifactRefused when the registry does not take it.
        """
        descriptor = read_descriptor(folder)
        if descriptor is None:
            raise ArtifactRefused(
                f"{folder.name} has no {DESCRIPTOR}.", hint="Make the folder with a `save_...` helper."
            )
        _write_json(folder / DESCRIPTOR, {**descriptor, "card": dict(card or {})})
        digest = hash_folder(folder)
        all_tags = {**(tags or {}), DIGEST_TAG: digest, CONTENT_TAG: content}
        with self._asking(f"registering {name!r}"):
            run = self._client.create_run(self._experiment_id, run_name=name)
            for key, value in (params or {}).items():
                self._client.log_param(run.info.run_id, key, value)
            for key, value in (metrics or {}).items():
                self._client.log_metric(run.info.run_id, key, value)
            self._client.log_artifacts(run.info.run_id, str(folder), "model")
            self._client.set_terminated(run.info.run_id)
            self._ensure_model(name)
            made = self._client.create_model_version(
                name, f"{run.info.artifact_uri}/model", run.info.run_id, tags=all_tags, await_creation_for=0
            )
            if alias:
                self._client.set_registered_model_alias(name, alias, made.version)
        return self.resolve(f"models:/{name}/{made.version}")

    def resolve(self, uri: str) -> ModelVersion:
        """The version that `models:/name/3` or, at this moment, `models:/name@alias` names.

        Raises ModelNotFound; ArtifactRefused for a `models:/name/3#<sha256>` that has another digest in the registry.
        """
        match = _URI.fullmatch(uri)
        if match is None:
            raise ModelNotFound(
                f"{uri!r} does not name a model version.", hint="Write models:/name@alias or models:/name/3."
            )
        name, version, alias = match["name"], match["version"], match["alias"]
        with self._asking(f"looking up {uri!r}", missing=lambda: self._near(name)):
            if version is None:
                version = str(self._client.get_model_version_by_alias(name, alias).version)
            # By number even after the alias led here: only this answer carries all aliases.
            entity = self._client.get_model_version(name, version)
        found = _version(entity, tuple(entity.aliases))
        if match["digest"] and found.digest not in ("", match["digest"]):
            raise _not_the_same(found, found.digest, match["digest"])
        return replace(found, digest=match["digest"] or found.digest)

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """All versions of a model, oldest first; empty when there is none."""
        with self._asking(f"listing {name!r}"):
            found = self._pages(lambda token: self._client.search_model_versions(f"name='{name}'", page_token=token))
            # The search leaves the aliases out.
            aliases = self._client.get_registered_model(name).aliases.items() if found else ()
        made = [
            _version(entity, tuple(a for a, number in aliases if str(number) == str(entity.version)))
            for entity in found
        ]
        return tuple(sorted(made, key=lambda version: int(version.version)))

    def run_notes(self, run_id: str) -> RunNotes | None:
        """What a run noted; None when the registry does not know it (any more)."""
        try:
            with self._asking(f"looking up the run {run_id!r}", missing=lambda: ""):
                data = self._client.get_run(run_id).data
        except ModelNotFound:
            return None
        parent_id = str(data.tags.get(_PARENT_RUN, ""))
        return RunNotes(dict(data.params), dict(data.metrics), dict(data.tags), parent_id)

    def set_alias(self, version: ModelVersion, alias: str) -> None:
        """Points `alias` at a version; when this returns, `resolve` follows it. Raises ModelNotFound."""
        with self._asking(f"setting the alias {alias!r}", missing=lambda: self._near(version.name)):
            self._client.set_registered_model_alias(version.name, alias, version.version)

    def aliases(self) -> dict[str, dict[str, str]]:
        """By model its aliases, each with its version. One question, whatever the number of models up to 1,000."""
        with self._asking("listing the aliases"):
            models = self._pages(
                lambda token: self._client.search_registered_models(max_results=1_000, page_token=token)
            )
        return {model.name: {str(alias): str(version) for alias, version in model.aliases.items()} for model in models}

    def move_alias(self, name: str, alias: str, version: str) -> None:
        """Points `alias` at a version of a model. Raises ModelNotFound."""
        self.set_alias(ModelVersion(name, version), alias)

    def drop_alias(self, name: str, alias: str) -> None:
        """Takes `alias` away; it may be gone already. Raises ModelNotFound for a model that is not there."""
        with self._asking(f"taking away the alias {alias!r}", missing=lambda: self._near(name)):
            self._client.delete_registered_model_alias(name, alias)

    def fetch(self, version: ModelVersion) -> Path:
        """A local folder with the version's artifacts, named by their digest: read-only by agreement, shared by all.

        With a digest that was fetched before it needs no registry. Raises ArtifactRefused when the artifacts are not
        what was registered.
        """
        if version.digest and not _DIGEST.fullmatch(version.digest):
            raise ArtifactRefused(f"the digest of {version.uri} is not a SHA-256.", hint="Register the model again.")
        kept = self._cache_dir / version.digest
        if version.digest and kept.is_dir():
            if hash_folder(kept) == version.digest:
                return kept
            shutil.rmtree(kept, ignore_errors=True)  # damaged on this disk: the registry has a good one
        self._cache_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self._cache_dir) as parent:
            folder = Path(parent) / "model"
            with self._asking(f"fetching {version.uri}", missing=lambda: self._near(version.name)):
                self._download(version, folder)
            digest = hash_folder(folder)
            if version.digest and digest != version.digest:
                raise _not_the_same(version, digest, version.digest)
            kept = self._cache_dir / digest
            try:
                folder.rename(kept)
            except OSError:
                if not kept.is_dir():  # otherwise another process was first, with the same content
                    raise
        return kept

    @cached_property
    def _client(self) -> Any:
        return _import_mlflow().MlflowClient(tracking_uri=self.uri, registry_uri=self.uri)

    @cached_property
    def _experiment_id(self) -> str:
        found = self._client.get_experiment_by_name(_EXPERIMENT)
        if found is None:
            root = None if self._artifact_root is None else self._artifact_root.absolute().as_uri()
            try:
                return str(self._client.create_experiment(_EXPERIMENT, artifact_location=root))
            except Exception as error:
                if _code(error) != "RESOURCE_ALREADY_EXISTS":  # somebody else was first
                    raise
                found = self._client.get_experiment_by_name(_EXPERIMENT)
        return str(found.experiment_id)

    def _ensure_model(self, name: str) -> None:
        try:
            self._client.create_registered_model(name)
        except Exception as error:
            if _code(error) != "RESOURCE_ALREADY_EXISTS":
                raise

    def _download(self, version: ModelVersion, folder: Path) -> None:
        # Not by `models:/...`: MLflow resolves that with the process-wide registry, whatever it is told.
        uri = self._client.get_model_version_download_uri(version.name, version.version)
        if uri.startswith("models:/"):
            uri = self._client.get_logged_model(uri.removeprefix("models:/")).artifact_location
        download = _import_mlflow().artifacts.download_artifacts
        got = Path(download(artifact_uri=uri, dst_path=str(folder), tracking_uri=self.uri))
        if got != folder:  # MLflow keeps the last part of the address as a folder
            got.rename(folder.with_name("inner"))
            shutil.rmtree(folder)
            folder.with_name("inner").rename(folder)

    def _near(self, name: str) -> str:
        models = self._pages(lambda token: self._client.search_registered_models(page_token=token))
        names = sorted(model.name for model in models)
        if name in names:
            versions = self.versions(name)
            aliases = sorted({alias for version in versions for alias in version.aliases})
            numbers = ", ".join(version.version for version in versions[-5:])
            return f"{name} has versions {numbers}" + (f" and aliases {', '.join(aliases)}." if aliases else ".")
        close = get_close_matches(name, names, n=3, cutoff=0.5)
        return f"Nearest: {', '.join(close)}." if close else "Register it first."

    def _pages(self, ask: Any) -> list[Any]:
        found, token = [], None
        while True:
            page = ask(token)
            found.extend(page)
            token = page.token
            if not token:
                return found

    @contextmanager
    def _asking(self, doing: str, missing: Any = None) -> Iterator[None]:
        """Turns what MLflow raises into our errors; `missing()` gives the hint for a model that is not there."""
        mlflow = _import_mlflow()
        try:
            yield
        except mlflow.MlflowException as error:
            code = _code(error)
            said = str(error).splitlines()[0].removeprefix(f"{code}: ")
            if code == "RESOURCE_DOES_NOT_EXIST" or (missing and code == "INVALID_PARAMETER_VALUE"):
                raise ModelNotFound(f"{doing}: {said}", hint=missing() if missing else "") from None
            if code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
                raise ArtifactRefused(f"{doing}: the registry refuses it: {said}") from None
            raise self._unavailable(doing, said) from error
        except OSError as error:  # requests' errors are OSErrors as well
            raise self._unavailable(doing, str(error)) from error

    def _unavailable(self, doing: str, said: str) -> StoreUnavailable:
        return StoreUnavailable(
            f"{doing}: the model registry at {self.uri} does not answer ({said[:200]}).",
            hint="Is MLflow running there?",
        )


def _import_mlflow() -> Any:
    """MLflow, which takes these settings from the environment only. What an operator has set there is kept."""
    for name, value in _MLFLOW_SETTINGS.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def _version(entity: Any, aliases: tuple[str, ...]) -> ModelVersion:
    tags = dict(entity.tags)
    return ModelVersion(
        entity.name,
        str(entity.version),
        tags.get(DIGEST_TAG, ""),
        tags.get(CONTENT_TAG, ""),
        tuple(sorted(aliases)),
        tags,
        entity.run_id or "",
        entity.creation_timestamp,
    )


def _not_the_same(version: ModelVersion, digest: str, expected: str) -> ArtifactRefused:
    return ArtifactRefused(
        f"the artifacts of {version.uri} are not the ones that were registered "
        f"(digest {digest[:12]}, not {expected[:12]}).",
        hint="Restore them, or register the model again and deploy that version.",
    )


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True) + "\n")
