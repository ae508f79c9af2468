"""How Serve chooses the replica of an extension for a call: `planner/replicas.py`, as a request router of Serve's.

Serve's own router takes the shorter of two queues. Ours are short by design (`planner/batching.py`), so what counts is
which replica is quick, and that the second of two calls for the same rows goes to another one.
"""

from __future__ import annotations

import random
from time import perf_counter
from typing import Any

from ray.serve.request_router import PendingRequest, ReplicaID, RequestRouter, RunningReplica

from planner.replicas import Replicas

PAIR_AT = 2  # the position of `pair` among the arguments of `Replica.infer`


class QuickestRouter(RequestRouter):  # type: ignore[misc]  # untyped to mypy
    """Sends each call to the replica that is expected to answer soonest. Lives in the process that calls, on one event
    loop; the methods are Serve's to call."""

    def initialize_state(self, **settings: Any) -> None:
        """Comes before anything else."""
        self._seen: Replicas[ReplicaID] = Replicas(random.Random())

    async def choose_replicas(
        self, candidate_replicas: list[RunningReplica], pending_request: PendingRequest | None = None
    ) -> list[list[RunningReplica]]:
        """Every replica as a rank of its own, the quickest first."""
        by_id = {replica.replica_id: replica for replica in candidate_replicas}
        self._seen.keep_only(list(by_id))
        if pending_request is None:
            return [list(candidate_replicas)]
        pending_request.routing_context.should_backoff = True  # before these ranks are gone through once more
        now_s, pair = perf_counter(), _pair_of(pending_request)
        ranked = self._seen.ranked(list(by_id), now_s, pair)
        self._seen.chosen(pending_request.metadata.internal_request_id, ranked[0], now_s, pair)
        if not self._seen.is_doubted(ranked[0]):
            # Queues are not what we choose by: without this, Serve asks the replica how long its own is. It does so
            # where we doubt that the replica lives, and so finds out.
            super().on_new_queue_len_info(ranked[0], 0)
        return [[by_id[id_]] for id_ in ranked]

    def on_send_request(self, replica_id: ReplicaID) -> None:
        """A call has left."""
        super().on_send_request(replica_id)
        self._seen.sent(replica_id, perf_counter())

    def on_new_queue_len_info(self, replica_id: ReplicaID, num_ongoing_requests: int) -> None:
        """The replica has answered."""
        super().on_new_queue_len_info(replica_id, num_ongoing_requests)
        self._seen.trust(replica_id)

    def on_request_routed(self, pending_request: PendingRequest, replica_id: ReplicaID, result: Any) -> None:
        """The replica took the call; where it answers in one piece, that comes with the answer."""
        self._seen.accepted(pending_request.metadata.internal_request_id, perf_counter())

    def on_request_completed(self, replica_id: ReplicaID, internal_request_id: str) -> None:
        """A call has come back, however, or was cancelled."""
        self._seen.ended(internal_request_id, replica_id, perf_counter())

    def on_replica_actor_unavailable(self, replica_id: ReplicaID) -> None:
        """The replica could not be reached: it may be dead."""
        super().on_replica_actor_unavailable(replica_id)
        self._seen.doubt(replica_id, perf_counter())


def _pair_of(request: PendingRequest) -> str:
    return str(request.args[PAIR_AT]) if len(request.args) > PAIR_AT else ""
