"""The process that stays: starts the services of one run, restarts those that may be, and ends them all when told.

`python -m cluster.supervisor FOLDER` reads `FOLDER/services.json`, goes to the background in a session of its own,
and keeps `FOLDER/supervisor.json` current. It knows nothing of Ray or MLflow and imports next to nothing, so that it
costs 15 MiB and outlives what it watches. Ends on SIGTERM, or when a service that may not be restarted dies.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cluster.processes import RUN_VARIABLE, ProcessId, end, family

POLL_S = 0.1
GRACE_S = 10.0
LONGEST_BACKOFF_S = 30.0
HEALTHY_AFTER_S = 60.0


@dataclass(frozen=True, slots=True)
class Service:
    """A command to keep running; `restart` says whether it may be started again after it died."""

    name: str
    command: list[str]
    log: str
    restart: bool


def backoff_s(n_deaths: int) -> float:
    """How long to wait before the next start after so many deaths in a row: 0.5 s, doubling, at most 30 s."""
    return min(0.5 * 2.0 ** (n_deaths - 1), LONGEST_BACKOFF_S)


@dataclass(slots=True)
class _Kept:
    service: Service
    child: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_at_s: float = 0.0
    n_restarts: int = 0
    n_deaths: int = 0
    exit_status: int | None = None

    def start(self) -> None:
        self.started_s = time.monotonic()
        with open(self.service.log, "ab") as log:
            self.child = subprocess.Popen(
                self.service.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )

    def state(self) -> dict[str, Any]:
        process = ProcessId.of(self.child.pid) if self.child else None
        return {
            "name": self.service.name,
            "process": asdict(process) if process else None,
            "n_restarts": self.n_restarts,
            "exit_status": self.exit_status,
            "log": self.service.log,
        }


class Supervisor:
    def __init__(self, folder: Path) -> None:
        services = json.loads((folder / "services.json").read_text())
        self._kept = [_Kept(Service(**service)) for service in services]
        self._report = folder / "supervisor.json"
        self._stopping = False

    def run(self) -> int:
        """Returns the exit status: 0 after SIGTERM, 1 after the death of a service that may not be restarted."""
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        try:
            for kept in self._kept:
                kept.start()
            self._write()
            while not self._stopping:
                time.sleep(POLL_S)
                if not self._all_well():
                    return 1
            return 0
        finally:
            self._end()

    def _stop(self, signum: int, frame: object) -> None:
        self._stopping = True

    def _all_well(self) -> bool:
        """Looks at each service once; False when one died that may not be restarted."""
        now_s = time.monotonic()
        for kept in self._kept:
            if kept.child is None:
                if now_s >= kept.start_at_s:
                    kept.n_restarts += 1
                    kept.start()
                    self._write()
                continue
            status = kept.child.poll()
            if status is None:
                continue
            kept.child, kept.exit_status = None, status
            if not kept.service.restart:
                self._write()
                return False
            kept.n_deaths = 1 if now_s - kept.started_s > HEALTHY_AFTER_S else kept.n_deaths + 1
            kept.start_at_s = now_s + backoff_s(kept.n_deaths)
            self._write()
        return True

    def _end(self) -> None:
        me = ProcessId.of(os.getpid())
        run_id = os.environ.get(RUN_VARIABLE, "")
        # The services first: Ray's head ends its own processes in order. Then whatever is left of the session.
        children = [p for k in self._kept if k.child and (i := ProcessId.of(k.child.pid)) and (p := i.process())]
        end(children, GRACE_S)
        end(family(me, run_id), grace_s=1.0)
        for kept in self._kept:
            if kept.child is not None:
                kept.exit_status = kept.child.poll()
                kept.child = None
        self._write()

    def _write(self) -> None:
        me = ProcessId.of(os.getpid())
        state = {"supervisor": asdict(me) if me else None, "services": [kept.state() for kept in self._kept]}
        beside = self._report.with_suffix(".new")
        beside.write_text(json.dumps(state))
        os.replace(beside, self._report)


def main() -> int:
    folder = Path(sys.argv[1])
    if os.fork():
        os._exit(0)  # the caller's child ends here, so that nobody has to wait for the one that stays
    os.setsid()
    return Supervisor(folder).run()


if __name__ == "__main__":
    sys.exit(main())
