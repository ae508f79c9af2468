"""How the extensions and the gateway fare on Serve: what `fenix status` shows."""

from __future__ import annotations

from dataclasses import dataclass

from ray import serve
from ray.serve.schema import ServeStatus


@dataclass(frozen=True, slots=True)
class Health:
    """One application: the gateway, or an extension version by its id.

    `state` is Serve's word in lower case (`running`, `deploying`, `unhealthy`, `deploy_failed`); `n_running` of
    `n_replicas` replicas answer; `message` says why where something is wrong.
    """

    id: str
    state: str
    n_running: int
    n_replicas: int
    message: str


def health() -> tuple[Health, ...]:
    """Every application on the cluster this process is connected to, by id."""
    return summary(serve.status())


def summary(status: ServeStatus) -> tuple[Health, ...]:
    """The same from Serve's own report."""
    found = []
    for id_, application in sorted(status.applications.items()):
        replicas: dict[str, int] = {}
        for deployment in application.deployments.values():
            for state, n in deployment.replica_states.items():
                replicas[state] = replicas.get(state, 0) + n
        messages = [application.message, *(d.message for d in application.deployments.values())]
        state = application.status.lower()
        found.append(
            Health(
                id=id_,
                state=state,
                n_running=replicas.get("RUNNING", 0),
                n_replicas=sum(replicas.values()),
                message="" if state == "running" else _first_line(messages),
            )
        )
    return tuple(found)


def _first_line(messages: list[str]) -> str:
    return next((line.strip() for message in messages for line in message.splitlines() if line.strip()), "")[:300]
