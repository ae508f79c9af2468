"""Choices read from the journal: from memory, SQLite and PostgreSQL."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

import lineage.chunks
from lineage.chunks import ChunkBuilder
from lineage.database import open_database
from lineage.feedback import Feedback
from lineage.journal import JournalStore
from lineage.outcomes import Setting, trace_id_of
from planner.choice import journaled
from planner.choice.journaled import NO_FAULT, NOT_DRAWN, UNSOUND, Journaled, read
from planner.choice.policy import FEATURES
from planner.errors import BadRequest, NotFound
from planner.goals import Goal, Objective
from tests.planner.choice.journals import CATALOGUE, GOAL, NOW_S, PLANS, RUN, SAID, journal_world, setting


@pytest.fixture
def store() -> Iterator[JournalStore]:
    opened = JournalStore(open_database("sqlite:///:memory:"))
    yield opened
    opened.close()


def add(store: JournalStore, seq: int, one: Setting, n: int = 1, n_rows: int = 1, at_s: float = NOW_S - 10.0) -> None:
    """One group of requests, all answered with ones."""
    builder = ChunkBuilder(RUN)
    outputs = {} if one.error else {"y": np.ones(n * n_rows, np.int64)}
    steps = [(0.1, 0.2, 0.4, 1)] * len(one.steps)
    builder.add(one, seq, at_s, [8.0] * n, [n_rows] * n, [math.nan] * n, steps, outputs)
    store.append(RUN, [builder.encode()])


def found(store: JournalStore, since_s: float = 0.0, limit: int = 1_000) -> Journaled:
    return read(store, CATALOGUE, GOAL, since_s, NOW_S, limit)


def test_a_choice_is_read_with_all_that_is_known_of_it(store: JournalStore) -> None:
    add(store, 0, setting("plan-b", deadline_ms=50.0, tags=frozenset({"pii"}), user=""), n=3)
    store.give([Feedback(trace_id_of(RUN, 0), truth=1), Feedback(trace_id_of(RUN, 2), truth=0)], NOW_S)
    (one,) = found(store).log
    assert one.context.segment == "tags=pii"
    seen = dict(zip(FEATURES, one.context.features, strict=True))
    assert seen["log_rows"] == pytest.approx(math.log(4))
    assert seen["log_slack"] == pytest.approx(math.log(51))
    assert (seen["mean"], seen["deviation"], seen["load"], seen["log_kilo"]) == (0.0, 0.0, 0.0, 0.0)
    assert (one.context.n_requests, one.context.objective) == (3, Objective())
    assert [arm.plan for arm in one.arms] == list(PLANS)
    assert (one.choice.arm, one.choice.propensities) == (1, (0.5, 0.25, 0.25))
    arm, result = one.arms[1], one.result
    assert (arm.p50_ms, arm.cost, arm.accuracy, arm.n_rows) == (*SAID["plan-b"], 200)
    assert (result.n, result.n_failed, result.n_judged, result.right) == (3, 0, 2, 1.0)
    assert (result.log_ms, result.log_ms_var) == (pytest.approx(math.log(8.0)), pytest.approx(0.0, abs=1e-9))
    assert (result.cost, result.propensity, result.at_s) == (0.01, 0.25, NOW_S - 10.0)


def test_plans_have_the_steps_they_ran_by_and_the_times_that_were_predicted(store: JournalStore) -> None:
    add(store, 0, setting("plan-b"))
    add(store, 1, setting("plan-b", steps=((0, "scale@1"),)))  # the guarded step did not run
    add(store, 2, setting("plan-b", steps=((0, "scale@1"), (1, "large@1"), (2, "odd@1")), failed=("large@1",)))
    read_ = found(store)
    way = read_.way_of(read_.log[0].arms[1])
    assert [step.name for step in way.steps] == ["scale@1", "large@1"]
    assert [step.accuracy for step in way.steps] == [1.0, 0.88]
    assert sum(step.p50_ms for step in way.steps) == pytest.approx(way.p50_ms) == pytest.approx(9.0)


def test_a_plan_that_never_served_is_one_unknown_step_and_as_is_predicted_of_the_others(store: JournalStore) -> None:
    add(store, 0, setting("plan-a"))
    add(store, 1, setting("plan-c"))
    read_ = found(store)
    assert read_.never_taken == ("plan-b",)
    arm = read_.log[0].arms[1]
    assert (arm.p50_ms, arm.cost, arm.accuracy, arm.n_rows) == (5.0, 0.0, pytest.approx(0.88), 0)
    assert [step.name for step in read_.way_of(arm).steps] == ["plan-b"]
    assert any("plan-b never served" in said for said in read_.warnings())


def test_predictions_of_other_plans_come_from_requests_of_about_the_same_size(store: JournalStore) -> None:
    add(store, 0, setting("plan-a", expected_ms=4.0))
    add(store, 1, setting("plan-b", expected_ms=9.0))
    add(store, 2, setting("plan-a", expected_ms=40.0), n_rows=64)
    add(store, 3, setting("plan-b", expected_ms=90.0), n_rows=60)
    small, also_small, large, also_large = found(store).log
    assert [arm.p50_ms for arm in small.arms[:2]] == [4.0, 9.0]
    assert [arm.p50_ms for arm in large.arms[:2]] == [40.0, 90.0]
    assert small.arms is also_small.arms
    assert large.arms is also_large.arms


def test_failures_and_what_was_late_after_it_had_left_count_as_failed(store: JournalStore) -> None:
    add(store, 0, setting("plan-a", error="ExtensionRaised", steps=()), n=2)
    add(store, 2, setting("plan-a", error="DeadlineExceeded", steps=()))
    failed, late = found(store).log
    assert (failed.result.n, failed.result.n_failed, failed.result.log_ms) == (2, 2, 0.0)
    assert (late.result.n, late.result.n_failed) == (1, 1)


def test_what_took_over_on_the_way_counts_for_the_plan_that_was_chosen(store: JournalStore) -> None:
    add(store, 0, setting("plan-a", chosen="plan-c", flags=frozenset({"replanned"})))
    read_ = found(store)
    assert read_.log[0].choice.arm == 2
    assert "plan-c" not in read_.steps


def test_what_says_nothing_is_left_out_and_counted_by_its_reason(store: JournalStore) -> None:
    add(store, 0, setting("plan-a"))
    add(store, 1, setting("plan-a", considered=()), n=4)
    add(store, 5, setting("plan-a", error="Overloaded", steps=()), n=2)
    add(store, 7, setting("plan-a", considered=(("plan-b", 0.5), ("plan-c", 0.5))))
    add(store, 8, setting("plan-a", considered=(("plan-a", 0.5), ("plan-b", 0.2))))
    add(store, 9, setting("plan-a", considered=(("plan-a", 0.0), ("plan-b", 1.0))))
    add(store, 10, setting("plan-a", goal="other"))
    read_ = found(store)
    assert (len(read_.log), read_.n_requests) == (1, 1)
    assert read_.left_out == {NOT_DRAWN: 4, NO_FAULT: 2, UNSOUND: 3}


def test_plans_that_a_rule_left_no_chance_are_excluded_and_no_others(store: JournalStore) -> None:
    no_chance = (0.5, 0.5, 0.0)
    add(store, 0, setting("plan-a", propensities=no_chance, reason="by rule exclude whole@1: drawn"))
    add(store, 1, setting("plan-a", propensities=no_chance, reason="drawn"))
    ruled, free = found(store).log
    assert [arm.excluded for arm in ruled.arms] == [False, False, True]
    assert not any(arm.excluded for arm in free.arms)


def test_users_are_segments_from_their_twentieth_request_on(store: JournalStore) -> None:
    for k in range(4):
        add(store, 10 * k, setting("plan-a", user="ann"), n=8, at_s=NOW_S - 100.0 + k)
    assert [one.context.segment for one in found(store).log] == ["", "", "user=ann", "user=ann"]


def test_the_latest_are_kept_in_the_order_of_time_and_none_from_before(store: JournalStore) -> None:
    journal_world(store, 1_000, per_chunk=100)
    whole = found(store, limit=5_000)
    assert len(whole.log) == whole.n_requests == 1_000
    times = [one.result.at_s for one in whole.log]
    assert times == sorted(times)
    latest = found(store, limit=130)
    assert [one.result for one in latest.log] == [one.result for one in whole.log[-130:]]
    assert latest.n_judged == sum(one.result.n_judged for one in whole.log[-130:])
    since = found(store, since_s=NOW_S - 50.05)
    assert [one.result for one in since.log] == [one.result for one in whole.log[-500:]]
    assert latest.steps == whole.steps


def test_what_is_left_out_is_counted_over_the_time_of_what_is_kept(store: JournalStore) -> None:
    for seq, at_s in enumerate((NOW_S - 90.0, NOW_S - 80.0, NOW_S - 30.0, NOW_S - 20.0)):
        add(store, 2 * seq, setting("plan-a"), at_s=at_s)
        add(store, 2 * seq + 1, setting("plan-a", considered=()), at_s=at_s + 1.0)
    assert found(store, limit=2).left_out == {NOT_DRAWN: 2}
    assert found(store, limit=3).left_out == {NOT_DRAWN: 3}


def test_requests_whose_numbers_are_no_range_get_their_truth(store: JournalStore) -> None:
    builder = ChunkBuilder(RUN)
    for one, seqs in ((setting("plan-a"), [0, 3]), (setting("plan-b"), [1, 2])):
        steps = [(0.1, 0.2, 0.4, 1)] * 2
        builder.add(one, seqs, NOW_S - 5.0, [1.0, 1.0], [1, 1], [math.nan] * 2, steps, {"y": np.array([1, 1])})
    store.append(RUN, [builder.encode()])
    store.give([Feedback(trace_id_of(RUN, seq), truth=truth) for seq, truth in ((0, 1), (3, 1), (2, 0))], NOW_S)
    judged = {one.arms[one.choice.arm].plan: (one.result.n_judged, one.result.right) for one in found(store).log}
    assert judged == {"plan-a": (2, 2.0), "plan-b": (1, 0.0)}


def test_feedback_comes_in_pages_and_counts_as_it_is_now(store: JournalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journaled, "PAGE", 3)
    add(store, 0, setting("plan-a"), n=10)
    store.give([Feedback(trace_id_of(RUN, seq), truth=1) for seq in range(8)], NOW_S)
    store.give([Feedback(trace_id_of(RUN, 7), truth=0), Feedback(trace_id_of(RUN, 9), rating=0.25)], NOW_S)
    (one,) = found(store).log
    assert (one.result.n_judged, one.result.right) == (9, 7.25)


def test_chunks_from_before_accuracies_were_noted_are_read_and_the_cards_count(
    store: JournalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = tuple(name for name in lineage.chunks._SETTING_FIELDS if name != "expected_accuracy")
    with monkeypatch.context() as then:
        then.setattr(lineage.chunks, "_SETTING_FIELDS", names)
        for seq, plan in enumerate(PLANS):
            add(store, seq, setting(plan))
        add(store, 3, replace(setting("plan-a"), considered=(("odd", 1.0),), plan="odd", steps=((0, "gone@1"),)))
    kept = store.find(trace_id_of(RUN, 0))
    assert kept is not None
    assert kept.setting == replace(setting("plan-a"), expected_accuracy=0.0)
    read_ = found(store)
    assert [arm.accuracy for arm in read_.log[0].arms] == [0.9, 0.88, 0.86]
    assert read_.log[3].arms[0].accuracy == 0.9  # a guess: its extension is gone
    assert read_.guessed == ("odd", *PLANS)
    assert any("which accuracy was predicted" in said for said in read_.warnings())


def test_unknown_goals_and_empty_journals_are_clear_errors(store: JournalStore) -> None:
    with pytest.raises(NotFound, match="no goal 'reed'") as missing:
        read(store, CATALOGUE, "reed", 0.0, NOW_S)
    assert "read" in missing.value.hint
    with pytest.raises(BadRequest, match="no outcomes of goal 'read'"):
        found(store)
    add(store, 0, setting("plan-a", considered=()), n=7)
    with pytest.raises(BadRequest, match=r"of 7 requests .* none tells with which probability") as none:
        found(store)
    assert "choice.policy" in none.value.hint
    with pytest.raises(BadRequest):
        found(store, since_s=NOW_S)
    with pytest.raises(BadRequest):
        found(store, limit=0)


def test_the_objective_is_that_of_the_goal(store: JournalStore) -> None:
    add(store, 0, setting("plan-a"))
    goal = CATALOGUE.goals[GOAL]
    catalogue = CATALOGUE.of(
        CATALOGUE.cards.values(), [Goal(GOAL, goal.inputs, goal.outputs, objective=Objective(latency=5.0))]
    )
    assert read(store, catalogue, GOAL, 0.0, NOW_S).log[0].context.objective == Objective(latency=5.0)
