"""When a distance is more than chance: thresholds for the size of the window, the columns, and how these depend.

The usual thresholds of PSI (0.1, 0.2) ignore the number of rows: with 10 bins and 100 rows it averages 0.09 without any
drift. So windows without drift are simulated: rows are drawn from those that the reference keeps, whole rows, so that
columns that go together do so here, with weights that vary as much as a training set of its size leaves open (the
Bayesian bootstrap). Every statistic of every column becomes a strength, the negative logarithm of about its own
p-value, and the greatest strength of a window is held against that of the simulated windows: so whatever the number of
columns and statistics, a share `false_alarms` of the windows without drift is above the threshold.
Sources: Rubin 1981, The Bayesian Bootstrap, Annals of Statistics 9; Westfall and Young 1993, Resampling-Based Multiple
Testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np
from scipy.special import gammaincc, gammainccinv, gammaln

from lineage.drift import statistics
from lineage.drift.bins import CELLS, GROUPS, NOT_THERE
from lineage.drift.columns import Array
from lineage.drift.reference import Reference
from lineage.drift.sketches import Sketch

OVER_GROUPS = {
    "psi": statistics.psi,
    "kullback_leibler": statistics.kullback_leibler,
    "jensen_shannon": statistics.jensen_shannon,
}
OVER_CELLS = ("kolmogorov_smirnov", "wasserstein")
STATISTICS = (*OVER_GROUPS, *OVER_CELLS)

FALSE_ALARMS = 0.01
SIMULATED = 4096
NEW_SHARE = 0.1  # of the false alarms, that are left to what is new: out of range, missing, unseen
LEAST_ROWS = 5  # of a window that is judged
_COLUMNS_AT_ONCE = 16
_TAIL = 0.05  # of the simulated greatest strengths, behind which an exponential is fitted
_FLOOR = 0.05  # of the mean of squared distances times rows: below, a column hardly varied in training
_MOST_STRENGTH = 1e4


@dataclass(frozen=True, slots=True)
class DriftSettings:
    """`false_alarms` is the share of windows without drift that may be called drifted. `statistics` are those that
    decide, any of STATISTICS. A statistic with an entry in `fixed` is held against that number instead of a calibrated
    one. Raises ValueError for what there is not."""

    false_alarms: float = FALSE_ALARMS
    statistics: tuple[str, ...] = ("psi", "kolmogorov_smirnov", "wasserstein")
    fixed: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    simulated: int = SIMULATED
    seed: int = 0

    def __post_init__(self) -> None:
        unknown = {*self.statistics, *self.fixed} - set(STATISTICS)
        if unknown:
            raise ValueError(f"there is no statistic {', '.join(sorted(unknown))}; there are {', '.join(STATISTICS)}")
        if not 0.0 < self.false_alarms < 1.0:
            raise ValueError("false_alarms is a share between 0 and 1")
        if self.simulated < 100:
            raise ValueError("fewer than 100 simulated windows say nothing about rare alarms")


class Frame:
    """A reference, laid out for comparing many windows with it at once."""

    def __init__(self, reference: Reference) -> None:
        self.reference = reference
        bins = reference.bins
        self.n_numbers = bins.n_numbers
        self.ends = bins.group_ends
        self.real = np.diff(self.ends, axis=1, prepend=0) > 0  # (n_columns, GROUPS)
        self.widths = _widths(bins.edges)
        self.cells = reference.cells(reference.sketch).astype(np.float64)
        self.n_there = self.cells.sum(axis=1)
        seen = [n for column, n in zip(reference.columns, self.n_there.tolist(), strict=True) if column.role == "joint"]
        self.n_behind = max(seen, default=0.0) or float(reference.n_rows)  # rows behind the column with the fewest
        upto = reference.sketch.upto()
        self.shares = upto / np.maximum(self.n_there[: self.n_numbers, None], 1)

    def value(self, statistic: str, sketch: Sketch) -> Array:
        """Of each column, float64 (n_columns,); NaN where it has no such statistic, or no rows."""
        if statistic in OVER_GROUPS:
            return OVER_GROUPS[statistic](self.groups(self.cells), self.groups(self.reference.cells(sketch)), self.real)
        made = np.full(len(self.cells), np.nan)
        n_there = sketch.n_there()
        live = sketch.upto() / np.maximum(n_there[:, None], 1)
        if statistic == "kolmogorov_smirnov":
            found = statistics.kolmogorov_smirnov_at(self.shares, live)
        else:
            found = statistics.wasserstein_at(self.shares, live, self.widths)
        made[: self.n_numbers] = np.where((n_there > 0) & (self.n_there[: self.n_numbers] > 0), found, np.nan)
        return made

    def groups(self, cells: Array, columns: slice = slice(None)) -> Array:
        """Cells, (..., n_columns, CELLS), put together to groups (..., n_columns, GROUPS)."""
        return self.groups_of_upto(np.cumsum(cells, axis=-1), columns)

    def groups_of_upto(self, upto: Array, columns: slice = slice(None)) -> Array:
        at = self.ends[columns] - 1
        taken = np.take_along_axis(upto, np.broadcast_to(at, (*upto.shape[:-1], GROUPS)), axis=-1)
        made: Array = np.diff(taken, axis=-1, prepend=0)
        return made

    def n_live(self, sketch: Sketch) -> Array:
        """How many values of each column are there: (n_columns,)."""
        made: Array = self.reference.cells(sketch).sum(axis=1)
        return made


@dataclass(frozen=True, slots=True, eq=False)
class Null:
    """What windows of `n_rows` rows without drift look like.

    `means` and `variances` are of the scaled statistics, (n_statistics, n_columns); `spread` those of the mean strength
    of all columns; `greatest` the greatest strengths of the simulated windows, ascending; `tail` the strength that
    a share `_TAIL` of them is above, and by how much on average.
    """

    n_rows: int
    statistics: tuple[str, ...]
    means: Array
    variances: Array
    spread: tuple[float, float]
    greatest: Array
    tail: tuple[float, float]

    def strengths(self, scaled: Array) -> Array:
        """Of scaled statistics, (..., n_statistics, n_columns)."""
        return _strength(scaled, self.means, self.variances)

    def spread_strength(self, strengths: Array) -> Array:
        """That of many columns being a little off at once, from all strengths."""
        return _strength(_mean_strength(strengths), *map(np.asarray, self.spread))

    def level(self, strength: float) -> float:
        """The share of windows without drift in which anything is as strong as this."""
        n = len(self.greatest)
        edge, scale = self.tail
        if strength > edge:
            return _TAIL * float(np.exp(-(strength - edge) / scale))
        return float(n - np.searchsorted(self.greatest, strength, "left")) / n

    def threshold(self, share: float) -> float:
        """The strength that this share of the windows without drift reaches."""
        edge, scale = self.tail
        if share < _TAIL:
            return edge + scale * float(np.log(_TAIL / share))
        return float(np.quantile(self.greatest, 1.0 - share))

    def scaled_at(self, strength: float) -> Array:
        """The scaled statistics that have this strength, (n_statistics, n_columns)."""
        shape, scale = self.means**2 / self.variances, self.variances / self.means
        made: Array = gammainccinv(shape, np.exp(-min(strength, 600.0))) * scale
        return made


def scaled(values: Array, statistic: str, n_live: Array, n_reference: Array) -> Array:
    """A statistic times what makes it about equally large for any number of rows; distances squared."""
    n_live, n_reference = np.maximum(n_live, 0), np.maximum(n_reference, 0)
    weight = n_live * n_reference / np.maximum(n_live + n_reference, 1)
    made: Array = (values**2 if statistic in OVER_CELLS else values) * weight
    return made


def unscaled(made: Array, statistic: str, n_live: Array, n_reference: Array) -> Array:
    """The other way round; infinite without rows."""
    weight = n_live * n_reference / np.maximum(n_live + n_reference, 1)
    with np.errstate(divide="ignore"):
        values: Array = made / weight
    return np.sqrt(values) if statistic in OVER_CELLS else values


def simulate(
    frame: Frame, n_rows: int, names: tuple[str, ...], rng: np.random.Generator, n_windows: int = SIMULATED
) -> Null:
    """Windows of `n_rows` rows without drift, `n_windows` of them. Takes about a second for 64 columns."""
    sample = frame.reference.sample
    n_sample, n_columns = sample.shape
    weights = rng.dirichlet(np.full(n_sample, frame.n_behind / n_sample), n_windows)
    drawn = rng.multinomial(n_rows, weights).astype(np.float32)
    del weights
    found = np.zeros((n_windows, len(names), n_columns))
    for start in range(0, n_columns, _COLUMNS_AT_ONCE):
        part = slice(start, min(n_columns, start + _COLUMNS_AT_ONCE))
        codes = sample[:, part]
        upto_code = (codes[:, :, None] <= np.arange(CELLS, dtype=np.uint8)) & (codes != NOT_THERE)[:, :, None]
        flat = upto_code.reshape(n_sample, -1).astype(np.float32)
        live = (drawn @ flat).reshape(n_windows, -1, CELLS)
        base = flat.sum(axis=0, dtype=np.float64).reshape(-1, CELLS)
        base *= frame.n_there[part, None] / np.maximum(base[:, -1:], 1.0)
        n_live, n_base = live[..., -1].astype(np.float64), base[..., -1]
        live_groups, base_groups = frame.groups_of_upto(live, part), frame.groups_of_upto(base, part)
        live /= np.maximum(live[..., -1:], 1.0)
        base_shares = (base / np.maximum(base[..., -1:], 1.0)).astype(np.float32)
        for i, name in enumerate(names):
            if name in OVER_GROUPS:
                value = OVER_GROUPS[name](base_groups, live_groups, frame.real[part])
            elif start >= frame.n_numbers:
                continue
            elif name == "kolmogorov_smirnov":
                value = statistics.kolmogorov_smirnov_at(base_shares, live)
            else:
                value = _wasserstein(frame, part, base_shares, live)
            value = scaled(value, name, n_live, n_base)
            if name in OVER_CELLS:
                value[:, np.arange(part.start, part.stop) >= frame.n_numbers] = 0.0
            found[:, i, part] = np.nan_to_num(value)
    means, variances = found.mean(axis=0), found.var(axis=0)
    for i, name in enumerate(names):
        least = _FLOOR if name == "kolmogorov_smirnov" else 1e-12 + 1e-3 * means[i].max(initial=0.0)
        # A column that is the same in every simulated window has no scale; what is new in it is found otherwise.
        means[i] = np.maximum(means[i], least)
        variances[i] = np.maximum(variances[i], least**2)
    strengths = _strength(found, means, variances)
    mean_strengths = _mean_strength(strengths)
    spread = float(mean_strengths.mean()), max(float(mean_strengths.var()), 1e-12)
    greatest = strengths.max(axis=(1, 2), initial=0.0)
    if n_columns > 1:
        greatest = np.maximum(greatest, _strength(mean_strengths, *map(np.asarray, spread)))
    edge = float(np.quantile(greatest, 1.0 - _TAIL))
    above = greatest[greatest > edge] - edge
    tail = edge, float(above.mean()) if len(above) else 1.0
    return Null(n_rows, names, means, variances, spread, np.sort(greatest), tail)


class Thresholds:
    """The nulls of one reference, made when they are needed. Deterministic by the settings' seed."""

    def __init__(self, reference: Reference, settings: DriftSettings | None = None, *, keep: int = 32) -> None:
        self.settings = settings or DriftSettings()
        self.frame = Frame(reference)
        self._keep = keep
        self._kept: dict[int, Null] = {}

    def null(self, n_rows: int) -> Null:
        """For windows of about `n_rows`: sizes within 3 % of each other share one."""
        size = grid(n_rows)
        found = self._kept.pop(size, None)
        if found is None:
            rng = np.random.default_rng((self.settings.seed, size))
            found = simulate(self.frame, size, self.settings.statistics, rng, self.settings.simulated)
        self._kept[size] = found  # the one used last is the last
        while len(self._kept) > self._keep:
            del self._kept[next(iter(self._kept))]
        return found


def grid(n_rows: int) -> int:
    """The number of rows that stands for this one: itself up to 32, then steps of 6 %."""
    if n_rows <= 32:
        return max(n_rows, 1)
    return round(32 * 1.06 ** round(float(np.log(n_rows / 32) / np.log(1.06))))


def _strength(values: Array, means: Array, variances: Array) -> Array:
    """The negative logarithm of the share of a gamma distribution with these moments that is above `values`."""
    shape, scale = means**2 / variances, variances / means
    x = np.maximum(np.nan_to_num(values, posinf=1e12), 0.0) / scale
    with np.errstate(divide="ignore", invalid="ignore"):
        made = -np.log(gammaincc(shape, x))
        # Where floats end: the first term of the asymptotic series.
        far = x - (shape - 1.0) * np.log(np.maximum(x, 1e-300)) + gammaln(shape)
    found: Array = np.minimum(np.where(made < 600.0, made, np.maximum(far, 600.0)), _MOST_STRENGTH)
    return found


def _mean_strength(strengths: Array) -> Array:
    """Over the columns, of the first statistic; a single column cannot carry it."""
    made: Array = np.minimum(strengths[..., 0, :], 20.0).mean(axis=-1)
    return made


def _wasserstein(frame: Frame, part: slice, base: Array, live: Array) -> Array:
    """Of the columns of numbers among `part`; zeros for the others."""
    made = np.zeros(live.shape[:-1])
    n = min(part.stop, frame.n_numbers) - part.start
    zero = np.zeros((*live.shape[:-2], n, 1), np.float32)
    first = np.zeros((n, 1), np.float32)
    made[:, :n] = statistics.wasserstein_at(
        np.concatenate([first, base[:n]], axis=-1),
        np.concatenate([zero, live[:, :n]], axis=-1),
        frame.widths[part.start : part.start + n],
    )
    return made


def _widths(edges: Array) -> Array:
    return np.diff(edges.astype(np.float64), axis=1)
