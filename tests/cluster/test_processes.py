from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cluster import processes
from cluster.processes import RUN_VARIABLE, ProcessId

# Says that it is ready, then does what the test is about until it is ended.
_SLEEPS = "print(flush=True); import time; time.sleep(60)"
_IGNORES_SIGTERM = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {_SLEEPS}"
_HAS_A_CHILD = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {_SLEEPS!r}]).wait()"
_LEAVES_AN_ESCAPEE = (
    f"import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', {_SLEEPS!r}], start_new_session=True);"
    " print(c.pid, flush=True)"
)


@contextlib.contextmanager
def _started(code: str, **options: object) -> Iterator[subprocess.Popen[bytes]]:
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)  # type: ignore[call-overload]
    try:
        yield child
    finally:
        child.kill()
        child.wait()
        child.stdout.close()


def _ready(child: subprocess.Popen[bytes]) -> bytes:
    assert child.stdout is not None
    return child.stdout.readline()


def test_a_process_is_its_pid_and_its_start() -> None:
    with _started(_SLEEPS) as child:
        identity = ProcessId.of(child.pid)
        assert identity is not None
        assert identity.is_alive()
        assert not ProcessId(child.pid, identity.started_s - 60).is_alive()
    assert not identity.is_alive()


def test_a_zombie_is_not_alive() -> None:
    with _started("print(flush=True)") as child:
        identity = ProcessId.of(child.pid)
        _ready(child)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert identity is not None
        assert not identity.is_alive()


def test_the_family_is_the_session_and_its_descendants_and_nobody_else() -> None:
    with _started(_HAS_A_CHILD, start_new_session=True) as leader, _started(_SLEEPS) as stranger:
        _ready(leader), _ready(stranger)
        members = processes.family(ProcessId.of(leader.pid), "no such run")
        pids = {process.pid for process in members}
        assert leader.pid in pids
        assert len(pids) == 2
        assert not {stranger.pid, os.getpid()} & pids
        assert processes.end(members, grace_s=5.0) == []


def test_a_reused_pid_has_no_family() -> None:
    with _started(_SLEEPS, start_new_session=True) as leader:
        _ready(leader)
        identity = ProcessId.of(leader.pid)
        assert identity is not None
        assert processes.family(ProcessId(leader.pid, identity.started_s - 3600), "no such run") == []


def test_what_left_the_session_is_found_by_its_mark() -> None:
    with _started(_LEAVES_AN_ESCAPEE, env={**os.environ, RUN_VARIABLE: "run-7"}) as parent:
        escapee = int(_ready(parent))
        parent.wait()
        members = processes.family(None, "run-7")
        assert [process.pid for process in members] == [escapee]
        assert processes.end(members, grace_s=5.0) == []


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    with _started(_IGNORES_SIGTERM, start_new_session=True) as child:
        _ready(child)
        members = processes.family(ProcessId.of(child.pid), "no such run")
        assert processes.end(members, grace_s=0.2) == []
        assert child.wait() in (-signal.SIGKILL, 0)


def test_a_port_that_someone_listens_on_is_not_free() -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1]
        assert not processes.port_is_free("127.0.0.1", port)
        assert processes.port_answers("127.0.0.1", port)
    assert processes.port_is_free("127.0.0.1", port)
    assert not processes.port_answers("127.0.0.1", port)


def test_an_address_of_another_machine_is_not_free() -> None:
    assert not processes.port_is_free("203.0.113.1", 8000)


@pytest.mark.parametrize("n", [1, 20])
def test_free_ports_are_different(n: int) -> None:
    assert len(set(processes.free_ports(n))) == n
