"""Operating-system processes: who is who, who belongs to whom, how they end; and ports.

A pid alone names nobody: the system gives it to the next process. Here a process is its pid and its start time, and
everything that one `fenix up` started is found again by its session: the supervisor opens a session of its own, its
descendants stay in it, and the system does not reuse a session's number while a member lives.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

# psutil derives start times from the boot time, which shifts a little when the clock is set.
_CLOCK_SLACK_S = 3.0
# Marks the environment of everything that a run starts, for processes that leave the session by a setsid of their own.
RUN_VARIABLE = "_FENIX_RUN"


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process for good: its pid and when it started (seconds since the epoch)."""

    pid: int
    started_s: float

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The process that has this pid now; None if there is none."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return None

    def process(self) -> psutil.Process | None:
        """The living process, or None if it has ended, is a zombie, or its pid belongs to another one now."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.started_s) < _CLOCK_SLACK_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    def is_alive(self) -> bool:
        return self.process() is not None


def family(leader: ProcessId | None, run_id: str) -> list[psutil.Process]:
    """Everything alive of one run: the leader's session, its members' descendants, and what carries `run_id`.

    Never includes the calling process. The leader may be dead already.
    """
    # Another process that starts with the leader's pid proves that the old session has no member left.
    now = ProcessId.of(leader.pid) if leader else None
    reused = leader is not None and now is not None and abs(now.started_s - leader.started_s) >= _CLOCK_SLACK_S
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        try:
            in_session = leader is not None and not reused and os.getsid(process.pid) == leader.pid
            if in_session or _run_of(process) == run_id:
                found[process.pid] = process
                found.update((child.pid, child) for child in process.children(recursive=True))
        except (psutil.Error, OSError):
            continue
    found.pop(os.getpid(), None)
    return [process for process in found.values() if _lives(process)]


def _run_of(process: psutil.Process) -> str | None:
    try:
        return process.environ().get(RUN_VARIABLE)
    except (psutil.Error, OSError, ValueError):
        return None  # another user's process, or one that wrote over its environment to change its title


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def end(processes: Iterable[psutil.Process], grace_s: float) -> list[psutil.Process]:
    """Asks them to end, waits `grace_s`, kills the rest; returns those that are still there 2 s later."""
    asked = [process for process in processes if _signal(process, kill=False)]
    _, left = psutil.wait_procs(asked, timeout=grace_s)
    killed = [process for process in left if _lives(process) and _signal(process, kill=True)]
    _, left = psutil.wait_procs(killed, timeout=2.0)
    return [process for process in left if _lives(process)]


def _signal(process: psutil.Process, kill: bool) -> bool:
    try:
        process.kill() if kill else process.terminate()
        return True
    except psutil.Error:
        return False


def memory_mib(processes: Iterable[psutil.Process]) -> float:
    """Resident memory of all, in MiB; pages that they share are counted for each."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.Error:
            continue
    return total / 2**20


def port_is_free(host: str, port: int) -> bool:
    """Whether a server could listen there now."""
    family_ = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family_, socket.SOCK_STREAM) as probe:
        # As servers do: a port whose last connections have just closed counts as free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError:
            return False
    return True


def port_answers(host: str, port: int) -> bool:
    """Whether something accepts connections there."""
    try:
        with socket.create_connection((host, port), timeout=1.0):
            return True
    except OSError:
        return False


def free_ports(n: int, host: str = "127.0.0.1") -> list[int]:
    """`n` different ports that nobody listens on at the moment."""
    probes = [socket.socket() for _ in range(n)]
    try:
        for probe in probes:
            probe.bind((host, 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()
