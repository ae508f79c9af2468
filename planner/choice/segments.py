"""Which segment a request belongs to: whom and what it is like, as far as that may decide which plan serves best.

A user who asks often is a segment. Others are together with those whose data has the same tags and looks alike. The
number of segments is bounded, and names that anybody can make up do not push out those that are in use: a user is
counted in a table of newcomers first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from itertools import product

from planner.choice.policy import FEATURES

_CUT = {"mean": (-1.0, 0.0, 1.0), "deviation": (0.1, 0.5, 1.5), "log_rows": (2.0, 4.0), "log_kilo": (1.0, 4.0)}


def bucket(features: Sequence[float], by: Iterable[str]) -> str:
    """In which of a few ranges the named features lie, as a short text; empty without features.

    Raises KeyError for a feature that has no ranges.
    """
    if not features:
        return ""
    return "".join([str(sum(features[FEATURES.index(name)] >= cut for cut in _CUT[name])) for name in by])


def neighbours(by: Iterable[str]) -> list[str]:
    """All buckets that there are of these features."""
    return ["".join(map(str, numbers)) for numbers in product(*[range(len(_CUT[name]) + 1) for name in by])]


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
            name = f"user={user}"
        else:
            parts = [f"tags={','.join(sorted(tags))}"] if tags else []
            alike = bucket(features, self._by) if self._by else ""
            parts += [f"like={alike}"] if alike else []
            name = " ".join(parts)
        if name:
            self._use(goal, name)
        return name

    def _is_often_here(self, goal: str, user: str, n_requests: int) -> bool:
        if (goal, f"user={user}") in self._known:
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
