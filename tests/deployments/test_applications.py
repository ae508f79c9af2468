"""Extension versions start as Serve applications of their own; those that cannot are named and taken away."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from ray import serve
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from cluster import lifecycle
from deployments.kinds.sklearn import save_sklearn
from deployments.loading import describe
from tests.lineage.stores import model_registry

pytestmark = pytest.mark.cluster

PORTS = {
    "inputs": [{"name": "flower", "type": "flower", "datatype": "FP64", "shape": [4]}],
    "outputs": [{"name": "label", "type": "label/iris", "datatype": "INT64"}],
}


def test_a_pinned_version_starts_while_mlflow_is_down_and_a_broken_one_is_named(
    running_cluster: lifecycle.Running, tmp_path: Path
) -> None:
    from deployments.applications import delete, start

    installation = lifecycle.installation(running_cluster.settings)
    registry = model_registry(Path(installation.cache_dir))
    content = save_sklearn(LogisticRegression(max_iter=500).fit(*load_iris(return_X_y=True)), tmp_path / "m")
    version = registry.register("iris-offline", tmp_path / "m", content=content, card=PORTS)
    card = describe(version.uri, mlflow_uri=registry.uri, cache_dir=installation.cache_dir)
    broken = card.but(name="broken", options={"surplus": 1})
    nobody_there = replace(installation, mlflow_uri="http://127.0.0.1:9")
    with lifecycle.connected(running_cluster.settings):
        started = asyncio.run(start([card, broken], nobody_there, lambda text: None))
        asyncio.run(delete(started.running))
        assert started.running == (card.id,)
        assert "surplus" in started.failed[broken.id]
        left = serve.status().applications.get(broken.id)
        assert left is None or left.status == "DELETING"
