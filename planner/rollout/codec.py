"""A rollout as plain data, both ways, for whoever keeps it."""

from __future__ import annotations

from functools import cache
from typing import Any

from pydantic import TypeAdapter, ValidationError

from planner.errors import BadCard
from planner.rollout.records import Rollout, RolloutPlan


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def rollout_to_dict(rollout: Rollout) -> dict[str, Any]:
    """Plain data that JSON can hold; `parse_rollout` makes an equal rollout of it."""
    plain: dict[str, Any] = _adapter(Rollout).dump_python(rollout, mode="json")
    return plain


def parse_rollout(given: Any) -> Rollout:
    """Raises BadCard that names what does not fit."""
    rollout: Rollout = _parsed(Rollout, given)
    return rollout


def plan_to_dict(plan: RolloutPlan) -> dict[str, Any]:
    """Plain data that JSON can hold; `parse_plan` makes an equal plan of it."""
    plain: dict[str, Any] = _adapter(RolloutPlan).dump_python(plan, mode="json")
    return plain


def parse_plan(given: Any) -> RolloutPlan:
    """A plan as an operator writes it; what is not given is as by default. Raises BadCard that names what is wrong."""
    plan: RolloutPlan = _parsed(RolloutPlan, given)
    return plan


def _parsed(kind: type, given: Any) -> Any:
    try:
        return _adapter(kind).validate_python(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadCard(": ".join(part for part in ("rollout", where, first["msg"]) if part)) from None
