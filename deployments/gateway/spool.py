"""The spool: chunks of the journal on this machine's disk while they cannot be written where they belong.

Each run has files of its own in the folder, and a lock that it holds while its process lives. Files whose process has
died are taken over by the next one that opens the folder, and come first.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from collections import deque
from pathlib import Path
from typing import BinaryIO

from lineage.chunks import ChunkHead, head_of
from lineage.columns import BrokenChunk

SEGMENT_BYTES = 16 << 20  # a file is removed when all of it is written elsewhere
_LENGTH_BYTES = 4
_log = logging.getLogger("fenix.recorder")


class Spool:
    """First in, first out; what is in it survives the process. Blocks on the disk; for several threads."""

    def __init__(self, folder: Path, run: str, most_bytes: int, segment_bytes: int = SEGMENT_BYTES) -> None:
        """Makes the folder, and takes over what dead processes left in it. Raises OSError."""
        self._folder = folder
        self._run = run
        self._most_bytes = most_bytes
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._segments: deque[Path] = deque()
        self._sizes: dict[Path, int] = {}
        self._at = 0  # in the first of them: what is before has been taken off
        self._reading: tuple[Path, list[int]] | None = None  # where each chunk ends that `front` gave
        self._number = 0
        self._last: tuple[Path, BinaryIO] | None = None  # that is written to
        self._locks: dict[str, BinaryIO] = {}
        # These may be read on any thread without waiting for the disk.
        self.n_bytes = 0  # on the disk
        self.has_own = False  # something of this run
        self.has_others = False  # something of a run that has died; it comes first
        self.n_damaged = 0  # places that could not be read
        self._damaged: set[tuple[Path, int]] = set()
        folder.mkdir(parents=True, exist_ok=True)
        if not self._claim(run):
            raise OSError(f"run {run} is in use")
        for lock in sorted(folder.glob("*.lock")):
            if lock.stem != run and self._claim(lock.stem):
                for path in sorted(folder.glob(f"{lock.stem}.*.spool")):
                    self._segments.append(path)
                    self._sizes[path] = path.stat().st_size
                self._release_unless_needed(lock.stem)
        self._count()

    def append(self, chunk: bytes) -> bool:
        """Puts a chunk at the end; when this returns True it survives the process and a loss of power. False when
        there is no room. Raises OSError, with the chunk not taken, when the disk fails."""
        with self._lock:
            record = len(chunk).to_bytes(_LENGTH_BYTES, "little") + chunk
            if self.n_bytes + len(record) > self._most_bytes:
                return False
            path, file = self._last or self._begin()
            try:
                file.write(record)
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                self._end()
                os.truncate(path, self._sizes[path])
                raise
            self._sizes[path] += len(record)
            self._count()
            if self._sizes[path] >= self._segment_bytes:
                self._end()
            return True

    def front(self, most_bytes: int) -> tuple[str, list[bytes]] | None:
        """The oldest chunks, with their run, of together about so many bytes; None when there are none. They stay
        until `done`. What is damaged is passed over. Raises OSError when the disk fails."""
        with self._lock:
            while self._segments:
                path = self._segments[0]
                chunks, ends, reached = self._read(path, most_bytes)
                if chunks:
                    self._reading = path, ends
                    return self._run_of(path), chunks
                if reached > self._at:
                    self._at = reached
                else:
                    self._remove(path)
            return None

    def done(self, n_chunks: int) -> None:
        """Takes off the first of those that `front` gave last."""
        with self._lock:
            if self._reading is None or not n_chunks:
                return
            path, ends = self._reading
            self._at, self._reading = ends[n_chunks - 1], None
            if self._at >= self._sizes[path]:
                self._remove(path)

    def close(self) -> None:
        """Lets go of the files; those that are left wait for the next process."""
        with self._lock:
            self._end()
            for run in list(self._locks):
                self._release_unless_needed(run, closing=True)

    def _read(self, path: Path, most_bytes: int) -> tuple[list[bytes], list[int], int]:
        """Whole chunks, where each ends, and how far it came."""
        chunks: list[bytes] = []
        ends: list[int] = []
        at, size = self._at, self._sizes[path]
        with path.open("rb") as file:
            file.seek(at)
            while at < size and at - self._at < most_bytes:
                begin = at
                length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
                at += _LENGTH_BYTES + length
                if at > size:
                    at = size  # the process died, or the power went, while this was written
                    self._note(path, begin, "it ends too soon")
                    break
                chunk = file.read(length)
                try:
                    _check(chunk, self._run_of(path))
                except BrokenChunk as error:
                    self._note(path, begin, str(error))
                else:
                    chunks.append(chunk)
                    ends.append(at)
        return chunks, ends, at

    def _note(self, path: Path, at: int, why: str) -> None:
        if (path, at) not in self._damaged:
            self._damaged.add((path, at))
            self.n_damaged += 1
            _log.error("%s is damaged at byte %d: %s", path, at, why)

    def _begin(self) -> tuple[Path, BinaryIO]:
        path = self._folder / f"{self._run}.{self._number:06d}.spool"
        file = path.open("wb")
        self._number += 1
        self._last = path, file
        self._segments.append(path)
        self._sizes[path] = 0
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # otherwise the file may be gone after a loss of power, whatever is in it
        finally:
            os.close(folder)
        return self._last

    def _end(self) -> None:
        if self._last is not None:
            self._last[1].close()
            self._last = None

    def _remove(self, path: Path) -> None:
        if self._last is not None and self._last[0] == path:
            self._end()
        self._segments.remove(path)
        del self._sizes[path]
        self._at = 0
        self._damaged = {place for place in self._damaged if place[0] != path}
        try:
            path.unlink(missing_ok=True)
        except OSError as error:  # the next process will write it once more, which does no harm
            _log.error("%s cannot be removed: %s", path, error)
        run = self._run_of(path)
        if run != self._run:
            self._release_unless_needed(run)
        self._count()

    def _count(self) -> None:
        runs = [self._run_of(path) for path in self._segments]
        self.n_bytes = sum(self._sizes.values())
        self.has_own = self._run in runs
        self.has_others = bool(runs) and runs[0] != self._run

    def _claim(self, run: str) -> bool:
        file = (self._folder / f"{run}.lock").open("wb")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        self._locks[run] = file
        return True

    def _release_unless_needed(self, run: str, *, closing: bool = False) -> None:
        left = any(self._run_of(path) == run for path in self._segments)
        if left and not closing:
            return
        if not left:
            (self._folder / f"{run}.lock").unlink(missing_ok=True)
        self._locks.pop(run).close()

    def _run_of(self, path: Path) -> str:
        return path.name.partition(".")[0]


def _check(chunk: bytes, run: str) -> ChunkHead:
    head = head_of(chunk)
    if head.run != run:
        raise BrokenChunk(f"a chunk of run {head.run} lies among those of {run}")
    return head
