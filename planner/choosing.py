"""Which plan a group of requests is run by: the seam between those that travel together and whatever decides."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from planner.cards import ExtensionId
from planner.errors import FenixError
from planner.features import Array
from planner.plans import Answer, Plan, PlanSet

# Trace ids (none where there is no answer), the rows of all requests in that order, what came of them, and in how many
# ms.
Then = Callable[[Sequence[str], Mapping[str, Array], Answer | FenixError, float], None]


@dataclass(frozen=True, slots=True)
class Chosen:
    """A plan for a group, and the plans that may take over on the way, best first.

    `considered` are the ids of the plans that could have been chosen, each with the probability that it was to be;
    empty where there was no choice. `reason` says why it was this one. `then` hears, once the group has been told, what
    became of it; it must return at once and never raise.
    """

    plan: Plan
    alternatives: tuple[Plan, ...] = ()
    considered: tuple[tuple[str, float], ...] = ()
    then: Then | None = None
    reason: str = ""


class PlansWithout(Protocol):
    """What else could be planned for the same requests, by the catalogue as it is when that is asked."""

    def __call__(self, avoid: frozenset[ExtensionId], must_use: ExtensionId | None = None) -> PlanSet | None:
        """Plans that do without some extensions, and all use one, where it is given; None where there is none."""


class Chooser(Protocol):
    """Chooses for the requests of one convoy. Belongs to the convoy's event loop."""

    @property
    def usual(self) -> Plan:
        """By which most of them are run."""

    def choose(self, n_requests: int) -> Chosen:
        """The plan for so many requests that travel together. Called for every group: it takes microseconds, and never
        raises."""


class FirstPlan:
    """Always the planner's first."""

    def __init__(self, plans: PlanSet) -> None:
        self.usual = plans.best
        self._chosen = Chosen(plans.best, plans.plans[1:])

    def choose(self, n_requests: int) -> Chosen:
        return self._chosen
