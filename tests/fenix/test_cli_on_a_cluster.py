"""The commands that change a cluster, as a user types them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cluster.lifecycle import Running

pytestmark = pytest.mark.cluster

CODE = """
from deployments.extension import extension
from planner.features import Feature

NUMBER, HALF = Feature("number", "FP32"), Feature("number/half", "FP32")

@extension(inputs={"x": NUMBER}, outputs={"y": HALF})
def halve(x):
    return x / 2

@extension(inputs={"x": NUMBER}, outputs={"y": HALF})
def spoil(x):
    x[:] = 0
    return x
"""
GOAL = """
name: half
description: Halve a number.
inputs: [{name: x, type: number, datatype: FP32}]
outputs: [{name: y, type: number/half, datatype: FP32}]
"""


def fenix(running: Running, *words: str, code: int = 0) -> Any:
    """Runs a command against the cluster; its data, or its error where it exits with another `code` than 0."""
    done = subprocess.run(
        [sys.executable, "-c", "from fenix.cli import main; main()", *words, *(() if code else ("-o", "json"))],
        env={**os.environ, "FENIX_STATE_DIR": str(running.settings.state_dir)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert "Traceback" not in done.stderr
    assert done.returncode == code, done.stderr
    return done.stderr if code else json.loads(done.stdout)


def test_deploy_ask_and_remove_a_file_of_code(running_cluster: Running, tmp_path: Path) -> None:
    (tmp_path / "halving.py").write_text(CODE)
    (tmp_path / "goal.yaml").write_text(GOAL)
    deployed = fenix(running_cluster, "deploy", f"{tmp_path}/halving.py:halve", "--goal", f"{tmp_path}/goal.yaml")
    assert [card["id"] for card in deployed["extensions"]] == ["halve@1"]
    try:
        answer = fenix(running_cluster, "infer", "--sentence", "please halve this number", "-i", "[3, 4]")
        assert answer["outputs"] == {"y": [1.5, 2.0]}
        health = {one["id"]: one for one in fenix(running_cluster, "status")["applications"]}
        assert (health["halve@1"]["state"], health["halve@1"]["n_running"]) == ("running", 1)
        said = fenix(running_cluster, "deploy", f"{tmp_path}/halving.py:spoil", code=2)
        assert "spoil@1" in said
        assert [card["id"] for card in fenix(running_cluster, "get", "extensions") if card["name"] == "spoil"] == []
    finally:
        fenix(running_cluster, "remove", "halve@1", "--goal", "half")
    fenix(running_cluster, "describe", "half", code=4)
    assert fenix(running_cluster, "up", "-q")["adopted"] is True
