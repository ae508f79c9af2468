"""Goals and terms: what a client wants, and under which conditions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from planner.errors import BadCard, BadTerms, near
from planner.features import Port


def _limit(
    name: str, value: Any, *, least: float = -math.inf, most: float = math.inf, above: float | None = None
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadTerms(f"{name} is a finite number, not {str(value)[:40]!r}.")
    if above is not None and value <= above:
        raise BadTerms(f"{name} is above {above:g}, not {value}.")
    if not least <= value <= most:
        limits = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
        raise BadTerms(f"{name} is {limits}, not {value}.")


def _tags(value: Any) -> frozenset[str]:
    if isinstance(value, str):
        return frozenset(tag.strip() for tag in value.split(",") if tag.strip())
    if isinstance(value, list | tuple | set | frozenset) and all(isinstance(tag, str) for tag in value):
        return frozenset(value)
    raise BadTerms("tags are a list of texts, or one text with commas.")


@dataclass(frozen=True, slots=True)
class Terms:
    """The conditions of one request. None means no limit; every limit is hard.

    `deadline_ms` from arrival to answer; `max_cost` per row; `min_accuracy` in [0, 1]; `priority` 0 (most urgent)
    to 9, of which `planner.competition.URGENT` and lower may run fallbacks in competition; `tags` mark the data (`pii`,
    `medical`); `purpose` is free text for the journal. `partial` says that an answer may lack outputs which cannot be
    had, instead of there being none. Rows whose confidence is below `min_confidence` in [0, 1] get second opinions; it
    is the one limit that is not hard.
    """

    deadline_ms: float | None = None
    max_cost: float | None = None
    min_accuracy: float | None = None
    priority: int = 5
    user: str = ""
    tags: frozenset[str] = frozenset()
    purpose: str = ""
    partial: bool = False
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        _limit("deadline_ms", self.deadline_ms, above=0.0)
        _limit("max_cost", self.max_cost, least=0.0)
        _limit("min_accuracy", self.min_accuracy, least=0.0, most=1.0)
        _limit("min_confidence", self.min_confidence, least=0.0, most=1.0)
        if isinstance(self.priority, bool) or not isinstance(self.priority, int) or not 0 <= self.priority <= 9:
            raise BadTerms(f"priority is a whole number from 0 (most urgent) to 9, not {self.priority!r}.")
        if not isinstance(self.partial, bool):
            raise BadTerms(f"partial is true or false, not {str(self.partial)[:40]!r}.")
        for name in ("user", "purpose"):
            value = getattr(self, name)
            if not isinstance(value, str) or len(value) > 256:
                raise BadTerms(f"{name} is a text of at most 256 characters, not {str(value)[:40]!r}.")
        if any(not isinstance(tag, str) or not tag or len(tag) > 64 for tag in self.tags) or len(self.tags) > 32:
            raise BadTerms("tags are at most 32 texts of 1 to 64 characters.")

    @property
    def alone(self) -> bool:
        """Whether the request cannot travel with others, because its answer is put together for it alone."""
        return self.partial or self.min_confidence is not None

    @classmethod
    def parse(cls, given: Mapping[str, Any], defaults: Terms | None = None) -> Terms:
        """Terms from request parameters over a goal's defaults. `tags` may be a list or one text with commas.

        Raises BadTerms for an unknown name (with the nearest), a wrong type or an impossible value.
        """
        base = defaults or cls()
        if not given:
            return base
        changes: dict[str, Any] = {}
        for name, value in given.items():
            if name not in TERM_NAMES:
                raise BadTerms(f"unknown term {name!r}.", hint=near(name, TERM_NAMES))
            if name == "tags":
                changes[name] = base.tags | _tags(value)
            else:
                changes[name] = value
        return replace(base, **changes)


TERM_NAMES: frozenset[str] = frozenset(f.name for f in fields(Terms))


@dataclass(frozen=True, slots=True)
class Objective:
    """What "best" means among plans that meet the terms: the smallest

        accuracy * -ln(plan accuracy) + latency * p50 in seconds + cost * cost per row

    The defaults say that one point of accuracy (0.01) is worth 10 ms, or 0.01 units of cost.
    """

    accuracy: float = 1.0
    latency: float = 1.0
    cost: float = 1.0

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if not (math.isfinite(value) and value >= 0.0):
                raise BadCard(f"objective {f.name} is a finite number of at least 0, not {value}.")

    def score(self, accuracy: float, latency_ms: float, cost: float) -> float:
        """The value to be minimised; infinite for a plan that is never right (when accuracy counts at all)."""
        loss = 0.0 if self.accuracy == 0.0 else self.accuracy * -math.log(accuracy) if accuracy > 0.0 else math.inf
        return loss + self.latency * latency_ms / 1e3 + self.cost * cost


@dataclass(frozen=True, slots=True)
class Goal:
    """A named intent: the wanted features, what a client may give, and the default terms.

    `inputs` are the features requests bring; a request may bring a subset as long as a plan exists. `examples`
    are sentences that mean this goal. `validation` names a data set (`.npz` with one array per input port and
    one per output port) on which versions are measured; empty: none.
    """

    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    description: str = ""
    examples: tuple[str, ...] = ()
    terms: Terms = Terms()
    objective: Objective = Objective()
    validation: str = ""
    version: str = "1"

    def __post_init__(self) -> None:
        if not self.name or len(self.name) > 127 or "@" in self.name or "/" in self.name:
            raise BadCard(f"goal {self.name!r}: a name is 1 to 127 characters without '@' or '/'.")
        if not self.inputs or not self.outputs:
            raise BadCard(f"goal {self.name!r}: needs at least one input and one output.")
        for side in (self.inputs, self.outputs):
            if len({port.name for port in side}) != len(side):
                raise BadCard(f"goal {self.name!r}: two ports have the same name.")
