"""Which segment a request belongs to: whom and what it is like, as far as that may decide which plan serves best.

A user who asks often is a segment. Others are together with those whose data has the same tags and looks alike. The
number of segments is bounded, and names that anybody can make up do not push out those that are in use: a user is
counted in a table of newcomers first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from planner.choice.policy import FEATURES
from planner.errors import BadRequest

_CUT = {"mean": (-1.0, 0.0, 1.0), "deviation": (0.1, 0.5, 1.5), "log_rows": (2.0, 4.0), "log_kilo": (1.0, 4.0)}


def bucket(features: Sequence[float], by: Iterable[str]) -> str:
    """In which of a few ranges the named features lie, as a short text; empty without features.

    Raises KeyError for a feature that has no ranges.
    """
    if not features:
        return ""
    return "".join([str(sum(features[FEATURES.index(name)] >= cut for cut in _CUT[name])) for name in by])


def of_user(user: str) -> str:
    """The segment of a user who asks often."""
    return f"user={user}"


def of_tags(tags: frozenset[str]) -> str:
    """The segment of those who do not, by the tags of their data; empty without."""
    return f"tags={','.join(sorted(tags))}" if tags else ""


class Segments:
    """Names segments, at most `most` at a time. `given_up(goal, segment)` is told which is no longer in use.

    A user has an own segment from request number `often` on, counted while the user is among the `most` newest
    newcomers. `by` are the features that segments without a user differ in; none by default, because most goals do not
    need it and every segment learns anew.
    """

    def __init__(
        self,
        most: int = 512,
        often: int = 20,
        by: Sequence[str] = (),
        given_up: Callable[[str, str], None] | None = None,
    ) -> None:
        bucket((0.0,) * len(FEATURES), by)  # an unknown name is an error now, not at the first request
        self._most, self._often, self._by, self._given_up = most, often, tuple(by), given_up
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._newcomers: OrderedDict[tuple[str, str], int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._known)

    def to_json(self) -> dict[str, Any]:
        """Which there are and who may become one, as plain data, to be kept over a restart."""
        return {
            "known": [list(key) for key in self._known],
            "newcomers": [[*key, count] for key, count in self._newcomers.items()],
        }

    def take_json(self, given: Mapping[str, Any]) -> None:
        """Those that were written, in place of its own. Raises BadRequest for anything else."""
        try:
            known = {(str(goal), str(name)): None for goal, name in given["known"]}
            newcomers = {(str(goal), str(user)): int(count) for goal, user, count in given["newcomers"]}
        except (TypeError, ValueError, KeyError):
            raise BadRequest("the segments cannot be read.") from None
        self._known = OrderedDict(list(known.items())[-self._most :])
        self._newcomers = OrderedDict(list(newcomers.items())[-self._most :])

    def of(
        self,
        goal: str,
        user: str = "",
        tags: frozenset[str] = frozenset(),
        features: Sequence[float] = (),
        n_requests: int = 1,
    ) -> str:
        """The segment of requests of a user that came together. Empty for what is like nothing in particular."""
        if user and self._is_often_here(goal, user, n_requests):
            name = of_user(user)
        else:
            parts = [of_tags(tags)] if tags else []
            alike = bucket(features, self._by) if self._by else ""
            parts += [f"like={alike}"] if alike else []
            name = " ".join(parts)
        if name:
            self._use(goal, name)
        return name

    def _is_often_here(self, goal: str, user: str, n_requests: int) -> bool:
        if (goal, of_user(user)) in self._known:
            return True
        key = (goal, user)
        count = self._newcomers.pop(key, 0) + n_requests
        if count >= self._often:
            return True
        self._newcomers[key] = count
        if len(self._newcomers) > self._most:
            self._newcomers.popitem(last=False)
        return False

    def _use(self, goal: str, name: str) -> None:
        key = (goal, name)
        if key in self._known:
            self._known.move_to_end(key)
            return
        self._known[key] = None
        if len(self._known) > self._most:
            gone = self._known.popitem(last=False)[0]
            if self._given_up is not None:
                self._given_up(*gone)
