"""What the learner of quality makes of a real journal's chunks and feedback."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineage.chunks import Chunk, ChunkBuilder
from lineage.database import open_database
from lineage.errors import FenixError
from lineage.feedback import Feedback
from lineage.journal import Joined, JournalStore
from lineage.learners import Follower
from lineage.outcomes import Setting
from lineage.quality.learner import MOST_LABEL_CHARS, Claim, Figures, QualityLearner
from lineage.quality.summary import OTHER
from tests.lineage.outcomes import RUN, trace

NOW_S = 1_800_000_000.0
HOUR_S = 3_600.0
CHAIN = Setting("digits", goal="digits", plan="p1", steps=((0, "scale@1"), (1, "read@2")), giver="read@2", user="ann")


class Journal:
    """Outcomes for a learner, by group."""

    def __init__(self) -> None:
        self.builder = ChunkBuilder(RUN)
        self.n = 0

    def add(
        self,
        setting: Setting = CHAIN,
        labels: Sequence[Any] = (7,),
        *,
        ms: Sequence[float] | None = None,
        sure: Sequence[float] | None = None,
        took_ms: Sequence[float] = (1.0, 2.0),
        batch_rows: int = 4,
        at_s: float = NOW_S,
        outputs: dict[str, Any] | None = None,
    ) -> list[int]:
        n = len(labels)
        seqs = list(range(self.n, self.n + n))
        steps = [(0.1, 0.2, took, batch_rows) for took in took_ms[: len(setting.steps)]]
        given_ = {"digit": np.array(labels)} if outputs is None else outputs
        self.builder.add(
            setting, self.n, at_s, list(ms or [5.0] * n), [1] * n, list(sure or [math.nan] * n), steps, given_
        )
        self.n += n
        return seqs

    def chunk(self) -> Chunk:
        return Chunk.decode(self.builder.encode())


def heard(journal: Journal, now_s: float = NOW_S + 1.0, **more: Any) -> tuple[QualityLearner, Chunk]:
    learner, chunk = QualityLearner(lambda: now_s, **more), journal.chunk()
    learner.hear(chunk)
    return learner, chunk


def said(
    chunk: Chunk, seq: int, truth: Any = None, rating: float | None = None, before: Any = None, output: str = ""
) -> Joined:
    outcome = chunk.find(seq)
    assert outcome is not None
    earlier = None if before is None else Feedback(trace(seq), output, before)
    return Joined(outcome, Feedback(trace(seq), output, truth, rating), NOW_S, earlier)


def version(learner: QualityLearner, id_: str, **more: Any) -> Any:
    found: Figures = (
        learner.answer("version", id_, HOUR_S, **more)
        if not more
        else learner.answer("version", id_, HOUR_S, more["segment"])
    )
    return found.whole


def test_a_version_has_the_time_of_its_step_and_a_plan_that_of_the_request() -> None:
    journal = Journal()
    journal.add(labels=[7] * 30, ms=[9.0] * 30)
    learner, _ = heard(journal)
    plan = learner.answer("plans", "digits", HOUR_S)["p1"].whole
    for quality, ms in ((version(learner, "scale@1"), 1.0), (version(learner, "read@2"), 2.0), (plan, 9.0)):
        assert (quality.n, quality.n_failed) == (30, 0)
        assert quality.p50_ms.value == pytest.approx(ms, rel=0.01)


def test_confidence_and_truth_go_to_who_gave_the_answer_and_to_the_plan() -> None:
    journal = Journal()
    seqs = journal.add(labels=[7] * 10, sure=[0.5] * 10)
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=7 if seq else 1) for seq in seqs])
    plan = learner.answer("plans", "digits", HOUR_S)["p1"].whole
    for quality in (version(learner, "read@2"), plan):
        assert (quality.n, quality.n_judged, quality.n_right) == (10, 10, 9)
        assert quality.confidence.value == 0.5
        assert quality.by_width.ece.value == pytest.approx(0.4, abs=0.1)
        assert quality.class_named("7").recall.value == 1.0
    scale = version(learner, "scale@1")
    assert (scale.n, scale.n_judged, scale.confidence) == (10, 0, None)


def test_where_nobody_gave_the_whole_answer_only_the_plan_is_judged() -> None:
    journal = Journal()
    (seq,) = journal.add(replace(CHAIN, giver=""), sure=[0.5])
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=7), said(chunk, seq, rating=0.25)])
    assert (version(learner, "read@2").n_judged, version(learner, "read@2").rating) == (0, None)
    plan = learner.answer("plans", "digits", HOUR_S)["p1"].whole
    assert (plan.n_judged, plan.rating.value, plan.confidence.value) == (1, 0.25, 0.5)


def test_a_failure_counts_for_the_plan_and_for_who_it_is_put_down_to() -> None:
    journal = Journal()
    journal.add(labels=[7] * 8)
    journal.add(replace(CHAIN, steps=(), giver="", error="ExtensionRaised", failed=("read@2",)), [0, 0], outputs={})
    learner, _ = heard(journal)
    plan = learner.answer("plans", "digits", HOUR_S)["p1"].whole
    assert [(q.n, q.n_failed) for q in (plan, version(learner, "read@2"), version(learner, "scale@1"))] == [
        (10, 2),
        (10, 2),
        (8, 0),
    ]
    assert plan.latencies.n == 8


def test_who_failed_and_was_stood_in_for_failed_though_the_request_did_not() -> None:
    journal = Journal()
    journal.add(replace(CHAIN, steps=((0, "other@1"),), giver="other@1", failed=("read@2",)))
    learner, _ = heard(journal)
    assert (version(learner, "read@2").n_failed, version(learner, "other@1").n_failed) == (1, 0)
    assert learner.answer("plans", "digits", HOUR_S)["p1"].whole.n_failed == 0


def test_what_a_client_does_wrong_counts_for_nobody() -> None:
    journal = Journal()
    (seq,) = journal.add(Setting("digits", goal="digits", plan="p1", error="BadInput"), [0], outputs={})
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, rating=0.0)])
    assert learner.answer("plans", "digits", HOUR_S) == {}


def test_the_time_of_rows_that_were_known_already_is_not_that_of_the_version() -> None:
    journal = Journal()
    journal.add(batch_rows=0)
    journal.add(took_ms=(4.0, 8.0))
    learner, _ = heard(journal)
    quality = version(learner, "read@2")
    assert (quality.n, quality.latencies.n) == (2, 1)
    assert quality.p50_ms.value == pytest.approx(8.0, rel=0.01)


def test_a_request_by_the_name_of_an_extension_counts_for_it_and_for_no_plan() -> None:
    journal = Journal()
    journal.add(Setting("read", "2", "", "direct-read@2", ((0, "read@2"),), giver="read@2"))
    learner, _ = heard(journal)
    assert version(learner, "read@2").n == 1
    assert learner.answer("overview", HOUR_S).plans == {}
    assert learner.answer("known") == ("read@2",)


def test_a_plan_is_known_by_the_steps_that_it_ran_where_nothing_stood_in() -> None:
    journal = Journal()
    journal.add(at_s=NOW_S - 2.0)
    other = replace(CHAIN, steps=((0, "scale@1"), (1, "other@1")), giver="other@1", flags=frozenset({"fallback"}))
    journal.add(other)
    journal.add(replace(CHAIN, steps=(), giver="", error="StepFailed"), [0], outputs={})
    learner, _ = heard(journal)
    again = QualityLearner(lambda: NOW_S)
    again.restore(learner.state())
    for one in (learner, again):
        assert one.answer("plans", "digits", HOUR_S)["p1"].steps == ("scale@1", "read@2")


def test_where_too_few_calls_were_measured_the_card_promises_no_p99() -> None:
    journal = Journal()
    journal.add(labels=[7] * 90, took_ms=(1.0, 1.0))
    journal.add(labels=[7] * 10, took_ms=(1.0, 9.0))
    learner, _ = heard(journal)
    assert learner.answer("findings", {"read@2": Claim(None, 0, 1.0, 0.0, None)}, HOUR_S) == ()
    (found,) = learner.answer("findings", {"read@2": Claim(None, 0, 1.0, 0.0, 1.5)}, HOUR_S)
    assert "by its card 1 % take over 1.5 ms" in found.sentence


def test_truth_that_was_changed_counts_as_it_is_now() -> None:
    journal = Journal()
    seqs = journal.add(labels=[7] * 4, sure=[0.9] * 4)
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=7) for seq in seqs])
    learner.told([said(chunk, seqs[0], truth=1, before=7), said(chunk, seqs[1], truth=2, before=7)])
    learner.told([said(chunk, seqs[1], truth=7, before=2)])
    once = QualityLearner(lambda: NOW_S + 1.0)
    once.hear(chunk)
    once.told([said(chunk, seq, truth=1 if seq == seqs[0] else 7) for seq in seqs])
    assert version(learner, "read@2").plain() == version(once, "read@2").plain()
    assert version(learner, "read@2").n_right == 3


def test_numbers_and_ratings_that_were_changed_count_as_they_are_now() -> None:
    journal = Journal()
    seqs = journal.add(labels=[1.0, 2.0, 3.0], outputs={"y": np.array([1.0, 2.0, 3.0], np.float32)})
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=9.0) for seq in seqs])
    learner.told([said(chunk, seq, truth=float(seq), before=9.0) for seq in seqs])
    errors = version(learner, "read@2").errors
    assert (errors.mae.value, errors.mae.n) == (pytest.approx(1.0), 3)
    learner.told([said(chunk, seqs[0], rating=1.0)])
    again = said(chunk, seqs[0], rating=0.5)
    learner.told([replace(again, before=Feedback(trace(seqs[0]), rating=1.0))])
    rating = version(learner, "read@2").rating
    assert (rating.value, rating.n) == (0.5, 1)


def test_labels_of_several_outputs_are_told_apart_by_name() -> None:
    journal = Journal()
    (seq,) = journal.add(outputs={"digit": np.array([7]), "even": np.array([False])})
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=7, output="digit"), said(chunk, seq, truth=True, output="even")])
    quality = version(learner, "read@2")
    assert [found.label for found in quality.classes] == ["digit=7", "even=false", "even=true"]
    assert (quality.n_judged, quality.n_right) == (2, 1)


def test_numbers_of_several_outputs_are_not_added_up() -> None:
    journal = Journal()
    (seq,) = journal.add(outputs={"a": np.array([1.0]), "b": np.array([1000.0])})
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=2.0, output="a"), said(chunk, seq, truth=0.0, output="b")])
    errors = version(learner, "read@2").errors
    assert (errors.mae.value, errors.mae.n) == (1.0, 1)


def test_long_labels_are_cut_and_stay_different() -> None:
    journal = Journal()
    texts = ["a" * 200 + end for end in ("b", "c")]
    (seq,) = journal.add(outputs={"text": np.array([texts[0].encode()], object)})
    learner, chunk = heard(journal)
    learner.told([said(chunk, seq, truth=texts[1])])
    quality = version(learner, "read@2")
    assert (quality.n_judged, quality.n_right) == (1, 0)
    assert all(len(found.label) <= MOST_LABEL_CHARS for found in quality.classes)


def test_truth_that_does_not_fit_the_answer_is_passed_over() -> None:
    journal = Journal()
    seqs = journal.add(labels=[7, 7])
    learner, chunk = heard(journal)
    learner.told([said(chunk, seqs[0], truth="seven"), said(chunk, seqs[1], truth=7)])
    assert version(learner, "read@2").n_judged == 1


def test_users_have_figures_of_their_own() -> None:
    journal = Journal()
    for user, n in (("ann", 30), ("bob", 20), ("", 10)):
        journal.add(replace(CHAIN, user=user), [7] * n)
    learner, _ = heard(journal)
    found = learner.answer("version", "read@2", HOUR_S)
    assert {name: quality.n for name, quality in found.by_segment.items()} == {"": 10, "ann": 30, "bob": 20}
    assert version(learner, "read@2", segment="bob").n == 20
    assert version(learner, "read@2", segment="cid").n == 0


def test_of_many_users_the_busiest_are_told_apart_and_all_are_counted() -> None:
    journal = Journal()
    for k in range(50):
        journal.add(replace(CHAIN, user=f"user-{k}"), [7] * (k + 1))
    learner, _ = heard(journal)
    found = learner.answer("version", "read@2", HOUR_S)
    assert set(found.by_segment) == {OTHER, *(f"user-{k}" for k in range(43, 50))}
    assert sum(quality.n for quality in found.by_segment.values()) == found.whole.n == 50 * 51 // 2


def test_every_window_is_answered_from_what_is_remembered() -> None:
    journal = Journal()
    for back_s, n in ((10.0, 1), (30 * 60.0, 2), (10 * HOUR_S, 4), (20 * 24 * HOUR_S, 8)):
        journal.add(labels=[7] * n, at_s=NOW_S - back_s)
    learner, _ = heard(journal)
    windows = (900.0, HOUR_S, 24 * HOUR_S, None)
    assert [learner.answer("version", "read@2", window).whole.n for window in windows] == [1, 3, 7, 15]


@st.composite
def journals(draw: st.DrawFn) -> tuple[Chunk, list[Joined]]:
    journal = Journal()
    seqs: list[int] = []
    for _ in range(draw(st.integers(1, 6))):
        n = draw(st.integers(1, 5))
        user = draw(st.sampled_from(["", "ann", "bob"]))
        error = draw(st.sampled_from(["", "", "StepFailed", "BadInput"]))
        setting = replace(CHAIN, user=user)
        if error:
            setting = replace(setting, error=error, steps=(), giver="", failed=("read@2",))
        number = st.floats(width=32)
        made = journal.add(
            setting,
            [draw(st.integers(0, 3)) for _ in range(n)],
            ms=[draw(number) for _ in range(n)],
            sure=[draw(number) for _ in range(n)],
            took_ms=[draw(number), draw(number)],
            batch_rows=draw(st.integers(-1, 9)),
            at_s=draw(st.floats(NOW_S - 1e8, NOW_S + 1e8) | st.just(0.0)),
        )
        seqs += made
    chunk = journal.chunk()
    told = [said(chunk, seq, truth=draw(st.integers(0, 3))) for seq in draw(st.lists(st.sampled_from(seqs)))]
    return chunk, told


@given(journals(), st.floats(width=32))
@settings(max_examples=40, deadline=None)
def test_whatever_a_chunk_holds_is_counted_and_nothing_is_lost_over_a_restart(
    given_: tuple[Chunk, list[Joined]], sure: float
) -> None:
    chunk, told = given_
    learner, again = QualityLearner(lambda: NOW_S), QualityLearner(lambda: NOW_S)
    learner.hear(chunk)
    learner.told(told)
    again.restore(learner.state())
    n = sum(len(group.seqs) for group in chunk.groups() if group.setting.error != "BadInput")
    for one in (learner, again):
        whole = one.answer("version", "read@2", None).whole
        assert whole.n == n
        assert whole.plain() == learner.answer("version", "read@2", None).whole.plain()
    again.hear(chunk)
    assert again.answer("version", "read@2", None).whole.n == 2 * n
    state = again.state()
    once_more = QualityLearner(lambda: NOW_S)
    once_more.restore(state)
    assert once_more.answer("plans", "digits", None).keys() == again.answer("plans", "digits", None).keys()


def test_a_state_that_is_none_is_refused_and_changes_nothing() -> None:
    journal = Journal()
    journal.add()
    learner, _ = heard(journal)
    state = learner.state()
    broken = [b"", b"FXQ1", b"FXQ1" + bytes(20), state[:-1], state[:20] + b"\0" + state[21:], b"FXQ2" + state[4:]]
    for wrong in broken:
        with pytest.raises(ValueError, match="quality learner"):
            learner.restore(wrong)
    assert version(learner, "read@2").n == 1


def test_versions_and_plans_that_are_no_longer_used_are_forgotten() -> None:
    learner = QualityLearner(lambda: NOW_S, most=3)
    for k in range(6):
        journal = Journal()
        journal.add(replace(CHAIN, plan=f"p{k}", steps=((0, f"v{k}@1"), (1, "old@1")), giver=f"v{k}@1"))
        learner.hear(journal.chunk())
    seen = learner.answer("overview", HOUR_S)
    assert (set(seen.versions), set(seen.plans)) == (
        {"v4@1", "v5@1", "old@1"},
        {("digits", f"p{k}") for k in (3, 4, 5)},
    )


def test_too_much_is_first_told_apart_by_fewer_users_and_then_forgotten() -> None:
    def learned(most_weight: int) -> QualityLearner:
        journal = Journal()
        for user in ("ann", "bob", "cid", "dan"):
            journal.add(replace(CHAIN, user=user), [7] * 5)
        return heard(journal, most_weight=most_weight)[0]

    roomy, narrow, tight = learned(1000), learned(7), learned(2)
    assert len(roomy.answer("version", "read@2", HOUR_S).by_segment) == 4
    assert len(narrow.answer("version", "read@2", HOUR_S).by_segment) < 4
    assert narrow.answer("version", "read@2", HOUR_S).whole.n == 20
    seen = tight.answer("overview", HOUR_S)
    assert len(seen.versions) + len(seen.plans) == 1


def test_it_says_who_does_poorly_against_card_peers_and_past() -> None:
    now = [NOW_S - 1.5 * HOUR_S]
    learner = QualityLearner(lambda: now[0])
    one = Setting("digits", goal="digits", plan="p1", steps=((0, "read@2"),), giver="read@2")
    other = replace(one, plan="p2", steps=((0, "read@1"),), giver="read@1")
    for at_s, share in ((now[0], 0.98), (NOW_S - 60.0, 0.80)):
        now[0] = at_s + 1.0
        journal = Journal()
        truths: list[tuple[int, int]] = []
        for setting, right in ((one, share), (other, 0.98)):
            took_ms = 1.0 if setting is one else 5.0
            seqs = journal.add(setting, [7] * 500, at_s=at_s, took_ms=(took_ms,), batch_rows=10)
            truths += [(seq, 7 if k < right * 500 else 1) for k, seq in enumerate(seqs)]
        chunk = journal.chunk()
        learner.hear(chunk)
        learner.told([said(chunk, seq, truth=truth) for seq, truth in truths])
    now[0] = NOW_S
    claims = {
        "read@2": Claim(0.97, 1000, 0.9, 0.0, 1.5, peers=("read@1",)),
        "read@1": Claim(None, 0, 0.1, 0.01, 1.5),
    }
    found = {(f.id, f.check, f.against) for f in learner.answer("findings", claims, HOUR_S)}
    assert found == {
        ("read@2", "accuracy", "card"),
        ("read@2", "accuracy", "read@1"),
        ("read@2", "accuracy", "past"),
        ("digits/p1", "accuracy", "past"),
        ("read@1", "latency", "card"),
    }
    sentences = [f.sentence for f in learner.answer("findings", claims, HOUR_S)]
    assert any("its card promises 3 %" in sentence for sentence in sentences)
    assert learner.answer("findings", {}, None) == ()


def test_the_latency_that_a_card_promises_is_that_of_the_batches_that_come() -> None:
    def findings(batch_rows: int) -> Any:
        journal = Journal()
        journal.add(labels=[7] * 200, took_ms=(1.0, 10.0), batch_rows=batch_rows)
        return heard(journal)[0].answer("findings", {"read@2": Claim(None, 0, 0.5, 0.1, 1.5)}, HOUR_S)

    assert {f.check for f in findings(1)} == {"latency"}
    assert findings(100) == ()


def test_what_was_answered_lately_is_answered_again_without_looking() -> None:
    journal = Journal()
    journal.add()
    now = [NOW_S]
    learner = QualityLearner(lambda: now[0])
    learner.hear(journal.chunk())
    first = learner.answer("overview", HOUR_S)
    learner.hear(journal.chunk())
    assert learner.answer("overview", HOUR_S) is first
    now[0] += 20.0
    assert learner.answer("overview", HOUR_S).versions["read@2"].n == 2


def test_another_question_is_refused() -> None:
    with pytest.raises(FenixError, match="not asked 'weather'") as told:
        QualityLearner().answer("weather")
    assert "known, version, plans, overview, findings" in told.value.hint


@pytest.fixture
def store(tmp_path: Path) -> Iterator[JournalStore]:
    store = JournalStore(open_database(f"sqlite:///{tmp_path}/journal.db"))
    yield store
    store.close()


def test_the_follower_reads_the_journal_to_it_once_also_over_a_restart(store: JournalStore) -> None:
    journal = Journal()
    seqs = journal.add(labels=[7] * 6)
    store.append(RUN, [journal.builder.encode()])
    store.give([Feedback(trace(seq), truth=7) for seq in seqs], NOW_S)
    learner = QualityLearner(lambda: NOW_S + 1.0)
    follower = Follower(store, [learner], lambda: NOW_S)
    while follower.step():
        pass
    follower.save()
    store.give([Feedback(trace(seqs[0]), truth=1)], NOW_S)
    again = QualityLearner(lambda: NOW_S + 1.0)
    follower = Follower(store, [again], lambda: NOW_S)
    while follower.step():
        pass
    quality = follower.answer("quality", "version", ("read@2", HOUR_S)).whole
    assert (quality.n, quality.n_judged, quality.n_right) == (6, 6, 5)
