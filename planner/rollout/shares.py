"""Which version serves a request, and which shares see it in the shadow. A choice takes about a microsecond.

Who is drawn is a hash of a key and the rollout's id: the same on every gateway, and unlike in the next rollout. The key
is the user's name, so that one user stays with one version, or the request's id. With one challenger, who has it at 1 %
has it at 5 % as well.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import accumulate
from zlib import crc32

from planner.errors import BadRequest
from planner.rollout.records import Rollout

_MASK = (1 << 64) - 1
_WHOLE = 1 << 64
_ODD, _ODDER = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB  # multipliers of SplitMix64: Steele, Lea, Flood 2014, OOPSLA


def _seed(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True, slots=True)
class Split:
    """How the requests of one extension are shared out.

    Each version of `challengers` serves its share, `champion` the rest; each of `shadows` answers its share of what the
    champion serves as well, unseen; the champion answers the share `checked` of what challengers serve, unseen. Who is
    answered unseen is drawn by the gateway, group by group. `id` is the rollout's. Shares are in [0, 1], those of the
    challengers at most 1 together. Raises BadRequest.
    """

    id: str
    champion: str
    challengers: tuple[tuple[str, float], ...] = ()
    shadows: tuple[tuple[str, float], ...] = ()
    checked: float = 0.0
    _versions: tuple[str, ...] = field(init=False, repr=False, compare=False)
    _ends: tuple[int, ...] = field(init=False, repr=False, compare=False)
    _seed: int = field(init=False, repr=False, compare=False)

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

    def serves(self, key: str) -> str:
        """The version that serves whoever `key` names: a user or a request."""
        ends = self._ends
        if not ends:
            return self.champion
        drawn = (crc32(key.encode()) ^ self._seed) * _ODD & _MASK
        return self._versions[bisect_right(ends, (drawn ^ drawn >> 29) * _ODDER & _MASK)]


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
