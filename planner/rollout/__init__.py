"""Rollouts: a new version earns its traffic, or loses it, by sequential tests on what became of requests.

    sequential.py       tests that may be looked at after every request: is it worse, is it not worse
    latencies.py        latencies as histograms that add up
    records.py          the nouns: plan, outcomes, evidence, rollout, decision
    evidence.py         outcomes into evidence, evidence into findings
    rollout.py          start, observe, decide, follow; pause, promote, roll back, abort
    shares.py           which version serves a request, and which see it in the shadow
    traffic.py          what those who serve need to know of rollouts: who serves, who is held back
    agreement.py        whether two versions gave the same answer
    aliases.py          champion and challenger of a registered model: who moved what
    codec.py            a rollout as plain data, for whoever keeps it
    store.py            where rollouts lie, in memory and in SQL
    simulation.py       simulated rollouts with known truth

Whoever runs a rollout keeps the record, hands outcomes to `observe`, asks `decide` every second or so, and does what
`follow` says. But for the store nothing here reads a clock, keeps state or talks to anybody.
"""
