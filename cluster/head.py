"""The Ray head in one process: what `ray start --head --block` does, less its Ray Client server and its command line.

Those would open a port that nothing of ours uses, and cost 90 MiB and 2 s of processor time at each `fenix up`.
This is the only place that knows how Ray starts a node. It ends when the control store or the raylet dies, and ends
all that it started on SIGTERM.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

READY = "Ray is ready"
POLL_S = 0.2
_VITAL = ("gcs_server", "raylet")


def main(parameters: dict[str, Any]) -> None:
    """`parameters` are those of `ray._private.parameter.RayParams`. Prints READY, then stays."""
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    # `shutdown_at_exit` makes SIGTERM end the children; `spawn_reaper` ends them with us even on SIGKILL.
    node = Node(RayParams(**parameters), head=True, shutdown_at_exit=True, spawn_reaper=True)
    print(READY, flush=True)
    while not (dead := [name for name, _ in node.dead_processes() if name in _VITAL]):
        time.sleep(POLL_S)
    node.kill_all_processes(check_alive=False, allow_graceful=False)
    raise SystemExit(f"Ray's {dead[0]} has died; its log is in {node.get_logs_dir_path()}.")


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
