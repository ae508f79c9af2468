"""Which version serves a request, and which see it in the shadow. A choice takes about a microsecond.

Who is drawn is a hash of a key and the rollout's id: the same on every gateway, and unlike in the next rollout. The key
is the user's name, so that one user stays with one version, or the request's id. With one challenger, who has it at 1 %
has it at 5 % as well.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from zlib import crc32

from planner.errors import BadRequest
from planner.rollout.records import Rollout

_MASK = (1 << 64) - 1
_WHOLE = 1 << 64
_WORTHLESS = 1e-9  # of the best


_ODD, _ODDER = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # multipliers of SplitMix64: Steele, Lea, Flood 2014, OOPSLA


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Split:
    """How the requests of one extension are shared out.

    Each version of `challengers` serves its share, `champion` the rest; each of `shadows` answers its share of what the
    champion serves as well, unseen, drawn one by one; the champion answers the share `checked` of what challengers
    serve, unseen. `id` is the rollout's. Shares are in [0, 1], those of the challengers at most 1 together. Raises
    BadRequest.
    """

    id: str
    champion: str
    challengers: tuple[tuple[str, float], ...] = ()
    shadows: tuple[tuple[str, float], ...] = ()
    checked: float = 0.0
    _versions: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _seed: int = field(init=False, repr=False, compare=False)
    _limits: tuple[tuple[int, int, str], ...] = field(init=False, repr=False, compare=False)
    _checks: tuple[tuple[int, int, str], ...] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for version, share in (*self.challengers, *self.shadows, (self.champion, self.checked)):
            if not 0.0 <= share <= 1.0:
                raise BadRequest(f"The share of version {version} is from 0 to 1, not {share}.")
        versions = [version for version, _ in self.challengers]
        if len({self.champion, *versions}) <= len(versions):
            raise BadRequest(f"A version has one share: {', '.join([self.champion, *versions])}.")
        ends = list(accumulate(share for _, share in self.challengers))
        if ends and ends[-1] > 1.0 + 1e-9:
            raise BadRequest(f"The challengers have {ends[-1]:g} of the requests together: at most 1.")
        put = object.__setattr__
        put(self, "_versions", (*versions, self.champion))
        put(self, "_ends", tuple(min(_WHOLE, round(end * _WHOLE)) for end in ends))
        put(self, "_seed", _seed(self.id))
        put(self, "_limits", self._drawn(self.shadows))
        put(self, "_checks", self._drawn(((self.champion, self.checked),)))

    def _drawn(self, shares: tuple[tuple[str, float], ...]) -> tuple[tuple[int, int, str], ...]:
        """Seed, upper end and version of each share."""
        return tuple(
            (_seed(f"{self.id}/{version}"), round(share * _WHOLE), version) for version, share in shares if share
        )

    def serves(self, key: str) -> str:
        """The version that serves whoever `key` names: a user or a request."""
        ends = self._ends
        if not ends:
            return self.champion
        drawn = (crc32(key.encode()) ^ self._seed) * _ODD & _MASK
        return self._versions[bisect_right(ends, (drawn ^ drawn >> 29) * _ODDER & _MASK)]

    def mirrors(self, key: str, serving: str) -> tuple[str, ...]:
        """The versions that answer a request as well that `serving` serves; `key` is the request's id."""
        limits = self._limits if serving == self.champion else self._checks
        if not limits:
            return ()
        hashed = crc32(key.encode())
        chosen: tuple[str, ...] = ()
        for seed, limit, version in limits:
            drawn = (hashed ^ seed) * _ODD & _MASK
            if (drawn ^ drawn >> 29) * _ODDER & _MASK < limit:
                chosen = (*chosen, version)
        return chosen


def split_of(rollout: Rollout) -> Split:
    """How a rollout shares its extension's requests out now."""
    version = rollout.challenger
    return Split(
        rollout.id,
        rollout.champion,
        ((version, rollout.share),) if rollout.share else (),
        ((version, rollout.mirrored),) if rollout.mirrored else (),
        rollout.checked,
    )


def following(values: Mapping[str, float], least: float = 0.05, most: float = 0.95) -> dict[str, float]:
    """Shares of several healthy versions in proportion to their values, none below `least` nor above `most`.

    `values` are at least 0: the probability that each is the best (what Thompson sampling would draw), or any other
    measure. Shares add up to 1: what a bound cuts off one goes to the others in proportion. Without any value all get
    the same. Raises BadRequest where the bounds leave no room.
    """
    n = len(values)
    if not n:
        return {}
    if any(not (math.isfinite(value) and value >= 0.0) for value in values.values()):
        raise BadRequest(f"Values of versions are finite and at least 0: {dict(values)}.")
    if n == 1:
        return dict.fromkeys(values, 1.0)
    if not 0.0 <= least <= 1.0 / n <= most <= 1.0:
        raise BadRequest(f"{n} versions do not fit into shares from {least:g} to {most:g}.")
    best = max(values.values())
    if best == 0.0:
        return dict.fromkeys(values, 1.0 / n)
    worth = {version: value / best if value > _WORTHLESS * best else 0.0 for version, value in values.items()}
    n_worth = sum(value > 0.0 for value in worth.values())
    if n_worth * most + (n - n_worth) * least < 1.0:  # those without any value get what is left
        rest = (1.0 - n_worth * most) / (n - n_worth)
        return {version: most if value else rest for version, value in worth.items()}

    def shares(scale: float) -> dict[str, float]:
        return {version: min(max(scale * value, least), most) for version, value in worth.items()}

    low, high = 0.0, 1.0 / min(value for value in worth.values() if value)
    for _ in range(100):
        middle = (low + high) / 2.0
        if math.fsum(shares(middle).values()) < 1.0:
            low = middle
        else:
            high = middle
    return shares(high)
