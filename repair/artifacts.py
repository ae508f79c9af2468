"""Where a repair keeps the parameters that it makes on its way: a contract, one in memory, one in a folder."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from pathlib import Path

from repair.errors import RepairRefused, WeightsBroken
from repair.vectors import Array, Parameters

_KEY = re.compile(r"[\w.-]{1,200}")


class Artifacts(ABC):
    """Parameters by key. What is put again replaces what was there."""

    @abstractmethod
    def put(self, key: str, parameters: Parameters) -> None:
        """When this returns they are kept whole; when it raises, what was there before is."""

    @abstractmethod
    def get(self, key: str) -> dict[str, Array]:
        """A copy. Raises RepairRefused where nothing was put, WeightsBroken where what is there cannot be read."""


class MemoryArtifacts(Artifacts):
    """For tests, and repairs that need not survive their process."""

    def __init__(self) -> None:
        self._kept: dict[str, dict[str, Array]] = {}

    def put(self, key: str, parameters: Parameters) -> None:
        self._kept[_checked(key)] = {name: tensor.copy() for name, tensor in parameters.items()}

    def get(self, key: str) -> dict[str, Array]:
        if key not in self._kept:
            raise _unknown(key)
        return {name: tensor.copy() for name, tensor in self._kept[key].items()}


class FolderArtifacts(Artifacts):
    """A file of safetensors per key; written beside and moved, so a kill leaves no half of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, key: str, parameters: Parameters) -> None:
        from safetensors.numpy import save

        path = self._folder / f"{_checked(key)}.safetensors"
        beside = path.with_suffix(f".{os.getpid()}.part")
        with beside.open("wb") as file:
            file.write(save({name: tensor.copy(order="C") for name, tensor in parameters.items()}))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)

    def get(self, key: str) -> dict[str, Array]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        path = self._folder / f"{_checked(key)}.safetensors"
        try:
            return dict(load(path.read_bytes()))
        except FileNotFoundError:
            raise _unknown(key) from None
        except SafetensorError as error:
            raise WeightsBroken(f"{path.name} cannot be read: {error}.", hint="Begin another repair.") from None


def _checked(key: str) -> str:
    if not _KEY.fullmatch(key) or key.startswith("."):
        raise RepairRefused(f"{key[:40]!r} is not a key.")
    return key


def _unknown(key: str) -> RepairRefused:
    return RepairRefused(f"the repair has kept no {key!r}.", hint="Begin another repair.")
