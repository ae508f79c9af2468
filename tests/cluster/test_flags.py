from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

from cluster import flags
from cluster.settings import load


def test_the_shells_own_flags_do_not_reach_what_we_start(tmp_path: Path) -> None:
    settings = load(environment={}, overrides={"state_dir": str(tmp_path)})
    ambient = {
        "PATH": "/bin",
        "RAY_AUTH_MODE": "disabled",
        "RAY_ADDRESS": "auto",
        "MLFLOW_RUN_ID": "1",
        "FENIX_HOST": "x",
    }
    made = flags.environment(settings, ambient)
    assert made["PATH"] == "/bin"
    assert made["RAY_AUTH_MODE"] == "token"
    assert made["RAY_AUTH_TOKEN_PATH"] == str(tmp_path / "token")
    assert not {"RAY_ADDRESS", "MLFLOW_RUN_ID", "FENIX_HOST"} & made.keys()


def test_import_paths_come_before_the_shells(tmp_path: Path) -> None:
    settings = load(environment={}, overrides={"import_paths": [str(tmp_path)]})
    assert flags.environment(settings, {"PYTHONPATH": "/theirs"})["PYTHONPATH"] == f"{tmp_path}{os.pathsep}/theirs"


def test_ray_stays_on_loopback_unless_the_node_has_a_real_address() -> None:
    assert flags.of(load(environment={}))[flags.OTHERS_JOIN] == "0"
    assert flags.of(load(environment={}, overrides={"ray.node_ip": "10.0.0.5"}))[flags.OTHERS_JOIN] == "1"


def test_the_token_is_made_once_for_the_owner_alone(tmp_path: Path) -> None:
    settings = load(environment={}, overrides={"state_dir": str(tmp_path)})
    flags.ensure_token(settings)
    path = flags.token_path(settings)
    token = path.read_text()
    path.chmod(0o644)
    flags.ensure_token(settings)
    assert path.read_text() == token
    assert len(token) == 64
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_router_has_a_loop_of_its_own_where_loops_come_and_go_and_only_there(tmp_path: Path) -> None:
    code = (
        "from cluster import flags; flags.apply();"
        "from ray.serve._private.constants import RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP as own; print(own)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "True"
    settings = load(environment={}, overrides={"state_dir": str(tmp_path)})
    assert flags.environment(settings)["RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP"] == "0"


def test_flags_that_come_after_ray_are_refused() -> None:
    code = "import os; os.environ.pop('RAY_AUTH_MODE', None); import ray; from cluster import flags; flags.apply()"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ClusterDown: Ray was imported before its flags were set." in ended.stderr


def test_flags_of_loopback_do_for_ray_imported_before_the_settings_are_known(tmp_path: Path) -> None:
    code = (
        "import sys; from cluster import flags; flags.apply(); import ray; from cluster.settings import load;"
        "flags.apply(load(environment={}, overrides={'state_dir': sys.argv[1]})); print('local is fine');"
        "flags.apply(load(environment={}, overrides={'ray.node_ip': '10.0.0.5'}))"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert ended.stdout.strip() == "local is fine"
    assert "ClusterDown: Ray was imported before its flags were set." in ended.stderr


def test_settings_and_flags_are_read_without_ray_or_mlflow() -> None:
    code = "import sys, cluster.flags, cluster.lifecycle; print({'ray', 'mlflow', 'torch'} & set(sys.modules))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "set()"
