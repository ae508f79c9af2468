"""Cards: what the planner knows of an extension version. Frozen records, made and checked in one place."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any, Literal, NewType, get_args

import numpy as np

from planner.errors import BadCard, near
from planner.features import Port

ExtensionId = NewType("ExtensionId", str)  # "name@version"

Kind = Literal["torch", "sklearn", "mlflow", "function", "remote", "rule", "human", "fused"]
KINDS: tuple[str, ...] = get_args(Kind)
Sharing = Literal["shared", "tags", "user", "off"]  # who may get a kept result; see Card
SHARINGS: tuple[str, ...] = get_args(Sharing)
Placement = Literal["auto", "inline", "remote"]  # see Resources
PLACEMENTS: tuple[str, ...] = get_args(Placement)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,126}")


def extension_id(name: str, version: str) -> ExtensionId:
    """The id of an extension version, `name@version`."""
    return ExtensionId(f"{name}@{version}")


def _at_least(name: str, value: float, least: float) -> None:
    if not (math.isfinite(value) and value >= least):
        raise BadCard(f"{name} is a finite number of at least {least}, not {value}.")


@dataclass(frozen=True, slots=True)
class LatencyProfile:
    """How long one call takes, seen from the caller: `fixed_ms + per_row_ms * n_rows + per_kilo_ms * kilo`.

    `kilo` counts thousands of elements over all rows of the inputs with free dimensions (`per_kilo_ms` is 0 where
    there are none). `p99_ratio` is p99 over p50, at least 1. `n_calls` is how many calls were measured; 0 means
    the figures are the author's guess.
    """

    fixed_ms: float = 2.0
    per_row_ms: float = 0.01
    per_kilo_ms: float = 0.0
    p99_ratio: float = 2.0
    n_calls: int = 0

    def __post_init__(self) -> None:
        for name in ("fixed_ms", "per_row_ms", "per_kilo_ms"):
            _at_least(name, getattr(self, name), 0.0)
        _at_least("p99_ratio", self.p99_ratio, 1.0)

    def p50_ms(self, n_rows: int, kilo: float = 0.0) -> float:
        return self.fixed_ms + self.per_row_ms * n_rows + self.per_kilo_ms * kilo

    def p99_ms(self, n_rows: int, kilo: float = 0.0) -> float:
        return self.p50_ms(n_rows, kilo) * self.p99_ratio


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of rows answered rightly, given right inputs: `mean` in [0, 1], measured on `n_rows` (0: a guess)."""

    mean: float = 1.0
    n_rows: int = 0

    def __post_init__(self) -> None:
        _at_least("accuracy mean", self.mean, 0.0)
        if self.mean > 1.0:
            raise BadCard(f"accuracy mean is at most 1, not {self.mean}.")

    def interval(self, z: float = 1.96) -> tuple[float, float]:
        """Wilson score interval; (0, 1) when nothing was measured. Source: Wilson 1927, JASA 22."""
        n, p = self.n_rows, self.mean
        if n == 0:
            return 0.0, 1.0
        centre = (p + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True, slots=True)
class Threshold:
    """A point of the risk-coverage curve: of the rows, `coverage` have at least this `confidence`, and of those
    `accuracy` are right. Source: El-Yaniv and Wiener 2010, JMLR 11."""

    confidence: float
    coverage: float
    accuracy: float

    def __post_init__(self) -> None:
        for name in ("confidence", "coverage", "accuracy"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise BadCard(f"threshold {name} lies in [0, 1], not {getattr(self, name)}.")


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an extension version did on a goal's validation set, row by row: the ground of joint estimates
    (which rows two models get wrong together). Compact, because it travels with the card.

    `correct` holds n_rows booleans packed 8 to a byte (numpy.packbits); `confidence` n_rows float16 values.
    Two pieces of evidence are comparable when `dataset` (a content hash) is the same.
    """

    dataset: str
    n_rows: int
    correct: bytes
    confidence: bytes = b""

    @classmethod
    def of(cls, dataset: str, correct: np.ndarray, confidence: np.ndarray | None) -> Evidence:
        """From boolean `correct` (n_rows,) and float `confidence` (n_rows,) or None."""
        packed = np.packbits(np.asarray(correct, dtype=bool)).tobytes()
        sure = b"" if confidence is None else np.asarray(confidence, dtype=np.float16).tobytes()
        return cls(dataset, len(correct), packed, sure)

    def correct_rows(self) -> np.ndarray:
        """Boolean array, shape (n_rows,)."""
        return np.unpackbits(np.frombuffer(self.correct, np.uint8), count=self.n_rows).astype(bool)

    def confidence_rows(self) -> np.ndarray | None:
        """float32 array, shape (n_rows,), or None where the extension gives no confidence."""
        if not self.confidence:
            return None
        return np.frombuffer(self.confidence, np.float16).astype(np.float32)


@dataclass(frozen=True, slots=True)
class ChainRule:
    """Which extensions this one may directly follow: shell patterns over names or ids. `deny` beats `allow`;
    an empty `allow` allows all. The request's own inputs are always allowed."""

    allow: tuple[str, ...] = ()
    deny: tuple[str, ...] = ()

    def permits(self, name: str, version: str) -> bool:
        """Whether the extension may consume what `name@version` produced."""
        ids = (name, f"{name}@{version}")
        if any(fnmatchcase(i, pattern) for pattern in self.deny for i in ids):
            return False
        return not self.allow or any(fnmatchcase(i, pattern) for pattern in self.allow for i in ids)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one replica needs and how many there may be. `max_batch_rows` bounds one call.

    `placement` says whether the extension may run in the gateway's own process: "inline" always, "remote" never, and
    "auto" leaves it to what was measured.
    """

    num_cpus: float = 0.0
    num_gpus: float = 0.0
    memory_mib: int = 0
    min_replicas: int = 1
    max_replicas: int = 1
    max_batch_rows: int = 256
    placement: Placement = "auto"

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise BadCard(f"placement {self.placement!r} is unknown.", hint=near(str(self.placement), PLACEMENTS))
        for name in ("num_cpus", "num_gpus", "memory_mib"):
            _at_least(name, getattr(self, name), 0)
        if not 1 <= self.min_replicas <= self.max_replicas:
            raise BadCard(f"replicas: 1 <= min ({self.min_replicas}) <= max ({self.max_replicas}) must hold.")
        _at_least("max_batch_rows", self.max_batch_rows, 1)


@dataclass(frozen=True, slots=True)
class Card:
    """One extension version: what it takes and gives, and what is known of its latency, cost and accuracy.

    `source` says where the code or model comes from, as its kind reads it (`module:attribute`,
    `models:/name@alias`, `http://host:port/v2/models/name`); `options` are passed to it. `cost` is per row, in
    the unit of your choice (the same for all cards). `may_see` None means every data tag. `thresholds` lets the
    planner build cascades that start here; `confidence_threshold` is the author's own choice among them.

    `cache` says who may get the result that was computed for another's equal rows: everyone ("shared"), requests with
    the same set of data tags ("tags"), those of the same user and tags ("user"), or nobody ("off"). Results of an
    extension that is not deterministic are never kept.
    """

    name: str
    version: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    description: str = ""
    examples: tuple[str, ...] = ()
    kind: Kind = "function"
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 0.0
    profile: LatencyProfile = LatencyProfile()
    accuracy: Accuracy = Accuracy()
    confidence_threshold: float | None = None
    thresholds: tuple[Threshold, ...] = ()
    evidence: Evidence | None = None
    may_see: frozenset[str] | None = None
    site: str = "local"
    after: ChainRule = ChainRule()
    replaces: tuple[str, ...] = ()
    deterministic: bool = True
    cache: Sharing = "shared"
    resources: Resources = Resources()

    def __post_init__(self) -> None:
        where = f"card {self.name!r}"
        if not _NAME.fullmatch(self.name):
            raise BadCard(f"{where}: a name is 1 to 127 letters, digits, '_', '.' or '-'.")
        if not _NAME.fullmatch(self.version):
            raise BadCard(f"{where}: version {self.version!r} is 1 to 127 letters, digits, '_', '.' or '-'.")
        if self.kind not in KINDS:
            raise BadCard(f"{where}: kind {self.kind!r} is unknown.", hint=near(self.kind, KINDS))
        if self.cache not in SHARINGS:
            raise BadCard(f"{where}: cache {self.cache!r} is unknown.", hint=near(str(self.cache), SHARINGS))
        if not self.inputs or not self.outputs:
            raise BadCard(f"{where}: needs at least one input and one output.")
        for side in (self.inputs, self.outputs):
            if len({port.name for port in side}) != len(side):
                raise BadCard(f"{where}: two ports have the same name.")
        _at_least(f"{where}: cost", self.cost, 0.0)

    @property
    def id(self) -> ExtensionId:
        return extension_id(self.name, self.version)

    @property
    def free_ports(self) -> tuple[str, ...]:
        """The input ports whose rows have no fixed size."""
        return tuple(port.name for port in self.inputs if -1 in port.feature.shape)

    @property
    def identity(self) -> tuple[object, ...]:
        """What the version is, apart from what is measured of it or may be said about it."""
        return self.id, self.inputs, self.outputs, self.kind, self.source, dict(self.options)

    def sees(self, tags: frozenset[str]) -> bool:
        """Whether data with these tags may reach the extension."""
        return self.may_see is None or tags <= self.may_see

    def but(self, **changes: Any) -> Card:
        """A copy with some fields changed and checked again."""
        return replace(self, **changes)
