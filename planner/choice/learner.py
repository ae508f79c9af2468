"""Learns from the journal which plan serves whom, and tells the gateways.

What a plan did counts for the plan that was chosen, also where another took over on the way; `judging.py` says what
counts, and how. Where feedback was changed, only the difference counts from then on.
"""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import orjson

from lineage.chunks import Chunk
from lineage.journal import Joined
from lineage.outcomes import Setting
from planner.choice.judging import Judging, teaches
from planner.choice.policy import Arm, Context, Result
from planner.choice.posteriors import Memory, Posteriors, SegmentRows
from planner.choice.segments import Segments
from planner.errors import BadRequest

MOST_SEGMENTS = 500  # of all goals
MOST_RESULTS = 2_048  # the latest, that are kept for policies which learn from each
MOST_GONE = 2_000  # segments that were given up, of which followers are told
_FORMAT = "fenix-choice-1"


@dataclass(frozen=True, slots=True)
class News:
    """What a follower at some version lacks. `whole` says that what it has is to be dropped; `life` names that of the
    learner who counted `version`."""

    life: str
    version: int
    segments: tuple[SegmentRows, ...] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Heard:
    """What came of a plan, one setting of one chunk at a time, with the propensity that it was chosen with."""

    goal: str
    segment: str
    plan: str
    result: Result


@dataclass(frozen=True, slots=True)
class Results:
    """The results up to `number`, as far as they are new to whoever asked and still kept."""

    life: str
    number: int
    heard: tuple[Heard, ...]


class ChoiceLearner:
    """The learner named "choice"; see `lineage/learners.py`."""

    name = "choice"

    def __init__(self, memory: Memory | None = None, often: int = 20) -> None:
        """`often` as in `Segments`."""
        self._memory, self._often = memory or Memory(), often
        self._life = uuid.uuid4().hex
        self._version = 0
        self._changed: dict[tuple[str, str], int] = {}  # segment -> the version that it changed in
        self._forgotten = 0  # followers behind this version are told everything
        self._results: deque[Heard] = deque(maxlen=MOST_RESULTS)
        self._n_results = 0
        self._begin(Posteriors(self._memory))

    def _begin(self, posteriors: Posteriors) -> None:
        self._posteriors = posteriors
        self._segments = Segments(MOST_SEGMENTS, self._often, given_up=self._give_up)
        self._judging = Judging()

    def hear(self, chunk: Chunk) -> None:
        """As `Learner.hear`: adds up the requests of each setting."""
        found = chunk.numbers()
        n_settings = len(chunk.settings)
        which = np.repeat(found.which, found.sizes)
        logs = np.log(np.maximum(found.latencies_ms, 1e-3, dtype=np.float64))
        counts = np.bincount(which, minlength=n_settings)
        sums = np.bincount(which, logs, n_settings)
        squares = np.bincount(which, logs * logs, n_settings)
        last_s = np.zeros(n_settings)
        np.maximum.at(last_s, found.which, found.at_s)
        for k, setting in enumerate(chunk.settings):
            n = int(counts[k])
            if n and teaches(setting):
                mean = float(sums[k]) / n
                spread = max(0.0, float(squares[k]) / n - mean * mean)
                result = Result(
                    n=n,
                    n_failed=n if setting.error else 0,
                    log_ms=0.0 if setting.error else mean,
                    log_ms_var=0.0 if setting.error else spread,
                    cost=setting.expected_cost,
                    propensity=_propensity(setting),
                    at_s=float(last_s[k]),
                )
                self._learn(setting, result, n)
        self._shows()

    def told(self, joined: Sequence[Joined]) -> None:
        """As `Learner.told`."""
        for one in joined:
            setting = one.outcome.setting
            if not (setting.goal and setting.plan):
                continue
            now = self._judging.judged(one.outcome, one.feedback)
            if now is None:
                continue
            before = None if one.before is None else self._judging.judged(one.outcome, one.before, is_new=False)
            if before is None:
                judged = Result.judged(now[1], now[0], propensity=_propensity(setting), at_s=one.received_s)
                self._learn(setting, judged, 0)
            else:
                segment = self._segments.of(setting.goal, setting.user, setting.tags, n_requests=0)
                plan = setting.chosen or setting.plan
                self._posteriors.correct(setting.goal, segment, plan, now[0] - before[0], now[1] - before[1])
        self._shows()

    def state(self) -> bytes:
        """As `Learner.state`; JSON."""
        return orjson.dumps(
            {
                "format": _FORMAT,
                "posteriors": self._posteriors.to_json(),
                "segments": self._segments.to_json(),
                "numbers": [[*key, *numbers] for key, numbers in self._judging.numbers.items()],
            }
        )

    def restore(self, state: bytes) -> None:
        """As `Learner.restore`."""
        try:
            given = orjson.loads(state)
            if given["format"] != _FORMAT:
                raise ValueError(given["format"])
            posteriors = Posteriors.from_json(given["posteriors"], self._memory)
            segments = Segments(MOST_SEGMENTS, self._often, given_up=self._give_up)
            segments.take_json(given["segments"])
            numbers = {(str(a), str(b)): (float(n), float(mean), float(m)) for a, b, n, mean, m in given["numbers"]}
        except (BadRequest, ValueError, TypeError, KeyError) as error:
            raise ValueError(f"not what was learned of plans ({error})") from None
        self._begin(posteriors)
        self._segments, self._judging.numbers = segments, numbers
        self._version += 1
        self._forgotten, self._changed = self._version, {}

    def answer(self, question: str, *arguments: Any) -> Any:
        """`since`, life, version -> News; `results`, life, number -> Results. Else raises BadRequest."""
        asked = {"since": self.since, "results": self.results}.get(question)
        if asked is None or len(arguments) != 2:
            raise BadRequest(f"{question[:40]!r} is no question of choosing.")
        return asked(*arguments)

    def since(self, life: str, version: int) -> News:
        """What changed after this version, of that life of the learner."""
        if life != self._life or not self._forgotten <= version <= self._version:
            return News(self._life, self._version, tuple(self._posteriors.all_rows()), whole=True)
        changed = [key for key, at in self._changed.items() if at > version]
        return News(self._life, self._version, tuple([self._posteriors.rows(*key) for key in changed]))

    def results(self, life: str, number: int) -> Results:
        """The results after this number, of that life of the learner, one by one; only the latest are kept."""
        n_new = self._n_results - number if life == self._life else self._n_results
        begin = len(self._results) - min(max(n_new, 0), len(self._results))
        return Results(self._life, self._n_results, tuple(islice(self._results, begin, None)))

    def _learn(self, setting: Setting, result: Result, n_requests: int) -> None:
        goal = setting.goal
        segment = self._segments.of(goal, setting.user, setting.tags, n_requests=n_requests)
        arm = Arm(setting.chosen or setting.plan, 0.0, 0, setting.expected_ms, setting.expected_cost)
        self._posteriors.learn(Context(goal, segment), arm, result)
        self._results.append(Heard(goal, segment, arm.plan, result))
        self._n_results += 1

    def _give_up(self, goal: str, segment: str) -> None:
        self._posteriors.give_up(goal, segment)
        self._show([(goal, segment), (goal, "")])

    def _shows(self) -> None:
        """Followers are told of what was just learned."""
        self._show({key[:2] for key in self._posteriors.take_delta().tallies})

    def _show(self, segments: Iterable[tuple[str, str]]) -> None:
        keys = list(segments)
        if not keys:
            return
        self._version += 1
        for key in keys:
            self._changed.pop(key, None)  # the latest last
            self._changed[key] = self._version
        while len(self._changed) > MOST_SEGMENTS + MOST_GONE:
            self._forgotten = self._changed.pop(next(iter(self._changed)))


def _propensity(setting: Setting) -> float:
    return setting.propensity or 1.0
