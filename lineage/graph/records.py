"""The nouns of the lineage graph: versions, what they were trained on, and the edges between them.

Records are checked when they are made, raise LineageRefused, and hold plain data alone: whatever is handed in as
parameters, metrics or drift results is copied, with tuples as lists and numpy's numbers as Python's.

>>> parent, child = Version(VersionId("a" * 64), "digits", "1"), Version(VersionId("b" * 64), "digits", "2")
>>> edge = Edge(parent.id, child.id, EdgeKind.FINE_TUNE, params={"epochs": 3}, metrics={"accuracy": 0.97})
>>> str(child), str(edge)
('digits@2', 'aaaaaaaaaaaa --fine-tune--> bbbbbbbbbbbb')
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NewType

import orjson

from lineage.errors import LineageRefused

VersionId = NewType("VersionId", str)  # SHA-256 over the tensors, 64 hex digits: `lineage.identity.hash_tensors`
DatasetId = NewType("DatasetId", str)  # SHA-256 over the rows, 64 hex digits
SignatureId = NewType("SignatureId", str)  # SHA-256 over all that a signature says, 64 hex digits

MOST_NAME = 256  # characters of a model's name: MLflow's limit
MOST_NUMBER = 32
MOST_DEPTH = 32  # of plain data
_DIGEST = re.compile("[0-9a-f]{64}")


class EdgeKind(StrEnum):
    """How a version was made from another. A merge or a fusion has several parents, and an edge from each."""

    FINE_TUNE = "fine-tune"
    PRUNE = "prune"
    QUANTISE = "quantise"
    DISTIL = "distil"
    MERGE = "merge"
    REPAIR = "repair"
    SPECIALISE = "specialise"
    FUSE = "fuse"
    RETRAIN = "retrain"


@dataclass(frozen=True, slots=True)
class Moments:
    """What the values of a column are like, those of all elements of all rows together.

    `n_values` are finite, `n_missing` absent, NaN or infinite. Of no finite values all others are None; skewness and
    kurtosis (Pearson's, 3 for a normal distribution) also of values that are all the same. The variance is that of
    the values themselves (divided by n).
    """

    n_values: int
    n_missing: int = 0
    mean: float | None = None
    variance: float | None = None
    skewness: float | None = None
    kurtosis: float | None = None
    minimum: float | None = None
    maximum: float | None = None

    def __post_init__(self) -> None:
        for name in ("n_values", "n_missing"):
            _set(self, name, _count(getattr(self, name), name))
        for name in ("mean", "variance", "skewness", "kurtosis", "minimum", "maximum"):
            value = getattr(self, name)
            _set(self, name, None if value is None else _number(value, name))

    @property
    def values(self) -> tuple[int | float | None, ...]:
        """All of them, in the order above. (`dataclasses.astuple` takes ten times as long.)"""
        return (
            self.n_values,
            self.n_missing,
            self.mean,
            self.variance,
            self.skewness,
            self.kurtosis,
            self.minimum,
            self.maximum,
        )


@dataclass(frozen=True, slots=True)
class Column:
    """One column of training data: its type, its moments where it holds numbers, and a sketch.

    `datatype` is Open Inference's (FP32, INT64, BYTES), `shape` that of one row with -1 where rows differ. `sketch` is
    opaque here: `lineage.drift` writes and reads it.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    moments: Moments | None = None
    sketch: bytes = b""

    def __post_init__(self) -> None:
        _text(self.name, "the name of a column", MOST_NAME)
        _text(self.datatype, f"the datatype of column {self.name!r}", 16)
        try:
            _set(self, "shape", tuple(int(size) for size in self.shape))
        except (TypeError, ValueError):
            raise LineageRefused(f"the shape of column {self.name!r} is made of whole numbers.") from None
        if not isinstance(self.sketch, bytes):
            raise LineageRefused(f"the sketch of column {self.name!r} is bytes.")


@dataclass(frozen=True, slots=True)
class DataSignature:
    """What a version was trained on, small enough to be kept for ever: no rows, but what they are like.

    `dataset` is the hash of the rows: the same for two signatures of the same rows. `columns` is the schema, by
    column. `lineage.graph.signatures.describe_data` makes one from arrays.
    """

    dataset: DatasetId
    n_rows: int
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        _digest(self.dataset, "a dataset")
        _set(self, "n_rows", _count(self.n_rows, "n_rows"))
        _set(self, "columns", tuple(self.columns))
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise LineageRefused("two columns of the training data have the same name.")

    def column(self, name: str) -> Column | None:
        """The column of that name, if there is one."""
        return next((column for column in self.columns if column.name == name), None)

    @property
    def id(self) -> SignatureId:
        """The hash of all that the signature says, sketches included."""
        heads = [
            (column.name, column.datatype, column.shape, column.moments and column.moments.values, len(column.sketch))
            for column in self.columns
        ]
        whole = hashlib.sha256(orjson.dumps([self.dataset, self.n_rows, heads]))
        for column in self.columns:
            whole.update(column.sketch)
        return SignatureId(whole.hexdigest())


@dataclass(frozen=True, slots=True)
class Version:
    """A model version: a node of the graph, known by the hash of its tensors (of its files where it has none).

    `name` and `number` are those in MLflow, both empty where it is not registered; the same tensors may be registered
    several times (`LineageStore.names`). `data` is what it was trained on, where that is known. `made_s` is since 1970.
    """

    id: VersionId
    name: str = ""
    number: str = ""
    data: DataSignature | None = None
    made_s: float = 0.0

    def __post_init__(self) -> None:
        _digest(self.id, "a version")
        if self.name or self.number:
            check_name(self.name, self.number)
        _set(self, "made_s", _number(self.made_s, "made_s"))

    def __str__(self) -> str:
        return f"{self.name}@{self.number}" if self.name else self.id[:12]


@dataclass(frozen=True, slots=True)
class Edge:
    """`child` was made from `parent`.

    `params` say how, so that it can be done again; `metrics` were measured at the time, `drift` are the drift results
    of the time (plain data), and `data` is what the data of the transformation was like. `made_s` is since 1970.
    """

    parent: VersionId
    child: VersionId
    kind: EdgeKind
    params: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    data: DataSignature | None = None
    drift: Mapping[str, Any] = field(default_factory=dict)
    made_s: float = 0.0

    def __post_init__(self) -> None:
        _digest(self.parent, "a parent")
        _digest(self.child, "a child")
        try:
            _set(self, "kind", EdgeKind(self.kind))
        except ValueError:
            raise LineageRefused(
                f"{str(self.kind)[:40]!r} is no kind of edge.", hint=f"There are: {', '.join(EdgeKind)}."
            ) from None
        for name in ("params", "metrics", "drift"):
            value = getattr(self, name)
            if not isinstance(value, Mapping):
                raise LineageRefused(f"the {name} of an edge are values by name.")
            if name != "metrics":
                _set(self, name, plain(value, name))
        _set(self, "metrics", {str(name): _number(value, f"metric {name}") for name, value in self.metrics.items()})
        _set(self, "made_s", _number(self.made_s, "made_s"))

    def __str__(self) -> str:
        return f"{self.parent[:12]} --{self.kind}--> {self.child[:12]}"


def id_of_parts(kind: EdgeKind, parts: Iterable[VersionId], wiring: str = "") -> VersionId:
    """The id of a version that has no tensors of its own, such as a fusion: made of its parts and how they are wired.
    The order of the parts counts."""
    whole = hashlib.sha256(json.dumps([kind, list(parts), wiring]).encode())
    return VersionId(whole.hexdigest())


def check_name(name: str, number: str) -> None:
    """Raises LineageRefused unless both could name a version in MLflow."""
    _text(name, "the name of a model", MOST_NAME)
    _text(number, f"the version number of {name!r}", MOST_NUMBER)


def plain(value: Any, what: str = "value", depth: int = 0) -> Any:
    """A copy as plain data: None, booleans, texts, finite numbers, lists, and dicts with texts as keys.

    Takes tuples, and whatever has numpy's `tolist`. Raises LineageRefused for anything else.

    >>> plain({"scales": (0.5, 1)})
    {'scales': [0.5, 1]}
    """
    if depth > MOST_DEPTH:
        raise LineageRefused(f"{what} is nested more than {MOST_DEPTH} deep.")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)  # of a StrEnum its text
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return _number(value, what)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise LineageRefused(f"{what} has the key {key!r}, which is not a text.")
        return {str(key): plain(one, f"{what}.{key}", depth + 1) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one, f"{what}[{at}]", depth + 1) for at, one in enumerate(value)]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), what, depth + 1)
    raise LineageRefused(f"{what} is a {type(value).__name__}, which is not plain data.")


def _set(record: Any, name: str, value: Any) -> None:
    object.__setattr__(record, name, value)  # records are frozen; this is how they are made


def _digest(value: str, what: str) -> None:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise LineageRefused(
            f"the id of {what} is a SHA-256 in 64 hex digits, not {str(value)[:80]!r}.",
            hint="`lineage.identity.hash_tensors` makes it.",
        )


def _text(value: str, what: str, most: int) -> None:
    if not isinstance(value, str) or not value or len(value) > most or not value.isprintable():
        raise LineageRefused(f"{what} is a text of 1 to {most} printable characters, not {str(value)[:80]!r}.")


def _count(value: int, what: str) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = -1
    if not 0 <= count < 1 << 63:
        raise LineageRefused(f"{what} is a count, not {str(value)[:80]!r}.")
    return count


def _number(value: float, what: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise LineageRefused(f"{what} is a number, not {str(value)[:80]!r}.") from None
    if not math.isfinite(number):
        raise LineageRefused(f"{what} is {number}.", hint="Leave out what could not be computed.")
    return number
