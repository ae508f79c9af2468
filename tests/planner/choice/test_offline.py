"""Policies compared on a journal whose truth is known, and the controller trained from it, on both databases."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest

from lineage.database import open_database
from lineage.journal import JournalStore
from lineage.quality.intervals import Estimate
from planner.choice.controller import Controller, load, save
from planner.choice.evaluation import Evaluation, Table
from planner.choice.journaled import Journaled, read
from planner.choice.offline import POLICIES, Comparison, compared, trained, verdict
from planner.errors import BadRequest
from planner.goals import Objective
from tests.planner.choice.journals import BEST, CATALOGUE, GOAL, NOW_S, journal_world

N = 1_200


def journal(url: str = "sqlite:///:memory:", n: int = N, **more: float) -> Journaled:
    store = JournalStore(open_database(url))
    try:
        journal_world(store, n, **more)  # type: ignore[arg-type]
        return read(store, CATALOGUE, GOAL, 0.0, NOW_S, n)
    finally:
        store.close()


@pytest.fixture(scope="module")
def in_memory() -> Journaled:
    return journal()


def test_from_a_real_journal_the_controller_learns_who_is_served_best_by_what_and_the_comparison_sees_it(
    database_url: str, tmp_path: Path
) -> None:
    journaled = journal(database_url)
    save(trained(journaled), tmp_path / "weights")
    weights = load(tmp_path / "weights")
    assert (weights.goal, weights.until_s) == (GOAL, journaled.log[N // 2 - 1].result.at_s)
    policy = Controller(weights, journaled.way_of, mixing=0.0)
    for user, best in BEST.items():
        known = next(one for one in journaled.log if one.context.segment == f"user={user}")
        chances = policy.choose(known.context, known.arms, random.Random(0), NOW_S).propensities
        assert chances[[arm.plan for arm in known.arms].index(best)] > 0.9, user

    found = compared(journaled, ("first", "thompson"), weights=weights)
    assert (found.n_learned_from, found.warnings) == (N // 2, ())
    assert found.from_s == journaled.log[N // 2].result.at_s
    ours, first = found.row("controller"), found.row("first")
    assert ours is not None
    assert first is not None
    true = -(0.9 * 0.05 + 0.1 * (2 * 0.4 + 0.05) / 3)  # of answers that are wrong; latencies and costs add 0.02
    assert ours.doubly_robust.low - 0.02 < true < ours.doubly_robust.high + 0.02
    assert ours.gain.low > 0.15
    assert first.doubly_robust.high < ours.doubly_robust.low
    assert found.table.rows[-1].policy == "first"


def test_all_policies_are_compared_on_the_same_outcomes(in_memory: Journaled) -> None:
    found = compared(in_memory)
    assert sorted(row.policy for row in found.table.rows) == sorted(POLICIES)
    assert {row.n for row in found.table.rows} == {N // 2}
    by_name = {row.policy: row for row in found.table.rows}
    for name in ("thompson", "greedy"):
        assert by_name[name].doubly_robust.low > by_name["first"].doubly_robust.high, name
        assert by_name[name].doubly_robust.low > found.table.logged.value, name


def test_weights_that_were_trained_on_what_they_are_evaluated_on_or_elsewhere_are_warned_of(
    in_memory: Journaled,
) -> None:
    weights = trained(replace(in_memory, log=in_memory.log[:200]))
    later = replace(weights, until_s=in_memory.log[-1].result.at_s)
    assert compared(in_memory, (), weights=weights).warnings == ()
    assert "looks better than it is" in compared(in_memory, (), weights=later).warnings[0]
    assert "another goal, other" in compared(in_memory, (), weights=replace(later, goal="other")).warnings[0]


def test_without_any_truth_nothing_is_compared_but_where_accuracy_does_not_count() -> None:
    journaled = journal(n=60, judged=0.0)
    for refused in (lambda: compared(journaled), lambda: trained(journaled)):
        with pytest.raises(BadRequest, match="none has a truth or a rating") as error:
            refused()
        assert "fenix feedback" in error.value.hint
    indifferent = Objective(accuracy=0.0)
    log = tuple([replace(one, context=replace(one.context, objective=indifferent)) for one in journaled.log])
    compared(replace(journaled, log=log, objective=indifferent), ("first",))


def test_too_few_outcomes_and_no_policy_are_refused(in_memory: Journaled) -> None:
    with pytest.raises(BadRequest, match=r"3 outcomes .* at least 4"):
        compared(replace(in_memory, log=in_memory.log[:3]))
    with pytest.raises(BadRequest, match=r"39 outcomes .* at least 40"):
        trained(replace(in_memory, log=in_memory.log[:39]))
    with pytest.raises(BadRequest, match="no policy"):
        compared(in_memory, ())


def row(policy: str, value: float, gain: float, half: float = 0.01, effective_n: float = 500.0) -> Evaluation:
    def estimate(of: float) -> Estimate:
        return Estimate(of, of - half, of + half, 600)

    said = estimate(value)
    return Evaluation(policy, 600, None, 0, said, said, said, estimate(gain), effective_n, 0.0, 0.0, ())


def said_of(*rows: Evaluation) -> tuple[bool, str]:
    found = verdict(Comparison(Table(Estimate(-0.2, -0.21, -0.19, 600), rows), 600, 0.0, ()))
    return found.is_better, " ".join(found.said)


def test_the_verdict_is_that_of_the_intervals() -> None:
    good = row("controller", -0.10, 0.10)
    assert said_of(good, row("thompson", -0.15, 0.05)) == (
        True,
        "The controller is better than what served: +0.1000 (+0.0900 to +0.1100) a request.",
    )
    for value, why in ((-0.09, "estimated as good or better"), (-0.105, "too near to be told apart from it")):
        is_better, said = said_of(good, row("thompson", value, 0.1))
        assert not is_better
        assert said.endswith(f" a request. But {why}: thompson.")
    assert said_of(row("controller", -0.195, 0.005)) == (
        False,
        "No difference to what served can be told: +0.0050 (-0.0050 to +0.0150) a request.",
    )
    assert said_of(row("controller", -0.3, -0.1))[1].startswith("The controller is worse than what served: -0.1000")
    is_better, said = said_of(row("controller", -0.1, 0.1, effective_n=12.0))
    assert not is_better
    assert "of 600 outcomes only 12 count" in said
    with pytest.raises(BadRequest):
        said_of(row("thompson", -0.1, 0.1))
