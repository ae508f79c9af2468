"""What counts of an outcome: whether it says anything of its plan, and how right its answer was.

Requests that failed through no fault of a plan (refused, cancelled, wrong) do not count. A truth counts each row that
was judged, a rating one; a number is right where it lies within a tenth of the standard deviation of the goal's true
numbers, as where cards are measured (`deployments/measure.py`).
"""

from __future__ import annotations

import math

from lineage.feedback import Feedback, Verdict, judge
from lineage.outcomes import Outcome, Setting
from planner.errors import DeadlineExceeded, FenixError, StepFailed

CLOSE = 0.1  # standard deviations
FEW = 10  # true numbers, before their deviation is known; until then a number is compared with its own size


def _names(kind: type[FenixError]) -> set[str]:
    return {kind.__name__}.union(*[_names(other) for other in kind.__subclasses__()])


_FAILED, _LATE = _names(StepFailed), _names(DeadlineExceeded)


def teaches(setting: Setting) -> bool:
    """Whether such requests say anything of their plan. Who was late without having left says nothing."""
    if not (setting.goal and setting.plan and setting.expected_ms > 0.0):
        return False
    return not setting.error or setting.error in _FAILED or (setting.error in _LATE and bool(setting.considered))


class Judging:
    """Holds feedback against answers. `numbers` is what is known of the true numbers of each goal and output: how many,
    their mean, and the sum of their squares around it."""

    def __init__(self) -> None:
        self.numbers: dict[tuple[str, str], tuple[float, float, float]] = {}

    def judged(self, outcome: Outcome, feedback: Feedback, is_new: bool = True) -> tuple[int, float] | None:
        """How many rows were judged, and the sum of those that were right; None where nothing can be said. Only what
        `is_new` adds to the known numbers."""
        try:
            verdict = judge(outcome, feedback)
        except FenixError:
            return None
        if verdict.kind == "rating":
            return (1, verdict.rating) if verdict.rating is not None else None
        if verdict.kind == "label":
            return (len(verdict.right), float(sum(verdict.right))) if verdict.right else None
        return self._judged_numbers(outcome.setting.goal, verdict, is_new)

    def _judged_numbers(self, goal: str, verdict: Verdict, is_new: bool) -> tuple[int, float] | None:
        true = [float(number) for number in verdict.true]
        if not true or not all(map(math.isfinite, true)):
            return None
        key = goal, verdict.output
        n, mean, around = self.numbers.get(key, (0.0, 0.0, 0.0))
        if is_new:  # Welford 1962, Technometrics 4
            for number in true:
                n += 1.0
                before = mean
                mean += (number - mean) / n
                around += (number - before) * (number - mean)
            if math.isfinite(around):
                self.numbers[key] = n, mean, around
        deviation = math.sqrt(around / n) if n >= FEW else 0.0
        close = [
            error <= CLOSE * (deviation if n >= FEW else abs(number)) + 1e-6
            for error, number in zip(verdict.absolute, true, strict=True)
        ]
        return len(close), float(sum(close))
