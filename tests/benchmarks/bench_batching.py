"""Which batching policy answers most rows in time? Run with `python -m tests.benchmarks.bench_batching`.

Every policy on every scenario and load, over several seeds, in the simulator: goodput (rows answered within their
deadline, as a share of those that came) with its standard deviation over the seeds, p99 of the answered requests and
mean batch. All policies see the same requests. Then the means over the suite, differences to the default with their
95 % intervals (the seeds are paired), and what a decision costs. `--markdown` prints the tables as the docs hold them.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

from planner.policies import DEFAULT_POLICY
from planner.policies.policy import QueueState
from planner.policies.registry import make_policy, policies
from planner.policies.scenarios import LOADS, SCENARIOS
from planner.policies.simulation import simulate

Cell = tuple[int, float]  # number of the scenario, load
_T95 = 2.306  # Student's t at 8 degrees of freedom, for 9 seeds


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    goodput: float
    p99_ms: float
    mean_batch: float


def measure(job: tuple[str, Cell, int, int]) -> Measured:
    name, (scenario, load), seed, n_rows = job
    result = simulate(SCENARIOS[scenario].workload(load, n_rows, seed), make_policy(name, seed), seed)
    return Measured(result.goodput, result.latency_ms(0.99), result.mean_batch)


def decision_us(name: str) -> float:
    """Median time of a decision after a run that taught the policy something, over states as a batcher meets them."""
    policy = make_policy(name)
    simulate(SCENARIOS[1].workload(0.8, 4000, 1), policy)
    states = [
        QueueState(n, n, 0.3 * n, 2000.0 + 50.0 * n, 100.0 - n, n % 2, 2, 64, 0.5, math.nan, 20.0) for n in range(2, 52)
    ]
    rounds = []
    for _ in range(40):
        started_s = time.perf_counter()
        for state in states:
            policy.decide(state)
        rounds.append((time.perf_counter() - started_s) / len(states) * 1e6)
    return statistics.median(rounds)


def table(head: list[str], rows: list[list[str]], markdown: bool) -> None:
    if markdown:
        print("| " + " | ".join(head) + " |\n|" + "---|" * len(head))
        for row in rows:
            print("| " + " | ".join(row) + " |")
    else:
        widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
        for row in [head, *rows]:
            print("  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)))
    print()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=9)
    parser.add_argument("--rows", type=int, default=8000, help="rows of each run")
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    names = list(policies())
    cells: list[Cell] = [(number, load) for number in range(len(SCENARIOS)) for load in LOADS]
    jobs = [(name, cell, seed, chosen.rows) for name in names for cell in cells for seed in range(chosen.seeds)]
    with ProcessPoolExecutor(max_workers=2) as pool:
        runs = dict(zip(jobs, pool.map(measure, jobs, chunksize=16), strict=True))

    def of(name: str, cell: Cell) -> list[Measured]:
        return [runs[name, cell, seed, chosen.rows] for seed in range(chosen.seeds)]

    goodputs, others = [], []
    for cell in cells:
        label = [SCENARIOS[cell[0]].name, f"{cell[1]:.0%}"]
        means = {name: statistics.mean(run.goodput for run in of(name, cell)) for name in names}
        best = max(means.values())
        line = []
        for name in names:
            spread = statistics.stdev(run.goodput for run in of(name, cell)) if chosen.seeds > 1 else 0.0
            text = f"{100 * means[name]:.1f} ± {100 * spread:.1f}"
            line.append(f"**{text}**" if chosen.markdown and means[name] > best - 5e-4 else text)
        goodputs.append(label + line)
        p99s = [statistics.mean(run.p99_ms for run in of(name, cell)) for name in names]
        batches = [statistics.mean(run.mean_batch for run in of(name, cell)) for name in names]
        others.append(label + [f"{p99:.0f} / {size:.0f}" for p99, size in zip(p99s, batches, strict=True)])
    print("Goodput in %, mean and standard deviation over the seeds\n")
    table(["scenario", "load", *names], goodputs, chosen.markdown)
    print("p99 in ms / mean rows of a call\n")
    table(["scenario", "load", *names], others, chosen.markdown)

    def over_suite(name: str, seed: int) -> float:
        return statistics.mean(runs[name, cell, seed, chosen.rows].goodput for cell in cells)

    overall = {name: [over_suite(name, seed) for seed in range(chosen.seeds)] for name in names}
    summary = []
    for name in sorted(names, key=lambda name: -statistics.mean(overall[name])):
        ahead = [100 * (a - b) for a, b in zip(overall[name], overall[DEFAULT_POLICY], strict=True)]
        half = _T95 * statistics.stdev(ahead) / math.sqrt(chosen.seeds) if chosen.seeds == 9 else math.nan
        mean = f"{100 * statistics.mean(overall[name]):.2f}"
        summary.append([name, mean, f"{statistics.mean(ahead):+.2f} ± {half:.2f}", f"{decision_us(name):.1f}"])
    print(f"Over the whole suite; the difference to the default, {DEFAULT_POLICY}, with its 95 % interval\n")
    table(["policy", "mean goodput %", "difference", "a decision, µs"], summary, chosen.markdown)
    print(f"The winner on mean goodput: {summary[0][0]}. The default: {DEFAULT_POLICY}.")


if __name__ == "__main__":
    main()
