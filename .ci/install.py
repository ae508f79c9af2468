"""Makes `.venv` and installs `requirements.lock` and this package into it. Run by the Makefile; standard library only.

pip says nothing while it unpacks, which takes most of the time, so this watches it and prints a line every 2 s.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
LOCK = ROOT / "requirements.lock"
LOG = VENV / "install.log"
EVERY_S = 2.0


def doing() -> str:
    """What pip said last of a package."""
    lines = LOG.read_text(errors="replace").splitlines() if LOG.exists() else []
    words = ("Collecting", "Processing", "Downloading", "Using cached", "Installing")
    return next((line.strip()[:100] for line in reversed(lines) if line.strip().startswith(words)), "")


def watched(title: str, command: list[str], n_packages: int = 0) -> None:
    """Runs `command` with its output in LOG; exits with its status and the end of the log if it fails."""
    print(f"{title} ...", flush=True)
    started_s = time.monotonic()
    with LOG.open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        while True:
            try:
                status = process.wait(EVERY_S)
                break
            except subprocess.TimeoutExpired:
                n_done = min(len(list(VENV.glob("lib/python*/site-packages/*.dist-info"))), n_packages)
                what = f"{n_done} of {n_packages} packages in place" if n_done > 2 else doing()
                print(f"  {time.monotonic() - started_s:4.0f} s  {what}", flush=True)
    if status:
        print("\n".join(LOG.read_text(errors="replace").splitlines()[-30:]), file=sys.stderr)
        print(f"{title}: failed. The whole log is in {LOG.relative_to(ROOT)}.", file=sys.stderr)
        raise SystemExit(status)
    print(f"  done in {time.monotonic() - started_s:.0f} s", flush=True)


def main() -> None:
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        raise SystemExit("Fenix needs Python 3.11, 3.12 or 3.13. Say which with `make PYTHON=/path/to/python3.11`.")
    n_packages = sum(1 for line in LOCK.read_text().splitlines() if "==" in line)
    python = str(VENV / "bin" / "python")
    VENV.mkdir(exist_ok=True)
    if not (VENV / "bin" / "pip").exists():
        watched("Making .venv", [sys.executable, "-m", "venv", str(VENV)])
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--progress-bar", "off"]
    # Compiling every module of every package takes as long as the rest; Python compiles the few that are used.
    watched(f"Installing {n_packages} packages", [*pip, "--no-compile", "-r", str(LOCK)], n_packages)
    watched("Installing Fenix itself", [*pip, "--no-deps", "--no-build-isolation", "-e", "."])


if __name__ == "__main__":
    main()
