"""A scikit-learn estimator or pipeline in the skops format, which holds no code: only named types and their state.

content = save_sklearn(pipeline, folder)
registry.register("rate-wine", folder, content=content, card={"inputs": [...], "outputs": [...]})
"""

from __future__ import annotations

import hashlib
import importlib
import json
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from deployments.extension import Result
from deployments.kinds.saved import SavedExtension, check_saving_folder, classified
from lineage.models import describe_folder
from planner.cards import Kind
from planner.errors import ArtifactRefused
from planner.features import Array, Port

_FILE = "model.skops"
_TRUSTED = ("sklearn", "numpy", "scipy")


class SklearnExtension(SavedExtension):
    """`predict_proba` gives label and confidence (its highest probability) where the estimator has it, `predict` the
    output otherwise, `transform` for what is no predictor.

    The feature matrix is made of the input ports in the card's order, or of `features` in that order; each port's
    rows are flattened. An estimator fitted on a DataFrame gets one. A text port alone becomes a sequence of texts.
    """

    kind: Kind = "sklearn"
    format = "sklearn"

    def __init__(self, folder: str, features: Sequence[str] | None = None) -> None:
        super().__init__(folder)
        self._features = check_features(self.input_ports, features or self.loader.get("features"))

    def setup(self) -> None:
        """Loads the estimator. Raises ArtifactRefused for types that are not scikit-learn's, numpy's or scipy's."""
        self._estimator = load_skops(self.folder / _FILE)

    def infer(self, *_: Any, **inputs: Any) -> Result:
        return estimate(self._estimator, feature_matrix(self._estimator, inputs, self._features), self.output_ports)


def save_sklearn(estimator: Any, folder: Path, *, features: Sequence[str] | None = None) -> str:
    """Writes a fitted estimator to `folder`; `features` names the input ports that make up its feature matrix.

    Returns the content hash of what was fitted. Raises ArtifactRefused when it holds types that could not be loaded
    again (functions and classes of your own: put them into an extension before or after it).
    """
    check_saving_folder(folder)
    _skops().dump(estimator, folder / _FILE)
    load_skops(folder / _FILE)
    describe_folder(folder, {"format": SklearnExtension.format, "features": list(features) if features else None})
    return hash_skops(folder / _FILE)


def load_skops(path: Path) -> Any:
    """The estimator in a skops file. Raises ArtifactRefused for a damaged file or types that are not to be trusted.

    Beyond what skops itself trusts, only *classes* of scikit-learn, numpy and scipy pass: some functions in there
    run code or open files, and a FunctionTransformer would call them on what a client sends.
    """
    skops = _skops()
    try:
        asked = skops.get_untrusted_types(file=path)
        refused = [name for name in asked if not _trusted(name)]
        if refused:
            raise ArtifactRefused(
                f"{path.name} holds {', '.join(refused[:5])}, which may run code.",
                hint="Only classes of scikit-learn, numpy and scipy are loaded; put your own code into an extension.",
            )
        return skops.load(path, trusted=asked)
    except ArtifactRefused:
        raise
    except Exception as error:  # skops raises whatever its nodes stumble over
        raise ArtifactRefused(f"{path.name} cannot be loaded: {type(error).__name__}: {error}") from None


def hash_skops(path: Path) -> str:
    """Content hash (SHA-256, hex) of an estimator: its types, parameters and fitted state.

    The archive names its members and objects at random, so members count by their content and ids not at all.
    """
    with zipfile.ZipFile(path) as archive:
        schema = _canonical(json.loads(archive.read("schema.json")), archive)
    return hashlib.sha256(json.dumps(schema, sort_keys=True).encode()).hexdigest()


def check_features(ports: Sequence[Port], features: Sequence[str] | None) -> tuple[str, ...]:
    """The names of the ports that make up the feature matrix, in order; all of them by default."""
    names = tuple(port.name for port in ports)
    unknown = [name for name in features or () if name not in names]
    if unknown:
        raise ArtifactRefused(
            f"features: there is no input port {unknown[0]!r}.", hint=f"There are: {', '.join(names)}."
        )
    return tuple(features) if features else names


def feature_matrix(estimator: Any, inputs: Mapping[str, Array], features: Sequence[str]) -> Any:
    """What scikit-learn takes: (n_rows, n_columns), or a DataFrame where it was fitted on one, or texts (n_rows,)."""
    columns = [_readable(inputs[name]) for name in features]
    if len(columns) == 1 and columns[0].ndim == 1 and columns[0].dtype.kind == "O":
        return columns[0]
    fitted_names = getattr(estimator, "feature_names_in_", None)
    if fitted_names is not None and set(fitted_names) == set(features):
        import pandas as pd

        return pd.DataFrame(dict(zip(features, (column.reshape(len(column)) for column in columns), strict=True)))[
            list(fitted_names)
        ]
    matrix = np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
    if fitted_names is not None:
        import pandas as pd

        return pd.DataFrame(matrix, columns=list(fitted_names))
    return matrix


def estimate(estimator: Any, matrix: Any, ports: Sequence[Port]) -> Result:
    """Label and confidence, or the plain prediction, or what `transform` gives."""
    if hasattr(estimator, "predict_proba"):
        scores = estimator.predict_proba(matrix)
        if isinstance(scores, np.ndarray):  # several labels at once give a list: no single confidence
            return classified(scores, np.asarray(estimator.classes_), ports)
    made = estimator.predict(matrix) if hasattr(estimator, "predict") else estimator.transform(matrix)
    dense = np.asarray(made.toarray() if hasattr(made, "toarray") else made)
    shape = ports[0].feature.shape
    return dense.reshape(len(dense), *shape) if -1 not in shape and dense.ndim != len(shape) + 1 else dense


def _skops() -> Any:
    """`skops.io`, kept from importing torch, which costs a replica 1.4 s of processor time and 200 MiB.

    At its import skops looks through all packages of scikit-learn for estimators to trust. One of them, without any
    estimator, adapts scikit-learn to torch and imports it; the search passes over a package that cannot be imported.
    """
    adapter = "sklearn.externals.array_api_compat.torch"
    hidden = "skops.io" not in sys.modules and adapter not in sys.modules
    if hidden:
        sys.modules[adapter] = None  # type: ignore[assignment]  # which is how Python marks what cannot be imported
    try:
        import skops.io
    finally:
        if hidden:
            sys.modules.pop(adapter, None)
    return skops.io


def _readable(values: Array) -> Array:
    if values.dtype.kind != "O":
        return values
    texts = np.empty(values.shape, dtype=object)
    texts.reshape(-1)[:] = [value.decode("utf-8", "replace") for value in values.reshape(-1)]
    return texts


def _trusted(name: str) -> bool:
    module, _, attribute = name.rpartition(".")
    parts = module.split(".")
    # Modules that do something when they are imported are no place for a type either.
    if parts[0] not in _TRUSTED or any(part in ("__main__", "conftest", "tests", "testing") for part in parts):
        return False
    try:
        return isinstance(getattr(importlib.import_module(module), attribute), type)
    except (ImportError, AttributeError):
        return False


def _canonical(node: Any, archive: zipfile.ZipFile) -> Any:
    if isinstance(node, dict):
        return {
            key: hashlib.sha256(archive.read(value)).hexdigest() if key == "file" else _canonical(value, archive)
            for key, value in node.items()
            if key not in ("__id__", "_skops_version")
        }
    return [_canonical(item, archive) for item in node] if isinstance(node, list) else node
