"""Batching policies: how many rows go together in a call, and whether to wait for more. Needs no cluster.

    policy.py           what a policy sees and decides, and the rules that hold for all
    call_times.py       what a call of n rows takes, fitted as calls come
    arrivals.py         how many rows come per second
    registry.py         finds the policies of this package

The policies
    greedy.py           all that waits, at once
    fixed.py            a size and a wait, set by hand: the baseline
    aimd.py             a size that grows until calls take too long
    fitted.py           the size that keeps up with the arrivals, from what calls take
    thompson.py         a bandit over sizes
    learned.py          a small network, trained on the simulator (weights: learned.json)

Comparing them (docs/batching.md has the table)
    simulation.py       a queue before one extension, event by event
    scenarios.py        the suite: arrivals, extensions, loads
    training.py         trains the learned policy with RLlib
"""

from typing import Final

DEFAULT_POLICY: Final = "fitted"  # the best mean goodput over the suite
