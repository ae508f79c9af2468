"""Rollouts: a new version earns its traffic, or loses it, by sequential tests on what became of requests.

    sequential.py       tests that may be looked at after every request: is it worse, is it not worse
    latencies.py        latencies as histograms that add up
    records.py          the nouns: plan, outcomes, evidence, rollout, decision
    evidence.py         outcomes into evidence, evidence into findings
    rollout.py          start, observe, decide, follow; pause, promote, roll back, abort
    shares.py           which version serves a request, and which see it in the shadow
    codec.py            a rollout as plain data, for whoever keeps it
    simulation.py       simulated rollouts with known truth

Whoever runs a rollout keeps the record, hands outcomes to `observe`, asks `decide` every second or so, and does what
`follow` says. Nothing here reads a clock, keeps state or talks to anybody.
"""
