"""Which steps of a plan make a group, and the card that a group gets."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from planner.card_codec import card_to_dict, parse_card
from planner.cards import Accuracy, Card, ChainRule, ExtensionId, LatencyProfile, Resources
from planner.catalogue import Catalogue
from planner.errors import BadCard, NoPlan, TermsUnmet
from planner.features import Feature, Port
from planner.plan import plan
from planner.plans import REQUEST, Guard, Plan, Step
from planner.progress import needs
from planner.wiring import MOST_PARTS, Group, fused_card, groups_of, owns, parse_group
from tests.planner.doubles import bind, card, plan_of, step
from tests.planner.worlds import card as world_card
from tests.planner.worlds import wish, worlds

ABC = {c.id: c for c in (card("a"), card("b"), card("c"), card("d"))}


def named(groups: tuple[Group, ...]) -> list[str]:
    return [" ".join(c.name for c in group.cards) for group in groups]


def group_of(*names: str, **changes: Any) -> Group:
    """A chain of these; `changes` are made to the card of that name."""
    cards = {id_: c.but(**changes.get(c.name, {})) for id_, c in ABC.items()}
    (group,) = groups_of(plan_of(*(step(i, name) for i, name in enumerate(names))), cards)
    return group


def diamond() -> tuple[Step, ...]:
    """a and b on the request, c on both, d on c."""
    x = bind("x", (REQUEST, "x"))
    joined = (bind("x", (0, "y")), bind("x", (1, "y")))
    return step(0, "a", x), step(1, "b", x), step(2, "c", *joined), step(3, "d", bind("x", (2, "y")))


COMBINER = {**ABC, ExtensionId("c@1"): ABC[ExtensionId("c@1")].but(inputs=(Port("x", Feature("number"), many=3),))}


def test_a_chain_is_one_group() -> None:
    assert named(groups_of(plan_of(step(0, "a"), step(1, "b"), step(2, "c")), ABC)) == ["a b c"]


def test_branches_with_a_combiner_are_one_group() -> None:
    (group,) = groups_of(plan_of(*diamond()), COMBINER)
    assert [c.name for c in group.cards] == ["a", "b", "c", "d"]
    assert not group.is_chain
    assert [port.name for port in group.inputs] == ["x"]


def test_a_step_whose_rows_are_part_of_the_answer_ends_its_group() -> None:
    steps = [step(0, "a"), step(1, "b"), step(2, "c")]
    answer = Plan("p", tuple(steps), (bind("y", (2, "y")), bind("z", (1, "y"))), plan_of(*steps).prediction, 0.0)
    assert named(groups_of(answer, ABC)) == ["a b"]


def test_a_guarded_step_and_its_judge_are_not_put_together() -> None:
    steps = (step(0, "a"), step(1, "b"), step(2, "c", guard=Guard(step(1, "b").id, 0.5)))
    assert named(groups_of(plan_of(*steps, output=bind("y", (1, "y"), (2, "y"))), ABC)) == ["a b"]


def test_a_step_that_chooses_among_stages_belongs_to_no_group() -> None:
    steps = (step(0, "a"), step(1, "b"), step(2, "c", bind("x", (0, "y"), (1, "y"))), step(3, "d"))
    assert named(groups_of(plan_of(*steps), ABC)) == []


@pytest.mark.parametrize(
    "change",
    [{"kind": "remote"}, {"kind": "human"}, {"kind": "fused"}, {"site": "north"}, {"resources": Resources(num_gpus=1)}],
)
def test_what_works_elsewhere_or_needs_other_hardware_stays_alone(change: dict[str, Any]) -> None:
    cards = {**ABC, ExtensionId("b@1"): ABC[ExtensionId("b@1")].but(**change)}
    assert named(groups_of(plan_of(*(step(i, name) for i, name in enumerate("abcd"))), cards)) == ["c d"]


def test_branches_that_do_not_begin_with_the_request_are_fused_as_far_as_they_are_a_chain() -> None:
    remote = {**COMBINER, ExtensionId("a@1"): ABC[ExtensionId("a@1")].but(kind="remote")}
    assert named(groups_of(plan_of(*diamond()), remote)) == []
    longer = {**remote, ExtensionId("e@1"): card("e")}
    assert named(groups_of(plan_of(*diamond(), step(4, "e")), longer)) == ["d e"]


def test_a_long_chain_is_cut() -> None:
    names = [f"e{i}" for i in range(MOST_PARTS + 3)]
    cards = {c.id: c for c in map(card, names)}
    groups = groups_of(plan_of(*(step(i, name) for i, name in enumerate(names))), cards)
    assert [len(group.cards) for group in groups] == [3, MOST_PARTS]


@given(worlds(with_terms=False))
def test_groups_are_disjoint_have_one_way_out_and_can_stand_where_they_were(world: Any) -> None:
    request, catalogue = world
    try:
        best = plan(request, catalogue).best
    except (NoPlan, TermsUnmet):
        assume(False)
    groups = groups_of(best, catalogue.cards)
    ids = [c.id for group in groups for c in group.cards]
    by_extension = {s.extension: s for s in best.steps}
    assume(len(by_extension) == len(best.steps))
    assert len(ids) == len(set(ids))
    for group in groups:
        inside = {by_extension[c.id].id for c in group.cards}
        end = by_extension[group.cards[-1].id].id
        for other in best.steps:
            if other.id not in inside:
                assert needs(other) & inside <= {end}
        assert {s.step for b in best.outputs for s in b.sources} & inside <= {end}
        outside = {b for c in group.cards for b in needs(by_extension[c.id]) - inside}
        assert group.is_chain or outside == {REQUEST}
        fused = fused_card(group)
        assert parse_group(fused.options, fused.id).steps == group.steps
        assert parse_card(json.loads(json.dumps(card_to_dict(fused))), "store") == fused


def test_the_same_parts_have_the_same_id_in_whatever_plan() -> None:
    x = bind("x", (REQUEST, "x"))
    turned = (step(0, "b", x), step(1, "a", x), step(2, "c", bind("x", (1, "y")), bind("x", (0, "y"))), step(3, "d"))
    (one,), (other,) = groups_of(plan_of(*diamond()), COMBINER), groups_of(plan_of(*turned), COMBINER)
    assert fused_card(one) == fused_card(other)
    swapped = (step(0, "a", x), step(1, "b", x), step(2, "c", bind("x", (1, "y")), bind("x", (0, "y"))), step(3, "d"))
    (third,) = groups_of(plan_of(*swapped), COMBINER)
    assert fused_card(third).id != fused_card(one).id


def test_what_is_measured_of_a_part_does_not_change_the_id() -> None:
    measured = group_of("a", "b", a={"accuracy": Accuracy(0.9, 100), "cost": 2.0})
    assert fused_card(measured).identity == fused_card(group_of("a", "b")).identity
    other = group_of("a", "b", a={"options": {"depth": 3}})
    assert fused_card(other).id != fused_card(group_of("a", "b")).id


def test_the_card_adds_up_its_parts() -> None:
    made = fused_card(
        group_of(
            "a",
            "b",
            "c",
            a={
                "cost": 0.5,
                "accuracy": Accuracy(0.9, 400),
                "may_see": frozenset({"pii", "medical"}),
                "after": ChainRule(allow=("z",)),
                "resources": Resources(num_cpus=2, memory_mib=100, max_batch_rows=32),
            },
            b={"cost": 0.25, "accuracy": Accuracy(0.8, 100), "may_see": frozenset({"pii"}), "cache": "user"},
            c={
                "deterministic": False,
                "cache": "tags",
                "confidence_threshold": 0.7,
                "resources": Resources(num_cpus=1, memory_mib=50, max_replicas=3, placement="remote"),
            },
        )
    )
    assert (made.cost, made.may_see, made.cache, made.deterministic) == (0.75, frozenset({"pii"}), "user", False)
    assert made.accuracy.mean == pytest.approx(0.72)
    assert (made.accuracy.n_rows, made.confidence_threshold, made.after) == (0, 0.7, ChainRule(allow=("z",)))
    assert made.resources == Resources(2, 0, 150, 1, 3, 32, "remote")
    assert made.description == "a@1, then b@1, then c@1, in one deployment."
    assert made.source == "fused:a@1+b@1+c@1"


def test_branches_may_follow_nothing_but_the_request() -> None:
    (group,) = groups_of(plan_of(*diamond()), COMBINER)
    assert not fused_card(group).after.permits("anything", "1")


def test_one_input_for_several_parts_suits_them_all() -> None:
    broad, narrow = Feature("image", "FP32", (-1, 8)), Feature("image/digit", "FP32", (8, -1))
    cards = {
        **COMBINER,
        ExtensionId("a@1"): Card("a", "1", (Port("x", broad),), ABC[ExtensionId("a@1")].outputs),
        ExtensionId("b@1"): Card("b", "1", (Port("x", narrow),), ABC[ExtensionId("b@1")].outputs),
    }
    (group,) = groups_of(plan_of(*diamond()), cards)
    assert group.inputs == (Port("x", Feature("image/digit", "FP32", (8, 8))),)


def test_the_planner_takes_the_fused_extension_because_it_is_faster_and_promises_the_same() -> None:
    cards = [
        world_card(name, takes, gives, p50_ms=1.5, accuracy=0.9, cost=0.1)
        for name, takes, gives in (("scale", "a", "b"), ("hide", "b", "c"), ("tell", "c", "d"))
    ]
    before = plan(wish("a", "d"), Catalogue.of(cards)).best
    (group,) = groups_of(before, {c.id: c for c in cards})
    fused = fused_card(group)
    after = plan(wish("a", "d"), Catalogue.of([*cards, fused])).best
    assert after.extensions() == (fused.id,)
    assert after.prediction.p50_ms < before.prediction.p50_ms
    assert after.prediction.accuracy == pytest.approx(before.prediction.accuracy)
    assert after.prediction.cost == pytest.approx(before.prediction.cost)
    slower = fused.but(profile=LatencyProfile(5.0))
    assert plan(wish("a", "d"), Catalogue.of([*cards, slower])).best.extensions() == before.extensions()


def owning(**resources: Any) -> dict[ExtensionId, Card]:
    """The cards, each with a core of its own, or what is said by name."""
    return {
        c.id: c.but(resources=resources.get(c.name, Resources(num_cpus=1.0, max_batch_rows=64))) for c in ABC.values()
    }


THREE = plan_of(step(0, "a"), step(1, "b"), step(2, "c"))


def test_parts_that_own_their_cores_or_a_gpu_keep_them_where_that_is_wanted() -> None:
    cards = owning(b=Resources(num_gpus=0.5, memory_mib=64, max_batch_rows=32))
    (group,) = groups_of(THREE, cards, compiled=True)
    assert group.compiled
    made = fused_card(group)
    assert made.resources == Resources(max_batch_rows=32, placement="remote")
    assert made.description == "a@1, then b@1, then c@1, as one compiled graph."
    assert [part["resources"]["num_cpus"] for part in made.options["parts"]] == [1.0, 0.0, 1.0]
    assert [part.resources for part in parse_group(made.options, "x").cards] == [c.resources for c in group.cards]


def test_nothing_is_compiled_unless_that_is_wanted_and_every_part_owns_something() -> None:
    (plain,) = groups_of(THREE, owning())
    (shared,) = groups_of(THREE, owning(b=Resources(num_cpus=0.5)), compiled=True)
    assert not plain.compiled
    assert not shared.compiled
    assert "compiled" not in fused_card(plain).options
    assert "resources" not in fused_card(plain).options["parts"][0]
    assert fused_card(plain).resources.num_cpus == 1.0


def test_a_compiled_graph_may_have_parts_on_the_cpu_and_on_different_gpus() -> None:
    cards = owning(b=Resources(num_gpus=1.0), c=Resources(num_gpus=2.0))
    assert named(groups_of(THREE, cards)) == []
    assert named(groups_of(THREE, cards, compiled=True)) == ["a b c"]
    cards = owning(a=Resources(), c=Resources(num_gpus=1.0))  # a belongs to no compiled graph, and c to no other
    assert named(groups_of(THREE, cards, compiled=True)) == ["b c"]


def test_the_same_parts_compiled_are_another_extension() -> None:
    (plain,), (compiled,) = groups_of(THREE, owning()), groups_of(THREE, owning(), compiled=True)
    assert fused_card(plain).id != fused_card(compiled).id
    (more,) = groups_of(THREE, owning(b=Resources(num_cpus=2.0)), compiled=True)
    assert fused_card(more).id != fused_card(compiled).id


@given(worlds(with_terms=False), st.randoms(use_true_random=False))
def test_a_group_is_compiled_if_all_its_parts_own_something_and_needs_the_same_gpus_if_not(
    world: Any, rng: random.Random
) -> None:
    request, catalogue = world
    try:
        best = plan(request, catalogue).best
    except (NoPlan, TermsUnmet):
        assume(False)
    kinds = (Resources(), Resources(num_cpus=1.0), Resources(num_gpus=0.5))
    cards = {id_: c.but(resources=rng.choice(kinds)) for id_, c in catalogue.cards.items()}
    groups = groups_of(best, cards, compiled=True)
    ids = [c.id for group in groups for c in group.cards]
    assert len(ids) == len(set(ids))
    for group in groups:
        assert group.compiled == all(owns(c.resources) for c in group.cards)
        assert group.compiled or len({c.resources.num_gpus for c in group.cards}) == 1
        fused = fused_card(group)
        again = parse_group(json.loads(json.dumps(fused.options)), fused.id)
        assert (again.steps, again.compiled) == (group.steps, group.compiled)
        if group.compiled:
            assert [c.resources for c in again.cards] == [c.resources for c in group.cards]


@pytest.mark.parametrize(
    ("change", "told"), [({"compiled": "yes"}, "true or false"), ({"compiled": True}, "no part takes what part 0")]
)
def test_options_that_no_graph_can_be_compiled_from_are_explained(change: dict[str, Any], told: str) -> None:
    (group,) = groups_of(THREE, owning(), compiled=True)
    plain = fused_card(group).options
    wiring = [plain["wiring"][0], [["x", REQUEST, "x"]], plain["wiring"][2]]
    with pytest.raises(BadCard, match=told):
        parse_group({**plain, "wiring": wiring, **change}, "x")
