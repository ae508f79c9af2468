"""Cards and goals survive plain data, and what is wrong in a file is found by its path."""

from __future__ import annotations

import json
import re
import string
from typing import Any

import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from planner.card_codec import card_to_dict, goal_to_dict, parse_card, parse_card_fields, parse_goal
from planner.cards import (
    KINDS,
    PLACEMENTS,
    SHARINGS,
    Accuracy,
    Card,
    ChainRule,
    Evidence,
    LatencyProfile,
    Resources,
    Threshold,
)
from planner.errors import BadCard
from planner.features import DATATYPES, Feature, Port
from planner.goals import Goal, Objective, Terms

PORT = {"type": "image/digit", "datatype": "FP32", "shape": [8, 8]}


def test_ports_are_written_as_a_list_or_by_name() -> None:
    card = {"name": "a", "version": "1"}
    listed = {"inputs": [{"name": "image", **PORT}], "outputs": [{"name": "digit", "type": "label/digit"}]}
    by_name = {"inputs": {"image": PORT}, "outputs": {"digit": {"type": "label/digit"}}}
    assert parse_card(card | by_name, "c") == parse_card(card | listed, "c")


@pytest.mark.parametrize(
    ("inputs", "says"),
    [
        ("image", r"c: inputs: 'image' is not a list of ports. Write for example \[\{name: image, type: "),
        ({"image": "image/digit"}, r"c: inputs.image: 'image/digit' is not a port. Write for example \["),
        ({"image": {**PORT, "name": "img"}}, r"c: inputs.image: a port 'image' is named 'img'"),
        ({"image": {"typ": "x"}}, r"c: inputs.image: there is no field 'typ'"),
        ({1: PORT}, r"c: inputs: the key 1 is not a text"),
    ],
)
def test_ports_that_are_written_wrong_show_how_they_look(inputs: object, says: str) -> None:
    with pytest.raises(BadCard) as caught:
        parse_card({"name": "a", "inputs": inputs, "outputs": [{"name": "y", "type": "y"}]}, "c")
    assert re.match(says, caught.value.text())


words = st.text(string.ascii_lowercase, min_size=1, max_size=8)
shares = st.floats(0.0, 1.0)
amounts = st.floats(0.0, 1e9)
texts = st.text(max_size=20)
features = st.builds(
    Feature,
    type=st.lists(words, min_size=1, max_size=3).map("/".join),
    datatype=st.sampled_from(sorted(DATATYPES)),
    shape=st.lists(st.integers(1, 99) | st.just(-1), max_size=3).map(tuple),
)
ports = st.lists(
    st.builds(Port, name=words, feature=features, many=st.integers(1, 4)),
    min_size=1,
    max_size=3,
    unique_by=lambda port: port.name,
).map(tuple)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
cards = st.builds(
    Card,
    name=words,
    version=words,
    inputs=ports,
    outputs=ports,
    description=texts,
    examples=st.lists(texts, max_size=2).map(tuple),
    kind=st.sampled_from(KINDS),
    source=texts,
    options=st.dictionaries(texts, json_values, max_size=3),
    cost=amounts,
    profile=st.builds(LatencyProfile, amounts, amounts, amounts, st.floats(1.0, 9.0), st.integers(0, 9)),
    accuracy=st.builds(Accuracy, shares, st.integers(0, 999)),
    confidence_threshold=st.none() | shares,
    thresholds=st.lists(st.builds(Threshold, shares, shares, shares), max_size=2).map(tuple),
    evidence=st.none() | st.builds(Evidence, words, st.integers(0, 9), st.binary(max_size=9), st.binary(max_size=9)),
    may_see=st.none() | st.frozensets(words, max_size=2),
    site=words,
    after=st.builds(ChainRule, st.lists(words, max_size=2).map(tuple), st.lists(words, max_size=2).map(tuple)),
    replaces=st.lists(words, max_size=2).map(tuple),
    deterministic=st.booleans(),
    cache=st.sampled_from(SHARINGS),
    resources=st.builds(
        Resources,
        num_cpus=amounts,
        memory_mib=st.integers(0, 99),
        max_replicas=st.integers(1, 9),
        placement=st.sampled_from(PLACEMENTS),
    ),
)
goals = st.builds(
    Goal,
    name=words,
    inputs=ports,
    outputs=ports,
    description=texts,
    terms=st.builds(
        Terms,
        deadline_ms=st.none() | st.floats(1.0, 1e6),
        max_cost=st.none() | amounts,
        min_accuracy=st.none() | shares,
        priority=st.integers(0, 9),
        tags=st.frozensets(words, max_size=3),
        partial=st.booleans(),
        min_confidence=st.none() | shares,
    ),
    objective=st.builds(Objective, amounts, amounts, amounts),
    validation=texts,
)


@given(cards)
def test_every_card_survives_json(card: Card) -> None:
    assert parse_card(json.loads(json.dumps(card_to_dict(card))), "store") == card


@given(goals)
def test_every_goal_survives_json(goal: Goal) -> None:
    assert parse_goal(json.loads(json.dumps(goal_to_dict(goal))), "store") == goal


def plain_card(**changes: Any) -> dict[str, Any]:
    return {
        "name": "read-digit",
        "version": "1",
        "inputs": [{"name": "image", "type": "image/digit", "shape": [8, 8]}],
        "outputs": [{"name": "digit", "type": "label/digit", "datatype": "INT64"}],
        **changes,
    }


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


def test_a_card_reads_from_yaml_with_the_defaults_of_the_record() -> None:
    text = """
    name: read-digit
    version: "1"
    inputs: [{name: image, type: image/digit, datatype: FP32, shape: [8, 8]}]
    outputs: [{name: digit, type: label/digit, datatype: INT64}]
    resources: {num_cpus: 1}
    """
    card = parse_card(yaml.safe_load(text), "cards.yaml")
    assert card == Card(
        "read-digit",
        "1",
        (Port("image", Feature("image/digit", "FP32", (8, 8))),),
        (Port("digit", Feature("label/digit", "INT64")),),
        resources=Resources(num_cpus=1.0),
    )


def test_a_card_that_was_stored_before_it_said_who_may_share_results_and_where_it_may_run_reads_as_usual() -> None:
    plain = card_to_dict(parse_card(plain_card(), "x"))
    del plain["cache"], plain["resources"]["placement"]
    card = parse_card(plain, "store")
    assert (card.cache, card.resources.placement) == ("shared", "auto")


def test_a_bare_off_in_yaml_turns_the_cache_off() -> None:
    assert parse_card(plain_card(cache=yaml.safe_load("off")), "x").cache == "off"


def test_who_may_share_results_and_placement_are_checked_in_code_too() -> None:
    with pytest.raises(BadCard, match="card 'read-digit': cache 'tag' is unknown") as caught:
        parse_card(plain_card(), "x").but(cache="tag")
    assert "tags" in caught.value.hint
    with pytest.raises(BadCard, match="placement 'outside' is unknown") as caught:
        Resources(placement="outside")  # type: ignore[arg-type]
    assert caught.value.hint == "There are: auto, inline, remote."


def test_evidence_survives_as_base64() -> None:
    evidence = Evidence.of("abc", np.array([True, False, True]), np.array([0.5, 0.25, 1.0]))
    card = parse_card(plain_card(), "x").but(evidence=evidence)
    plain = card_to_dict(card)
    assert isinstance(plain["evidence"]["correct"], str)
    back = parse_card(plain, "x").evidence
    assert back is not None
    assert back.correct_rows().tolist() == [True, False, True]


@pytest.mark.parametrize(
    ("given", "place", "hint"),
    [
        ([], "cards.yaml: [] where", ""),
        (plain_card(desciption="x"), "cards.yaml: there is no field 'desciption'", "Nearest: description"),
        (plain_card(version=1), "cards.yaml: version: 1 is not a text", "quotes"),
        (plain_card(cost="free"), "cards.yaml: cost: 'free' is not a finite number", ""),
        (plain_card(cost=float("nan")), "cards.yaml: cost: nan is not", ""),
        (plain_card(cost=True), "cards.yaml: cost: True is not", ""),
        (plain_card(deterministic="yes"), "cards.yaml: deterministic: 'yes' is not true or false", ""),
        (plain_card(kind="torhc"), "cards.yaml: kind: 'torhc' is unknown", "Nearest: torch"),
        (plain_card(cache="users"), "cards.yaml: cache: 'users' is unknown", "Nearest: user"),
        (plain_card(cache="none"), "cards.yaml: cache: 'none' is unknown", "There are: off, shared, tags, user"),
        (plain_card(cache=True), "cards.yaml: cache: True is unknown", ""),
        (
            plain_card(resources={"placement": "inlin"}),
            "cards.yaml: resources.placement: 'inlin' is",
            "Nearest: inline",
        ),
        (plain_card(examples="read it"), "cards.yaml: examples: 'read it' is not a list", "brackets"),
        (plain_card(outputs=[{"name": "a", "type": "b", "shape": "8"}]), "cards.yaml: outputs[0].shape: '8'", ""),
        (plain_card(outputs=[{"name": "a", "type": "b", "shape": [0]}]), "cards.yaml: outputs[0]: shape [0]", ""),
        (plain_card(outputs=[{"name": "a", "type": "b", "datatype": "FP3"}]), "outputs[0]: 'FP3'", "FP32"),
        (plain_card(inputs=[{"name": "a", "tpye": "b"}]), "inputs[0]: there is no field 'tpye'", "Nearest: type"),
        (plain_card(inputs=[{"name": "a"}]), "inputs[0]: 'type' is missing", "A port needs name, type"),
        (plain_card(inputs=[]), "needs at least one input", ""),
        (plain_card(resources={"num_cpu": 1}), "resources: there is no field 'num_cpu'", "num_cpus"),
        (plain_card(profile={"p99_ratio": 0.5}), "profile: p99_ratio", ""),
        (plain_card(thresholds=[{"confidence": 0.5}]), "thresholds[0]: 'coverage' is missing", ""),
        (plain_card(evidence={"dataset": "d", "n_rows": 1, "correct": "%"}), "evidence.correct: '%'", ""),
        (plain_card(options={"a": [object()]}), "options.a[0]: <object", ""),
        (plain_card(options={"a": nested(1000)}), "options are nested more than 32 deep", ""),
        (plain_card(cost=10**400), "cost: 1000", ""),
        (plain_card(options=[1]), "options: [1] where", ""),
        (plain_card(options={1: 2}), "options: the key 1 is not a text", "quotes"),
        ({"name": "x", "version": "1"}, "cards.yaml: 'inputs' is missing", "A card needs name, version"),
    ],
)
def test_a_wrong_card_is_refused_with_place_and_way_out(given: Any, place: str, hint: str) -> None:
    with pytest.raises(BadCard) as caught:
        parse_card(given, "cards.yaml")
    assert place in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize(
    ("terms", "said"),
    [({"dedline_ms": 5}, "terms: unknown term 'dedline_ms'"), ({"priority": 11}, "terms: priority"), (3, "terms: 3")],
)
def test_wrong_terms_in_a_goal_are_found_by_their_path(terms: Any, said: str) -> None:
    port = {"name": "a", "type": "b"}
    with pytest.raises(BadCard) as caught:
        parse_goal({"name": "g", "inputs": [port], "outputs": [port], "terms": terms}, "goals.yaml")
    assert f"goals.yaml: {said}" in caught.value.message


def test_an_operator_may_give_some_fields_only() -> None:
    changes = parse_card_fields({"cost": 2, "resources": {"max_replicas": 3}}, "here")
    assert parse_card(plain_card(), "x").but(**changes).resources.max_replicas == 3
    with pytest.raises(BadCard, match="there is no field 'costs'"):
        parse_card_fields({"costs": 2}, "here")


def error_of(given: Any) -> BadCard | None:
    try:
        parse_card(given, "fuzz")
    except BadCard as error:
        return error
    return None


@given(json_values)
def test_any_json_gives_a_card_or_a_bad_card_that_says_where(given: Any) -> None:
    for value in (given, plain_card(inputs=given), plain_card(after=given), plain_card(evidence=given)):
        error = error_of(value)
        assert error is None or error.message.startswith("fuzz: ")
