"""One workload as Fenix extensions and a goal; planning included per request.

    python -m tests.benchmarks.fenix_chain WORKLOAD PLACEMENT HTTP_PORT STATE_DIR [SETTING=VALUE...]

Runs until its standard input closes. PLACEMENT is `auto`, as a user has it: each extension starts as a deployment of
its own, and moves into the gateway when it has proven itself; or `remote`: all of them stay deployments.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from cluster import lifecycle
from planner.cards import Card, Placement
from tests.benchmarks.workload import WORKLOADS


def serve(workload: str, placement: Placement, http_port: int, state_dir: Path, more: dict[str, str]) -> None:
    imports = [str(Path(__file__).parents[2])]
    settings = lifecycle.private_settings(state_dir, {"http_port": http_port, "import_paths": imports, **more})

    def report(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    lifecycle.up(settings, report)
    try:
        with lifecycle.connected(settings):
            from deployments.deployer import deploy
            from deployments.loading import describe

            def placed(source: str) -> Card:
                card = describe(source)
                return card.but(resources=replace(card.resources, placement=placement))

            goal, sources = WORKLOADS[workload]
            deploy([placed(source) for source in sources], [goal], lifecycle.installation(settings), report)
        sys.stdin.read()
    finally:
        lifecycle.down(settings, report)


def main() -> None:
    workload, placement, http_port, state_dir, *more = sys.argv[1:]
    if placement not in ("auto", "remote"):
        raise SystemExit(f"PLACEMENT is auto or remote, not {placement!r}")
    settings = dict(setting.split("=", 1) for setting in more)
    serve(workload, placement, int(http_port), Path(state_dir), settings)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
