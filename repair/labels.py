"""Rows that wait for a label: what a labeller is asked, what came back, and how a queue of them behaves.

The queue's contract is here with a store in memory; `label_store.py` has the one in SQL, `consensus.py` what several
annotators say together, `label_files.py` CSV and Label Studio.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lineage.errors import FenixError
from repair.errors import LabelItemNotFound, LabelRefused

MOST_NAME_CHARS = 128
MOST_LABEL_CHARS = 256
MOST_DATA_CHARS = 1_000_000
LEASE_S = 600.0
MOST_LEASED = 1_000


@dataclass(frozen=True, slots=True)
class Item:
    """A row to be labelled: `id` is unique over all repairs, `data` what the labeller sees (JSON), `reason` why it was
    chosen. It is done with labels by `n_wanted` annotators."""

    id: str
    repair: str
    data: Mapping[str, Any]
    reason: str = ""
    n_wanted: int = 1

    def __post_init__(self) -> None:
        _name("id", self.id)
        _name("repair", self.repair)
        if not 1 <= self.n_wanted <= 100:
            raise LabelRefused(f"an item wants 1 to 100 annotators, not {self.n_wanted}.")
        try:
            n_chars = len(json.dumps(dict(self.data), allow_nan=False))
        except (TypeError, ValueError):
            raise LabelRefused(f"the data of item {self.id!r} is not a JSON object.") from None
        if n_chars > MOST_DATA_CHARS:
            raise LabelRefused(f"the data of item {self.id!r} has {n_chars} characters, {MOST_DATA_CHARS} at most.")


@dataclass(frozen=True, slots=True)
class Label:
    """What an annotator says of an item; numbers are kept as texts (`3`). Given at `at_s`, since 1970."""

    item: str
    annotator: str
    label: str
    at_s: float = 0.0

    def __post_init__(self) -> None:
        _name("item", self.item)
        _name("annotator", self.annotator)
        _text("label", self.label, MOST_LABEL_CHARS)
        if not math.isfinite(self.at_s):
            raise LabelRefused("at_s is a finite number.")

    @classmethod
    def parse(cls, given: Mapping[str, Any], now_s: float) -> Label:
        """From a JSON object with item, label and annotator. Raises LabelRefused."""
        if not isinstance(given, Mapping):
            raise LabelRefused("a label is an object.", hint="Its fields are item, label and annotator.")
        unknown = sorted(str(name) for name in set(given) - {"item", "label", "annotator"})
        if unknown:
            raise LabelRefused(f"unknown field {unknown[0][:40]!r}.", hint="There are: item, label, annotator.")
        return cls(
            as_text("item", given.get("item")),
            as_text("annotator", given.get("annotator")),
            as_text("label", given.get("label")),
            now_s,
        )


@dataclass(frozen=True, slots=True)
class Labelled:
    """An item with its labels, one per annotator, in the order they first came; `open` while it wants more."""

    item: Item
    labels: tuple[Label, ...] = ()
    closed: bool = False

    @property
    def open(self) -> bool:
        return not self.closed and len(self.labels) < self.item.n_wanted


@dataclass(frozen=True, slots=True)
class Refusal:
    """A label that was not taken, by its place among those given, and why."""

    position: int
    error: FenixError


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of labels: `new` ones, ones that were there already (`repeated`), ones by the same annotator that
    replaced another (`changed`), and those refused."""

    new: int = 0
    repeated: int = 0
    changed: int = 0
    refused: tuple[Refusal, ...] = ()


@dataclass(frozen=True, slots=True)
class Figures:
    """How much there is of a repair, or of all: items, those still open, labels."""

    n_items: int
    n_open: int
    n_labels: int


class LabelQueue(ABC):
    """Keeps items and labels. When a method returns what it changed is durable; it raises StoreUnavailable when the
    store fails, and then nothing was changed. Time is an argument, in seconds since 1970."""

    @abstractmethod
    def ask(self, items: Sequence[Item], now_s: float) -> int:
        """Adds items; returns how many are new. One that is there already stays as it is, so asking again is safe."""

    @abstractmethod
    def lease(
        self, annotator: str, n: int, now_s: float, *, lease_s: float = LEASE_S, repair: str = ""
    ) -> tuple[Item, ...]:
        """At most `n` open items, the oldest first, for one annotator: none that this one has labelled already, nor
        more leases than labels are wanted. Empty when there are none. A lease ends by itself; who asks again while it
        lasts gets the same items, first. `repair` '' means any. Raises LabelRefused for a negative `n`."""

    @abstractmethod
    def give(self, labels: Sequence[Label]) -> Taken:
        """Takes labels. An annotator's label counts once, the last one. A lease is not needed, so a late label is not
        lost; labels of items that are closed are kept too. An unknown item is refused (LabelItemNotFound), the others
        count all the same."""

    @abstractmethod
    def want(self, items: Iterable[str], n_wanted: int) -> None:
        """Asks for labels by so many annotators in all, of these items; a smaller number than before changes nothing.

        Raises LabelItemNotFound, and then nothing was changed."""

    @abstractmethod
    def close(self, repair: str) -> int:
        """Asks for nothing more in a repair; returns how many items were open."""

    @abstractmethod
    def labelled(self, repair: str) -> tuple[Labelled, ...]:
        """All items of a repair with their labels, in the order they were asked for."""

    @abstractmethod
    def figures(self, repair: str = "") -> Figures:
        """How much there is; '' means of all repairs."""


@dataclass(slots=True)
class _Kept:
    """An item in memory."""

    item: Item
    labels: dict[str, Label] = field(default_factory=dict)
    leases: dict[str, float] = field(default_factory=dict)
    closed: bool = False


class MemoryLabelQueue(LabelQueue):
    """For tests, and labels that need not survive their process."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def ask(self, items: Sequence[Item], now_s: float) -> int:
        new = {item.id: item for item in reversed(items) if item.id not in self._kept}
        for item in items:
            if item.id in new:
                self._kept.setdefault(item.id, _Kept(new[item.id]))
        return len(new)

    def lease(
        self, annotator: str, n: int, now_s: float, *, lease_s: float = LEASE_S, repair: str = ""
    ) -> tuple[Item, ...]:
        check_lease(annotator, n, lease_s)
        free = []
        for kept in self._kept.values():
            running = {who for who, until_s in kept.leases.items() if until_s > now_s}
            full = len(kept.labels) + len(running - {annotator} - set(kept.labels)) >= kept.item.n_wanted
            if kept.closed or full or annotator in kept.labels or repair not in ("", kept.item.repair):
                continue
            free.append((annotator not in running, kept))
        free.sort(key=lambda one: one[0])
        found = [kept for _, kept in free[:n]]
        for kept in found:
            kept.leases[annotator] = now_s + lease_s
        return tuple([kept.item for kept in found])

    def give(self, labels: Sequence[Label]) -> Taken:
        new = repeated = changed = 0
        refused = []
        for position, label in enumerate(labels):
            kept = self._kept.get(label.item)
            if kept is None:
                refused.append(Refusal(position, unknown_item(label.item)))
                continue
            before = kept.labels.get(label.annotator)
            if before is None:
                new += 1
            elif before.label == label.label:
                repeated += 1
                continue
            else:
                changed += 1
            kept.labels[label.annotator] = label
        return Taken(new, repeated, changed, tuple(refused))

    def want(self, items: Iterable[str], n_wanted: int) -> None:
        known = list(items)
        for item in known:
            if item not in self._kept:
                raise unknown_item(item)
        for item in known:
            kept = self._kept[item]
            kept.item = replace(kept.item, n_wanted=max(n_wanted, kept.item.n_wanted))

    def close(self, repair: str) -> int:
        n_open = self.figures(repair).n_open
        for kept in self._kept.values():
            if kept.item.repair == repair:
                kept.closed = True
        return n_open

    def labelled(self, repair: str) -> tuple[Labelled, ...]:
        return tuple([_seen(kept) for kept in self._kept.values() if kept.item.repair == repair])

    def figures(self, repair: str = "") -> Figures:
        seen = [_seen(kept) for kept in self._kept.values() if repair in ("", kept.item.repair)]
        return Figures(len(seen), sum(one.open for one in seen), sum(len(one.labels) for one in seen))


def check_lease(annotator: str, n: int, lease_s: float) -> None:
    """Raises LabelRefused for what is no lease."""
    _name("annotator", annotator)
    if not 0 <= n <= MOST_LEASED:
        raise LabelRefused(f"a labeller gets 0 to {MOST_LEASED} items at once, not {n}.")
    if not 0.0 < lease_s < 1e9:
        raise LabelRefused(f"a lease lasts more than 0 s, not {lease_s}.")


def unknown_item(item: str) -> LabelItemNotFound:
    """The error for a label of something that was not asked for."""
    return LabelItemNotFound(
        f"there is no item {item[:MOST_NAME_CHARS]!r} to be labelled.", hint="It may be of another cluster."
    )


def as_text(name: str, value: Any) -> str:
    """A text, or a number or truth value as one. Raises LabelRefused."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
        return str(int(value))
    if not isinstance(value, str):
        raise LabelRefused(f"{name} is missing, or neither a text nor a whole number.")
    return value


def _seen(kept: _Kept) -> Labelled:
    return Labelled(kept.item, tuple(kept.labels.values()), kept.closed)


def _name(name: str, value: str) -> None:
    _text(name, value, MOST_NAME_CHARS)


def _text(name: str, value: str, most: int) -> None:
    if not isinstance(value, str) or not 1 <= len(value) <= most:
        raise LabelRefused(f"{name} is a text of 1 to {most} characters, not {str(value)[:40]!r}.")
    try:
        value.encode()
    except UnicodeEncodeError:
        value = "\0"
    if "\0" in value:
        raise LabelRefused(f"{name} has a character in it that is no text.")
