"""The chain as three Fenix extensions and a goal.

    python -m tests.benchmarks.fenix_chain HTTP_PORT STATE_DIR

Runs until its standard input closes; every step is a deployment of its own, planning included per request.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cluster import lifecycle, processes
from cluster.settings import load
from tests.benchmarks.workload import CHAIN, SOURCES


def main() -> None:
    http_port, state_dir = int(sys.argv[1]), Path(sys.argv[2])
    grpc_port, ray_port, mlflow_port = processes.free_ports(3)
    settings = load(
        environment={},
        overrides={
            "state_dir": state_dir,
            "http_port": http_port,
            "grpc_port": grpc_port,
            "ray.port": ray_port,
            "mlflow.port": mlflow_port,
            "import_paths": [str(Path(__file__).parents[2])],
        },
    )

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    lifecycle.up(settings, report)
    try:
        with lifecycle.connected(settings):
            from deployments.deployer import deploy

            deploy(SOURCES, [CHAIN], lifecycle.installation(settings), report)
        print("READY", flush=True)
        sys.stdin.read()
    finally:
        lifecycle.down(settings, report)


if __name__ == "__main__":
    main()
