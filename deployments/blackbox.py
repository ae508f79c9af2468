"""What a process was running when it ended: written before, read by the next process of the same kind.

An extension that runs inline can take the gateway with it. The box is a file in memory (mmap), so a note costs a
microsecond and outlives any death of the process; whoever starts next asks for the suspects.
"""

from __future__ import annotations

import mmap
import os
import threading
from hashlib import sha256
from pathlib import Path
from time import perf_counter

import psutil

from planner.cards import ExtensionId

HUNG_AFTER_S = 10.0
HUNG_STATUS = 70  # of a process that ends itself because something inline does not come back
_SIZE = 512
_MEMORY_S = 86_400.0


class BlackBox:
    """One process's box. `enter` and `leave` enclose whatever may take the process down; they do not nest."""

    def __init__(self, folder: Path, hung_after_s: float = HUNG_AFTER_S) -> None:
        """Makes a box in `folder`, which the processes share. What does not come back within `hung_after_s` ends the
        process with HUNG_STATUS."""
        folder.mkdir(parents=True, exist_ok=True)
        started_s = int(psutil.Process().create_time())
        self._path = folder / f"{os.getpid()}-{started_s}.box"
        self._path.write_bytes(b"\0" * _SIZE)
        with self._path.open("r+b") as file:
            self._memory = mmap.mmap(file.fileno(), _SIZE)
        self._hung_after_s = hung_after_s
        self._entered_s: float | None = None
        self._closed = threading.Event()
        threading.Thread(target=self._watch, name="black-box", daemon=True).start()

    def enter(self, note: bytes) -> None:
        """Notes what begins; `note` is `note_of(extension)`."""
        self._entered_s = perf_counter()
        self._memory[:_SIZE] = note

    def leave(self) -> None:
        """Whatever began came back."""
        self._memory[0] = 0
        self._entered_s = None

    def close(self) -> None:
        """The process ends as it should."""
        self._closed.set()
        self._path.unlink(missing_ok=True)

    def _watch(self) -> None:
        while not self._closed.wait(min(1.0, self._hung_after_s / 4)):
            entered_s = self._entered_s
            if entered_s is not None and perf_counter() - entered_s > self._hung_after_s:
                os._exit(HUNG_STATUS)  # it holds the loop: nothing gentler would be heard


def note_of(extension: ExtensionId) -> bytes:
    """The note for an extension. An id is at most 255 characters of ASCII."""
    return extension.encode().ljust(_SIZE, b"\0")


def suspects(folder: Path, now_s: float) -> dict[ExtensionId, float]:
    """The extensions during which a process died, and for how much longer, in seconds, to keep them apart.

    A process may also have been killed from outside at a bad moment, so the first death weighs little: a minute, then
    four, then sixteen. `now_s` is Unix time; after a day a death is forgotten.
    """
    for path in folder.glob("*.box"):
        pid, _, started_s = path.stem.partition("-")
        if _runs(int(pid), int(started_s)):
            continue
        try:
            note = path.read_bytes().rstrip(b"\0")
            path.unlink()
        except FileNotFoundError:  # another process that starts just now has seen to it
            continue
        if note and note[0]:
            with (folder / f"{sha256(note).hexdigest()}.deaths").open("a") as deaths:  # an id may be too long a name
                deaths.write(f"{now_s} {note.decode()}\n")
    found = {}
    for path in folder.glob("*.deaths"):
        died = [line.split() for line in path.read_text().splitlines()]
        times_s = [float(time_s) for time_s, _ in died if now_s - float(time_s) < _MEMORY_S]
        if not died:  # it is being written just now
            continue
        if times_s:
            found[ExtensionId(died[0][1])] = max(0.0, times_s[-1] + 60.0 * 4 ** (len(times_s) - 1) - now_s)
        else:
            path.unlink(missing_ok=True)
    return found


def _runs(pid: int, started_s: int) -> bool:
    try:
        # Processes disagree by a second on when one of them began, where the system's clock was set in between.
        return abs(int(psutil.Process(pid).create_time()) - started_s) <= 2
    except psutil.NoSuchProcess:
        return False
