"""What became of each tensor from one version to another."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from lineage.graph.tensors import TensorStore

Array = npt.NDArray[Any]

_AT_ONCE = 1 << 18  # entries that are compared at a time: the memory of a diff does not grow with the tensors


class Fate(StrEnum):
    """What became of a tensor. One is `same` entry by entry; `retyped` has another dtype in the same shape."""

    SAME = "same"
    CHANGED = "changed"
    RETYPED = "retyped"
    RESHAPED = "reshaped"
    ADDED = "added"
    REMOVED = "removed"


@dataclass(frozen=True, slots=True)
class TensorChange:
    """One tensor in two versions; `before` and `after` are its dtype and shape there (`float32 10x64`), or "".

    Where the shapes agree there are also: `relative_l2`, the length of the change over that of the tensor before
    (inf when that is 0), `max_abs`, the largest change of one entry, and `equal_share`, the part of entries with the
    same value; NaN is equal to NaN, and a change to or from a value that is not finite makes the first two inf.
    """

    name: str
    fate: Fate
    before: str = ""
    after: str = ""
    n_entries: int = 0
    relative_l2: float | None = None
    max_abs: float | None = None
    equal_share: float | None = None


@dataclass(frozen=True, slots=True)
class Difference:
    """Two versions, tensor by tensor, by name. `relative_l2` and `equal_share` are over all tensors that both have in
    the same shape, together; None when there are none."""

    changes: tuple[TensorChange, ...]
    relative_l2: float | None
    equal_share: float | None

    def of(self, fate: Fate) -> tuple[TensorChange, ...]:
        """The tensors with this fate."""
        return tuple(change for change in self.changes if change.fate is fate)

    def sentence(self) -> str:
        """The whole in one sentence, for a person."""
        counts = ", ".join(f"{len(self.of(fate))} {fate}" for fate in Fate if self.of(fate))
        if self.relative_l2 is None or self.equal_share is None:
            return f"Tensors: {counts or 'none'}; none of them in both versions in the same shape."
        return f"Tensors: {counts}; relative L2 change {self.relative_l2:.3g}, {self.equal_share:.1%} of entries equal."


@dataclass(frozen=True, slots=True)
class _Sums:
    """Over entries: squares of the change and of the values before, the largest change, how many are equal."""

    changed: float = 0.0
    before: float = 0.0
    max_abs: float = 0.0
    n_equal: int = 0
    n_entries: int = 0

    def equal_share(self) -> float:
        return self.n_equal / self.n_entries if self.n_entries else 1.0

    def relative_l2(self) -> float:
        if self.changed == 0.0:
            return 0.0
        return math.sqrt(self.changed / self.before) if self.before else math.inf

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.changed + other.changed,
            self.before + other.before,
            max(self.max_abs, other.max_abs),
            self.n_equal + other.n_equal,
            self.n_entries + other.n_entries,
        )


def diff(before: Mapping[str, Array], after: Mapping[str, Array]) -> Difference:
    """Compares two versions, given as their tensors."""
    changes, total = [], _Sums()
    for name in sorted(before.keys() | after.keys()):
        change, sums = _changed(name, before.get(name), after.get(name))
        changes.append(change)
        total = total.plus(sums)
    if not total.n_entries:
        return Difference(tuple(changes), None, None)
    return Difference(tuple(changes), total.relative_l2(), total.equal_share())


def diff_stored(store: TensorStore, before: str, after: str) -> Difference:
    """Compares two versions of a store by their content hashes. What both share is read once.

    Raises what `TensorStore.load` raises.
    """
    old, wanted = store.load(before), store.manifest(after).tensors
    named = store.manifest(before).tensors
    shared = {name: old[name] for name in named if wanted.get(name) == named[name]}
    return diff(old, {**shared, **store.load(after, wanted.keys() - shared.keys())})


def _changed(name: str, old: Array | None, new: Array | None) -> tuple[TensorChange, _Sums]:
    before, after = _described(old), _described(new)
    if old is None or new is None:
        return TensorChange(name, Fate.REMOVED if new is None else Fate.ADDED, before, after), _Sums()
    if old.shape != new.shape:
        return TensorChange(name, Fate.RESHAPED, before, after), _Sums()
    sums = _sums(old.reshape(-1), new.reshape(-1))
    in_value = Fate.SAME if sums.n_equal == sums.n_entries else Fate.CHANGED
    fate = in_value if before == after else Fate.RETYPED
    numbers = sums.n_entries, sums.relative_l2(), sums.max_abs, sums.equal_share()
    return TensorChange(name, fate, before, after, *numbers), sums


def _sums(old: Array, new: Array) -> _Sums:
    total = _Sums()
    for at in range(0, len(old), _AT_ONCE):
        one, other = (array[at : at + _AT_ONCE].astype(np.float64) for array in (old, new))
        equal = (one == other) | (np.isnan(one) & np.isnan(other))
        with np.errstate(invalid="ignore", over="ignore"):
            change = np.where(equal, 0.0, np.abs(other - one))
            change[np.isnan(change)] = math.inf
            before = one[np.isfinite(one)]
            sums = _Sums(
                float(change @ change), float(before @ before), float(change.max()), int(equal.sum()), len(one)
            )
        total = total.plus(sums)
    return total


def _described(array: Array | None) -> str:
    if array is None:
        return ""
    shape = "x".join(map(str, array.shape)) or "scalar"
    return f"{array.dtype.newbyteorder('=').name} {shape}"
