"""When chains are fused and when fused extensions are retired, with a clock that the tests turn."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from planner.cards import Card, ChainRule, ExtensionId, LatencyProfile, Resources
from planner.catalogue import Catalogue, Change
from planner.features import Feature, Port
from planner.fusion import Fuse, Fusion, Retire, Rules, RunCounter, Use
from planner.plans import REQUEST, Plan
from planner.wiring import fused_card, groups_of
from tests.planner.doubles import bind, card, plan_of, step

RULES = Rules(min_per_s=5.0, window_s=60.0, unused_s=600.0, rest_s=900.0)
TICK_S = 5.0
CHAIN = plan_of(step(0, "a"), step(1, "b"), step(2, "c"), id_="chain")
PARTS = tuple(card(name).but(profile=LatencyProfile(1.5)) for name in "abcd")
CATALOGUE = Catalogue.of(PARTS)
(GROUP,) = groups_of(CHAIN, CATALOGUE.cards)
FUSED = fused_card(GROUP)
FUSED_PLAN = Plan("one", (replace(step(0, "a"), extension=FUSED.id),), CHAIN.outputs, CHAIN.prediction, 0.0)


def put(catalogue: Catalogue, *cards: Card) -> Catalogue:
    return catalogue.apply(Change(catalogue.epoch + 1, cards))


def without(catalogue: Catalogue, id_: str) -> Catalogue:
    return catalogue.apply(Change(catalogue.epoch + 1, removed_cards=(ExtensionId(id_),)))


class World:
    """A steward's mind, a catalogue that does what it says, and a clock."""

    def __init__(self, catalogue: Catalogue = CATALOGUE, rules: Rules = RULES) -> None:
        self.catalogue = catalogue
        self.now_s = 1_000.0
        self.fusion = Fusion(rules, self.now_s)
        self.done: list[Fuse | Retire] = []

    def tick(self, *uses: Use) -> Fuse | Retire | None:
        self.now_s += TICK_S
        self.fusion.told(uses, self.now_s)
        decision = self.fusion.decide(self.catalogue, self.now_s)
        if isinstance(decision, Fuse):
            self.catalogue = put(self.catalogue, decision.card)
        elif decision is not None:
            self.catalogue = without(self.catalogue, decision.extension)
        if decision is not None:
            self.done.append(decision)
        return decision

    def run(self, for_s: float, plan: Plan = CHAIN, per_s: float = 10.0, **more: Any) -> list[Fuse | Retire]:
        """The same load for a while; what was decided."""
        before = len(self.done)
        for _ in range(round(for_s / TICK_S)):
            self.tick(Use(plan, round(per_s * TICK_S), **more))
        return self.done[before:]

    def serve(self, for_s: float, per_s: float = 10.0) -> list[Fuse | Retire]:
        """Load that goes to the fused extension while there is one, as planning would have it."""
        before = len(self.done)
        for _ in range(round(for_s / TICK_S)):
            plan = FUSED_PLAN if FUSED.id in self.catalogue.cards else CHAIN
            self.tick(Use(plan, round(per_s * TICK_S)))
        return self.done[before:]


def test_a_chain_that_runs_all_the_time_is_fused_after_a_window_and_not_before() -> None:
    world = World()
    assert world.run(55.0) == []
    (decision,) = world.run(10.0)
    assert isinstance(decision, Fuse)
    assert decision.card == FUSED
    assert decision.parts == ("a@1", "b@1", "c@1")
    assert "44% of 4.5 ms saved" in decision.why


def test_what_is_fused_is_left_alone_while_it_is_used() -> None:
    assert [type(decision) for decision in World().serve(7_200.0)] == [Fuse]


def test_a_burst_is_no_reason_to_fuse() -> None:
    world = World()
    world.run(60.0, per_s=0.1)
    assert world.run(5.0, per_s=1_000.0) == []
    assert world.run(120.0, per_s=0.1) == []


def test_a_chain_that_runs_seldom_is_not_fused() -> None:
    assert World().run(600.0, per_s=4.0) == []


def test_gateways_and_plans_with_the_same_chain_count_together() -> None:
    world = World()
    other = replace(CHAIN, id="other")
    for _ in range(13):
        world.tick(Use(CHAIN, 10), Use(CHAIN, 10), Use(other, 10))
    assert [type(decision) for decision in world.done] == [Fuse]


def test_a_chain_that_runs_in_the_gateway_is_not_fused() -> None:
    inline = frozenset({PARTS[0].id, PARTS[1].id})
    assert World().run(300.0, inline=inline) == []
    assert len(World().run(65.0, inline=frozenset({PARTS[1].id}))) == 1


def test_hops_that_are_a_small_part_of_the_time_are_not_saved() -> None:
    slow = Catalogue.of(part.but(profile=LatencyProfile(40.0)) for part in PARTS)
    assert World(slow).run(300.0) == []


def test_ways_that_turn_out_to_be_long_are_saved() -> None:
    slow = Catalogue.of(part.but(profile=LatencyProfile(40.0)) for part in PARTS)
    (decision,) = World(slow).run(65.0, run_ms=dict.fromkeys([part.id for part in PARTS], 10.0))
    assert "50% of 120.0 ms saved" in decision.why
    assert World(slow).run(65.0, run_ms=dict.fromkeys([part.id for part in PARTS], 39.0)) == []


def test_branches_that_run_at_the_same_time_are_not_fused_when_one_after_the_other_takes_longer() -> None:
    x = bind("x", (REQUEST, "x"))
    last = step(3, "d", bind("x", (0, "y")), bind("x", (1, "y")), bind("x", (2, "y")))
    fan = plan_of(step(0, "a", x), step(1, "b", x), step(2, "c", x), last)
    joined = PARTS[3].but(inputs=(Port("x", Feature("number"), many=3),))
    for inside_ms, decided in ((9.0, 0), (0.5, 1)):
        cards = [part.but(profile=LatencyProfile(10.0)) for part in (*PARTS[:3], joined)]
        run_ms = dict.fromkeys([card.id for card in cards], inside_ms)
        assert len(World(Catalogue.of(cards)).run(65.0, fan, run_ms=run_ms)) == decided


def test_no_more_are_fused_than_allowed() -> None:
    world = World(rules=replace(RULES, most=0))
    assert world.run(300.0) == []


def test_what_could_not_be_deployed_is_left_alone_for_a_while() -> None:
    world = World()
    world.run(65.0)
    world.catalogue = without(world.catalogue, FUSED.id)
    world.fusion.failed(FUSED.id, world.now_s)
    assert world.run(RULES.rest_s - 2 * TICK_S) == []
    assert [type(decision) for decision in world.run(3 * TICK_S)] == [Fuse]


def test_a_fused_extension_that_nobody_uses_is_retired_and_comes_back_when_its_chain_is_hot_again() -> None:
    world = World()
    world.serve(120.0)
    assert world.serve(RULES.unused_s - TICK_S, per_s=0.2) == []
    (decision,) = world.serve(70.0, per_s=0.2)
    assert isinstance(decision, Retire)
    assert "hardly used" in decision.why
    assert [type(decision) for decision in world.serve(600.0)] == [Fuse]


def test_a_fused_extension_whose_parts_are_used_instead_is_retired_and_rests() -> None:
    world = World()
    decisions = world.run(600.0)
    assert [type(decision) for decision in decisions] == [Fuse, Retire]
    assert decisions[1].why == "its parts are used instead"
    assert world.run(200.0) == []


def test_a_newer_version_of_a_part_retires_it_and_the_old_chain_may_earn_it_again() -> None:
    world = World()
    world.serve(120.0)
    world.catalogue = put(world.catalogue, PARTS[1].but(version="2"))
    (decision,) = world.serve(TICK_S)
    assert isinstance(decision, Retire)
    assert decision.why == "b@2 is newer than b@1"
    assert decision.parts == ("a@1", "b@1", "c@1")
    again = world.serve(300.0)  # planning goes on with the old version: it is fused again, once
    assert [type(decision) for decision in again] == [Fuse]


def test_a_part_that_is_gone_retires_it() -> None:
    world = World()
    world.serve(120.0)
    world.catalogue = without(world.catalogue, "c@1")
    (decision,) = world.run(TICK_S, FUSED_PLAN)
    assert isinstance(decision, Retire)
    assert decision.why == "c@1 is gone"


def test_a_part_that_may_see_less_now_retires_it_and_a_new_measurement_does_not() -> None:
    world = World()
    world.serve(120.0)
    world.catalogue = put(world.catalogue, PARTS[0].but(profile=LatencyProfile(3.0, n_calls=99)))
    assert world.serve(60.0) == []
    world.catalogue = put(world.catalogue, PARTS[0].but(may_see=frozenset({"pii"})))
    (decision,) = world.serve(TICK_S)
    assert isinstance(decision, Retire)
    assert decision.why == "a part of it has changed"


def test_a_chain_does_not_slip_past_an_extension_that_refuses_to_follow_its_last_part() -> None:
    shy = PARTS[3].but(after=ChainRule(deny=("c",)))
    assert World(put(CATALOGUE, shy)).run(300.0) == []
    world = World()
    world.serve(120.0)
    world.catalogue = put(world.catalogue, shy)
    assert [type(decision) for decision in world.serve(TICK_S)] == [Retire]


def test_a_steward_that_begins_anew_knows_what_is_fused() -> None:
    world = World(put(CATALOGUE, FUSED))
    assert world.serve(600.0) == []
    world.catalogue = without(world.catalogue, "a@1")
    assert [type(decision) for decision in world.serve(TICK_S)] == [Retire]


def test_options_that_cannot_be_read_retire_a_fused_extension() -> None:
    world = World(put(CATALOGUE, FUSED.but(options={})))
    assert isinstance(world.tick(), Retire)


def test_what_is_known_of_usage_is_bounded() -> None:
    world = World()
    for i in range(3_000):
        world.fusion.told([Use(replace(CHAIN, id=str(i)), 1)], world.now_s)
    assert len(world.fusion._plans) <= 1_000
    world.now_s += 2 * RULES.window_s
    world.fusion.told([], world.now_s)
    assert world.fusion._plans == {}


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from((0.0, 0.3, 1.0, 4.0, 6.0, 20.0)), min_size=1, max_size=15), st.booleans())
def test_whatever_the_load_nothing_flaps(loads: list[float], obeyed: bool) -> None:
    world = World()
    times: list[tuple[float, type]] = []
    for per_s in loads:
        for _ in range(24):  # two minutes of each
            plan = FUSED_PLAN if obeyed and FUSED.id in world.catalogue.cards else CHAIN
            decision = world.tick(Use(plan, round(per_s * TICK_S)))
            if decision is not None:
                times.append((world.now_s, type(decision)))
    kinds = [kind for _, kind in times]
    assert kinds == [Fuse if i % 2 == 0 else Retire for i in range(len(kinds))]
    for (began_s, kind), (ended_s, _) in pairwise(times):
        assert ended_s - began_s >= (2 * RULES.window_s if kind is Fuse else RULES.window_s / 2)


def test_a_gateway_tells_what_concerns_fusion_and_begins_anew() -> None:
    counter = RunCounter()
    alone = plan_of(step(0, "d"), id_="alone")
    for plan in (CHAIN, CHAIN, alone, FUSED_PLAN):
        counter.ran(plan)
    inline = frozenset({PARTS[0].id})
    took = {PARTS[1].id: 0.25}
    uses = counter.take(inline, frozenset({FUSED.id}), took.get)
    assert uses == [Use(CHAIN, 2, inline, took), Use(FUSED_PLAN, 1)]
    assert counter.take(inline, frozenset(), took.get) == []
    counter.ran(CHAIN)
    assert counter.take(frozenset(part.id for part in PARTS[:2]), frozenset(), took.get) == []


OWNING = tuple(part.but(resources=Resources(num_cpus=1.0)) for part in PARTS)
COMPILING = replace(RULES, compiled=True)


def compiled_flags(world: World) -> list[bool]:
    """Of what is fused in the world."""
    return ["compiled" in c.options for c in world.catalogue.cards.values() if c.kind == "fused"]


def test_a_chain_whose_parts_own_their_cores_becomes_a_compiled_graph_where_that_is_wanted() -> None:
    for rules, cards, compiled in ((COMPILING, OWNING, True), (COMPILING, PARTS, False), (RULES, OWNING, False)):
        world = World(Catalogue.of(cards), rules)
        assert [type(decision) for decision in world.run(65.0)] == [Fuse]
        assert compiled_flags(world) == [compiled]


def test_turning_compiled_graphs_on_or_off_replaces_what_is_there() -> None:
    for before, after in ((RULES, COMPILING), (COMPILING, RULES)):
        world = World(Catalogue.of(OWNING), before)
        world.run(65.0)
        turned = World(world.catalogue, after)
        retire, fuse = turned.run(95.0)
        assert isinstance(retire, Retire)
        assert "compiled graph" in retire.why
        assert isinstance(fuse, Fuse)
        assert compiled_flags(turned) == [after.compiled]


def test_a_part_with_other_resources_retires_its_compiled_graph() -> None:
    world = World(Catalogue.of(OWNING), COMPILING)
    world.run(65.0)
    world.catalogue = put(world.catalogue, OWNING[1].but(resources=Resources(num_cpus=2.0)))
    decision = world.tick()
    assert isinstance(decision, Retire)
    assert decision.why == "a part of it has changed"


def test_branches_become_a_compiled_graph_because_they_still_run_at_the_same_time() -> None:
    x = bind("x", (REQUEST, "x"))
    fan = plan_of(step(0, "a", x), step(1, "b", x), step(2, "d", bind("x", (0, "y")), bind("x", (1, "y"))))
    joined = OWNING[3].but(inputs=(Port("x", Feature("number"), many=3),))
    cards = Catalogue.of(card.but(profile=LatencyProfile(10.0)) for card in (*OWNING[:2], joined))
    run_ms = dict.fromkeys(cards.cards, 5.0)
    assert World(cards, RULES).run(65.0, fan, run_ms=run_ms) == []
    (decision,) = World(cards, COMPILING).run(65.0, fan, run_ms=run_ms)
    assert "23% of 20.0 ms saved" in decision.why


def test_what_was_put_together_by_hand_is_left_alone() -> None:
    by_hand = fused_card(replace(GROUP, compiled=True)).but(name="by-hand")
    assert World(put(CATALOGUE, by_hand)).run(RULES.unused_s + 200.0, per_s=1.0) == []
    world = World(put(CATALOGUE, by_hand), replace(RULES, most=1))
    assert len(world.run(65.0)) == 1  # and it counts for nothing
