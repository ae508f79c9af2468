"""The dispatcher: runs a plan, and changes it on the way when that helps.

A request's way through this file: `dispatch` lets it in on the first plan that will be in time (`admission.py`).
`_Run.walk` goes through the plan; every step waits for its sources, takes its rows from them (`results.py`: all of
them, or behind a guard only the unsure ones), joins the line of its extension, and on failure that of its fallbacks
(`attempts.py`). After each step two questions are asked: is there time for the rest, and is the rest healthy? If not,
or if a step failed for good, the next plan that can do better takes over, with every result that it shares
(`progress.py`). For requests that ask for it, what is left is an answer too when nothing helps (`partial.py`), and rows
of the answer that are not sure enough are asked about once more (`opinions.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter

from planner.admission import Backlog, BacklogOf, admit
from planner.attempts import FAILURES, Attempt, Course, may_be_one
from planner.cards import ExtensionId
from planner.competition import URGENT, Competition
from planner.errors import FenixError, Overloaded
from planner.features import Array, Rows
from planner.opinions import Opinions, second_opinions
from planner.partial import cut_off, early, some_in_time, useless
from planner.placed import Queues
from planner.plans import Answer, Plan, Step, StepId, StepRecord
from planner.progress import after_ms, is_chain, left_ms, needs, shared
from planner.results import Result, Results, least
from planner.roster import CardOf, Roster
from planner.tokens import Token

NOT_DONE = Result({})  # in the place of what a step would have brought, where it came not to be needed


def _nothing_waits(extension: ExtensionId, token: Token) -> Backlog | None:
    return None


class Dispatcher:
    """Runs plans over the extensions of one catalogue. Belongs to one event loop."""

    def __init__(
        self,
        queues: Queues,
        card_of: CardOf,
        at_once: Callable[[Plan], bool] = lambda plan: False,
        backlog_of: BacklogOf = _nothing_waits,
        is_healthy: Callable[[ExtensionId], bool] | None = None,
        competition: Competition | None = None,
    ) -> None:
        """`at_once` tells whether nothing in a plan waits: its steps then run one after the other, without tasks.

        `backlog_of` tells what waits before an extension; `is_healthy`, whether it is worth trying (None: always);
        `competition` runs the steps of urgent requests.
        """
        self.roster = Roster(queues, card_of, is_healthy)
        self.backlog_of = backlog_of
        self.at_once = at_once
        self.competition = competition or Competition()

    async def dispatch(
        self, plan: Plan, inputs: Mapping[str, Array], token: Token, alternatives: Sequence[Plan] = ()
    ) -> Answer:
        """Runs `plan` on `inputs` (arrays of (n_rows, *row shape), the request's ports) until the token's deadline.

        `alternatives` may take its place: before the start, where only they are in time; on the way, where a step and
        its fallbacks fail (flag `fallback`), or where time runs short (flag `replanned`). `degraded` says that what
        ran promises less accuracy than `plan`. Where the token allows it, outputs that nothing can bring are left out
        (flag `partial`, see `partial.py`), and the answer leaves a little before the deadline. Where it asks for a
        confidence, rows below it get second opinions (`opinions.py`); flag `unsure` where some stay below.

        Raises Overloaded or ShareExceeded before anything ran, DeadlineExceeded, BadInput from an extension, or the
        failure of the last try.
        """
        if token.partial:  # what is there by then becomes the answer
            token = early(token, asyncio.get_running_loop().time())
        plans = [plan, *(other for other in alternatives if other is not plan)]
        trip = _Trip(self, inputs, token, plans)
        run = _Run(trip, self._first(plans, token))
        try:
            while True:
                try:
                    turn = await run.walk()
                    if turn is None:
                        if token.min_confidence is not None and run.opinions is None:
                            await run.judge_again(token.min_confidence)
                        outputs = await (run.outputs_left() if token.partial else run.results.outputs())
                        return Answer(outputs, run.plan, run.records(), run.flags(plan), run.missing)
                    trip.flags.add("replanned")
                except FAILURES as failure:
                    turn = None if may_be_one(token, failure) else trip.way_out(run)
                    if turn is None:
                        if token.partial and run.does_without(failure):
                            continue
                        raise
                    trip.flags.add("fallback")
                run = run.turned_to(turn)
        except asyncio.CancelledError:
            token.gone = True
            raise
        finally:
            run.stop()

    def _first(self, plans: Sequence[Plan], token: Token) -> Plan:
        """The plan to start with: healthy if one is, and in time."""
        if self.at_once(plans[0]):
            return plans[0]
        can_do = self.roster.can_do
        healthy = plans if can_do(plans[0].steps) else [plan for plan in plans if can_do(plan.steps)]
        now_s = asyncio.get_running_loop().time()
        try:
            return admit(healthy or plans, token, now_s, self.backlog_of)
        except Overloaded:
            best = (healthy or plans)[0]
            if token.partial and some_in_time(best, token, now_s, self.backlog_of):
                return best
            raise


@dataclass(slots=True)
class _Trip:
    """One request, whatever plan it is on."""

    dispatcher: Dispatcher
    inputs: Mapping[str, Array]
    token: Token
    plans: list[Plan]  # that were not tried yet, best first
    guilty: set[ExtensionId] = field(default_factory=set)
    flags: set[str] = field(default_factory=set)
    started_s: float = field(default_factory=perf_counter)

    def way_out(self, run: _Run) -> Plan | None:
        """After a failure: the first plan without the guilty that is in time, else the first without them."""
        if asyncio.get_running_loop().time() >= self.token.until_s:
            return None
        innocent = [plan for plan in self.plans if self._is_innocent(plan, run)]
        return next((plan for plan in innocent if self._is_in_time(plan, run)), innocent[0] if innocent else None)

    def better(self, run: _Run) -> Plan | None:
        """Where the rest of a plan is too slow or not healthy: the first plan whose rest is neither."""
        for plan in self.plans:
            if self._is_innocent(plan, run) and self._is_in_time(plan, run):
                same = shared(run.plan, plan)
                if self.dispatcher.roster.can_do([step for step in plan.steps if same.get(step.id) not in run.done]):
                    return plan
        return None

    def _is_innocent(self, plan: Plan, run: _Run) -> bool:
        """Whether no guilty extension would have to run, or ran without a stand-in."""
        if self.guilty.isdisjoint(plan.extensions()):
            return True
        same = shared(run.plan, plan)
        replaced = {new for new, old in same.items() if old in run.done and "fallback" in run.done[old].flags}
        return all(step.id in replaced for step in plan.steps if step.extension in self.guilty)

    def _is_in_time(self, plan: Plan, run: _Run) -> bool:
        same = shared(run.plan, plan)
        rest_ms = left_ms(plan, {new for new, old in same.items() if old in run.done})
        return asyncio.get_running_loop().time() + rest_ms / 1e3 <= self.token.until_s


class _Run:
    """A request on one plan."""

    def __init__(self, trip: _Trip, plan: Plan) -> None:
        self._trip = trip
        self._dispatcher = trip.dispatcher
        self._token = trip.token
        self._loop = asyncio.get_running_loop()
        self._running: dict[StepId, asyncio.Task[Result]] = {}
        self._woken: asyncio.Future[None] | None = None
        self._at: Step | str = ""  # the step, or the output at the end, that is waited for or taken in
        self.plan = plan
        self.opinions: Opinions | None = None  # on the rows of the answer, where they were asked for
        self.missing: dict[str, str] = {}  # outputs that cannot be had, and why
        trip.plans = [other for other in trip.plans if other is not plan]
        at_once = self._dispatcher.at_once(plan)
        self._in_order = at_once or is_chain(plan.steps)
        # What comes after each step, which only matters where something can still be done about it.
        matters = trip.plans or (trip.token.hard and len(plan.steps) > 1 and not at_once)
        self._after_ms = after_ms(plan, self._run_ms()) if matters else {}
        self.results = Results(plan, trip.inputs, trip.guilty)
        self.done = self.results.by_step
        is_urgent = trip.token.priority <= URGENT and trip.token.hard and not at_once
        self._course = Course(
            roster=self._dispatcher.roster,
            loop=self._loop,
            token=trip.token,
            results=self.results,
            guilty=trip.guilty,
            after_ms={} if trip.token.partial else self._after_ms,  # who takes what is there may be late for the rest
            is_last=not trip.plans,
            competition=self._dispatcher.competition if is_urgent else None,
            started_s=trip.started_s,
        )
        if trip.token.max_cost is not None:
            self._course.spare_cost = max(0.0, trip.token.max_cost * (1.0 + 1e-9) - plan.prediction.cost)

    async def walk(self) -> Plan | None:
        """Runs all steps that are not done. Gives the plan to turn to, where that came to be better on the way."""
        if self._running or not self._in_order:
            return await self._graph()
        for step in self.plan.steps:
            if step.id not in self.done:
                self._at = step
                self.done[step.id] = await self._step(step)
                if self._after_ms and (turn := self._reconsidered(step)):
                    return turn
        return None

    async def _graph(self) -> Plan | None:
        """Runs every step as soon as its sources are there; a step that is alone needs no task."""
        waiting = [step for step in self.plan.steps if step.id not in self.done and step.id not in self._running]
        while waiting or self._running:
            ready = [step for step in waiting if needs(step) <= self.done.keys()]
            waiting = [step for step in waiting if step not in ready] if ready else waiting
            if len(ready) == 1 and not self._running:
                self._at = ready[0]
                self.done[ready[0].id] = await self._step(ready[0])
                ended = ready
            else:
                for step in ready:
                    self._begin(step.id, self._loop.create_task(self._step(step)))
                ended = await self._next_ended()
            for step in ended:
                if self._after_ms and (turn := self._reconsidered(step)):
                    return turn
        return None

    async def _step(self, step: Step) -> Result:
        """Gathers the rows of a step, and has it done."""
        results = self.results
        index = results.rows_of(step)
        if index is not None and len(index) == 0:
            return Result({}, index)
        inputs_list = [(binding.port, await results.gather(binding, index)) for binding in step.inputs]
        inputs = await results.stack(step, inputs_list)
        inherited = least([made.confidence for _, made in inputs_list])
        return await Attempt(self._course, step, inputs, index).result(inherited)

    def _begin(self, step: StepId, task: asyncio.Task[Result]) -> None:
        self._running[step] = task
        task.add_done_callback(self._wake)

    def _wake(self, task: asyncio.Task[Result]) -> None:
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)

    async def _next_ended(self) -> list[Step]:
        """Waits for the next steps to end, and takes in their results. Raises the failure of one that failed."""
        if not any(task.done() for task in self._running.values()):
            self._woken = self._loop.create_future()
            await self._woken
        ended = [step for step in self.plan.steps if step.id in self._running and self._running[step.id].done()]
        for step in ended:
            self._at = step
            self.done[step.id] = self._running.pop(step.id).result()
        return ended

    def _reconsidered(self, step: Step) -> Plan | None:
        """After a step: a plan whose rest is better, where the rest of this one is late or not healthy."""
        if not self._trip.plans:
            return None
        in_time = self._loop.time() + self._after_ms[step.id] / 1e3 <= self._token.until_s
        if in_time and self._dispatcher.roster.can_do(later for later in self.plan.steps if later.id not in self.done):
            return None
        # Looked at closely: steps behind a guard that lets no row through are as good as done.
        rest = [later for later in self.plan.steps if later.id not in self.done and self._has_rows(later)]
        done = {other.id for other in self.plan.steps if other not in rest}
        in_time = self._loop.time() + left_ms(self.plan, done) / 1e3 <= self._token.until_s
        if not rest or (in_time and self._dispatcher.roster.can_do(rest)):
            return None
        return self._trip.better(self)

    def _run_ms(self) -> Callable[[Step], float]:
        """What steps take as things stand, once their turn has come: who has to wait travels in a crowd from then on,
        and is as slow as that."""
        backlogs = [self._dispatcher.backlog_of(step.extension, self._token) for step in self.plan.steps]
        crowd = max([backlog.ahead.n_rows for backlog in backlogs if backlog is not None], default=0.0)
        if crowd == 0.0:
            return lambda step: step.p50_ms
        return lambda step: max(step.p50_ms, self._dispatcher.roster.crowded_ms(step.extension, crowd))

    def _has_rows(self, step: Step) -> bool:
        """Whether any row reaches a step, as far as one can tell."""
        if step.guard is None or step.guard.step not in self.done:
            return True
        index = self.results.rows_of(step)
        return index is None or len(index) > 0

    def turned_to(self, plan: Plan) -> _Run:
        """The same request on another plan, which takes over what both share; what it does not need is ended."""
        other = _Run(self._trip, plan)
        if other._course.spare_cost is not None:
            other._course.spare_cost = 0.0  # what this plan has begun is paid for as well
        for new, old in shared(self.plan, plan).items():
            result = self.done.get(old)
            if result is not None:
                record = None if result.record is None else replace(result.record, step=new)
                other.done[new] = replace(result, record=record)
            elif old in self._running:
                other._begin(new, self._running.pop(old))
        self.stop()
        return other

    def does_without(self, failure: FenixError) -> bool:
        """After a failure for good: gives up the outputs that it stands in the way of, if others are left, and ends
        what only those have use for."""
        lost = cut_off(self.plan, self._at.id) if isinstance(self._at, Step) else {self._at}
        self.missing = dict.fromkeys(lost, failure.message) | self.missing
        if len(self.missing) == len(self.plan.outputs):
            return False
        self._trip.plans = []
        for step in useless(self.plan, self.missing) - self.done.keys():
            self._end(step)
            self.done[step] = NOT_DONE
        return True

    async def judge_again(self, below: float) -> None:
        """Gets second opinions on the rows of the answer that are not sure enough, a little before the deadline."""
        token = early(self._token, self._loop.time())
        course = replace(self._course, token=token, is_last=False)  # what there is stays: no opinion is the last hope
        outputs = [output for output in self.plan.outputs if output.port not in self.missing]
        self.opinions = await second_opinions(self.plan, course, outputs, below)

    async def outputs_left(self) -> dict[str, Rows]:
        """The outputs that are not missing."""
        outputs: dict[str, Rows] = {}
        for binding in self.plan.outputs:
            if binding.port not in self.missing:
                self._at = binding.port
                outputs[binding.port] = await self.results.output(binding)
        return outputs

    def stop(self) -> None:
        """Ends what is still running."""
        for step in list(self._running):
            self._end(step)

    def _end(self, step: StepId) -> None:
        task = self._running.pop(step, None)
        if task is not None:
            task.cancel()
            task.add_done_callback(_hear)

    def records(self) -> tuple[StepRecord, ...]:
        """What happened at the steps, in the order in which they ended."""
        records = [result.record for result in self.done.values() if result.record is not None]
        return tuple(records) if self.opinions is None else (*records, *self.opinions.records)

    def flags(self, wanted: Plan) -> frozenset[str]:
        flags = self._trip.flags
        if self.plan.prediction.accuracy < wanted.prediction.accuracy:
            flags.add("degraded")
        if self.missing:
            flags.add("partial")
        if self.opinions is not None and self.opinions.unsure:
            flags.add("unsure")
        for result in self.done.values():
            if result.flags:
                flags |= result.flags
        return frozenset(flags)


def _hear(task: asyncio.Task[Result]) -> None:
    """A failure that came with another one has been told already."""
    if not task.cancelled():
        task.exception()
