"""What is watched of a model: its inputs, outputs and confidence, as columns of numbers and of categories.

A tensor becomes one column per element of a row; where that were more than `MOST_COLUMNS`, neighbouring elements are
averaged. Texts that are mostly distinct are watched by their length.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Kind = Literal["number", "category"]
Role = Literal["input", "output", "confidence", "joint"]

MOST_COLUMNS = 256  # of one tensor
MOST_DISTINCT = 1024  # categories of a column; with more it is text, or a number
_TEXTS = "OSU"


@dataclass(frozen=True, slots=True)
class Column:
    """One thing that is watched."""

    name: str
    kind: Kind
    role: Role


@dataclass(frozen=True, slots=True)
class Part:
    """A tensor, and how it becomes columns: `n_columns` of `width` elements per row. `text` ones by their length."""

    name: str
    kind: Kind
    role: Role
    width: int
    n_columns: int
    text: bool = False

    def columns(self) -> list[Column]:
        if self.n_columns == 1 and self.width == 1:
            return [Column(self.name, self.kind, self.role)]
        ends = _ends(self.width, self.n_columns)
        if self.n_columns == self.width:
            return [Column(f"{self.name}[{i}]", self.kind, self.role) for i in range(self.width)]
        return [
            Column(f"{self.name}[{a}:{b}]", self.kind, self.role)
            for a, b in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        ]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Rows as columns: `numbers` float32 (n_rows, n_numbers) with NaN where there is none; each of `categories`
    (n_rows,), of any type that has a text, None where there is none. `n_misfits` rows came in another shape than in
    training; what did not fit is missing from them."""

    numbers: Array
    categories: tuple[Array, ...] = ()
    n_misfits: int = 0

    def __len__(self) -> int:
        return len(self.numbers)

    def take(self, which: Array) -> Rows:
        """Some of the rows, by index or mask. Raises nothing that numpy does not."""
        return Rows(self.numbers[which], tuple(values[which] for values in self.categories))


@dataclass(frozen=True, slots=True)
class Layout:
    """How the tensors of a model become columns: those of numbers in the order of the parts, then the categories."""

    parts: tuple[Part, ...]

    @property
    def numbers(self) -> tuple[Column, ...]:
        return tuple(column for part in self.parts if part.kind == "number" for column in part.columns())

    @property
    def categories(self) -> tuple[Column, ...]:
        return tuple(column for part in self.parts if part.kind == "category" for column in part.columns())

    def rows(
        self,
        inputs: Mapping[str, Array] | None = None,
        outputs: Mapping[str, Array] | None = None,
        confidence: Array | None = None,
    ) -> Rows:
        """A batch of tensors, rows first, as columns. Raises nothing for data: what is absent or does not fit is
        missing, and counted."""
        given = _given(inputs, outputs, confidence)
        n = max((len(values) for values in given.values() if values.ndim), default=0)
        numbers, categories, misfit = [], [], False
        for part in self.parts:
            values = given.get((part.role, part.name))
            fits = values is not None and values.shape[:1] == (n,) and values.size == n * part.width
            misfit = misfit or not fits
            if part.kind == "category":
                categories.append(_column(values) if fits and values is not None else np.full(n, None, dtype=object))
                continue
            made = _numbers(part, values, n) if fits and values is not None else None
            misfit = misfit or made is None
            numbers.append(np.full((n, part.n_columns), np.nan, np.float32) if made is None else made)
        if len(numbers) == 1:
            joined = numbers[0]
        else:
            joined = np.concatenate(numbers, axis=1) if numbers else np.empty((n, 0), np.float32)
        return Rows(joined, tuple(categories), n if misfit else 0)


def layout_of(
    inputs: Mapping[str, Array] | None = None,
    outputs: Mapping[str, Array] | None = None,
    confidence: Array | None = None,
    *,
    categories: Collection[str] = (),
) -> Layout:
    """The layout that these training tensors ask for, rows first, the same number in each.

    Booleans and texts are categories, and so are outputs of whole numbers (labels) and the tensors named in
    `categories`, unless they have more than `MOST_DISTINCT` values. Raises ValueError where the lengths differ, a
    tensor has no rows, or categories are more than one per row.
    """
    given = _given(inputs, outputs, confidence)
    if len({len(values) if values.ndim else -1 for values in given.values()} - {0}) != 1:
        raise ValueError("training tensors have the same number of rows, at least one")
    parts = []
    for (role, name), values in given.items():
        width = values.size // len(values)
        is_text = values.dtype.kind in _TEXTS and not _all_numbers(values)
        labels = role == "output" and values.dtype.kind in "iu" and width == 1
        if width == 0:
            continue
        if is_text or values.dtype.kind == "b" or labels or name in categories:
            if width != 1:
                if is_text or name in categories:
                    raise ValueError(f"{name} has {width} categories per row; give each a tensor of its own")
            else:
                n_distinct = len(set(_column(values).tolist()))
                if n_distinct <= MOST_DISTINCT and not (is_text and len(values) >= 64 and n_distinct > len(values) / 2):
                    parts.append(Part(name, "category", role, 1, 1))
                    continue
        parts.append(Part(name, "number", role, width, min(width, MOST_COLUMNS), is_text))
    return Layout(tuple(parts))


def _given(
    inputs: Mapping[str, Array] | None, outputs: Mapping[str, Array] | None, confidence: Array | None
) -> dict[tuple[Role, str], Array]:
    given: dict[tuple[Role, str], Array] = {("input", name): np.asarray(v) for name, v in (inputs or {}).items()}
    given |= {("output", name): np.asarray(v) for name, v in (outputs or {}).items()}
    if confidence is not None:
        given["confidence", "confidence"] = np.asarray(confidence)
    return given


def _column(values: Array) -> Array:
    return values.reshape(len(values))


def _ends(width: int, n: int) -> Array:
    return np.linspace(0, width, n + 1).astype(np.intp)


def _all_numbers(values: Array) -> bool:
    """Whether an array of objects holds numbers, and None."""
    if values.dtype.kind != "O":
        return False
    return all(value is None or isinstance(value, (int, float, np.number)) for value in values.ravel().tolist())


def _numbers(part: Part, values: Array, n: int) -> Array | None:
    """The columns of a part, float32 (n, part.n_columns); None where the values are no numbers."""
    try:
        if part.text:
            lengths = [np.nan if text is None else len(text) for text in values.ravel().tolist()]
            return np.array(lengths, np.float32).reshape(n, part.n_columns)
        with np.errstate(over="ignore", invalid="ignore"):
            flat: Array = values.reshape(n, part.width).astype(np.float32)
    except (TypeError, ValueError):
        return None
    if part.n_columns == part.width or not n:
        return flat.reshape(n, part.width)[:, : part.n_columns]
    ends = _ends(part.width, part.n_columns)
    sums: Array = np.add.reduceat(flat, ends[:-1], axis=1)
    return sums / np.diff(ends).astype(np.float32)
