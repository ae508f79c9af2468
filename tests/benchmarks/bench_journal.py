"""What it costs to take down every outcome: two clusters side by side, one of which keeps no journal, loaded in turn.

    python -m tests.benchmarks.bench_journal [--rounds N] [--seconds S] [--connections 32,128]

Printed are requests per second and processor time per request (of all processes of a cluster: gateway, ledger and the
rest), and both as ratios, round by round. The term: at most 2 % of the request rate.
"""

from __future__ import annotations

import argparse
import signal
import statistics
import sys
from dataclasses import replace

from tests.benchmarks.load import ratio
from tests.benchmarks.subjects import FENIX, OURS, Running, running
from tests.benchmarks.workload import rows

MOST_COST = 0.02


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each load")
    parser.add_argument(
        "--connections", type=lambda text: [int(number) for number in text.split(",")], default=[32, 128]
    )
    parser.add_argument("--strict", action="store_true", help="a missed term is the exit status")
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what runs is ended first
    (recorded,) = [subject for subject in OURS if subject.name == FENIX]
    unrecorded = replace(recorded, command=(*recorded.command, "journal.enabled=false"))
    batch = rows()
    with running(recorded, "chain", batch[0]) as kept, running(unrecorded, "chain", batch[0]) as free:
        for one in (kept, free):
            one.check(batch)
            one.settle(batch, 2.0)
        met = [measured(kept, free, n, chosen.rounds, chosen.seconds) for n in chosen.connections]
    if chosen.strict and not all(met):
        raise SystemExit(1)


def measured(kept: Running, free: Running, connections: int, rounds: int, seconds: float) -> bool:
    """Prints what the rounds found; whether the term is met."""
    batch = rows()
    rates: dict[bool, list[float]] = {True: [], False: []}
    costs: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(rounds):
        for is_kept in (True, False) if turn % 2 else (False, True):
            load, used = (kept if is_kept else free).load(batch, connections, seconds)
            rates[is_kept].append(load.rate)
            costs[is_kept].append(used.ms_per_request * 1e3)
    rate, cost = ratio(rates[True], rates[False]), ratio(costs[True], costs[False])
    is_met = rate.median >= 1.0 - MOST_COST
    print(
        f"{connections} connections: {statistics.median(rates[True]):,.0f} requests/s with the journal,"
        f" {statistics.median(rates[False]):,.0f} without: {rate};"
        f" processor time {statistics.median(costs[True]):.1f} and {statistics.median(costs[False]):.1f} us a request:"
        f" {cost}; at most 2 % of the rate: {'met' if is_met else 'MISSED'}",
        flush=True,
    )
    return is_met


if __name__ == "__main__":
    main()
