"""Choosing among the planner's candidates, learning from what comes of it. Needs no cluster.

    policy.py               what a choice is made on, what comes back, and the interface of all policies
    segments.py             which segment a request belongs to
    rules.py                what users pin or exclude
    rule_store.py           the rules in SQL
    posteriors.py           what is believed of each plan for each segment; gateways share it
    judging.py              what counts of an outcome, and how right an answer was
    learner.py              makes beliefs of the journal, and tells the gateways
    tracks.py               one number that may change: sums that fade, and a test for shifts
    best.py                 how likely each of several unsure numbers is the largest

The policies
    thompson.py             as often as it is likely to be the best, within a budget: the default
    exp3.py                 Exp3 and Exp4, for worlds that follow no distribution
    controller.py           a tiny network that decides step by step (trained by controller_training.py)
    greedy.py               baselines: the best known with chance trials, the planner's first, a fixed plan

Comparing them
    worlds.py               simulated worlds whose truth is known
    evaluation.py           what a policy would have brought, from outcomes of another
    journaled.py            such outcomes, from the journal
    offline.py              compares policies on them, and trains the controller
"""

from typing import Final

DEFAULT_POLICY: Final = "thompson"
