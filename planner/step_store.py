"""Rows kept in bounded memory, shared out fairly between extensions, and in each between the users who had it compute.

When the bound is reached, the extension that holds the most gives up a row, and in it the user who holds the most: the
one that was not asked for the longest (longest queue drop, Suter et al. 1998, INFOCOM; least recently used inside).
So whoever floods the store pushes out his own rows. Sizes are compared in powers of two, which makes every step take
the same time however many there are: nobody loses a row while another holds more than twice as much.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from planner.cards import ExtensionId
from planner.step_rows import KeptRow, Key

ROW_OVERHEAD_BYTES = 330  # key, places in two dictionaries, the pair that holds it: measured 230 to 290
USER_OVERHEAD_BYTES = 600  # measured 480
LARGEST_SHARE = 64  # a row that takes more than this part of the store is not kept

_K = TypeVar("_K", bound=Hashable)


class _BySize(Generic[_K]):
    """Holders in classes of size, each from a power of two to the next."""

    def __init__(self) -> None:
        self._classes: dict[int, OrderedDict[_K, None]] = {}

    def resized(self, holder: _K, before: int, after: int) -> None:
        """A holder of `before` bytes now has `after`; 0 is none."""
        old, new = before.bit_length(), after.bit_length()
        if old == new:
            return
        if old:
            members = self._classes[old]
            del members[holder]
            if not members:
                del self._classes[old]
        if new:
            self._classes.setdefault(new, OrderedDict())[holder] = None

    def largest(self) -> _K:
        """One of the largest class, each in turn. There must be a holder."""
        members = self._classes[max(self._classes)]
        holder = next(iter(members))
        members.move_to_end(holder)
        return holder


class _Rows:
    """What one user had computed by one extension, the least recently used first."""

    __slots__ = ("keys", "n_bytes")

    def __init__(self) -> None:
        self.keys: OrderedDict[Key, None] = OrderedDict()
        self.n_bytes = 0


class _Shelf:
    """The rows of one extension."""

    __slots__ = ("by_size", "n_bytes", "rows", "users")

    def __init__(self) -> None:
        self.rows: dict[Key, tuple[KeptRow, str]] = {}  # with the user who had it computed
        self.users: dict[str, _Rows] = {}
        self.by_size: _BySize[str] = _BySize()
        self.n_bytes = 0


@dataclass(slots=True)
class StoreCounts:
    """`n_bytes` and `n_rows` are held now; `evictions` counts rows that had to go for want of room."""

    n_bytes: int = 0
    n_rows: int = 0
    evictions: int = 0


class StepStore:
    """Rows by extension and key, never more than `max_bytes` of them. Not for several threads at once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._shelves: dict[ExtensionId, _Shelf] = {}
        self._by_size: _BySize[ExtensionId] = _BySize()
        self.counts = StoreCounts()

    def get(self, extension: ExtensionId, keys: Iterable[Key]) -> dict[Key, KeptRow]:
        """Those of the rows that are here; they count as used now."""
        shelf = self._shelves.get(extension)
        if shelf is None:
            return {}
        found = {}
        for key in keys:
            kept = shelf.rows.get(key)
            if kept is not None:
                found[key] = kept[0]
                shelf.users[kept[1]].keys.move_to_end(key)
        return found

    def put(self, extension: ExtensionId, user: str, keys: Sequence[Key], rows: Sequence[KeptRow]) -> None:
        """Keeps rows that `user` had computed, where they are not too large; rows that are here already stay."""
        for key, row in zip(keys, rows, strict=True):
            n_bytes = row.n_bytes + ROW_OVERHEAD_BYTES
            if n_bytes * LARGEST_SHARE > self._max_bytes:
                continue
            shelf = self._shelves.get(extension)  # the last eviction may have emptied it
            if shelf is None:
                shelf = self._shelves[extension] = _Shelf()
            if key in shelf.rows:
                continue
            owned = shelf.users.get(user)
            if owned is None:
                owned = shelf.users[user] = _Rows()
                n_bytes += USER_OVERHEAD_BYTES
            shelf.rows[key] = row, user
            owned.keys[key] = None
            self.counts.n_rows += 1
            self._resize(extension, shelf, user, owned, n_bytes)
            while self.counts.n_bytes > self._max_bytes:
                self._evict()

    def drop(self, extension: ExtensionId) -> None:
        """Forgets all rows of an extension."""
        shelf = self._shelves.pop(extension, None)
        if shelf is not None:
            self._by_size.resized(extension, shelf.n_bytes, 0)
            self.counts.n_bytes -= shelf.n_bytes
            self.counts.n_rows -= len(shelf.rows)

    def _evict(self) -> None:
        extension = self._by_size.largest()
        shelf = self._shelves[extension]
        user = shelf.by_size.largest()
        owned = shelf.users[user]
        key, _ = owned.keys.popitem(last=False)
        row, _ = shelf.rows.pop(key)
        n_bytes = row.n_bytes + ROW_OVERHEAD_BYTES
        if not owned.keys:
            del shelf.users[user]
            n_bytes += USER_OVERHEAD_BYTES
        self.counts.n_rows -= 1
        self.counts.evictions += 1
        self._resize(extension, shelf, user, owned, -n_bytes)
        if not shelf.rows:
            del self._shelves[extension]

    def _resize(self, extension: ExtensionId, shelf: _Shelf, user: str, owned: _Rows, by: int) -> None:
        shelf.by_size.resized(user, owned.n_bytes, owned.n_bytes + by)
        self._by_size.resized(extension, shelf.n_bytes, shelf.n_bytes + by)
        owned.n_bytes += by
        shelf.n_bytes += by
        self.counts.n_bytes += by
