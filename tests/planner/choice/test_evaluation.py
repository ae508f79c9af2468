from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from lineage.quality import Estimate
from planner.choice.evaluation import Evaluation, Logged, Table, compare, earned_by, evaluate
from planner.choice.greedy import EpsilonGreedy, Fixed, Prior
from planner.choice.policy import Arm, Choice, Context, Result
from planner.errors import BadRequest
from tests.planner.choice.logs import ARMS, RIGHT, Stochastic, drawn_log, true_value

OTHER = Stochastic((0.1, 0.6, 0.3))


def covers(estimate: Estimate | None, true: float) -> bool:
    return estimate is not None and estimate.low <= true <= estimate.high


@pytest.fixture(scope="module")
def runs() -> list[Evaluation]:
    """The same policy, evaluated on many logs of another."""
    return [evaluate(OTHER, drawn_log(400, seed), random.Random(seed)) for seed in range(120)]


@pytest.mark.parametrize("method", ["ips", "snips", "doubly_robust", "replay"])
def test_every_method_is_right_on_average_and_its_interval_covers_the_truth(
    runs: list[Evaluation], method: str
) -> None:
    true = true_value(OTHER)
    found = [getattr(run, method) for run in runs]
    values = np.array([estimate.value for estimate in found])
    assert abs(values.mean() - true) < 3.5 * values.std() / len(values) ** 0.5
    assert np.mean([covers(estimate, true) for estimate in found]) >= 0.90
    widths = np.array([estimate.high - estimate.low for estimate in found])
    assert widths.mean() < 1.25 * 2 * 1.96 * values.std()


def test_a_reward_model_takes_noise_off(runs: list[Evaluation]) -> None:
    clear = {"clinic": (0.1, 0.95, 0.3), "school": (0.95, 0.05, 0.9)}
    logs = [drawn_log(300, seed, right_shares=clear) for seed in range(60)]
    for some in (runs, [evaluate(OTHER, log, random.Random(0)) for log in logs]):
        noise = {m: np.std([getattr(run, m).value for run in some]) for m in ("ips", "doubly_robust", "replay")}
        assert noise["doubly_robust"] < noise["ips"]
        assert noise["doubly_robust"] < 0.75 * noise["replay"]
    assert noise["doubly_robust"] < 0.7 * noise["ips"]


def test_the_gain_over_the_log_is_told_with_its_interval(runs: list[Evaluation]) -> None:
    logging = Stochastic((0.6, 0.2, 0.2))
    true = true_value(OTHER) - true_value(logging)
    assert np.mean([covers(run.gain, true) for run in runs]) >= 0.9


def test_a_policy_evaluated_on_its_own_log_gets_what_it_earned() -> None:
    log = drawn_log(400, 1)
    found = evaluate(Stochastic((0.6, 0.2, 0.2)), log, random.Random(0))
    earned = float(earned_by(log).mean())
    assert found.ips.value == pytest.approx(earned)
    assert found.snips.value == pytest.approx(earned)
    assert found.effective_n == pytest.approx(400)
    assert (found.cut, found.unseen) == (0.0, 0.0)


def test_rewards_are_counted_as_the_objective_has_them() -> None:
    log = [
        Logged(Context("goal"), ARMS, Choice(0, (1.0, 0.0, 0.0)), Result.answered(100.0, 0.02, right=1.0)),
        Logged(Context("goal"), ARMS, Choice(0, (1.0, 0.0, 0.0)), Result.answered(50.0, 0.02, right=0.0)),
        Logged(Context("goal"), ARMS, Choice(0, (1.0, 0.0, 0.0)), Result.failed()),
    ]
    assert earned_by(log).tolist() == pytest.approx([-0.12, -1.07, -1.0])


def test_truth_that_is_missing_more_often_for_some_plans_does_not_mislead() -> None:
    known = {"first": 0.9, "second": 0.1, "third": 0.5}
    true = true_value(OTHER)
    found = [evaluate(OTHER, drawn_log(1200, seed, known=known), random.Random(0)) for seed in range(25)]
    values = np.array([run.doubly_robust.value for run in found])
    assert abs(values.mean() - true) < 3.5 * values.std() / len(values) ** 0.5
    assert sum(covers(run.doubly_robust, true) for run in found) >= 21


def test_requests_that_travelled_together_count_as_many() -> None:
    many = Logged(Context("goal"), ARMS, Choice(0, (0.5, 0.5, 0.0)), Result(n=9, cost=0.1, n_judged=9, right=9.0))
    one = replace(many, result=Result(n=1, cost=0.2, n_judged=1, right=1.0))
    found = compare([Stochastic((0.5, 0.5, 0.0))], [many, one], random.Random(0), teach=0.0)
    assert found.logged.value == pytest.approx(-(0.9 * 0.1 + 0.1 * 0.2) - 0.001)


def test_outcomes_without_propensities_are_refused_with_their_number() -> None:
    log = drawn_log(10, 0)
    log[6] = replace(log[6], choice=Choice(1, ()))
    with pytest.raises(BadRequest, match="outcome 7 of 10 has no propensities") as caught:
        evaluate(OTHER, log, random.Random(0))
    assert "Leave such outcomes out" in caught.value.hint


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        (Choice(0, (0.5, 0.5)), "2 propensities for 3 arms"),
        (Choice(0, (0.5, 0.1, 0.1)), "no probabilities which sum to 1"),
        (Choice(0, (1.5, -0.5, 0.0)), "no probabilities which sum to 1"),
        (Choice(2, (0.5, 0.5, 0.0)), "could not be chosen"),
        (Choice(3, (0.5, 0.5, 0.0)), "could not be chosen"),
    ],
)
def test_propensities_that_cannot_be_are_refused(choice: Choice, says: str) -> None:
    log = [replace(drawn_log(1, 0)[0], choice=choice)]
    with pytest.raises(BadRequest, match=says):
        evaluate(OTHER, log, random.Random(0))


def test_an_empty_log_and_a_wrong_share_are_refused() -> None:
    with pytest.raises(BadRequest, match="no outcomes"):
        evaluate(OTHER, [], random.Random(0))
    with pytest.raises(BadRequest, match="share of the log"):
        compare([OTHER], drawn_log(5, 0), random.Random(0), teach=1.0)


def test_few_effective_outcomes_are_warned_of() -> None:
    log = drawn_log(400, 3, (0.98, 0.01, 0.01))
    found = evaluate(Fixed("second"), log, random.Random(0))
    assert found.effective_n < 20
    assert found.cut > 0.0
    assert any("hardly tried" in warning for warning in found.warnings)
    assert any("weights cut" in warning for warning in found.warnings)
    assert not evaluate(Stochastic((0.5, 0.25, 0.25)), drawn_log(4000, 3), random.Random(0)).warnings


def test_choices_that_the_log_never_could_make_are_warned_of() -> None:
    found = evaluate(Fixed("third"), drawn_log(400, 3, (0.5, 0.5, 0.0)), random.Random(0))
    assert found.unseen == 1.0
    assert found.replay is None
    assert found.snips.low == -np.inf
    assert any("100.0 % of its choices had no chance" in warning for warning in found.warnings)


def test_a_policy_learns_in_a_replay_and_is_taught_before_it_is_compared() -> None:
    log = drawn_log(4000, 5, (1 / 3, 1 / 3, 1 / 3))
    table = compare([Prior(), EpsilonGreedy(epsilon=0.1), Fixed("second")], log, random.Random(0))
    assert [row.policy for row in table.rows] == ["greedy", "fixed", "prior"]
    best = table.rows[0]
    ideal = sum(max(shares) for shares in RIGHT.values()) / 2
    assert best.doubly_robust.value > -(1.0 - ideal) - 0.06
    assert best.gain.low > 0.0
    assert best.replay is not None
    assert covers(best.replay, best.doubly_robust.value)
    assert best.n == 2000
    untaught = evaluate(EpsilonGreedy(epsilon=0.1), log[:2000], random.Random(0))
    assert untaught.replay is not None
    assert untaught.replay.value > untaught.doubly_robust.high


def test_a_policy_is_taught_with_the_logs_propensities_and_in_a_replay_with_its_own() -> None:
    class Listening(Stochastic):
        def learn(self, context: Context, arm: Arm, result: Result) -> None:
            heard.append((arm.plan, result.propensity))

    heard: list[tuple[str, float]] = []
    compare([Listening(OTHER.propensities)], drawn_log(200, 0), random.Random(0))
    assert set(heard[:100]) == {("first", 0.6), ("second", 0.2), ("third", 0.2)}
    assert set(heard[100:]) == {("first", 0.1), ("second", 0.6), ("third", 0.3)}


def test_the_table_has_a_line_for_each_policy_and_each_warning() -> None:
    table: Table = compare([Prior(), Fixed("second")], drawn_log(60, 0), random.Random(0))
    lines = table.text().splitlines()
    assert lines[1].startswith("(as logged)")
    assert {line.split()[0] for line in lines[2:4]} == {"prior", "fixed"}
    assert any("of 30 outcomes only" in line for line in lines[4:])


def test_a_logged_outcome_is_made_from_what_the_journal_has() -> None:
    context, result = Context("goal"), Result.answered(1.0, 0.0)
    logged = Logged.of(context, ARMS, [("third", 0.3), ("first", 0.7)], "third", result)
    assert logged.choice == Choice(2, (0.7, 0.0, 0.3))
    assert Logged.of(context, ARMS, [], "first", result).choice.propensities == ()
    with pytest.raises(BadRequest, match="'gone' was considered"):
        Logged.of(context, ARMS, [("gone", 0.3), ("first", 0.7)], "first", result)
    with pytest.raises(BadRequest, match="'fourth'"):
        Logged.of(context, ARMS, [("first", 1.0)], "fourth", result)


def test_the_reward_model_does_not_know_the_outcome_that_it_is_asked_about() -> None:
    arms = (Arm("a", 0.5, 0, 1.0, 0.0), Arm("b", 0.5, 0, 1.0, 0.0))
    log = [
        Logged(Context("goal"), arms, Choice(0, (0.5, 0.5)), Result.answered(1.0, 0.0, right=float(i == 0)))
        for i in range(2)
    ]
    target = Stochastic((1.0, 0.0))
    found = evaluate(target, log, random.Random(0))
    # By hand: each one's model is the other's reward, drawn to the plan's mean and that to the prediction.
    first, second = -0.001, -1.001
    guess = -0.501

    def drawn_to(reward: float) -> float:
        plan = (reward + 4 * guess) / 5
        return (reward + 4 * plan) / 5

    by_hand = [drawn_to(second), drawn_to(first)]
    cut = min(2.0, 2**0.5)
    robust = [m + cut * (r - m) for m, r in zip(by_hand, (first, second), strict=True)]
    assert found.doubly_robust.value == pytest.approx(sum(robust) / 2)
