"""Load from `wrk` against one URL, and ratios with their spread."""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# In a body, each request has other digits here: rows that repeat would let a cache answer instead of the models.
DIGITS = "@@@@@@"
SCRIPT = """
local heads, tails, i, n = {}, {}, 0, %d
wrk.method = "%s"
if wrk.method == "POST" then wrk.headers["Content-Type"] = "application/json" end
function init()
  for line in io.lines("%s") do
    local whole = wrk.format(nil, nil, nil, line ~= "" and line or nil)
    local first, last = whole:find("%s", 1, true)
    heads[#heads + 1] = first and whole:sub(1, first - 1) or whole
    tails[#heads] = first and whole:sub(last + 1)
  end
end
function request()
  i = i %% #heads + 1
  if not tails[i] then return heads[i] end
  n = (n + 1) %% 1000000
  return heads[i] .. string.format("%%06d", n) .. tails[i]
end
function done(s, latency)
  io.write('\\nRESULT ', string.format(
    '{"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "p999_ms": %%f, "failed": %%d}\\n',
    s.requests, s.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    latency:percentile(99.9) / 1e3,
    s.errors.status + s.errors.connect + s.errors.read + s.errors.write + s.errors.timeout))
end
"""


@dataclass(frozen=True, slots=True)
class Load:
    """One run of wrk: requests per second, latency, how many requests were answered, and how many failed."""

    rate: float
    p50_ms: float
    p99_ms: float
    p999_ms: float
    n_requests: int
    failed: int


def wrk(url: str, bodies: Sequence[bytes], connections: int, seconds: float, method: str = "POST") -> Load:
    """Sends the bodies in turn from one thread over `connections`; `DIGITS` in a body is another number each time.

    Raises SystemExit when wrk is not installed.
    """
    if shutil.which("wrk") is None:
        raise SystemExit("the benchmark sends its load with wrk: install it (Debian: apt-get install wrk)")
    with tempfile.TemporaryDirectory() as folder:
        lines, script = Path(folder) / "bodies", Path(folder) / "load.lua"
        lines.write_bytes(b"\n".join(bodies) + b"\n")
        script.write_text(SCRIPT % (time.time_ns() // 1000 % 1_000_000, method, lines, DIGITS))
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--timeout", "10s", "-s", str(script), url]
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    result = json.loads(output.rpartition("RESULT ")[2])
    rate = result["requests"] / result["seconds"]
    return Load(rate, result["p50_ms"], result["p99_ms"], result["p999_ms"], result["requests"], result["failed"])


@dataclass(frozen=True, slots=True)
class Spread:
    """The median over rounds, and the smallest and largest round."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Ours over theirs round by round, because both ran next to each other in each round."""
    return Spread.of([a / b for a, b in zip(ours, theirs, strict=True)])
