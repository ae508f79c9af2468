"""What choosing replicas and second calls bring where a replica is slow: the same load three times, one by one.

    python -m tests.benchmarks.bench_hedging [--seconds 40] [--rounds 1]

Three replicas of an extension that waits 10 ms for each row, one row a call. In `stalls` every 100th call of each
replica takes 300 ms longer; in `slow` all calls of one replica do. Compared are Serve's own choice of replicas without
second calls (`serve`), ours without (`chosen`), and ours with them (`hedged`). The extra work is what the replicas
were called beyond once for each row.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster import lifecycle
from deployments.extension import Extension
from planner.cards import Resources
from planner.features import Array, Feature
from tests.benchmarks.load import DIGITS, Load, Spread, ratio, wrk
from tests.benchmarks.own_cluster import own_cluster

N_REPLICAS, N_CONNECTIONS = 3, 2
CALL_S, STALL_S, EVERY = 0.01, 0.3, 100
CASES = {"stalls": "every 100th call stalls", "slow": "one of three replicas is slow"}
SERVES_OWN = "ray.serve._private.request_router:PowerOfTwoChoicesRequestRouter"
OURS = "deployments.routing.QuickestRouter"
# The router, and the most calls that are sent twice.
ARMS = {"serve": (SERVES_OWN, 0.0), "chosen": (OURS, 0.0), "hedged": (OURS, 0.03)}


class Waits(Extension):
    """Gives a number back after 10 ms, and counts its calls in a file of the replica's own."""

    inputs = {"x": Feature("benchmark/number", "FP32", (1,))}
    outputs = {"x": Feature("benchmark/waited", "FP32", (1,))}
    resources = Resources(
        num_cpus=0, min_replicas=N_REPLICAS, max_replicas=N_REPLICAS, max_batch_rows=1, placement="remote"
    )

    def __init__(self, case: str, folder: str) -> None:
        self.name = f"waits-{case}"
        self._case, self._folder = case, Path(folder)
        self._n_calls = 0

    def setup(self) -> None:
        """The first replica to come here is the slow one."""
        try:
            (self._folder / f"{self.name}.slow").touch(exist_ok=False)
            self._is_slow = True
        except FileExistsError:
            self._is_slow = False
        self._counter = os.open(self._folder / f"{self.name}.{os.getpid()}.calls", os.O_CREAT | os.O_WRONLY, 0o600)

    def infer(self, *, x: Array, **_: Any) -> Array:
        self._n_calls += 1
        os.pwrite(self._counter, str(self._n_calls).encode(), 0)
        stalls = self._n_calls % EVERY == 0 if self._case == "stalls" else self._is_slow
        time.sleep(CALL_S + (STALL_S if stalls else 0.0))
        return x

    def close(self) -> None:
        os.close(self._counter)


@dataclass(frozen=True, slots=True)
class Seen:
    """One run: the load, and the calls of the replicas beyond one a request, as a share of the requests."""

    load: Load
    extra: float


def n_calls(folder: Path, case: str) -> int:
    return sum(int(path.read_text() or 0) for path in folder.glob(f"waits-{case}.*.calls"))


def run(arm: str, seconds: float, report: Callable[[str], None]) -> dict[str, Seen]:
    """Both cases on a cluster of their own."""
    router, share = ARMS[arm]
    overrides = {"gateway.hedge_share": share, "fusion.enabled": False}
    with tempfile.TemporaryDirectory() as folder, own_cluster([], [], overrides, report) as settings:
        from deployments import applications
        from deployments.deployer import deploy
        from deployments.loading import describe

        counts = Path(folder)
        applications.ROUTER = router
        cards = [describe("tests.benchmarks.bench_hedging:Waits", {"case": case, "folder": folder}) for case in CASES]
        deploy(cards, [], lifecycle.installation(settings), report)
        return {case: load(settings.http_url, case, counts, seconds) for case in CASES}


def load(url: str, case: str, counts: Path, seconds: float) -> Seen:
    """Loads one case, after two seconds of warming up in which the gateway learns what calls take."""
    body = f'{{"inputs":[{{"name":"x","shape":[1,1],"datatype":"FP32","data":[3.{DIGITS}]}}]}}'.encode()
    target = f"{url}/v2/models/waits-{case}/infer"
    wrk(target, [body], N_CONNECTIONS, 2.0)
    before = n_calls(counts, case)
    seen = wrk(target, [body], N_CONNECTIONS, seconds)
    if seen.failed:
        raise SystemExit(f"{seen.failed} of {seen.n_requests} requests failed")
    return Seen(seen, (n_calls(counts, case) - before) / seen.n_requests - 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--rounds", type=int, default=1)
    arguments = parser.parse_args()

    def report(text: str) -> None:
        print(f"  {text}", file=sys.stderr, flush=True)

    seen: dict[tuple[str, str], list[Seen]] = {(arm, case): [] for arm in ARMS for case in CASES}
    for i in range(arguments.rounds):
        for arm in ARMS:
            for case, found in run(arm, arguments.seconds, report).items():
                seen[arm, case].append(found)
                now = found.load
                print(
                    f"round {i + 1}  {case:7} {arm:8} {now.rate:6.0f} req/s  p50 {now.p50_ms:6.2f}"
                    f"  p99 {now.p99_ms:7.2f}  p99.9 {now.p999_ms:7.2f} ms  extra work {found.extra:6.2%}",
                    flush=True,
                )
    print()
    for case, what in CASES.items():
        hedged = seen["hedged", case]
        gains = [
            f"{ratio([one.load.p999_ms for one in seen[arm, case]], [one.load.p999_ms for one in hedged])} ({arm})"
            for arm in ARMS
            if arm != "hedged"
        ]
        extra = Spread.of([100 * one.extra for one in hedged])
        print(f"{what}: p99.9 lower by {' and '.join(gains)} times, extra work {extra} %")


if __name__ == "__main__":
    main()
