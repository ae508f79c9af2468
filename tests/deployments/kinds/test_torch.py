"""Torch modules come back from safetensors as they were saved, and what does not fit is refused before it serves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.contract import check_contract
from deployments.extension import execute
from deployments.kinds.torch import TorchExtension, save_torch
from deployments.loading import describe, load
from planner.errors import ArtifactRefused, BadCard, ExtensionBroken, ExtensionRaised

HERE = "tests.deployments.kinds.test_torch"


class Net(torch.nn.Module):
    """Logits for images (n, 4, 4), over a dropout that must be off when it serves."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.drop = torch.nn.Dropout(0.5)
        self.head = torch.nn.Linear(16, classes)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        made: torch.Tensor = self.head(self.drop(image.flatten(1)))
        return made


class Two(torch.nn.Module):
    """Two inputs, two outputs, tied weights, and a forward that writes to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = torch.nn.Linear(2, 2)
        self.b = self.a

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> dict[str, torch.Tensor]:
        left += self.a(right)
        return {"sum": left, "low": left.to(torch.bfloat16)}


def not_a_module(command: str) -> None:
    raise AssertionError("must not be called")


IMAGE = {"name": "image", "type": "image", "datatype": "FP32", "shape": [4, 4]}
LABEL = {"name": "label", "type": "label", "datatype": "INT64"}
SCORES = {"name": "scores", "type": "scores", "datatype": "FP32", "shape": [3]}


def saved(folder: Path, card: dict[str, Any], **options: Any) -> Path:
    """What `save_torch` writes, with a card as the registry adds it."""
    torch.manual_seed(0)
    save_torch(f"{HERE}:Net", {"classes": 3}, Net(3), folder, **options)
    return carded(folder, card)


def carded(folder: Path, card: dict[str, Any]) -> Path:
    path = folder / "fenix.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "card": card}))
    return folder


def test_a_classifier_gives_label_confidence_and_probabilities(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {"inputs": [IMAGE], "outputs": [LABEL, SCORES]}, classes=[7, 8, 9])
    made = TorchExtension(str(folder))
    made.setup()
    images = np.random.default_rng(0).random((5, 4, 4)).astype(np.float32)
    rows = execute(made, {"image": images})
    torch.manual_seed(0)
    logits = Net(3).eval()(torch.tensor(images)).detach()
    expected = torch.softmax(logits, dim=1).numpy()
    assert np.allclose(rows["scores"].values, expected)
    assert rows["label"].values.tolist() == (expected.argmax(axis=1) + 7).tolist()
    assert rows["label"].confidence is not None
    assert np.allclose(rows["label"].confidence, expected.max(axis=1))


def test_classes_may_be_texts(tmp_path: Path) -> None:
    label = {**LABEL, "datatype": "BYTES"}
    made = TorchExtension(str(saved(tmp_path / "m", {"inputs": [IMAGE], "outputs": [label]}, classes="abc")))
    made.setup()
    assert set(execute(made, made.samples(9, np.random.default_rng(0)))["label"].values) <= {b"a", b"b", b"c"}


def test_a_plain_module_gives_its_tensor_and_holds_to_the_contract(tmp_path: Path) -> None:
    made = TorchExtension(str(saved(tmp_path / "m", {"inputs": [IMAGE], "outputs": [SCORES]})))
    made.setup()
    report = check_contract(made, np.random.default_rng(0))
    assert report.passed, report.failures


def test_several_ports_tied_weights_and_bfloat16_work_and_the_input_stays(tmp_path: Path) -> None:
    pair = {"datatype": "FP32", "shape": [2], "type": "pair"}
    card = {
        "inputs": [{"name": "left", **pair}, {"name": "right", **pair}],
        "outputs": [{"name": "sum", **pair}, {"name": "low", **pair}],
    }
    save_torch(f"{HERE}:Two", {}, Two(), tmp_path / "m")
    made = TorchExtension(str(carded(tmp_path / "m", card)))
    made.setup()
    report = check_contract(made, np.random.default_rng(0))
    assert report.passed, report.failures


def test_the_card_of_a_saved_folder_loads_again(tmp_path: Path) -> None:
    card = {"inputs": [IMAGE], "outputs": [SCORES], "description": "Scores.", "cost": 2.0, "name": "net"}
    folder = saved(tmp_path / "m", card)
    described = describe("deployments.kinds.torch:TorchExtension", {"folder": str(folder)})
    assert (described.name, described.kind, described.cost) == ("net", "torch", 2.0)
    assert load(described).card() == described


def test_equal_weights_have_equal_content(tmp_path: Path) -> None:
    net = Net()
    first, second = (save_torch(f"{HERE}:Net", {}, net, tmp_path / name) for name in "ab")
    assert first == second
    with torch.no_grad():
        net.head.bias[0] += 1
    assert save_torch(f"{HERE}:Net", {}, net, tmp_path / "c") != first


def test_weights_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "m", {"inputs": [IMAGE], "outputs": [SCORES]})
    weights = load_file(folder / "weights.safetensors")
    for wrong in (
        {**weights, "head.bias": torch.zeros(4)},
        {**weights, "more": torch.zeros(1)},
        {"head.bias": weights["head.bias"]},
    ):
        save_file(wrong, folder / "weights.safetensors")
        with pytest.raises(ArtifactRefused, match="the weights do not fit the module"):
            TorchExtension(str(folder)).setup()
    (folder / "weights.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(ArtifactRefused, match="cannot be read"):
        TorchExtension(str(folder)).setup()


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("os:system", {"command": "false"}, "'os:system' is not a torch.nn.Module"),
        (f"{HERE}:not_a_module", {"command": "false"}, "is not a torch.nn.Module"),
        ("no.such:Net", {}, "not there"),
        (f"{HERE}:Nothing", {}, "not there"),
        ("nonsense", {}, "not there"),
        (f"{HERE}:Net", {"clases": 3}, "cannot be made with the saved arguments"),
        (f"{HERE}:Net", {"classes": -1}, "cannot be made with the saved arguments"),
    ],
)
def test_an_artifact_names_modules_only(tmp_path: Path, module: str, arguments: Any, said: str) -> None:
    folder = saved(tmp_path / "m", {"inputs": [IMAGE], "outputs": [SCORES]})
    path = folder / "fenix.json"
    descriptor = json.loads(path.read_text())
    descriptor["loader"].update(module=module, arguments=arguments)
    path.write_text(json.dumps(descriptor))
    with pytest.raises(ArtifactRefused) as caught:
        TorchExtension(str(folder)).setup()
    assert said in caught.value.message


def test_saving_finds_what_could_not_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="weights do not fit"):
        save_torch(f"{HERE}:Net", {"classes": 2}, Net(3), tmp_path / "a")
    with pytest.raises(ArtifactRefused, match="is a Two, not the"):
        save_torch(f"{HERE}:Net", {}, Two(), tmp_path / "b")
    with pytest.raises(ArtifactRefused, match="JSON"):
        save_torch(f"{HERE}:Net", {"classes": torch.zeros(1)}, Net(3), tmp_path / "c")
    saved(tmp_path / "d", {})
    with pytest.raises(ArtifactRefused, match="not empty"):
        saved(tmp_path / "d", {})


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"outputs": [SCORES]}, "has no inputs"),
        ({"inputs": [IMAGE], "outputs": [{**SCORES, "tpye": 1}]}, "no field 'tpye'"),
        ({"inputs": [{**IMAGE, "datatype": "BYTES"}], "outputs": [SCORES]}, "BYTES, which torch has no tensors of"),
    ],
)
def test_a_card_that_does_not_do_is_refused(tmp_path: Path, card: Any, said: str) -> None:
    with pytest.raises(BadCard, match=said):
        TorchExtension(str(saved(tmp_path / "m", card)))


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactRefused, match="does not hold a torch model"):
        TorchExtension(str(tmp_path))


def test_outputs_that_do_not_fit_the_card_are_the_models_fault(tmp_path: Path) -> None:
    wide = TorchExtension(str(saved(tmp_path / "a", {"inputs": [IMAGE], "outputs": [{**SCORES, "shape": [5]}]})))
    few = TorchExtension(str(saved(tmp_path / "b", {"inputs": [IMAGE], "outputs": [LABEL]}, classes=[1, 2])))
    for made, kind in ((wide, ExtensionBroken), (few, ExtensionRaised)):
        made.setup()
        with pytest.raises(kind):
            execute(made, made.samples(2, np.random.default_rng(0)))
