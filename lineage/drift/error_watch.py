"""Where truth arrives: whether a model errs more often than it did. The only one that sees the meaning change.

Detectors are river's, imported when the first watch is made.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from lineage.drift.columns import Array
from lineage.drift.packing import packed, unpacked

Detector = Literal["adwin", "page_hinkley"]
KEPT = 20_000  # errors, from which a watch is made again
_MAGIC, _VERSION = b"FXDE", 1


@dataclass(frozen=True, slots=True)
class ErrorAlarm:
    """A detector found that errors became more frequent, when it heard of the row answered at `at_s`."""

    detector: Detector
    at_s: float
    n_rows: int
    rate_before: float
    rate: float


class ErrorWatch:
    """Hears for every row with a truth whether the answer was wrong, or how far off it was.

    Getting better is no alarm. After one, both detectors begin anew. Sources: Bifet and Gavalda 2007, Learning from
    Time-Changing Data with Adaptive Windowing, SDM; Page 1954, Continuous Inspection Schemes, Biometrika 41.
    """

    def __init__(self, *, delta: float = 0.002, page_hinkley_threshold: float = 50.0) -> None:
        """`delta` is ADWIN's share of false alarms."""
        self._settings = delta, page_hinkley_threshold
        self._errors: deque[tuple[float, float]] = deque(maxlen=KEPT)  # since the last alarm
        self._n_before_kept = 0
        self._begin()

    def _begin(self) -> None:
        from river.drift import ADWIN, PageHinkley

        delta, threshold = self._settings
        self._adwin: Any = ADWIN(delta=delta)  # type: ignore[no-untyped-call]
        self._page_hinkley: Any = PageHinkley(threshold=threshold, mode="up")
        self._n, self._sum = 0, 0.0

    def add(self, errors: Array, at_s: Array) -> list[ErrorAlarm]:
        """Errors, shape (n,), boolean or not below 0, of rows answered at these times, in the order of the truth's
        arrival. What is not finite is passed over."""
        alarms = []
        for error, when in zip(np.asarray(errors, np.float64).tolist(), np.asarray(at_s).tolist(), strict=True):
            if not np.isfinite(error):
                continue
            if len(self._errors) == KEPT:
                self._n_before_kept += 1
            self._errors.append((error, when))
            alarm = self._hear(error, when)
            if alarm is not None:
                alarms.append(alarm)
                self._errors.clear()
                self._n_before_kept = 0
                self._begin()
        return alarms

    def _hear(self, error: float, at_s: float) -> ErrorAlarm | None:
        before = self._adwin.estimation
        self._n += 1
        self._sum += error
        self._adwin.update(error)
        self._page_hinkley.update(error)
        if self._adwin.drift_detected and self._adwin.estimation > before:
            return ErrorAlarm("adwin", at_s, self._n, float(before), float(self._adwin.estimation))
        if self._page_hinkley.drift_detected:
            recent = [error for error, _ in list(self._errors)[-100:]]
            return ErrorAlarm("page_hinkley", at_s, self._n, self._sum / self._n, float(np.mean(recent)))
        return None

    @property
    def rate(self) -> float:
        """The mean error of what ADWIN holds to be the present; NaN before the first."""
        return float(self._adwin.estimation) if self._n else float("nan")

    def to_bytes(self) -> bytes:
        """The last errors since the last alarm, from which `from_bytes` hears again."""
        delta, threshold = self._settings
        errors = np.array(self._errors, np.float64).reshape(-1, 2)
        return packed(_MAGIC, _VERSION, {"delta": delta, "threshold": threshold}, {"errors": errors})

    @classmethod
    def from_bytes(cls, data: bytes) -> ErrorWatch:
        """Raises ValueError for bytes that `to_bytes` did not make."""
        plain, arrays = unpacked(_MAGIC, _VERSION, data)
        try:
            made = cls(delta=plain["delta"], page_hinkley_threshold=plain["threshold"])
            errors = arrays["errors"].reshape(-1, 2)
        except (KeyError, TypeError) as error:
            raise ValueError(f"the watch cannot be read: {error}") from None
        made.add(errors[:, 0], errors[:, 1])
        return made
