from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.processes import RUN_VARIABLE, ProcessId, end, family
from cluster.supervisor import LONGEST_BACKOFF_S, backoff_s

SLEEPS = [sys.executable, "-c", "import time; time.sleep(60)"]
DIES = [sys.executable, "-c", "raise SystemExit(7)"]


class Supervised:
    """A supervisor over some commands, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def start(self, **services: tuple[list[str], bool]) -> None:
        content = [
            {"name": name, "command": command, "log": str(self.folder / f"{name}.log"), "restart": restart}
            for name, (command, restart) in services.items()
        ]
        (self.folder / "services.json").write_text(json.dumps(content))
        subprocess.run(
            [sys.executable, "-m", "cluster.supervisor", str(self.folder)],
            env={**os.environ, RUN_VARIABLE: str(self.folder)},
            check=True,
        )

    def state(self) -> dict[str, Any]:
        path = self.folder / "supervisor.json"
        return dict(json.loads(path.read_text())) if path.exists() else {"supervisor": None, "services": []}

    def service(self, name: str) -> dict[str, Any]:
        return next((service for service in self.state()["services"] if service["name"] == name), {})

    def process(self, name: str) -> ProcessId | None:
        found = self.service(name).get("process")
        return ProcessId(**found) if found else None

    def until(self, condition: Callable[[], bool]) -> None:
        """Returns when the condition holds; fails after 20 s. (Other processes keep no fake clock.)"""
        deadline_s = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline_s, self.state()
            time.sleep(0.02)


@pytest.fixture
def supervised(tmp_path: Path) -> Iterator[Supervised]:
    kept = Supervised(tmp_path)
    yield kept
    leader = kept.state()["supervisor"]
    end(family(ProcessId(**leader) if leader else None, str(tmp_path)), grace_s=5.0)


def test_sigterm_ends_everything(supervised: Supervised) -> None:
    supervised.start(one=(SLEEPS, True), two=(SLEEPS, False))
    supervised.until(lambda: supervised.process("two") is not None)
    leader = ProcessId(**supervised.state()["supervisor"])
    members = [supervised.process("one"), supervised.process("two"), leader]
    assert all(member is not None and member.is_alive() for member in members)
    os.kill(leader.pid, signal.SIGTERM)
    supervised.until(lambda: not any(member is not None and member.is_alive() for member in members))
    assert family(leader, str(supervised.folder)) == []


def test_a_service_that_dies_is_started_again(supervised: Supervised) -> None:
    supervised.start(one=(SLEEPS, True))
    supervised.until(lambda: supervised.process("one") is not None)
    first = supervised.process("one")
    assert first is not None
    os.kill(first.pid, signal.SIGKILL)
    supervised.until(lambda: supervised.service("one").get("n_restarts") == 1)
    supervised.until(lambda: (now := supervised.process("one")) is not None and now.is_alive())
    assert supervised.process("one") != first


def test_the_death_of_one_that_may_not_be_restarted_ends_the_rest(supervised: Supervised) -> None:
    supervised.start(one=(SLEEPS, True), two=(DIES, False))
    supervised.until(lambda: supervised.service("two").get("exit_status") == 7)
    leader = ProcessId(**supervised.state()["supervisor"])
    supervised.until(lambda: not leader.is_alive())
    assert family(leader, str(supervised.folder)) == []


def test_restarts_come_slower_and_slower_up_to_a_limit() -> None:
    waits_s = [backoff_s(n_deaths) for n_deaths in range(1, 12)]
    assert waits_s == sorted(waits_s)
    assert waits_s[0] == 0.5
    assert waits_s[-1] == LONGEST_BACKOFF_S
