"""A drift report: what was measured on a window, what it means, in numbers and in sentences. JSON and back."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import orjson

from lineage.drift.columns import Column
from lineage.drift.estimates import AccuracyEstimate
from lineage.drift.statistics import Bounded

FindingKind = Literal["drift", "joint", "range", "missing", "unseen", "shape", "few", "skipped"]


@dataclass(frozen=True, slots=True)
class Test:
    """A statistic held against its threshold. `level` is the share of windows without drift in which any column shows
    anything as strong; the threshold is where it is the share of false alarms."""

    statistic: str
    value: float
    threshold: float
    level: float


@dataclass(frozen=True, slots=True)
class Distances:
    """How far a column is from training: PSI and the divergences in nats over the groups of its bins; the others from
    the quantile sketches, with their errors, None for categories. NaN where there are no rows."""

    psi: float
    kullback_leibler: float
    jensen_shannon: float
    kolmogorov_smirnov: Bounded | None
    wasserstein: Bounded | None


@dataclass(frozen=True, slots=True)
class ColumnDrift:
    """What became of one column. `level` is the least of its tests; the medians are None for categories."""

    column: Column
    n_there: int
    n_missing: int
    distances: Distances
    tests: tuple[Test, ...]
    level: float
    drifted: bool
    median_before: float | None = None
    median: float | None = None


@dataclass(frozen=True, slots=True)
class Finding:
    """Something worth saying of a window; with `alarm` it is more than chance."""

    kind: FindingKind
    column: str
    sentence: str
    level: float
    alarm: bool


@dataclass(frozen=True, slots=True)
class DriftReport:
    """Of one window of one model's rows, between two times since 1970.

    `level` is the share of windows without drift that look as unlike training as this one, or more; `drifted` that it
    is at most `false_alarms`. `together` is the level of many columns being a little off at once. `columns` are in the
    order of their levels, the most surprising first. `since_s` is when the unbroken run of windows with drift began.
    """

    model: str
    reference: str
    from_s: float
    to_s: float
    n_rows: int
    n_skipped: int
    false_alarms: float
    level: float
    together: float
    drifted: bool
    columns: tuple[ColumnDrift, ...]
    findings: tuple[Finding, ...]
    accuracy: tuple[AccuracyEstimate, ...] = ()
    since_s: float | None = None

    @property
    def alarms(self) -> tuple[Finding, ...]:
        """The findings that are more than chance."""
        return tuple(finding for finding in self.findings if finding.alarm)

    @property
    def drifted_columns(self) -> tuple[str, ...]:
        """Names of the columns that drifted, the most surprising first; directions through all are not among them."""
        return tuple(c.column.name for c in self.columns if c.drifted and c.column.role != "joint")

    def plain(self) -> dict[str, Any]:
        """As JSON has it: what is not finite is None."""
        made: dict[str, Any] = _plain(asdict(self))
        return made

    def to_json(self) -> bytes:
        return orjson.dumps(self.plain())

    @classmethod
    def from_json(cls, data: bytes) -> DriftReport:
        """Raises ValueError for what `to_json` did not make."""
        try:
            read = orjson.loads(data)
            read["columns"] = tuple(_column(entry) for entry in read["columns"])
            read["findings"] = tuple(Finding(**entry) for entry in read["findings"])
            read["accuracy"] = tuple(AccuracyEstimate(**_numbers(entry)) for entry in read["accuracy"])
            return cls(**read)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"this is no drift report: {error}") from None


@dataclass(slots=True)
class Since:
    """Since when the windows of a model have drifted without a break, from one report to the next."""

    since_s: float | None = field(default=None)

    def after(self, drifted: bool, from_s: float, n_rows: int) -> float | None:
        """After another window; one without rows breaks nothing."""
        if n_rows:
            self.since_s = (from_s if self.since_s is None else self.since_s) if drifted else None
        return self.since_s


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbers(entry: dict[str, Any]) -> dict[str, Any]:
    return {name: math.nan if value is None else value for name, value in entry.items()}


def _bounded(entry: dict[str, Any] | None) -> Bounded | None:
    return None if entry is None else Bounded(_number(entry["value"]), _number(entry["error"]))


def _column(entry: dict[str, Any]) -> ColumnDrift:
    far = entry["distances"]
    distances = Distances(
        _number(far["psi"]),
        _number(far["kullback_leibler"]),
        _number(far["jensen_shannon"]),
        _bounded(far["kolmogorov_smirnov"]),
        _bounded(far["wasserstein"]),
    )
    tests = tuple(Test(**_numbers(test)) for test in entry["tests"])
    return ColumnDrift(**{**entry, "column": Column(**entry["column"]), "distances": distances, "tests": tests})
