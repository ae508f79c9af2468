"""Outcomes remembered by time and segment, so that any window can be asked for at small cost. Bounded memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from itertools import pairwise
from typing import Any

import numpy as np

from lineage.quality.outcomes import Outcomes, Requests
from lineage.quality.quality import Quality, quality_of
from lineage.quality.summary import OTHER, Summary

# Width of a slot in seconds and how many are kept: an hour of minutes, two days of hours, two months of days.
RESOLUTIONS: tuple[tuple[int, int], ...] = ((60, 60), (3600, 48), (86400, 60))
MAX_SEGMENTS = 16

_Slot = tuple[int, int]  # width and number: it begins at width * number seconds; width 0 holds all that is older
_OLDER: _Slot = (0, 0)


class QualityWindow:
    """The summaries of one extension version or plan, per slot of time and per segment. Not thread-safe.

    Minutes that are too old are put together to hours, hours to days, and days to "older". Of segments the
    `max_segments` most frequent are kept apart, the others are OTHER; a segment that becomes frequent later is kept
    from then on (the space-saving algorithm: Metwally, Agrawal and El Abbadi 2005, ICDT).
    """

    def __init__(self, resolutions: Sequence[tuple[int, int]] = RESOLUTIONS, max_segments: int = MAX_SEGMENTS) -> None:
        """Raises ValueError where a slot is not made of whole slots of the finer kind."""
        widths = [width for width, _ in resolutions]
        if not widths or any(b % a or b <= a for a, b in pairwise(widths)):
            raise ValueError("each resolution is a multiple of the one before.")
        if max_segments < 1 or any(width < 1 or count < 1 for width, count in resolutions):
            raise ValueError("resolutions and max_segments are at least 1.")
        self._resolutions = tuple((int(width), int(count)) for width, count in resolutions)
        self._max_segments = max_segments
        self._slots: dict[_Slot, dict[str, Summary]] = {}
        self._frequent: dict[str, float] = {}  # segments that are kept apart, with their rank
        self._newest_s = -math.inf

    def add(self, outcomes: Outcomes, now_s: float) -> None:
        """Counts requests that were answered or failed, with their truth as far as it is known already."""
        self._add(outcomes, now_s, counted=True)

    def judge(self, outcomes: Outcomes, now_s: float) -> None:
        """Counts truth and ratings that came late, of requests that were added before; `at_s` is still the request's.

        Each feedback once; before one that was changed counts anew, `take_back` what was said before.
        """
        self._add(outcomes, now_s, counted=False)

    def take_back(self, outcomes: Outcomes, now_s: float) -> None:
        """Takes away truth and ratings that were counted before; the requests stay counted."""
        outcomes = _not_ahead(outcomes, now_s)
        for slot, segment, at in self._sorted(outcomes, counted=False):
            self._summary(slot, segment).take_back(_part(outcomes, at))

    def count(self, requests: Requests, segment: str, now_s: float) -> None:
        """Counts requests of one segment that were answered or failed, thousands at a time: 0.2 us each."""
        if not len(requests):
            return
        at_s = np.minimum(requests.at_s, now_s)
        self._age(max(self._newest_s, float(at_s.max())))
        self._admit(segment, len(requests))
        kept = segment if segment in self._frequent else OTHER
        requests = Requests(at_s, requests.latency_ms, requests.failed, requests.confidence)
        width = self._resolutions[0][0]
        minutes, minute_of = np.unique(np.floor(at_s / width), return_inverse=True)
        places = [self._place(minute * width) for minute in minutes.tolist()]
        known = {place: number for number, place in enumerate(dict.fromkeys(places))}
        place_of = np.array([known[place] for place in places])[minute_of]
        for place, number in known.items():
            part = requests if len(known) == 1 else requests.part(place_of == number)
            self._summary(place, kept).count(part)

    def _add(self, outcomes: Outcomes, now_s: float, counted: bool) -> None:
        outcomes = _not_ahead(outcomes, now_s)
        for slot, segment, at in self._sorted(outcomes, counted):
            self._summary(slot, segment).add(_part(outcomes, at), counted, True)

    def _sorted(self, outcomes: Outcomes, counted: bool) -> list[tuple[_Slot, str, list[int]]]:
        """Which outcomes, by their numbers, belong to which slot and segment."""
        if not len(outcomes):
            return []
        self._age(max(self._newest_s, float(outcomes.at_s.max())))
        for name in set(outcomes.segment):
            self._admit(name, outcomes.segment.count(name) if counted else 0)
        groups: dict[tuple[_Slot, str], list[int]] = {}
        minutes = np.floor(outcomes.at_s / self._resolutions[0][0]).astype(np.int64).tolist()
        places: dict[int, _Slot] = {}
        for i, (minute, segment) in enumerate(zip(minutes, outcomes.segment, strict=True)):
            if minute not in places:
                places[minute] = self._place(float(minute * self._resolutions[0][0]))
            kept = segment if segment in self._frequent else OTHER
            groups.setdefault((places[minute], kept), []).append(i)
        return [(slot, segment, at) for (slot, segment), at in groups.items()]

    def _summary(self, slot: _Slot, segment: str) -> Summary:
        return self._slots.setdefault(slot, {}).setdefault(segment, Summary())

    def _place(self, at_s: float) -> _Slot:
        """The finest slot that still holds this time."""
        for width, count in self._resolutions:
            if math.floor(at_s / width) > math.floor(self._newest_s / width) - count:
                return width, math.floor(at_s / width)
        return _OLDER

    def _age(self, newest_s: float) -> None:
        """Moves what has become too old for its slot to a coarser one."""
        width = self._resolutions[0][0]
        if self._newest_s > -math.inf and math.floor(newest_s / width) == math.floor(self._newest_s / width):
            self._newest_s = newest_s
            return
        self._newest_s = newest_s
        for slot in list(self._slots):
            target = slot if slot == _OLDER else self._place(float(slot[0] * slot[1]))
            if target == slot or 0 < target[0] < slot[0]:
                continue
            for segment, summary in self._slots.pop(slot).items():
                self._summary(target, segment).merge(summary)

    def _admit(self, segment: str, count: float) -> None:
        """Counts a segment among the frequent ones, or in the place of the rarest."""
        if segment == OTHER:
            return
        if segment in self._frequent:
            self._frequent[segment] += count
        elif len(self._frequent) < self._max_segments:
            self._frequent[segment] = count
        elif count:
            rarest = min(self._frequent, key=lambda name: self._frequent[name])
            self._frequent[segment] = self._frequent.pop(rarest) + count
            self._fold(rarest)

    @property
    def weight(self) -> int:
        """What its memory goes by, in units of about 10 KiB: one per slot and segment, and more for many classes."""
        return sum(summary.weight for summaries in self._slots.values() for summary in summaries.values())

    @property
    def max_segments(self) -> int:
        return self._max_segments

    def narrow(self, max_segments: int) -> None:
        """Keeps no more than so many segments apart from now on; the rarest go to OTHER."""
        self._max_segments = max(1, max_segments)
        for name in sorted(self._frequent, key=self._frequent.__getitem__)[: -self._max_segments]:
            del self._frequent[name]
            self._fold(name)

    def _fold(self, segment: str) -> None:
        for summaries in self._slots.values():
            if segment in summaries:
                summaries.setdefault(OTHER, Summary()).merge(summaries.pop(segment))

    def merge(self, other: QualityWindow) -> None:
        """Adds what another window has counted, of other outcomes; `other` stays as it is.

        Raises ValueError where its slots have other widths.
        """
        if other._resolutions != self._resolutions:
            raise ValueError("windows with different resolutions cannot be merged.")
        self._age(max(self._newest_s, other._newest_s))
        for name, count in sorted(other._frequent.items(), key=lambda item: -item[1]):
            self._admit(name, count)
        for slot, summaries in other._slots.items():
            target = slot if slot == _OLDER else self._place(float(slot[0] * slot[1]))
            if 0 < target[0] < slot[0]:
                target = slot
            for segment, summary in summaries.items():
                kept = segment if segment in self._frequent else OTHER
                self._summary(target, kept).merge(summary)

    def quality(
        self,
        now_s: float,
        *,
        since_s: float = -math.inf,
        until_s: float = math.inf,
        segment: str | None = None,
        brief: bool = False,
    ) -> Quality:
        """The figures of what came from `since_s` to `until_s`, of one segment or (None) of all together.

        Slots that reach into the window count as a whole, so it may begin earlier by up to the width of a slot of that
        age; `since_s` of the answer says when it does. The throughput is over the time since the first outcome at all.
        `brief` leaves out classes and calibration, which take most of the time.
        """
        until_s = min(until_s, now_s)
        whole, first_s = Summary(), math.inf
        start_s = max(since_s, self.first_s)
        for slot, summaries in self._slots.items():
            reach = [s for s in summaries.values() if s.last_s >= since_s and s.first_s <= until_s]
            if not reach:
                continue
            first_s = min(first_s, *(s.first_s for s in reach)) if slot == _OLDER else min(first_s, slot[0] * slot[1])
            for name, summary in summaries.items():
                if summary in reach and segment in (None, name):
                    whole.merge(summary, brief=brief)
        start_s = max(min(start_s, first_s), self.first_s) if first_s < math.inf else start_s
        return quality_of(whole, min(start_s, until_s), until_s, segment or "")

    def last(self, window_s: float, now_s: float, segment: str | None = None) -> Quality:
        """The figures of the last `window_s` seconds."""
        return self.quality(now_s, since_s=now_s - window_s, segment=segment)

    def by_segment(
        self, now_s: float, *, since_s: float = -math.inf, until_s: float = math.inf, brief: bool = False
    ) -> dict[str, Quality]:
        """The figures of each segment that is kept apart, and of OTHER, as far as there are any. `brief` as above."""
        made = {}
        for name in sorted({name for summaries in self._slots.values() for name in summaries}):
            found = self.quality(now_s, since_s=since_s, until_s=until_s, segment=name, brief=brief)
            if found.n or found.n_judged:
                made[name] = replace(found, segment=name)
        return made

    @property
    def first_s(self) -> float:
        """When the first outcome came; infinite where there is none."""
        return min((s.first_s for summaries in self._slots.values() for s in summaries.values()), default=math.inf)

    def plain(self, write: Callable[[Summary], Any] = Summary.plain) -> dict[str, Any]:
        """As JSON has it, with summaries as `write` has them; `of` reads it."""
        return {
            "resolutions": [list(pair) for pair in self._resolutions],
            "max_segments": self._max_segments,
            "newest_s": self._newest_s if self._newest_s > -math.inf else None,
            "frequent": dict(self._frequent),
            "slots": [
                [*slot, {name: write(summary) for name, summary in summaries.items()}]
                for slot, summaries in self._slots.items()
            ],
        }

    @classmethod
    def of(cls, plain: Mapping[str, Any], read: Callable[[Any], Summary] = Summary.of) -> QualityWindow:
        """The window that was written as this. Raises ValueError where it is not one."""
        try:
            made = cls([(int(width), int(count)) for width, count in plain["resolutions"]], int(plain["max_segments"]))
            made._newest_s = -math.inf if plain["newest_s"] is None else float(plain["newest_s"])
            made._frequent = {str(name): float(count) for name, count in plain["frequent"].items()}
            made._slots = {
                (int(width), int(number)): {str(name): read(kept) for name, kept in summaries.items()}
                for width, number, summaries in plain["slots"]
            }
        except (LookupError, TypeError, AttributeError) as error:
            raise ValueError(f"not a quality window: {error!r}.") from None
        return made


def _not_ahead(outcomes: Outcomes, now_s: float) -> Outcomes:
    """No clock is so right as to be ahead."""
    return replace(outcomes, at_s=np.minimum(outcomes.at_s, now_s))


def _part(outcomes: Outcomes, at: list[int]) -> Outcomes:
    """The outcomes with these numbers."""
    if len(at) == len(outcomes):
        return outcomes

    def cut(values: Any) -> Any:
        return values[at] if isinstance(values, np.ndarray) else tuple([values[i] for i in at])

    return Outcomes(**{f.name: cut(getattr(outcomes, f.name)) for f in fields(outcomes)})
