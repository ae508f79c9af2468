"""A torch module with safetensors weights: the class by name, its arguments as JSON, the tensors; nothing pickled.

content = save_torch("shop.nets:DigitNet", {"hidden": 64}, net, folder, classes=range(10))
registry.register("read-digit", folder, content=content, card={"inputs": [...], "outputs": [...]})
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from deployments.extension import Result
from deployments.kinds.saved import SavedExtension, check_saving_folder, classified
from lineage.identity import hash_safetensors
from lineage.models import describe_folder
from planner.cards import Kind
from planner.errors import ArtifactRefused, BadCard
from planner.features import Array

if TYPE_CHECKING:
    import torch

_WEIGHTS = "weights.safetensors"


class TorchExtension(SavedExtension):
    """`forward` gets a tensor per input port, by keyword, and returns the tensor of the one output or a dict by port.

    A module saved with `classes` returns logits (n_rows, n_classes) instead: the outputs are then the label and,
    where a port has the shape for it, the probabilities. Runs on the first GPU when `resources.num_gpus` asks for one.
    """

    kind: Kind = "torch"
    format = "torch"

    def __init__(self, folder: str, threads: int = 1) -> None:
        super().__init__(folder)
        self._threads = threads
        if not (isinstance(self.loader.get("module"), str) and isinstance(self.loader.get("arguments"), dict)):
            raise ArtifactRefused(f"{self.folder.name} does not say which module to build.")
        texts = [port.name for port in self.input_ports if port.feature.datatype == "BYTES"]
        if texts:
            raise BadCard(f"input {texts[0]!r} is BYTES, which torch has no tensors of.", hint="Encode it before.")

    def setup(self) -> None:
        """Builds the module and loads its weights, strictly. Raises ArtifactRefused when they do not belong together.

        Sets the number of threads torch uses in this process: many replicas share a machine, and small batches
        gain nothing from more.
        """
        import torch

        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if self.resources.num_gpus > 0 else "cpu")
        module = _build(self.loader["module"], self.loader["arguments"])
        _load_weights(module, self.folder / _WEIGHTS)
        self._module = module.to(self._device).eval().requires_grad_(False)
        classes = self.loader.get("classes")
        self._classes = None if classes is None else np.array(classes)

    def infer(self, *_: Any, **inputs: Any) -> Result:
        import torch

        with torch.inference_mode():
            # A copy: torch knows no read-only tensors, and a module that writes to its input must not reach ours.
            tensors = {name: torch.tensor(array, device=self._device) for name, array in inputs.items()}
            made = self._module(**tensors)
            if self._classes is not None:
                scores = _array(torch.softmax(made.float(), dim=1))
                if scores.shape[1] != len(self._classes):
                    raise ValueError(f"{scores.shape[1]} logits for {len(self._classes)} classes")
                return classified(scores, self._classes, self.output_ports)
            if isinstance(made, Mapping):
                return {name: _array(tensor) for name, tensor in made.items()}
            return _array(made)


def save_torch(
    module_ref: str,
    arguments: Mapping[str, Any],
    module: torch.nn.Module,
    folder: Path,
    *,
    classes: Iterable[int | str] | None = None,
) -> str:
    """Writes `module`, an instance of `module_ref` (`package.module:Class`) made with `arguments`, to `folder`.

    `arguments` are keyword arguments of types that JSON has. Returns the content hash of the weights. Raises
    ArtifactRefused when what was written could not be loaded again.
    """
    from safetensors.torch import save_file

    check_saving_folder(folder)
    try:
        json.dumps(dict(arguments))
    except TypeError as error:
        raise ArtifactRefused(f"the arguments of {module_ref} cannot be written as JSON: {error}.") from None
    if type(module) is not _module_class(module_ref):
        raise ArtifactRefused(f"the module is a {type(module).__name__}, not the {module_ref} it is saved as.")
    # Copies, because safetensors refuses tensors that share memory (tied weights).
    weights = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in module.state_dict().items()}
    save_file(weights, folder / _WEIGHTS)
    _load_weights(_build(module_ref, arguments), folder / _WEIGHTS)
    loader = {
        "format": TorchExtension.format,
        "module": module_ref,
        "arguments": dict(arguments),
        "classes": None if classes is None else [c if isinstance(c, str) else int(c) for c in classes],
    }
    describe_folder(folder, loader)
    return hash_safetensors(folder / _WEIGHTS)


def _module_class(module_ref: str) -> type[torch.nn.Module]:
    import torch

    name, _, attribute = module_ref.partition(":")
    try:
        found = getattr(importlib.import_module(name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ArtifactRefused(
            f"the model is a {module_ref!r}, which is not there: {error}.", hint="Install the package it comes from."
        ) from None
    # The name comes with the artifact: only classes of modules may be called, not any function that can be imported.
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ArtifactRefused(f"{module_ref!r} is not a torch.nn.Module.")
    return found


def _build(module_ref: str, arguments: Mapping[str, Any]) -> torch.nn.Module:
    try:
        return _module_class(module_ref)(**arguments)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArtifactRefused(f"{module_ref} cannot be made with the saved arguments: {error}") from None


def _load_weights(module: torch.nn.Module, path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        module.load_state_dict(load_file(path), strict=True)
    except (OSError, SafetensorError) as error:
        raise ArtifactRefused(f"{path.name} cannot be read: {error}") from None
    except RuntimeError as error:  # names the keys and shapes that do not match
        said = " ".join(str(error).split())[:300]
        raise ArtifactRefused(
            f"the weights do not fit the module: {said}", hint="Has the class changed since?"
        ) from None


def _array(tensor: Any) -> Array:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise TypeError(
            f"forward returned a {type(tensor).__name__}; a tensor, or a dict of tensors by output, is needed"
        )
    tensor = tensor.float() if tensor.dtype is torch.bfloat16 else tensor  # numpy has no bfloat16
    array: Array = tensor.cpu().numpy()
    return array
