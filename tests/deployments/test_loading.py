"""An extension is found again from its card in a process that knows nothing but the card."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from deployments.extension import execute
from deployments.loading import describe, load
from planner.card_codec import card_to_dict, parse_card
from planner.errors import ArtifactRefused, BadCard, ExtensionRaised, StoreUnavailable
from planner.features import Feature, Port

HERE = "tests.deployments.extensions"
FILE = '''
import numpy as np
from deployments.extension import extension
from planner.features import Feature

@extension(inputs={"x": Feature("number")}, outputs={"y": Feature("number/twice")})
def twice(x, times=2.0):
    """Twice as much."""
    return x * times
'''


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


def test_a_class_is_loaded_by_name_with_its_options() -> None:
    card = describe(f"{HERE}:ReadBlob", {"sharpness": 2.0})
    made = load(parse_card(card_to_dict(card), "store"))
    assert vars(made)["sharpness"] == 2.0
    assert made.card() == card


def test_a_function_is_loaded_by_name_with_its_options() -> None:
    made = load(describe(f"{HERE}:scale", {"by": 2.0}))
    assert execute(made, {"image": np.ones((1, 4, 4), np.float32)})["image"].values.max() == 0.5


def test_what_the_operator_changed_in_the_card_counts() -> None:
    card = describe(f"{HERE}:scale").but(name="other", version="9", deterministic=False)
    made = load(card)
    assert (made.name, made.version, made.deterministic) == ("other", "9", False)


def test_a_single_file_is_loaded_by_its_digest(file: Path) -> None:
    card = describe(f"file:{file}:twice", {"times": 3.0})
    assert card.source == f"file:{file}#{hashlib.sha256(FILE.encode()).hexdigest()}:twice"
    assert card.description == "Twice as much."
    assert execute(load(card), {"x": np.ones(2, np.float32)})["y"].values.tolist() == [3.0, 3.0]


def test_a_file_that_changed_is_refused(file: Path) -> None:
    card = describe(f"file:{file}:twice")
    file.write_text(FILE.replace("times=2.0", "times=4.0"))
    with pytest.raises(ArtifactRefused, match="not the file that was deployed"):
        load(card)
    assert execute(load(describe(f"file:{file}:twice")), {"x": np.ones(1, np.float32)})["y"].values.tolist() == [4.0]


def test_ports_that_changed_since_the_deployment_are_refused() -> None:
    card = describe(f"{HERE}:scale").but(inputs=(Port("image", Feature("image/raw", "FP32", (8, 8))),))
    with pytest.raises(ArtifactRefused, match=r"image/raw:FP32\[8, 8\]\) in the catalogue, but .*\[4, 4\]"):
        load(card)


@pytest.mark.parametrize(
    ("source", "said", "hint"),
    [
        ("", "none that can be loaded", "module:Class"),
        ("tests.deployments.extensions", "none that can be loaded", "module:Class"),
        ("nowhere.at_all:Thing", "no module 'nowhere'", ""),
        (f"{HERE}:Scale", "there is no 'Scale'", "Nearest: scale"),
        (f"{HERE}:np", "a module, not an extension", ""),
        (f"{HERE}:Scored", "a type, not an extension", ""),
        (
            "tests.deployments.test_loading:test_a_function_is_loaded_by_name_with_its_options",
            "plain func",
            "@extension",
        ),
        ("tests.x:make.<locals>.Local", "inside a function", "top of a module"),
        ("file:/nowhere.py:Thing", "no file '/nowhere.py'", ""),
    ],
)
def test_a_source_that_is_not_there_is_explained(source: str, said: str, hint: str) -> None:
    with pytest.raises(BadCard) as caught:
        describe(source)
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("source", ["models:/m@champion", "models:/m/3"])
def test_a_model_version_without_a_registry_to_ask_is_explained(source: str) -> None:
    with pytest.raises(StoreUnavailable, match="no model registry is set"):
        describe(source)


@pytest.mark.parametrize(("attribute", "option"), [("ReadBlob", "sharpnes"), ("Vote", "weight"), ("scale", "bye")])
def test_options_that_do_not_fit_are_explained(attribute: str, option: str) -> None:
    with pytest.raises(BadCard, match=option):
        describe(f"{HERE}:{attribute}", {option: 1})


@pytest.mark.parametrize(
    ("text", "said"),
    [("1 / 0", "running it raised ZeroDivisionError"), ("def", "running it raised SyntaxError")],
)
def test_code_that_raises_is_the_authors_fault(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.py"
    path.write_text(text)
    with pytest.raises(ExtensionRaised, match=said):
        describe(f"file:{path}:thing")


def test_loading_a_function_imports_neither_torch_nor_sklearn_nor_mlflow() -> None:
    code = (
        f"import sys; from deployments.loading import describe, load; load(describe({HERE + ':scale'!r}));"
        "assert not {'torch', 'sklearn', 'mlflow', 'ray', 'pandas'} & set(sys.modules), sorted(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
