"""Batching policies: how many rows go together in a call, and whether to wait for more. Needs no cluster.

    policy.py           what a policy sees and decides, and the rules that hold for all
    call_times.py       what a call of n rows takes, fitted as calls come
    registry.py         finds the policies of this package

The policies
    greedy.py           all that waits, at once
    fixed.py            a size and a wait, set by hand: the baseline
"""

from typing import Final

DEFAULT_POLICY: Final = "greedy"  # the best mean goodput over the suite; docs/batching.md has the table
