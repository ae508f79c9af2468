"""The learner of quality: what follows the journal and keeps the figures of every extension version and every plan.

Requests are counted by column, thousands at a time, so none has to be left out: one costs 0.05 to 0.2 us per version
and plan that it concerns, whatever the rate, and counts and rates are exact. Only truths and ratings cost more
(12 us each), and they are all counted too.

What counts for a version: the time of its step, unless all rows were known already; a failure where it was tried and
did not do it, also when another stood in; and confidence, truth and ratings where the whole answer came from it. What
counts for a plan, of a goal: everything. Requests that failed by the client's own fault count nowhere.
"""

from __future__ import annotations

import math
import struct
import time
import zlib
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any, TypeVar

import numpy as np
import orjson

from lineage.chunks import Chunk
from lineage.errors import FenixError, NotYourRequest
from lineage.feedback import Feedback, Verdict, judge
from lineage.journal import Joined
from lineage.outcomes import Array, Outcome, Setting
from lineage.quality.busiest import Busiest
from lineage.quality.findings import Finding, Promise, Record, poor
from lineage.quality.outcomes import Outcomes, Requests
from lineage.quality.quality import Quality
from lineage.quality.summary import Summary
from lineage.quality.window import QualityWindow

# A quarter of an hour of minutes, two hours of ten minutes, a day of hours and a month of days.
RESOLUTIONS = ((60, 15), (600, 12), (3600, 24), (86400, 30))
MOST_USERS = 7
MOST_VERSIONS = MOST_PLANS = 256
MOST_WEIGHT = 10_000  # of all of them, see `QualityWindow.weight`: some 100 MiB
WEIGH_EVERY_S = 10.0
MOST_LABEL_CHARS = 64
SHOWN_PLANS = 20
OVERVIEW = 64  # versions, and as many plans, in an overview
CACHE_S = 10.0
LEVEL = 0.001  # of findings: they are asked for again and again, on windows that overlap

# Errors that say something of the request, and nothing of what should have answered it.
_OF_CLIENTS = frozenset(
    {
        "BadCard",
        "BadInput",
        "BadRequest",
        "BadTerms",
        "BodyTooLarge",
        "Cancelled",
        "NoPlan",
        "NotFound",
        "ShareExceeded",
        "TermsUnmet",
    }
)

# Flags of answers for which the plan was not run as it is.
_OTHERWISE = frozenset({"fallback", "partial", "replanned", "unsure"})

PlanKey = tuple[str, str]  # goal, plan id
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Claim:
    """What the card of a version says: see `planner.cards.Card`. `accuracy` was measured on `n_rows`, and is None where
    it is a guess; a call of n rows takes `fixed_ms + per_row_ms * n` in the median, None where that depends on more."""

    accuracy: float | None = None
    n_rows: int = 0
    fixed_ms: float | None = None
    per_row_ms: float = 0.0
    p99_ratio: float | None = None  # p99 over the median, None where too few calls were measured to tell
    peers: tuple[str, ...] = ()  # ids of versions that could stand in for it


@dataclass(frozen=True, slots=True)
class Figures:
    """What is known of a version or plan over a window, all together and by segment. `steps` are the versions that a
    plan ran last, where nothing stood in for one."""

    whole: Quality
    by_segment: Mapping[str, Quality]
    steps: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Overview:
    """Those that had requests lately, by version and by (goal, plan)."""

    versions: Mapping[str, Quality]
    plans: Mapping[PlanKey, Quality]


class QualityLearner:
    """A `lineage.learners.Learner`. Feedback that is changed counts as it is now: what was said before is taken back.

    Questions, with `window_s` None for all that is remembered:
    ("known",) -> the ids of the versions that it knows;
    ("version", id, window_s, segment or None) -> Figures;
    ("plans", goal, window_s, segment or None) -> Figures by plan id, the busiest `SHOWN_PLANS`;
    ("overview", window_s) -> Overview, at most `CACHE_S` old, of at most `OVERVIEW` versions and plans;
    ("findings", claims by version, window_s) -> Findings, at most `CACHE_S` old, of those versions and of the plans, at
    most `OVERVIEW` each; the id of a plan in them is "goal/plan".
    """

    name = "quality"

    def __init__(
        self,
        clock: Callable[[], float] = time.time,
        *,
        most: int = MOST_VERSIONS,
        most_weight: int = MOST_WEIGHT,
    ) -> None:
        """Remembers `most` versions and as many plans, those that were used last. `clock` is since 1970."""
        self._clock = clock
        self._most = most
        self._most_weight = most_weight
        self._weighed_s = -math.inf
        self._busiest = Busiest(MOST_USERS)
        self._versions: OrderedDict[str, _Held] = OrderedDict()
        self._plans: OrderedDict[PlanKey, _Held] = OrderedDict()
        self._answered: dict[Any, tuple[float, Any, Any]] = {}  # when, for what, and the answer

    # ------------------------------------------------------------------------------------------------------ hearing

    def hear(self, chunk: Chunk) -> None:
        """See `Learner.hear`."""
        now_s = self._clock()
        numbers = chunk.numbers()
        # Requests sorted by setting: then what is done is done once per setting, whatever their number.
        which = np.repeat(numbers.which, numbers.sizes)
        order = np.argsort(which, kind="stable")
        group = np.repeat(np.arange(len(numbers.which)), numbers.sizes)[order]
        at_s = np.where(np.isfinite(numbers.at_s), numbers.at_s, now_s)[group]
        latency_ms = _measured(numbers.latencies_ms)[order]
        took_ms = np.where(numbers.batch_rows > 0, _measured(numbers.took_ms), np.nan)
        confidence = numbers.confidences.astype(np.float64)[order]
        confidence[~((confidence >= 0.0) & (confidence <= 1.0))] = np.nan
        ends = np.searchsorted(which[order], np.arange(len(chunk.settings) + 1)).tolist()
        parts = list(zip(chunk.settings, ends, ends[1:], strict=False))
        users: Counter[str] = Counter()
        for setting, begin, end in parts:
            users[setting.user] += end - begin
        self._busiest.count(users, now_s)
        heard = _Heard()
        for setting, begin, end in parts:
            if begin == end or setting.error in _OF_CLIENTS:
                continue
            here = slice(begin, end)
            segment = self._busiest.segment(setting.user)
            nothing = np.full(end - begin, np.nan)
            failed = bool(setting.error)
            if setting.goal and setting.plan:
                took = nothing if failed else latency_ms[here]
                heard.add((setting.goal, setting.plan), segment, at_s[here], took, confidence[here], failed)
                if not failed and setting.flags.isdisjoint(_OTHERWISE):
                    heard.steps[setting.goal, setting.plan] = tuple([version for _, version in setting.steps])
            first = numbers.first_step[group[here]]
            ran: set[str] = set()
            for k, (_, version) in enumerate(setting.steps):
                if version not in ran:
                    ran.add(version)
                    sure = confidence[here] if version == setting.giver else nothing
                    heard.add(version, segment, at_s[here], took_ms[first + k], sure, False)
                    heard.rows(version, numbers.batch_rows[first + k])
            for version in setting.failed:
                if version not in ran:
                    ran.add(version)
                    heard.add(version, segment, at_s[here], nothing, nothing, True)
        for (key, segment), requests in heard.requests():
            self._held(key).window.count(requests, segment, now_s)
        for version, usual in heard.usual_rows():
            self._held(version).saw(usual)
        for plan, steps in heard.steps.items():
            self._held(plan).steps = steps
        self._bound(now_s)

    def told(self, joined: Sequence[Joined]) -> None:
        """See `Learner.told`."""
        new, gone = _Judged(), _Judged()
        for one in joined:
            if one.outcome.setting.error in _OF_CLIENTS:
                continue
            segment = self._busiest.segment(one.outcome.setting.user)
            new.add(one.outcome, one.feedback, segment)
            if one.before is not None:
                gone.add(one.outcome, one.before, segment)
        now_s = self._clock()
        for key, outcomes in gone.outcomes():
            self._held(key).window.take_back(outcomes, now_s)
        for key, outcomes in new.outcomes():
            self._held(key).window.judge(outcomes, now_s)
        self._bound(now_s)

    def _held(self, key: str | PlanKey) -> _Held:
        """What is held of a version or plan, which counts as used by that."""
        kept: OrderedDict[Any, _Held] = self._versions if isinstance(key, str) else self._plans
        held = kept.get(key)
        if held is None:
            held = kept[key] = _Held()
        kept.move_to_end(key)
        return held

    def _bound(self, now_s: float) -> None:
        """Forgets those that were not used for longest. Where all together hold too much, who holds most is told apart
        by fewer users first."""
        every: list[OrderedDict[Any, _Held]] = [self._versions, self._plans]
        for kept in every:
            while len(kept) > self._most:
                kept.popitem(last=False)
        if self._weighed_s <= now_s < self._weighed_s + WEIGH_EVERY_S:
            return
        self._weighed_s = now_s
        weights = {id(held): held.window.weight for kept in every for held in kept.values()}
        while sum(weights.values()) > self._most_weight:
            largest = max((held for kept in every for held in kept.values()), key=lambda held: weights[id(held)])
            if largest.window.max_segments > 1:
                largest.window.narrow(largest.window.max_segments // 2)
                weights[id(largest)] = largest.window.weight
            else:
                _, gone = max(every, key=len).popitem(last=False)
                del weights[id(gone)]

    # -------------------------------------------------------------------------------------------------------- state

    def state(self) -> bytes:
        """See `Learner.state`. Summaries are packed once, until something is counted in them."""
        packed: list[bytes] = []

        def write(summary: Summary) -> int:
            packed.append(summary.packed())
            return len(packed) - 1

        document = {
            "users": self._busiest.plain(),
            "versions": [[id_, held.rows, held.window.plain(write)] for id_, held in self._versions.items()],
            "plans": [[*key, held.steps, held.window.plain(write)] for key, held in self._plans.items()],
            "sizes": list(map(len, packed)),
        }
        head = zlib.compress(orjson.dumps(document), 1)
        body = b"".join((_SIZE.pack(len(head)), head, *packed))
        return b"".join((_MAGIC, _SIZE.pack(zlib.crc32(body)), body))

    def restore(self, state: bytes) -> None:
        """See `Learner.restore`."""
        begin = len(_MAGIC) + _SIZE.size
        if state[: len(_MAGIC)] != _MAGIC or len(state) < begin + _SIZE.size:
            raise ValueError("not the state of the quality learner.")
        if _SIZE.unpack_from(state, len(_MAGIC))[0] != zlib.crc32(memoryview(state)[begin:]):
            raise ValueError("the state of the quality learner is damaged.")
        at = begin + _SIZE.size + _SIZE.unpack_from(state, begin)[0]
        versions: OrderedDict[str, _Held] = OrderedDict()
        plans: OrderedDict[PlanKey, _Held] = OrderedDict()
        busiest = Busiest(MOST_USERS)
        try:
            document = orjson.loads(zlib.decompress(state[begin + _SIZE.size : at]))
            packed = []
            for size in document["sizes"]:
                packed.append(state[at : at + size])
                at += size

            def read(number: int) -> Summary:
                return Summary.unpack(packed[number])

            for id_, rows, plain in document["versions"]:
                versions[str(id_)] = _Held(QualityWindow.of(plain, read), float(rows))
            for goal, plan, steps, plain in document["plans"]:
                held = _Held(QualityWindow.of(plain, read), steps=tuple(map(str, steps)))
                plans[str(goal), str(plan)] = held
            busiest.restore(document["users"])
        except (zlib.error, LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not the state of the quality learner: {error!r}.") from None
        self._versions, self._plans, self._busiest = versions, plans, busiest
        self._answered = {}

    # ------------------------------------------------------------------------------------------------------ answers

    def answer(self, question: str, *arguments: Any) -> Any:
        """See the class. Raises FenixError for another question."""
        answers: dict[str, Callable[..., Any]] = {
            "known": lambda: tuple(self._versions),
            "version": self._version,
            "plans": self._plans_of,
            "overview": self._overview,
            "findings": self._findings,
        }
        if question not in answers:
            raise FenixError(f"the quality learner is not asked {question[:40]!r}.", hint=f"Ask {', '.join(answers)}.")
        return answers[question](*arguments)

    def _version(self, id_: str, window_s: float | None, segment: str | None = None) -> Figures:
        held = self._versions.get(id_) or _Held()
        return self._figures(held, window_s, segment)

    def _plans_of(self, goal: str, window_s: float | None, segment: str | None = None) -> dict[str, Figures]:
        now_s = self._clock()
        brief = {
            plan: held.window.quality(now_s, since_s=_since_s(now_s, window_s), segment=segment, brief=True)
            for (of, plan), held in self._plans.items()
            if of == goal
        }
        shown = sorted((plan for plan in brief if brief[plan].n or brief[plan].n_judged), key=lambda p: -brief[p].n)
        return {plan: self._figures(self._plans[goal, plan], window_s, segment) for plan in shown[:SHOWN_PLANS]}

    def _figures(self, held: _Held, window_s: float | None, segment: str | None) -> Figures:
        now_s = self._clock()
        since_s = _since_s(now_s, window_s)
        whole = held.window.quality(now_s, since_s=since_s, segment=segment)
        if segment is not None:
            return Figures(whole, {}, held.steps)
        return Figures(whole, held.window.by_segment(now_s, since_s=since_s, brief=True), held.steps)

    def _overview(self, window_s: float | None) -> Overview:
        return self._cached(("overview", window_s), None, lambda: self._look(window_s))

    def _look(self, window_s: float | None) -> Overview:
        now_s = self._clock()
        since_s = _since_s(now_s, window_s)

        def latest(kept: OrderedDict[Any, _Held]) -> dict[Any, Quality]:
            last = list(kept.items())[-OVERVIEW:]
            found = {key: held.window.quality(now_s, since_s=since_s) for key, held in last}
            return {key: quality for key, quality in found.items() if quality.n or quality.n_judged}

        return Overview(latest(self._versions), latest(self._plans))

    def _findings(self, claims: Mapping[str, Claim], window_s: float | None) -> tuple[Finding, ...]:
        given = dict(claims)
        return self._cached(("findings", window_s), given, lambda: self._find(given, window_s))

    def _find(self, claims: Mapping[str, Claim], window_s: float | None) -> tuple[Finding, ...]:
        now_s = self._clock()
        records = []
        claimed = [(id_, held, claims[id_]) for id_, held in self._versions.items() if id_ in claims]
        for id_, held, claim in claimed[-OVERVIEW:]:
            records.append(_record(id_, held, held.promise(claim), claim.peers, window_s, now_s))
        for (goal, plan), held in list(self._plans.items())[-OVERVIEW:]:
            records.append(_record(f"{goal}/{plan}", held, Promise(), (), window_s, now_s))
        return poor([record for record in records if record.now.n or record.now.n_judged], level=LEVEL)

    def _cached(self, name: tuple[str, float | None], given: object, make: Callable[[], T]) -> T:
        """What was answered lately, if it was asked in the same way."""
        now_s = self._clock()
        known = self._answered.get(name)
        if known is None or not known[0] <= now_s < known[0] + CACHE_S or known[1] != given:
            if len(self._answered) >= OVERVIEW:
                self._answered.clear()
            known = self._answered[name] = now_s, given, make()
        made: T = known[2]
        return made


_MAGIC = b"FXQ1"
_SIZE = struct.Struct("<I")
_MEMORY = 0.1  # of the usual number of rows: the share of the last chunk


@dataclass(slots=True)
class _Held:
    """What is held of one version or plan. `rows` is how many a call of a version usually has, 0 while that is not
    known; `steps` are those of a plan."""

    window: QualityWindow = field(default_factory=lambda: QualityWindow(RESOLUTIONS, MOST_USERS + 1))
    rows: float = 0.0
    steps: tuple[str, ...] = ()

    def saw(self, rows: float) -> None:
        """Calls had so many rows on average."""
        self.rows += (rows - self.rows) * (_MEMORY if self.rows else 1.0)

    def promise(self, claim: Claim) -> Promise:
        """What the card promises of the calls as they usually are."""
        latency_ms = {}
        if claim.fixed_ms is not None:
            p50_ms = claim.fixed_ms + claim.per_row_ms * max(1.0, self.rows)
            latency_ms = {0.5: p50_ms} if claim.p99_ratio is None else {0.5: p50_ms, 0.99: p50_ms * claim.p99_ratio}
        return Promise(claim.accuracy, claim.n_rows, latency_ms)


class _Heard:
    """The requests of a chunk by (version or plan, segment), as they are gathered."""

    def __init__(self) -> None:
        self._parts: dict[tuple[str | PlanKey, str], list[tuple[Array, Array, Array, bool]]] = {}
        self._rows: dict[str, list[Array]] = {}
        self.steps: dict[PlanKey, tuple[str, ...]] = {}

    def add(self, key: str | PlanKey, segment: str, at_s: Array, took_ms: Array, sure: Array, failed: bool) -> None:
        self._parts.setdefault((key, segment), []).append((at_s, took_ms, sure, failed))

    def rows(self, version: str, batch_rows: Array) -> None:
        self._rows.setdefault(version, []).append(batch_rows)

    def requests(self) -> Iterable[tuple[tuple[str | PlanKey, str], Requests]]:
        for at, parts in self._parts.items():
            at_s, took_ms, sure = (np.concatenate([part[k] for part in parts]) for k in range(3))
            failed = np.repeat([part[3] for part in parts], [len(part[0]) for part in parts])
            yield at, Requests(at_s, took_ms, failed, sure)

    def usual_rows(self) -> Iterable[tuple[str, float]]:
        for version, parts in self._rows.items():
            rows = np.concatenate(parts)
            if len(computed := rows[rows > 0]):
                yield version, float(computed.mean())


class _Judged:
    """Truths and ratings by version or plan, as they are gathered: labels and numbers apart."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str | PlanKey, bool], list[tuple[Any, ...]]] = {}

    def add(self, outcome: Outcome, feedback: Feedback, segment: str) -> None:
        """Takes in what feedback says of an answer; what does not fit it is passed over."""
        try:
            verdict = judge(outcome, feedback)
        except (FenixError, NotYourRequest):
            return
        rows = list(_rows_of(outcome, verdict, segment))
        for key in _concerned(outcome.setting):
            if rows:
                self._rows.setdefault((key, verdict.kind == "value"), []).extend(rows)

    def outcomes(self) -> Iterable[tuple[str | PlanKey, Outcomes]]:
        for (key, numeric), rows in self._rows.items():
            at_s, segment, sure, predicted, truth, rating = zip(*rows, strict=True)
            yield (
                key,
                Outcomes.of(
                    at_s,
                    confidence=sure,
                    predicted=predicted,
                    truth=truth,
                    rating=rating,
                    segment=segment,
                    numeric=numeric,
                ),
            )


def _concerned(setting: Setting) -> list[str | PlanKey]:
    """Whose figures the truth about an answer goes to."""
    found: list[str | PlanKey] = [setting.giver] if setting.giver else []
    if setting.goal and setting.plan:
        found.append((setting.goal, setting.plan))
    return found


def _rows_of(outcome: Outcome, verdict: Verdict, segment: str) -> Iterable[tuple[Any, ...]]:
    """Time, segment, confidence, prediction, truth and rating of each row that was judged.

    The journal has the confidence of the least sure row, so it counts only where there is one row. Where an answer has
    several outputs, their labels are told apart by name; of numbers, which cannot be added up over different outputs,
    those of the first one count.
    """
    at_s = outcome.at_s if math.isfinite(outcome.at_s) else 0.0
    sure = math.nan
    if outcome.n_rows == 1 and outcome.confidence is not None and 0.0 <= outcome.confidence <= 1.0:
        sure = outcome.confidence
    names = outcome.outputs.names
    if verdict.kind == "rating":
        yield at_s, segment, math.nan, None, None, verdict.rating
    elif verdict.kind == "value":
        if verdict.output == min(names, default=""):
            for said, true in zip(verdict.said, verdict.true, strict=True):
                yield at_s, segment, sure, said, true, math.nan
    else:
        which = f"{verdict.output}=" if len(names) > 1 else ""
        for said, true in zip(verdict.said, verdict.true, strict=True):
            yield at_s, segment, sure, _label(which, said), _label(which, true), math.nan


def _label(which: str, value: Any) -> Any:
    """A label as it is counted; long ones are cut, and told apart by a digest."""
    if not which and not isinstance(value, str):
        return value
    text = f"{which}{'true' if value is True else 'false' if value is False else value}"
    if len(text) <= MOST_LABEL_CHARS:
        return text
    return f"{text[: MOST_LABEL_CHARS - 12]}... {blake2b(text.encode(), digest_size=4).hexdigest()}"


def _record(
    id_: str, held: _Held, promise: Promise, peers: tuple[str, ...], window_s: float | None, now_s: float
) -> Record:
    since_s, window = _since_s(now_s, window_s), held.window
    by_segment = window.by_segment(now_s, since_s=since_s, brief=True)
    now = window.quality(now_s, since_s=since_s)
    if window_s is None:
        return Record(id_, now, promise, None, peers, by_segment)
    past_s = since_s - window_s
    past = window.quality(now_s, since_s=past_s, until_s=since_s, brief=True)
    past_by_segment = window.by_segment(now_s, since_s=past_s, until_s=since_s, brief=True)
    return Record(id_, now, promise, past if past.n else None, peers, by_segment, past_by_segment)


def _since_s(now_s: float, window_s: float | None) -> float:
    return -math.inf if window_s is None else now_s - window_s


def _measured(values: Array) -> Array:
    """As float64, with NaN for what no clock can have shown."""
    found: Array = values.astype(np.float64)
    found[~((found >= 0.0) & (found < math.inf))] = np.nan
    return found
