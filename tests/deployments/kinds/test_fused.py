"""A fused extension answers as its parts do one after the other: bit for bit, confidences included."""

from __future__ import annotations

import asyncio
import pickle
import random
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.contract import check_contract
from deployments.extension import Extension, execute
from deployments.loading import describe, load, pin
from planner.batching import Batchers
from planner.calls import LocalCalls
from planner.card_codec import card_to_dict, parse_card
from planner.cards import Card, ExtensionId
from planner.dispatch import Dispatcher
from planner.errors import ArtifactRefused, BadCard, BadInput, ExtensionBroken, ExtensionRaised
from planner.features import Array, Port, Rows
from planner.plans import REQUEST, Binding, Plan, Prediction, Source, Step, StepId
from planner.tokens import Token
from planner.wiring import Group, fused_card, groups_of
from tests.benchmarks.workload import SOURCES, reference, rows
from tests.deployments.fusable import MIX, WIDTH

HERE = "tests.deployments.fusable"
PREDICTION = Prediction(1.0, 2.0, 0.0, 1.0)


def chain_of(*cards: Card) -> Plan:
    """A plan of one step after the other, each taking the port of the same name or the first output before it."""
    steps = []
    for i, card in enumerate(cards):
        giver = StepId(i - 1) if i else REQUEST
        given = cards[i - 1].outputs[0].name if i else card.inputs[0].name
        steps.append(Step(StepId(i), card.id, (Binding(card.inputs[0].name, (Source(giver, given),)),)))
    ends = tuple(Binding(port.name, (Source(steps[-1].id, port.name),)) for port in cards[-1].outputs)
    return Plan("chain", tuple(steps), ends, PREDICTION, 0.0)


def fused(*cards: Card) -> Card:
    (group,) = groups_of(chain_of(*cards), {card.id: card for card in cards})
    return fused_card(group)


def ready(card: Card) -> Extension:
    """The extension as a replica makes it: from the card as the catalogue stores it."""
    made = load(parse_card(card_to_dict(card), "store"))
    made.setup()
    return made


def elsewhere(made: Extension, rows: Mapping[str, Array]) -> dict[str, Rows]:
    """What a replica in another process gives."""
    outputs: dict[str, Rows] = pickle.loads(pickle.dumps(execute(made, rows)))
    return outputs


def answer(plan: Plan, cards: Mapping[ExtensionId, Card], inputs: Mapping[str, Array]) -> dict[str, Rows]:
    """What the dispatcher makes of a plan over these extensions."""
    extensions = {id_: ready(card) for id_, card in cards.items()}
    functions = {id_: partial(elsewhere, made) for id_, made in extensions.items()}

    async def run() -> dict[str, Rows]:
        dispatcher = Dispatcher(Batchers(LocalCalls(functions)), cards.get)
        token = Token(asyncio.get_running_loop().time() + 60.0)
        return dict((await dispatcher.dispatch(plan, inputs, token)).outputs)

    return asyncio.run(run())


def with_fused(plan: Plan, group: Group, card: Card) -> Plan:
    """The plan with one step in place of the group's; every extension is in it once."""
    parts = {step.extension: step for step in group.steps}
    members = {step.id: step for step in plan.steps if step.extension in parts}
    sources: dict[str, Source] = {}
    for step in members.values():
        for ours, theirs in zip(parts[step.extension].inputs, step.inputs, strict=True):
            if ours.sources[0].step == REQUEST:
                sources[ours.sources[0].port] = theirs.sources[0]
    end = max(members)
    step = Step(end, card.id, tuple(Binding(name, (source,)) for name, source in sources.items()))
    steps = [step if other.id == end else other for other in plan.steps if other.id == end or other.id not in members]
    return Plan("fused", tuple(steps), plan.outputs, PREDICTION, 0.0)


def random_plan(rng: random.Random) -> tuple[Plan, dict[ExtensionId, Card]]:
    """A plan of a few mixers and combiners over inputs of the request and each other."""
    steps: list[Step] = []
    cards: dict[ExtensionId, Card] = {}
    for i in range(rng.randint(2, 7)):

        def source(i: int = i) -> Source:
            giver = rng.choice([*range(max(0, i - 2), i)] * 3 + [REQUEST])
            return Source(StepId(giver), rng.choice("ab") if giver == REQUEST else rng.choice("yz"))

        if rng.random() < 0.2:
            card = describe(f"{HERE}:Join")
            inputs = tuple(Binding("many", (source(),)) for _ in range(rng.randint(2, 4)))
        else:
            n_inputs = rng.choice((1, 1, 1, 2))
            card = describe(f"{HERE}:Mix", {"n_inputs": n_inputs, "seed": i, "judges": rng.random() < 0.4})
            inputs = tuple(Binding(f"x{k}", (source(),)) for k in range(n_inputs))
        card = card.but(name=f"part-{i}")
        steps.append(Step(StepId(i), card.id, inputs))
        cards[card.id] = card
    used = {b.sources[0].step for step in steps for b in step.inputs}
    ends = [step.id for step in steps if step.id not in used or rng.random() < 0.1]
    outputs = tuple(Binding(f"out{end}", (Source(end, "y"),)) for end in ends)
    return Plan("p", tuple(steps), outputs, PREDICTION, 0.0), cards


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_a_plan_answers_the_same_with_any_of_its_groups_fused(seed: int) -> None:
    plan, cards = random_plan(random.Random(seed))
    rng = np.random.default_rng(seed)
    inputs = {name: rng.normal(size=(7, WIDTH)).astype(np.float32) for name in "ab"}
    expected = answer(plan, cards, inputs)
    for group in groups_of(plan, cards):
        card = fused_card(group)
        given = answer(with_fused(plan, group, card), {**cards, card.id: card}, inputs)
        for name, made in expected.items():
            assert given[name].values.tobytes() == made.values.tobytes()
            assert given[name].values.dtype == made.values.dtype
            assert (given[name].confidence is None) == (made.confidence is None)
            if made.confidence is not None:
                assert given[name].confidence.tobytes() == made.confidence.tobytes()  # type: ignore[union-attr]


def test_random_plans_have_groups_of_every_form() -> None:
    forms = set()
    for seed in range(200):
        plan, cards = random_plan(random.Random(seed))
        forms |= {(group.is_chain, len(group.steps) > 2) for group in groups_of(plan, cards)}
    assert forms == {(True, True), (True, False), (False, True), (False, False)}


def test_a_chain_of_three_answers_as_its_parts() -> None:
    card = fused(*(describe(source) for source in SOURCES))
    batch = rows(20)
    made = execute(ready(card), {"row": batch})
    np.testing.assert_array_equal(made["probs"].values, reference(batch))
    np.testing.assert_array_equal(made["label"].confidence, reference(batch).max(axis=1))


def test_a_fused_extension_holds_the_contract() -> None:
    parts = [describe(source) for source in SOURCES]
    mixed = [describe(f"{HERE}:Mix", {"seed": i, "judges": i == 0}).but(name=f"mix-{i}") for i in range(3)]
    for card in (fused(*parts), fused(*mixed)):
        check_contract(ready(card), np.random.default_rng(0)).raise_if_failed()


def test_samples_are_those_of_the_first_part() -> None:
    card = fused(*(describe(source) for source in SOURCES))
    made = ready(card).samples(3, np.random.default_rng(0))
    assert {name: values.shape for name, values in made.items()} == {"row": (3, 64)}


def test_rows_that_do_not_fit_the_next_part_are_blamed_on_their_giver() -> None:
    made = ready(fused(describe(f"{HERE}:cut"), describe(f"{HERE}:total")))
    with pytest.raises(ExtensionBroken, match="cut@1 gave rows of shape"):
        execute(made, {"row": np.ones((2, 6), np.float32)})


def test_what_the_client_sends_wrong_is_the_clients_mistake() -> None:
    made = ready(fused(describe(f"{HERE}:cut", {"to": 3}), describe(f"{HERE}:total")))
    assert execute(made, {"row": np.ones((2, 6), np.float32)})["sum"].values.tolist() == [3.0, 3.0]
    with pytest.raises(BadInput):
        execute(made, {"row": np.ones((2, 6), np.float64)})


def test_a_part_that_raises_is_named() -> None:
    made = ready(fused(describe("tests.faulty:moody_double").but(name="moody"), describe(f"{HERE}:as_is")))
    with pytest.raises(ExtensionRaised, match="moody@1 raised RuntimeError"):
        execute(made, {"x": np.array([101.0], np.float32)})


def test_closing_closes_every_part_even_when_one_raises() -> None:
    made = ready(fused(describe(f"{HERE}:Closes", {"fails": True}), describe(f"{HERE}:Closes").but(name="last")))
    with pytest.raises(OSError, match="stuck"):
        made.close()
    parts = made._parts  # type: ignore[attr-defined]
    assert [part.closed for part in parts] == [True, True]


def test_a_part_that_changed_since_is_refused() -> None:
    parts = [describe(source) for source in SOURCES]
    card = fused(parts[0], parts[1].but(outputs=(Port("row", MIX),)))
    with pytest.raises(ArtifactRefused, match="chain-hidden@1"):
        load(card)


def test_nobody_describes_a_fused_extension_by_hand() -> None:
    card = fused(*(describe(source) for source in SOURCES))
    assert pin(card.source) == card.source
    with pytest.raises(BadCard, match="put together by the cluster"):
        describe(card.source, card.options)


@pytest.mark.parametrize("wiring", [None, [], [[["row", 0, "row"]]], [[["row", -1]]], [[["no", -1, "x"]]], [[]]])
def test_options_that_do_not_fit_are_explained(wiring: object) -> None:
    card = describe(SOURCES[0])
    plain = {"parts": [card_to_dict(card)], "wiring": wiring}
    with pytest.raises(BadCard, match="fused"):
        load(card.but(kind="fused", source="fused:chain-scale@1", options=plain))
