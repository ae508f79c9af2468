"""The chain as plain Ray Serve composition: an ingress and a deployment per stage, `@serve.batch` in each.

    python -m tests.benchmarks.ray_serve_chain PORT

Runs until its standard input closes. The flags of Ray Serve come from the environment. Set to its advantage:
`max_ongoing_requests` high (the default of 5 caps concurrency) and no waiting for a batch to fill.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import ray
from ray import serve
from starlette.requests import Request

from tests.benchmarks.workload import classifier, hidden, scale

_deployment = serve.deployment(max_ongoing_requests=512, ray_actor_options={"num_cpus": 0})
_batch = serve.batch(max_batch_size=64, batch_wait_timeout_s=0.0)


@_deployment
class Scale:
    @_batch
    async def __call__(self, rows: list[Any]) -> list[Any]:
        return list(scale(np.stack(rows)))


@_deployment
class Hidden:
    def __init__(self) -> None:
        self._mlp = hidden()

    @_batch
    async def __call__(self, rows: list[Any]) -> list[Any]:
        return list(self._mlp(np.stack(rows)))


@_deployment
class Classify:
    def __init__(self) -> None:
        self._mlp = classifier()

    @_batch
    async def __call__(self, rows: list[Any]) -> list[Any]:
        return [{"label": int(p.argmax()), "probs": p.tolist()} for p in self._mlp(np.stack(rows))]


@_deployment
class Chain:
    def __init__(self, scaled: Any, hid: Any, classified: Any) -> None:
        self._scaled, self._hidden, self._classified = scaled, hid, classified

    async def __call__(self, request: Request) -> Any:
        row = np.asarray((await request.json())["row"], np.float32)
        return await self._classified.remote(self._hidden.remote(self._scaled.remote(row)))


def main() -> None:
    ray.init(address="local", log_to_driver=False, logging_level="ERROR")
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Chain.bind(Scale.bind(), Hidden.bind(), Classify.bind()), name="chain", route_prefix="/")
    print("READY", flush=True)
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main()
