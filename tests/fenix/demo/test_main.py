from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from fenix.demo import show
from fenix.demo.__main__ import unexpected

cluster = pytest.mark.cluster


@pytest.fixture
def folder() -> Iterator[Path]:
    """Where the demo keeps its state while it runs; short, because of sockets in it."""
    with tempfile.TemporaryDirectory(prefix="fx") as made:
        yield Path(made)


def _start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fenix.demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )


def _processes_of(folder: Path) -> list[str]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = " ".join(process.info["cmdline"] or [])
        if str(folder) in command:
            found.append(command)
    return found


@cluster
@pytest.mark.timeout(400)
def test_the_demo_tells_its_story_and_leaves_nothing_behind(folder: Path, say: Callable[[str], None]) -> None:
    lines = []
    with _start(folder) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            lines.append(line)
            if len(lines) % 20 == 0:
                say(line.rstrip()[:100])
    text = "".join(lines)
    assert demo.returncode == 0, text[-3000:]
    for said in ("The network", "Requests", "Terms", "Sentences", "A cascade", "All held-out rows", "not taken"):
        assert said in text
    assert "Accuracy per cost: +" in text
    assert "locate-digit → normalise → glance-digit" in text
    assert not [line for line in lines if len(line.rstrip("\n")) > 120]
    assert not [line for line in lines if "WARNING" in line or " INFO " in line or "Traceback" in line]
    assert not _processes_of(folder)
    assert not list(folder.glob("fenix-demo-*"))


def test_an_error_that_nobody_foresaw_is_one_line_that_says_what_and_where() -> None:
    try:
        show.picture(np.zeros((3, 3)))
    except ValueError as error:
        said = unexpected(error)
    assert said.startswith("ValueError at show.py:")
    assert "\n" not in said


def test_an_error_that_nobody_foresaw_ends_the_demo_with_exit_code_1_and_without_a_trace() -> None:
    broken = """
import sys
import fenix.demo.__main__ as demo

def raising(folder, voice):
    raise ZeroDivisionError("nothing left")

demo._demo = raising
sys.exit(demo.main())
"""
    ended = subprocess.run([sys.executable, "-c", broken], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "Error: ZeroDivisionError" in ended.stdout
    assert "Traceback" not in ended.stdout + ended.stderr


@cluster
@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "moment"), [(signal.SIGINT, "Starting Serve"), (signal.SIGTERM, "Starting Ray and MLflow")]
)
def test_an_interrupted_demo_stops_what_it_started(folder: Path, number: signal.Signals, moment: str) -> None:
    with _start(folder) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if moment in line:
                demo.send_signal(number)
    assert demo.returncode == 130
    assert not _processes_of(folder)
    assert not list(folder.glob("fenix-demo-*"))
