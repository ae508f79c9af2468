from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from planner.errors import BadRequest, Conflict, FenixError, NotFound
from planner.rollout.records import Decision, Event, Observation, Pairs, Rollout, RolloutPlan, RolloutStep
from planner.rollout.rollout import (
    abort,
    decide,
    follow,
    observe,
    pause,
    promote,
    resume,
    roll_back,
    settled,
    start,
)
from tests.planner.rollout.seen import QUICK, begun, mirrored, served


def decided(rollout: Rollout, now_s: float) -> Rollout:
    return follow(rollout, decide(rollout, now_s), now_s)


def shown() -> Rollout:
    """A rollout whose challenger has shown in the shadow that it is as good, in the first step of its canary."""
    rollout = begun()
    return decided(observe(rollout, [mirrored(100)] * 80), rollout.since_s + 60.0)


def test_a_rollout_begins_unseen() -> None:
    rollout = begun()
    assert (rollout.stage, rollout.share, rollout.mirrored, rollout.step) == ("shadow", 0.0, 1.0, 0)
    assert rollout.history == (Event(1000.0, "start", "3 against 2", "controller", "shadow", 0, 0.0),)


def test_a_plan_without_a_shadow_begins_as_a_canary() -> None:
    rollout = begun(RolloutPlan(steps=(RolloutStep(0.02),)))
    assert (rollout.stage, rollout.share) == ("canary", 0.02)


def test_a_version_is_no_challenger_of_itself() -> None:
    with pytest.raises(BadRequest, match="Version 2 of digits is the champion already"):
        start("digits", "2", "2", QUICK, 0.0)


def test_an_extension_has_one_rollout_at_a_time() -> None:
    with pytest.raises(Conflict, match="digits has a rollout already: version 3, in its stage shadow"):
        start("digits", "2", "4", QUICK, 0.0, others=[begun()])
    over = abort(begun(), 1001.0, by="ada", reason="deleted")
    other = replace(begun(), extension="letters")
    assert start("digits", "2", "4", QUICK, 0.0, others=[over, other]).running


def test_a_good_challenger_goes_through_all_steps_to_the_champion() -> None:
    rollout, now_s, shares = begun(), 1000.0, []
    while rollout.running:
        shares.append(rollout.share)
        for _ in range(20):
            now_s += 1.0
            seen = [served("2", 300), served("3", 100)] if rollout.share else []
            rollout = decided(observe(rollout, [*seen, mirrored(100)]), now_s)
            if rollout.share not in shares:
                break
    assert shares == [0.0, 0.05, 0.5]
    assert (rollout.stage, rollout.champion, rollout.former, rollout.share) == ("champion", "3", ("1", "2"), 0.0)
    assert [event.action for event in rollout.history] == ["start", "step", "step", "promote"]
    assert "errors, accuracy" in rollout.history[-1].reason
    assert all(one.verdict == "not worse" for one in rollout.history[-1].findings)


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (mirrored(2000, failed=30), "fails 1.50% of 2000 outcomes, the champion 0.00% of 2000"),
        (mirrored(2000, wrong=120), "is wrong on 6.00% of 2000 outcomes"),
        (mirrored(2000, agreed=600), "agrees with the champion on 30.0% of the answers, not 50.0%"),
    ],
)
def test_a_bad_challenger_is_rolled_back_out_of_the_shadow(bad: Pairs, said: str) -> None:
    rollout = observe(begun(), [bad])
    decision = decide(rollout, 1001.0)
    assert decision.action == "roll_back"
    assert said in decision.reason
    over = follow(rollout, decision, 1001.0)
    assert (over.stage, over.champion, over.former, over.share, over.mirrored) == ("rolled_back", "2", ("1",), 0.0, 0.0)
    assert over.history[-1].findings == decision.findings


def test_a_slow_challenger_is_rolled_back() -> None:
    rollout = begun()
    for _ in range(4):
        rollout = observe(rollout, [mirrored(100, slower=2.0)])
    decision = decide(rollout, 1001.0)
    assert decision.action == "roll_back"
    assert "latency p50 of" in decision.reason
    assert "more than 1.25 times" in decision.reason


def test_a_paused_rollout_goes_no_further_but_is_still_rolled_back() -> None:
    rollout = pause(observe(begun(), [mirrored(4000)]), 1001.0, by="ada")
    assert decide(rollout, 1100.0).reason == "paused"
    assert decide(observe(rollout, [mirrored(4000, failed=200)]), 1100.0).action == "roll_back"
    assert decide(resume(rollout, 1200.0, by="ada"), 1201.0).action == "step"


def test_nothing_moves_on_before_its_outcomes_and_its_time() -> None:
    few = observe(begun(), [mirrored(50)])
    decision = decide(few, 1020.0)
    assert (decision.action, decision.remaining_s) == ("keep", 20.0)
    assert decision.reason == "50 outcomes are missing in this step, 50 came (about 20 s at this rate)"
    early = observe(begun(), [mirrored(4000)])
    assert decide(early, 1004.0).reason == "this step lasts 10 s (about 6 s at this rate)"


def test_too_little_traffic_is_reported_with_the_time_that_it_will_take() -> None:
    plan = replace(QUICK, patience_s=3600.0)
    decision = decide(observe(begun(plan), [mirrored(1)]), 1060.0)
    assert (decision.stalled, decision.remaining_s) == (True, 99 * 60.0)
    assert decision.reason.startswith("stalled: 99 outcomes are missing")
    nothing = decide(begun(plan), 1060.0)
    assert (nothing.stalled, nothing.remaining_s) == (False, None)
    assert decide(begun(plan), 1000.0 + 3601.0).stalled


def test_a_rollout_that_proves_nothing_in_time_is_given_up() -> None:
    decision = decide(begun(replace(QUICK, give_up_s=600.0)), 1601.0)
    assert (decision.action, decision.reason) == ("roll_back", "not proven within 10 min")


def test_beyond_the_careful_share_only_goes_who_has_shown_to_be_no_worse() -> None:
    rollout = decided(observe(begun(), [mirrored(100)]), 1010.0)
    assert rollout.share == 0.05
    rollout = observe(rollout, [mirrored(2000, judged=0, checked=True)])
    decision = decide(rollout, 1060.0)
    assert decision.action == "keep"
    assert "accuracy is not shown to hold" in decision.reason
    assert "errors served" not in decision.reason


def test_what_the_shadow_shows_does_not_stand_for_what_is_served() -> None:
    rollout = observe(shown(), [served("2", 200), served("3", 60)])
    decision = decide(rollout, 1200.0)
    assert decision.action == "keep"
    assert "errors served is not shown to hold" in decision.reason
    assert "errors is not" not in decision.reason
    assert decide(observe(rollout, [served("2", 9000), served("3", 3000)]), 1200.0).action == "step"


@pytest.mark.parametrize("require_truth", [True, False])
def test_without_truth_a_challenger_is_promoted_only_if_the_plan_says_so(require_truth: bool) -> None:
    rollout = begun(replace(QUICK, require_truth=require_truth, min_agreement=0.9))
    now_s = 1000.0
    for _ in range(40):
        now_s += 60.0
        seen = [mirrored(500, judged=0, checked=rollout.stage == "canary")]
        rollout = decided(observe(rollout, seen), now_s)
    assert (rollout.stage, rollout.step) == (("canary", 1) if require_truth else ("champion", 2))


def test_without_truth_agreement_that_is_not_shown_holds_it_back() -> None:
    plan = replace(QUICK, require_truth=False, min_agreement=0.9)
    rollout = observe(begun(plan), [mirrored(1000, judged=0, agreed=900)])
    rollout = decided(rollout, 1100.0)
    rollout = observe(rollout, [served("2", 3000, judged=0), served("3", 3000, judged=0)])
    assert "agreement is not shown to hold" in decide(rollout, 1200.0).reason


def test_every_step_bets_anew_on_harm_and_forgets_nothing() -> None:
    before = observe(shown(), [mirrored(4000, failed=3, checked=True)])
    after = decided(before, 1200.0)
    assert after.share > before.share
    assert before.evidence.errors.sides.lately != begun().evidence.errors.sides.lately
    assert after.evidence.errors.sides.lately == begun().evidence.errors.sides.lately
    assert after.evidence.errors.sides.not_worse == before.evidence.errors.sides.not_worse
    assert after.n_in_step == 0


def test_checked_requests_carry_a_canary_on() -> None:
    rollout = observe(shown(), [mirrored(3000, checked=True), mirrored(700)])
    assert rollout.n_in_step == 3000
    assert decide(rollout, 1200.0).action == "step"
    assert decide(observe(shown(), [mirrored(300, failed=12, checked=True)]), 1100.0).action == "roll_back"


def test_harm_that_begins_with_the_canary_is_found_soon() -> None:
    rollout = observe(shown(), [served("2", 2000), served("3", 100, failed=12)])
    assert decide(rollout, 1100.0).action == "roll_back"


def test_outcomes_of_other_versions_are_refused_and_late_ones_ignored() -> None:
    with pytest.raises(BadRequest, match="Version 7 has no part"):
        observe(begun(), [Observation("7", 1)])
    over = promote(begun(), 1001.0, by="ada")
    assert observe(over, [served("2", 10), mirrored(5), Observation("7", 1)]) == over
    assert decide(over, 1002.0) == Decision("keep", "")


def test_promoting_by_hand_needs_no_evidence() -> None:
    over = promote(shown(), 1100.0, by="ada", reason="we know it")
    assert (over.stage, over.champion, over.share, over.former) == ("champion", "3", 0.0, ("1", "2"))
    assert (over.history[-1].by, over.history[-1].reason) == ("ada", "we know it")


def test_rolling_back_goes_to_the_champion_or_to_any_former_version() -> None:
    over = roll_back(shown(), 1100.0, by="ada")
    assert (over.stage, over.champion, over.former) == ("rolled_back", "2", ("1",))
    older = roll_back(shown(), 1100.0, by="ada", to="1")
    assert (older.stage, older.champion, older.former) == ("rolled_back", "1", ("2",))
    again = roll_back(older, 1101.0, by="ada", to="2")
    assert (again.champion, again.former) == ("2", ("1",))


def test_a_promoted_version_can_be_rolled_back_with_one_command() -> None:
    back = roll_back(promote(begun(), 1001.0, by="ada"), 1002.0, by="ada")
    assert (back.stage, back.champion, back.former) == ("rolled_back", "2", ("1", "3"))
    plain = settled("digits", "2", 5.0, ("1",), by="deployer")
    assert roll_back(plain, 6.0, by="ada").champion == "1"


Step = Callable[[Rollout], Rollout]


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        (lambda r: roll_back(r, 1.0, by="ada", to="9"), NotFound, "digits had no champion '9'"),
        (lambda r: roll_back(r, 1.0, by="ada", to="3"), Conflict, "Version 3 of digits was never champion"),
        (lambda r: resume(r, 1.0, by="ada"), Conflict, "is not paused"),
        (lambda r: pause(pause(r, 1.0, by="ada"), 1.0, by="ada"), Conflict, "is paused already"),
    ],
)
def test_what_a_running_rollout_cannot_do_is_said(what: Step, error: type[FenixError], said: str) -> None:
    with pytest.raises(error, match=said):
        what(begun())


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda r: promote(r, 1.0, by="ada"), "no rollout of digits to promote: the last one, of 3, is over"),
        (lambda r: pause(r, 1.0, by="ada"), "to pause"),
        (lambda r: resume(r, 1.0, by="ada"), "to resume"),
        (lambda r: abort(r, 1.0, by="ada", reason="gone"), "to abort"),
        (lambda r: follow(r, Decision("step", ""), 1.0), "to step"),
        (lambda r: roll_back(r, 1.0, by="ada"), "Nothing of digits is there to be rolled back"),
        (lambda r: roll_back(r, 1.0, by="ada", to="2"), "Version 2 of digits serves all requests already"),
    ],
)
def test_what_is_over_stays_over(what: Step, said: str) -> None:
    with pytest.raises(Conflict, match=said):
        what(roll_back(begun(), 1001.0, by="ada"))


def test_an_extension_without_a_former_version_cannot_be_rolled_back() -> None:
    with pytest.raises(Conflict, match="Nothing of digits"):
        roll_back(settled("digits", "1", 0.0, by="deployer"), 1.0, by="ada")


def test_there_is_no_step_after_the_last() -> None:
    last = begun(RolloutPlan(steps=(RolloutStep(0.1),)))
    with pytest.raises(Conflict, match="in its last step"):
        follow(last, Decision("step", ""), 1.0)


class Lives(RuleBasedStateMachine):
    """Whatever happens to a rollout, and in whatever order."""

    @initialize(skip=st.integers(0, 2), truth=st.booleans())
    def begin(self, skip: int, truth: bool) -> None:
        plan = QUICK if truth else replace(QUICK, steps=QUICK.steps, require_truth=False)
        if truth:
            plan = replace(QUICK, steps=QUICK.steps[skip:])
        self.now_s = 0.0
        self.rollout = start("digits", "2", "3", plan, 0.0, former=("0", "1"))
        self.over: Rollout | None = None

    def take(self, what: Callable[[], Rollout]) -> None:
        """Does it, or is told that it cannot be done."""
        before = self.rollout
        try:
            self.rollout = what()
        except (Conflict, NotFound):
            assert self.rollout is before
        after = self.rollout
        assert after.history[: len(before.history)] == before.history
        changed = (after.stage, after.step, after.champion, after.paused) != (
            before.stage,
            before.step,
            before.champion,
            before.paused,
        )
        assert len(after.history) == len(before.history) + 1 if changed else True
        if not before.running:
            assert not after.running
            assert after.stage in (before.stage, "rolled_back")
        if before.stage == "rolled_back":
            assert after.stage == "rolled_back"
        if after.running and before.running:
            assert after.step - before.step in (0, 1)
            assert after.champion == before.champion

    @rule(n=st.integers(0, 3000), bad=st.sampled_from([0.0, 0.0, 0.0, 0.05, 0.5]), slower=st.sampled_from([1.0, 2.0]))
    def see(self, n: int, bad: float, slower: float) -> None:
        failed = round(n * bad)
        seen: list[Observation | Pairs] = [served("3", n, failed, slower=slower), mirrored(n, failed)]
        seen.append(mirrored(n, failed, checked=True))
        if self.rollout.running:
            seen.append(served("2", 2 * n))
        self.take(lambda: observe(self.rollout, seen))

    @rule(wait_s=st.floats(0.0, 30.0))
    def look(self, wait_s: float) -> None:
        self.now_s += wait_s
        before = self.rollout
        decision = decide(before, self.now_s)
        assert decision == decide(before, self.now_s)
        self.take(lambda: follow(before, decision, self.now_s))
        if decision.action != "keep":
            assert decision.reason
            assert self.rollout.history[-1].action == decision.action
        if before.paused:
            assert decision.action in ("keep", "roll_back")

    @rule()
    def promote_it(self) -> None:
        self.take(lambda: promote(self.rollout, self.now_s, by="ada"))

    @rule(to=st.sampled_from([None, "0", "1", "2", "3", "4"]))
    def roll_it_back(self, to: str | None) -> None:
        self.take(lambda: roll_back(self.rollout, self.now_s, by="ada", to=to))

    @rule()
    def pause_it(self) -> None:
        self.take(lambda: pause(self.rollout, self.now_s, by="ada"))

    @rule()
    def resume_it(self) -> None:
        self.take(lambda: resume(self.rollout, self.now_s, by="ada"))

    @precondition(lambda self: self.now_s > 40.0)
    @rule()
    def abort_it(self) -> None:
        self.take(lambda: abort(self.rollout, self.now_s, by="ada", reason="deleted"))

    @invariant()
    def the_share_is_that_of_the_step_and_nobody_serves_twice(self) -> None:
        rollout = self.rollout
        assert rollout.share <= rollout.plan.steps[rollout.step].share
        assert rollout.running or (rollout.share == 0.0 == rollout.mirrored and not rollout.paused)
        assert (rollout.stage == "canary") == (rollout.share > 0.0)
        assert rollout.champion not in rollout.former
        assert len(set(rollout.former)) == len(rollout.former)
        if rollout.running:
            assert rollout.champion == "2"
        if rollout.stage == "champion":
            assert rollout.champion == "3"
        assert set(rollout.former) | {rollout.champion} <= {"0", "1", "2", "3"}
        times = [event.at_s for event in rollout.history]
        assert times == sorted(times)
        assert rollout.history[-1].share == rollout.share


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=30, stateful_step_count=25, deadline=None)
