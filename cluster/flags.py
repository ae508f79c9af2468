"""Every environment flag of Ray, Ray Serve and MLflow, in one place, set before Ray is imported.

Ray reads its flags at import, on the driver, on the head and in each worker alike, so a flag that is not the same
everywhere is a bug that shows only under load. `environment()` makes the whole environment of a process that we
start: what the user's shell has for these three is dropped, so that nothing depends on it. `apply()` sets them in the
process that calls it.
"""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path

from cluster.settings import PREFIX, Settings
from planner.errors import ClusterDown

RAY_FLAGS = {
    # Without tokens, whoever reaches a replica's port can have it unpickle what they like.
    "RAY_AUTH_MODE": "token",
    "RAY_USAGE_STATS_ENABLED": "0",
    # Ray runs workers at nice 15; the gateway and the replicas are what the machine is there for.
    "RAY_worker_niceness": "0",
    # Replicas take no whole CPU, so there are many per CPU. Ray would start as many workers at a time as there are
    # CPUs, and warn on the terminal of every driver when a node has over 4 times as many.
    "RAY_worker_maximum_startup_concurrency": str(max(16, os.cpu_count() or 1)),
    # The head would wait 30 s for detached actors to leave a node that they cannot leave; `fenix down` drains first.
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    # Ray's own metrics cost each process a thread and a report every 10 s; the gateway keeps the ones we show.
    "RAY_enable_metrics_collection": "0",
    # The head's control store is reached at once or not at all: do not wait minutes for a dead one.
    "RAY_gcs_rpc_server_connect_timeout_s": "5",
}

SERVE_FLAGS = {
    # Replica code and the router run on the replica's own event loop: a hop costs a thread switch less on each side.
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    "RAY_SERVE_USE_GRPC_BY_DEFAULT": "1",
    # Batches from 1 MiB on go by reference (deployments/serve_calls.py); this is room for answers of unknown size.
    "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(256 << 20),
    "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    "RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000",
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_SERVE_FREEZE_GC_ON_STARTUP": "1",
}

# A process that only connects runs its coroutines on loops that come and go; a router must outlive them.
DRIVER_FLAGS = {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "1"}

MLFLOW_FLAGS = {
    # One server process on SQLite; the job runner would add four more and a queue that nobody uses.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # By default a client retries for minutes before it says that the server is gone.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}

MEMORY_FLAGS = {
    # By default each of a process's many threads soon has an arena of its own, and what is freed in one stays there: a
    # gateway grew by 50 MiB over 24,000 requests without holding anything.
    "MALLOC_ARENA_MAX": "2",
}

FIXED = RAY_FLAGS | SERVE_FLAGS | MLFLOW_FLAGS | MEMORY_FLAGS
# At 0, no other machine joins, and Ray binds to 127.0.0.1 when told to. Otherwise it turns that into the machine's
# address and opens its ports to the network. Despite the name it works on Linux. Read when Ray is imported.
OTHERS_JOIN = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
_OURS_ALONE = ("RAY_", "MLFLOW_", PREFIX)


def token_path(settings: Settings) -> Path:
    """Where the cluster's token is kept."""
    return settings.state_dir / "token"


def ensure_token(settings: Settings) -> None:
    """Makes the token if there is none: 256 random bits in a file that only the owner reads."""
    path = token_path(settings)
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))


def of(settings: Settings) -> dict[str, str]:
    """All flags under these settings."""
    flags = dict(FIXED)
    flags["RAY_AUTH_TOKEN_PATH"] = str(token_path(settings))
    flags["MLFLOW_TRACKING_URI"] = settings.mlflow.tracking_uri
    flags[OTHERS_JOIN] = "0" if settings.ray.is_loopback else "1"
    return flags


def environment(settings: Settings, ambient: Mapping[str, str] = os.environ) -> dict[str, str]:
    """The whole environment for a process that we start: the ambient one without its Ray, MLflow and Fenix
    variables, plus our flags and the import paths."""
    kept = {name: value for name, value in ambient.items() if not name.startswith(_OURS_ALONE)}
    paths = [str(path) for path in settings.import_paths]
    if paths:
        kept["PYTHONPATH"] = os.pathsep.join([*paths, *filter(None, [kept.get("PYTHONPATH")])])
    return kept | of(settings)


def apply(settings: Settings | None = None) -> None:
    """Sets the flags in this process; without settings those of a cluster on loopback. Before Ray is imported.

    Raises ClusterDown if Ray is imported already under other flags, because it would not notice the change.
    """
    flags = (of(settings) if settings else FIXED | {OTHERS_JOIN: "0"}) | DRIVER_FLAGS
    at_import = (*FIXED, OTHERS_JOIN)
    if "ray" in sys.modules and any(os.environ.get(name) != flags[name] for name in at_import):
        raise ClusterDown(
            "Ray was imported before its flags were set.", hint="Call cluster.flags.apply() before importing ray."
        )
    for name in [name for name in os.environ if name.startswith(("RAY_", "MLFLOW_")) and name not in at_import]:
        del os.environ[name]
    os.environ.update(flags)
