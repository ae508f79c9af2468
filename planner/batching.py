"""Batching: rows of many requests that need the same extension version travel as one call.

One `Batcher` per extension version: what comes stands in its line (`line.py`), which says who goes next; its policy
(`policies/`) says how many go together, and when. A lone request to an idle extension goes at once; where there is
enough for another full call, it is sent ahead while its replica still works on the one before. What could not be
done in time is dropped before it runs. A batch that fails is split in halves down to the guilty request, so that
neighbours keep their answer.
"""

from __future__ import annotations

import asyncio
import contextvars
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter  # uvloop's own clock counts whole milliseconds: good for deadlines only

import numpy as np

from planner.admission import Backlog
from planner.calls import Calls, Part, Parts, Produced, Ran, concatenated, local
from planner.cards import Card, ExtensionId
from planner.deadlines import Deadlines
from planner.envelopes import Envelope
from planner.errors import (
    BadRequest,
    Cancelled,
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionTimeout,
    ExtensionUnavailable,
    FenixError,
    Overloaded,
)
from planner.features import Array
from planner.line import AGING_S, Line, Place, WeightOf, seniority
from planner.policies import DEFAULT_POLICY
from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState
from planner.policies.registry import make_policy
from planner.pulse import Pulse
from planner.tokens import Token

# Extension, rows of the call, thousands of elements in inputs of free size, ms it took seen from here.
Observe = Callable[[ExtensionId, int, float, float], None]
PolicyOf = Callable[[Card], BatchPolicy]

AGAIN_AFTER_S = 0.02  # before a call is sent again: by then one mostly knows which replica has died


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Bounds of one extension's queue; what waits counts, not what is under way.

    `max_in_flight` calls run side by side; as many more are sent ahead if they are full, and wait at the replicas.
    """

    max_rows: int = 256
    max_waiting_rows: int = 65_536
    max_waiting_bytes: int = 256 << 20
    max_in_flight: int = 1


@dataclass(frozen=True, slots=True)
class Done:
    """A request's share of a call: its own rows, the size of the whole batch (0: nothing had to be computed), the
    times in ms, and whether the call was sent a second time because the first took long."""

    outputs: Mapping[str, Produced]
    batch_rows: int
    waited_ms: float
    ran_ms: float
    hedged: bool = False


@dataclass(slots=True, eq=False)
class _Call:
    """A batch on its way."""

    batch: list[_Some]
    ends_s: float  # on the event loop's clock, as far as one can tell
    state: QueueState  # in which it was sent
    starts_s: float | None  # on perf_counter; None while it stands behind another call to its replica
    task: asyncio.Task[None] = field(init=False)
    has_begun: bool = field(init=False, default=False)


@dataclass(slots=True, eq=False)
class _Request:
    """What somebody waits for. Its rows may travel in several calls."""

    token: Token
    inputs: Mapping[str, Part]
    n_rows: int
    future: asyncio.Future[Done]
    since_s: float  # on perf_counter
    expires_s: float  # when it hears that it is late; it is of use until its place's `until_s`, which may be earlier
    place: _Some = field(init=False)  # in the line, with the rows that are not on their way yet
    calls: list[_Call] = field(init=False, default_factory=list)  # that rows of it are on
    made: list[tuple[int, Done]] = field(init=False, default_factory=list)  # from which row on, and what came of them


@dataclass(slots=True, eq=False)
class _Some(Place):
    """Rows of a request, from `start` on, that go together."""

    request: _Request
    start: int = 0

    def cut(self, n_rows: int) -> _Some:
        n_bytes = self.n_bytes * n_rows // self.n_rows
        front = _Some(self.token, n_rows, n_bytes, self.until_s, self.kind, self.request, self.start, size=self.size)
        self.n_rows -= n_rows
        self.n_bytes -= n_bytes
        self.start += n_rows
        return front

    def inputs(self, port: str) -> Part:
        part = self.request.inputs[port]
        return part if self.n_rows == self.request.n_rows else part[self.start : self.start + self.n_rows]


class Batcher:
    """The queue before one extension version. Belongs to one event loop; not thread-safe."""

    def __init__(
        self,
        extension: ExtensionId,
        calls: Calls,
        limits: BatchLimits,
        observe: Observe,
        policy: BatchPolicy,
        free_ports: Sequence[str] = (),
        weight_of: WeightOf = lambda user: 1.0,
        repeats: bool = True,
    ) -> None:
        """`repeats`: whether the same rows may be sent a second time although the first call may have run."""
        self._extension = extension
        self._repeats = repeats
        self._free_ports = free_ports
        self._calls = calls
        self._limits = limits
        self._n_slots = limits.max_in_flight
        self._observe = observe
        self._policy = policy
        self._loop = asyncio.get_running_loop()
        self._line: Line[_Some] = Line(limits.max_waiting_rows, limits.max_waiting_bytes, weight_of)
        self._running: dict[_Call, None] = {}
        self._pulse = Pulse(self._loop.time())
        self._deadlines = Deadlines(self._loop, self._expire)
        self._look_again: asyncio.TimerHandle | None = None
        self.cpu_share = self.gpu_share = math.nan
        self._pads = False  # there were rows of free size, which go with those of their own size
        self._expected: dict[int, int] = {}  # rows on their way to the line, by priority
        self._watchers: list[tuple[float, Callable[[], None]]] = []
        self._tells = False  # `_tell` comes at the end of this turn
        self._called = False  # `_pump` comes at the end of this turn
        self._batch_rows = limits.max_rows  # that the policy wants just now
        # A lone request is no choice: all those share one state.
        self._lone = QueueState(1, 1, 0.0, 0.0, n_slots=limits.max_in_flight, max_rows=limits.max_rows)

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        """Runs these rows, together with others, before `until_s` (event loop time; None: the token's deadline).

        Raises Overloaded when the queue is full; DeadlineExceeded when the client's deadline passes or could not be
        met any more, ExtensionTimeout when that is so of an earlier `until_s`; Cancelled when the client has gone;
        and what the call raises. When the caller is cancelled its rows are dropped from the queue, or their result is
        thrown away.
        """
        if until_s is None:
            until_s = token.until_s
        if n_rows > self._limits.max_rows:
            return await self._submit_in_pieces(inputs, n_rows, token, until_s)
        request = self._enter(inputs, n_rows, token, until_s)
        try:
            return await request.future
        except BaseException:
            self._leave(request)
            raise
        finally:
            self._deadlines.forget(request)

    def hear(self, fares: Envelope | None) -> None:
        """Takes in how the extension's replicas fare, all together; None where nobody knows."""
        if fares is None:
            self.cpu_share = self.gpu_share = math.nan
        else:
            self.cpu_share, self.gpu_share = min(1.0, fares.cpu_share / fares.n_replicas), fares.gpu_share

    def backlog(self, token: Token) -> Backlog | None:
        """What rows of this request would find here; None where they would go at once."""
        busy_s = self._busy_s(self._loop.time())
        if not busy_s and not self._line.n_places:
            return None
        rows = self._batch_rows
        return Backlog(
            self._line.ahead(token.priority, token.user),
            busy_s * 1e3,
            rows,
            self._policy.expected_ms(rows),
            self._pulse.recent_ms,
            self._n_slots,
        )

    def room(self, token: Token) -> int:
        """How many more rows with tokens like this one would find a place in the next call; at most what it takes."""
        if len(self._running) >= 2 * self._n_slots:
            return 0  # they would only stand here, where more urgent ones overtake them
        # As in the line, who has waited long enough goes as one of the more urgent.
        waited_s = self._loop.time() - token.came_s if token.came_s else 0.0
        urgency = max(0, token.priority - int(waited_s / AGING_S))
        ahead = self._line.ahead(urgency, token.user).n_rows
        coming = sum([n_rows for priority, n_rows in self._expected.items() if priority <= urgency])
        return max(0, self._enough() - math.ceil(ahead) - coming)

    def _enough(self) -> int:
        """Rows for a full call, or, of texts, for a choice of those that go in it."""
        return self._limits.max_rows * (2 if self._pads else 1)

    def expect(self, n_rows: int, token: Token) -> None:
        """So many rows have set out for here; fewer than 0: so many of them have come, or will not."""
        self._expected[token.priority] = self._expected.get(token.priority, 0) + n_rows
        if n_rows < 0:  # perhaps they will not come, and leave room
            self._moved()

    def when_moved(self, token: Token, tell: Callable[[], None]) -> None:
        """Calls `tell` once when there may be room again; who is more urgent, or has waited longer, hears of it
        first."""
        self._watchers.append((seniority(token.came_s or self._loop.time(), token.priority), tell))

    def _moved(self) -> None:
        if self._watchers and not self._tells:
            self._tells = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        self._tells = False
        if len(self._running) < 2 * self._n_slots:
            watchers, self._watchers = self._watchers, []
            for _, tell in sorted(watchers, key=lambda watcher: watcher[0]):
                tell()

    def _enter(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float) -> _Request:
        """Puts rows into the line. Where a call can start, it does at the end of the loop's turn, with all that came in
        it: what was together on its way here stays together."""
        loop, line = self._loop, self._line
        now_s = loop.time()
        n_bytes = size = 0
        shapes = []
        for part in inputs.values():
            shapes.append(part.shape[1:])
            if isinstance(part, np.ndarray):
                n_bytes += part.nbytes
                if part.dtype.kind == "O":
                    size += _longest(part)
                    self._pads = True
        request = _Request(token, inputs, n_rows, loop.create_future(), perf_counter(), until_s)
        done_by_s = min(until_s, token.until_s - token.rest_s) if token.hard else until_s
        place = request.place = _Some(token, n_rows, n_bytes, done_by_s, shapes, request, size=size)
        if token.gone:
            raise Cancelled(f"the client left before {self._extension} ran.")
        if now_s >= until_s:
            raise self._late(request)
        if not line.has_room(n_rows, n_bytes, token.priority):
            raise self._full(token.priority)
        self._pulse.n_rows += n_rows
        line.push(place, now_s)
        if token.escort is not None:
            token.escort.waits(self, n_rows, self._enough())
        if not self._called and (len(self._running) < self._n_slots or self._next_is_full()):
            self._called = True
            loop.call_soon(self._pump)
        self._deadlines.watch(request)
        return request

    def _full(self, priority: int) -> Overloaded:
        rows, size = self._line.n_rows, self._line.n_bytes
        return Overloaded(
            f"{self._extension} has {rows} rows waiting, {size >> 20} MiB: no more at priority {priority}.",
            hint="Send less at once, or give the extension more replicas.",
            retry_after_s=max(0.1, rows / self._batch_rows * self._policy.expected_ms(self._batch_rows) / 1e3),
        )

    def _leave(self, request: _Request) -> None:
        """Lets go of the rows of a request that nobody waits for; a call that only such requests wait for is ended."""
        request.future.cancel()
        if self._line.remove(request.place):
            self._left(request.place)
        for call in request.calls.copy():
            if all(some.request.future.done() for some in call.batch):
                call.task.cancel()
                if not call.has_begun:  # then it never will
                    self._end(call)

    def _left(self, some: _Some) -> None:
        """These rows stand in the line no more."""
        if some.token.escort is not None:
            some.token.escort.goes(self, some.n_rows)
        self._moved()

    async def _submit_in_pieces(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float) -> Done:
        pieces: list[Done] = []
        step = self._limits.max_rows
        # A window of pieces at a time: enough to keep every slot busy, little enough to leave room for others.
        window = step * self._limits.max_in_flight
        for start in range(0, n_rows, window):
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [
                        group.create_task(
                            self.submit(
                                _cut(inputs, at, min(at + step, n_rows)), min(step, n_rows - at), token, until_s
                            )
                        )
                        for at in range(start, min(start + window, n_rows), step)
                    ]
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None
            pieces += [task.result() for task in tasks]
        return await self._joined(pieces)

    def _busy_s(self, now_s: float) -> float:
        """How long until a call that were sent now could start; more than 0 where it would have to wait."""
        n_before = len(self._running) - self._n_slots
        return max(1e-6, sorted([call.ends_s for call in self._running])[n_before] - now_s) if n_before >= 0 else 0.0

    def _next_is_full(self) -> bool:
        """Whether there is a full call to be sent ahead. It hides the way to the replica behind the call that runs
        there; others are better kept, as they would go with fewer rows, and so are texts of which one can choose."""
        return len(self._running) < 2 * self._n_slots and self._line.n_rows >= self._enough()

    def _pump(self) -> None:
        """Sends what the policy wants sent, while a slot is free, and then full calls ahead."""
        just_came, self._called = self._called, False
        while self._line.n_places and len(self._running) < self._n_slots:
            now_s = self._loop.time()
            is_lone = just_came and self._line.n_places == 1 and not self._running
            state = self._lone if is_lone else self._state(now_s)
            decision = self._policy.decide(state)
            self._batch_rows = decision.n_rows
            if self._look_again is not None:
                self._look_again.cancel()
                self._look_again = None
            if decision.wait_ms > 0.0:
                self._look_again = self._loop.call_later(decision.wait_ms / 1e3, self._pump)
                return
            n_rows = min(decision.n_rows, self._line.n_rows)
            expected_ms = (1.0 + self._policy.times.spread) * self._policy.expected_ms(n_rows)
            # Trying a lone request costs nobody else anything, and what is expected may be wrong.
            run_s = -math.inf if is_lone else self._pulse.run_s(expected_ms, now_s)
            self._take_and_send(decision.n_rows, run_s, state)
        while self._next_is_full():
            now_s, most = self._loop.time(), self._limits.max_rows
            run_s = self._pulse.run_s((1.0 + self._policy.times.spread) * self._policy.expected_ms(most), now_s)
            self._take_and_send(most, run_s + self._busy_s(now_s) if run_s else 0.0, self._state(now_s))

    def _take_and_send(self, n_rows: int, run_s: float, state: QueueState) -> None:
        """Sends up to so many rows that will be in time if they are done in `run_s`, and drops those that will not."""
        now_s = self._loop.time()
        taken = self._line.take(n_rows, now_s, run_s)
        for some in taken.late:
            self._left(some)
            self._pulse.n_dropped_rows += some.n_rows
            _fail(some.request, self._late(some.request))
        for some in taken.gone:
            self._left(some)
            _fail(some.request, Cancelled(f"the client left before {self._extension} ran."))
        if taken.batch:
            self._send(taken.batch, sum([some.n_rows for some in taken.batch]), state, now_s)

    def _state(self, now_s: float) -> QueueState:
        line = self._line
        return QueueState(
            n_waiting_rows=line.n_rows,
            n_waiting_requests=line.n_places,
            oldest_wait_ms=(now_s - line.oldest_s()) * 1e3,
            arrival_rate_per_s=self._pulse.rate_per_s(now_s),
            least_slack_ms=(self._deadlines.earliest_s() - now_s) * 1e3,
            n_in_flight=len(self._running),
            n_slots=self._n_slots,
            max_rows=self._limits.max_rows,
            cpu_share=self.cpu_share,
            gpu_share=self.gpu_share,
            recent_ms=self._pulse.recent_ms,
        )

    def _send(self, batch: list[_Some], n_rows: int, state: QueueState, now_s: float) -> None:
        busy_s = self._busy_s(now_s)
        ends_s = now_s + busy_s + self._policy.expected_ms(n_rows) / 1e3
        call = _Call(batch, ends_s, state, None if busy_s else perf_counter())
        for some in batch:
            some.request.calls.append(call)
            self._left(some)
        self._running[call] = None
        # A context of its own: Serve cancels whatever a request's context started when that client leaves, and this
        # call belongs to several clients.
        call.task = self._loop.create_task(self._run(call), context=contextvars.Context())

    async def _run(self, call: _Call) -> None:
        call.has_begun = True
        try:
            await self._try(call, call.batch)
        except asyncio.CancelledError:
            for some in call.batch:
                some.request.future.cancel()
            raise
        finally:
            self._end(call)

    def _end(self, call: _Call) -> None:
        for some in call.batch:
            some.request.calls.remove(call)
        del self._running[call]
        if call.starts_s is not None:  # one that stood behind it gets on now
            following = next((other for other in self._running if other.starts_s is None), None)
            if following is not None:
                following.starts_s = perf_counter()
        self._pump()
        self._moved()

    async def _try(self, call: _Call, batch: list[_Some]) -> None:
        """Calls the extension, and answers every request of the batch, whatever happens."""
        started_s = perf_counter()
        parts = {port: [some.inputs(port) for some in batch] for port in batch[0].request.inputs}
        timeout_s = max([some.request.expires_s for some in batch]) - self._loop.time()
        try:
            ran = await self._infer(parts, timeout_s)
            await self._share_out(call, batch, ran, started_s)
        except (ExtensionRaised, ExtensionBroken, BadRequest) as refusal:
            waiting = [some for some in batch if not some.request.future.done()]
            if len(batch) == 1:
                _fail(batch[0].request, refusal)
            elif len(waiting) < len(batch):
                if waiting:
                    await self._try(call, waiting)
            else:
                half = len(batch) // 2
                await self._try(call, batch[:half])
                await self._try(call, batch[half:])
        except Exception as error:  # nobody may wait for ever
            failure = error if isinstance(error, FenixError) else ExtensionRaised(f"{self._extension}: {error!r}")
            for some in batch:
                late = isinstance(failure, ExtensionTimeout) and some.token.late(self._loop.time())
                _fail(some.request, self._late(some.request) if late else failure)

    async def _infer(self, parts: Parts, timeout_s: float) -> Ran:
        """Calls the extension; where its replica dies under the call and there are others, once more, if it is a
        function of its rows. Not more often, as it may have died of these rows."""
        until_s = self._loop.time() + timeout_s
        try:
            return await self._calls.infer(self._extension, parts, timeout_s)
        except ExtensionUnavailable:
            left_s = until_s - self._loop.time() - AGAIN_AFTER_S
            if self._n_slots == 1 or left_s <= 0.0 or not self._repeats:
                raise
            await asyncio.sleep(AGAIN_AFTER_S)
            return await self._calls.infer(self._extension, parts, left_s)

    async def _share_out(self, call: _Call, batch: list[_Some], ran: Ran, started_s: float) -> None:
        """Gives everybody the own rows."""
        n_rows = sum([some.n_rows for some in batch])
        self._note(call, batch, n_rows, (perf_counter() - max(started_s, call.starts_s or 0.0)) * 1e3)
        start = 0
        for some in batch:
            stop = start + some.n_rows
            request = some.request
            if not request.future.done():
                outputs = ran.outputs if len(batch) == 1 else _share(ran.outputs, start, stop)
                waited_ms = (started_s - request.since_s) * 1e3
                done = Done(outputs, n_rows, waited_ms, ran.run_ms, ran.hedged)
                if some.n_rows == request.n_rows:
                    request.future.set_result(done)
                else:
                    await self._answer_in_part(request, some.start, done)
            start = stop

    async def _answer_in_part(self, request: _Request, start: int, done: Done) -> None:
        """Some rows of a request have come; with the last of them it is answered."""
        request.made.append((start, done))
        if request.place.waiting or sum([_rows_in(made) for _, made in request.made]) < request.n_rows:
            return
        try:
            whole = await self._joined([made for _, made in sorted(request.made, key=lambda piece: piece[0])])
        except FenixError as error:
            _fail(request, error)
        else:
            if not request.future.done():
                request.future.set_result(whole)

    async def _joined(self, pieces: Sequence[Done]) -> Done:
        """One answer of several, in order. Raises ExtensionBroken when their rows differ in shape."""
        outputs: dict[str, Produced] = {}
        for name in pieces[0].outputs:
            values = concatenated(self._extension, [await local(piece.outputs[name].values) for piece in pieces])
            sure = [piece.outputs[name].confidence for piece in pieces]
            outputs[name] = Produced(values, None if any(c is None for c in sure) else np.concatenate(sure))  # type: ignore[arg-type]
        return Done(
            outputs,
            max(piece.batch_rows for piece in pieces),
            pieces[0].waited_ms,
            sum(piece.ran_ms for piece in pieces),
            any(piece.hedged for piece in pieces),
        )

    def _note(self, call: _Call, batch: list[_Some], n_rows: int, took_ms: float) -> None:
        """What a call took, told to all who learn from it."""
        kilo = 0.0
        if self._free_ports:
            kilo = sum(math.prod(some.inputs(port).shape) for port in self._free_ports for some in batch) / 1e3
        self._observe(self._extension, n_rows, kilo, took_ms)
        now_s = self._loop.time()
        n_late_rows = sum([some.n_rows for some in batch if some.until_s < now_s])
        dropped = self._pulse.called(took_ms, now_s)
        self._policy.observe(BatchOutcome(n_rows, took_ms, n_late_rows, call.state, dropped))

    def _expire(self, request: _Request) -> None:
        _fail(request, self._late(request))

    def _late(self, request: _Request) -> DeadlineExceeded | ExtensionTimeout:
        """Whose time is up: the client's, or only that of this step."""
        waited_ms = (perf_counter() - request.since_s) * 1e3
        where = "was not done in time by" if request.calls else "could not be done in time by"
        told = f"the request {where} {self._extension}, {waited_ms:.0f} ms after it came there."
        if request.token.hard and request.expires_s >= request.token.until_s:
            return DeadlineExceeded(told, hint="Allow more time, or plan for less.")
        return ExtensionTimeout(told)


def usual_policy(card: Card) -> BatchPolicy:
    """The default policy, told what a call takes as far as the card knows."""
    return make_policy(DEFAULT_POLICY, fixed_ms=card.profile.fixed_ms, per_row_ms=card.profile.per_row_ms)


class Batchers:
    """One Batcher per extension version, made when first needed."""

    def __init__(
        self,
        calls: Calls,
        observe: Observe = lambda extension, n_rows, kilo, took_ms: None,
        policy_of: PolicyOf = usual_policy,
        weight_of: WeightOf = lambda user: 1.0,
    ) -> None:
        """`weight_of` gives a user's share of an extension relative to that of the others."""
        self._calls = calls
        self._observe = observe
        self._policy_of = policy_of
        self._weight_of = weight_of
        self._by_extension: dict[ExtensionId, Batcher] = {}
        self._fares: Mapping[ExtensionId, Envelope] = {}

    def of(self, card: Card) -> Batcher:
        batcher = self._by_extension.get(card.id)
        if batcher is None:
            # One call at a time per replica, and a second only if it is full: it hides the way there behind the
            # computing (570 -> 880 requests a second in the overload drill), but one that is not full halves the
            # batches (2,700 -> 1,900 requests a second, the chain of three at 128 connections).
            slots = card.resources.max_replicas
            limits = BatchLimits(max_rows=card.resources.max_batch_rows, max_in_flight=slots)
            policy = self._policy_of(card)
            batcher = self._by_extension[card.id] = Batcher(
                card.id,
                self._calls,
                limits,
                self._observe,
                policy,
                card.free_ports,
                self._weight_of,
                card.deterministic,
            )
            batcher.hear(self._fares.get(card.id))
        return batcher

    def hear(self, fares: Mapping[ExtensionId, Envelope]) -> None:
        """Takes in how the replicas of every extension fare, for the policies: one merged envelope each."""
        self._fares = fares
        for extension, batcher in self._by_extension.items():
            batcher.hear(fares.get(extension))

    def backlog(self, extension: ExtensionId, token: Token) -> Backlog | None:
        """What rows of this request would find before the extension; None where they would go at once."""
        batcher = self._by_extension.get(extension)
        return None if batcher is None else batcher.backlog(token)

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets the queues of extensions that are gone; what is in them still runs to its end."""
        for id_ in [id_ for id_ in self._by_extension if id_ not in extensions]:
            del self._by_extension[id_]


def _fail(request: _Request, failure: FenixError) -> None:
    if not request.future.done():
        request.future.set_exception(failure)


def _rows_in(done: Done) -> int:
    return len(next(iter(done.outputs.values())).values)


def _longest(texts: Array) -> int:
    """The bytes in the longest row of a BYTES array, shape (n_rows, ...)."""
    if texts.ndim == 1:
        return max(map(len, texts.tolist()), default=0)
    return max((sum(map(len, row)) for row in texts.reshape(len(texts), -1).tolist()), default=0)


def _cut(inputs: Mapping[str, Part], start: int, stop: int) -> dict[str, Part]:
    return {port: part[start:stop] for port, part in inputs.items()}


def _share(outputs: Mapping[str, Produced], start: int, stop: int) -> dict[str, Produced]:
    return {
        name: Produced(made.values[start:stop], None if made.confidence is None else made.confidence[start:stop])
        for name, made in outputs.items()
    }
