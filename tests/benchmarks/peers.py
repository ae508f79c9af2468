"""Other servers on the same work, from a folder that holds them: see docs/benchmarks.md for what must be in it."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from planner.features import Array
from tests.benchmarks.subjects import Request, Subject, granian, read_openly, read_plainly

NAMES = {"chain": "chain3", "fan": "fan", "noop": "noop"}  # ours -> those of the folder


def load(folder: Path, venvs: Path) -> tuple[list[Subject], list[str]]:
    """The peers whose virtual environment is there, and a line for each that is left out. A setting of theirs that
    serves Ray Serve or FastAPI is left out too, because those run from here."""
    runner = _module(folder / "run_peers.py")
    work = _module(folder / "common" / "chainwork.py")
    found, missing = [], []
    for peer in runner.PEERS:
        if peer.folder in ("rayserve", "fastapi_floor"):
            continue
        python = venvs / peer.folder / "bin" / "python"
        if python.exists():
            found.append(_subject(peer, runner, work, folder, python))
        else:
            missing.append(f"{peer.title}: left out, there is no {python}")
    return found, missing


def granian_in(venvs: Path) -> tuple[Subject, ...]:
    """Granian, where `venvs` has it."""
    python = venvs / "granian" / "bin" / "python"
    return granian(python) if python.exists() else ()


def _subject(peer: Any, runner: ModuleType, work: ModuleType, folder: Path, python: Path) -> Subject:
    def ask(workload: str, row: Sequence[float]) -> Request:
        return Request(*runner.request_of(peer, NAMES[workload], list(row)))

    def expected(rows: Array, workload: str) -> Array:
        made: Array = work.reference(NAMES[workload], rows)
        return made

    one_thread = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS")}
    return Subject(
        peer.name,
        tuple(workload for workload, theirs in NAMES.items() if theirs in peer.workloads),
        (str(python), str(folder / peer.folder / peer.script)),
        ask,
        read_openly if peer.protocol == "v2" else read_plainly,
        {
            "PEER_WORKLOAD": "{workload}",
            "PEER_PORT": "{port}",
            "PYTHONPATH": str(folder / "common"),
            "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}",
            **one_thread,
            **peer.env,
        },
        NAMES,
        expected,
    )


def _module(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"peers_{path.stem}", path)
    if spec is None or spec.loader is None or not path.exists():
        raise SystemExit(f"--peers: there is no {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
