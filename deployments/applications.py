"""Extension versions as Serve applications: start, watch until they run, delete. One application each, so that
deploying one never restarts another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ray import serve
from ray.serve.config import RequestRouterConfig
from ray.serve.context import _get_global_client

from deployments.gateway.limits import Limits
from deployments.replica import Replica
from deployments.serve_calls import application_of, deployment_of
from planner.cards import Card, ExtensionId
from planner.errors import BadCard
from planner.fusion import Rules

Report = Callable[[str], None]

ROUTER = "deployments.routing.QuickestRouter"
START_TIMEOUT_S = 300.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Journaling:
    """What is recorded of requests: for how long, of which share of them the inputs too, and how much may wait in
    which folder."""

    folder: str
    keep_s: float = 30 * 86_400.0
    sample_share: float = 0.01
    spool_bytes: int = 1 << 30


@dataclass(frozen=True, slots=True)
class ChoiceOptions:
    """Who chooses among plans (`deployments/gateway/choosing.py`).

    `policy` is thompson, greedy, exp3, exp4, controller or first. At most `share` of a goal's requests try what is not
    the best known, after `burst` for each of its plans. `weights` is the controller's file.
    """

    policy: str = "thompson"
    share: float = 0.1
    burst: float = 12.0
    weights: str = ""


@dataclass(frozen=True, slots=True)
class Installation:
    """Where a cluster keeps its things and where it listens: all that `deployments` needs of the settings."""

    database_url: str
    mlflow_uri: str
    cache_dir: str
    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    gateways: int = 1
    sentence_model: str = ""  # of sentence-transformers; "" is the built-in matcher
    limits: Limits = field(default_factory=Limits)
    hedge_share: float = 0.03  # of the calls may be sent twice
    fusion: Rules | None = None  # how readily chains are fused; None: never
    journal: Journaling | None = None  # None: nothing is recorded
    choice: ChoiceOptions = ChoiceOptions()  # counts where there is a journal


@dataclass(frozen=True, slots=True)
class Started:
    """Which applications run, and why the others do not."""

    running: tuple[ExtensionId, ...]
    failed: dict[ExtensionId, str]


def application(card: Card, installation: Installation) -> serve.Application:
    """The Serve application of an extension version, from its card's resources."""
    needs = card.resources
    actor: dict[str, Any] = {"num_cpus": needs.num_cpus, "num_gpus": needs.num_gpus}
    if needs.memory_mib:
        actor["memory"] = needs.memory_mib << 20
    scaling: dict[str, Any] = {"num_replicas": needs.min_replicas}
    if needs.max_replicas > needs.min_replicas:
        scaling = {
            "autoscaling_config": {
                "min_replicas": needs.min_replicas,
                "max_replicas": needs.max_replicas,
                "target_ongoing_requests": 2,  # of whole batches: one that computes, one on its way
            }
        }
    deployment = serve.deployment(Replica).options(
        name=deployment_of(card.id),
        ray_actor_options=actor,
        # Queues are ours (planner/batching.py): a replica that refuses makes Serve's router sleep 25 to 500 ms.
        max_ongoing_requests=1_024,
        request_router_config=RequestRouterConfig(request_router_class=ROUTER),
        max_constructor_retry_count=2,
        graceful_shutdown_timeout_s=10,
        graceful_shutdown_wait_loop_s=0.2,
        health_check_period_s=5,
        health_check_timeout_s=30,
        **scaling,
    )
    return deployment.bind(card, installation.mlflow_uri, installation.cache_dir)


async def start(cards: Sequence[Card], installation: Installation, report: Report) -> Started:
    """Starts an application per card and waits until each runs or has failed; failed ones are deleted again."""
    if not cards:
        return Started((), {})
    targets = [
        serve.RunTarget(application(card, installation), name=application_of(card.id), route_prefix=None)
        for card in cards
    ]
    await asyncio.to_thread(
        serve.run_many, targets, wait_for_ingress_deployment_creation=False, wait_for_applications_running=False
    )
    waiting = {card.id for card in cards}
    running: list[ExtensionId] = []
    failed: dict[ExtensionId, str] = {}
    loop = asyncio.get_running_loop()
    until_s, told_s = loop.time() + START_TIMEOUT_S, loop.time()
    while waiting:
        applications = await asyncio.to_thread(_applications)
        for id_ in sorted(waiting):
            state = applications.get(application_of(id_))
            if state is not None and state["status"] == "RUNNING":
                running.append(id_)
                report(f"{id_} runs ({len(running)} of {len(cards)})")
                told_s = loop.time()
            elif state is not None and state["status"] == "DEPLOY_FAILED":
                told = [d["message"] for d in state["deployments"].values() if d["message"]]
                failed[id_] = _reason(" ".join(told or [state["message"]]))
            elif loop.time() > until_s:
                failed[id_] = f"it did not start within {START_TIMEOUT_S:.0f} s"
        waiting -= {*running, *failed}
        if waiting and loop.time() - told_s > 2.0:
            report(f"waiting for {', '.join(sorted(waiting))}")
            told_s = loop.time()
        if waiting:
            await asyncio.sleep(_POLL_S)
    await delete(list(failed))
    return Started(tuple(running), failed)


def _applications() -> dict[str, Any]:
    """Serve's applications by name, as the plain data of `ray.serve.schema.ApplicationDetails`.

    `serve.status()` gives the same, but pickles a class per application on the way: 230 ms of processor time for 18
    of them instead of 4, again and again while their replicas need the processor to start.
    """
    applications: dict[str, Any] = _get_global_client().get_serve_details()["applications"]
    return applications


async def delete(extensions: Sequence[ExtensionId]) -> None:
    """Deletes the applications of these extension versions; those that are gone are passed over."""
    for id_ in extensions:
        await asyncio.to_thread(serve.delete, application_of(id_), _blocking=False)


def refuse(failed: dict[ExtensionId, str]) -> None:
    """Raises BadCard naming every extension that did not start, and why."""
    if failed:
        text = "; ".join(f"{id_}: {why}" for id_, why in failed.items())
        raise BadCard(f"not deployed: {text}.", hint="Whatever ran before still runs.")


def _reason(message: str) -> str:
    """The last line that says something: Serve's messages hold whole tracebacks."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    told = [line for line in lines if "Error" in line or "Exception" in line or ": " in line]
    return (told or lines or ["it did not start"])[-1].rstrip(".")[:400]
