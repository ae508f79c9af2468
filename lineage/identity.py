"""The identity of models: digests that say whether two have the same weights, or two folders the same files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.errors import ArtifactRefused

# numpy kind -> how safetensors names it, before the number of bits
_DTYPES = {"b": "BOOL", "i": "I", "u": "U", "f": "F"}


def hash_tensors(tensors: Mapping[str, npt.NDArray[Any]]) -> str:
    """SHA-256 (hex) over names, dtypes, shapes and values; the order and memory layout of the tensors do not matter.

    The same as `hash_safetensors` of a file that holds them. Raises ArtifactRefused for a dtype that is not a
    boolean, integer or float.
    """
    return _digest((name, _dtype(name, array), array.shape, _bytes(array)) for name, array in tensors.items())


def hash_safetensors(path: Path) -> str:
    """SHA-256 (hex) over the tensors in a safetensors file; its metadata and their order in the file do not matter.

    Raises ArtifactRefused when the file is not safetensors.
    """
    import safetensors

    try:
        found: Any = safetensors.deserialize(path.read_bytes())  # type: ignore[no-untyped-call]
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactRefused(f"{path.name} cannot be read as safetensors: {error}") from None
    return _digest((name, tensor["dtype"], tensor["shape"], bytes(tensor["data"])) for name, tensor in found)


def hash_folder(folder: Path) -> str:
    """SHA-256 (hex) over the relative paths and contents of all files below `folder`.

    Raises ArtifactRefused for a link, which could lead out of the folder.
    """
    whole = hashlib.sha256()
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.is_symlink():
            raise ArtifactRefused(f"{path.name} is a link, which a model folder may not hold.")
        if path.is_file():
            whole.update(f"{path.relative_to(folder).as_posix()}\0{hash_file(path)}\n".encode())
    return whole.hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(tensors: Iterable[tuple[str, str, Iterable[int], bytes]]) -> str:
    whole = hashlib.sha256()
    for name, dtype, shape, data in sorted(tensors):
        head = f"{name}\0{dtype}\0{','.join(map(str, shape))}\0{len(data)}\0"
        whole.update(head.encode() + data)
    return whole.hexdigest()


def _dtype(name: str, array: npt.NDArray[Any]) -> str:
    kind = _DTYPES.get(array.dtype.kind)
    if kind is None:
        raise ArtifactRefused(f"tensor {name!r} has dtype {array.dtype}; weights are booleans, integers or floats.")
    return kind if kind == "BOOL" else f"{kind}{array.dtype.itemsize * 8}"


def _bytes(array: npt.NDArray[Any]) -> bytes:
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).tobytes()
