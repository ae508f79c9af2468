"""Latency profiles kept current: a straight line fitted to the calls as they come, older ones forgotten."""

from __future__ import annotations

from collections import deque

import numpy as np

from planner.cards import ExtensionId, LatencyProfile


class ProfileTracker:
    """Fits `fixed_ms + per_row_ms * n_rows` to the last calls of one extension.

    Least squares over the last `window` calls, each weighted by 1 / max(took, 0.05 ms) so that a few slow large
    batches do not decide about the small ones; negative coefficients are cut to zero and the other refitted.
    """

    def __init__(self, window: int = 256) -> None:
        self._calls: deque[tuple[int, float]] = deque(maxlen=window)
        self.n_calls = 0

    def observe(self, n_rows: int, took_ms: float) -> None:
        self._calls.append((n_rows, took_ms))
        self.n_calls += 1

    def profile(self, prior: LatencyProfile) -> LatencyProfile:
        """The profile these calls show; `prior` where they say nothing (fewer than 8 calls, or one batch size)."""
        if len(self._calls) < 8:
            return prior
        rows, took = np.array(self._calls, dtype=float).T
        fixed, per_row = _line(rows, took, prior.per_row_ms)
        ratios = took / np.maximum(fixed + per_row * rows, 1e-6)
        p99_ratio = float(max(1.0, np.percentile(ratios, 99) / max(np.median(ratios), 1e-6)))
        return LatencyProfile(fixed, per_row, prior.per_kilo_ms, p99_ratio, self.n_calls)


class Profiles:
    """The trackers of all extensions, and which of them have something new to say."""

    def __init__(self) -> None:
        self._trackers: dict[ExtensionId, ProfileTracker] = {}

    def observe(self, extension: ExtensionId, n_rows: int, took_ms: float) -> None:
        tracker = self._trackers.get(extension)
        if tracker is None:
            tracker = self._trackers[extension] = ProfileTracker()
        tracker.observe(n_rows, took_ms)

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone: what comes back under the same id is measured anew."""
        self._trackers = {id_: tracker for id_, tracker in self._trackers.items() if id_ in extensions}

    def changed(self, known: dict[ExtensionId, LatencyProfile], by: float = 0.25) -> dict[ExtensionId, LatencyProfile]:
        """Profiles whose prediction for 1 or for 64 rows differs from the known one by more than the share `by`."""
        news = {}
        for extension, prior in known.items():
            tracker = self._trackers.get(extension)
            if tracker is None or tracker.n_calls < 32:
                continue
            now = tracker.profile(prior)
            if any(abs(now.p50_ms(n) - prior.p50_ms(n)) > by * max(prior.p50_ms(n), 0.1) for n in (1, 64)):
                news[extension] = now
        return news


def _line(rows: np.ndarray, took: np.ndarray, prior_per_row: float) -> tuple[float, float]:
    """(fixed, per row), both at least 0, of the weighted least squares line; the prior's slope if all sizes agree."""
    weights = 1.0 / np.maximum(took, 0.05)
    if rows.min() == rows.max():
        return max(0.0, float(np.average(took, weights=weights) - prior_per_row * rows[0])), prior_per_row
    root = np.sqrt(weights)
    design = np.stack([root, root * rows], axis=1)
    fixed, per_row = np.linalg.lstsq(design, root * took, rcond=None)[0]
    if per_row < 0.0:
        return float(np.average(took, weights=weights)), 0.0
    if fixed < 0.0:
        return 0.0, float((weights * rows * took).sum() / (weights * rows * rows).sum())
    return float(fixed), float(per_row)
