"""One MLflow database for all tests of a run: making one takes seconds, and names keep the tests apart."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

from lineage.models import ModelRegistry


@cache
def _home() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="mlflow-", ignore_cleanup_errors=True)


def artifacts() -> Path:
    """Where the artifacts of `model_registry` lie."""
    return Path(_home().name) / "artifacts"


def model_registry(cache_dir: Path) -> ModelRegistry:
    """The registry of this test run, with a cache of its own for the caller."""
    return ModelRegistry(f"sqlite:///{_home().name}/mlflow.db", cache_dir, artifact_root=artifacts())
