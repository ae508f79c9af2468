"""Circuit breakers: which extension versions are let alone for a while, because calling them does no good.

A breaker is closed (calls pass), open (none does) or half-open (a few probes do, and decide). It opens on a run of
failures, on too large a share of them in its window, or because its extension does much worse than the alternatives.
Sources: Nygard 2007, Release It!, ch. 5; Envoy's documentation, "Outlier detection", for consecutive failures, time
out that grows with repeats, and the bound on how many may be out at once.

A call that raised, or gave broken output, says little by itself: the fault may lie in the rows, and whoever sends rows
that an extension cannot bear should not take it away from the others. So these count on their own, one per request: a
group of requests that fails is split, and what counts is the request that is left. Such a breaker opens when nobody
speaks for the extension any more: its last `in_a_row` calls raised, and

- no user for whom none of them was had a success in the last `trust_s`,
- nobody at all had one in the last `window_s`, here or, as its replicas tell, elsewhere.

Nobody vouches for the names of users, and so no number of them opens it while somebody else's success is younger than
that. This holds for as long as others use the extension: one that nobody else has used for `trust_s` is let alone after
`in_a_row` bad calls of a single client, who can keep it so until a probe of somebody else succeeds. Requests without a
user are those of one user, as they cannot be told apart: there, `window_s` after the last success is enough.

Half-open, a call that raised gives its probe back, and the same rule decides whether it opens again; successes close
it, whatever raises in between.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

from planner.cards import ExtensionId
from planner.envelopes import Envelope, Tally, Window

State = Literal["closed", "open", "half-open"]
MOST_USERS = 64  # whose last success is known by name, per extension


@dataclass(frozen=True, slots=True)
class BreakerSettings:
    """When breakers open and for how long.

    A breaker opens after `in_a_row` failures, or when of at least `least_calls` in the last `window_s` the share
    `failed_share` failed. It stays open for `open_s`, twice that the next time and so on up to `longest_open_s`, each
    lengthened by a random part of up to `jitter` so that gateways do not probe together; `forgive_s` of good conduct
    and the count begins anew. Then up to `probes` calls at a time are let through, and as many successes close it. A
    probe that nobody reports on is given up after `probe_s`. A user who had a success speaks for the extension for
    `trust_s`, where others get nothing but errors.

    An extension is an outlier when its success rate lies more than `rate_gap` under the median of its peers, or it
    is `slow_factor` times as slow as theirs. At most `most_out` of a group may be out at once.
    """

    window_s: float = 10.0
    least_calls: int = 20
    failed_share: float = 0.5
    in_a_row: int = 5
    trust_s: float = 60.0
    open_s: float = 1.0
    longest_open_s: float = 60.0
    jitter: float = 0.2
    forgive_s: float = 60.0
    probes: int = 3
    probe_s: float = 10.0
    rate_gap: float = 0.2
    slow_factor: float = 5.0
    most_out: float = 0.5


DEFAULTS = BreakerSettings()


@dataclass(frozen=True, slots=True)
class Standing:
    """A breaker as others see it. `why` says what opened it last, "" where it is closed; `opens_in_s` is how long no
    call passes yet; the calls are those this gateway saw in the window."""

    extension: ExtensionId
    state: State
    why: str = ""
    opens_in_s: float = 0.0
    n_calls: int = 0
    n_failed: int = 0


@dataclass(slots=True)
class _Breaker:
    window: Window
    slowness: Window  # took over expected
    state: State = "closed"
    why: str = ""
    in_a_row: int = 0
    n_raised: int = 0  # calls in a row, since it opened
    raised_for: set[str] = field(default_factory=set)  # whose, since the last success; of those in `good_s`
    good_s: dict[str, float] = field(default_factory=dict)  # users' last successes, of the latest users, in order
    forgotten_s: float = -math.inf  # the last success of those who are no longer there
    n_trips: int = 0
    until_s: float = 0.0  # open until
    since_s: float = -math.inf  # in this state
    probes: list[float] = field(default_factory=list)  # when those under way began
    n_good: int = 0  # successes of probes


class Breakers:
    """The breakers of all extension versions that one process calls. Not for several threads at once."""

    def __init__(self, rng: random.Random, settings: BreakerSettings = DEFAULTS) -> None:
        self._rng = rng
        self._settings = settings
        self._breakers: dict[ExtensionId, _Breaker] = {}
        self._seen: Mapping[ExtensionId, Envelope] = {}

    def allows(self, extension: ExtensionId, now_s: float) -> bool:
        """Whether a call may be made now. Half-open, yes counts as a probe: make the call and report what became of
        it with `succeeded`, `failed`, `raised` or `abandoned`."""
        breaker = self._breakers.get(extension)
        if breaker is None or breaker.state == "closed":
            return True
        self._half_open_when_due(breaker, now_s)
        if breaker.state == "open":
            return False
        breaker.probes = [at for at in breaker.probes if now_s - at < self._settings.probe_s]
        if len(breaker.probes) >= self._settings.probes:
            return False
        breaker.probes.append(now_s)
        return True

    def state(self, extension: ExtensionId, now_s: float) -> State:
        """For planning: how the breaker is, without taking a probe."""
        breaker = self._breakers.get(extension)
        if breaker is None:
            return "closed"
        self._half_open_when_due(breaker, now_s)
        return breaker.state

    def succeeded(
        self, extension: ExtensionId, now_s: float, took_ms: float, expected_ms: float | None = None, user: str = ""
    ) -> None:
        """A call of `user` came back after `took_ms`. `expected_ms`, where it is known, makes the slowness of
        extensions comparable that differ by nature: without it plain times are compared."""
        breaker = self._breaker(extension)
        if not self._counts(breaker, now_s, took_ms):
            return
        breaker.in_a_row = breaker.n_raised = 0
        breaker.raised_for.clear()
        breaker.good_s.pop(user, None)
        breaker.good_s[user] = now_s
        if len(breaker.good_s) > MOST_USERS:
            breaker.forgotten_s = breaker.good_s.pop(next(iter(breaker.good_s)))
        if breaker.state == "half-open":
            breaker.n_good += 1
            if breaker.n_good >= self._settings.probes:
                self._close(breaker, now_s)
            return
        breaker.window.succeeded(now_s, took_ms)
        breaker.slowness.succeeded(now_s, took_ms if expected_ms is None else took_ms / max(expected_ms, 1e-3))

    def failed(self, extension: ExtensionId, now_s: float, took_ms: float) -> None:
        """A call failed after `took_ms` by a fault that no rows can bring about: nobody answered, or not in time."""
        breaker = self._breaker(extension)
        if not self._counts(breaker, now_s, took_ms):
            return
        if breaker.state == "half-open":
            self._open(breaker, now_s, "a probe failed")
            return
        breaker.window.failed(now_s)
        breaker.in_a_row += 1
        if breaker.in_a_row >= self._settings.in_a_row:
            self._open(breaker, now_s, f"{breaker.in_a_row} failures in a row")
        else:
            self._judge(breaker, breaker.window.total(now_s), now_s)

    def raised(self, extension: ExtensionId, now_s: float, took_ms: float, user: str = "") -> None:
        """A call for one request of `user` ended after `took_ms` because the extension raised or gave broken output."""
        breaker = self._breaker(extension)
        if not self._counts(breaker, now_s, took_ms):
            return
        breaker.n_raised += 1
        if user in breaker.good_s:
            breaker.raised_for.add(user)
        if breaker.n_raised >= self._settings.in_a_row and not self._has_a_friend(extension, breaker, now_s):
            self._open(breaker, now_s, f"its last {breaker.n_raised} calls raised, and nobody's succeed")

    def abandoned(self, extension: ExtensionId, now_s: float, took_ms: float) -> None:
        """A call that was allowed ended after `took_ms` and tells nothing: cancelled, its input was bad, or it
        raised for a group of requests that is now split."""
        breaker = self._breakers.get(extension)
        if breaker is not None and breaker.state == "half-open":
            self._counts(breaker, now_s, took_ms)  # gives the probe back

    def observe(self, envelopes: Mapping[ExtensionId, Envelope], now_s: float) -> None:
        """Takes in what the replicas say of themselves, one merged envelope per extension. What fails there has raised:
        a breaker opens where all of at least `least_calls` did and nobody here had a success in the last `trust_s`."""
        self._seen = envelopes
        settings = self._settings
        for extension, envelope in envelopes.items():
            if envelope.n_failed < max(1, settings.least_calls) or envelope.n_failed < envelope.n_calls:
                continue
            breaker = self._breaker(extension)
            # After a change of state, until calls from before have left the replicas' windows, only our own count.
            settled = now_s - breaker.since_s > 2 * settings.window_s
            trusted = any(now_s - at_s < settings.trust_s for at_s in breaker.good_s.values())
            if breaker.state == "closed" and settled and not trusted:
                self._open(breaker, now_s, f"all of {envelope.n_calls} calls raised, say its replicas")

    def eject_outliers(self, groups: Iterable[Sequence[ExtensionId]], now_s: float) -> tuple[ExtensionId, ...]:
        """Opens the breakers of those that do much worse than their peers; returns them.

        A group holds extension versions that can stand in for each other: a step's extension and its fallbacks. Call
        it every few seconds, not on the request path.
        """
        ejected = []
        for group in groups:
            members = list(dict.fromkeys(group))
            while (worst := self._worst(members, now_s)) is not None:
                extension, why = worst
                self._open(self._breaker(extension), now_s, why)
                ejected.append(extension)
        return tuple(ejected)

    def standings(self, now_s: float) -> tuple[Standing, ...]:
        """Every breaker that has something to tell, by extension."""
        told = []
        for extension, breaker in sorted(self._breakers.items()):
            self._half_open_when_due(breaker, now_s)
            calls = breaker.window.total(now_s)
            left_s = max(0.0, breaker.until_s - now_s) if breaker.state == "open" else 0.0
            told.append(Standing(extension, breaker.state, breaker.why, left_s, calls.n_calls, calls.n_failed))
        return tuple(told)

    def keep_only(self, extensions: frozenset[ExtensionId]) -> None:
        """Forgets extensions that are gone: what comes back under the same id is judged anew."""
        self._breakers = {id_: breaker for id_, breaker in self._breakers.items() if id_ in extensions}
        self._seen = {id_: envelope for id_, envelope in self._seen.items() if id_ in extensions}

    def _breaker(self, extension: ExtensionId) -> _Breaker:
        breaker = self._breakers.get(extension)
        if breaker is None:
            breaker = self._breakers[extension] = _Breaker(
                Window(self._settings.window_s), Window(self._settings.window_s)
            )
        return breaker

    def _counts(self, breaker: _Breaker, now_s: float, took_ms: float) -> bool:
        """Whether the outcome of a call tells something: not what began before the breaker came into its state."""
        if breaker.state == "closed":
            return now_s - took_ms / 1e3 >= breaker.since_s - 1e-6
        self._half_open_when_due(breaker, now_s)
        if breaker.state == "open" or not breaker.probes or now_s - took_ms / 1e3 < breaker.probes[0] - 1e-3:
            return False
        breaker.probes.pop(0)
        return True

    def _half_open_when_due(self, breaker: _Breaker, now_s: float) -> None:
        if breaker.state == "open" and now_s >= breaker.until_s:
            breaker.state, breaker.since_s = "half-open", breaker.until_s
            breaker.probes, breaker.n_good = [], 0

    def _judge(self, breaker: _Breaker, calls: Tally, now_s: float) -> None:
        settings = self._settings
        if calls.n_calls >= settings.least_calls and calls.failed_share >= settings.failed_share:
            self._open(breaker, now_s, f"{calls.n_failed} of {calls.n_calls} calls failed")

    def _has_a_friend(self, extension: ExtensionId, breaker: _Breaker, now_s: float) -> bool:
        """Whether anybody speaks for an extension that keeps raising. Whose success is forgotten counts as somebody
        for whom it does not raise, so that a client who invents users cannot make the others forgotten and open it."""
        settings = self._settings
        seen = self._seen.get(extension)
        if seen is not None and seen.n_failed < seen.n_calls:
            return True
        return now_s - breaker.forgotten_s < settings.trust_s or any(
            now_s - at_s < (settings.window_s if user in breaker.raised_for else settings.trust_s)
            for user, at_s in breaker.good_s.items()
        )

    def _open(self, breaker: _Breaker, now_s: float, why: str) -> None:
        settings = self._settings
        if breaker.state == "closed" and now_s - breaker.since_s > settings.forgive_s:
            breaker.n_trips = 0
        # From 2^40 on it makes no difference, and floats would end.
        open_s = min(settings.longest_open_s, settings.open_s * 2.0 ** min(breaker.n_trips, 40))
        breaker.n_trips += 1
        breaker.state, breaker.why = "open", why
        breaker.since_s = now_s
        breaker.until_s = now_s + open_s * (1.0 + settings.jitter * self._rng.random())
        breaker.in_a_row = breaker.n_raised = 0

    def _close(self, breaker: _Breaker, now_s: float) -> None:
        breaker.state, breaker.why, breaker.since_s = "closed", "", now_s
        breaker.probes = []
        breaker.in_a_row = 0
        breaker.window.clear()
        breaker.slowness.clear()

    def _worst(self, members: Sequence[ExtensionId], now_s: float) -> tuple[ExtensionId, str] | None:
        """Who of the group is to be ejected first, and why; None when nobody is, or no more may be."""
        working = [extension for extension in members if self.state(extension, now_s) == "closed"]
        if len(working) < 2 or len(members) - len(working) + 1 > self._settings.most_out * len(members):
            return None
        return self._outlier(working, now_s, self._failures, self._fails_more) or self._outlier(
            working, now_s, self._slowness, self._slower
        )

    def _outlier(
        self,
        working: Sequence[ExtensionId],
        now_s: float,
        measure: Callable[[ExtensionId, float], float | None],
        excess: Callable[[float, float], tuple[float, str]],
    ) -> tuple[ExtensionId, str] | None:
        """The member whose measure exceeds the median of the others' most, where it does at all."""
        told = {extension: value for extension in working if (value := measure(extension, now_s)) is not None}
        worst: tuple[float, ExtensionId, str] | None = None
        for extension, value in told.items():
            peers = [other for id_, other in told.items() if id_ != extension]
            if not peers:
                return None
            by, why = excess(value, median(peers))
            if by > 0.0 and (worst is None or by > worst[0]):
                worst = by, extension, why
        return None if worst is None else (worst[1], worst[2])

    def _failures(self, extension: ExtensionId, now_s: float) -> float | None:
        """The share of failed calls; None where too few are known."""
        breaker = self._breakers.get(extension)
        own = breaker.window.total(now_s) if breaker is not None else Tally()
        return own.failed_share if own.n_calls >= self._settings.least_calls else None

    def _fails_more(self, share: float, peers: float) -> tuple[float, str]:
        return share - peers - self._settings.rate_gap, f"{share:.0%} of its calls fail, {peers:.0%} of its peers'"

    def _slowness(self, extension: ExtensionId, now_s: float) -> float | None:
        """The mean slowness; None where too few calls are known."""
        breaker = self._breakers.get(extension)
        if breaker is None:
            return None
        slowness = breaker.slowness.total(now_s).took_ms
        return slowness.mean if slowness.n >= self._settings.least_calls else None

    def _slower(self, slowness: float, peers: float) -> tuple[float, str]:
        times = slowness / max(peers, 1e-9)
        return times - self._settings.slow_factor, f"{times:.1f} times as slow as its peers"
