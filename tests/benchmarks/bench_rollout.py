"""Who is rolled back, who is promoted, and how much traffic a bad version hurts until then, in simulated worlds.

    python -m tests.benchmarks.bench_rollout [--seeds 100] [--first 50000] [--workers 2]

Every world once per seed, with the plan by default (the shadow first) and with one that begins with a canary of 1 %.
The hurt share is that of the requests, until the decision or the end of the traffic,
which the bad version served. The plan's figures were chosen on smaller seeds than the first.
"""

from __future__ import annotations

import argparse
import statistics
import time
import timeit
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from planner.rollout.records import STEPS, RolloutPlan
from planner.rollout.shares import Split
from planner.rollout.simulation import WORLDS, Result, World, simulate

MOST_HURT = 0.05
MOST_FALSE = 0.05
LEAST_BACK = 0.99
PLANS = {
    "shadow first": RolloutPlan(),
    "canary only": RolloutPlan(steps=tuple(replace(step, mirrored=0.0) for step in STEPS if step.share)),
}
BAD = ("5 points worse", "2 times slower", "fails 1 %")
Job = tuple[str, World, int]


def jobs(n_seeds: int, first: int) -> list[Job]:
    by_name = {world.name: world for world in WORLDS}
    cells = [("shadow first", world) for world in WORLDS]
    for n_requests in (10_000, 1_000):
        cells += [("shadow first", replace(by_name[name], n_requests=n_requests)) for name in (*BAD, "equally good")]
    cells += [("canary only", by_name[name]) for name in BAD]
    cells.append(("canary only", replace(by_name["equally good"], n_requests=30_000)))
    return [(plan, world, seed) for plan, world in cells for seed in range(first, first + n_seeds)]


def run(job: Job) -> Result:
    plan, world, seed = job
    every_s = max(1.0, world.n_requests / world.per_s / 50)  # fifty decisions over all the traffic
    return simulate(world, PLANS[plan], seed, every_s)


def told(results: list[Result], world: World) -> str:
    """One line of the table, and whether the terms are kept."""
    hurt = sorted(result.hurt for result in results)
    ends = [result.stage for result in results]
    back, up = (ends.count(stage) / len(ends) for stage in ("rolled_back", "champion"))
    decided = [result.n_requests for result in results if result.stage in ("rolled_back", "champion")]
    after = f"{statistics.median(decided):7,.0f} (most {max(decided):7,})" if decided else "-".rjust(22)
    line = f"{world.name:27} {world.n_requests:7,}  {back:11.0%} {up:8.0%}  {after}"
    if "good" in world.name or "better" in world.name:
        if "good" in world.name:
            line += f"  false rollbacks at most {MOST_FALSE:.0%}: {'kept' if back <= MOST_FALSE else 'MISSED'}"
        return line
    p50, p95 = statistics.median(hurt), hurt[min(len(hurt) - 1, int(0.95 * len(hurt)))]
    line += f"  hurt {p50:6.2%} {p95:6.2%} {hurt[-1]:6.2%} at most {MOST_HURT:.0%}: "
    line += "kept" if hurt[-1] <= MOST_HURT else f"MISSED by {sum(share > MOST_HURT for share in hurt)}"
    if world.name in BAD and world.n_requests >= 100_000:
        line += f", rolled back at least {LEAST_BACK:.0%}: {'kept' if back >= LEAST_BACK else 'MISSED'}"
        line += f", {ends.count('canary') + ends.count('shadow')} still open"
    return line


def choice_us() -> float:
    """What it takes to say who serves a request, the best of five rounds."""
    split = Split("digits:2:0.0", "1", (("2", 0.05),))
    keys = [f"user-{i}" for i in range(1000)]

    def choose() -> None:
        for key in keys:
            split.serves(key)

    return min(timeit.repeat(choose, number=20, repeat=5)) / (20 * len(keys)) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--first", type=int, default=50_000, help="the first seed")
    parser.add_argument("--workers", type=int, default=2)
    chosen = parser.parse_args()
    began_s = time.perf_counter()
    todo = jobs(chosen.seeds, chosen.first)
    with ProcessPoolExecutor(max_workers=chosen.workers) as pool:
        results = list(pool.map(run, todo, chunksize=10))
    cells: dict[tuple[str, World], list[Result]] = {}
    for (plan, world, _), result in zip(todo, results, strict=True):
        cells.setdefault((plan, world), []).append(result)
    title = ""
    for (plan, world), of_cell in cells.items():
        if plan != title:
            title = plan
            print(f"\n{plan}, {chosen.seeds} seeds from {chosen.first}; hurt p50, p95, most")
            print(f"{'the challenger':27} {'traffic':>7}  {'rolled back':>11} {'promoted':>8}  {'after requests':>22}")
        print(told(of_cell, world))
    us = choice_us()
    print(f"\nWho serves a request: {us:.2f} us, at most 2: {'kept' if us <= 2.0 else 'MISSED'}")
    print(f"All of it took {time.perf_counter() - began_s:.0f} s.")


if __name__ == "__main__":
    main()
