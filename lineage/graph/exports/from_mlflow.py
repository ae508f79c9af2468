"""Versions from an MLflow registry, and edges where tags, parameters or nested runs say what a version was made from.

A version says so itself by the tags of `lineage_tags`. Of others, the usual words for it are understood (`parent`,
`base_model` ...), first in the tags of the version, then in the tags and parameters of its run; where these are silent
and the run was part of another run that registered a version as well, that one is taken for the parent. MLflow's word
is taken: `lineage.graph.parentage` can hold it against the weights.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from lineage.errors import FenixError, LineageConflict, LineageCycle, LineageRefused, ModelNotFound
from lineage.graph.records import Edge, EdgeKind, Version, VersionId
from lineage.graph.store import LineageStore
from lineage.identity import hash_folder, hash_safetensors
from lineage.models import ModelRegistry, ModelVersion, RunNotes

PARENTS_TAG = "fenix.parents"  # content hashes, or addresses such as models:/digits/1, between commas
KIND_TAG = "fenix.edge"

_PARENT_WORDS = (PARENTS_TAG, "parent", "parents", "parent_model", "parent_version", "base_model", "source_model")
_KIND_WORDS = (KIND_TAG, "edge_kind", "transformation", "base_model_relation")
_KINDS = {
    **{str(kind): kind for kind in EdgeKind},
    "finetune": EdgeKind.FINE_TUNE,
    "finetuned": EdgeKind.FINE_TUNE,
    "adapter": EdgeKind.FINE_TUNE,
    "pruned": EdgeKind.PRUNE,
    "quantize": EdgeKind.QUANTISE,
    "quantized": EdgeKind.QUANTISE,
    "quantised": EdgeKind.QUANTISE,
    "distill": EdgeKind.DISTIL,
    "distilled": EdgeKind.DISTIL,
    "merged": EdgeKind.MERGE,
    "specialize": EdgeKind.SPECIALISE,
    "fused": EdgeKind.FUSE,
    "retrained": EdgeKind.RETRAIN,
}
_CONTENT = re.compile("[0-9a-f]{64}")
_NUMBERED = re.compile(r"(?:models:/)?(?P<name>[^/@]+)[/@](?P<number>\d+)(?:#[0-9a-f]{64})?")
_OF_RUN = re.compile(r"runs:/(?P<run>[^/]+)(?:/.*)?")


@dataclass(frozen=True, slots=True)
class Imported:
    """How many versions were read and edges found, how many facts of the lineage were new, and what was left out, a
    sentence each."""

    n_versions: int
    n_edges: int
    n_new: int
    left_out: tuple[str, ...]


def lineage_tags(edges: Sequence[Edge]) -> dict[str, str]:
    """Tags for a version that is registered with these edges into it; from them an import finds the edges again."""
    if not edges:
        return {}
    return {PARENTS_TAG: ",".join(dict.fromkeys(edge.parent for edge in edges)), KIND_TAG: str(edges[0].kind)}


def import_from_mlflow(registry: ModelRegistry, store: LineageStore, names: Iterable[str] | None = None) -> Imported:
    """Adds the versions of these models, of all by default, to the lineage. Doing it again adds what is new.

    Versions that Fenix did not make are fetched once, for their content hash. What cannot be read, contradicts the
    lineage or would close a cycle is left out. Raises StoreUnavailable when registry or store do not answer; what was
    added until then stays, and beginning again is safe.
    """
    reader = _Reader(registry, store)
    for name in sorted(registry.aliases() if names is None else names):
        for version in registry.versions(name):
            reader.take(version)
    return reader.link()


class _Reader:
    def __init__(self, registry: ModelRegistry, store: LineageStore) -> None:
        self._registry = registry
        self._store = store
        self._taken: list[tuple[ModelVersion, VersionId]] = []
        self._of_run: dict[str, VersionId] = {}
        self._n_edges = self._n_new = 0
        self._left_out: list[str] = []

    def take(self, version: ModelVersion) -> None:
        """Adds a version, without its edges."""
        try:
            id = self._content(version)
            self._n_new += self._store.add(Version(id, version.name, version.version, made_s=version.created_ms / 1e3))
        except (LineageConflict, LineageRefused, ModelNotFound) as error:
            self._leave_out(version, error.message)
            return
        except (FenixError, OSError) as error:
            if isinstance(error, FenixError) and error.status == 503:
                raise
            self._leave_out(version, str(error))
            return
        self._taken.append((version, id))
        if version.run_id:
            self._of_run.setdefault(version.run_id, id)

    def link(self) -> Imported:
        """Adds the edges between what was taken, and what the lineage knew before."""
        for version, id in self._taken:
            for edge in self._edges(version, id):
                try:
                    self._n_new += self._store.link(edge)
                    self._n_edges += 1
                except (LineageConflict, LineageCycle) as error:
                    self._leave_out(version, error.message)
        return Imported(len(self._taken), self._n_edges, self._n_new, tuple(self._left_out))

    def _content(self, version: ModelVersion) -> VersionId:
        if _CONTENT.fullmatch(version.content):
            return VersionId(version.content)
        known = self._store.find(version.name, version.version)
        if known is not None:
            return known
        folder = self._registry.fetch(version)
        weights = sorted(folder.rglob("*.safetensors"))
        return VersionId(hash_safetensors(weights[0]) if len(weights) == 1 else hash_folder(folder))

    def _edges(self, version: ModelVersion, id: VersionId) -> list[Edge]:
        notes = (version.run_id and self._registry.run_notes(version.run_id)) or RunNotes({}, {}, {})
        said = [version.tags or {}, notes.tags, notes.params]
        parents = self._parents(version, said, notes)
        kind = self._kind(version, said)
        params = {name: value for name, value in notes.params.items() if name not in (*_PARENT_WORDS, *_KIND_WORDS)}
        metrics = {name: value for name, value in notes.metrics.items() if math.isfinite(value)}
        made_s = version.created_ms / 1e3
        return [Edge(parent, id, kind, params, metrics, made_s=made_s) for parent in parents if parent != id]

    def _parents(self, version: ModelVersion, said: Sequence[Mapping[str, str]], notes: RunNotes) -> list[VersionId]:
        text = _first(said, _PARENT_WORDS)
        if not text:
            of_run = self._of_run.get(notes.parent_id)
            return [] if of_run is None else [of_run]
        found = []
        for word in re.split(r"[,\s]+", text.strip()):
            parent = self._find(word)
            if parent is None:
                self._leave_out(version, f"its parent {word!r} is not in the lineage")
            else:
                found.append(parent)
        return list(dict.fromkeys(found))

    def _find(self, word: str) -> VersionId | None:
        if _CONTENT.fullmatch(word):
            id = VersionId(word)
            return id if self._store.versions([id]) else None
        of_run = _OF_RUN.fullmatch(word)
        if of_run:
            return self._of_run.get(of_run["run"])
        numbered = _NUMBERED.fullmatch(word)
        return self._store.find(numbered["name"], numbered["number"]) if numbered else None

    def _kind(self, version: ModelVersion, said: Sequence[Mapping[str, str]]) -> EdgeKind:
        text = _first(said, _KIND_WORDS)
        kind = _KINDS.get(text.strip().lower().replace("_", "-"))
        if text and kind is None:
            self._leave_out(version, f"{text!r} is no kind of edge; it is taken for a fine-tune")
        return kind or EdgeKind.FINE_TUNE

    def _leave_out(self, version: ModelVersion, why: str) -> None:
        self._left_out.append(f"{version.uri}: {why.rstrip('.')}.")


def _first(said: Iterable[Mapping[str, str]], words: Iterable[str]) -> str:
    return next((values[word] for values in said for word in words if values.get(word)), "")
