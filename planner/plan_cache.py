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
from dataclasses import replace

from planner.catalogue import Catalogue
from planner.errors import NoPlan, TermsUnmet
from planner.plan import plan
from planner.plans import PlanRequest, PlanSet

STEP = 1.05  # between neighbouring classes of a term: at most 5 % of it is given away
_LOG_STEP = math.log(STEP)


class PlanCache:
    """A bounded cache of plans, the least recently used dropped first. Not for several threads at once."""

    def __init__(self, capacity: int = 4096, planner: Callable[[PlanRequest, Catalogue], PlanSet] = plan) -> None:
        self._capacity = capacity
        self._planner = planner
        self._kept: OrderedDict[Hashable, PlanSet | NoPlan] = OrderedDict()
        self.hits = 0
        self.misses = 0

    def __len__(self) -> int:
        return len(self._kept)

    def clear(self) -> None:
        """Forgets all plans."""
        self._kept.clear()

    def get_or_plan(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet:
        """The plans for a request, made now or before. Raises what `plan` raises, now or again."""
        terms = request.terms
        key = (
            catalogue.epoch,
            request.goal,
            request.inputs,
            request.wanted,
            request.objective,
            terms.deadline_ms and _class_of(terms.deadline_ms),
            terms.max_cost and _class_of(terms.max_cost),
            terms.min_accuracy and _class_of(1.0 - terms.min_accuracy),
            terms.tags,
            (request.n_rows - 1).bit_length(),
            _class_of(request.kilo),
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
        if isinstance(kept, TermsUnmet):
            kept = self._exactly(request, catalogue)
        if isinstance(kept, NoPlan):
            raise kept
        return kept

    def _exactly(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet | NoPlan:
        """As asked, where the class of the request has no plan."""
        key = catalogue.epoch, replace(request, terms=replace(request.terms, user="", purpose="", priority=5))
        kept = self._kept.get(key)
        if kept is None:
            kept = self._plan(request, catalogue)
            self._keep(key, kept)
        return kept

    def _plan(self, request: PlanRequest, catalogue: Catalogue) -> PlanSet | NoPlan:
        try:
            return self._planner(request, catalogue)
        except NoPlan as refusal:
            return refusal.with_traceback(None)

    def _keep(self, key: Hashable, kept: PlanSet | NoPlan) -> None:
        self._kept[key] = kept
        while len(self._kept) > self._capacity:
            self._kept.popitem(last=False)


def _class_of(value: float) -> int | None:
    """The number of the largest power of STEP that is not above `value`; None for 0 and less."""
    if value <= 0.0:
        return None
    number = math.floor(math.log(value) / _LOG_STEP)
    return number - 1 if STEP**number > value else number


def _down(value: float) -> float:
    """The largest power of STEP that is not above `value`, or `value` where floats end."""
    number = _class_of(value)
    return value if number is None else STEP**number or value


def _up(value: float) -> float:
    """The smallest power of STEP that is above `value`."""
    number = _class_of(value)
    return value if number is None else STEP ** (number + 1) or value


def rounded(request: PlanRequest) -> PlanRequest:
    """The strictest request of the class: whatever honours it honours every request of the class."""
    terms = request.terms
    return replace(
        request,
        terms=replace(
            terms,
            deadline_ms=terms.deadline_ms and _down(terms.deadline_ms),
            max_cost=terms.max_cost and _down(terms.max_cost),
            min_accuracy=terms.min_accuracy and 1.0 - _down(1.0 - terms.min_accuracy),
        ),
        n_rows=1 << (request.n_rows - 1).bit_length(),
        kilo=_up(request.kilo),
    )
