"""Truths for rollouts: holds feedback against what was answered, and against what the other version would have said."""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import replace

from lineage.chunks import Chunk
from lineage.columns import BrokenChunk
from lineage.feedback import Verdict, judge
from lineage.journal import Joined
from lineage.outcomes import Outcome, split_trace_id
from planner.errors import FenixError
from planner.rollout.records import Observation, Pairs, Rollout

MOST_ANSWERS = 200_000  # requests whose other answer is remembered
MOST_JUDGED = 100_000
GOOD_RATING = 0.5  # from here on an answer was right
CLOSE = 0.05  # a number is right within so much of the truth
_log = logging.getLogger("fenix.rollouts")


class Answers:
    """What the versions that nobody heard would have answered, by rollout and trace id; bounded, the oldest go."""

    def __init__(self, most: int = MOST_ANSWERS) -> None:
        self._most = most
        self._chunks: deque[tuple[str, Chunk]] = deque()
        self._by_run: dict[tuple[str, str], deque[Chunk]] = {}  # rollout and run -> theirs, the oldest first
        self._n = 0
        self._judged: OrderedDict[tuple[str, str, str], None] = OrderedDict()

    def add(self, rollout: str, body: bytes) -> None:
        """Takes a chunk whose trace ids are those of the answers that were given. A damaged one is passed over."""
        try:
            chunk = Chunk.decode(body)
        except BrokenChunk as error:
            _log.error("what a version would have answered is damaged: %s", error)
            return
        self._chunks.append((rollout, chunk))
        self._by_run.setdefault((rollout, chunk.head.run), deque()).append(chunk)
        self._n += chunk.head.n_requests
        while self._n > self._most and len(self._chunks) > 1:
            id_, oldest = self._chunks.popleft()
            self._n -= oldest.head.n_requests
            theirs = self._by_run[id_, oldest.head.run]
            theirs.popleft()
            if not theirs:
                del self._by_run[id_, oldest.head.run]

    def find(self, rollout: str, trace_id: str) -> Outcome | None:
        """The other answer to a request."""
        run, seq = split_trace_id(trace_id)
        for chunk in reversed(self._by_run.get((rollout, run), ())):
            if chunk.head.first_seq <= seq <= chunk.head.last_seq and seq in chunk:
                return chunk.find(seq)
        return None

    def forget(self, rollout: str) -> None:
        """That rollout is over."""
        self._chunks = deque(one for one in self._chunks if one[0] != rollout)
        self._by_run = {key: theirs for key, theirs in self._by_run.items() if key[0] != rollout}
        self._n = sum([chunk.head.n_requests for _, chunk in self._chunks])

    def is_new(self, rollout: str, joined: Joined) -> bool:
        """Whether nothing was said of that answer before; from now on something was."""
        key = rollout, joined.feedback.trace_id, joined.feedback.output
        if key in self._judged:
            return False
        self._judged[key] = None
        if len(self._judged) > MOST_JUDGED:
            self._judged.popitem(last=False)
        return True


def judged(
    rollouts: Sequence[Rollout], given: Iterable[Joined], answers: Answers
) -> list[tuple[str, Observation | Pairs]]:
    """What feedback says of the versions, by rollout: in pairs where the other version's answer is known. What was
    changed later counts as it was first. Of requests that named their version only the champion's count."""
    found: list[tuple[str, Observation | Pairs]] = []
    for joined in given:
        for rollout in rollouts:
            version = _served_by(rollout, joined.outcome)
            if version and joined.outcome.at_s >= rollout.started_s and answers.is_new(rollout.id, joined):
                found += [(rollout.id, one) for one in _one(rollout, version, joined, answers)]
    return found


def _served_by(rollout: Rollout, outcome: Outcome) -> str:
    """The version that the answer is by; empty where it is by none, by both, or nobody drew who is to answer."""
    ran = {extension for _, extension in outcome.setting.steps}
    versions = [v for v in (rollout.champion, rollout.challenger) if f"{rollout.extension}@{v}" in ran]
    if len(versions) != 1 or outcome.setting.error:
        return ""
    is_drawn = len(outcome.setting.considered) > 1
    return versions[0] if versions[0] == rollout.champion or is_drawn else ""


def _one(rollout: Rollout, version: str, joined: Joined, answers: Answers) -> list[Observation | Pairs]:
    served = _right(joined.outcome, joined)
    if not served:
        return []
    other = answers.find(rollout.id, joined.outcome.trace_id)
    unheard: dict[int, bool] = {}
    if other is not None and joined.feedback.truth is not None:
        unheard = _right(replace(other, setting=replace(other.setting, user=joined.outcome.setting.user)), joined)
    rows = served.keys() & unheard.keys()
    if not rows:
        return [Observation(version, n_judged=len(served), n_right=sum(served.values()))]
    by_challenger = version == rollout.challenger
    mine = [served[row] for row in rows]
    theirs = [unheard[row] for row in rows]
    new, old = (mine, theirs) if by_challenger else (theirs, mine)
    both = list(zip(new, old, strict=True))
    return [
        Pairs(
            n_judged=len(both),
            n_right=both.count((True, False)),
            n_champion_right=both.count((False, True)),
            n_both_right=both.count((True, True)),
            served=by_challenger,
        )
    ]


def _right(outcome: Outcome, joined: Joined) -> dict[int, bool]:
    """By row whether the answer was right; empty where that cannot be told."""
    try:
        verdict = judge(outcome, joined.feedback)
    except FenixError:
        return {}
    if verdict.kind == "rating":
        return {0: (verdict.rating or 0.0) >= GOOD_RATING}
    return dict(zip(verdict.rows, _rows_right(verdict), strict=True))


def _rows_right(verdict: Verdict) -> Sequence[bool]:
    if verdict.kind == "label":
        return verdict.right
    return [
        error <= CLOSE * abs(float(true)) + 1e-6 for error, true in zip(verdict.absolute, verdict.true, strict=True)
    ]
