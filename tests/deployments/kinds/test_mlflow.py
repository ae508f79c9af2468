"""Model versions in MLflow become extensions: ours by their card, others by their signature, pickles if allowed."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from deployments.contract import check_contract
from deployments.extension import execute
from deployments.kinds.mlflow import MlflowExtension
from deployments.kinds.sklearn import save_sklearn
from deployments.kinds.torch import save_torch
from deployments.loading import describe, load, pin
from lineage.models import ModelRegistry, ModelVersion, describe_folder
from planner.card_codec import card_to_dict, parse_card
from planner.errors import ArtifactRefused, BadCard, StoreUnavailable
from planner.features import Feature
from tests.deployments.kinds.test_torch import Net
from tests.lineage.stores import model_registry

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # mlflow.pyfunc warns about MLflow's own type hints when it is imported
    import mlflow.pyfunc
    import mlflow.sklearn
    from mlflow.models import infer_signature

FRAME = load_iris(as_frame=True).data
X, Y = load_iris(return_X_y=True)
IMAGE = {"name": "image", "type": "image", "shape": [4, 4]}
LABEL = {"name": "label", "type": "label/shape", "datatype": "INT64"}
FLOWER = {"name": "flower", "type": "flower", "datatype": "FP64", "shape": [4]}
DEAD = "http://127.0.0.1:9"  # nothing listens there: connections are refused


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def registry(home: Path) -> ModelRegistry:
    return model_registry(home / "cache")


def plain(folder: Path, serialization: str, given: Any, outputs: Any) -> Path:
    """A model that MLflow itself saved."""
    estimator = LogisticRegression(max_iter=500).fit(given, Y)
    mlflow.sklearn.save_model(
        estimator,
        str(folder),
        serialization_format=serialization,
        signature=infer_signature(given, outputs),
        pip_requirements=[],
    )
    return folder


def test_a_torch_version_loads_by_alias_and_stays_that_version(
    home: Path, registry: ModelRegistry, tmp_path: Path
) -> None:
    where = {"mlflow_uri": registry.uri, "cache_dir": home / "cache"}
    net = Net(3)
    content = save_torch("tests.deployments.kinds.test_torch:Net", {}, net, tmp_path / "a", classes=range(3))
    card = {"inputs": [IMAGE], "outputs": [LABEL], "description": "Tells shapes.", "cost": 3.0}
    made = registry.register("read shape", tmp_path / "a", content=content, card=card, alias="champion")
    assert made.content == content

    described = describe("models:/read shape@champion", {"threads": 1}, **where)
    assert (described.id, described.kind, described.cost) == ("read-shape@1", "torch", 3.0)
    assert described.source == f"models:/read shape/1#{made.digest}"

    save_torch("tests.deployments.kinds.test_torch:Net", {"classes": 2}, Net(2), tmp_path / "b", classes=range(2))
    registry.register("read shape", tmp_path / "b", content="other", card=card, alias="champion")
    loaded = load(parse_card(card_to_dict(described), "store"), **where)
    loaded.setup()
    images = loaded.samples(20, np.random.default_rng(0))
    expected = net.eval()(torch.tensor(images["image"])).argmax(dim=1).tolist()
    assert execute(loaded, images)["label"].values.tolist() == expected
    assert describe("models:/read shape@champion", **where).version == "2"


def test_a_sklearn_version_holds_to_the_contract(home: Path, registry: ModelRegistry, tmp_path: Path) -> None:
    content = save_sklearn(LogisticRegression(max_iter=500).fit(X, Y), tmp_path / "m")
    card = {"inputs": [FLOWER], "outputs": [LABEL]}
    made = registry.register("iris", tmp_path / "m", content=content, card=card)
    loaded = load(
        describe(made.uri, mlflow_uri=registry.uri, cache_dir=home / "cache"),
        mlflow_uri=registry.uri,
        cache_dir=home / "cache",
    )
    loaded.setup()
    assert loaded.kind == "sklearn"
    report = check_contract(loaded, np.random.default_rng(0))
    assert report.passed, report.failures


@pytest.fixture(scope="module")
def versions(registry: ModelRegistry, tmp_path_factory: pytest.TempPathFactory) -> list[ModelVersion]:
    """Two versions of one scikit-learn model, with other weights."""
    made = []
    for regularisation in (1.0, 0.1):
        folder = tmp_path_factory.mktemp("version")
        content = save_sklearn(LogisticRegression(C=regularisation, max_iter=500).fit(X, Y), folder)
        made.append(registry.register("pinned", folder, content=content, card={"inputs": [FLOWER], "outputs": [LABEL]}))
    return made


def test_a_replica_starts_from_the_cache_without_mlflow_or_torch(
    home: Path, registry: ModelRegistry, versions: list[ModelVersion], tmp_path: Path
) -> None:
    card = describe(versions[0].uri, mlflow_uri=registry.uri, cache_dir=home / "cache")
    (tmp_path / "card.json").write_text(json.dumps(card_to_dict(card)))
    code = f"""
import json, sys
from pathlib import Path
import numpy as np
from deployments.extension import execute
from deployments.loading import load
from planner.card_codec import parse_card

card = parse_card(json.loads(Path({str(tmp_path / "card.json")!r}).read_text()), "store")
extension = load(card, mlflow_uri={DEAD!r}, cache_dir={str(home / "cache")!r})
extension.setup()
execute(extension, extension.samples(3, np.random.default_rng(0)))
surplus = {{"mlflow", "torch", "fastapi", "ray"}} & set(sys.modules)
assert not surplus, surplus
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_a_damaged_copy_is_repaired_or_refused(
    home: Path, registry: ModelRegistry, versions: list[ModelVersion]
) -> None:
    where = {"mlflow_uri": registry.uri, "cache_dir": home / "cache"}
    card = describe(versions[0].uri, **where)
    kept = home / "cache" / versions[0].digest / "model.skops"
    whole = kept.read_bytes()
    kept.write_bytes(b"damaged")
    load(card, **where).setup()
    assert kept.read_bytes() == whole
    kept.write_bytes(b"damaged")
    with pytest.raises(StoreUnavailable, match="does not answer"):
        load(card, mlflow_uri=DEAD, cache_dir=home / "cache")


def test_a_version_that_is_not_what_was_deployed_is_refused(
    home: Path, registry: ModelRegistry, versions: list[ModelVersion], tmp_path: Path
) -> None:
    card = describe(versions[0].uri, mlflow_uri=registry.uri, cache_dir=home / "cache")
    swapped = card.but(source=f"{versions[0].uri}#{versions[1].digest}")
    with pytest.raises(ArtifactRefused, match="not the ones that were registered"):
        load(swapped, mlflow_uri=registry.uri, cache_dir=tmp_path / "another-machine")
    with pytest.raises(ArtifactRefused, match="not the ones that were registered"):
        registry.resolve(swapped.source)
    assert registry.resolve(card.source) == versions[0]


def test_an_alias_names_the_same_card_until_it_moves(
    home: Path, registry: ModelRegistry, versions: list[ModelVersion]
) -> None:
    where = {"mlflow_uri": registry.uri, "cache_dir": home / "cache"}
    registry.set_alias(versions[0], "followed")
    first = describe("models:/pinned@followed", **where)
    assert describe("models:/pinned@followed", **where) == first
    assert pin(first.source, mlflow_uri=DEAD, cache_dir=home / "cache") == first.source
    registry.set_alias(versions[1], "followed")
    assert describe("models:/pinned@followed", **where).source == versions[1].pinned_uri
    registry.set_alias(versions[0], "followed")
    assert describe("models:/pinned@followed", **where) == first


def test_options_that_the_kind_does_not_have_are_explained(home: Path, registry: ModelRegistry, tmp_path: Path) -> None:
    save_torch("tests.deployments.kinds.test_torch:Net", {}, Net(3), tmp_path / "m", classes=range(3))
    registry.register("options", tmp_path / "m", content="", card={"inputs": [IMAGE], "outputs": [LABEL]})
    with pytest.raises(BadCard, match="thread"):
        describe("models:/options/1", {"thread": 1}, mlflow_uri=registry.uri, cache_dir=home / "cache")


def test_a_format_that_is_unknown_is_refused(home: Path, registry: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    describe_folder(tmp_path / "m", {"format": "tourch"})
    registry.register("unknown", tmp_path / "m", content="")
    with pytest.raises(ArtifactRefused, match="'tourch', which is unknown"):
        describe("models:/unknown/1", mlflow_uri=registry.uri, cache_dir=home / "cache")


def test_a_plain_skops_model_is_typed_by_its_columns(tmp_path: Path) -> None:
    types = {"sepal length (cm)": "flower/sepal-length", "output": "label/iris"}
    made = MlflowExtension(str(plain(tmp_path / "m", "skops", FRAME, Y)), types)
    card = made.card()
    assert [port.name for port in card.inputs] == list(FRAME.columns)
    assert card.inputs[0].feature == Feature("flower/sepal-length", "FP64")
    assert card.inputs[1].feature.type == "sepal-width-cm"
    assert card.outputs[0].feature == Feature("label/iris", "INT64")
    made.setup()
    rows = execute(made, {name: FRAME[name].to_numpy() for name in FRAME.columns})["output"]
    assert (rows.values == Y).mean() > 0.9
    assert rows.confidence is not None
    report = check_contract(made, np.random.default_rng(0))
    assert report.passed, report.failures


def test_a_model_that_mlflow_logged_is_fetched_and_loads(
    home: Path, registry: ModelRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", registry.uri)  # without a server, MLflow's store looks there itself
    save_sklearn(LogisticRegression(max_iter=500).fit(X, Y), tmp_path / "any")
    registry.register("any", tmp_path / "any", content="")  # so that there is an experiment
    client = mlflow.MlflowClient(registry.uri, registry.uri)
    experiment = client.get_experiment_by_name("fenix")
    logged = client.create_logged_model(experiment.experiment_id, name="logged")
    client.log_model_artifacts(logged.model_id, str(plain(tmp_path / "m", "skops", X, Y)))
    client.finalize_logged_model(logged.model_id, "READY")
    client.create_registered_model("logged")
    client.create_model_version("logged", f"models:/{logged.model_id}", model_id=logged.model_id)

    where = {"mlflow_uri": registry.uri, "cache_dir": home / "cache"}
    described = describe("models:/logged/1", {"types": {"input": "flower"}}, **where)
    assert described == describe("models:/logged/1", {"types": {"input": "flower"}}, **where)
    loaded = load(described, mlflow_uri=DEAD, cache_dir=home / "cache")
    loaded.setup()
    assert loaded.card().inputs[0].feature == Feature("flower", "FP64", (4,))
    assert (execute(loaded, {"input": X})["output"].values == Y).mean() > 0.9


def test_the_columns_of_a_plain_model_may_share_one_port(tmp_path: Path) -> None:
    made = MlflowExtension(str(plain(tmp_path / "m", "skops", FRAME, Y)), {"flower": "flower"}, together="flower")
    assert made.card().inputs[0].feature == Feature("flower", "FP64", (4,))
    made.setup()
    assert (execute(made, {"flower": X})["output"].values == Y).mean() > 0.9


def test_a_plain_tensor_model_is_typed_by_its_tensor(tmp_path: Path) -> None:
    made = MlflowExtension(str(plain(tmp_path / "m", "skops", X, Y)))
    assert made.card().inputs[0].feature == Feature("input", "FP64", (4,))
    made.setup()
    assert (execute(made, {"input": X})["output"].values == Y).mean() > 0.9


def test_a_pickle_is_refused_unless_the_operator_allows_it(tmp_path: Path) -> None:
    folder = str(plain(tmp_path / "m", "cloudpickle", FRAME, Y))
    with pytest.raises(ArtifactRefused) as caught:
        MlflowExtension(folder)
    assert "may be a pickle" in caught.value.message
    assert "allow_pickle: true" in caught.value.hint
    with pytest.raises(ArtifactRefused):
        MlflowExtension(folder, allow_pickle="yes")  # type: ignore[arg-type]
    made = MlflowExtension(folder, allow_pickle=True)
    made.setup()
    rows = execute(made, {name: FRAME[name].to_numpy() for name in FRAME.columns})["output"]
    assert (rows.values == Y).mean() > 0.9
    assert rows.confidence is None


def python_model(folder: Path, model: Any, given: Any, made: Any) -> MlflowExtension:
    mlflow.pyfunc.save_model(
        str(folder), python_model=model, signature=infer_signature(given, made), pip_requirements=[]
    )
    extension = MlflowExtension(str(folder), allow_pickle=True)
    extension.setup()
    return extension


def test_a_pyfunc_over_texts_and_one_over_named_tensors_work(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True, action="always"):  # MLflow warns whether or not `predict` has type hints

        class Shout(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
            def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
                return pd.DataFrame({"loud": [word.upper() for word in model_input["word"]]})

        class Sum(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
            def predict(self, context: Any, model_input: Any, params: Any = None) -> Any:
                return {"sum": model_input["a"] + model_input["b"]}

        words = pd.DataFrame({"word": ["a", "b"]})
        pair = {"a": np.ones((2, 3)), "b": np.ones((2, 3))}
        shout = python_model(tmp_path / "a", Shout(), words, pd.DataFrame({"loud": ["A", "B"]}))
        total = python_model(tmp_path / "b", Sum(), pair, {"sum": pair["a"]})

    assert shout.card().inputs[0].feature == Feature("word", "BYTES")
    rows = execute(shout, {"word": np.array([b"elm", b"oak"], dtype=object)})
    assert rows["loud"].values.tolist() == [b"ELM", b"OAK"]
    assert execute(total, pair)["sum"].values.tolist() == [[2.0] * 3] * 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"types": {"sepal": "flower"}}, "no port 'sepal'"),
        ({"types": {"output": "Label"}}, "'Label' is not a feature type"),
    ],
)
def test_options_that_do_not_fit_the_signature_are_explained(tmp_path: Path, options: Any, said: str) -> None:
    with pytest.raises(BadCard, match=said):
        MlflowExtension(str(plain(tmp_path / "m", "skops", X, Y)), **options)
    with pytest.raises(BadCard, match="tensors, not columns"):
        MlflowExtension(str(tmp_path / "m"), together="flower")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"signature": None}, "signature has no inputs"),
        ({"signature": {"inputs": "{"}}, "signature has no inputs"),
        ({"signature": {"inputs": '[{"type": "datetime", "name": "when"}]'}}, "'when' has type 'datetime'"),
        ({"flavors": None}, "names no flavours"),
    ],
)
def test_an_mlmodel_that_says_too_little_is_refused(tmp_path: Path, change: Any, said: str) -> None:
    folder = plain(tmp_path / "m", "skops", X, Y)
    path = folder / "MLmodel"
    path.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), **change}))
    with pytest.raises(ArtifactRefused, match=said):
        MlflowExtension(str(folder))


def test_an_mlmodel_that_points_out_of_its_folder_is_refused(tmp_path: Path) -> None:
    folder = plain(tmp_path / "m", "skops", X, Y)
    path = folder / "MLmodel"
    path.write_text(path.read_text().replace("pickled_model: model.skops", "pickled_model: ../other.skops"))
    with pytest.raises(ArtifactRefused, match="outside of its folder"):
        MlflowExtension(str(folder)).setup()
