"""Parameters, kept once per distinct tensor: versions of a family share what they have in common.

A tensor is a safetensors file named by the SHA-256 of its dtype, shape and values; a version is a manifest that says
which tensor stands under which name. What is read is checked against its name.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.errors import ArtifactRefused, ModelNotFound
from lineage.graph.blobs import Blobs, Buffer

Array = npt.NDArray[Any]

GRACE_S = 3600.0  # what was written since may belong to a version that is being stored
_TENSORS, _MANIFESTS = "tensors/", "manifests/"
_ONE = "tensor"  # the name inside the file of one tensor
_METADATA = "__metadata__"

# safetensors dtype -> numpy's, little endian. BF16 has none and is read as float32, which loses nothing.
_NUMPY = {
    "BOOL": "|b1",
    "I8": "|i1",
    "U8": "|u1",
    **{f"{letter.upper()}{bits}": f"<{letter}{bits // 8}" for letter in "iuf" for bits in (16, 32, 64)},
}
_BYTES = {**{dtype: np.dtype(code).itemsize for dtype, code in _NUMPY.items()}, "BF16": 2}
_NAMES = {np.dtype(code): dtype for dtype, code in _NUMPY.items()}


@dataclass(frozen=True, slots=True)
class TensorRef:
    """One tensor: the SHA-256 (hex) of dtype, shape and values; the dtype as safetensors names it (`F32`)."""

    sha256: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Bytes of its values."""
        return _BYTES[self.dtype] * math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Manifest:
    """The tensors of a version by name, and its content hash: `lineage.identity.hash_tensors` of them."""

    content: str
    tensors: Mapping[str, TensorRef]

    @property
    def n_bytes(self) -> int:
        """Bytes of all values, as if nothing was shared."""
        return sum(ref.n_bytes for ref in self.tensors.values())


@dataclass(frozen=True, slots=True)
class StoreFigures:
    """How much is kept: `bytes_named` are the weights of all versions, as if nothing was shared, `bytes_distinct` those
    of the distinct tensors, and `bytes_kept` what the files of tensors and manifests take."""

    n_versions: int
    n_named: int
    n_tensors: int
    bytes_named: int
    bytes_distinct: int
    bytes_kept: int

    @property
    def saved_share(self) -> float:
        """The part of `bytes_named` that is not needed; below 0 where file headers take more than is shared."""
        return 1.0 - self.bytes_kept / self.bytes_named if self.bytes_named else 0.0


@dataclass(frozen=True, slots=True)
class Collected:
    """What was removed because no version names it."""

    n_tensors: int
    n_bytes: int


@dataclass(frozen=True, slots=True)
class _Raw:
    """A tensor as bytes, little endian and in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


def content_hash(tensors: Mapping[str, Array]) -> str:
    """The same as `lineage.identity.hash_tensors`, without a second copy of the weights. Raises ArtifactRefused."""
    return _content({name: _raw(name, array) for name, array in tensors.items()})


class TensorStore:
    """Versions by their content hash. Safe to use from several threads and processes.

    Methods raise StoreUnavailable when the place behind `blobs` fails, ModelNotFound for a content hash that is not
    there, and ArtifactRefused for a tensor that is missing or damaged, naming it.
    """

    def __init__(self, blobs: Blobs) -> None:
        self._blobs = blobs

    def put(self, tensors: Mapping[str, Array]) -> Manifest:
        """Keeps a version. When this returns it is durable; when it raises, sending it again is safe.

        Raises ArtifactRefused for a dtype that is not a boolean, integer or float.
        """
        return self._put({name: _raw(name, array) for name, array in tensors.items()})

    def put_file(self, path: Path) -> Manifest:
        """Keeps the tensors of a safetensors file, among them bfloat16. Raises ArtifactRefused when it is damaged."""
        return self._put(_raw_of_file(path))

    def manifest(self, content: str) -> Manifest:
        """The manifest of a version. Raises ArtifactRefused when it is damaged."""
        found = self._blobs.read(_manifest_key(content))
        if found is None:
            raise ModelNotFound(
                f"no weights are kept under the content hash {content[:12]!r}.",
                hint="Store the version's weights first.",
            )
        return _parse_manifest(content, found)

    def has(self, content: str) -> bool:
        """Whether a version's manifest is kept."""
        return self._blobs.written_s(_manifest_key(content)) is not None

    def contents(self) -> Iterator[str]:
        """The content hashes of all versions, in no order."""
        for key in self._blobs.keys(_MANIFESTS):
            yield key.removeprefix(_MANIFESTS).removesuffix(".json").rpartition("/")[2]

    def load(self, content: str, names: Iterable[str] | None = None) -> dict[str, Array]:
        """The tensors of a version, or those called `names`, checked. Arrays are read-only; from a folder they are
        mapped, so that they take no memory of their own. BF16 comes as float32."""
        manifest = self.manifest(content)
        wanted = manifest.tensors if names is None else {name: self._named(manifest, name) for name in names}
        return {name: _array(self._read(name, ref), ref) for name, ref in wanted.items()}

    def write_file(self, content: str, path: Path) -> None:
        """Writes a version as one safetensors file, as it was before; `path` appears whole or not at all."""
        manifest = self.manifest(content)
        order = sorted(manifest.tensors, key=lambda name: (-_BYTES[manifest.tensors[name].dtype], name))
        refs = {name: manifest.tensors[name] for name in order}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            with temporary.open("wb") as file:
                file.write(_header(refs))
                for name, ref in refs.items():
                    file.write(self._read(name, ref))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def damaged(self, content: str) -> tuple[str, ...]:
        """What is wrong with a version, a sentence each, naming the tensor; empty when it can be loaded."""
        said = []
        try:
            manifest = self.manifest(content)
        except ArtifactRefused as error:
            return (error.message,)
        for name, ref in manifest.tensors.items():
            try:
                self._read(name, ref)
            except ArtifactRefused as error:
                said.append(error.message)
        return tuple(said)

    def forget(self, content: str) -> None:
        """Drops a version's manifest; its tensors go with the next `collect`, unless others name them."""
        self._blobs.delete(_manifest_key(content))

    def collect(self, now_s: float, grace_s: float = GRACE_S) -> Collected:
        """Removes tensors that no manifest names and that were last written before `now_s - grace_s`.

        A version that is being stored meanwhile is safe as long as that takes less than the grace. Raises
        ArtifactRefused, with nothing removed, when a manifest cannot be read: it may name anything.
        """
        before_s = now_s - grace_s
        found = list(self._blobs.keys(_TENSORS))  # first: a manifest written after this names what is young
        named = {_tensor_key(ref) for ref in self._refs()}
        n_tensors = n_bytes = 0
        for key in found:
            if key in named:
                continue
            written_s = self._blobs.written_s(key)
            if written_s is not None and written_s < before_s:
                n_bytes += self._blobs.size(key)
                n_tensors += 1
                self._blobs.delete(key)
        self._blobs.tidy(before_s)
        return Collected(n_tensors, n_bytes)

    def figures(self) -> StoreFigures:
        """How much is kept, and how much of it is shared."""
        refs = list(self._refs())
        manifests, tensors = list(self._blobs.keys(_MANIFESTS)), list(self._blobs.keys(_TENSORS))
        kept = sum(self._blobs.size(key) for key in (*manifests, *tensors))
        named, distinct = (sum(ref.n_bytes for ref in some) for some in (refs, set(refs)))
        return StoreFigures(len(manifests), len(refs), len(tensors), named, distinct, kept)

    def _refs(self) -> Iterator[TensorRef]:
        for content in self.contents():
            yield from self.manifest(content).tensors.values()

    def _put(self, raws: Mapping[str, _Raw]) -> Manifest:
        if _METADATA in raws:
            raise ArtifactRefused(f"a tensor cannot be called {_METADATA!r}: that is where safetensors keeps notes.")
        refs = {name: TensorRef(_sha256(raw), raw.dtype, raw.shape) for name, raw in raws.items()}
        manifest = Manifest(_content(raws), refs)
        self._blobs.write({_tensor_key(refs[name]): (_header({_ONE: refs[name]}), raws[name].data) for name in raws})
        self._blobs.write({_manifest_key(manifest.content): (_manifest_bytes(manifest),)})
        return manifest

    def _named(self, manifest: Manifest, name: str) -> TensorRef:
        ref = manifest.tensors.get(name)
        if ref is None:
            raise ArtifactRefused(
                f"the version {manifest.content[:12]} has no tensor {name!r}.",
                hint=f"It has {', '.join(sorted(manifest.tensors)[:8])}.",
            )
        return ref

    def _read(self, name: str, ref: TensorRef) -> memoryview:
        found = self._blobs.read(_tensor_key(ref))
        if found is None:
            raise ArtifactRefused(f"tensor {name!r} ({ref.sha256[:12]}) is missing.", hint=_MEND)
        head = _header({_ONE: ref})
        data = found[len(head) :]
        if (
            data.nbytes != ref.n_bytes
            or found[: len(head)] != head
            or _sha256(_Raw(ref.dtype, ref.shape, data)) != (ref.sha256)
        ):
            raise ArtifactRefused(f"tensor {name!r} ({ref.sha256[:12]}) is damaged.", hint=_MEND)
        return data


_MEND = "Store a version that has it again: that replaces the file."


def _raw(name: str, array: Array) -> _Raw:
    array = np.asarray(array)
    dtype = _NAMES.get(array.dtype.newbyteorder("<"))
    if dtype is None:
        raise ArtifactRefused(f"tensor {name!r} has dtype {array.dtype}; weights are booleans, integers or floats.")
    shape = array.shape  # before the next line, which makes a scalar a row of one
    flat = np.ascontiguousarray(array, _NUMPY[dtype]).reshape(-1)
    return _Raw(dtype, shape, flat.view(np.uint8).data)


def _raw_of_file(path: Path) -> dict[str, _Raw]:
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy"):  # checks the header against the size
            pass
        with path.open("rb") as file:
            whole = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, safetensors.SafetensorError) as error:
        raise ArtifactRefused(f"{path.name} cannot be read as safetensors: {error}") from None
    begin = 8 + int.from_bytes(whole[:8], "little")
    header: dict[str, Any] = json.loads(bytes(whole[8:begin]))
    raws = {}
    for name, said in header.items():
        if name == _METADATA:
            continue
        if said["dtype"] not in _BYTES:
            raise ArtifactRefused(f"tensor {name!r} has dtype {said['dtype']}, which is not kept.")
        first, last = said["data_offsets"]
        raws[name] = _Raw(said["dtype"], tuple(said["shape"]), whole[begin + first : begin + last])
    return raws


def _array(data: memoryview, ref: TensorRef) -> Array:
    if ref.dtype == "BF16":
        halves = np.frombuffer(data, "<u2").astype(np.uint32)
        array: Array = (halves << 16).view(np.float32)
        array.flags.writeable = False
    else:
        array = np.frombuffer(data, _NUMPY[ref.dtype])
    return array.reshape(ref.shape)


def _sha256(raw: _Raw) -> str:
    digest = hashlib.sha256(f"{raw.dtype}\0{','.join(map(str, raw.shape))}\0".encode())
    digest.update(raw.data)
    return digest.hexdigest()


def _content(raws: Mapping[str, _Raw]) -> str:
    whole = hashlib.sha256()
    for name in sorted(raws):
        raw = raws[name]
        whole.update(f"{name}\0{raw.dtype}\0{','.join(map(str, raw.shape))}\0{raw.data.nbytes}\0".encode())
        whole.update(raw.data)
    return whole.hexdigest()


def _header(refs: Mapping[str, TensorRef]) -> bytes:
    """What a safetensors file of these tensors begins with; the values follow in this order."""
    said, begin = {}, 0
    for name, ref in refs.items():
        said[name] = {"dtype": ref.dtype, "shape": list(ref.shape), "data_offsets": [begin, begin + ref.n_bytes]}
        begin += ref.n_bytes
    text = json.dumps(said, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the values are aligned
    return len(text).to_bytes(8, "little") + text


def _tensor_key(ref: TensorRef) -> str:
    return f"{_TENSORS}{ref.sha256[:2]}/{ref.sha256}.safetensors"


def _manifest_key(content: str) -> str:
    if len(content) != 64 or set(content) - set("0123456789abcdef"):
        raise ModelNotFound(f"{content!r} is not a content hash.", hint="It has 64 hexadecimal digits.")
    return f"{_MANIFESTS}{content[:2]}/{content}.json"


def _manifest_bytes(manifest: Manifest) -> bytes:
    tensors = {name: [ref.sha256, ref.dtype, list(ref.shape)] for name, ref in sorted(manifest.tensors.items())}
    return json.dumps({"tensors": tensors, "sha256": _sha256_of(tensors)}, separators=(",", ":")).encode()


def _parse_manifest(content: str, found: Buffer) -> Manifest:
    try:
        said = json.loads(bytes(found))
        if _sha256_of(said["tensors"]) != said["sha256"]:
            raise ValueError("its own digest does not fit")
        tensors = {
            name: TensorRef(sha256, dtype, tuple(shape)) for name, (sha256, dtype, shape) in said["tensors"].items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ArtifactRefused(
            f"the manifest of {content[:12]} is damaged: {error}", hint="Store the version's weights again."
        ) from None
    return Manifest(content, tensors)


def _sha256_of(tensors: Mapping[str, Sequence[Any]]) -> str:
    return hashlib.sha256(json.dumps(tensors, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
