"""The aliases `champion` and `challenger` of a registered model, held against what the cluster does: who moved what?

Both sides may have changed since they last agreed. What the cluster did since is moved in the registry; what was moved
there by hand is what somebody wants the cluster to do. Where both changed the same alias the cluster's word counts: it
was acknowledged to whoever gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from planner.rollout.records import Rollout

CHAMPION, CHALLENGER = "champion", "challenger"
ALIASES = (CHAMPION, CHALLENGER)

Aliases = Mapping[str, str]  # alias -> version


@dataclass(frozen=True, slots=True)
class Move:
    """An alias to be moved in the registry; without a version it is taken away."""

    alias: str
    version: str


@dataclass(frozen=True, slots=True)
class Wish:
    """What a hand in the registry wants: `version` to serve, to be tried, or the trial to end."""

    action: Literal["promote", "start", "abort"]
    version: str


@dataclass(frozen=True, slots=True)
class Differences:
    """What is to be done on either side, and what to tell about it."""

    moves: tuple[Move, ...] = ()
    wishes: tuple[Wish, ...] = ()
    remarks: tuple[str, ...] = ()


def aliases_of(rollout: Rollout) -> Aliases:
    """The aliases as the cluster has them."""
    return {CHAMPION: rollout.champion, **({CHALLENGER: rollout.challenger} if rollout.running else {})}


def differences(agreed: Aliases, there: Aliases, ours: Aliases) -> Differences:
    """`agreed` is what both sides last had, `there` what the registry has now, `ours` what the cluster has now."""
    moves: list[Move] = []
    wishes: list[Wish] = []
    remarks: list[str] = []
    for alias in ALIASES:
        was, is_, mine = agreed.get(alias, ""), there.get(alias, ""), ours.get(alias, "")
        if is_ == mine:
            continue
        if is_ == was:
            moves.append(Move(alias, mine))
        elif mine != was:
            remarks.append(f"{alias} was moved to {is_ or 'nothing'} in MLflow and to {mine or 'nothing'} here")
            moves.append(Move(alias, mine))
        elif alias == CHAMPION and not is_:
            remarks.append(f"the alias {alias} was taken away in MLflow; version {mine} goes on serving")
            moves.append(Move(alias, mine))
        elif alias == CHAMPION:
            wishes.append(Wish("promote", is_))
        elif not is_:
            wishes.append(Wish("abort", mine))
        elif is_ == there.get(CHAMPION, ours.get(CHAMPION, "")):
            remarks.append(f"version {is_} is champion and challenger at once in MLflow; it is champion")
            moves.append(Move(alias, mine))
        else:
            wishes.append(Wish("start", is_))
    return Differences(tuple(moves), tuple(wishes), tuple(remarks))
