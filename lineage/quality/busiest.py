"""Which users have figures of their own: the busiest, found in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping
from heapq import nlargest
from typing import Any

from lineage.quality.outcomes import WHOLE
from lineage.quality.summary import OTHER

MOST_KNOWN = 2_048
_STAY = 1.25  # by how much a newcomer must be busier than the one whose place it takes
_HALVED_EVERY_S = 86_400.0


class Busiest:
    """The `most` users with the most requests, each day counting half as much as the next. Who has a place keeps it
    against those that are hardly busier, because changing a place costs its history.

    When too many users are known, the rarer half is forgotten and starts at 0 again (lossy counting: Manku and Motwani
    2002, VLDB).
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._n: dict[str, float] = {}
        self._kept: frozenset[str] = frozenset()
        self._halved_s = 0.0

    def segment(self, user: str) -> str:
        """The segment of a user's requests: the user, OTHER, or WHOLE for those without one."""
        return user if not user or user in self._kept else OTHER

    def count(self, requests: Mapping[str, int], now_s: float) -> None:
        """Counts requests by user, and gives the places anew."""
        if now_s - self._halved_s >= _HALVED_EVERY_S:
            self._n = {user: n / 2 for user, n in self._n.items()}
            self._halved_s = now_s
        for user, n in requests.items():
            if user != WHOLE:
                self._n[user] = self._n.get(user, 0.0) + n
        if len(self._n) > MOST_KNOWN:
            self._n = dict(nlargest(MOST_KNOWN // 2, self._n.items(), key=lambda item: item[1]))
        rank = {user: n * (_STAY if user in self._kept else 1.0) for user, n in self._n.items()}
        self._kept = frozenset(nlargest(self._most, rank, key=rank.__getitem__))

    def plain(self) -> list[Any]:
        """As JSON has it; `restore` reads it."""
        return [self._halved_s, sorted(self._kept), self._n]

    def restore(self, plain: Any) -> None:
        """Takes up what was written. Raises TypeError or ValueError where that is something else."""
        halved_s, kept, counts = plain
        self._halved_s = float(halved_s)
        self._kept = frozenset(map(str, kept))
        self._n = {str(user): float(n) for user, n in dict(counts).items()}
