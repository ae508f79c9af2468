"""Which replica of an extension gets the next call: the one from which an answer is expected soonest.

Expected is the time that a replica's calls took lately, times one more than the calls it has under way. What it took
counts at once when it grows and fades when it shrinks (peak EWMA, as in Twitter's Finagle), and a call that is not
back yet counts as long as it has lasted. What was seen long ago counts less and less: a replica that was slow is tried
again, and again, until it is well.
"""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

R = TypeVar("R", bound=Hashable)

FADES_S = 5.0  # after so long without news, what a replica takes counts for a third (1/e)
EASES = 0.2  # share of a call that took less than expected in what is expected from then on
ALIKE = 1.1  # times this is no difference between two replicas
MOST_CALLS = 10_000  # under way; the oldest are forgotten


@dataclass(slots=True)
class _Replica:
    expected_s: float = 0.0
    heard_s: float = -math.inf  # when it last answered
    calls: dict[str, float] = field(default_factory=dict)  # under way, and since when; oldest first


class Replicas(Generic[R]):
    """The replicas of one extension, as seen from one process. Times are of one steady clock, in seconds."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._known: dict[R, _Replica] = {}
        self._calls: dict[str, R] = {}
        self._pairs: dict[str, list[R]] = {}  # where calls of a pair that are under way went
        self._pair_of: dict[str, str] = {}

    def ranked(self, replicas: Sequence[R], now_s: float, pair: str = "") -> list[R]:
        """The replicas by the time at which an answer is expected, soonest first; those that have a call of the same
        `pair` under way come last. Those within a tenth of each other are in random order."""
        known = [self._replica(replica) for replica in replicas]
        least_s = min([one.expected_s for one in known if one.heard_s > -math.inf], default=0.0)
        taken = self._pairs.get(pair, ()) if pair else ()
        order = [
            (replica in taken, self._soonest_s(one, least_s, now_s) * self._rng.uniform(1.0, ALIKE), i)
            for i, (replica, one) in enumerate(zip(replicas, known, strict=True))
        ]
        return [replicas[at[-1]] for at in sorted(order)]

    def _soonest_s(self, one: _Replica, least_s: float, now_s: float) -> float:
        kept = math.exp(-(now_s - one.heard_s) / FADES_S)
        expected_s = least_s + max(0.0, one.expected_s - least_s) * kept
        if one.calls:
            expected_s = max(expected_s, now_s - next(iter(one.calls.values())))
        return (len(one.calls) + 1) * max(expected_s, 1e-6)

    def sent(self, call: str, replica: R, now_s: float, pair: str = "") -> None:
        """A call went to a replica. Ids of calls are unique; sent again, it counts for the new replica alone."""
        self._forget(call)
        if len(self._calls) >= MOST_CALLS:
            self._forget(next(iter(self._calls)))
        self._replica(replica).calls[call] = now_s
        self._calls[call] = replica
        if pair:
            self._pairs.setdefault(pair, []).append(replica)
            self._pair_of[call] = pair

    def ended(self, call: str, now_s: float) -> None:
        """A call was answered, failed, or was called back: so long at least does one take there."""
        replica = self._calls.get(call)
        if replica is None:
            return
        one = self._replica(replica)
        took_s = now_s - one.calls[call]
        self._forget(call)
        if took_s >= one.expected_s:
            one.expected_s = took_s
        else:
            kept = math.exp(-(now_s - one.heard_s) / FADES_S)  # what was seen long ago is forgotten
            one.expected_s = took_s + (1.0 - EASES) * kept * (one.expected_s - took_s)
        one.heard_s = now_s

    def _forget(self, call: str) -> None:
        replica = self._calls.pop(call, None)
        if replica is None:
            return
        self._replica(replica).calls.pop(call, None)
        pair = self._pair_of.pop(call, None)
        if pair is not None:
            there = self._pairs[pair]
            there.remove(replica)
            if not there:
                del self._pairs[pair]

    def _replica(self, replica: R) -> _Replica:
        one = self._known.get(replica)
        if one is None:
            one = self._known[replica] = _Replica()
        return one

    def keep_only(self, replicas: Sequence[R]) -> None:
        """Forgets replicas that are gone, with their calls."""
        for replica in set(self._known).difference(replicas):
            for call in list(self._known[replica].calls):
                self._forget(call)
            del self._known[replica]
