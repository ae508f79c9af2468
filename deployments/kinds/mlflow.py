"""Model versions from MLflow: which kind a version is, and plain MLflow models by the signature they carry.

A version that Fenix made is a torch or scikit-learn extension. Any other is typed by its signature: a port per
column or tensor, with semantic types that the operator gives in the options. One that was logged in the skops format
loads like ours; everything else may be a pickle, which runs code when it is read, so the operator must say
`allow_pickle: true`.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from deployments.extension import Extension, Result
from deployments.kinds.saved import SavedExtension
from deployments.kinds.sklearn import SklearnExtension, estimate, feature_matrix, load_skops
from deployments.kinds.torch import TorchExtension
from lineage.models import ModelRegistry, ModelVersion, pinned, read_descriptor
from planner.cards import Kind
from planner.errors import ArtifactRefused, BadCard, near
from planner.features import DATATYPES, Array, Feature, Port

_OURS: dict[str, type[SavedExtension]] = {kind.format: kind for kind in (TorchExtension, SklearnExtension)}
_DATATYPES = {np.dtype(dtype).name: name for name, dtype in DATATYPES.items()} | {
    "boolean": "BOOL",
    "integer": "INT32",
    "long": "INT64",
    "float": "FP32",
    "double": "FP64",
    "string": "BYTES",
    "str": "BYTES",
    "binary": "BYTES",
}


def find_model(source: str, *, mlflow_uri: str, cache_dir: Path) -> tuple[type[Extension], ModelVersion, Path]:
    """The kind of extension that a model version is, the version, and the local folder to make the extension from.

    A pinned version that was fetched before needs no registry, so replicas start while it is down.
    Raises ModelNotFound, StoreUnavailable, ArtifactRefused.
    """
    registry = ModelRegistry(mlflow_uri, cache_dir)
    version = pinned(source) or registry.resolve(source)
    folder = registry.fetch(version)
    descriptor = read_descriptor(folder)
    if descriptor is None:
        return MlflowExtension, version, folder
    format_ = str(descriptor["loader"].get("format"))
    if format_ not in _OURS:
        raise ArtifactRefused(f"{source} is saved as {format_!r}, which is unknown.", hint=near(format_, _OURS))
    return _OURS[format_], version, folder


class MlflowExtension(Extension):
    """A model that was logged with MLflow itself.

    Options: `types` gives semantic types by port name (`{"age": "person/age"}`; default: the port's name);
    `together` names one port that all columns share as a vector, instead of one port each; `allow_pickle` accepts
    that reading the artifact runs whatever code it holds.
    """

    kind: Kind = "mlflow"

    def __init__(
        self, folder: str, types: Mapping[str, str] | None = None, together: str = "", allow_pickle: bool = False
    ) -> None:
        self.folder = Path(folder)
        self._model = _read_mlmodel(self.folder)
        sklearn = self._model["flavors"].get("sklearn") or {}
        self._skops = sklearn.get("pickled_model", "") if sklearn.get("serialization_format") == "skops" else ""
        if not self._skops and allow_pickle is not True:
            flavours = ", ".join(sorted(self._model["flavors"])) or "none"
            raise ArtifactRefused(
                f"the model (flavours: {flavours}) may be a pickle, which runs code when it is loaded.",
                hint="Log it with serialization_format='skops', or set allow_pickle: true if you trust its author.",
            )
        types = dict(types or {})
        inputs, self._columns = _ports(self._model, "inputs", types, together)
        outputs, _ = _ports(self._model, "outputs", types, "")
        self._together = together
        self.inputs = {port.name: port for port in inputs}
        self.outputs = {port.name: port.feature for port in outputs}
        if types:
            names = [port.name for port in (*inputs, *outputs)]
            unknown = next(iter(types))
            raise BadCard(f"types: the model has no port {unknown!r}.", hint=near(unknown, names))

    def setup(self) -> None:
        """Loads the model. Raises ArtifactRefused for a skops file with types that are not to be trusted."""
        if self._skops:
            path = (self.folder / self._skops).resolve()
            if not path.is_relative_to(self.folder.resolve()):
                raise ArtifactRefused("the MLmodel file names a model outside of its folder.")
            self._estimator = load_skops(path)
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # importing mlflow.pyfunc warns about MLflow's own type hints
            import mlflow.pyfunc

            self._pyfunc = mlflow.pyfunc.load_model(str(self.folder))

    def infer(self, *_: Any, **inputs: Any) -> Result:
        if self._together:
            inputs = {name: inputs[self._together][:, i] for i, name in enumerate(self._columns)}
        if self._skops:
            names = self._columns or list(inputs)
            return estimate(self._estimator, feature_matrix(self._estimator, inputs, names), self.output_ports)
        return self._fitted(self._pyfunc.predict(self._frame(inputs)))

    def _frame(self, inputs: Mapping[str, Array]) -> Any:
        """What `predict` of a pyfunc takes: a DataFrame for columns, a dict for named tensors, or the one array."""
        if self._columns:
            import pandas as pd

            return pd.DataFrame({name: _column(values) for name, values in inputs.items()})
        if all(entry.get("name") for entry in _schema(self._model, "inputs")):
            return dict(inputs)
        return next(iter(inputs.values()))

    def _fitted(self, made: Any) -> Result:
        """A pyfunc's prediction as arrays by output port; it may be an array, a list, a Series, a frame or a dict."""
        names = [port.name for port in self.output_ports]
        if isinstance(made, Mapping) or hasattr(made, "columns"):
            return {name: np.asarray(made[name]) for name in names}
        return np.asarray(made)


def _read_mlmodel(folder: Path) -> dict[str, Any]:
    try:
        model = yaml.safe_load((folder / "MLmodel").read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ArtifactRefused(f"the MLmodel file cannot be read: {error}") from None
    if not isinstance(model, dict) or not isinstance(model.get("flavors"), dict):
        raise ArtifactRefused("the MLmodel file names no flavours.", hint="Log the model with MLflow again.")
    return model


def _schema(model: Mapping[str, Any], side: str) -> list[dict[str, Any]]:
    try:
        entries: list[dict[str, Any]] = json.loads((model.get("signature") or {}).get(side) or "[]")
    except (ValueError, AttributeError, TypeError):
        entries = []
    if not entries:
        raise ArtifactRefused(
            f"the model's signature has no {side}, so Fenix cannot type it.",
            hint="Log it with signature=infer_signature(X, model.predict(X)).",
        )
    return entries


def _ports(
    model: Mapping[str, Any], side: str, types: dict[str, str], together: str
) -> tuple[list[Port], tuple[str, ...]]:
    """The ports of one side, and the names of its columns (none when it has tensors). Takes what it uses of `types`."""
    entries = _schema(model, side)
    columns = tuple(str(entry.get("name", "")) for entry in entries if entry.get("type") != "tensor")
    if together and not columns:
        raise BadCard(f"together: the model takes tensors, not columns, so nothing is put into {together!r}.")
    ports = []
    for i, entry in enumerate(entries):
        name = str(entry.get("name") or (side[:-1] if len(entries) == 1 else f"{side[:-1]}-{i}"))
        spec = entry.get("tensor-spec") or {"dtype": entry.get("type"), "shape": [-1]}
        datatype = _DATATYPES.get(str(spec["dtype"]))
        if datatype is None:
            raise ArtifactRefused(
                f"{side}: {name!r} has type {spec['dtype']!r}, which has no Open Inference datatype.",
                hint="Log the model with a signature of numbers, booleans and texts.",
            )
        ports.append((name, datatype, tuple(int(d) for d in spec["shape"][1:])))
    if together:
        datatypes = {datatype for _, datatype, _ in ports}
        if len(datatypes) > 1:
            raise BadCard(f"together: the columns are of several types ({', '.join(sorted(datatypes))}).")
        ports = [(together, datatypes.pop(), (len(columns),))]
    return [
        Port(name, Feature(types.pop(name, _slug(name)), datatype, shape)) for name, datatype, shape in ports
    ], columns


def _column(values: Array) -> Any:
    return [value.decode("utf-8", "replace") for value in values] if values.dtype.kind == "O" else values


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", name.lower()).strip("-_.") or "value"


def model_name(version: ModelVersion) -> str:
    """The name a registered model gives its extension: the same, with what a card's name may not hold replaced."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", version.name).strip("-_.") or "model"
