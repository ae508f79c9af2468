"""Drills: three times the load that the extensions bear, and replicas that are killed under load.

    python -m tests.benchmarks.bench_drills [overload] [kill] [growth] [--help for the options]

Each drill has a private cluster of extensions that stay deployments (`slow_work.py`), loaded by `open_loop.py` from a
process of its own. `docs/benchmarks.md` says how to read what is printed. The terms hold for the long runs:
`overload --rounds 1 --seconds 600`, `kill --seconds 120`.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import psutil

from cluster.settings import Settings
from planner.cards import Card
from planner.goals import Goal
from tests.benchmarks import growth
from tests.benchmarks.load import Spread
from tests.benchmarks.open_loop import CUT, HUNG, WRONG, Class, ClassTally, Offer, Tally, offer, offer_beside
from tests.benchmarks.own_cluster import gateway, kill_one, own_cluster, serving
from tests.benchmarks.slow_work import CHAIN, MAKES, ROWS_PER_S, VARIANTS, WIDTH

DEADLINE_MS = 200.0
REFUSED_WITHIN_MS = 20.0
# Name, priority, share of the load. At three times the capacity the first two ask for 0.75 of it.
PRIORITIES = (("high", 1, 0.10), ("middle", 5, 0.15), ("low", 9, 0.75))
RISING = (0.7, 0.85, 1.0, 1.2, 1.5)  # offered in search of the peak, as multiples of full calls
OVERLOAD = 3.0
DRILLS = ("overload", "kill", "growth")
_SETTINGS = {"fusion.enabled": False}


@dataclass(frozen=True, slots=True)
class Verdict:
    """A term, what was found, and whether that meets it."""

    term: str
    found: str
    met: bool

    def __str__(self) -> str:
        return f"{'met' if self.met else 'MISSED':8} {self.term}: {self.found}"


# --- overload


@dataclass(slots=True)
class Overload:
    """What the rounds of one variant brought."""

    shares: list[float] = field(default_factory=list)  # of the peak
    high_p99_ms: list[float] = field(default_factory=list)
    refused_p99_ms: list[float] = field(default_factory=list)
    gateway_mib: list[float] = field(default_factory=list)  # every second of the last round


def mixed(goals: Sequence[Goal]) -> list[Class]:
    """All priorities, each in equal parts for all goals."""
    classes = []
    for name, priority, share in PRIORITIES:
        for goal in goals:
            times, plus = MAKES[goal.name]
            label = name if len(goals) == 1 else f"{name} {goal.name.removeprefix('drill-')}"
            terms = {"deadline_ms": DEADLINE_MS, "priority": priority}
            classes.append(Class(label, share / len(goals), goal.name, terms, times, plus, width=WIDTH))
    return classes


def overload(variant: str, rounds: int, seconds: float, seed: int) -> list[Verdict]:
    """Peak, then three times the peak; so many rounds of that."""
    goals, sources = VARIANTS[variant]
    found = Overload()
    with own_cluster(sources, goals, _SETTINGS) as settings:
        load = Offer(settings.http_port, 0.5 * ROWS_PER_S, 4.0, mixed(goals), DEADLINE_MS)
        offer(load)  # warms up
        offer(replace(load, rate_per_s=1.5 * ROWS_PER_S))
        for turn in range(rounds):
            found = asyncio.run(_overload_round(found, load, settings, f"{variant}, round {turn + 1}", seconds, seed))
            seed += 1
    growth_mib = found.gateway_mib[-1] - found.gateway_mib[0]
    print(f"{variant}: gateway's memory by the second, MiB: {_thinned(found.gateway_mib)}", flush=True)
    shares, refused = Spread.of(found.shares), Spread.of(found.refused_p99_ms)
    high = Spread.of(found.high_p99_ms)
    of = f"{variant} at {OVERLOAD:g} times its peak"
    return [
        Verdict(f"{of}: goodput at least 0.90 of the peak", str(shares), shares.median >= 0.9),
        Verdict(f"{of}: p99 of high priority within {DEADLINE_MS:g} ms", f"{high} ms", high.high <= DEADLINE_MS),
        Verdict(f"{of}: p99 of refusals within {REFUSED_WITHIN_MS:g} ms", f"{refused} ms", refused.median <= 20.0),
        Verdict(f"{of}: memory flat over {seconds:g} s", f"{growth_mib:+.1f} MiB", abs(growth_mib) < 10.0),
    ]


async def _overload_round(
    found: Overload, load: Offer, settings: Settings, label: str, seconds: float, seed: int
) -> Overload:
    peak_per_s, peak_at = 0.0, 0.0
    for i, times in enumerate(RISING):
        rising = offer(replace(load, rate_per_s=times * ROWS_PER_S, seed=seed * 100 + i))
        if rising.in_time_per_s > peak_per_s:
            peak_per_s, peak_at = rising.in_time_per_s, rising.count() / rising.seconds
        print(f"{label}: {_told(rising)}", flush=True)
    if not peak_per_s:
        raise SystemExit(f"nothing was answered in time: {[one.said for one in rising.classes.values()]}")
    process = gateway(settings)
    flood = replace(load, rate_per_s=OVERLOAD * peak_per_s, seconds=seconds, seed=seed * 100 + 99, connections=1024)
    memory = asyncio.create_task(_watch_memory(process))
    before, _ = process.cpu_times(), psutil.cpu_percent()
    flooded = await offer_beside(flood)
    after, busy = process.cpu_times(), psutil.cpu_percent() * (psutil.cpu_count() or 1) / 100.0
    gateway_share = (after.user + after.system - before.user - before.system) / seconds
    memory.cancel()
    found.gateway_mib = await memory
    share = flooded.in_time_per_s / peak_per_s
    found.shares.append(share)
    high = [one for name, one in flooded.classes.items() if name.startswith("high")]
    found.high_p99_ms.append(max(one.answered.p99_ms for one in high))
    refused = [one.refused for one in flooded.classes.values() if one.refused.n]
    found.refused_p99_ms.append(max([one.p99_ms for one in refused], default=0.0))
    print(f"{label}: peak {peak_per_s:.0f}/s in time, with {peak_at:.0f}/s offered")
    print(
        f"{label}: cores in use {busy:.2f}, of them by the gateway {gateway_share:.2f},"
        f" by the load {flooded.processor:.2f}"
    )
    print(f"{label}: {_told(flooded)}; {share:.3f} of the peak")
    for name, one in flooded.classes.items():
        print(f"    {name:20} {_class_told(one)}")
    said = sum([Counter(one.said) for one in flooded.classes.values()], Counter[str]())
    for text, n in said.most_common(5):
        print(f"    {n:7}  {text}")
    print(flush=True)
    return found


async def _watch_memory(process: psutil.Process) -> list[float]:
    """Resident memory in MiB, once a second until this is cancelled."""
    found = []
    try:
        while True:
            found.append(process.memory_info().rss / 2**20)
            await asyncio.sleep(1.0)
    except asyncio.CancelledError:
        return found


def _told(tally: Tally) -> str:
    rates = ", ".join(f"{status}: {n}" for status, n in sorted(_statuses(tally).items()))
    return (
        f"{tally.count() / tally.seconds:.0f}/s offered, {tally.in_time_per_s:.0f}/s in time ({rates};"
        f" sent late p99 {tally.sent_late_p99_ms:.1f} ms)"
    )


def _class_told(one: ClassTally) -> str:
    refused = one.refused
    return (
        f"{one.offered:7} offered, {one.in_time:7} in time ({one.in_time / max(one.offered, 1):6.1%});"
        f" answered p50 {one.answered.p50_ms:.0f} p99 {one.answered.p99_ms:.0f} ms;"
        f" {refused.n} refused p50 {refused.p50_ms:.1f} p99 {refused.p99_ms:.1f} max {refused.max_ms:.0f} ms"
        f" ({one.refused_without_retry_after} without Retry-After); {one.late.n} late"
    )


def _statuses(tally: Tally) -> Counter[str]:
    return sum([Counter(one.statuses) for one in tally.classes.values()], Counter[str]())


def _thinned(values: Sequence[float], most: int = 20) -> str:
    step = max(1, len(values) // most)
    return " ".join(f"{value:.0f}" for value in values[::step])


# --- killed replicas


def kill(seconds: float, every_s: float, rate_per_s: float, n_replicas: int, seed: int) -> list[Verdict]:
    """A load that the extensions bear, while one of their replicas after the other is killed."""
    goals, sources = VARIANTS["chain"]
    with own_cluster([_many(source, n_replicas) for source in sources], goals, _SETTINGS) as settings:
        times, plus = MAKES[CHAIN.name]
        class_ = Class("all", 1.0, CHAIN.name, {}, times, plus, n_rows=(1, 1, 1, 2, 8), width=WIDTH)
        load = Offer(settings.http_port, rate_per_s, 4.0, [class_], seed=seed)
        calm = offer(load)
        print(f"calm: {_told(calm)}; p99 {calm.classes['all'].answered.p99_ms:.0f} ms", flush=True)
        tally, killed = asyncio.run(_killing(replace(load, seconds=seconds), every_s, random.Random(seed)))
        # It has to come back by itself.
        after = offer(replace(load, seed=seed + 1))
        print(f"after: {_told(after)}; p99 {after.classes['all'].answered.p99_ms:.0f} ms", flush=True)
    return _killed_told(tally, killed, seconds)


def _many(source: str, n_replicas: int) -> Card:
    from deployments.loading import describe  # imports Ray, which must come after the flags

    card = describe(source)
    return card.but(resources=replace(card.resources, min_replicas=n_replicas, max_replicas=n_replicas))


async def _killing(load: Offer, every_s: float, rng: random.Random) -> tuple[Tally, int]:
    offering = asyncio.create_task(offer_beside(load))
    killed, were_serving = 0, list[int]()
    await asyncio.sleep(2.0)  # until the load has begun
    while not offering.done():
        began_s = time.monotonic()
        alive = await asyncio.to_thread(serving, "drill-")
        were_serving.append(len(alive))
        killed += kill_one(alive, rng) is not None
        await asyncio.wait([offering], timeout=max(0.0, began_s + every_s - time.monotonic()))
    print(f"replicas that served when one was killed: {_thinned(were_serving, 40)}")
    return await offering, killed


def _killed_told(tally: Tally, killed: int, seconds: float) -> list[Verdict]:
    (one,) = tally.classes.values()
    # A refusal says when to come back; whatever else is no answer was admitted.
    refused = one.refused.n - one.refused_without_retry_after
    admitted = one.offered - refused
    answered, wrong, hung = tally.count("200"), tally.count(WRONG), tally.count(HUNG)
    share = answered / max(admitted, 1)
    print(f"{killed} replicas killed: {_told(tally)}; {_class_told(one)}")
    print(f"    {admitted} admitted, {answered} answered, {wrong} wrong, {hung} hung, {tally.count(CUT)} cut off")
    for text, n in Counter(one.said).most_common(8):
        print(f"    {n:7}  {text}")
    of = f"{killed} replicas killed in {seconds:g} s"
    return [
        Verdict(f"{of}: no wrong answer", str(wrong), wrong == 0),
        Verdict(f"{of}: at least 99.9 % of the admitted answered", f"{share:.4%}", share >= 0.999),
        Verdict(f"{of}: none hanging", str(hung), hung == 0),
    ]


# --- growth


def grow(n_requests: int, seed: int) -> list[Verdict]:
    """What so many requests of all sorts leave behind."""
    with own_cluster(growth.SOURCES, [growth.GOAL], _SETTINGS) as settings:
        asyncio.run(growth.ask(settings.http_url, n_requests // 8, seed))  # warms up
        before = growth.look(gateway(settings))
        told = asyncio.run(growth.ask(settings.http_url, n_requests, seed + 1))
        after = growth.look(gateway(settings))
    print(f"{n_requests} requests: {', '.join(f'{status}: {n}' for status, n in sorted(told.items()))}")
    print(f"before {before}\nafter  {after}")
    return [
        Verdict(f"{n_requests} requests later: {name}", f"{was} -> {now}", met)
        for name, was, now, met in growth.compared(before, after)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("drills", nargs="*", metavar="DRILL", help=f"{', '.join(DRILLS)}; all, if none is given")
    parser.add_argument("--rounds", type=int, default=3, help="of an overload")
    parser.add_argument("--seconds", type=float, default=20.0, help="of each overload, and of killing")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=["chain", "join"])
    parser.add_argument("--kill-every-s", type=float, default=1.0)
    parser.add_argument("--replicas", type=int, default=5, help="of each extension, while some are killed")
    parser.add_argument("--rate", type=float, default=100.0, help="requests a second while replicas are killed")
    parser.add_argument("--requests", type=int, default=24_000, help="before growth is looked at")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    chosen = parser.parse_args()
    drills = chosen.drills or DRILLS
    if unknown := sorted({*drills} - {*DRILLS}):
        raise SystemExit(f"no drill {unknown}; there are: {', '.join(DRILLS)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    found: list[Verdict] = []
    if "overload" in drills:
        for variant in chosen.variants:
            found += overload(variant, chosen.rounds, chosen.seconds, chosen.seed)
    if "kill" in drills:
        found += kill(chosen.seconds, chosen.kill_every_s, chosen.rate, chosen.replicas, chosen.seed)
    if "growth" in drills:
        found += grow(chosen.requests, chosen.seed)
    print("\nTerms")
    for verdict in found:
        print(verdict)
    if chosen.strict and not all(verdict.met for verdict in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
