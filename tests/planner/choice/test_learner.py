"""What is learned of plans from the journal, without a database: chunks and feedback are handed in as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from lineage.chunks import Chunk, ChunkBuilder
from lineage.feedback import Feedback
from lineage.journal import Joined
from lineage.outcomes import Outcome, Setting
from planner.choice.learner import MOST_RESULTS, ChoiceLearner
from planner.choice.posteriors import Posteriors, SegmentRows
from planner.errors import BadRequest
from tests.lineage.outcomes import RUN

AT_S = 1_000.0


def setting(plan: str = "a", user: str = "", **more: object) -> Setting:
    given = {"goal": "digits", "expected_ms": 2.0, "expected_cost": 0.5, "considered": (("a", 0.5), ("b", 0.5))}
    return Setting("digits", plan=plan, user=user, **{**given, **more})  # type: ignore[arg-type]


def chunk(*groups: tuple[Setting, int], answer: object = (1,), latency_ms: float = 4.0) -> Chunk:
    """A group per setting and number of requests, each of as many rows as the answer has."""
    builder = ChunkBuilder(RUN)
    seq = 0
    for one, n in groups:
        rows = np.tile(np.array(answer), n)
        outputs = {} if one.error else {"y": rows}
        n_rows = len(np.atleast_1d(np.array(answer)))
        builder.add(one, seq, AT_S, [latency_ms] * n, [n_rows] * n, [math.nan] * n, (), outputs)
        seq += n
    return Chunk.decode(builder.encode())


def outcome(found: Chunk, seq: int = 0) -> Outcome:
    one = found.find(seq)
    assert one is not None
    return one


def joined(one: Outcome, truth: object, before: object = None) -> Joined:
    said = None if before is None else Feedback(one.trace_id, truth=before)  # type: ignore[arg-type]
    return Joined(one, Feedback(one.trace_id, truth=truth), AT_S, said)  # type: ignore[arg-type]


def plans(learner: ChoiceLearner, segment: str = "") -> dict[str, tuple[float, ...]]:
    """What is known of each plan: requests, failed, answered, judged, right, sums of logs and squares, cost."""
    (found,) = [rows for rows in learner.since("", 0).segments if (rows.goal, rows.segment) == ("digits", segment)]
    return {plan: tuple(numbers) for plan, *numbers in found.plans}


def about(*numbers: float) -> Any:
    """What is learned fades a little with every outcome."""
    return pytest.approx(numbers, rel=5e-3)


def test_latencies_count_beside_what_was_predicted_and_failures_apart() -> None:
    learner = ChoiceLearner()
    learner.hear(chunk((setting(), 3), (setting("b"), 2), (setting("b", error="ExtensionRaised"), 1)))
    a, b = plans(learner)["a"], plans(learner)["b"]
    assert a == about(3, 0, 3, 0, 0, 3 * math.log(2), 3 * math.log(2) ** 2, 1.5)
    assert b[:3] == about(3, 1, 2)


def test_what_is_no_fault_of_the_plan_does_not_count() -> None:
    learner = ChoiceLearner()
    left_out = [
        setting(error="Overloaded"),
        setting(error="BadInput"),
        setting(error="DeadlineExceeded", considered=()),
        setting(goal=""),
        setting(plan=""),
        setting(expected_ms=0.0),
    ]
    learner.hear(chunk(*[(one, 1) for one in left_out]))
    assert learner.since("", 0).segments == ()
    learner.hear(chunk((setting(error="DeadlineExceeded"), 2)))
    assert plans(learner)["a"][:2] == about(2, 2)


def test_what_was_chosen_counts_also_where_another_plan_took_over() -> None:
    learner = ChoiceLearner()
    learner.hear(chunk((setting("b", chosen="a"), 2)))
    assert list(plans(learner)) == ["a"]


def test_a_user_who_comes_often_is_learned_of_apart() -> None:
    learner = ChoiceLearner(often=3)
    learner.hear(chunk((setting(user="ann"), 2), (setting(user="bob"), 5)))
    assert plans(learner)["a"][0] == 2
    assert plans(learner, "user=bob")["a"][0] == 5


def test_truths_count_by_row_and_ratings_once() -> None:
    learner = ChoiceLearner()
    one = outcome(chunk((setting(), 1), answer=(1, 2, 3)))
    rating = Joined(one, Feedback(one.trace_id, rating=0.25), AT_S)
    learner.told([joined(one, (1, 2, 4)), rating])
    assert plans(learner)["a"][3:5] == about(4, 2.25)


def test_of_feedback_that_was_changed_the_difference_counts() -> None:
    learner = ChoiceLearner()
    found = chunk((setting(), 2), answer=(1,))
    learner.told([joined(outcome(found), 2), joined(outcome(found, 1), 1)])
    assert plans(learner)["a"][3:5] == about(2, 1)
    learner.told([joined(outcome(found), 1, before=2)])
    assert plans(learner)["a"][3:5] == about(2, 2)
    learner.told([joined(outcome(found, 1), 7, before=1)])
    assert plans(learner)["a"][3:5] == about(2, 1)


def test_feedback_that_does_not_fit_teaches_nothing() -> None:
    learner = ChoiceLearner()
    learner.told([joined(outcome(chunk((setting(), 1))), "no label of that kind")])
    assert learner.since("", 0).segments == ()


def test_numbers_are_right_within_a_tenth_of_how_much_the_true_ones_vary() -> None:
    learner = ChoiceLearner()
    answers = np.linspace(0.0, 10.0, 21)
    found = chunk((setting(), 1), answer=answers)
    learner.told([joined(outcome(found), tuple((answers + 0.2).tolist()))])
    assert plans(learner)["a"][3:5] == about(21, 21)
    learner.told([joined(outcome(found), tuple((answers + 0.5).tolist()))])
    assert plans(learner)["a"][3:5] == about(42, 21)


def test_a_follower_is_told_what_changed_and_after_a_restart_everything() -> None:
    learner = ChoiceLearner(often=1)
    learner.hear(chunk((setting(user="ann"), 1)))
    first = learner.since("", 0)
    assert first.whole
    learner.hear(chunk((setting(user="bob"), 1)))
    news = learner.since(first.life, first.version)
    assert not news.whole
    assert [rows.segment for rows in news.segments] == ["user=bob"]
    assert learner.since(news.life, news.version).segments == ()
    again = ChoiceLearner(often=1)
    again.restore(learner.state())
    everything = again.since(news.life, news.version)
    assert everything.whole
    assert {rows.segment for rows in everything.segments} == {"user=ann", "user=bob"}


def test_it_goes_on_after_a_restart_as_if_there_had_been_none() -> None:
    one, other = ChoiceLearner(often=4), ChoiceLearner(often=4)
    parts = [chunk((setting(user="ann"), 3)), chunk((setting("b", user="ann"), 3), (setting(), 7))]
    told = [joined(outcome(parts[0], seq), seq) for seq in range(3)]
    for learner in (one, other):
        learner.hear(parts[0])
        learner.told(told)
    kept = ChoiceLearner(often=4)
    kept.restore(other.state())
    for learner in (one, kept):
        learner.hear(parts[1])
    for segment in ("", "user=ann"):
        of_one, of_kept = plans(one, segment), plans(kept, segment)
        assert of_one.keys() == of_kept.keys()
        assert all(of_one[plan] == about(*of_kept[plan]) for plan in of_one)


@pytest.mark.parametrize("state", [b"", b"{}", b"nonsense", b'{"format": "fenix-choice-1", "posteriors": 3}'])
def test_a_state_of_something_else_is_refused_and_changes_nothing(state: bytes) -> None:
    learner = ChoiceLearner()
    learner.hear(chunk((setting(), 1)))
    before = learner.state()
    with pytest.raises(ValueError, match="learned of plans"):
        learner.restore(state)
    assert learner.state() == before


def test_a_segment_that_is_given_up_goes_on_in_the_common_one_and_followers_are_told() -> None:
    learner = ChoiceLearner(often=1)
    learner.hear(chunk((setting(user="ann"), 4)))
    first = learner.since("", 0)
    for k in range(500):
        learner.hear(chunk((setting(user=f"user {k}"), 1)))
    news = learner.since(first.life, first.version)
    (gone,) = [rows for rows in news.segments if rows.segment == "user=ann"]
    assert gone.plans == ()
    assert plans(learner)["a"][0] == 4


def test_results_are_told_one_by_one_with_their_propensities_and_only_once() -> None:
    learner = ChoiceLearner()
    found = chunk((setting("b", considered=(("a", 0.75), ("b", 0.25))), 3))
    learner.hear(found)
    first = learner.answer("results", "", 0)
    ((one),) = first.heard
    assert (one.goal, one.segment, one.plan) == ("digits", "", "b")
    assert (one.result.n, one.result.propensity) == (3, 0.25)
    assert one.result.log_ms == pytest.approx(math.log(4.0))
    learner.told([joined(outcome(found), 1)])
    second = learner.answer("results", first.life, first.number)
    assert [(one.result.n, one.result.n_judged, one.result.right) for one in second.heard] == [(0, 1, 1.0)]
    assert learner.answer("results", second.life, second.number).heard == ()
    assert len(learner.answer("results", "another life", 7).heard) == 2


def test_only_the_latest_results_are_kept() -> None:
    learner = ChoiceLearner()
    found = chunk((setting(), 1))
    learner.told([joined(outcome(found), 1)] * (MOST_RESULTS + 5))
    told = learner.answer("results", "", 0)
    assert (len(told.heard), told.number) == (MOST_RESULTS, MOST_RESULTS + 5)
    assert len(learner.answer("results", told.life, 2).heard) == MOST_RESULTS


def test_an_unknown_question_is_refused() -> None:
    learner = ChoiceLearner()
    assert learner.answer("since", "", 0).whole
    with pytest.raises(BadRequest):
        learner.answer("what")


def test_beliefs_that_are_shown_are_those_of_who_shows_them() -> None:
    from planner.choice.policy import Arm, Context

    learner = ChoiceLearner(often=1)
    found = chunk((setting(user="ann"), 30), (setting("b", user="ann"), 30), (setting("b", user="bob"), 5))
    learner.hear(found)
    learner.told([joined(outcome(found, seq), 1 if seq < 30 else 2) for seq in range(60)])
    shown = Posteriors()
    for rows in learner.since("", 0).segments:
        shown.show(rows)
    arms = [Arm("a", 0.5, 0, 2.0, 0.5), Arm("b", 0.9, 0, 2.0, 0.5)]
    context = Context("digits", "user=ann")
    assert shown.beliefs(context, arms, AT_S) == learner._posteriors.beliefs(context, arms, AT_S)
    a, b = shown.beliefs(context, arms, AT_S)
    assert a.accuracy > 0.9 > 0.2 > b.accuracy
    n_outcomes, _ = shown.state_of("digits", "user=ann")
    (rows,) = [one for one in learner.since("", 0).segments if one.segment == "user=ann"]
    shown.show(rows)
    assert shown.state_of("digits", "user=ann") == (n_outcomes, 0)  # nothing new
    shown.show(SegmentRows("digits", "user=ann"))
    assert not shown.has("digits", "user=ann")
