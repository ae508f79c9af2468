"""A long run under load while replicas die: no wrong answer, no client left hanging, memory flat.

    python -m tests.benchmarks.soak [--minutes 30] [--kill-every-s 10] [--seed 1]

Clients ask for the chain of three and compare every answer with the reference. Every few seconds a random replica is
killed. Printed each half minute: requests, refusals by status, the slowest answer, memory of the whole cluster. Exits
with 1 when an answer was wrong, one took longer than its client waits, or no request was answered in half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import random
import sys
from dataclasses import dataclass, field

import httpx
import numpy as np

from cluster import lifecycle
from cluster.settings import Settings
from tests.benchmarks.own_cluster import kill_one, own_cluster, replicas
from tests.benchmarks.workload import CHAIN, SOURCES, reference, rows

N_CLIENTS = 16
PATIENCE_S = 60.0


@dataclass
class Tally:
    """What happened since the last line was printed, and what must not happen at all."""

    statuses: collections.Counter[int] = field(default_factory=collections.Counter)
    slowest_s: float = 0.0
    wrong: int = 0
    hung: int = 0


async def client(url: str, tally: Tally, seed: int, until_s: float) -> None:
    batch = rows(64)
    expected = reference(batch)
    rng = random.Random(seed)
    loop = asyncio.get_running_loop()
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as http:
        while loop.time() < until_s:
            start = rng.randrange(64)
            stop = min(64, start + rng.choice((1, 1, 1, 8, 32)))
            given = batch[start:stop]
            tensor = {"name": "row", "shape": list(given.shape), "datatype": "FP32", "data": given.ravel().tolist()}
            begun_s = loop.time()
            try:
                answer = await http.post("/v2/models/chain/infer", json={"inputs": [tensor]})
            except httpx.TimeoutException:
                tally.hung += 1
                continue
            tally.slowest_s = max(tally.slowest_s, loop.time() - begun_s)
            tally.statuses[answer.status_code] += 1
            if answer.status_code == 200:
                (probs,) = [output["data"] for output in answer.json()["outputs"] if output["name"] == "probs"]
                if not np.allclose(np.reshape(probs, (-1, 10)), expected[start:stop], atol=1e-4):
                    tally.wrong += 1


async def killer(every_s: float, rng: random.Random, until_s: float) -> None:
    loop = asyncio.get_running_loop()
    while loop.time() < until_s:
        await asyncio.sleep(every_s)
        victim = kill_one(replicas("chain-"), rng)
        if victim is not None:
            print(f"killed replica {victim}", flush=True)


async def soak(settings: Settings, minutes: float, every_s: float, seed: int) -> bool:
    loop = asyncio.get_running_loop()
    begun_s = loop.time()
    until_s = begun_s + minutes * 60
    tally = Tally()
    ok = True
    async with asyncio.TaskGroup() as group:
        for i in range(N_CLIENTS):
            group.create_task(client(settings.http_url, tally, seed * 1000 + i, until_s))
        group.create_task(killer(every_s, random.Random(seed), until_s - 20.0))
        while loop.time() < until_s:
            await asyncio.sleep(min(30.0, max(0.1, until_s - loop.time())))
            now = lifecycle.status(settings)
            told = ", ".join(f"{status}: {n}" for status, n in sorted(tally.statuses.items()))
            print(
                f"{loop.time() - begun_s:6.0f} s  {told or 'no answer'}  slowest {tally.slowest_s:.2f} s"
                f"  wrong {tally.wrong}  hung {tally.hung}  {now.memory_mib:.0f} MiB",
                flush=True,
            )
            ok = ok and tally.statuses[200] > 0 and tally.wrong == 0 and tally.hung == 0
            tally.statuses.clear()
            tally.slowest_s = 0.0
    return ok


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--kill-every-s", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    with own_cluster(SOURCES, [CHAIN], report=print) as settings:
        ok = asyncio.run(soak(settings, arguments.minutes, arguments.kill_every_s, arguments.seed))
    print("held" if ok else "did NOT hold", flush=True)
    sys.exit(0 if ok else 1)


if __name__ == "__main__":
    main()
