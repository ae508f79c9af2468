"""The line before one extension: whose rows go next. A pure data structure; time is an argument.

From the outside in:

- *Classes.* The most urgent priority class goes first. Every class below it counts as having come `AGING_S` later per
  step of priority: once the oldest request of a lower class is older than that, it goes next, so that no class can be
  starved (head starts: Jackson 1960, Some problems in queueing with dynamic priorities, Naval Research Logistics 7).
- *Users.* Inside a class a user may go when its virtual start is not ahead of the class's virtual time, that is, when
  it had no more rows than its weighted share (start times: Goyal, Vin and Cheng 1996, Start-time fair queuing,
  SIGCOMM; who is eligible, and the virtual time: Bennett and Zhang 1997, Hierarchical packet fair queueing
  algorithms, IEEE/ACM Transactions on Networking 5).
- *Deadlines.* Among the users that may go, and among the requests of one user, the earliest deadline goes first.
  A deadline further away than `FAR_S` counts as that far, so that nobody is overtaken for ever.
- *Sizes.* Where rows are padded to the longest of their batch and more wait than it takes, users in their turn send
  those of their requests whose rows are most like the first in the batch. Who is first is never a matter of size, what
  is due soon is not passed over, and nothing at the head of its user's line more than `MOST_PASSED` times.

A batch takes rows of one kind, and is filled to the last row: who does not fit whole goes in part, where rows need not
stay together. What is late or has no client any more is taken out on the way and never runs.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import Generic, Self, TypeVar

from planner.tokens import Token

AGING_S = 1.0  # per step of priority
FAR_S = 5.0
LOOK_PAST = 128  # requests of another kind, in the search for rows that fit a batch
LOOK_AROUND = 12  # per row of a batch: requests of all users together, in the search for similar ones
MOST_PASSED = 4  # batches
SOON_RUNS = 3  # due within so many runs of a batch is soon
KEPT_FREE = 0.05  # of the line, per step of priority

WeightOf = Callable[[str], float]


@dataclass(slots=True, eq=False)
class Place:
    """A request in the line, once. Only rows of equal `kind` share a batch; `until_s` is when they have to be done.

    `size` is that of its longest row, in any unit, where shorter rows of a batch are padded to the longest; else 0.
    """

    token: Token
    n_rows: int
    n_bytes: int
    until_s: float
    kind: object
    size: float = field(default=0.0, kw_only=True)
    # The line's own:
    came_s: float = field(init=False)
    senior_s: float = field(init=False)  # when the request came, wherever that was
    due_s: float = field(init=False)
    number: int = field(init=False)
    waiting: bool = field(init=False, default=False)
    passed: int = field(init=False, default=0)  # batches that took others of its user for their size

    def cut(self, n_rows: int) -> Self | None:
        """Its first `n_rows` (fewer than it has) as a place of their own, while it keeps the others; None where rows
        of one request stay together."""
        return None


P = TypeVar("P", bound=Place)


@dataclass(frozen=True, slots=True)
class Taken(Generic[P]):
    """What left the line: a batch to run, and what is not to be run: it would be late, or its client has gone."""

    batch: list[P]
    late: list[P]
    gone: list[P]


@dataclass(frozen=True, slots=True)
class Ahead:
    """Rows that run before those of a new request: `n_rows` as things are, `n_rows_of_others` if its user had none in
    the line. `shared` where other users wait in its class."""

    n_rows: float
    n_rows_of_others: float
    shared: bool = False


NOTHING_AHEAD = Ahead(0.0, 0.0)


class Line(Generic[P]):
    """What waits for one extension. `push`, `remove` and each request taken cost O(log n)."""

    def __init__(self, max_rows: int, max_bytes: int, weight_of: WeightOf = lambda user: 1.0) -> None:
        """`weight_of` gives a user's share of the rows relative to that of the others, above 0."""
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self._weight_of = weight_of
        self._classes: dict[int, _Class[P]] = {}
        self._active: list[int] = []  # the classes in which somebody waits, most urgent first
        self._number = 0
        self.n_places = 0  # requests
        self.n_rows = 0
        self.n_bytes = 0

    def has_room(self, n_rows: int, n_bytes: int, priority: int) -> bool:
        """Whether a request may be pushed. A class has `KEPT_FREE` less room than the one above it, so that a flood of
        less urgent requests never shuts out the more urgent. Bytes count from the second request on."""
        share = max(0.0, 1.0 - KEPT_FREE * priority)
        rows, size = self.n_rows + n_rows, self.n_bytes + n_bytes
        return rows <= share * self._max_rows and (not self.n_places or size <= share * self._max_bytes)

    def push(self, place: P, now_s: float) -> None:
        """Puts a request into the line. Time does not run backwards from one push to the next."""
        self._number += 1
        place.number = self._number
        place.came_s = now_s
        place.senior_s = min(place.token.came_s or now_s, now_s)
        far_s = now_s + FAR_S
        place.due_s = place.until_s if place.until_s < far_s else far_s
        self._enter(place)

    def remove(self, place: P) -> bool:
        """Takes out a request wherever it stands; False when it is not in the line."""
        if not place.waiting:
            return False
        class_ = self._classes[place.token.priority]
        class_.remove(place)
        self._left(class_, place)
        if not class_.n_places:
            class_.reset()
        return True

    def take(self, n_rows: int, now_s: float, run_s: float = 0.0) -> Taken[P]:
        """Takes up to `n_rows` rows of one kind that can still be done in time if they run for `run_s` from now on.

        The first request is taken even if it alone has more rows. The batch is empty only when nothing is left.
        """
        taken: Taken[P] = Taken([], [], [])
        batch = taken.batch
        aside: list[P] = []
        similar: _Similar[P] | None = None
        is_choice = self.n_rows > n_rows
        rows = 0
        while self.n_places and rows < n_rows and len(aside) < LOOK_PAST:
            place = self._next(similar)
            if place.token.gone:
                taken.gone.append(place)
            elif now_s + run_s > place.until_s:
                taken.late.append(place)
            elif batch and place.kind != batch[0].kind:
                aside.append(place)
            elif batch and rows + place.n_rows > n_rows:
                aside.append(place)
                front = place.cut(n_rows - rows)
                if front is not None:
                    batch.append(front)
                    self._classes[place.token.priority].charge(front)
                break
            else:
                if is_choice and not batch and place.size:
                    similar = _Similar(place, now_s + SOON_RUNS * run_s, n_rows)
                batch.append(place)
                rows += place.n_rows
                self._classes[place.token.priority].charge(place)
        for place in aside:
            self._enter(place)
        for class_ in self._classes.values():
            if class_.n_places:
                class_.oldest()  # lets go of those that came before it
            else:
                class_.reset()
        return taken

    def ahead(self, priority: int, user: str) -> Ahead:
        """What would run before a request that came now, were its deadline like that of the others."""
        urgent = 0
        for urgency in self._active:
            if urgency >= priority:
                return self._classes[urgency].ahead(user, urgent) if urgency == priority else Ahead(urgent, urgent)
            urgent += self._classes[urgency].n_rows
        return Ahead(urgent, urgent) if urgent else NOTHING_AHEAD

    def oldest_s(self) -> float:
        """When the request that has waited longest came here. There is one."""
        return min([self._classes[urgency].oldest().came_s for urgency in self._active])

    def _next(self, similar: _Similar[P] | None) -> P:
        """Takes the next request out, whatever it is. The line is not empty."""
        class_ = top = self._classes[self._active[0]]
        if len(self._active) > 1:
            class_ = min((self._classes[urgency] for urgency in self._active), key=_seniority)
        place = top.pop(similar) if class_ is top else class_.pop_oldest()
        self._left(class_, place)
        return place

    def _enter(self, place: P) -> None:
        urgency = place.token.priority
        class_ = self._classes.get(urgency)
        if class_ is None:
            class_ = self._classes[urgency] = _Class(urgency, self._weight_of)
        if not class_.n_places:
            insort(self._active, urgency)
        class_.add(place)
        self.n_places += 1
        self.n_rows += place.n_rows
        self.n_bytes += place.n_bytes

    def _left(self, class_: _Class[P], place: P) -> None:
        self.n_places -= 1
        self.n_rows -= place.n_rows
        self.n_bytes -= place.n_bytes
        if not class_.n_places:
            self._active.remove(class_.urgency)


@dataclass(slots=True, eq=False)
class _Flow(Generic[P]):
    """One user's requests in one class."""

    user: str
    weight: float
    start: float  # virtual time at which it may go next
    n_places: int = 0
    n_rows: int = 0
    may_go: bool = True  # its start is not ahead of the virtual time
    heap: list[tuple[float, int, P]] = field(default_factory=list)  # by due time; some have left

    def head(self) -> P:
        """The request that is due first. There is one."""
        heap = self.heap
        while not heap[0][2].waiting:
            heappop(heap)
        return heap[0][2]


class _Similar(Generic[P]):
    """The choice of company for the first request of a batch."""

    def __init__(self, first: P, soon_s: float, n_rows: int) -> None:
        """What is due before `soon_s` goes in its turn. The batch takes `n_rows`; of all users together `LOOK_AROUND`
        times as many requests are looked at."""
        self._kind, self._size = first.kind, first.size
        self._soon_s = soon_s
        self._most = self._left = LOOK_AROUND * n_rows
        self._nearest: dict[_Flow[P], list[tuple[float, tuple[float, int, P]]]] = {}  # the most similar last

    def of(self, flow: _Flow[P], share: float) -> P:
        """The request that a user whose turn it is should send; `share` of the rows in its class are that user's."""
        head, nearest = flow.head(), self._nearest.get(flow)
        if nearest is None:
            nearest = self._nearest[flow] = self._look(flow, max(LOOK_AROUND, int(share * self._most)))
            head.passed += 1
        if head.passed > MOST_PASSED or head.until_s < self._soon_s:
            return head
        while nearest:
            place = nearest.pop()[1][2]
            if place.waiting:
                return place
        return head

    def _look(self, flow: _Flow[P], most: int) -> list[tuple[float, tuple[float, int, P]]]:
        entries = flow.heap[: min(most, self._left)]
        self._left -= len(entries)
        kind, size = self._kind, self._size
        found = [(abs(entry[2].size - size), entry) for entry in entries if entry[2].waiting and entry[2].kind == kind]
        found.sort(reverse=True)
        return found


class _Class(Generic[P]):
    """One priority class. Heaps are cleaned late: what has left them is skipped when it comes up, and swept out when
    it is the greater part."""

    def __init__(self, urgency: int, weight_of: WeightOf) -> None:
        self.urgency = urgency
        self.n_places = 0
        self.n_rows = 0
        self._weight_of = weight_of
        self._flows: dict[str, _Flow[P]] = {}  # users who wait
        self._starts: dict[str, float] = {}  # of users who do not wait, but had more than their share
        self._weight = 0.0  # of all who wait
        self._virtual = 0.0
        self._most_starts = 64
        self._held_back = 0
        self._arrivals: list[tuple[float, int, P]] = []
        # Only kept while several users wait:
        self._may_go: list[tuple[float, int, P]] = []  # the heads of those who may go, by due time
        self._too_early: list[tuple[float, int, _Flow[P]]] = []  # the others, by start

    def add(self, place: P) -> None:
        user = place.token.user
        flow = self._flows.get(user)
        if flow is None:
            flow = self._begin(user)
        place.waiting = True
        flow.n_places += 1
        flow.n_rows += place.n_rows
        self.n_places += 1
        self.n_rows += place.n_rows
        entry = (place.due_s, place.number, place)
        heappush(flow.heap, entry)
        heappush(self._arrivals, (place.senior_s, place.number, place))
        if len(self._flows) > 1 and flow.heap[0] is entry:
            self._file(flow)
        if len(self._arrivals) > 2 * self.n_places + 64:
            self._arrivals = [e for e in self._arrivals if e[2].waiting]
            heapify(self._arrivals)

    def remove(self, place: P) -> None:
        """Takes out one that waits."""
        flow = self._flows[place.token.user]
        place.waiting = False
        flow.n_places -= 1
        flow.n_rows -= place.n_rows
        self.n_places -= 1
        self.n_rows -= place.n_rows
        if not flow.n_places:
            self._end(flow)
            return
        if 2 * len(flow.heap) > 3 * flow.n_places + 32:  # more often than others: what has left is looked at too
            flow.heap = [e for e in flow.heap if e[2].waiting]
            heapify(flow.heap)
        if len(self._flows) > 1:
            self._file(flow)

    def pop(self, similar: _Similar[P] | None) -> P:
        """Takes out the next: the earliest due of the users who may go, or what its user should rather send."""
        place = self._fair_head() if len(self._flows) > 1 else self._lone_flow().head()
        if similar is not None:
            flow = self._flows[place.token.user]
            place = similar.of(flow, flow.weight / self._weight)
        self.remove(place)
        return place

    def pop_oldest(self) -> P:
        place = self.oldest()
        self.remove(place)
        return place

    def oldest(self) -> P:
        """The request that has waited longest. There is one."""
        heap = self._arrivals
        while not heap[0][2].waiting:
            heappop(heap)
        return heap[0][2]

    def charge(self, place: P) -> None:
        """Counts the rows of one that left against its user's share."""
        user = place.token.user
        flow = self._flows.get(user)
        if flow is None:
            weight = self._weight_of(user)
            self._virtual += place.n_rows / (self._weight + weight)
            self._starts[user] += place.n_rows / weight
            return
        self._virtual += place.n_rows / self._weight
        flow.start += place.n_rows / flow.weight
        if len(self._flows) > 1 and flow.may_go and flow.start > self._virtual:
            self._hold_back(flow)

    def ahead(self, user: str, urgent: int) -> Ahead:
        """What would run before a request of this user, with `urgent` rows of more urgent classes."""
        flow = self._flows.get(user)
        if flow is None:
            return Ahead(urgent, urgent, shared=True)
        # While the user's rows go, the others have their shares.
        own = min(self.n_rows, flow.n_rows * self._weight / flow.weight)
        return Ahead(urgent + own, urgent, shared=len(self._flows) > 1)

    def reset(self) -> None:
        """Nobody waits: forgets who had how much."""
        self._virtual = self._weight = 0.0
        self._starts.clear()
        self._arrivals.clear()
        self._may_go.clear()
        self._too_early.clear()

    def _begin(self, user: str) -> _Flow[P]:
        if len(self._flows) == 1:  # from now on there is a choice
            self._may_go.clear()
            self._too_early.clear()
            self._file(self._lone_flow())
        flow: _Flow[P] = _Flow(user, self._weight_of(user), max(self._virtual, self._starts.pop(user, 0.0)))
        self._flows[user] = flow
        self._weight += flow.weight
        if flow.start > self._virtual:
            self._hold_back(flow)
        return flow

    def _end(self, flow: _Flow[P]) -> None:
        del self._flows[flow.user]
        self._weight -= flow.weight
        self._starts[flow.user] = flow.start
        if len(self._starts) > self._most_starts:
            self._starts = {user: start for user, start in self._starts.items() if start > self._virtual}
            self._starts[flow.user] = flow.start  # it may still be charged
            self._most_starts = 2 * len(self._starts) + 64

    def _lone_flow(self) -> _Flow[P]:
        """The only user who waits: time does not wait for the others."""
        (flow,) = self._flows.values()
        self._virtual = max(self._virtual, flow.start)
        flow.may_go = True
        return flow

    def _hold_back(self, flow: _Flow[P]) -> None:
        """Until time has come to the flow's start."""
        flow.may_go = False
        self._held_back += 1
        heappush(self._too_early, (flow.start, self._held_back, flow))

    def _file(self, flow: _Flow[P]) -> None:
        """Notes the head of a user who may go."""
        if flow.may_go:
            head = flow.head()
            heappush(self._may_go, (head.due_s, head.number, head))
            if len(self._may_go) > 4 * len(self._flows) + 64:
                heads = [other.head() for other in self._flows.values() if other.may_go]
                self._may_go = [(place.due_s, place.number, place) for place in heads]
                heapify(self._may_go)

    def _fair_head(self) -> P:
        """Of the users who may go, the request that is due first."""
        while True:
            self._let_in()
            while self._may_go:
                place = self._may_go[0][2]
                if place.waiting:
                    flow = self._flows[place.token.user]
                    if flow.may_go and flow.head() is place:
                        return place
                heappop(self._may_go)
            # All had more than their share: time moves on to the first who may go again.
            while not self._too_early[0][2].n_places:
                heappop(self._too_early)
            self._virtual = self._too_early[0][0]

    def _let_in(self) -> None:
        """Those whose start has come may go."""
        early = self._too_early
        while early and early[0][0] <= self._virtual:
            flow = heappop(early)[2]
            if flow.n_places and not flow.may_go:
                flow.may_go = True
                self._file(flow)


def seniority(came_s: float, priority: int) -> float:
    """Who has the least goes first, once it is not of the most urgent class that waits."""
    return came_s + AGING_S * priority


def _seniority(class_: _Class[P]) -> float:
    return seniority(class_.oldest().senior_s, class_.urgency)
