from __future__ import annotations

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from cluster import lifecycle, processes
from cluster.processes import ProcessId
from cluster.settings import Settings
from planner.errors import BadCard, ClusterDown

if TYPE_CHECKING:
    from deployments.applications import Installation

Say = Callable[[str], None]


def _nothing_to_install(installation: Installation, report: Say) -> None:
    report("nothing to install")


def _until(condition: Callable[[], bool], within_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.05)


def _members(settings: Settings) -> list[psutil.Process]:
    run = lifecycle._read(settings, "run.json")
    return processes.family(lifecycle._supervisor(settings), run["run_id"]) if run else []


@pytest.fixture
def settings(state_dir: Path, say: Say) -> Iterator[Settings]:
    made = lifecycle.private_settings(state_dir)
    yield made
    lifecycle.down(made, say)


def test_nothing_runs_where_nothing_was_started(settings: Settings, say: Say) -> None:
    assert lifecycle.status(settings).state == "down"
    assert lifecycle.down(settings, say).n_ended == 0
    with pytest.raises(ClusterDown, match="No cluster runs"):
        lifecycle.running_settings(settings)
    with pytest.raises(ClusterDown, match="No Ray head answers"), lifecycle.connected(settings):
        pass


@pytest.mark.parametrize("key", ["http_port", "grpc_port", "ray.port", "mlflow.port"])
def test_a_taken_port_is_found_before_anything_starts(state_dir: Path, say: Say, key: str) -> None:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        taken = server.getsockname()[1]
        settings = lifecycle.private_settings(state_dir, {key: taken})
        with pytest.raises(BadCard, match=rf"{key} = {taken}: something listens") as caught:
            lifecycle.up(settings, say, _nothing_to_install)
    assert f"FENIX_{key.upper().replace('.', '__')}=" in caught.value.hint
    assert lifecycle.status(settings).state == "down"


def test_rays_sockets_get_a_short_folder(tmp_path: Path) -> None:
    short = lifecycle.private_settings(Path("/srv/fenix"))
    assert lifecycle.ray_temp_dir(short) == Path("/srv/fenix/ray")
    deep = lifecycle.private_settings(tmp_path / "a-folder-with-a-name" / "that-goes-on-and-on")
    assert len(str(lifecycle.ray_temp_dir(deep))) <= 34
    given = lifecycle.private_settings(Path("/srv/fenix"), {"ray.temp_dir": "/" + "x" * 40})
    with pytest.raises(BadCard, match=r"ray\.temp_dir"):
        lifecycle.ray_temp_dir(given)


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_an_install_that_fails_leaves_nothing_behind(settings: Settings, say: Say) -> None:
    members: list[psutil.Process] = []

    def fails(installation: Installation, report: Say) -> None:
        members.extend(_members(settings))
        raise ValueError("no such luck")

    with pytest.raises(ClusterDown, match="ValueError: no such luck"):
        lifecycle.up(settings, say, fails)
    assert len(members) > 5
    assert not [process for process in members if process.is_running()]
    assert lifecycle.status(settings).state == "down"


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_service_that_cannot_start_is_named_with_its_reason(settings: Settings, say: Say) -> None:
    (settings.state_dir / "mlflow.db").write_text("this is no database")
    with pytest.raises(ClusterDown, match="mlflow ended with status 1") as caught:
        lifecycle.up(settings, say, _nothing_to_install)
    assert "file is not a database" in caught.value.message
    assert "mlflow.log" in caught.value.hint
    assert lifecycle.status(settings).state == "down"


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_cluster_comes_up_is_adopted_recovers_from_crashes_and_goes_down(settings: Settings, say: Say) -> None:
    running = lifecycle.up(settings, say, _nothing_to_install)
    assert not running.adopted
    members = _members(settings)

    # It listens on loopback alone, and its token is the owner's.
    listening = [c for p in members for c in p.net_connections("tcp") if c.status == psutil.CONN_LISTEN]
    assert listening
    assert {address.removeprefix("::ffff:") for address in (c.laddr.ip for c in listening)} == {"127.0.0.1"}

    # The gateway is missing, and the status says so.
    status = lifecycle.status(settings)
    assert status.state == "broken"
    assert "gateway" in status.detail
    assert {service.name for service in status.services if service.alive} == {"ray", "mlflow"}

    assert lifecycle.up(settings, say, _nothing_to_install).adopted

    # MLflow is started again when it dies.
    mlflow = next(service for service in status.services if service.name == "mlflow")
    assert mlflow.pid is not None
    for process in psutil.Process(mlflow.pid).children(recursive=True):
        process.kill()
    os.kill(mlflow.pid, signal.SIGKILL)
    _until(lambda: any(s.name == "mlflow" and s.n_restarts == 1 for s in lifecycle.status(settings).services))
    _until(lambda: processes.port_answers("127.0.0.1", settings.mlflow.port))

    # After the worst crash, the next `up` clears up and starts anew.
    supervisor = lifecycle._supervisor(settings)
    assert supervisor is not None
    os.kill(supervisor.pid, signal.SIGKILL)
    _until(lambda: not supervisor.is_alive())
    again = lifecycle.up(settings, say, _nothing_to_install)
    assert not again.adopted
    assert again.run_id != running.run_id
    assert not [process for process in members if process.is_running()]

    identities = [ProcessId(process.pid, process.create_time()) for process in _members(settings)]
    ended = lifecycle.down(settings, say)
    assert ended.survivors == ()
    assert ended.n_ended == len(identities)
    assert not [identity for identity in identities if identity.is_alive()]
    assert lifecycle.down(settings, say).n_ended == 0
