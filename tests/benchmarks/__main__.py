"""All benchmarks, one after the other: `make bench`, or `python -m tests.benchmarks NAME...`."""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = {
    "planning": "how long a plan takes, cached and fresh, up to 100,000 extensions",
    "batching": "which batching policy answers most rows in time, simulated",
    "budget": "where the time of a request goes in the gateway",
    "hedging": "what second calls bring where a replica is slow",
    "serving": "models composed behind HTTP, beside a hand-written server and plain Ray Serve",
    "journal": "what it costs to take down every outcome",
    "choice": "how soon the policies of choosing find the best plan, simulated",
    "choice_digits": "how well they choose among real models, for digits under changing corruption",
    "rollout": "what rollouts do about good and bad versions, simulated",
    "lifecycle": "what deploying, trying, promoting, rolling back, replacing and removing do to requests under load",
    "lineage": "how soon the nearest healthy ancestor among 100,000 versions is found, and what one more takes",
    "lineage_tensors": "what a family of networks costs to keep, and whether claimed parents are judged rightly",
    "drift": "how often drift is seen where there is none, how soon where there is, and what watching costs",
    "repair": "whether a repair is nearly as good as retraining, for fewer labels and less work",
    "drills": "three times the load that extensions bear, killed replicas, and what many requests leave behind",
}


def main() -> None:
    chosen = sys.argv[1:] or list(BENCHMARKS)
    for name in chosen:
        if name not in BENCHMARKS:
            raise SystemExit(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}")
    failed = []
    for name in chosen:
        print(f"== {name}: {BENCHMARKS[name]}", flush=True)
        if subprocess.run([sys.executable, "-m", f"tests.benchmarks.bench_{name}"]).returncode != 0:
            failed.append(name)
    if failed:
        raise SystemExit(f"did not finish: {', '.join(failed)}")


if __name__ == "__main__":
    main()
