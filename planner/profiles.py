"""Latency profiles kept current: a line fitted to the calls as they come, older ones forgotten."""

from __future__ import annotations

from collections import deque

import numpy as np
from scipy.optimize import nnls

from planner.cards import ExtensionId, LatencyProfile


class ProfileTracker:
    """Fits `fixed_ms + per_row_ms * n_rows + per_kilo_ms * kilo` to the last calls of one extension.

    Non-negative least squares over the last `window` calls, each weighted by 1 / max(took, 0.05 ms) so that a few slow
    large batches do not decide about the small ones. A part that the calls do not vary in keeps the prior's slope.
    """

    def __init__(self, window: int = 256) -> None:
        self._calls: deque[tuple[float, float, float]] = deque(maxlen=window)
        self.n_calls = 0

    def observe(self, n_rows: int, kilo: float, took_ms: float) -> None:
        self._calls.append((n_rows, kilo, took_ms))
        self.n_calls += 1

    def profile(self, prior: LatencyProfile) -> LatencyProfile:
        """The profile these calls show; `prior` where they are too few to say (under 8)."""
        if len(self._calls) < 8:
            return prior
        rows, kilo, took = np.array(self._calls, dtype=float).T
        slopes = np.array([prior.per_row_ms, prior.per_kilo_ms])
        varied = np.array([np.ptp(rows) > 0.0, np.ptp(kilo) > 0.0])
        sizes = np.stack([rows, kilo], axis=1)
        rest = took - sizes[:, ~varied] @ slopes[~varied]
        root = np.sqrt(1.0 / np.maximum(took, 0.05))
        design = np.column_stack([np.ones_like(rows), sizes[:, varied]])
        try:
            fitted, _ = nnls(design * root[:, None], np.maximum(rest, 0.0) * root)
        except RuntimeError:  # it did not converge: the next calls will tell
            return prior
        slopes[varied] = fitted[1:]
        fixed = float(fitted[0])
        ratios = took / np.maximum(fixed + sizes @ slopes, 1e-6)
        p99_ratio = float(max(1.0, np.percentile(ratios, 99) / max(np.median(ratios), 1e-6)))
        return LatencyProfile(fixed, float(slopes[0]), float(slopes[1]), p99_ratio, self.n_calls)


class Profiles:
    """The trackers of all extensions, and which of them have something new to say."""

    def __init__(self) -> None:
        self._trackers: dict[ExtensionId, ProfileTracker] = {}

    def observe(self, extension: ExtensionId, n_rows: int, kilo: float, took_ms: float) -> None:
        tracker = self._trackers.get(extension)
        if tracker is None:
            tracker = self._trackers[extension] = ProfileTracker()
        tracker.observe(n_rows, kilo, took_ms)

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
            sizes = ((1, 0.0), (64, 0.0), (1, 10.0))
            if any(abs(now.p50_ms(*at) - prior.p50_ms(*at)) > by * max(prior.p50_ms(*at), 0.1) for at in sizes):
                news[extension] = now
        return news
