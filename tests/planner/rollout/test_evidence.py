from __future__ import annotations

import math
from dataclasses import replace

import pytest

from planner.rollout.evidence import findings, latency_test, no_evidence, restarted, with_pairs, with_served
from planner.rollout.latencies import Latencies
from planner.rollout.records import Evidence, Finding, Observation, RolloutPlan
from planner.rollout.sequential import Tally
from tests.planner.rollout.seen import mirrored, served

PLAN = RolloutPlan()


def found(evidence: Evidence, plan: RolloutPlan = PLAN) -> dict[str, Finding]:
    return {one.test: one for one in findings(evidence, plan)}


def test_nothing_is_known_before_the_first_outcome() -> None:
    assert {one.verdict for one in findings(no_evidence(PLAN), PLAN)} == {"open"}


@pytest.mark.parametrize("plan", [PLAN, RolloutPlan(min_agreement=None, latency_quantiles=())])
def test_any_test_may_roll_back_so_they_share_alpha_and_errors_have_half_of_it(plan: RolloutPlan) -> None:
    tests = found(no_evidence(plan), plan)
    shares = {name: math.exp(-one.log_needed) for name, one in tests.items() if not name.endswith("served")}
    assert len(shares) == plan.n_tests
    assert sum(shares.values()) == pytest.approx(plan.alpha)
    assert shares.pop("errors") == pytest.approx(plan.alpha / 2)
    assert len({round(share, 12) for share in shares.values()}) == 1
    assert all(math.exp(-one.log_enough) == pytest.approx(plan.promote_alpha) for one in tests.values())


def test_rates_are_those_of_all_outcomes() -> None:
    evidence = with_pairs(no_evidence(PLAN), mirrored(100, failed=10, wrong=9, agreed=60))
    evidence = with_served(evidence, served("1", 300, failed=3, wrong=0), served("2", 100, failed=20, wrong=8))
    seen = found(evidence)
    assert (seen["errors"].champion, seen["errors"].challenger) == (3 / 400, 30 / 200)
    assert (seen["accuracy"].n_challenger, seen["accuracy"].challenger) == (90 + 80, 17 / 170)
    assert (seen["errors served"].n_challenger, seen["errors served"].challenger) == (100, 0.2)
    assert seen["agreement"].challenger == pytest.approx(30 / 90)


def test_checked_requests_count_as_served_and_mirrored_ones_do_not() -> None:
    mirrored_only = with_pairs(no_evidence(PLAN), mirrored(100, failed=9))
    assert (found(mirrored_only)["errors served"].n_challenger, mirrored_only.errors.challenger) == (0, Tally(100, 9))
    checked = found(with_pairs(mirrored_only, mirrored(50, failed=4, wrong=5, checked=True)))
    assert (checked["errors served"].challenger, checked["errors served"].n_challenger) == (0.08, 50)
    assert checked["accuracy served"].challenger == 5 / 46
    assert checked["errors"].n_challenger == 150


def test_what_only_the_champion_got_right_counts_against_the_challenger() -> None:
    evidence = with_pairs(no_evidence(PLAN), mirrored(400, wrong=60))
    assert found(evidence)["accuracy"].verdict == "worse"
    assert evidence.accuracy.challenger == Tally(400, 60)
    assert evidence.accuracy.champion == Tally(400, 0)


@pytest.mark.parametrize("unseen", [True, False])
@pytest.mark.parametrize(("slower", "verdict"), [(2.0, "worse"), (1.0, "not worse"), (0.5, "not worse")])
def test_slowness_is_told_from_served_and_from_mirrored_requests(slower: float, verdict: str, unseen: bool) -> None:
    evidence = no_evidence(PLAN)
    for _ in range(12):
        if unseen:
            evidence = with_pairs(evidence, mirrored(100, slower=slower))
        else:
            evidence = with_served(evidence, served("1", 500), served("2", 100, slower=slower))
    assert found(evidence)["latency p50"].verdict == verdict
    assert found(evidence)["latency p95"].verdict == verdict


def test_as_slow_as_the_plan_bears_is_neither() -> None:
    evidence = no_evidence(PLAN)
    for _ in range(30):
        evidence = with_served(evidence, served("1", 500), served("2", 100, slower=1.25))
    assert found(evidence)["latency p50"].verdict == found(evidence)["latency p95"].verdict == "open"


def test_a_few_very_slow_answers_do_not_upset_the_test_of_the_median() -> None:
    evidence = no_evidence(PLAN)
    slow = Observation("2", 100, 0, served("2", 98).latencies.plus(Latencies({100_000: 2})))
    for _ in range(12):
        evidence = with_served(evidence, served("1", 500), slow)
    assert found(evidence)["latency p50"].verdict == "not worse"


def test_the_threshold_is_the_champions_quantile_before_these_outcomes() -> None:
    evidence = with_served(no_evidence(PLAN), served("1", 100), served("2", 100))
    assert all(one.threshold is None and not one.comparison.challenger.n for one in evidence.slowness)
    evidence = with_served(evidence, served("1", 100, slower=3.0), served("2", 10))
    before = no_evidence(PLAN).champion_latencies.plus(served("1", 100).latencies)
    assert [one.threshold for one in evidence.slowness] == [before.quantile_bin(q) + 1 for q in (0.5, 0.95)]


def test_a_threshold_stays_while_outcomes_wait_that_were_counted_from_it() -> None:
    evidence = with_served(no_evidence(PLAN), served("1", 100), served("2", 100))
    nobody = Observation("2")
    evidence = with_served(evidence, served("1", 100, slower=3.0), nobody)
    thresholds = [one.threshold for one in evidence.slowness]
    evidence = with_served(evidence, served("1", 500, slower=3.0), nobody)
    assert [one.threshold for one in evidence.slowness] == thresholds
    evidence = with_served(with_served(evidence, served("1", 1), served("2", 1)), served("1", 1), served("2", 1))
    assert all(now.threshold > then for now, then in zip(evidence.slowness, thresholds, strict=True))  # type: ignore[operator]


def test_a_restart_keeps_all_but_the_latest_bets() -> None:
    evidence = with_pairs(with_served(no_evidence(PLAN), served("1", 50), served("2", 50, failed=9)), mirrored(50))
    anew = restarted(evidence)
    assert anew != evidence
    assert anew.errors.sides.worse == evidence.errors.sides.worse
    assert anew.errors.sides.lately == no_evidence(PLAN).errors.sides.lately
    assert (anew.errors.challenger, anew.accuracy.champion) == (evidence.errors.challenger, evidence.accuracy.champion)


def test_agreement_may_be_left_out() -> None:
    plan = replace(PLAN, min_agreement=None)
    evidence = restarted(with_pairs(no_evidence(plan), mirrored(100, agreed=0)))
    assert "agreement" not in found(evidence, plan)


def test_tests_at_quantiles_have_names() -> None:
    assert [latency_test(q) for q in (0.5, 0.95, 0.999)] == ["latency p50", "latency p95", "latency p99.9"]
