"""Holds the sketch of a window against the reference: the one place where a drift report is made."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lineage.drift import statistics
from lineage.drift.columns import Array
from lineage.drift.estimates import AccuracyEstimate, AccuracyModel
from lineage.drift.novelty import chance_again, chance_of_at_least, chance_out_of_range
from lineage.drift.reference import Reference
from lineage.drift.report import ColumnDrift, Distances, DriftReport, Finding, FindingKind, Test
from lineage.drift.sketches import BinsDiffer, Points, Sketch, points_of
from lineage.drift.thresholds import (
    LEAST_ROWS,
    NEW_SHARE,
    OVER_GROUPS,
    DriftSettings,
    Null,
    Thresholds,
    scaled,
    unscaled,
)

_WORDS = {
    "psi": "PSI",
    "kullback_leibler": "Kullback-Leibler",
    "jensen_shannon": "Jensen-Shannon",
    "kolmogorov_smirnov": "Kolmogorov-Smirnov",
    "wasserstein": "Wasserstein",
}
_MOST_NAMES = 5
_New = tuple[FindingKind, str, str, float]  # kind, column, sentence, and the chance that there is so much of it


class Judge:
    """Makes the reports of one model version. Keeps what it simulated, so the first window of a size takes a second or
    two and the others some milliseconds. Not for several threads at once."""

    def __init__(
        self,
        reference: Reference,
        settings: DriftSettings | None = None,
        *,
        accuracy: AccuracyModel | None = None,
        model: str = "",
    ) -> None:
        self.reference = reference
        self.settings = settings or DriftSettings()
        self.accuracy = accuracy
        self.model = model
        self._thresholds = Thresholds(reference, self.settings)
        self._frame = self._thresholds.frame
        self._points = [points_of(sketch) for sketch in reference.sketch.quantiles]
        self._missing_in_training = _missing_in_training(reference)
        self._confidence = next((i for i, c in enumerate(reference.columns) if c.role == "confidence"), None)

    def report(self, sketch: Sketch, from_s: float, to_s: float) -> DriftReport:
        """Of a window; `since_s` is left to whoever sees more of them (`Since`). Raises BinsDiffer for a sketch over
        other bins, and nothing for what rows may be."""
        if sketch.bins.digest != self.reference.bins.digest:
            raise BinsDiffer("the sketch is over the bins of other training data")
        live = [points_of(one) for one in sketch.quantiles]
        tests, together = self._tests(sketch)
        new = list(self._new(sketch))
        columns = self._columns(sketch, live, tests)
        findings = [*self._changed(columns, together), *new, *self._remarks(sketch)]
        findings.sort(key=lambda finding: (not finding.alarm, finding.kind == "joint", finding.level))
        level = _least(tests, together, new)
        return DriftReport(
            self.model,
            self.reference.bins.digest,
            from_s,
            to_s,
            sketch.n_rows,
            sketch.n_skipped,
            self.settings.false_alarms,
            level,
            together,
            level <= self.settings.false_alarms,
            tuple(columns),
            tuple(findings),
            self._accuracy(live, sketch),
        )

    def prepare(self, n_rows: int) -> None:
        """Simulates what windows of about so many rows need, for a thread to do before the first one comes."""
        if n_rows >= LEAST_ROWS:
            self._thresholds.null(n_rows)

    def level(self, sketch: Sketch) -> float:
        """That of the report, for a tenth of its cost. Raises BinsDiffer."""
        if sketch.bins.digest != self.reference.bins.digest:
            raise BinsDiffer("the sketch is over the bins of other training data")
        return _least(*self._tests(sketch), list(self._new(sketch)))

    def _tests(self, sketch: Sketch) -> tuple[list[tuple[Test, ...]], float]:
        """Per column its tests; and the level of all columns together."""
        names, n_columns = self.settings.statistics, len(self.reference.columns)
        fixed = self._fixed(sketch)
        calibrated = [name for name in names if name not in self.settings.fixed]
        if sketch.n_rows < LEAST_ROWS or not calibrated:
            return fixed, 1.0
        null = self._thresholds.null(sketch.n_rows)
        n_live, n_before = self._frame.n_live(sketch), self._frame.n_there
        values = np.stack([self._frame.value(name, sketch) for name in names])
        made = np.stack([scaled(v, name, n_live, n_before) for name, v in zip(names, values, strict=True)])
        strengths = null.strengths(np.nan_to_num(made))
        limits = null.scaled_at(null.threshold(self.settings.false_alarms * (1.0 - NEW_SHARE)))
        tests: list[tuple[Test, ...]] = []
        for i in range(n_columns):
            found = list(fixed[i])
            for s, name in enumerate(names):
                if name in calibrated and not np.isnan(values[s, i]):
                    limit = float(unscaled(limits[s, i], name, n_live[i], n_before[i]))
                    level = _share(null, float(strengths[s, i]))
                    found.append(Test(name, float(values[s, i]), limit, level))
            tests.append(tuple(found))
        if n_columns < 2 or names[0] not in calibrated:
            return tests, 1.0
        return tests, _share(null, float(null.spread_strength(strengths)))

    def _fixed(self, sketch: Sketch) -> list[tuple[Test, ...]]:
        """Tests against thresholds that somebody set: level 0 above, 1 below."""
        values = {name: self._frame.value(name, sketch) for name in self.settings.fixed}
        return [
            tuple(
                Test(name, float(values[name][i]), limit, 0.0 if values[name][i] >= limit else 1.0)
                for name, limit in self.settings.fixed.items()
                if not np.isnan(values[name][i])
            )
            for i in range(len(self.reference.columns))
        ]

    def _columns(self, sketch: Sketch, live: list[Points], tests: list[tuple[Test, ...]]) -> list[ColumnDrift]:
        """The most surprising first."""
        n_numbers = self._frame.n_numbers
        n_missing = [*sketch.counts[:, -1].tolist(), *(counts.n_missing for counts in sketch.categories)]
        n_there = self._frame.n_live(sketch).tolist()
        far = self.distances(sketch, live)
        made = []
        for i, column in enumerate(self.reference.columns):
            level = min((test.level for test in tests[i]), default=1.0)
            drifted = level <= self.settings.false_alarms
            medians = (_median(self._points[i]), _median(live[i])) if i < n_numbers else (None, None)
            made.append(ColumnDrift(column, n_there[i], n_missing[i], far[i], tests[i], level, drifted, *medians))
        return sorted(made, key=lambda one: (one.level, one.column.role == "joint"))

    def distances(self, sketch: Sketch, live: list[Points]) -> list[Distances]:
        """How far each column is from training; `live` are the points of the sketch's quantiles."""
        frame, n_there = self._frame, sketch.n_there()
        over = [frame.value(name, sketch).tolist() for name in OVER_GROUPS]
        now = sketch.upto() / np.maximum(n_there[:, None], 1)
        low = statistics.kolmogorov_smirnov_at(frame.shares, now)
        most = statistics.kolmogorov_smirnov_most(_between(frame.shares), _between(now))
        made = []
        for i in range(len(self.reference.columns)):
            smirnov = wasserstein = None
            if i < frame.n_numbers:
                smirnov = statistics.kolmogorov_smirnov(self._points[i], live[i])
                wasserstein = statistics.wasserstein(self._points[i], live[i])
                if n_there[i] and frame.n_there[i]:
                    smirnov = statistics.within(smirnov, float(low[i]), float(most[i]))
            made.append(Distances(over[0][i], over[1][i], over[2][i], smirnov, wasserstein))
        return made

    def _changed(self, columns: list[ColumnDrift], together: float) -> Iterator[Finding]:
        """Columns that differ from training by more than chance."""
        for one in columns:
            if not one.drifted:
                continue
            test = min(one.tests, key=lambda test: (test.level, -test.value / max(test.threshold, 1e-12)))
            how = f"{_WORDS[test.statistic]} {_figure(test.value)}, threshold {_figure(test.threshold)}"
            kind: FindingKind = "joint" if one.column.role == "joint" else "drift"
            if kind == "joint":
                text = f"Columns no longer go together as in training: along {one.column.name}, {how}."
            elif one.median is not None and one.median_before is not None and one.median != one.median_before:
                medians = f"its median was {_figure(one.median_before)} and is {_figure(one.median)}"
                text = f"{one.column.name} is distributed otherwise than in training: {how}; {medians}."
            else:
                text = f"{one.column.name} is distributed otherwise than in training: {how}."
            yield Finding(kind, one.column.name, text, one.level, True)
        if together <= self.settings.false_alarms and not any(one.drifted for one in columns):
            text = "Many columns are a little off at once, none of them enough to be named."
            yield Finding("joint", "", text, together, True)

    def _new(self, sketch: Sketch) -> Iterator[Finding]:
        """What training hardly or never showed; with a level each."""
        n_tests = 1 + 2 * len(self.reference.columns)
        usual = self._missing_in_training
        for kind, name, text, chance in (*self._new_numbers(sketch), *self._new_categories(sketch)):
            level = min(1.0, chance * n_tests / NEW_SHARE)
            alarm = level <= self.settings.false_alarms
            if alarm or kind != "missing" or name not in usual:
                yield Finding(kind, name, text, level, alarm)
        if sketch.n_misfits:
            before = self.reference.sketch
            text = f"{_of(sketch.n_misfits, sketch.n_rows)} came in another shape or type than the training rows."
            chance = chance_again(sketch.n_misfits, sketch.n_rows, before.n_misfits, before.n_rows)
            level = min(1.0, chance * n_tests / NEW_SHARE)
            yield Finding("shape", "", text, level, level <= self.settings.false_alarms)

    def _new_numbers(self, sketch: Sketch) -> Iterator[_New]:
        bins = self.reference.bins
        for i, column in enumerate(bins.columns[: bins.n_numbers]):
            now, then = sketch.counts[i].tolist(), self.reference.sketch.counts[i].tolist()
            n, n_old, below, above = sum(now[:-1]), sum(then[:-1]), now[0], now[-2]
            if below + above and n_old:
                least, greatest = (_figure(v) for v in (self.reference.moments[i].least, bins.edges[i, -1].item()))
                text = (
                    f"{column.name}: {_of(below + above, n)} outside the training range of {least} to {greatest}"
                    f" ({below} below, {above} above)."
                )
                yield "range", column.name, text, chance_out_of_range(below + above, n, n_old)
            if column.role != "joint":
                yield from _missing(column.name, now[-1], n, then[-1], n_old)

    def _new_categories(self, sketch: Sketch) -> Iterator[_New]:
        columns = self.reference.columns[self.reference.bins.n_numbers :]
        for column, now, then in zip(columns, sketch.categories, self.reference.sketch.categories, strict=True):
            if now.n_new:
                names = sorted(now.new, key=lambda name: (-now.new[name], name))[:_MOST_NAMES]
                n_more = now.n_distinct_new() - len(names)
                text = (
                    f"{column.name}: {_of(now.n_new, now.n_there)} in categories not seen in training:"
                    f" {', '.join(map(repr, names))}{f' and {n_more} more' if n_more > 0 else ''}."
                )
                once = int((then.known == 1).sum()) + then.n_new + 1
                chance = chance_of_at_least(now.n_new, now.n_there, once, max(then.n_there - once, 1) + 1.0)
                yield "unseen", column.name, text, chance
            yield from _missing(column.name, now.n_missing, now.n_there, then.n_missing, then.n_there)

    @staticmethod
    def _remarks(sketch: Sketch) -> Iterator[Finding]:
        if sketch.n_rows < LEAST_ROWS:
            text = f"The window has {sketch.n_rows} rows; from {LEAST_ROWS} on distributions are compared."
            yield Finding("few", "", text, 1.0, False)
        if sketch.n_skipped:
            text = f"{sketch.n_skipped} more rows were not looked at, to keep up."
            yield Finding("skipped", "", text, 1.0, False)

    def _accuracy(self, live: list[Points], sketch: Sketch) -> tuple[AccuracyEstimate, ...]:
        at = self._confidence
        if self.accuracy is None or at is None or at >= len(live):
            return ()
        return self.accuracy.estimates(live[at], int(sketch.counts[at, :-1].sum()))


def _missing_in_training(reference: Reference) -> frozenset[str]:
    """Columns of which training already missed some values."""
    n_missing = [*reference.sketch.counts[:, -1].tolist(), *(c.n_missing for c in reference.sketch.categories)]
    return frozenset(column.name for column, n in zip(reference.columns, n_missing, strict=True) if n)


def _missing(name: str, missing: int, there: int, old_missing: int, old_there: int) -> Iterator[_New]:
    n, n_old = missing + there, max(old_missing + old_there, 1)
    share = f"{old_missing / n_old:.2%}"
    if missing:
        text = f"{name}: missing in {_of(missing, n)}; in training in {share}."
        yield "missing", name, text, chance_again(missing, n, old_missing, n_old)
    if there and old_missing:
        chance = chance_again(there, n, old_there, n_old)
        if chance < 1.0:
            text = f"{name}: there in {_of(there, n)}, while it was missing in {share} in training."
            yield "missing", name, text, chance


def _between(shares: Array) -> Array:
    """Cumulative shares at the edges, with a 0 before and a 1 behind them."""
    ends = np.ones((len(shares), 1))
    made: Array = np.concatenate([0.0 * ends, shares, ends], axis=1)
    return made


def _least(tests: list[tuple[Test, ...]], together: float, new: list[Finding]) -> float:
    levels = [test.level for of_column in tests for test in of_column]
    return min([together, *levels, *(finding.level for finding in new)])


def _share(null: Null, strength: float) -> float:
    return min(1.0, null.level(strength) / (1.0 - NEW_SHARE))


def _median(points: Points) -> float | None:
    if not len(points.values):
        return None
    return float(points.values[min(int(np.searchsorted(points.shares, 0.5)), len(points.values) - 1)])


def _figure(value: float) -> str:
    return f"{value:.3g}"


def _of(k: int, n: int) -> str:
    return f"{k} of {n} rows ({k / max(n, 1):.2%})"
