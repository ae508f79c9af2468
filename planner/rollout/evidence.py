"""Outcomes into evidence, and evidence into findings."""

from __future__ import annotations

import math
from dataclasses import replace

from planner.rollout.latencies import Latencies, bins_in
from planner.rollout.records import Evidence, Finding, Observation, Pairs, RolloutPlan, Slowness
from planner.rollout.sequential import Comparison, Level, Tally

_ENOUGH_LATENCIES = 20  # of the champion, before its quantiles are taken for known
_USUAL_ERRORS = 0.001
_USUAL_WRONG = 0.1
_MOST_MARGIN = 0.5
_FOR_ERRORS = 0.5  # of alpha: failures are the rarest harm, so that evidence of them comes slowest


def no_evidence(plan: RolloutPlan) -> Evidence:
    """What is known before the first outcome."""
    n_bins = bins_in(plan.latency_ratio)
    return Evidence(
        errors=Comparison(plan.error_margin, _USUAL_ERRORS),
        accuracy=Comparison(plan.accuracy_margin, _USUAL_WRONG),
        errors_served=_served_alone(plan.served_factor * plan.error_margin, _USUAL_ERRORS),
        accuracy_served=_served_alone(plan.served_factor * plan.accuracy_margin, _USUAL_WRONG),
        slowness=tuple(
            Slowness(quantile, n_bins, Comparison(0.0, 1.0 - quantile)) for quantile in plan.latency_quantiles
        ),
        agreement=None if plan.min_agreement is None else Level(1.0 - plan.min_agreement),
    )


def _served_alone(margin: float, guess: float) -> Comparison:
    return Comparison(min(_MOST_MARGIN, margin), guess, only_not_worse=True)


def with_served(evidence: Evidence, champion: Observation, challenger: Observation) -> Evidence:
    """The evidence after some requests that one version alone answered."""
    failed = Tally(champion.n, champion.n_failed), Tally(challenger.n, challenger.n_failed)
    wrong = _wrong(champion), _wrong(challenger)
    return replace(
        _with_latencies(evidence, champion.latencies, challenger.latencies),
        errors=evidence.errors.update(*failed),
        accuracy=evidence.accuracy.update(*wrong),
        errors_served=evidence.errors_served.update(*failed),
        accuracy_served=evidence.accuracy_served.update(*wrong),
    )


def with_pairs(evidence: Evidence, pairs: Pairs) -> Evidence:
    """The evidence after some requests that both versions answered."""
    failed = pairs.n, pairs.n_failed, pairs.n_champion_failed, pairs.n_both_failed
    # Where one alone is right, the other alone is wrong.
    wrong_both = pairs.n_judged - pairs.n_right - pairs.n_champion_right - pairs.n_both_right
    wrong = pairs.n_judged, pairs.n_champion_right, pairs.n_right, wrong_both
    agreement = evidence.agreement
    evidence = replace(
        _with_latencies(evidence, pairs.champion_latencies, pairs.latencies, pairs),
        errors=evidence.errors.update_pairs(*failed, served=pairs.served),
        accuracy=evidence.accuracy.update_pairs(*wrong, served=pairs.served),
        agreement=agreement and agreement.update(Tally(pairs.n_compared, pairs.n_compared - pairs.n_agreed)),
    )
    if not pairs.served:
        return evidence
    return replace(
        evidence,
        errors_served=evidence.errors_served.update_pairs(*failed, served=True),
        accuracy_served=evidence.accuracy_served.update_pairs(*wrong, served=True),
    )


def restarted(evidence: Evidence) -> Evidence:
    """What goes wrong from now on is seen as soon as if nothing had been seen before."""
    return replace(
        evidence,
        errors=evidence.errors.restarted(),
        accuracy=evidence.accuracy.restarted(),
        slowness=tuple(replace(one, comparison=one.comparison.restarted()) for one in evidence.slowness),
        agreement=evidence.agreement and evidence.agreement.restarted(),
    )


def findings(evidence: Evidence, plan: RolloutPlan) -> tuple[Finding, ...]:
    """How the tests stand. Any of them may roll back, so they share alpha (a union bound): errors have half of it, the
    others the rest in equal parts. Promotion needs all that the plan asks for, and one that is wrong would be wrong at
    its own level, so there each has the whole (Berger 1982, Technometrics 24: intersection-union tests)."""
    found = [_found("errors", evidence.errors, plan), _found("accuracy", evidence.accuracy, plan)]
    found += [
        _found("errors served", evidence.errors_served, plan),
        _found("accuracy served", evidence.accuracy_served, plan),
    ]
    for one in evidence.slowness:
        found.append(
            replace(
                _found(latency_test(one.quantile), one.comparison, plan),
                champion=evidence.champion_latencies.quantile_ms(one.quantile),
                challenger=evidence.latencies.quantile_ms(one.quantile),
            )
        )
    if evidence.agreement is not None:
        found.append(_found("agreement", evidence.agreement, plan))
    return tuple(found)


def latency_test(quantile: float) -> str:
    """What the test at a quantile is called: `latency p95`."""
    return f"latency p{quantile * 100:g}"


def _found(test: str, seen: Comparison | Level, plan: RolloutPlan) -> Finding:
    champion, challenger = (Tally(), seen.tally) if isinstance(seen, Level) else (seen.champion, seen.challenger)
    share = _FOR_ERRORS if test == "errors" else (1.0 - _FOR_ERRORS) / (plan.n_tests - 1)
    return Finding(
        test=test,
        champion=champion.rate,
        challenger=challenger.rate,
        n_champion=champion.n,
        n_challenger=challenger.n,
        log_e_worse=seen.sides.log_e_worse(len(plan.steps)),
        log_needed=-math.log(share * plan.alpha),
        log_e_not_worse=seen.sides.log_e_not_worse,
        log_enough=-math.log(plan.promote_alpha),
    )


def _wrong(served: Observation) -> Tally:
    return Tally(served.n_judged, served.n_judged - served.n_right)


def _with_latencies(
    evidence: Evidence, champion: Latencies, challenger: Latencies, pairs: Pairs | None = None
) -> Evidence:
    if not champion.bins and not challenger.bins:
        return evidence
    known = evidence.champion_latencies
    return replace(
        evidence,
        slowness=tuple(_slower(one, known, champion, challenger, pairs) for one in evidence.slowness),
        champion_latencies=known.plus(champion).faded(),
        latencies=evidence.latencies.plus(challenger).faded(),
    )


def _slower(
    one: Slowness, known: Latencies, champion: Latencies, challenger: Latencies, pairs: Pairs | None
) -> Slowness:
    threshold = one.threshold
    if not any(tally.n for tally in one.comparison.waiting):  # what waits was counted from the old one
        threshold = known.quantile_bin(one.quantile) + 1 if known.n >= _ENOUGH_LATENCIES else None
    if threshold is None:
        return one
    slow = Tally(champion.n, champion.n_from(threshold))
    slow_challenger = Tally(challenger.n, challenger.n_from(threshold + one.n_bins))
    if pairs is None:
        compared = one.comparison.update(slow, slow_challenger)
    else:
        compared = one.comparison.update_mirrored(slow, slow_challenger, served=pairs.served)
    return replace(one, threshold=threshold, comparison=compared)
