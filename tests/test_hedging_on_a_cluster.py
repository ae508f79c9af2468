"""Second calls on a real local cluster: a replica that takes long is not felt, and the answer says why."""

from __future__ import annotations

import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from cluster import lifecycle
from tests.test_end_to_end import quiet, tensor

pytestmark = pytest.mark.cluster

N_USUAL = 250  # calls after which there is room for second ones, by and large
MOST_TRIES = 5


def test_a_call_to_a_slow_replica_is_answered_by_the_other_one(
    running_cluster: lifecycle.Running, tmp_path: Path
) -> None:
    settings = running_cluster.settings
    with lifecycle.connected(settings), httpx.Client(base_url=settings.http_url, timeout=60.0) as http:
        from deployments.deployer import deploy, remove
        from deployments.loading import describe

        def given_back(value: float) -> set[str]:
            """The flags of an answer, which is right."""
            answer = http.post("/v2/models/slow-once/infer", json={"inputs": [tensor("x", np.array([value]))]}).json()
            assert answer["outputs"][0]["data"] == [value]
            return set(answer["parameters"]["flags"].split(","))

        card = describe("tests.faulty:SlowOnce", {"folder": str(tmp_path)})
        deploy([card], [], lifecycle.installation(settings), quiet)
        try:
            for i in range(MOST_TRIES):
                for value in range(N_USUAL):
                    given_back(float(value))
                (tmp_path / "slow").touch()
                started_s = time.perf_counter()
                flags = given_back(1_000.0 + i)
                assert not (tmp_path / "slow").exists()
                if "hedged" in flags:
                    break
                # Other calls that took long, on a busy machine, had used the budget up.
                assert time.perf_counter() - started_s >= 5.0
            assert "hedged" in flags
            assert time.perf_counter() - started_s < 5.0
        finally:
            remove([card.id], [], quiet)
