"""Choosing in the gateway: a real engine, journal and ledger, extensions in this process, without a cluster."""

from __future__ import annotations

import asyncio
import gc
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest

from deployments.applications import ChoiceOptions
from deployments.gateway.choosing import Choosing, choosing_of
from deployments.gateway.engine import Engine
from deployments.gateway.messages import InferAnswer, InferRequest
from deployments.gateway.notes import NoteBook
from deployments.gateway.recorder import Recorder
from deployments.gateway.rollouts import GatewayRollouts
from deployments.ledger import Ledger
from lineage.database import open_database
from lineage.feedback import Feedback
from lineage.journal import JournalStore
from planner.calls import LocalCalls
from planner.cards import Accuracy, Card, ExtensionId
from planner.catalogue import Catalogue
from planner.choice.learner import ChoiceLearner, Heard
from planner.choice.policy import Arm, Choice, Context, Result
from planner.choice.posteriors import Posteriors
from planner.choice.thompson import Thompson
from planner.choosing import FirstPlan
from planner.errors import ExtensionRaised, NoPlan, StoreUnavailable
from planner.features import Array, Feature, Port, Rows
from planner.goals import Goal, Terms
from tests.deployments.gateway.test_rollouts import Desk, rollout, rules

NUMBER, LABEL = Feature("number/plain", "FP32"), Feature("label/size", "INT64")
IN, OUT = (Port("x", NUMBER),), (Port("y", LABEL),)
CARDS = (
    Card("neat", "1", IN, OUT, accuracy=Accuracy(0.95, 200)),
    Card("plain", "1", IN, OUT, accuracy=Accuracy(0.90, 200)),
)
GOAL = Goal("measure", IN, OUT, description="How large?")


def whole(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    return {"y": Rows(rows["x"].astype(np.int64))}


def one_more(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    return {"y": Rows(rows["x"].astype(np.int64) + 1)}


def broken(rows: Mapping[str, Array]) -> Mapping[str, Rows]:
    raise ValueError("no")


WORK = {"neat@1": one_more, "plain@1": whole}


class House:
    """A gateway's engine, its journal, and what it chooses by."""

    def __init__(self, ledger: Ledger, options: ChoiceOptions, work: Mapping[str, Any]) -> None:
        self.ledger = ledger
        self.recorder = Recorder(ledger.append)
        self.choosing = choosing_of(options, lambda: self.engine, ledger, lambda: 0.5)
        self.choosing.rng = Random(5)
        book = NoteBook(self.recorder, 0.0, Random(1))
        calls = LocalCalls({ExtensionId(id_): function for id_, function in work.items()})
        self.engine = Engine(calls, notes_for=book.notes_for, chooser_for=self.choosing.chooser_for)

    async def ask(self, user: str = "", model: str = "measure", **terms: Any) -> InferAnswer:
        terms = {"user": user, **terms} if user else terms
        rows = {"x": np.array([3.0], np.float32)}
        return await self.engine.infer(InferRequest(model=model, inputs=rows, terms=terms))

    async def served(self, n: int, user: str = "", truth: int = 3, **terms: Any) -> Counter[str]:
        """Who served so many requests; the truth about each is told."""
        answers = [await self.ask(user, **terms) for _ in range(n)]
        assert await self.recorder.flush(5.0)
        given = await self.ledger.feedback([Feedback(str(one.parameters["trace_id"]), truth=truth) for one in answers])
        assert given.new == n
        return Counter(one.steps[0].extension for one in answers)

    async def learn(self) -> None:
        """Waits until the gateway knows all that there is to know."""
        store, learner = self.ledger._store, self.ledger._follower._followed["choice"]
        for _ in range(1_000):
            unheard = store.chunks_after(learner.chunk_number).chunks
            if not unheard and not store.feedback_after(learner.feedback_number).items:
                await self.choosing.hear()
                return
            await asyncio.sleep(0.01)
        raise AssertionError("nothing was learned")


def house(
    path: Path,
    scenario: Any,
    options: ChoiceOptions = ChoiceOptions(),  # noqa: B008
    work: Mapping[str, Any] = WORK,
    cards: Sequence[Card] = CARDS,
) -> None:
    async def run() -> None:
        store = JournalStore(open_database(f"sqlite:///{path}/fenix.db"))
        ledger = Ledger(store, learners=[ChoiceLearner()])
        one = House(ledger, options, work)
        one.recorder.start()
        try:
            await one.engine.follow(Catalogue.of(cards, (GOAL,)))
            await one.choosing.hear()
            await scenario(one)
        finally:
            await one.choosing.stop()
            await one.recorder.close(5.0)
            ledger.close()

    asyncio.run(run())


def test_whom_the_favourite_fails_is_served_by_the_other_and_nobody_else_is(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        for _ in range(6):
            await house.served(20, "ann")
            await house.served(20, "bob", truth=4)
            await house.learn()
        await later(house)

    async def later(house: House) -> None:
        await house.learn()
        assert (await house.served(40, "ann"))["plain@1"] >= 36
        assert (await house.served(40, "bob", truth=4))["neat@1"] >= 36

    house(tmp_path, scenario)
    house(tmp_path, later)  # after a restart of everything


def test_who_is_served_well_stays_with_the_favourite(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            await house.served(20, "bob")
            await house.learn()
        assert (await house.served(40, "bob"))["neat@1"] >= 34

    house(tmp_path, scenario, work={"neat@1": whole, "plain@1": one_more})


def test_the_journal_has_the_plans_that_were_considered_and_why_one_was_taken(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        answer = await house.ask("ann")
        assert await house.recorder.flush(5.0)
        outcome = await house.ledger.find(str(answer.parameters["trace_id"]))
        assert outcome is not None
        setting = outcome.setting
        assert len(setting.considered) >= 2
        assert sum(p for _, p in setting.considered) == pytest.approx(1.0)
        assert setting.propensity is not None
        assert 0.0 < setting.propensity <= 1.0
        assert setting.reason
        beliefs = house.choosing.beliefs(setting)
        assert set(beliefs) == {plan for plan, _ in setting.considered}
        assert all(0.5 < belief.accuracy < 1.0 for belief in beliefs.values())

    house(tmp_path, scenario)


def test_choices_that_are_alike_are_the_same_object_and_the_same_arms(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.ask("ann")
        await house.ask("bob")
        choosers = [convoy.chooser for convoy in house.engine._convoys.values()]
        assert choosers[0]._arms is choosers[1]._arms  # type: ignore[attr-defined]
        chosen = {id(choosers[0].choose(1)) for _ in range(200)}
        assert len(chosen) <= 2 * len(choosers[0]._arms)  # type: ignore[attr-defined]

    house(tmp_path, scenario)


def test_what_is_excluded_serves_nobody_whom_the_rule_concerns_also_not_as_a_stand_in(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.ledger.add_rule("exclude neat for ann")
        await house.choosing.hear_rules()
        assert (await house.served(30, "ann")) == {"plain@1": 30}
        for convoy in house.engine._convoys.values():
            for plan in (convoy.chooser.choose(1).plan, *convoy.chooser.choose(1).alternatives):
                assert all("neat@1" not in (step.extension, *step.fallbacks) for step in plan.steps)
        assert (await house.served(30, "bob"))["neat@1"] > 15

    house(tmp_path, scenario)


def test_what_is_pinned_serves_alone_until_the_rule_is_taken_back(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.ledger.add_rule("pin plain@1 at user=ann in measure")
        await house.choosing.hear_rules()
        assert (await house.served(20, "ann")) == {"plain@1": 20}
        answer = await house.ask("ann")
        assert await house.recorder.flush(5.0)
        outcome = await house.ledger.find(str(answer.parameters["trace_id"]))
        assert outcome is not None
        assert outcome.setting.reason.startswith("by rule pin plain@1")
        await house.ledger.remove_rule("pin plain@1 at user=ann in measure")
        await house.choosing.hear_rules()
        assert (await house.served(20, "ann"))["neat@1"] > 10

    house(tmp_path, scenario, work={"neat@1": whole, "plain@1": whole})


def test_what_is_pinned_is_planned_with_where_the_planner_would_not_think_of_it(tmp_path: Path) -> None:
    poor = Card("poor", "1", IN, OUT, accuracy=Accuracy(0.3, 200))
    more = [Card(f"good-{k}", "1", IN, OUT, accuracy=Accuracy(0.97, 200)) for k in range(4)]

    async def scenario(house: House) -> None:
        assert "poor@1" not in await house.served(20, "ann")
        await house.ledger.add_rule("pin poor for ann")
        await house.choosing.hear_rules()
        assert await house.served(20, "ann") == {"poor@1": 20}
        assert "poor@1" not in await house.served(20, "bob")
        await house.ledger.add_rule("exclude poor@1 for ann")  # which beats the pin
        await house.choosing.hear_rules()
        assert "poor@1" not in await house.served(20, "ann")

    cards = [*CARDS, poor, *more]
    house(tmp_path, scenario, work={card.id: whole for card in cards}, cards=cards)


def test_a_pin_that_the_terms_do_not_allow_is_without_effect(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.ledger.add_rule("pin plain for ann")
        await house.choosing.hear_rules()
        assert await house.served(10, "ann", min_accuracy=0.94) == {"neat@1": 10}
        assert await house.served(10, "ann") == {"plain@1": 10}

    house(tmp_path, scenario)


def test_what_a_restarted_ledger_does_not_know_any_more_is_forgotten_here_too(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.served(25, "ann")
        await house.learn()
        choosing = house.choosing
        assert choosing.segment_of("measure", Terms(user="ann")) == "user=ann"
        version = choosing.version
        choosing._ledger = Ledger(
            JournalStore(open_database(f"sqlite:///{tmp_path}/other.db")), learners=[ChoiceLearner()]
        )
        await choosing.hear()
        assert choosing.posteriors.all_rows() == []
        assert choosing.segment_of("measure", Terms(user="ann")) == ""
        assert choosing.version == version + 1
        choosing._ledger.close()

    house(tmp_path, scenario)


def test_where_rules_leave_nothing_the_client_hears_which(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.ledger.add_rule("exclude * for ann")
        await house.choosing.hear_rules()
        with pytest.raises(NoPlan, match=r"exclude \* for ann"):
            await house.ask("ann")
        with pytest.raises(NoPlan, match=r"exclude \* for ann"):
            await house.ask("ann", model="neat")
        assert await house.ask("bob")
        await house.ledger.remove_rule("exclude * for ann")
        await house.choosing.hear_rules()
        assert await house.ask("ann")

    house(tmp_path, scenario)


def test_a_plan_that_is_excluded_by_its_id_is_not_taken(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        favourite = (await house.ask("ann", min_accuracy=0.94)).plan.id
        await house.ledger.add_rule(f"exclude plan:{favourite}")
        await house.choosing.hear_rules()
        for _ in range(30):
            assert (await house.ask("ann")).plan.id != favourite
        with pytest.raises(NoPlan):
            await house.ask("ann", min_accuracy=0.94)

    house(tmp_path, scenario)


def test_trying_never_leaves_the_terms(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        assert (await house.served(60, "ann", min_accuracy=0.94)) == {"neat@1": 60}

    house(tmp_path, scenario)


def test_a_plan_that_fails_is_left_as_soon_as_that_is_known(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        for _ in range(6):
            for _ in range(20):
                with suppress(ExtensionRaised):
                    await house.ask("ann")
            assert await house.recorder.flush(5.0)
            await house.learn()
        assert (await house.served(20, "ann"))["plain@1"] >= 18

    house(tmp_path, scenario, work={"neat@1": broken, "plain@1": whole})


@pytest.mark.parametrize("policy", ["first", "greedy"])
def test_other_policies_serve_too(tmp_path: Path, policy: str) -> None:
    async def scenario(house: House) -> None:
        served = await house.served(40, "ann")
        assert served["neat@1"] == 40 if policy == "first" else served["neat@1"] > 30

    house(tmp_path, scenario, ChoiceOptions(policy), work={"neat@1": whole, "plain@1": whole})


@pytest.mark.parametrize("policy", ["exp3", "exp4"])
def test_policies_that_learn_from_each_result_hear_them_all_also_when_the_gateway_starts_anew(
    tmp_path: Path, policy: str
) -> None:
    async def scenario(house: House) -> None:
        for _ in range(3):
            await house.served(40, "ann")
            await house.learn()
        assert (await house.served(40, "ann"))["plain@1"] >= 30
        again = choosing_of(ChoiceOptions(policy), lambda: house.engine, house.ledger, lambda: 0.0)
        again.rng = Random(6)
        await again.hear()
        house.engine._chooser_for = again.chooser_for
        house.engine.choose_anew()
        assert (await house.served(40, "ann"))["plain@1"] >= 28

    house(tmp_path, scenario, ChoiceOptions(policy))


def test_a_controller_decides_by_its_weights(tmp_path: Path) -> None:
    from planner.choice.controller import save, untrained

    weights = tmp_path / "weights.safetensors"
    save(untrained(["neat@1", "plain@1"], [], np.random.default_rng(0)), weights)

    async def scenario(house: House) -> None:
        served = await house.served(40, "ann")
        assert served["neat@1"] > 20

    house(tmp_path, scenario, ChoiceOptions("controller", weights=str(weights)))


@pytest.mark.parametrize("written", [None, b"", b"no weights of anything"])
def test_a_gateway_whose_weights_are_gone_or_broken_serves_on_and_says_so(
    tmp_path: Path, written: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    weights = tmp_path / "weights.safetensors"
    if written is not None:
        weights.write_bytes(written)

    async def scenario(house: House) -> None:
        assert isinstance(house.choosing.policy, Thompson)
        assert sum((await house.served(40, "ann")).values()) == 40
        assert "weights.safetensors" in caplog.text
        assert "thompson policy chooses instead" in caplog.text

    house(tmp_path, scenario, ChoiceOptions("controller", weights=str(weights)))


def test_a_controller_that_was_trained_on_other_extensions_serves_too(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from planner.choice.controller import save, untrained

    weights = tmp_path / "weights.safetensors"
    save(untrained(["gone@1", "another@7"], ["user=bob"], np.random.default_rng(0)), weights)

    async def scenario(house: House) -> None:
        assert (await house.served(40, "ann"))["neat@1"] > 20  # as is predicted
        assert caplog.text == ""

    house(tmp_path, scenario, ChoiceOptions("controller", weights=str(weights)))


class Confused:
    """A policy that raises."""

    name = "confused"

    def choose(self, context: Context, arms: Sequence[Arm], rng: Random, now_s: float) -> Choice:
        raise RuntimeError("I do not know")

    def learn(self, context: Context, arm: Arm, result: Result) -> None:
        raise RuntimeError


def test_a_policy_that_raises_costs_nobody_the_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(house: House) -> None:
        house.choosing.policy = Confused()
        assert (await house.served(3)) == {"neat@1": 3}
        assert "could not choose" in caplog.text

    house(tmp_path, scenario)


class Silent:
    """A ledger that does not answer."""

    async def learned(self, name: str, question: str, *arguments: Any) -> Any:
        raise StoreUnavailable("away")

    async def rules(self) -> tuple[Any, ...]:
        raise StoreUnavailable("away")


def test_without_the_ledger_it_serves_by_what_is_predicted(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        posteriors = Posteriors()
        alone = Choosing(lambda: house.engine, Silent(), Thompson(posteriors), posteriors, Random(3))
        await alone.start()
        assert alone.alive()
        house.engine._chooser_for = alone.chooser_for
        house.engine.choose_anew()
        assert (await house.served(20))["neat@1"] > 10
        await alone.stop()
        assert not alone.alive()

    house(tmp_path, scenario)


class Odd(Silent):
    """A ledger that answers in another shape."""

    def __init__(self) -> None:
        self.asked, self.asked_often = 0, asyncio.Event()

    async def learned(self, name: str, question: str, *arguments: Any) -> Any:
        return ("an", "older", "answer")

    async def rules(self) -> tuple[Any, ...]:
        self.asked += 1
        if self.asked == 4:
            self.asked_often.set()
        return ()


def test_a_ledger_that_cannot_be_understood_ends_nothing_and_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deployments.gateway.choosing.POLL_S", 0.001)

    async def scenario(house: House) -> None:
        posteriors, ledger = Posteriors(), Odd()
        odd = Choosing(lambda: house.engine, ledger, Thompson(posteriors), posteriors, Random(3))
        await odd.start()
        async with asyncio.timeout(5.0):
            await ledger.asked_often.wait()
        assert odd.alive()
        assert caplog.text.count("no news of what serves best") == 1
        await odd.stop()

    house(tmp_path, scenario)


def test_a_result_that_the_policy_fails_at_does_not_come_again(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        await house.served(20, "ann")
        await house.learn()
        choosing = house.choosing
        (chooser,) = choosing._choosers
        (arm, *_), _ = chooser.offer
        choosing.policy = Confused()
        choosing._unheard.clear()
        choosing._unheard.extend([Heard("measure", "", arm.plan, Result(n=1)), Heard("measure", "", "p", Result(n=2))])
        choosing._taught.add(("measure", ""))
        with pytest.raises(RuntimeError):
            choosing.teach()
        assert [one.plan for one in choosing._unheard] == ["p"]

    house(tmp_path, scenario, ChoiceOptions("exp3"))


def test_choosers_that_live_on_can_be_asked_however_many_came_after_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from planner.choice.controller import save, untrained

    monkeypatch.setattr("deployments.gateway.choosing.MOST_ARMS", 2)
    weights = tmp_path / "weights.safetensors"
    save(untrained(["neat@1", "plain@1"], [], np.random.default_rng(0)), weights)

    async def scenario(house: House) -> None:
        await house.ask("ann")
        (convoy,) = house.engine._convoys.values()
        for i in range(20):  # whoever chooses among these is not kept
            plans = tuple([replace(plan, id=f"{plan.id}-{i}") for plan in convoy.plans.plans])
            house.choosing.chooser_for("measure", Terms(), replace(convoy.plans, plans=plans), lambda *_: None)
        gc.collect()
        house.choosing.policy._kept.clear()  # type: ignore[attr-defined]
        await house.ask("ann")
        assert "could not choose" not in caplog.text
        assert len(house.choosing._by_plan) < 20

    house(tmp_path, scenario, ChoiceOptions("controller", weights=str(weights)))


def test_a_version_on_trial_serves_nobody_for_whom_it_is_excluded_and_the_others_as_before(tmp_path: Path) -> None:
    versions = [Card("size", number, IN, OUT) for number in ("1", "2")]

    async def scenario(house: House) -> None:
        rollouts = GatewayRollouts(lambda: house.engine, house.choosing.chooser_for, Desk(), Random(3))
        house.engine._chooser_for = rollouts.chooser_for
        rollouts.foresee(house.engine.catalogue)
        rollouts.follow(rules(rollout(share=0.5)))
        await house.ledger.add_rule("exclude size@2 for ann")
        await house.choosing.hear_rules()
        assert await house.served(30, "ann") == {"size@1": 30}
        assert (await house.served(40))["size@2"] > 5
        await house.ledger.add_rule("exclude size@1 for bob")
        await house.choosing.hear_rules()
        with pytest.raises(NoPlan):
            await house.ask("bob")
        await rollouts.close()

    house(tmp_path, scenario, work={"size@1": whole, "size@2": whole}, cards=versions)


def test_nothing_is_tried_where_nothing_is_learned_of_it(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        rows = {"x": np.array([3.0], np.float32)}
        wanted = InferRequest(wanted=("label/size",), inputs=rows, types={"x": "number/plain"})
        served = Counter([(await house.engine.infer(wanted)).steps[0].extension for _ in range(100)])
        assert served == {"neat@1": 100}
        await house.ledger.add_rule("exclude neat")
        await house.choosing.hear_rules()
        assert (await house.engine.infer(wanted)).steps[0].extension == "plain@1"

    house(tmp_path, scenario)


def test_one_plan_needs_no_choice(tmp_path: Path) -> None:
    async def scenario(house: House) -> None:
        assert (await house.ask("ann", model="plain")).steps[0].extension == "plain@1"
        (convoy,) = house.engine._convoys.values()
        assert isinstance(convoy.chooser, FirstPlan)

    house(tmp_path, scenario)
