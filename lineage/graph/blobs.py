"""Where bytes are kept under a name: the narrow seam between the tensor store and a folder (later: an object store).

A name is written once, whole or not at all, and its bytes never change. Keys are relative POSIX paths such as
`tensors/ab/abcd....safetensors`.
"""

from __future__ import annotations

import mmap
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np

from lineage.errors import StoreUnavailable

Buffer = bytes | memoryview
Clock = Callable[[], float]  # seconds since 1970

_COMPARED_BYTES = 1 << 20  # at a time
_TEMPORARY = ".writing-"
_numbers = count()


class Blobs(ABC):
    """Named bytes. Safe to use from several threads and processes. Methods raise StoreUnavailable when the place
    behind it fails."""

    @abstractmethod
    def write(self, blobs: Mapping[str, Sequence[Buffer]]) -> None:
        """Keeps the parts of each blob, one after the other, under its key.

        When this returns, all are durable; when it raises, some may be, each whole. A key that holds these bytes
        already only counts as written now; one that holds others (it is damaged) is replaced.
        """

    @abstractmethod
    def read(self, key: str) -> memoryview | None:
        """The bytes, read-only, as a view that costs no memory where the place allows that; None when there are none.

        They stay readable when the key is deleted meanwhile.
        """

    @abstractmethod
    def touch(self, key: str) -> bool:
        """Counts the key as written now; whether it exists."""

    @abstractmethod
    def keys(self, prefix: str = "") -> Iterator[str]:
        """All keys that begin with `prefix`, in no order."""

    @abstractmethod
    def size(self, key: str) -> int:
        """Bytes kept under the key; 0 when there are none."""

    @abstractmethod
    def written_s(self, key: str) -> float | None:
        """When the key was last written or touched; None when it does not exist."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Takes the key away; it may be gone already."""

    @abstractmethod
    def tidy(self, before_s: float) -> None:
        """Removes what writers that died before `before_s` left half done."""


class MemoryBlobs(Blobs):
    """Blobs in a dictionary, for tests and for what need not last."""

    def __init__(self, clock: Clock = time.time) -> None:
        self._clock = clock
        self._kept: dict[str, tuple[bytes, float]] = {}

    def write(self, blobs: Mapping[str, Sequence[Buffer]]) -> None:
        for key, parts in blobs.items():
            self._kept[key] = b"".join(parts), self._clock()

    def read(self, key: str) -> memoryview | None:
        found = self._kept.get(key)
        return None if found is None else memoryview(found[0])

    def touch(self, key: str) -> bool:
        found = self._kept.get(key)
        if found is not None:
            self._kept[key] = found[0], self._clock()
        return found is not None

    def keys(self, prefix: str = "") -> Iterator[str]:
        return iter([key for key in self._kept if key.startswith(prefix)])

    def size(self, key: str) -> int:
        return len(self._kept[key][0]) if key in self._kept else 0

    def written_s(self, key: str) -> float | None:
        found = self._kept.get(key)
        return None if found is None else found[1]

    def delete(self, key: str) -> None:
        self._kept.pop(key, None)

    def tidy(self, before_s: float) -> None:
        pass


class FolderBlobs(Blobs):
    """Blobs as files below a folder, which is made when it is missing. Files are synchronised to the disk."""

    def __init__(self, folder: Path, clock: Clock = time.time) -> None:
        self._folder = folder
        self._clock = clock

    def write(self, blobs: Mapping[str, Sequence[Buffer]]) -> None:
        folders: set[Path] = set()
        try:
            for key, parts in blobs.items():
                path = self._path(key)
                kept = self.read(key)
                if kept is None or not _same(kept, parts) or not self.touch(key):
                    folders |= _make(path.parent)
                    self._write_whole(path, parts)
                    folders.add(path.parent)
            for folder in folders:  # a rename lasts once its folder does
                _sync(folder)
        except OSError as error:
            raise self._unavailable(error) from error

    def read(self, key: str) -> memoryview | None:
        try:
            with self._path(key).open("rb") as file:
                if os.fstat(file.fileno()).st_size == 0:  # which cannot be mapped
                    return memoryview(b"")
                return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._unavailable(error) from error

    def touch(self, key: str) -> bool:
        now_s = self._clock()
        try:
            os.utime(self._path(key), (now_s, now_s))
        except FileNotFoundError:
            return False
        except OSError as error:
            raise self._unavailable(error) from error
        return True

    def keys(self, prefix: str = "") -> Iterator[str]:
        for path in self._files():
            key = path.relative_to(self._folder).as_posix()
            if key.startswith(prefix) and not path.name.startswith(_TEMPORARY):
                yield key

    def size(self, key: str) -> int:
        try:
            return self._path(key).stat().st_size
        except FileNotFoundError:
            return 0

    def written_s(self, key: str) -> float | None:
        try:
            return self._path(key).stat().st_mtime
        except FileNotFoundError:
            return None

    def delete(self, key: str) -> None:
        try:
            self._path(key).unlink(missing_ok=True)
        except OSError as error:
            raise self._unavailable(error) from error

    def tidy(self, before_s: float) -> None:
        for path in self._files():
            if path.name.startswith(_TEMPORARY):
                with suppress(FileNotFoundError):  # its writer is done, or somebody else tidies as well
                    if path.stat().st_mtime < before_s:
                        path.unlink()

    def _files(self) -> Iterator[Path]:
        return (path for path in self._folder.rglob("*") if path.is_file())

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") for part in parts):
            raise ValueError(f"{key!r} is not a key")
        return self._folder.joinpath(*parts)

    def _write_whole(self, path: Path, parts: Sequence[Buffer]) -> None:
        temporary = path.with_name(f"{_TEMPORARY}{os.getpid()}-{next(_numbers)}")
        try:
            with temporary.open("xb") as file:
                for part in parts:
                    file.write(part)
                file.flush()
                os.fsync(file.fileno())
            now_s = self._clock()
            os.utime(temporary, (now_s, now_s))
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise

    def _unavailable(self, error: OSError) -> StoreUnavailable:
        return StoreUnavailable(
            f"the folder {self._folder} refused: {error.strerror or error}.",
            hint="Is there room, and may it be written?",
        )


def _same(kept: memoryview, parts: Sequence[Buffer]) -> bool:
    if kept.nbytes != sum(memoryview(part).nbytes for part in parts):
        return False
    begin = 0
    for part in parts:
        mine = np.frombuffer(part, np.uint8)
        for at in range(0, len(mine), _COMPARED_BYTES):
            piece = mine[at : at + _COMPARED_BYTES]
            if not np.array_equal(piece, np.frombuffer(kept, np.uint8, len(piece), begin)):
                return False
            begin += len(piece)
    return True


def _make(folder: Path) -> set[Path]:
    """Makes the folder and those above it; returns the folders whose entries changed by that."""
    changed = set()
    lowest = folder
    while not lowest.is_dir():
        lowest = lowest.parent
        changed.add(lowest)
    folder.mkdir(parents=True, exist_ok=True)
    return changed


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
