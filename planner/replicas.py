"""Which replica of an extension gets the next call: the one from which an answer is expected soonest.

Expected is the time that a replica's calls took lately, times one more than the calls it has under way. What it took
counts at once when it grows and fades when it shrinks (peak EWMA, as in Twitter's Finagle), and a call that is not
back yet counts as long as it has lasted. What was seen long ago counts less and less: a replica that was slow is tried
again, and again, until it is well. Calls that failed or were called back make no replica look quick.
"""

from __future__ import annotations

import math
import random
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)

FADES_S = 5.0  # after so long without news, what a replica takes counts for a third (1/e)
EASES = 0.2  # share of a call that took less than expected in what is expected from then on
ALIKE = 1.1  # times this is no difference between two replicas
LEAVES_S = 0.1  # a call for which a replica was chosen leaves within this time, or never
LOST_S = 120.0  # a call that is not back by then will not come back
DOUBTS_S = 2.0  # how long a replica that could not be reached comes last
MOST_CALLS = 10_000  # remembered; the oldest are forgotten


@dataclass(slots=True)
class _Replica:
    expected_s: float = 0.0
    heard_s: float = -math.inf  # when it last answered
    chosen_s: list[float] = field(default_factory=list)  # for calls that have not left yet, oldest first
    sent_s: list[float] = field(default_factory=list)  # calls under way, oldest first


@dataclass(slots=True)
class _Call(Generic[R]):
    replica: R
    began_s: float
    pair: str
    accepted: bool = False
    took_s: float | None = None  # once it has ended


class Replicas(Generic[R]):
    """The replicas of one extension, as seen from one process. Times are of one steady clock, in seconds.

    A call is first `chosen` for, then `sent`, then `accepted` if the replica dealt with it, and at last `ended`; the
    last two come in either order. A call that never leaves counts for a moment only.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: dict[R, _Replica] = {}
        self._calls: OrderedDict[str, _Call[R]] = OrderedDict()
        self._pairs: dict[str, list[R]] = {}  # where calls of a pair went
        self._doubted: dict[R, float] = {}  # until when

    def ranked(self, replicas: Sequence[R], now_s: float, pair: str = "") -> list[R]:
        """The replicas by the time at which an answer is expected, soonest first. Those that have a call of the same
        `pair` come last, and after them those that could not be reached just now. What is within a tenth of each other
        is in random order."""
        known = [self._replica(replica) for replica in replicas]
        least_s = min([one.expected_s for one in known if one.heard_s > -math.inf], default=0.0)
        taken = self._pairs.get(pair, ()) if pair else ()
        order = [
            (
                self._doubted.get(replica, -math.inf) > now_s,
                replica in taken,
                _soonest_s(one, least_s, now_s) * self._rng.uniform(1.0, ALIKE),
                i,
            )
            for i, (replica, one) in enumerate(zip(replicas, known, strict=True))
        ]
        return [replicas[at[-1]] for at in sorted(order)]

    def is_doubted(self, replica: R) -> bool:
        """Whether the replica could not be reached, and has not answered since."""
        return replica in self._doubted

    def chosen(self, call: str, replica: R, now_s: float, pair: str = "") -> None:
        """A call is about to leave for a replica. Ids of calls are unique; one that is tried again begins anew."""
        self._forget(call)
        if len(self._calls) >= MOST_CALLS:
            self._forget(next(iter(self._calls)))
        self._calls[call] = _Call(replica, now_s, pair)
        self._replica(replica).chosen_s.append(now_s)
        if pair:
            self._pairs.setdefault(pair, []).append(replica)

    def sent(self, replica: R, now_s: float) -> None:
        """A call has left for a replica."""
        one = self._replica(replica)
        if one.chosen_s:
            del one.chosen_s[0]
        one.sent_s.append(now_s)

    def accepted(self, call: str, now_s: float) -> None:
        """The replica has dealt with a call."""
        seen = self._calls.get(call)
        if seen is None:
            return
        seen.accepted = True
        if seen.took_s is not None:
            self._learn(call, seen, now_s)

    def ended(self, call: str, replica: R, now_s: float) -> None:
        """A call to a replica was answered, failed, or was called back: so long at least it took there."""
        one = self._replica(replica)
        seen = self._calls.get(call)
        if seen is None or seen.replica != replica:  # it is tried elsewhere by now
            del one.sent_s[:1]
            return
        at = min(bisect_left(one.sent_s, seen.began_s), len(one.sent_s) - 1)
        del one.sent_s[max(0, at) : at + 1]
        seen.took_s = now_s - seen.began_s
        self._unpair(seen)
        if seen.took_s >= one.expected_s > 0.0:
            one.expected_s, one.heard_s = seen.took_s, now_s
        if seen.accepted:
            self._learn(call, seen, now_s)

    def doubt(self, replica: R, now_s: float) -> None:
        """A replica could not be reached."""
        self._doubted[replica] = now_s + DOUBTS_S

    def trust(self, replica: R) -> None:
        """A replica was reached."""
        self._doubted.pop(replica, None)

    def keep_only(self, replicas: Sequence[R]) -> None:
        """Forgets replicas that are gone, with their calls."""
        gone = set(self._known).difference(replicas)
        if gone:
            for call in [call for call, seen in self._calls.items() if seen.replica in gone]:
                self._forget(call)
            for replica in gone:
                del self._known[replica]
                self._doubted.pop(replica, None)

    def _learn(self, call: str, seen: _Call[R], now_s: float) -> None:
        """From a call that came to its end in the replica."""
        one, took_s = self._replica(seen.replica), seen.took_s or 0.0
        if took_s < one.expected_s:
            kept = math.exp(-(now_s - one.heard_s) / FADES_S)  # what was seen long ago is forgotten
            took_s += (1.0 - EASES) * kept * (one.expected_s - took_s)
        one.expected_s, one.heard_s = took_s, now_s
        self._forget(call)

    def _forget(self, call: str) -> None:
        seen = self._calls.pop(call, None)
        if seen is not None:
            self._unpair(seen)

    def _unpair(self, seen: _Call[R]) -> None:
        there = self._pairs.get(seen.pair)
        if there is not None and seen.replica in there:
            there.remove(seen.replica)
            if not there:
                del self._pairs[seen.pair]

    def _replica(self, replica: R) -> _Replica:
        one = self._known.get(replica)
        if one is None:
            one = self._known[replica] = _Replica()
        return one


def _soonest_s(one: _Replica, least_s: float, now_s: float) -> float:
    """When an answer is expected; `least_s` is what the quickest replica takes."""
    while one.chosen_s and one.chosen_s[0] < now_s - LEAVES_S:
        del one.chosen_s[0]
    while one.sent_s and one.sent_s[0] < now_s - LOST_S:
        del one.sent_s[0]
    kept = math.exp(-(now_s - one.heard_s) / FADES_S)
    expected_s = least_s + max(0.0, one.expected_s - least_s) * kept
    if one.sent_s:
        expected_s = max(expected_s, now_s - one.sent_s[0])
    return (len(one.chosen_s) + len(one.sent_s) + 1) * max(expected_s, 1e-6)
