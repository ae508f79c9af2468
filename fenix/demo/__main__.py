"""`python -m fenix.demo`, which `make demo` calls: fits, starts, deploys, shows, and stops everything again.

Exit code 0 when all went well; 1 when something failed, or when the digits goal answered fewer held-out digits
rightly than its best single model; 130 when interrupted. Whatever happens, nothing is left running and nothing is
left on disk.
"""

from __future__ import annotations

import signal
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from fenix.output import explain
from lineage.errors import FenixError

if TYPE_CHECKING:
    from cluster.settings import Settings

SILENCE_S = 2.2
PIPE_WIDTH = 120  # characters, where there is no terminal that says its width


class Voice(Console):
    """The console of the demo. `report` prints a line of progress, `doing` only keeps it in mind; after `SILENCE_S`
    without output the last of either is said again."""

    def __init__(self) -> None:
        super().__init__(highlight=False, width=None if sys.stdout.isatty() else PIPE_WIDTH)
        self._started_s = self._spoke_s = time.monotonic()
        self._task = "starting"
        self._ended = threading.Event()

    def print(self, *objects: Any, **options: Any) -> None:
        self._spoke_s = time.monotonic()
        super().print(*objects, **options)

    def report(self, text: str) -> None:
        """One line of progress, with the seconds since the start."""
        self.doing(text)
        self._line(text)

    def doing(self, text: str) -> None:
        """What goes on now; said when it lasts."""
        self._task = text.strip()

    @contextmanager
    def speaking(self) -> Iterator[None]:
        """Never silent for long, as long as the block runs."""
        thread = threading.Thread(target=self._watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ended.set()
            thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(0.1):
            if time.monotonic() - self._spoke_s > SILENCE_S:
                self._line(f"... {self._task}")

    def _line(self, text: str) -> None:
        line = Text.assemble((f"{time.monotonic() - self._started_s:6.1f} s  ", "dim"), text)
        self.print(line, no_wrap=True, overflow="ellipsis")


def main() -> int:
    """Runs the demo; returns the exit code."""
    voice = Voice()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with voice.speaking(), tempfile.TemporaryDirectory(prefix="fenix-demo-") as folder:
            return _demo(Path(folder), voice)
    except KeyboardInterrupt:
        voice.print("Interrupted; everything is stopped.")
        return 130
    except FenixError as error:
        voice.print(Text.assemble(("Error: ", "bold red"), explain(error)), soft_wrap=True)
    except Exception as error:
        voice.print(Text.assemble(("Error: ", "bold red"), unexpected(error)), soft_wrap=True)
    return 1


def unexpected(error: Exception) -> str:
    """An error that nobody foresaw, in one line: what it is, and the last place in this package where it passed."""
    places = [frame for frame in traceback.extract_tb(error.__traceback__) if "demo" in Path(frame.filename).parts]
    where = f" at {Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
    said = " ".join(str(error).split())[:300]
    return (
        f"{type(error).__name__}{where}: {said}. Everything is stopped; this is a defect of the demo, please report it."
    )


def _demo(folder: Path, voice: Voice) -> int:
    voice.report("loading torch, scikit-learn, MLflow and Ray")
    from cluster import lifecycle
    from fenix.demo import training

    voice.doing("fitting the models")
    fitted = training.fit_all(voice.doing)
    voice.report(f"fitted {len(fitted)} models")
    settings = lifecycle.private_settings(folder)
    running = lifecycle.up(settings, voice.report)
    try:
        for name, address in running.addresses.items():
            voice.report(f"{name:7} {address}")
        holds = _deployed(settings, fitted, voice)
    finally:
        _deaf()
        lifecycle.down(settings, voice.report)
    return 0 if holds else 1


def _deployed(settings: Settings, fitted: Any, voice: Voice) -> bool:
    """Registers, deploys, tells the story. Returns whether it ended as it should."""
    from cluster import lifecycle
    from deployments import deployer
    from fenix.client import Client
    from fenix.demo import training
    from fenix.demo.goals import tasks
    from fenix.demo.story import Storyteller
    from lineage.models import ModelRegistry

    installation = lifecycle.installation(settings)
    registry = ModelRegistry(installation.mlflow_uri, Path(installation.cache_dir))
    voice.report("registering the models in MLflow")
    training.register_all(fitted, registry, voice.doing)
    voice.report("measuring what a row costs")
    cards = training.priced_cards(voice.doing, mlflow_uri=registry.uri, cache_dir=installation.cache_dir)
    with_data = {task.goal.name: task for task in tasks()}
    goals = [task.validated(settings.state_dir / "validation") for task in with_data.values()]
    voice.report(f"deploying {len(cards)} extensions and {len(goals)} goals")
    with lifecycle.connected(settings):
        deployer.deploy(cards, goals, installation, voice.doing)
    voice.report("everything runs, keeps its contract and is measured")
    with Client(settings.http_url) as client:
        story = Storyteller(client, voice, voice.doing, with_data)
        story.network()
        story.requests()
        story.cascade(settings.http_url)
        story.terms()
        story.sentences()
        holds = story.totals(settings.http_url)
    voice.print()
    if not holds:
        voice.print("read-digit answered fewer held-out digits rightly than its best single model.", style="bold red")
    return holds


def _interrupt(signum: int, frame: FrameType | None) -> None:
    _deaf()
    raise KeyboardInterrupt


def _deaf() -> None:
    """From here on stopping goes on to its end, however often someone asks for it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
