"""Our request router inside Serve's own routing, with replicas that need no cluster."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest
from ray.exceptions import ActorDiedError
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, RequestMetadata
from ray.serve.request_router import PendingRequest, ReplicaID

from deployments import routing
from deployments.routing import QuickestRouter

DEPLOYMENT = DeploymentID("d", "a")


class FakeReplica:
    """What Serve's routing asks of a replica."""

    max_ongoing_requests = 1024
    node_id = "node"
    availability_zone = None
    multiplexed_model_ids: frozenset[str] = frozenset()

    def __init__(self, name: str) -> None:
        self.replica_id = ReplicaID(name, DEPLOYMENT)
        self.is_dead = False
        self.n_probes = 0

    async def get_queue_len(self, *, deadline_s: float) -> int:
        self.n_probes += 1
        if self.is_dead:
            raise ActorDiedError
        return 0


class Routed:
    """A router with two replicas, and Serve's part in sending calls through it. Each call takes 20 ms of `now_s`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(routing, "perf_counter", lambda: self.now_s)
        self.router = QuickestRouter(
            deployment_id=DEPLOYMENT,
            handle_source=DeploymentHandleSource.UNKNOWN,
            use_replica_queue_len_cache=True,
            self_actor_id="me",
        )
        self.router.initialize_state()
        self.a, self.b = FakeReplica("a"), FakeReplica("b")
        self.router.update_replicas([self.a, self.b])
        self.n_calls = 0

    async def call(self, pair: str = "", most_tries: int = 50) -> tuple[str, int]:
        """Which replica answered, and at which try."""
        self.n_calls += 1
        metadata = RequestMetadata(request_id=str(self.n_calls), internal_request_id=str(self.n_calls))
        request = PendingRequest(args=[{}, False, pair], kwargs={}, metadata=metadata)
        for i in range(most_tries):
            replica: Any = await self.router._choose_replica_for_request(request, is_retry=i > 0)
            self.router.on_send_request(replica.replica_id)
            self.now_s += 0.0003 if replica.is_dead else 0.02
            self.router.on_request_completed(replica.replica_id, str(self.n_calls))
            if not replica.is_dead:
                self.router.on_new_queue_len_info(replica.replica_id, 0)
                self.router.on_request_routed(request, replica.replica_id, None)
                return replica.replica_id.unique_id, i + 1
            self.router.on_replica_actor_unavailable(replica.replica_id)
        return "", most_tries


def test_calls_go_to_both_and_nobody_is_asked_how_long_his_queue_is(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        routed = Routed(monkeypatch)
        await asyncio.sleep(0.05)  # Serve asks new replicas once
        asked = routed.a.n_probes + routed.b.n_probes
        went = Counter([(await routed.call())[0] for _ in range(60)])
        assert min(went["a"], went["b"]) > 15
        assert routed.a.n_probes + routed.b.n_probes == asked

    asyncio.run(main())


def test_a_dead_replica_is_tried_once_and_the_call_answered_by_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        routed = Routed(monkeypatch)
        for _ in range(20):
            await routed.call()
        routed.b.is_dead = True
        answered = [await routed.call() for _ in range(60)]
        assert {replica for replica, _ in answered} == {"a"}
        assert sum(tries for _, tries in answered) <= len(answered) + 2

    asyncio.run(main())


def test_when_all_are_in_doubt_the_replicas_are_asked_whether_they_live(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        routed = Routed(monkeypatch)
        await asyncio.sleep(0.05)
        for replica in (routed.a, routed.b):
            routed.router.on_replica_actor_unavailable(replica.replica_id)
        asked = routed.a.n_probes + routed.b.n_probes
        assert (await routed.call())[0] in ("a", "b")
        assert routed.a.n_probes + routed.b.n_probes > asked

    asyncio.run(main())


def test_the_second_call_of_a_pair_goes_elsewhere_while_the_first_is_under_way(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        routed = Routed(monkeypatch)
        for i in range(20):
            metadata = RequestMetadata(request_id=f"x{i}", internal_request_id=f"x{i}")
            first = PendingRequest(args=[{}, False, f"pair{i}"], kwargs={}, metadata=metadata)
            replica = await routed.router._choose_replica_for_request(first)
            routed.router.on_send_request(replica.replica_id)
            assert (await routed.call(f"pair{i}"))[0] != replica.replica_id.unique_id
            routed.router.on_request_completed(replica.replica_id, f"x{i}")

    asyncio.run(main())


def test_a_call_that_is_given_up_before_it_left_is_soon_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        routed = Routed(monkeypatch)
        for _ in range(20):
            await routed.call()
        metadata = RequestMetadata(request_id="gone", internal_request_id="gone")
        task = asyncio.ensure_future(
            routed.router._choose_replica_for_request(PendingRequest(args=[], kwargs={}, metadata=metadata))
        )
        for _ in range(20):
            if not any(one.chosen_s for one in routed.router._seen._known.values()):
                await asyncio.sleep(0)
        assert any(one.chosen_s for one in routed.router._seen._known.values())
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        routed.now_s += 1.0
        went = Counter([(await routed.call())[0] for _ in range(60)])
        assert min(went["a"], went["b"]) > 15

    asyncio.run(main())
