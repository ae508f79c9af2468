"""Plans that were made before, found again in microseconds.

A plan is kept under what it depends on: the catalogue's epoch, the wanted and given features, the objective, and a
*class* of terms and sizes. A class is rounded to the strict side (deadlines and costs down, accuracies and rows up,
in geometric steps), and planning is done for the rounded request, so that a kept plan honours the terms of whoever
falls into its class. Refusals are kept too. Where the rounding itself is what makes a request impossible, it is
planned, and kept, with its exact terms.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace

from planner.catalogue import Catalogue
from planner.errors import NoPlan, TermsUnmet
from planner.plan import plan
from planner.plans import PlanRequest, PlanSet

STEP = 1.05  # between neighbouring classes of a term: at most 5 % of it is given away
_LOG_STEP = math.log(STEP)


@dataclass(frozen=True, slots=True)
class _Refusal:
    """What is kept of an error: the error itself would hold on to the frames that it passed through."""

    kind: type[NoPlan]
    message: str
    hint: str

    def error(self) -> NoPlan:
        return self.kind(self.message, hint=self.hint)


class PlanCache:
    """A bounded cache of plans, the least recently used dropped first. Not for several threads at once."""

    def __init__(self, capacity: int = 4096, planner: Callable[[PlanRequest, Catalogue], PlanSet] = plan) -> None:
        self._capacity = capacity
        self._planner = planner
        self._kept: OrderedDict[Hashable, PlanSet | _Refusal] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all plans."""
        self._kept.clear()

    def get_or_plan(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet:
        """The plans for a request, made now or before. Raises what `plan` raises, each time anew."""
        # The numbers of the class are those that are planned for, so what differs in planning differs in the key.
        key = (
            catalogue.epoch,
            request.goal,
            request.inputs,
            request.wanted,
            request.objective,
            _class_of(request),
            request.terms.tags,
            request.must_use,
            request.avoid,
        )
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            self.hits += 1
        else:
            self.misses += 1
            kept = self._plan(rounded(request), catalogue)
            self._keep(key, kept)
        if isinstance(kept, _Refusal) and issubclass(kept.kind, TermsUnmet):
            kept = self._exactly(request, catalogue)
        if isinstance(kept, _Refusal):
            raise kept.error()
        return kept

    def _exactly(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet | _Refusal:
        """As asked, where the class of the request has no plan."""
        terms = replace(request.terms, user="", purpose="", priority=5, partial=False, min_confidence=None)
        key = catalogue.epoch, replace(request, terms=terms)
        kept = self._kept.get(key)
        if kept is None:
            kept = self._plan(request, catalogue)
            self._keep(key, kept)
        return kept

    def _plan(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet | _Refusal:
        try:
            return self._planner(request, catalogue)
        except NoPlan as error:
            return _Refusal(type(error), error.message, error.hint)

    def _keep(self, key: Hashable, kept: PlanSet | _Refusal) -> None:
        self._kept[key] = kept
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)


def _number(value: float) -> int | None:
    """The number of the largest power of STEP that is not above `value`; None for 0 and where floats end."""
    if not 1e-300 < value < 1e300:
        return None
    number = math.floor(math.log(value) / _LOG_STEP)
    return number - 1 if STEP**number > value else number


def _down(value: float) -> float:
    """The largest power of STEP that is not above `value`; `value` itself where there is none."""
    number = _number(value)
    return value if number is None else STEP**number


def _up(value: float) -> float:
    """The smallest power of STEP that is above `value`; `value` itself where there is none."""
    number = _number(value)
    return value if number is None else STEP ** (number + 1)


def _closer_to_one(value: float) -> float:
    """An accuracy whose distance from 1 is a power of STEP, at least `value`; near 0, where floats are finer than
    their distance from 1, `value` itself."""
    return max(value, 1.0 - _down(1.0 - value))


def _class_of(request: PlanRequest) -> tuple[float | None, float | None, float | None, int, float]:
    """Deadline, cost, accuracy, rows and size of the strictest request of the class."""
    terms = request.terms
    return (
        None if terms.deadline_ms is None else _down(terms.deadline_ms),
        None if terms.max_cost is None else _down(terms.max_cost),
        None if terms.min_accuracy is None else _closer_to_one(terms.min_accuracy),
        1 << (request.n_rows - 1).bit_length(),
        _up(request.kilo),
    )


def rounded(request: PlanRequest) -> PlanRequest:
    """The strictest request of the class: whatever honours it honours every request of the class."""
    deadline_ms, max_cost, min_accuracy, n_rows, kilo = _class_of(request)
    terms = replace(request.terms, deadline_ms=deadline_ms, max_cost=max_cost, min_accuracy=min_accuracy)
    return replace(request, terms=terms, n_rows=n_rows, kilo=kilo)
