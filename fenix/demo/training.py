"""From data to extensions that can be deployed: fits the models, registers them in MLflow, prices everything.

The cost of a row is measured, not guessed: CPU milliseconds of this process for a batch of 64 sample rows, on one
thread, divided by 64, at the best of several tries.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from deployments.extension import Extension, execute
from deployments.kinds.sklearn import save_sklearn
from deployments.kinds.torch import save_torch
from deployments.loading import describe, load
from fenix.demo import data, digits, fitting, scans, tables
from fenix.demo.data import SEED, Part
from fenix.demo.network import DigitNetwork
from lineage.models import ModelRegistry, ModelVersion
from planner.card_codec import card_to_dict
from planner.cards import Accuracy, Card
from planner.features import DATATYPES, Array, Port

ALIAS = "champion"
PRICED_ROWS = 64
FUNCTIONS = (
    digits.normalise,
    digits.stroke_features,
    digits.read_network,
    digits.read_strokes,
    digits.fuse_scores,
    digits.parity,
    scans.LocateDigit,
    tables.wine_vote,
)
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A model to be fitted: what it takes and gives, on which rows (a key of `train_parts`), and how.

    `plain` models are logged with MLflow itself, as those that a team has from before it uses Fenix.
    """

    name: str
    description: str
    takes: Port
    gives: Port
    rows: str
    fit: Callable[[Array, Array, int], Any]
    plain: bool = False

    def options(self) -> dict[str, Any]:
        """What the extension is constructed with: a plain model knows no semantic types."""
        return {"types": {port.name: port.feature.type for port in (self.takes, self.gives)}} if self.plain else {}

    def card(self) -> dict[str, Any]:
        """What the author knows of the card, as plain data."""
        written = card_to_dict(Card(self.name, "1", (self.takes,), (self.gives,), description=self.description))
        return {field: written[field] for field in ("name", "description", "inputs", "outputs")}


_PIXELS, _SCORES = Port("pixels", digits.PIXELS), "scores"
_ANALYSIS, _CULTIVAR = Port("analysis", tables.ANALYSIS), Port("cultivar", tables.CULTIVAR)
_NUCLEI, _TUMOUR = Port("nuclei", tables.NUCLEI), Port("tumour", tables.TUMOUR)

RECIPES = (
    Recipe(
        "digit-network",
        "Scores how likely each digit is with a small convolutional neural network on the pixels.",
        _PIXELS,
        Port(_SCORES, digits.NETWORK_SCORES),
        "pixels",
        fitting.fit_network,
    ),
    Recipe(
        "digit-trees",
        "Scores how likely each digit is by the votes of decision trees on the pixels.",
        _PIXELS,
        Port(_SCORES, digits.TREES_SCORES),
        "pixels",
        fitting.fit_extra_trees,
    ),
    Recipe(
        "digit-strokes",
        "Scores how likely each digit is by the directions of its strokes, with a kernel classifier.",
        Port("strokes", digits.STROKES),
        Port(_SCORES, digits.STROKES_SCORES),
        "strokes",
        fitting.fit_kernel,
    ),
    Recipe(
        "glance-digit",
        "Reads a digit at a glance, with one small matrix: the cheapest way.",
        _PIXELS,
        Port("digit", digits.DIGIT),
        "pixels",
        fitting.fit_glance,
    ),
    Recipe(
        "wine-linear",
        "Tells the cultivar of a wine with logistic regression.",
        _ANALYSIS,
        _CULTIVAR,
        "wines",
        fitting.fit_scaled_linear,
        plain=True,
    ),
    Recipe(
        "wine-forest",
        "Tells the cultivar of a wine with a random forest.",
        _ANALYSIS,
        _CULTIVAR,
        "wines",
        fitting.fit_forest,
    ),
    Recipe(
        "wine-discriminant",
        "Tells the cultivar of a wine with linear discriminant analysis.",
        _ANALYSIS,
        _CULTIVAR,
        "wines",
        fitting.fit_discriminant,
    ),
    Recipe(
        "tumour-linear",
        "Tells a malignant tumour from a benign one with logistic regression.",
        _NUCLEI,
        _TUMOUR,
        "tumours",
        fitting.fit_scaled_linear,
    ),
    Recipe(
        "tumour-forest",
        "Tells a malignant tumour from a benign one with a random forest.",
        _NUCLEI,
        _TUMOUR,
        "tumours",
        fitting.fit_forest,
    ),
)


@dataclass(frozen=True, slots=True)
class Fitted:
    """A recipe and the model that came of it."""

    recipe: Recipe
    model: Any
    n_rows: int

    def save(self, folder: Path) -> str:
        """Writes the model into `folder`; returns the hash of its content."""
        if isinstance(self.model, DigitNetwork):
            reference = f"{DigitNetwork.__module__}:{DigitNetwork.__qualname__}"
            return save_torch(reference, {}, self.model, folder, classes=range(10))
        return save_sklearn(self.model, folder)


def train_parts(seed: int = SEED) -> dict[str, Part]:
    """The train rows as the models take them. Readers of digits see each digit twice: as it is, and as it was found
    on its scan."""
    images = data.digits(seed).train
    located = scans.LocateDigit().infer(scan=data.scans(seed).train.x)
    pixels = _array(digits.normalise.function(np.concatenate([images.x, located])))
    labels = np.tile(images.y, 2)
    return {
        "pixels": Part(pixels, labels),
        "strokes": Part(_array(digits.stroke_features.function(pixels)), labels),
        "wines": data.wines(seed).train,
        "tumours": data.tumours(seed).train,
    }


def fit_all(report: Report, seed: int = SEED) -> tuple[Fitted, ...]:
    """Fits every model of the demo on its train rows."""
    parts, made = train_parts(seed), []
    for recipe in RECIPES:
        part, started_s = parts[recipe.rows], time.perf_counter()
        with threadpool_limits(1):  # so small that threads would only wait for each other
            model = recipe.fit(part.x, part.y, seed)
        report(f"fitted {recipe.name} on {len(part)} rows in {time.perf_counter() - started_s:.1f} s")
        made.append(Fitted(recipe, model, len(part)))
    return tuple(made)


def register_all(fitted: Sequence[Fitted], registry: ModelRegistry, report: Report) -> None:
    """Registers every model in MLflow as the new champion of its name."""
    for one in fitted:
        made = _log(one, registry) if one.recipe.plain else _register(one, registry)
        registry.set_alias(made, ALIAS)
        report(f"registered {made.uri} as {ALIAS}")


def _register(one: Fitted, registry: ModelRegistry) -> ModelVersion:
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "model"
        content = one.save(folder)
        params = {"n_rows": one.n_rows}
        return registry.register(one.recipe.name, folder, content=content, card=one.recipe.card(), params=params)


def _log(one: Fitted, registry: ModelRegistry) -> ModelVersion:
    import mlflow
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    def schema(port: Port) -> Schema:
        return Schema([TensorSpec(DATATYPES[port.feature.datatype], (-1, *port.feature.shape), port.name)])

    name = one.recipe.name
    mlflow.set_tracking_uri(registry.uri)
    logged = mlflow.sklearn.log_model(
        one.model,
        name=name,
        signature=ModelSignature(schema(one.recipe.takes), schema(one.recipe.gives)),
        serialization_format="skops",
        pip_requirements=["scikit-learn"],  # MLflow would find out by starting another Python
    )
    # `registered_model_name` above would do the same, but write to the terminal about it.
    client = mlflow.MlflowClient(registry.uri, registry.uri)
    if not registry.versions(name):
        client.create_registered_model(name)
    made = client.create_model_version(name, logged.model_uri, model_id=logged.model_id, await_creation_for=0)
    return registry.resolve(f"models:/{name}/{made.version}")


def priced_cards(report: Report, *, mlflow_uri: str, cache_dir: str | Path) -> tuple[Card, ...]:
    """The cards of the functions and of the champions in MLflow, with their cost per row: ready to deploy."""
    sources: list[tuple[str, dict[str, Any]]] = [(f"{f.__module__}:{f.__qualname__}", {}) for f in FUNCTIONS]
    sources += [(f"models:/{recipe.name}@{ALIAS}", recipe.options()) for recipe in RECIPES]
    descriptions = {recipe.name: recipe.description for recipe in RECIPES}
    extensions, cards = {}, []
    for source, options in sources:
        card = describe(source, options, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
        report(f"measuring what a row costs {card.id}")
        extension = extensions[card.name] = load(card, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
        extension.setup()
        cards.append(card.but(description=descriptions.get(card.name, card.description)))
    return tuple(measured(cards, extensions))


def measured(cards: Sequence[Card], extensions: Mapping[str, Extension], seed: int = SEED) -> list[Card]:
    """The cards with the cost of their extensions (by name, set up), and with what finding a digit costs in accuracy.

    Deploying measures the accuracy of what ends a goal; `locate-digit` ends none.
    """
    found = found_again(extensions["digit-network"], seed)
    priced = [card.but(cost=cost_per_row(extensions[card.name])) for card in cards]
    return [card.but(accuracy=found) if card.name == scans.LocateDigit.name else card for card in priced]


def found_again(reader: Extension, seed: int = SEED) -> Accuracy:
    """How many validation digits `reader` reads rightly as they were found on their scans, for each that it reads
    rightly as it is."""
    images, sheets = data.digits(seed).validation, data.scans(seed).validation

    def right(x: Array) -> float:
        scores = execute(reader, {"pixels": _array(digits.normalise.function(x))})["scores"].values
        return float((scores.argmax(axis=1) == images.y).mean())

    share = right(scans.LocateDigit().infer(scan=sheets.x)) / right(images.x)
    return Accuracy(min(1.0, share), len(images))


def cost_per_row(extension: Extension, n_tries: int = 7) -> float:
    """CPU milliseconds per row, to two digits; see the module docstring. The extension is set up."""
    rows = extension.samples(PRICED_ROWS, np.random.default_rng(SEED))
    with threadpool_limits(1):
        least_ms = min(_cpu_ms(extension, rows) for _ in range(n_tries))
    return float(f"{least_ms / PRICED_ROWS:.2g}")


def _cpu_ms(extension: Extension, rows: Mapping[str, Array]) -> float:
    started_s = time.process_time()
    execute(extension, rows)
    return (time.process_time() - started_s) * 1e3


def _array(made: Any) -> Array:
    array: Array = np.asarray(made)
    return array
