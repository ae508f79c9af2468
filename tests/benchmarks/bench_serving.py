"""Models composed behind HTTP: Fenix beside a hand-written server, plain Ray Serve, and other servers, on the same
work and in the same run.

    python -m tests.benchmarks.bench_serving [--rounds 3] [--seconds 2] [--workloads chain,fan,noop]
        [--connections 1,32,128] [--subjects NAME,...] [--peers FOLDER] [--venvs FOLDER] [--strict]

In each round every subject serves every workload alone: it is started, its answers are checked against a reference,
it is warmed up, loaded by `wrk -t1`, checked again and stopped; the order rotates. Printed are medians over the
rounds, ratios with their smallest and largest round, and the terms. docs/benchmarks.md says how to read them.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks import peers
from tests.benchmarks.load import Load, Spread, ratio
from tests.benchmarks.subjects import (
    BY_HAND,
    FENIX,
    OURS,
    RAY_DEFAULT,
    RAY_FAST,
    REMOTE,
    Failed,
    Subject,
    Used,
    running,
)
from tests.benchmarks.workload import WORKLOADS, rows

_FOR_THE_ASKING = {(REMOTE, "fan"), (RAY_DEFAULT, "chain")}  # no term speaks of them
Cell = tuple[str, str, int]  # workload, subject, connections


@dataclass(frozen=True, slots=True)
class Found:
    """One load of one round."""

    load: Load
    used: Used


class Results:
    """What was found, round by round. A cell lacks the rounds in which its subject failed."""

    def __init__(self) -> None:
        self._found: dict[Cell, dict[int, Found]] = {}
        self.failures: list[tuple[str, str]] = []  # subject, what happened

    def add(self, cell: Cell, turn: int, found: Found) -> None:
        self._found.setdefault(cell, {})[turn] = found

    def of(self, workload: str, subject: str, connections: int) -> list[Found]:
        return list(self._found.get((workload, subject, connections), {}).values())

    def pairs(self, workload: str, ours: str, theirs: str, connections: int) -> list[tuple[Found, Found]]:
        """Both of the same round, for the rounds that have both."""
        mine = self._found.get((workload, ours, connections), {})
        other = self._found.get((workload, theirs, connections), {})
        return [(mine[turn], other[turn]) for turn in mine if turn in other]

    def rates(self, workload: str, ours: str, theirs: str, connections: int) -> Spread | None:
        """Ours over theirs in requests per second; None where one of them was not measured."""
        pairs = self.pairs(workload, ours, theirs, connections)
        return ratio([a.load.rate for a, _ in pairs], [b.load.rate for _, b in pairs]) if pairs else None


@dataclass(frozen=True, slots=True)
class Verdict:
    """One of the terms. `met` is None where what it speaks of was not measured."""

    term: str
    measured: str
    met: bool | None

    def __str__(self) -> str:
        word = "not measured" if self.met is None else "met" if self.met else "MISSED"
        return f"{word:12}  {self.term}" + (f": {self.measured}" if self.measured else "")


def verdicts(results: Results, others: Sequence[str]) -> list[Verdict]:
    """The terms held against what was found. `others` are all subjects that are not Fenix."""

    def at_least(term: str, factor: float, workload: str, theirs: str, connections: int, ours: str = FENIX) -> Verdict:
        found = results.rates(workload, ours, theirs, connections)
        return Verdict(term, str(found or ""), None if found is None else found.median >= factor)

    made = []
    for workload, name in (("chain", "W1"), ("fan", "W2")):
        for connections in (32, 128):
            where = f"{name} at {connections} connections"
            made.append(at_least(f"{where}, 2 times {BY_HAND}", 2.0, workload, BY_HAND, connections))
            for peer in ("triton", "mosec"):
                made.append(at_least(f"{where}, as fast as {peer}", 1.0, workload, peer, connections))
            made.append(_first(where, results, workload, others, connections))
            if workload == "chain":
                made.append(at_least(f"{where}, 4 times {RAY_FAST}", 4.0, workload, RAY_FAST, connections))
        made.append(_alone(name, results, workload))
    made.append(_noop(results))
    made.append(
        at_least(
            f"W1 as three deployments at 128 connections, 12 times {RAY_FAST}", 12.0, "chain", RAY_FAST, 128, REMOTE
        )
    )
    return made


def _first(where: str, results: Results, workload: str, others: Sequence[str], connections: int) -> Verdict:
    found = [(other, results.rates(workload, FENIX, other, connections)) for other in others]
    beside = [(spread, other) for other, spread in found if spread is not None]
    if not beside:
        return Verdict(f"{where}, first of all", "", None)
    closest, name = min(beside, key=lambda one: one[0].median)
    told = f"{closest} of {name}, the next of {len(beside)} others"
    return Verdict(f"{where}, first of all", told, closest.median > 1.0)


def _alone(name: str, results: Results, workload: str) -> Verdict:
    term = f"{name} at one connection, p50 within 0.5 ms of {BY_HAND}"
    pairs = results.pairs(workload, FENIX, BY_HAND, 1)
    if not pairs:
        return Verdict(term, "", None)
    later = Spread.of([a.load.p50_ms - b.load.p50_ms for a, b in pairs])
    return Verdict(term, f"{later} ms later", later.median <= 0.5)


def _noop(results: Results) -> Verdict:
    """The figures were set where plain FastAPI answers 12,400 times a second; their ratio holds elsewhere too."""
    term = "no-op at 32 connections, 20,000 requests a second, or 20,000/12,400 of plain FastAPI's"
    rates = [found.load.rate for found in results.of("noop", FENIX, 32)]
    if not rates:
        return Verdict(term, "", None)
    beside = results.rates("noop", FENIX, BY_HAND, 32)
    rate = statistics.median(rates)
    met = rate >= 20_000 or (beside is not None and beside.median >= 20_000 / 12_400)
    return Verdict(term, f"{rate:,.0f}" + (f", {beside} times FastAPI's" if beside is not None else ""), met)


def measure(subjects: Sequence[Subject], chosen: argparse.Namespace) -> Results:
    """All rounds. A subject that fails is told, and lost for that round."""
    batch, results = rows(), Results()
    for turn in range(chosen.rounds):
        for workload in chosen.workloads:
            serve = [subject for subject in subjects if workload in subject.workloads]
            start = turn * len(serve) // chosen.rounds
            for subject in serve[start:] + serve[:start]:
                label = f"round {turn + 1} of {chosen.rounds}, {workload}: {subject.name}"
                try:
                    with running(subject, workload, batch[0]) as now:
                        now.check(batch)
                        now.settle(batch, min(2.0, chosen.seconds))
                        for connections in chosen.connections:
                            found = Found(*now.load(batch, connections, chosen.seconds))
                            results.add((workload, subject.name, connections), turn, found)
                            print(f"{label} at {connections}: {found.load.rate:.0f}/s", file=sys.stderr, flush=True)
                        now.check(batch)
                except Failed as failure:
                    results.failures.append((subject.name, f"{label}: {failure}"))
                    print(f"{label}: {failure}", file=sys.stderr, flush=True)
    return results


def show(results: Results, subjects: Sequence[Subject], chosen: argparse.Namespace) -> None:
    """The tables."""

    def median(found: Iterable[Found], of: Callable[[Found], float]) -> float:
        return statistics.median(of(one) for one in found)

    print(
        f"\n{chosen.rounds} rounds of {chosen.seconds:g} s, {os.cpu_count()} cores; medians, and ratios round by round"
    )
    for workload in chosen.workloads:
        head = f"{'subject':24} {'conn.':>5} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'CPU ms':>7} {'failed':>6}"
        print(f"\n{workload}\n{head}  fenix/it")
        for connections in chosen.connections:
            for subject in subjects:
                found = results.of(workload, subject.name, connections)
                if not found:
                    continue
                beside = None if subject.name == FENIX else results.rates(workload, FENIX, subject.name, connections)
                note = "" if beside is None else str(beside)
                if subject.moves:
                    where = {"inline" if one.used.is_inline else "not inline" for one in found}
                    note = f"ran {' and '.join(sorted(where))}"
                print(
                    f"{subject.name:24} {connections:5}"
                    f" {median(found, lambda one: one.load.rate):8.0f}"
                    f" {median(found, lambda one: one.load.p50_ms):8.2f}"
                    f" {median(found, lambda one: one.load.p99_ms):8.2f}"
                    f" {median(found, lambda one: one.used.ms_per_request):7.3f}"
                    f" {sum(one.load.failed for one in found):6}  {note}"
                )
    for _, failure in results.failures:
        print(f"failed: {failure}")


def _subjects(chosen: argparse.Namespace) -> list[Subject]:
    """What to run, in order. Raises SystemExit for a name that nothing has."""
    there = list(OURS)
    if chosen.venvs is not None:
        there += peers.granian_in(chosen.venvs)
    if chosen.peers is not None:
        if chosen.venvs is None:
            raise SystemExit("--peers needs --venvs: the folder with a virtual environment for each of them")
        found, missing = peers.load(chosen.peers, chosen.venvs)
        there += found
        print(*missing, sep="\n", file=sys.stderr)
    if not chosen.subjects:
        made = [
            replace(one, workloads=tuple(w for w in one.workloads if (one.name, w) not in _FOR_THE_ASKING))
            for one in there
        ]
        return [subject for subject in made if subject.workloads]
    unknown = [name for name in chosen.subjects if name not in {subject.name for subject in there}]
    if unknown:
        raise SystemExit(f"no subject {unknown}; there are: {'; '.join(subject.name for subject in there)}")
    return [subject for subject in there if subject.name in chosen.subjects]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each load")
    parser.add_argument("--workloads", type=lambda text: text.split(","), default=list(WORKLOADS))
    parser.add_argument(
        "--connections", type=lambda text: [int(number) for number in text.split(",")], default=[1, 32, 128]
    )
    parser.add_argument(
        "--subjects", type=lambda text: text.split(","), default=[], help="names; all that a term needs, if not given"
    )
    parser.add_argument("--peers", type=Path, help="folder with other servers on the same work")
    parser.add_argument("--venvs", type=Path, help="folder with a virtual environment for each peer, and for granian")
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    subjects = _subjects(chosen)
    results = measure(subjects, chosen)
    show(results, subjects, chosen)
    print("\nTerms")
    found = verdicts(results, [subject.name for subject in subjects if subject.name not in (FENIX, REMOTE)])
    for verdict in found:
        print(verdict)
    ours = {subject.name for subject in OURS}
    if any(name in ours for name, _ in results.failures):
        raise SystemExit("a subject of this repository failed")
    if chosen.strict and any(verdict.met is False for verdict in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
