"""What many requests leave behind in a gateway: memory, file descriptors, tasks, references and objects of Ray."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass, fields
from typing import Any

import httpx
import numpy as np
import psutil

from planner.features import Array
from tests.benchmarks.workload import CHAIN, N_FEATURES, SOURCES

GOAL = CHAIN
N_CLIENTS = 16
MOST_GROWN_MIB = 20.0
_BINARY = {"content-type": "application/octet-stream"}

__all__ = ["GOAL", "SOURCES", "Left", "ask", "compared", "look"]


@dataclass(frozen=True, slots=True)
class Left:
    """What a gateway holds when nobody asks anything of it."""

    memory_mib: float  # resident, after the allocator has given back what nothing uses
    descriptors: int
    threads: int
    tasks: int  # of asyncio
    references: int  # of its own to objects of Ray
    objects_mib: float  # in the object store of the node


async def ask(url: str, n_requests: int, seed: int) -> Counter[str]:
    """So many requests of all sorts, one after the other from each client; how they ended."""
    rng = random.Random(seed)
    batch = np.random.default_rng(seed).random((8192, N_FEATURES), np.float32)
    left = iter(range(n_requests))
    told: Counter[str] = Counter()

    async def client() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=60.0) as http:
            for _ in left:
                told[await _one(http, batch, rng)] += 1

    async with asyncio.TaskGroup() as group:
        for _ in range(N_CLIENTS):
            group.create_task(client())
    return told


async def _one(http: httpx.AsyncClient, batch: Array, rng: random.Random) -> str:
    sort = rng.choices(("small", "large", "huge", "bad", "broken", "cancelled"), (80, 10, 0.3, 4, 2, 4))[0]
    path = f"/v2/models/{GOAL.name}/infer"
    patience_s = rng.uniform(0.0005, 0.005) if sort == "cancelled" else 60.0
    try:
        async with asyncio.timeout(patience_s):
            if sort == "huge":  # its arrays go through the object store
                answer = await http.post(path, **_binary(batch[: rng.choice((4096, 8192))]))
            elif sort == "broken":
                answer = await http.post(path, content=b'{"inputs": [', headers={"content-type": "application/json"})
            else:
                n_rows = 64 if sort == "large" else rng.choice((1, 1, 1, 2, 5))
                start = rng.randrange(len(batch) - n_rows)
                rows = batch[start : start + n_rows] + np.float32(rng.random())
                shape = [n_rows, N_FEATURES + (sort == "bad")]
                tensor = {"name": "row", "shape": shape, "datatype": "FP32", "data": rows.ravel().tolist()}
                answer = await http.post(path, json={"inputs": [tensor]})
            return f"{sort} {answer.status_code}"
    except TimeoutError:
        return f"{sort} given up"


def _binary(rows: Array) -> dict[str, Any]:
    """A request with its rows as bytes, in the binary tensor extension."""
    import orjson

    tensor = {
        "name": "row",
        "shape": list(rows.shape),
        "datatype": "FP32",
        "parameters": {"binary_data_size": rows.nbytes},
    }
    head = orjson.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}})
    headers = {"inference-header-content-length": str(len(head)), **_BINARY}
    return {"content": head + rows.tobytes(), "headers": headers}


def look(process: psutil.Process, settle_s: float = 5.0) -> Left:
    """What the gateway holds, some seconds after the last request. Needs a connection to its cluster."""
    import ray

    time.sleep(settle_s)
    (actor,) = [
        ray.get_actor(one["name"], namespace=one["namespace"])
        for one in ray.util.list_named_actors(all_namespaces=True)
        if one["name"].startswith("SERVE_REPLICA::gateway#")
    ]
    tasks, references = ray.get(actor.__ray_call__.remote(_inside))
    untrimmed_mib = process.memory_info().rss / 2**20
    ray.get(actor.__ray_call__.remote(_trim))
    print(f"resident: {untrimmed_mib:.0f} MiB, and {process.memory_info().rss / 2**20:.0f} when trimmed")
    return Left(
        process.memory_info().rss / 2**20,
        process.num_fds(),
        process.num_threads(),
        tasks,
        references,
        _stored_bytes() / 2**20,
    )


def _inside(replica: object) -> tuple[int, int]:
    """Run in the gateway: asyncio's tasks that are not done, and references to objects."""
    from ray._private.worker import global_worker

    gc.collect()
    tasks = [one for one in gc.get_objects() if isinstance(one, asyncio.Task) and not one.done()]
    return len(tasks), len(global_worker.core_worker.get_all_reference_counts())


def _trim(replica: object) -> None:
    """Run in the gateway: gives back to the system what was freed. How much is kept for later is chance."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def _stored_bytes() -> int:
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    reply = get_memory_info_reply(get_state_from_address())
    used: int = reply.store_stats.object_store_bytes_used
    return used


def compared(before: Left, after: Left) -> list[tuple[str, str, str, bool]]:
    """Per thing held: its name, what it was, what it is, and whether it did not grow (memory: by less than
    `MOST_GROWN_MIB`; the others by no more than what comes and goes by itself)."""
    found = []
    for one in fields(Left):
        was, now = getattr(before, one.name), getattr(after, one.name)
        allowed = MOST_GROWN_MIB if one.name == "memory_mib" else 1.0 if one.name == "objects_mib" else 3 + N_CLIENTS
        found.append((one.name.replace("_", " "), f"{was:.0f}", f"{now:.0f}", now - was <= allowed))
    return found
