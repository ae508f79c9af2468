"""Scikit-learn pipelines come back from skops as they were fitted; what could run code does not come back at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import skops.io
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_iris
from sklearn.decomposition import PCA
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestRegressor
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, OneHotEncoder, StandardScaler
from sklearn.svm import SVC

from deployments.contract import check_contract
from deployments.extension import execute
from deployments.kinds.sklearn import SklearnExtension, save_sklearn
from planner.errors import ArtifactRefused

X, Y = load_iris(return_X_y=True)
NAMES = load_iris().target_names
ROW = {"name": "flower", "type": "flower", "datatype": "FP64", "shape": [4]}
LABEL = {"name": "label", "type": "label", "datatype": "INT64"}
NUMBER = {"name": "value", "type": "value", "datatype": "FP64"}


def made_of(estimator: Any, folder: Path, inputs: list[Any], outputs: list[Any], **options: Any) -> SklearnExtension:
    save_sklearn(estimator, folder, **options)
    path = folder / "fenix.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card": {"inputs": inputs, "outputs": outputs}}))
    made = SklearnExtension(str(folder))
    made.setup()
    return made


def test_a_classifier_gives_label_and_confidence_and_holds_to_the_contract(tmp_path: Path) -> None:
    estimator = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, Y)
    made = made_of(estimator, tmp_path / "m", [ROW], [LABEL])
    rows = execute(made, {"flower": X})["label"]
    assert rows.values.tolist() == estimator.predict(X).tolist()
    assert rows.confidence is not None
    assert np.allclose(rows.confidence, estimator.predict_proba(X).max(axis=1))
    report = check_contract(made, np.random.default_rng(0))
    assert report.passed, report.failures


def test_texts_as_classes_and_probabilities_as_a_second_output(tmp_path: Path) -> None:
    estimator = HistGradientBoostingClassifier(max_iter=5).fit(X, NAMES[Y])
    label = {**LABEL, "datatype": "BYTES"}
    scores = {"name": "scores", "type": "scores", "datatype": "FP32", "shape": [3]}
    rows = execute(made_of(estimator, tmp_path / "m", [ROW], [label, scores]), {"flower": X[:5]})
    assert rows["label"].values.tolist() == [b"setosa"] * 5
    assert rows["scores"].values.shape == (5, 3)


def test_a_regressor_gives_its_value_without_confidence(tmp_path: Path) -> None:
    estimator = RandomForestRegressor(5, random_state=0).fit(X, Y)
    for i, shape in enumerate(([], [1])):
        made = made_of(estimator, tmp_path / str(i), [ROW], [{**NUMBER, "shape": shape}])
        rows = execute(made, {"flower": X[:7]})["value"]
        assert rows.confidence is None
        assert rows.values.reshape(-1).tolist() == estimator.predict(X[:7]).tolist()


def test_a_transformer_gives_what_it_transforms_to(tmp_path: Path) -> None:
    estimator = PCA(2).fit(X)
    point = {"name": "point", "type": "point", "datatype": "FP64", "shape": [2]}
    rows = execute(made_of(estimator, tmp_path / "m", [ROW], [point]), {"flower": X})
    assert np.allclose(rows["point"].values, estimator.transform(X))


def test_several_ports_make_up_the_matrix_in_the_order_that_was_saved(tmp_path: Path) -> None:
    estimator = LogisticRegression(max_iter=500).fit(X[:, [3, 0, 1, 2]], Y)
    ports = [{"name": "rest", "type": "rest", "datatype": "FP64", "shape": [3]}, {**NUMBER, "name": "last"}]
    made = made_of(estimator, tmp_path / "m", ports, [LABEL], features=["last", "rest"])
    rows = execute(made, {"rest": X[:, :3].copy(), "last": X[:, 3].copy()})
    assert rows["label"].values.tolist() == estimator.predict(X[:, [3, 0, 1, 2]]).tolist()
    with pytest.raises(ArtifactRefused, match="no input port 'lst'"):
        SklearnExtension(str(tmp_path / "m"), features=["lst"])


def test_a_pipeline_fitted_on_a_frame_gets_a_frame(tmp_path: Path) -> None:
    frame = pd.DataFrame({"size": [1.0, 2.0, 3.0, 4.0], "colour": ["red", "blue", "red", "blue"]})
    steps = make_column_transformer((OneHotEncoder(), ["colour"]), (StandardScaler(), ["size"]))
    estimator = make_pipeline(steps, LogisticRegression()).fit(frame, [0, 1, 0, 1])
    ports = [{"name": "colour", "type": "colour", "datatype": "BYTES"}, {**NUMBER, "name": "size"}]
    made = made_of(estimator, tmp_path / "m", ports, [LABEL])
    rows = execute(made, {"size": np.array([1.0, 4.0]), "colour": np.array([b"red", b"blue"], dtype=object)})
    assert rows["label"].values.tolist() == [0, 1]


def test_one_vector_port_serves_an_estimator_fitted_on_a_frame(tmp_path: Path) -> None:
    frame, y = load_iris(return_X_y=True, as_frame=True)
    estimator = LogisticRegression(max_iter=500).fit(frame, y)
    rows = execute(made_of(estimator, tmp_path / "m", [ROW], [LABEL]), {"flower": X[:3]})
    assert rows["label"].values.tolist() == [0, 0, 0]


def test_a_text_port_reaches_a_vectorizer_as_texts(tmp_path: Path) -> None:
    estimator = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(
        ["good", "bad", "good day", "bad day"], [1, 0, 1, 0]
    )
    made = made_of(estimator, tmp_path / "m", [{"name": "text", "type": "text", "datatype": "BYTES"}], [LABEL])
    rows = execute(made, {"text": np.array([b"good", b"bad", b"good \xff"], dtype=object)})
    assert rows["label"].values.tolist() == [1, 0, 1]


@pytest.mark.parametrize("function", [print, eval, np.save, np.fromfile])
def test_functions_of_any_package_are_refused_when_saving(tmp_path: Path, function: Any) -> None:
    with pytest.raises(ArtifactRefused, match="may run code"):
        save_sklearn(make_pipeline(FunctionTransformer(function), PCA(1)), tmp_path / "m")


class Mine(LogisticRegression):  # type: ignore[misc]
    pass


def test_classes_of_other_packages_are_refused_when_loading(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    made_of(PCA(2).fit(X), folder, [ROW], [NUMBER])
    skops.io.dump(Mine(max_iter=500).fit(X, Y), folder / "model.skops")
    with pytest.raises(ArtifactRefused, match=r"test_sklearn\.Mine, which may run code"):
        SklearnExtension(str(folder)).setup()
    (folder / "model.skops").write_bytes(b"no archive")
    with pytest.raises(ArtifactRefused, match="cannot be loaded"):
        SklearnExtension(str(folder)).setup()


@pytest.mark.parametrize(
    "estimator", [LogisticRegression(max_iter=500), SVC(), HistGradientBoostingClassifier(max_iter=3)]
)
def test_content_is_that_of_the_fitted_state(tmp_path: Path, estimator: Any) -> None:
    estimator.fit(X, Y)
    first, again = (save_sklearn(estimator, tmp_path / name) for name in "ab")
    estimator.fit(X[:-9], Y[:-9])
    assert first == again != save_sklearn(estimator, tmp_path / "c")
