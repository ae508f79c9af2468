"""What becomes of requests, as the journal has it: one note for all that travelled together.

Whatever can be known beforehand is kept per convoy, so that a note costs a few microseconds, whoever is in it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from random import Random
from time import perf_counter, time
from typing import Any

import numpy as np

from deployments.gateway.recorder import Recorder
from lineage.outcomes import Setting
from planner.cards import ExtensionId
from planner.choosing import Chosen
from planner.convoys import Rider
from planner.errors import DeadlineExceeded, FenixError, StepFailed
from planner.features import Array
from planner.goals import Terms
from planner.plans import Answer, Plan, PlanSet, StepRecord

_log = logging.getLogger("fenix.recorder")

MOST_SETTINGS = 64  # that a convoy keeps; each way in which a plan may come out has one
_STOOD_IN = re.compile(r"fallback for (\S+): ")  # as `planner/attempts.py` notes it
_WORD = re.compile(r"[\w.@-]+")
_MOST_CHARS = 400  # of a message that are looked at


class NoteBook:
    """Makes the notes of a gateway; one per process."""

    def __init__(self, recorder: Recorder, sample_share: float = 0.01, rng: Random | None = None) -> None:
        """Outputs are kept, and of `sample_share` of the groups the inputs too; neither of tagged data."""
        self._recorder = recorder
        self._sample_share = sample_share
        self._chance = (rng or Random()).random

    def notes_for(self, model: str, version: str, goal: str, terms: Terms, plans: PlanSet) -> JournalNotes:
        """For requests that want the same under the same terms."""
        setting = _usual(model, version, goal, terms, plans)
        share = 0.0 if terms.tags else self._sample_share
        return JournalNotes(self._recorder, setting, plans.best, not terms.tags, share, self._chance)


def _usual(model: str, version: str, goal: str, terms: Terms, plans: PlanSet) -> Callable[..., Setting]:
    def setting(**more: Any) -> Setting:
        return Setting(
            model=model,
            version=version,
            goal=goal,
            epoch=plans.epoch,
            deadline_ms=terms.deadline_ms,
            max_cost=terms.max_cost,
            min_accuracy=terms.min_accuracy,
            priority=terms.priority,
            user=terms.user,
            tags=terms.tags,
            purpose=terms.purpose,
            **more,
        )

    return setting


class JournalNotes:
    """The notes of one convoy. Requests that are refused at once are not in them."""

    def __init__(
        self,
        recorder: Recorder,
        setting: Callable[..., Setting],
        plan: Plan,
        keeps_outputs: bool,
        sample_share: float,
        chance: Callable[[], float],
    ) -> None:
        """`plan` is the one that should run; `chance` is uniform in [0, 1)."""
        self._recorder = recorder
        self._setting = setting
        self._plan = plan
        self._keeps_outputs = keeps_outputs
        self._sample_share = sample_share
        self._chance = chance
        self._settings: dict[object, Setting] = {}
        self._last: tuple[Chosen, str, frozenset[str], list[ExtensionId], Setting] | None = None  # most are like it

    def answered(self, riders: Sequence[Rider], answer: Answer, chosen: Chosen) -> Sequence[str]:
        """See `planner.convoys.Notes`. Never raises: an answer that is there must not fail for its note."""
        run, n = self._recorder.run, len(riders)
        first = self._recorder.next(n)
        try:
            self._note(riders, answer, first, chosen)
        except Exception:
            _log.exception("%d outcomes were not recorded", n)
        return [f"{run}{number:012x}" for number in range(first, first + n)]

    def _note(self, riders: Sequence[Rider], answer: Answer, first: int, chosen: Chosen) -> None:
        n, now_s = len(riders), perf_counter()
        n_rows = [rider.n_rows for rider in riders]
        ran, times = [], []
        for step in answer.steps:
            ran.append(step.extension)
            times.append((step.waited_ms, step.ran_ms, step.took_ms, step.batch_rows))
        outputs = {}
        sure: Array | None = None  # of each row
        for name, rows in answer.outputs.items():
            if self._keeps_outputs:
                outputs[name] = rows.values
            if rows.confidence is not None:
                sure = rows.confidence if sure is None else np.minimum(sure, rows.confidence)
        self._recorder.add(
            self._setting_of(answer, ran, chosen),
            first,
            time(),
            [(now_s - rider.token.began_s) * 1e3 for rider in riders],
            n_rows,
            [math.nan] * n if sure is None else sure.tolist() if len(sure) == n else _least_sure(sure, n_rows),
            times,
            outputs,
            _inputs_of(riders) if self._sample_share and self._chance() < self._sample_share else None,
        )

    def failed(self, riders: Sequence[Rider], error: FenixError, chosen: Chosen | None = None) -> None:
        """See `planner.convoys.Notes`."""
        there = [rider for rider in riders if not rider.token.gone]
        if there:
            now_s = perf_counter()
            kind = type(error).__name__
            plan = self._plan if chosen is None else chosen.plan
            considered = () if chosen is None else chosen.considered
            failed = () if chosen is None else _blamed(error, plan)  # who has not left is late for others' sake
            key = (kind, plan.id, considered, failed)
            setting = self._settings.get(key) or self._keep(
                key,
                plan=plan.id,
                error=kind,
                considered=considered,
                failed=failed,
                **_expected(plan),
                reason="" if chosen is None else chosen.reason,
            )
            self._recorder.add(
                setting,
                self._recorder.next(len(there)),
                time(),
                [(now_s - rider.token.began_s) * 1e3 for rider in there],
                [rider.n_rows for rider in there],
                [math.nan] * len(there),
            )

    def _setting_of(self, answer: Answer, ran: list[ExtensionId], chosen: Chosen) -> Setting:
        plan, flags, last = answer.plan.id, answer.flags, self._last
        if last is not None and last[0] is chosen and last[1] == plan and last[2] == flags and last[3] == ran:
            return last[4]
        failed = _replaced(answer.steps) if "fallback" in flags else ()
        key = (plan, flags, tuple(ran), chosen.plan.id, chosen.considered, failed)
        setting = self._settings.get(key) or self._keep(
            key,
            plan=plan,
            steps=_ran(answer.steps),
            flags=flags,
            considered=chosen.considered,
            chosen="" if chosen.plan.id == plan else chosen.plan.id,
            giver=_giver(answer),
            failed=failed,
            **_expected(chosen.plan),
            reason=chosen.reason,
        )
        if "fallback" not in flags:  # who was replaced differs from one to the next
            self._last = chosen, plan, flags, ran, setting
        return setting

    def _keep(self, key: object, **more: Any) -> Setting:
        if len(self._settings) >= MOST_SETTINGS:
            self._settings.clear()
        setting = self._settings[key] = self._setting(**more)
        return setting


def _expected(plan: Plan) -> dict[str, float]:
    said = plan.prediction
    return {"expected_ms": said.p50_ms, "expected_cost": said.cost, "expected_accuracy": said.accuracy}


def _ran(steps: Sequence[StepRecord]) -> tuple[tuple[int, str], ...]:
    return tuple([(int(step.step), str(step.extension)) for step in steps])


def _giver(answer: Answer) -> str:
    """The extension that all outputs come from; empty where rows may come from several, as behind a cascade."""
    sources = {source.step for binding in answer.plan.outputs for source in binding.sources}
    ran = {str(step.extension) for step in answer.steps if step.step in sources}
    return ran.pop() if len(sources) == len(ran) == 1 else ""


def _replaced(steps: Sequence[StepRecord]) -> tuple[str, ...]:
    """The extensions that were tried and for which others stood in."""
    return tuple([name for step in steps for name in _STOOD_IN.findall(step.note[:_MOST_CHARS])])


def _blamed(error: FenixError, plan: Plan) -> tuple[str, ...]:
    """The extension that a request failed for: the one that the message names, or the only one there was. None where
    it is not the fault of one."""
    if not isinstance(error, StepFailed | DeadlineExceeded):
        return ()
    there = {str(id_) for step in plan.steps for id_ in (step.extension, *step.fallbacks)}
    words = {word.rstrip(".") for word in _WORD.findall(error.message[:_MOST_CHARS])}
    named = there if len(there) == 1 else there & words
    return tuple(named) if len(named) == 1 else ()


def _least_sure(sure: Array, n_rows: Sequence[int]) -> list[float]:
    """Per request, the confidence of its least sure row."""
    starts = np.cumsum([0, *n_rows[:-1]])
    least: list[float] = np.minimum.reduceat(sure, starts).tolist()
    return least


def _inputs_of(riders: Sequence[Rider]) -> dict[str, Array]:
    return {name: np.concatenate([rider.inputs[name] for rider in riders]) for name in riders[0].inputs}
