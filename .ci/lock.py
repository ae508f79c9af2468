"""Writes `requirements.lock`: what a clean environment with `.[dev]` and `configs/pins.txt` holds. Run by `make lock`.

Exact versions and nothing else: no hosts, no paths, and no local version labels, so that torch may come as the CPU
build or as the plain one.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
HEAD = """\
# Written by `make lock`; do not edit. Exact versions of everything that Fenix and its tests use, for Python 3.11
# to 3.13. torch comes first: without its exact version pip may choose another build and fetch gigabytes.
"""


def main() -> None:
    venv = ROOT / "build" / "lock"
    python = str(venv / "bin" / "python")
    subprocess.run([sys.executable, "-m", "venv", "--clear", str(venv)], check=True)
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    pins = str(ROOT / "configs" / "pins.txt")
    subprocess.run([*pip, "install", "-c", pins, f"{ROOT}[dev]"], check=True)
    freeze = [*pip, "freeze", "--all", "--exclude", "pip", "--exclude", "fenix-serve"]
    frozen = subprocess.run(freeze, check=True, capture_output=True, text=True).stdout
    lines = [re.sub(r"\+[\w.]+$", "", line.strip()) for line in frozen.splitlines()]
    wrong = [line for line in lines if not re.fullmatch(r"[\w.-]+==[\w.!]+", line)]
    if wrong:
        raise SystemExit(f"Not an exact version from an index: {', '.join(wrong)}")
    lines.sort(key=lambda line: (not line.startswith("torch=="), line.lower()))
    (ROOT / "requirements.lock").write_text(HEAD + "\n".join(lines) + "\n")
    print(f"requirements.lock: {len(lines)} packages")


if __name__ == "__main__":
    main()
