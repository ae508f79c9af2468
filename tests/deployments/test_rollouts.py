"""The rollouts' logic without Ray; the actor around it is tried on a cluster."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deployments.rollouts import Rollouts, Shown, shares_of
from deployments.rollouts_actor import RolloutsActor, RolloutsClient, RulesFollower, stored_rules
from deployments.truths import Answers
from lineage.feedback import Feedback
from lineage.journal import Joined, Page
from lineage.outcomes import Kept, Outcome, Setting
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.errors import BadRequest, ClusterDown, Conflict, FenixError, NotFound, StoreUnavailable
from planner.rollout.latencies import Latencies
from planner.rollout.records import Observation, Pairs, RolloutPlan, RolloutStep
from planner.rollout.store import Changed, MemoryRolloutStore, SqlRolloutStore
from planner.rollout.traffic import Rules
from tests.lineage.outcomes import chunk, trace
from tests.planner.doubles import card

PLAN = RolloutPlan(steps=(RolloutStep(0.0, 1.0, min_outcomes=10, min_s=1.0), RolloutStep(0.5, min_s=1.0)))

EASY = replace(PLAN, require_truth=False, error_margin=0.1, careful_share=0.5)  # 100 that agree are enough


def digits(version: str, **more: Any) -> Card:
    return card("digits").but(version=version, **more)


class ShakyStore(MemoryRolloutStore):
    """A store that fails while it `is_down`."""

    is_down = False

    def __init__(self) -> None:
        super().__init__()
        self.goes_on = threading.Event()  # while it is not set, writing takes for ever
        self.goes_on.set()

    def write(self, changed: Changed) -> None:
        self.goes_on.wait(10.0)
        if self.is_down:
            raise StoreUnavailable("disk full")
        super().write(changed)


class House:
    """Rollouts over a store, with a catalogue and a clock to be changed."""

    def __init__(self, *cards: Card, store: ShakyStore | None = None, store_s: float = 10.0) -> None:
        self.store_s = store_s
        self.store = store or ShakyStore()
        self.catalogue = Catalogue.of(cards or (digits("1"), digits("2"), card("b")))
        self.now_s = 1_000.0
        self.rollouts = self.anew()

    def anew(self, name: str = "first") -> Rollouts:
        """After a restart."""
        return Rollouts(self.store, lambda: self.catalogue, lambda: self.now_s, name, self.store_s)


def drive(scenario: Callable[[House], Coroutine[Any, Any, None]], house: House | None = None) -> None:
    async def run() -> None:
        await scenario(house or House())

    asyncio.run(run())


def pairs(n: int, agreed: int, served: bool = False) -> Pairs:
    """So many of which so many agree, all of which take between 1 and 2 ms."""
    took = Latencies.of(np.linspace(1.0, 2.0, n))
    return Pairs(n=n, n_compared=n, n_agreed=agreed, latencies=took, champion_latencies=took, served=served)


async def id_of(rollouts: Rollouts) -> str:
    (shown,) = await rollouts.status()
    return shown.rollout.id


def test_a_rollout_is_stored_before_it_is_shown_and_survives_a_restart() -> None:
    async def scenario(house: House) -> None:
        shown = await house.rollouts.start("digits", "2", PLAN)
        assert (shown.rollout.champion, shown.rollout.stage, shown.followed) == ("1", "shadow", True)
        assert shares_of(shown) == {"1": 1.0, "2": 0.0}
        rules = await house.rollouts.since("", 0, 0.0)
        assert rules.traffic["digits"].challenger == "2"
        later = await house.anew("second").since("first", rules.version, 0.0)
        assert (later.keeper, later.traffic) == ("second", rules.traffic)

    drive(scenario)


def test_a_command_that_cannot_be_stored_changes_nothing() -> None:
    async def scenario(house: House) -> None:
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await house.rollouts.start("digits", "2", PLAN)
        assert await house.rollouts.status() == ()
        assert not (await house.rollouts.since("", 0, 0.0)).traffic

    drive(scenario)


def test_only_a_deployed_version_with_the_same_ports_can_be_tried() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        with pytest.raises(NotFound, match="not deployed"):
            await rollouts.start("digits", "9")
        with pytest.raises(NotFound, match="no extension 'digit'"):
            await rollouts.start("digit", "1")
        with pytest.raises(BadRequest, match="only version"):
            await rollouts.start("b", "1")
        with pytest.raises(BadRequest, match="several versions"):
            await rollouts.start("digits", "3")
        with pytest.raises(BadRequest, match="other inputs"):
            await rollouts.start("digits", "4", champion="1")
        await rollouts.start("digits", "3", champion="2")
        with pytest.raises(Conflict, match="has a rollout already"):
            await rollouts.start("digits", "1")
        assert await rollouts.status() != ()

    others = card("digits", ("x", "z")).but(version="4")
    drive(scenario, House(digits("1"), digits("2"), digits("3"), others, card("b")))


def test_harm_is_rolled_back_and_the_evidence_is_kept() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        version = (await rollouts.since("", 0, 0.0)).version
        await rollouts.report("g", 0, [(await id_of(rollouts), pairs(200, 60))])
        await rollouts.act()
        shown, past, _ = await rollouts.show("digits")
        assert (shown.rollout.stage, shown.rollout.champion, past) == ("rolled_back", "1", ())
        assert "agrees" in shown.rollout.history[-1].reason
        rules = await rollouts.since("first", version, 0.0)
        assert rules.version > version
        assert rules.traffic["digits"].split is None
        # Nothing of the past counts once a new one starts.
        house.now_s += 1.0
        await rollouts.start("digits", "2", PLAN)
        assert len((await rollouts.show("digits"))[1]) == 1

    drive(scenario)


def test_a_good_version_goes_step_by_step_to_the_promotion_and_back_by_one_command() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", EASY)
        id_ = await id_of(rollouts)
        stages = []
        for k in range(40):
            await rollouts.report("g", k, [(id_, pairs(100, 100, served=k > 0))])
            house.now_s += 10.0
            await rollouts.act()
            stages.append((await rollouts.status())[0].rollout.stage)
        assert list(dict.fromkeys(stages)) == ["canary", "champion"]
        (shown,) = await rollouts.status()
        assert (shown.rollout.champion, shown.warm) == ("2", ("1",))
        shown = await rollouts.roll_back("digits", by="me")
        assert (shown.rollout.champion, shown.rollout.history[-1].by) == ("1", "me")

    drive(scenario)


def test_a_report_that_comes_again_counts_once_even_after_a_restart() -> None:
    async def scenario(house: House) -> None:
        await house.rollouts.start("digits", "2", PLAN)
        id_ = await id_of(house.rollouts)
        await house.rollouts.report("g", 0, [(id_, pairs(5, 5))])
        after = house.anew("second")
        await after.report("g", 0, [(id_, pairs(5, 5))])
        await after.report("g", 1, [(id_, pairs(2, 2)), ("another", pairs(9, 9))])
        await after.report("other", 0, [(id_, pairs(1, 1))])
        assert (await after.status())[0].rollout.n_in_step == 8

    drive(scenario)


def test_a_report_that_cannot_be_stored_may_come_again() -> None:
    async def scenario(house: House) -> None:
        await house.rollouts.start("digits", "2", PLAN)
        id_ = await id_of(house.rollouts)
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await house.rollouts.report("g", 0, [(id_, pairs(5, 5))])
        house.store.is_down = False
        await house.rollouts.report("g", 0, [(id_, pairs(5, 5))])
        assert (await house.rollouts.status())[0].rollout.n_in_step == 5

    drive(scenario)


def test_harm_is_rolled_back_while_the_store_is_down_and_stored_when_it_is_back() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        await rollouts.report("g", 0, [(await id_of(rollouts), pairs(200, 60))])
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await rollouts.act()
        assert (await rollouts.status())[0].rollout.stage == "rolled_back"
        assert house.store.load().rollouts["digits"].stage == "shadow"
        house.store.is_down = False
        await rollouts.act()
        assert house.store.load().rollouts["digits"].stage == "rolled_back"

    drive(scenario)


def test_harm_that_is_reported_while_the_store_is_down_is_rolled_back_and_counts_once() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        id_ = await id_of(rollouts)
        house.store.is_down = True
        for _ in range(3):
            with pytest.raises(StoreUnavailable):
                await rollouts.report("g", 0, [(id_, pairs(200, 60))])
        with pytest.raises(StoreUnavailable):
            await rollouts.act()
        assert (await rollouts.status())[0].rollout.stage == "rolled_back"
        house.store.is_down = False
        await rollouts.report("g", 0, [(id_, pairs(200, 60))])
        await rollouts.act()
        stored = house.store.load().rollouts["digits"]
        assert (stored.stage, stored.n_in_step) == ("rolled_back", 200)

    drive(scenario)


def test_only_what_is_durable_leads_to_more_traffic() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", EASY)
        id_ = await id_of(rollouts)
        house.now_s += 10.0
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await rollouts.report("g", 0, [(id_, pairs(100, 100))])
        house.store.is_down = False
        await rollouts.act()
        assert (await rollouts.status())[0].rollout.stage == "shadow"
        await rollouts.report("g", 0, [(id_, pairs(100, 100))])
        await rollouts.act()
        assert (await rollouts.status())[0].rollout.stage == "canary"

    drive(scenario)


def test_one_that_cannot_go_on_keeps_no_other_from_being_rolled_back() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("b", "2", EASY)
        await rollouts.start("digits", "2", PLAN)
        ids = {shown.rollout.extension: shown.rollout.id for shown in await rollouts.status()}
        await rollouts.report("g", 0, [(ids["b"], pairs(100, 100)), (ids["digits"], pairs(200, 60))])
        house.now_s += 10.0
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await rollouts.act()
        assert [shown.rollout.stage for shown in await rollouts.status()] == ["shadow", "rolled_back"]

    drive(scenario, House(digits("1"), digits("2"), card("b"), card("b").but(version="2")))


def test_a_rollback_that_is_stored_late_undoes_no_command_and_stands_in_the_history() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        first = await id_of(rollouts)
        await rollouts.report("g", 0, [(first, pairs(200, 60))])
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await rollouts.act()
        house.store.is_down = False
        house.now_s += 1.0
        await rollouts.start("digits", "2", PLAN)
        await rollouts.act()
        assert house.store.load().rollouts["digits"].stage == "shadow"
        assert {one.id: one.stage for one in house.store.past("digits")}[first] == "rolled_back"

    drive(scenario)


def test_a_store_that_hangs_keeps_nobody_waiting_and_its_write_counts_once_it_ends() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        id_ = await id_of(rollouts)
        house.store.goes_on.clear()
        try:
            async with asyncio.timeout(8.0):
                with pytest.raises(StoreUnavailable, match="too long"):
                    await rollouts.report("g", 0, [(id_, pairs(5, 5))])
                with pytest.raises(StoreUnavailable, match="too long"):
                    await rollouts.pause("digits")
                with pytest.raises(StoreUnavailable, match="too long"):
                    await rollouts.report("other", 0, [(id_, pairs(200, 60))])
                with pytest.raises(StoreUnavailable, match="too long"):
                    await rollouts.act()
        finally:
            house.store.goes_on.set()
        assert (await rollouts.status())[0].rollout.stage == "rolled_back"
        assert rollouts._write_begun is not None
        await rollouts._write_begun.task
        await rollouts.report("g", 0, [(id_, pairs(5, 5))])
        await rollouts.act()
        assert house.store.load().rollouts["digits"].stage == "rolled_back"
        assert house.store.load().reports == {"g": 0}
        assert (await rollouts.status())[0].rollout.stage == "rolled_back"

    drive(scenario, House(store_s=0.5))


def test_a_report_that_was_stored_late_counts_once() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        id_ = await id_of(rollouts)
        house.store.goes_on.clear()
        with pytest.raises(StoreUnavailable, match="too long"):
            await rollouts.report("g", 0, [(id_, pairs(5, 5))])
        house.store.goes_on.set()
        assert rollouts._write_begun is not None
        await rollouts._write_begun.task
        await rollouts.report("other", 0, [(id_, pairs(2, 2))])
        assert house.store.load().rollouts["digits"].n_in_step == 7
        await rollouts.report("g", 0, [(id_, pairs(5, 5))])
        assert (await rollouts.status())[0].rollout.n_in_step == 7
        assert house.store.load().rollouts["digits"].n_in_step == 7

    drive(scenario, House(store_s=0.5))


def test_any_version_can_be_made_to_serve_by_hand_and_gone_back_from() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        with pytest.raises(NotFound, match="no rollout yet"):
            await rollouts.roll_back("digits")
        with pytest.raises(NotFound, match="no extension"):
            await rollouts.promote("digit")
        shown = await rollouts.roll_back("digits", "2", by="me")
        assert (shown.rollout.champion, shown.rollout.former) == ("2", ("1",))
        assert (await rollouts.promote("digits", "1")).rollout.champion == "1"
        assert (await rollouts.roll_back("digits")).rollout.champion == "2"
        with pytest.raises(Conflict, match="serves all requests already"):
            await rollouts.promote("digits", "2")
        house.catalogue = Catalogue.of([digits("2")])
        with pytest.raises(Conflict, match="not deployed any more"):
            await rollouts.roll_back("digits", "1")

    drive(scenario)


def test_who_serves_cannot_be_removed_alone_and_who_is_tried_can() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        with pytest.raises(Conflict, match="version 1 of digits serves"):
            await rollouts.leave([ExtensionId("digits@1")])
        await rollouts.leave([ExtensionId("digits@2"), ExtensionId("b@1")])
        (shown,) = await rollouts.status()
        assert (shown.rollout.stage, shown.rollout.champion) == ("aborted", "1")
        await rollouts.promote("digits", "2")
        with pytest.raises(Conflict) as refused:
            await rollouts.leave([ExtensionId("digits@2")])
        assert "rollback digits --to 1" in refused.value.hint
        await rollouts.leave([ExtensionId("digits@1"), ExtensionId("digits@2")])
        assert await rollouts.status() == ()

    drive(scenario)


def test_who_is_held_is_let_go_by_its_rollout_or_released() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.hold([ExtensionId("digits@2"), ExtensionId("b@1")])
        assert (await house.anew("second").since("", 0, 0.0)).held == {"digits@2", "b@1"}
        await rollouts.release([ExtensionId("b@1")])
        await rollouts.start("digits", "2", PLAN)
        assert (await rollouts.since("", 0, 0.0)).held == frozenset()

    drive(scenario)


def test_a_command_returns_when_those_who_follow_have_followed() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        rules = await rollouts.since("", 0, 0.0)
        seen = []

        async def follow() -> None:
            now = rules
            while True:
                now = await rollouts.since(now.keeper, now.version, 5.0, "gateway")
                seen.append(now.traffic["digits"].champion)

        following = asyncio.create_task(follow())
        await asyncio.sleep(0)
        shown: Shown = await rollouts.promote("digits", "2")
        assert (shown.followed, seen) == (True, ["2"])
        following.cancel()
        shown = await rollouts.promote("digits", "1")
        assert not shown.followed
        await asyncio.gather(following, return_exceptions=True)

    drive(scenario)


def outcome(seq: int, label: int, version: str, considered: tuple[tuple[str, float], ...] = ()) -> Outcome:
    setting = Setting("digits", steps=((0, f"digits@{version}"),), considered=considered)
    return Outcome(trace(seq), setting, 1_001.0, 1.0, 1, None, (), Kept({"digit": np.array([label])}), None)


def test_truths_count_for_both_versions_where_both_answered_and_once() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        id_ = await id_of(rollouts)
        await rollouts.report("g", 0, [(id_, pairs(3, 1))], [(id_, chunk(1, [7, 8, 9]))])
        drawn = (("a", 0.5), ("b", 0.5))
        told = [
            (outcome(1, 7, "1"), 7),  # both right
            (outcome(2, 7, "1"), 8),  # the other one alone
            (outcome(3, 7, "1"), 7),  # the champion alone
            (outcome(4, 7, "1"), 7),  # nobody else answered it
            (outcome(5, 7, "2"), 7),  # somebody asked for that version
            (outcome(6, 7, "2", drawn), 6),
            (outcome(7, 7, "3"), 7),  # is not about this
        ]
        items = tuple(Joined(one, Feedback(one.trace_id, truth=truth), 1_002.0) for one, truth in told)
        await rollouts.told(Page(items, 70))
        await rollouts.told(Page(items, 70))
        await rollouts.told(Page(items[:2], 80))
        accuracy = (await rollouts.status())[0].rollout.evidence.accuracy
        assert (accuracy.champion.n, accuracy.challenger.n) == (4, 4)
        assert (accuracy.champion.k, accuracy.challenger.k) == (1, 2)
        assert house.anew("second").feedback == 80

    drive(scenario)


def test_truths_that_could_not_be_stored_count_when_they_come_again() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        await rollouts.report("g", 0, [], [(await id_of(rollouts), chunk(1, [7]))])
        one = outcome(1, 7, "1")
        page = Page((Joined(one, Feedback(one.trace_id, truth=7), 1_002.0),), 70)
        house.store.is_down = True
        with pytest.raises(StoreUnavailable):
            await rollouts.told(page)
        house.store.is_down = False
        await rollouts.told(page)
        assert (await rollouts.status())[0].rollout.evidence.accuracy.champion.n == 1

    drive(scenario)


def test_many_truths_leave_others_their_turn() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", PLAN)
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        outcomes = [outcome(seq, 7, "1") for seq in range(1_000)]
        items = tuple(Joined(one, Feedback(one.trace_id, truth=7), 1_002.0) for one in outcomes)
        await rollouts._judged(Page(items, 2_000))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert turns >= 10

    drive(scenario)


def test_answers_are_found_until_the_oldest_go_or_their_rollout_ends() -> None:
    answers = Answers(most=4)
    answers.add("a", chunk(1, [7, 8]))
    answers.add("b", chunk(1, [5, 6]))
    found = answers.find("a", trace(2))
    assert found is not None
    assert found.outputs.full["digit"].tolist() == [8]
    assert answers.find("a", trace(3)) is None
    answers.add("a", chunk(3, [9]))
    assert answers.find("a", trace(2)) is None
    assert answers.find("a", trace(3)) is not None
    assert answers.find("b", trace(2)) is not None
    answers.forget("b")
    assert answers.find("b", trace(2)) is None
    assert answers.find("a", trace(3)) is not None


def test_whoever_follows_the_rules_goes_on_after_any_error() -> None:
    class Desk(RolloutsClient):
        def __init__(self) -> None:
            self.n = 0

        async def since(self, keeper: str, version: int, wait_s: float, follower: str = "") -> Rules:
            self.n += 1
            if self.n == 1:
                raise StoreUnavailable("away")
            if self.n == 3:
                raise RuntimeError("torn")
            await asyncio.sleep(0.001)
            return Rules("keeper", self.n)

    async def run() -> None:
        taken: list[int] = []
        follower = RulesFollower(Desk(), lambda rules: taken.append(rules.version))
        await follower.start()
        async with asyncio.timeout(5.0):
            while len(taken) < 3:
                assert follower.alive()
                await asyncio.sleep(0.001)
        await follower.stop()
        assert taken[:2] == [2, 4]

    asyncio.run(run())


def test_observations_of_one_version_alone_count_too() -> None:
    async def scenario(house: House) -> None:
        rollouts = house.rollouts
        await rollouts.start("digits", "2", replace(PLAN, steps=(RolloutStep(0.5),)))
        seen = [Observation("1", 10, 1), Observation("2", 10, 9)]
        await rollouts.report("g", 0, [(await id_of(rollouts), one) for one in seen])
        (shown,) = await rollouts.status()
        errors = next(one for one in shown.decision.findings if one.test == "errors")
        assert (errors.n_champion, errors.n_challenger) == (10, 10)
        assert (errors.champion, errors.challenger) == (0.1, 0.9)

    drive(scenario)


class LossyDesk(RolloutsClient):
    """Asks these rollouts, and loses the first replies of those that change something."""

    def __init__(self, rollouts: Rollouts, n_lost: int = 1) -> None:
        super().__init__(timeout_s=5.0)
        self._rollouts = rollouts
        self._n_lost = n_lost

    async def _once(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
        reply = await getattr(self._rollouts, method)(*arguments)
        if method not in ("show", "status") and self._n_lost > 0:
            self._n_lost -= 1
            raise ClusterDown("the reply is lost")
        return reply


def test_a_command_whose_reply_was_lost_is_done_once_and_answered() -> None:
    async def scenario(house: House) -> None:
        shown = await LossyDesk(house.rollouts).start("digits", "2", PLAN, by="ann")
        assert (shown.rollout.challenger, len(shown.rollout.history)) == ("2", 1)
        shown = await LossyDesk(house.rollouts).pause("digits", by="ann")
        assert shown.rollout.paused
        shown = await LossyDesk(house.rollouts).promote("digits", by="ann")
        assert shown.rollout.champion == "2"
        shown = await LossyDesk(house.rollouts).roll_back("digits", by="ann")
        assert (shown.rollout.champion, shown.rollout.history[-1].action) == ("1", "roll_back")

    drive(scenario)


def test_a_reply_that_was_lost_does_not_make_another_ones_command_mine() -> None:
    async def scenario(house: House) -> None:
        await house.rollouts.start("digits", "2", PLAN, by="bob")
        with pytest.raises(Conflict, match="has a rollout already"):
            await LossyDesk(house.rollouts, 0).start("digits", "2", PLAN, by="bob")

        class Deaf(LossyDesk):
            async def _once(self, method: str, arguments: tuple[Any, ...], timeout_s: float) -> Any:
                if self._n_lost:
                    self._n_lost -= 1
                    raise ClusterDown("not even asked")
                return await super()._once(method, arguments, timeout_s)

        with pytest.raises(Conflict, match="has a rollout already"):
            await Deaf(house.rollouts).start("digits", "2", PLAN, by="ann")

    drive(scenario)


def test_who_finds_nobody_to_tell_the_rules_goes_by_those_that_are_stored(tmp_path: Path) -> None:
    async def run() -> None:
        url = f"sqlite:///{tmp_path}/fenix.db"
        store = SqlRolloutStore(url)
        catalogue = Catalogue.of((digits("1"), digits("2")))
        rollouts = Rollouts(store, lambda: catalogue, lambda: 1_000.0)
        await rollouts.start("digits", "2", PLAN)
        await rollouts.hold([ExtensionId("b@1")], 0.0)
        store.close()

        class Away(RolloutsClient):
            async def since(self, keeper: str, version: int, wait_s: float, follower: str = "") -> Rules:
                raise ClusterDown("away")

        taken: list[Rules] = []
        follower = RulesFollower(Away(), taken.append, lambda: stored_rules(url))
        await follower.start(within_s=0.2)
        assert follower.alive()
        await follower.stop()
        (rules,) = taken
        assert (rules.traffic["digits"].champion, rules.traffic["digits"].challenger) == ("1", "2")
        assert rules.held == {"b@1"}

        without = RulesFollower(Away(), taken.append, lambda: stored_rules(f"sqlite:///{tmp_path}/fenix.db/under.db"))
        await without.start(within_s=0.2)
        await without.stop()
        assert len(taken) == 1

    asyncio.run(run())


def test_a_defect_is_told_as_one_so_that_nobody_tries_for_ever() -> None:
    async def run() -> None:
        actor = object.__new__(RolloutsActor)

        async def opened() -> Any:
            class Broken:
                async def report(self) -> None:
                    raise KeyError("x")

            return Broken()

        actor._opened = opened  # type: ignore[method-assign]
        reply = await actor.call("report", ())
        assert isinstance(reply, FenixError)
        assert not isinstance(reply, StoreUnavailable)
        assert "KeyError" in reply.message

    asyncio.run(run())
