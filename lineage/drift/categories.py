"""Counts of categories: those known from training by name, others as new, of which a bounded number keep their names.

Which of the new ones keep their names is decided by a hash of the name, the least ones first: so parts that are merged
in any order keep the same names, with exact counts, and the spread of the hashes says how many there are. Source:
Bar-Yossef, Jayram, Kumar, Sivakumar and Trevisan 2002, Counting Distinct Elements in a Data Stream, RANDOM.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lineage.drift.columns import Array

MOST_NEW = 64
_LONGEST = 120  # characters that are kept of a name


def text_of(value: Any) -> str | None:
    """The name of a category; None for what is missing."""
    if value is None or (isinstance(value, float) and value != value):
        return None
    text = value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
    if len(text) <= _LONGEST:
        return text
    return f"{text[: _LONGEST - 20]}...{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}"


def counted(values: Array) -> tuple[Counter[str], int]:
    """How often each category occurs in an array (n,), and how many are missing."""
    counts: Counter[str] = Counter()
    n_missing = 0
    pairs: Iterable[tuple[Any, int]]
    if values.dtype.kind in "biuSU":
        found, times = np.unique(values, return_counts=True)
        pairs = zip(found.tolist(), times.tolist(), strict=True)
    else:
        pairs = Counter(_plain(value) for value in values.tolist()).items()
    for value, n in pairs:
        name = text_of(value)
        if name is None:
            n_missing += n
        else:
            counts[name] += n
    return counts, n_missing


def _plain(value: Any) -> Any:
    return value if isinstance(value, (str, bytes, int, float, bool, type(None))) else str(value)


def _hash(name: str) -> int:
    return int.from_bytes(hashlib.blake2b(name.encode("utf-8", "replace"), digest_size=8).digest(), "big")


class CategoryCounts:
    """Of one column. Two of them over the same known names are equal when they have counted the same rows, whatever
    the order."""

    __slots__ = ("index", "known", "n_missing", "n_new", "new")

    def __init__(self, index: Mapping[str, int]) -> None:
        """`index` gives the place of each known name in `known`; it is shared, not copied."""
        self.index = index
        self.known: Array = np.zeros(len(index), np.int64)
        self.new: dict[str, int] = {}
        self.n_new = 0
        self.n_missing = 0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CategoryCounts):
            return NotImplemented
        return self.plain() == other.plain() and bool(np.array_equal(self.known, other.known))

    def add(self, values: Array) -> None:
        """Counts categories, shape (n,)."""
        counts, n_missing = counted(values)
        self.n_missing += n_missing
        for name, n in counts.items():
            at = self.index.get(name)
            if at is not None:
                self.known[at] += n
            else:
                self.n_new += n
                self.new[name] = self.new.get(name, 0) + n
        self._bound()

    def merge(self, other: CategoryCounts) -> None:
        self.known += other.known
        self.n_missing += other.n_missing
        self.n_new += other.n_new
        for name, n in other.new.items():
            self.new[name] = self.new.get(name, 0) + n
        self._bound()

    def _bound(self) -> None:
        if len(self.new) > MOST_NEW:
            kept = sorted(self.new, key=_hash)[:MOST_NEW]
            self.new = {name: self.new[name] for name in kept}

    @property
    def n_there(self) -> int:
        return int(self.known.sum()) + self.n_new

    def n_distinct_new(self) -> int:
        """How many different new categories there were; estimated, once they are more than `MOST_NEW`."""
        if len(self.new) < MOST_NEW:
            return len(self.new)
        return int((MOST_NEW - 1) * 2.0**64 / max(_hash(name) for name in self.new))

    def plain(self) -> dict[str, Any]:
        """All but `known`, as JSON has it."""
        return {"new": dict(sorted(self.new.items())), "n_new": self.n_new, "n_missing": self.n_missing}

    def restore(self, known: Sequence[int] | Array, plain: Mapping[str, Any]) -> None:
        """From what `plain` gave. Raises ValueError where it does not fit."""
        if len(known) != len(self.known):
            raise ValueError("the counts are over other categories")
        self.known = np.array(known, np.int64)
        self.new = {str(name): int(n) for name, n in plain["new"].items()}
        self.n_new, self.n_missing = int(plain["n_new"]), int(plain["n_missing"])
