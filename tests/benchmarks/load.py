"""Load from `wrk` against one URL, and the table of ratios with their spread."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPT = """
local bodies, i = {}, 0
for line in io.lines("%s") do bodies[#bodies + 1] = line end
wrk.method, wrk.headers["Content-Type"] = "POST", "application/json"
function request() i = i %% #bodies + 1; return wrk.format(nil, nil, nil, bodies[i]) end
function done(s, latency)
  io.write(string.format('\\nRESULT {"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "failed": %%d}\\n',
    s.requests, s.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk: requests per second, latency, and how many requests failed."""

    rate: float
    p50_ms: float
    p99_ms: float
    failed: int


def wrk(url: str, bodies: Sequence[bytes], connections: int, seconds: float) -> Load:
    """Sends the bodies in turn from one thread over `connections`. Raises SystemExit when wrk is not installed."""
    if shutil.which("wrk") is None:
        raise SystemExit("the benchmark sends its load with wrk: install it (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        lines, script = Path(folder) / "bodies", Path(folder) / "load.lua"
        lines.write_bytes(b"\n".join(bodies) + b"\n")
        script.write_text(SCRIPT % lines)
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.rpartition("RESULT ")[2])
    return Load(result["requests"] / result["seconds"], result["p50_ms"], result["p99_ms"], result["failed"])


@dataclass(frozen=True, slots=True)
class Ratio:
    """Ours over theirs: the median over rounds, and the smallest and largest round."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f}x ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Ratio:
    """Round by round, because both ran next to each other in each round."""
    each = [a / b for a, b in zip(ours, theirs, strict=True)]
    return Ratio(statistics.median(each), min(each), max(each))
