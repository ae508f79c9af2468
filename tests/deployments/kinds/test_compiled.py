"""The parts of a compiled graph, run in this process in the order in which the graph runs them. With Ray they run in
`tests/test_compiled_on_a_cluster.py`."""

from __future__ import annotations

import pickle
import random
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.extension import check_outputs, execute
from deployments.kinds.compiled import CompiledExtension, Given, PartActor, _givers
from deployments.kinds.fused import answer
from deployments.loading import describe, load
from planner.card_codec import card_to_dict, parse_card
from planner.cards import Card, Resources
from planner.errors import BadCard, ExtensionBroken, ExtensionRaised, FenixError
from planner.features import Array, Rows
from planner.plans import REQUEST, StepId
from planner.wiring import Group, fused_card, groups_of
from tests.deployments.fusable import WIDTH
from tests.deployments.kinds.test_fused import chain_of, random_plan, ready

HERE = "tests.deployments.fusable"


def compiled(*cards: Card) -> Group:
    (group,) = groups_of(chain_of(*cards), {card.id: card for card in cards})
    return replace(group, compiled=True)


def actors(group: Group) -> list[PartActor]:
    """The parts, started; each as it arrives in another process."""
    made = [PartActor(pickle.loads(pickle.dumps(group)), step.id, "", "") for step in group.steps]
    assert [actor.start() for actor in made] == [None] * len(made)
    return made


def run(group: Group, inputs: Mapping[str, Array]) -> dict[str, Rows]:
    """What the graph gives. Raises what a part raises."""
    made: dict[StepId, Given] = {REQUEST: {name: Rows(values) for name, values in inputs.items()}}
    for step, actor in zip(group.steps, actors(group), strict=True):
        given = pickle.loads(pickle.dumps([made[giver] for giver in _givers(step)]))
        made[step.id] = actor.run(*given)
    last = made[group.steps[-1].id]
    if isinstance(last, FenixError):
        raise last
    return check_outputs(CompiledExtension(group), answer(last), len(next(iter(inputs.values()))))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32))
def test_a_compiled_graph_answers_as_the_fused_extension_does(seed: int) -> None:
    plan, cards = random_plan(random.Random(seed))
    rng = np.random.default_rng(seed)
    for group in groups_of(plan, cards):
        inputs = {port.name: rng.normal(size=(7, WIDTH)).astype(np.float32) for port in group.inputs}
        expected = execute(ready(fused_card(group)), inputs)
        found = run(replace(group, compiled=True), inputs)
        assert list(found) == list(expected)
        for name, made in expected.items():
            assert found[name].values.tobytes() == made.values.tobytes()
            assert (found[name].confidence is None) == (made.confidence is None)
            if made.confidence is not None:
                assert found[name].confidence.tobytes() == made.confidence.tobytes()  # type: ignore[union-attr]


def test_a_compiled_graph_is_loaded_from_its_card_and_its_parts_elsewhere() -> None:
    nowhere = describe(f"{HERE}:as_is").but(source="no_such_module:as_is", resources=Resources(num_cpus=2.0))
    group = compiled(describe("tests.faulty:moody_double"), nowhere)
    made = load(parse_card(card_to_dict(fused_card(group)), "store"))
    assert isinstance(made, CompiledExtension)
    assert made.card() == fused_card(group)
    first, second = (PartActor(group, step.id, "", "") for step in group.steps)
    assert first.start() is None
    failure = second.start()
    assert isinstance(failure, BadCard)
    assert "no_such_module" in failure.message


def test_what_a_part_raises_passes_through_those_behind_it() -> None:
    group = compiled(describe("tests.faulty:moody_double").but(name="moody"), describe(f"{HERE}:as_is"))
    assert run(group, {"x": np.array([2.0], np.float32)})["y"].values.tolist() == [4.0]
    with pytest.raises(ExtensionRaised, match="moody@1 raised RuntimeError"):
        run(group, {"x": np.array([101.0], np.float32)})


def test_rows_that_do_not_fit_the_next_part_are_blamed_on_their_giver() -> None:
    group = compiled(describe(f"{HERE}:cut"), describe(f"{HERE}:total"))
    with pytest.raises(ExtensionBroken, match="cut@1 gave rows of shape"):
        run(group, {"row": np.ones((2, 6), np.float32)})


def test_an_error_holds_on_to_no_rows() -> None:
    group = compiled(describe("tests.faulty:moody_double"), describe(f"{HERE}:as_is"))
    failure = actors(group)[0].run({"x": Rows(np.array([101.0], np.float32))})
    assert isinstance(failure, ExtensionRaised)
    assert (failure.__traceback__, failure.__cause__, failure.__context__) == (None, None, None)


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_part_works_on_rows_of_its_own_in_the_same_order(order: Any) -> None:
    group = compiled(describe(f"{HERE}:Closes"), describe(f"{HERE}:Closes").but(name="last"))
    sent = np.asfortranarray(np.ones((3, WIDTH), np.float32)) if order == "F" else np.ones((3, WIDTH), np.float32)
    sure = np.full(3, 0.5, np.float32)
    made = actors(group)[1].run({"y": Rows(sent, sure)})
    assert not isinstance(made, FenixError)
    assert made["y"].values.flags.c_contiguous == (order == "C")
    assert made["y"].confidence is not None
    assert made["y"].confidence.tolist() == [0.5, 0.5, 0.5]
    assert not np.shares_memory(made["y"].values, sent)
    assert not np.shares_memory(made["y"].confidence, sure)


def test_a_part_tells_when_it_cannot_be_closed_and_when_it_was_never_loaded() -> None:
    group = compiled(describe(f"{HERE}:Closes", {"fails": True}), describe(f"{HERE}:Closes").but(name="last"))
    first, last = actors(group)
    failure = first.close()
    assert isinstance(failure, ExtensionRaised)
    assert "stuck" in failure.message
    assert last.close() is None
    unloaded = PartActor(group, StepId(0), "", "")
    assert unloaded.close() is None
    assert "is not loaded" in str(unloaded.samples(1, 0))
