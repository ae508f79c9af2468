"""Decides which graph of extensions answers a request, and runs it. Needs no cluster: what is outside is behind a seam.

The nouns
    features.py         what flows along an edge: semantic type, tensor spec, rows
    cards.py            what is known of an extension version: ports, cost, latency, accuracy, evidence
    goals.py            what a client wants, under which terms, and what "best" means
    tokens.py           what a request carries through all queues: deadline, class, user, tags
    plans.py            requests, plans with their predictions and reasons, answers
    catalogue.py        all cards and goals at one epoch
    envelopes.py        the live state of extension replicas
    calibration.py      what a confidence is worth, as far as the evidence tells
    errors.py           every error a user can meet, as a tree

Deciding
    plan.py             from a request and a catalogue to the best plans
    search.py           base plans, by A*
    index.py            the catalogue compiled for the search
    bounds.py           what any plan must pay at least, which guides the search (compiled by numba)
    drafts.py           plans in the making
    compose.py          cascades and ensembles around base plans
    estimates.py        what a plan should bring
    explain.py          why a plan won or lost, what is missing where there is none
    nearest.py          types that come near a misspelt one
    plan_cache.py       plans that were made before
    direct.py           plans of one step, for clients that name an extension
    intent.py           from a sentence to a goal, or a question back
    words.py            the English that intent.py knows
    admission.py        whether a request will be in time, and on which plan
    partial.py          what can still be had of a plan when steps failed for good
    progress.py         what is left of a plan, and what two plans share
    roster.py           the extensions as a dispatcher sees them
    line.py             whose rows go next
    pace.py             how long one has to expect to wait
    breakers.py         which extensions are let alone for a while
    hedging.py          when a call is sent to a second replica, and the calls that do so
    replicas.py         which replica gets the next call
    placement.py        which extensions have earned it to run in the gateway's process
    fusion.py           which chains deserve to be one extension, and which no longer do
    wiring.py           what such an extension is made of, and its card
    policies/           how many rows a batch takes, and when it goes
    choice/             which of several plans serves whom, learned from outcomes
    rollout/            how a new version earns its traffic

Doing
    choosing.py         by which plan a group of requests is run
    convoys.py          requests for one plan travel together
    dispatch.py         runs a plan, and changes it on the way
    attempts.py         one step of a plan: its extension, then its fallbacks
    competition.py      urgent steps that take unusually long, and a fallback beside them
    opinions.py         second opinions on rows that are not sure enough
    results.py          what steps brought, and the rows that later steps take from it
    placed.py           the queue of an extension: inline, or its deployment behind cache and breaker
    step_cache.py       results of steps that are known
    step_rows.py        their keys, and rows as they are kept
    step_store.py       the memory that holds them, and who gives way
    batching.py         rows of many requests in one call
    pulse.py            what a batcher remembers of its recent past
    deadlines.py        who has to hear by when that they are late
    calls.py            the seam to the cluster

Remembering
    profiles.py         latency profiles kept current
    catalogue_store.py  the catalogue in memory or in SQL
    card_codec.py       cards and goals as plain data
"""
