"""Serve's own report becomes one line per extension version."""

from __future__ import annotations

from ray.serve.schema import (
    ApplicationStatus,
    ApplicationStatusOverview,
    DeploymentStatus,
    DeploymentStatusOverview,
    DeploymentStatusTrigger,
    ServeStatus,
)

from deployments.health import Health, summary


def application(state: str, replicas: dict[str, int], message: str = "") -> ApplicationStatusOverview:
    deployment = DeploymentStatusOverview(
        status=DeploymentStatus.HEALTHY,
        status_trigger=DeploymentStatusTrigger.UNSPECIFIED,
        replica_states=replicas,
        message=message,
    )
    return ApplicationStatusOverview(
        status=ApplicationStatus(state),
        message="",
        last_deployed_time_s=0.0,
        deployments={"d": deployment},
    )


def test_counts_replicas_and_says_what_is_wrong_where_something_is() -> None:
    trace = "\nTraceback (most recent call last):\n  File"
    status = ServeStatus(
        applications={
            "b@1": application("UNHEALTHY", {"RUNNING": 1, "STARTING": 1}, "a replica died" + trace),
            "a@1": application("RUNNING", {"RUNNING": 2}, "old news"),
            "c@1": application("DEPLOYING", {}),
        }
    )
    assert summary(status) == (
        Health("a@1", "running", 2, 2, ""),
        Health("b@1", "unhealthy", 1, 2, "a replica died"),
        Health("c@1", "deploying", 0, 0, ""),
    )
