from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from deployments.gateway.engine import Engine
from deployments.gateway.messages import InferAnswer, InferRequest
from planner.calls import LocalCalls
from planner.cards import Accuracy, Card, ExtensionId, LatencyProfile
from planner.catalogue import Catalogue
from planner.choosing import Chosen, PlansWithout
from planner.errors import BadInput, BadRequest, BadTerms, FenixError, NoPlan, NotFound, StepFailed, TermsUnmet, Unsure
from planner.features import Array, Feature, Port, Rows
from planner.goals import Goal, Terms
from planner.intent import Encoder, TfidfEncoder
from planner.plans import Answer, PlanSet

NUMBER, DOUBLE = Feature("number/plain", "FP32"), Feature("number/double", "FP32")
TEXT, WORDS = Feature("text", "BYTES"), Feature("count/words", "INT64")


def one(name: str, takes: Feature, gives: Feature, port: str, out: str, version: str = "1", **more: Any) -> Card:
    return Card(name, version, (Port(port, takes),), (Port(out, gives),), **more)


CARDS = (
    one("exact", NUMBER, DOUBLE, "x", "y", cost=3.0, accuracy=Accuracy(0.99, 100), profile=LatencyProfile(5.0)),
    one("rough", NUMBER, DOUBLE, "x", "y", cost=0.1, accuracy=Accuracy(0.90, 100), profile=LatencyProfile(1.0)),
    one("words", TEXT, WORDS, "text", "n"),
    one("words", TEXT, WORDS, "text", "n", version="2"),
)
GOALS = (
    Goal("double", (Port("x", NUMBER),), (Port("y", DOUBLE),), description="Double a number."),
    Goal(
        "count",
        (Port("text", TEXT),),
        (Port("n", WORDS),),
        description="Count the words of a text.",
        terms=Terms(deadline_ms=5000.0),
    ),
)


def doubling(by: float, sure: float) -> Any:
    def work(rows: dict[str, Array]) -> Mapping[str, Rows]:
        x = rows["x"]
        return {"y": Rows(x * np.float32(by), np.full(len(x), sure, np.float32))}

    return work


def counting(rows: dict[str, Array]) -> Mapping[str, Rows]:
    return {"n": Rows(np.array([len(text.split()) for text in rows["text"]], np.int64))}


WORK = {"exact@1": doubling(2.0, 0.75), "rough@1": doubling(2.125, 0.5), "words@1": counting, "words@2": counting}


def infer(**request: Any) -> InferAnswer:
    async def scenario() -> InferAnswer:
        engine = Engine(LocalCalls({ExtensionId(id_): work for id_, work in WORK.items()}))
        await engine.follow(Catalogue.of(CARDS, GOALS))
        return await engine.infer(InferRequest(**request))

    return asyncio.run(scenario())


X = {"x": np.array([1, 2], np.float32)}
A_TEXT = {"text": np.array([b"one two three"], dtype=object)}


def test_a_goal_is_reached_by_name_with_the_plan_that_suits_the_terms() -> None:
    cheap = infer(model="double", inputs=X, terms={"max_cost": 1.0})
    exact = infer(model="double", inputs=X, terms={"min_accuracy": 0.95})
    assert cheap.outputs["y"].values.tolist() == [2.125, 4.25]
    assert exact.outputs["y"].values.tolist() == [2.0, 4.0]
    assert exact.parameters["plan"] != cheap.parameters["plan"]


def test_the_answer_says_plan_trace_confidence_and_flags() -> None:
    answer = infer(model="double", inputs=X, id="mine", terms={"min_accuracy": 0.95})
    assert (answer.id, answer.model, answer.version) == ("mine", "double", "1")
    assert answer.parameters["confidence"] == 0.75
    assert answer.parameters["flags"] == ""
    assert len(str(answer.parameters["trace_id"])) == 32
    assert [record.extension for record in answer.steps] == ["exact@1"]


def test_an_extension_is_reached_by_name_and_version() -> None:
    assert infer(model="rough", inputs=X).version == "1"
    assert infer(model="words@2", inputs=A_TEXT).version == "2"
    assert infer(model="words", version="2", inputs=A_TEXT).outputs["n"].values.tolist() == [3]
    with pytest.raises(NotFound, match="several versions"):
        infer(model="words", inputs=A_TEXT)


def test_a_goal_is_reached_by_a_sentence_and_an_unclear_one_is_asked_back() -> None:
    assert infer(sentence="count the words in this text", inputs=A_TEXT).model == "count"
    with pytest.raises(Unsure) as error:
        infer(sentence="what is the weather like", inputs=A_TEXT)
    assert error.value.nearest


def test_wanted_types_need_no_goal_and_inputs_are_typed_by_name_or_by_what_they_state() -> None:
    exact = {"min_accuracy": 0.95}
    assert infer(wanted=("number/double",), inputs=X, terms=exact).outputs["double"].values.tolist() == [2.0, 4.0]
    named = {"anything": X["x"]}
    stated = infer(wanted=("number/double",), inputs=named, types={"anything": "number/plain"}, terms=exact)
    assert stated.outputs["double"].values.tolist() == [2.0, 4.0]
    with pytest.raises(BadInput, match="no known feature"):
        infer(wanted=("number/double",), inputs=named)
    with pytest.raises(NoPlan, match="nothing produces `number/tripled`"):
        infer(wanted=("number/tripled",), inputs=X)


def test_outputs_are_chosen_by_name_and_confidence_can_be_a_tensor() -> None:
    answer = infer(model="exact", inputs=X, outputs=("y.confidence", "y"))
    assert list(answer.outputs) == ["y.confidence", "y"]
    assert answer.outputs["y.confidence"].values.tolist() == [0.75, 0.75]
    with pytest.raises(BadRequest, match="no output 'z'"):
        infer(model="exact", inputs=X, outputs=("z",))
    with pytest.raises(BadRequest, match="without a confidence"):
        infer(model="words@1", inputs=A_TEXT, outputs=("n.confidence",))


@pytest.mark.parametrize(
    ("request_", "error", "why"),
    [
        ({"model": "dubble", "inputs": X}, NotFound, "no goal or extension 'dubble'"),
        ({"model": "double", "version": "9", "inputs": X}, NotFound, "has version 1"),
        ({"model": "double", "inputs": {"z": X["x"]}}, BadInput, "no input 'z'"),
        ({"model": "double", "inputs": {}}, BadInput, "no inputs"),
        ({"model": "double", "inputs": {"x": np.ones(2)}}, BadInput, "datatype FP64"),
        ({"model": "double", "inputs": {"x": np.ones((2, 2), np.float32)}}, BadInput, r"shape \[2, 2\]"),
        ({"model": "double", "inputs": {"x": np.ones(0, np.float32)}}, BadInput, "no rows"),
        ({"model": "double", "inputs": X, "terms": {"dedline_ms": 1}}, BadTerms, "dedline_ms"),
        ({"model": "double", "inputs": X, "terms": {"min_confidence": 2}}, BadTerms, "min_confidence is from 0 to 1"),
        ({"model": "double", "inputs": X, "terms": {"partial": "yes"}}, BadTerms, "partial is true or false"),
        ({"model": "double", "inputs": X, "terms": {"max_cost": 0.1, "min_accuracy": 0.95}}, TermsUnmet, "cost"),
        ({"model": "exact", "inputs": X, "terms": {"max_cost": 1.0}}, TermsUnmet, "max_cost 1: 3 is predicted"),
        ({"inputs": X}, BadRequest, "names no goal"),
    ],
)
def test_what_does_not_fit_is_refused_with_a_typed_error(
    request_: dict[str, Any], error: type[Exception], why: str
) -> None:
    with pytest.raises(error, match=why):
        infer(**request_)


def test_outputs_that_cannot_be_had_are_named_where_the_terms_allow_it() -> None:
    def breaking(rows: dict[str, Array]) -> Mapping[str, Rows]:
        raise ValueError("no")

    odd = Feature("number/odd", "FP32")
    cards = (CARDS[0], one("odd", NUMBER, odd, "x", "z"))
    goal = Goal("both", (Port("x", NUMBER),), (Port("y", DOUBLE), Port("z", odd)))

    async def ask(terms: Mapping[str, Any], *outputs: str) -> InferAnswer:
        engine = Engine(LocalCalls({ExtensionId("exact@1"): WORK["exact@1"], ExtensionId("odd@1"): breaking}))
        await engine.follow(Catalogue.of(cards, [goal]))
        return await engine.infer(InferRequest(inputs=X, model="both", terms=terms, outputs=outputs))

    answer = asyncio.run(ask({"partial": True}))
    assert {name: rows.values.tolist() for name, rows in answer.outputs.items()} == {"y": [2.0, 4.0]}
    assert answer.parameters["flags"] == "partial"
    assert json.loads(str(answer.parameters["missing"])) == {"z": "odd@1 raised ValueError: no"}
    some = asyncio.run(ask({"partial": True}, "y.confidence", "z", "z.confidence"))
    assert set(some.outputs) == {"y.confidence"}
    with pytest.raises(StepFailed, match=r"nothing that was asked for could be had\. z: odd@1 raised"):
        asyncio.run(ask({"partial": True}, "z"))
    with pytest.raises(BadRequest, match="no output 'w'"):
        asyncio.run(ask({"partial": True}, "w"))
    with pytest.raises(StepFailed, match="odd@1 raised"):
        asyncio.run(ask({}))


def test_a_request_whose_answer_is_its_own_does_not_travel_with_others() -> None:
    rows_together: list[int] = []

    def counted(rows: dict[str, Array]) -> Mapping[str, Rows]:
        rows_together.append(len(rows["x"]))
        return WORK["exact@1"](rows)

    async def scenario() -> None:
        engine = Engine(LocalCalls({ExtensionId("exact@1"): counted}))
        await engine.follow(Catalogue.of(CARDS[:1], GOALS[:1]))

        def ask(**terms: Any) -> Any:
            return engine.infer(InferRequest(inputs=X, model="double", terms=terms))

        answers = await asyncio.gather(ask(), ask(), ask(partial=True), ask(min_confidence=0.8))
        assert [len(answer.outputs["y"].values) for answer in answers] == [2, 2, 2, 2]
        assert [answer.steps[0].n_rows for answer in answers] == [4, 4, 2, 2]
        assert [answer.parameters["flags"] for answer in answers] == ["", "", "", "unsure"]

    asyncio.run(scenario())


def test_explaining_plans_without_running_anything() -> None:
    async def scenario() -> None:
        engine = Engine(LocalCalls({}))
        await engine.follow(Catalogue.of(CARDS, GOALS))
        told = await engine.explain(InferRequest(inputs={}, model="double"))
        assert told.goal == "double"
        assert told.plans.best.reason
        assert {plan.extensions() for plan in told.plans.plans} >= {("exact@1",), ("rough@1",)}

    asyncio.run(scenario())


def test_live_traffic_shows_in_the_profiles() -> None:
    async def scenario() -> None:
        engine = Engine(LocalCalls({ExtensionId(id_): work for id_, work in WORK.items()}))
        slow = CARDS[0].but(profile=LatencyProfile(500.0))
        await engine.follow(Catalogue.of([slow], GOALS[:1]))
        for _ in range(40):
            await engine.infer(InferRequest(model="double", inputs=X))
        changed = engine.changed_profiles()
        assert changed[slow.id].p50_ms(1) < 100.0

    asyncio.run(scenario())


def test_wanted_types_with_the_same_last_word_are_both_answered() -> None:
    more = one("spell", NUMBER, Feature("text/double", "BYTES"), "x", "t")

    async def scenario() -> InferAnswer:
        def spell(rows: dict[str, Array]) -> Mapping[str, Rows]:
            return {"t": Rows(np.array([b"?"] * len(rows["x"]), dtype=object))}

        engine = Engine(LocalCalls({ExtensionId("rough@1"): WORK["rough@1"], more.id: spell}))
        await engine.follow(Catalogue.of([CARDS[1], more], GOALS))
        return await engine.infer(InferRequest(inputs=X, wanted=("number/double", "text/double")))

    assert set(asyncio.run(scenario()).outputs) == {"number/double", "text/double"}


def test_an_encoder_that_fails_is_tried_again_by_the_next_sentence() -> None:
    tries = []

    def encoder() -> Encoder:
        tries.append(1)
        if len(tries) == 1:
            raise BadRequest("the model is not there")
        return TfidfEncoder()

    async def scenario() -> None:
        engine = Engine(LocalCalls({ExtensionId("words@1"): counting}), encoder=encoder)
        await engine.follow(Catalogue.of([CARDS[2]], GOALS[1:]))
        request = InferRequest(inputs=A_TEXT, sentence="Count the words of a text.")
        with pytest.raises(BadRequest, match="not there"):
            await engine.infer(request)
        assert (await engine.infer(request)).model == "count"

    asyncio.run(scenario())


def test_the_engine_counts_the_runs_of_chains_once_per_group_of_requests() -> None:
    half = one("half", DOUBLE, Feature("number/half", "FP32"), "y", "z")
    work = {**WORK, "half@1": lambda rows: {"z": Rows(rows["y"] / np.float32(2))}}

    async def scenario() -> list[tuple[tuple[str, ...], int]]:
        engine = Engine(LocalCalls({ExtensionId(id_): function for id_, function in work.items()}))
        await engine.follow(Catalogue.of([*CARDS, half], GOALS))
        for terms in ({}, {"priority": 1}):
            request = InferRequest(wanted=("number/half",), inputs=X, terms={"min_accuracy": 0.95, **terms})
            await asyncio.gather(engine.infer(request), engine.infer(request))
        await engine.infer(InferRequest(model="exact", inputs=X))
        counted = [(use.plan.extensions(), use.n_runs) for use in engine.uses()]
        assert engine.uses() == []
        return counted

    assert asyncio.run(scenario()) == [(("exact@1", "half@1"), 2)]


class Alternating:
    """Takes the plans in turn, and hears what becomes of them."""

    def __init__(self, plans: PlanSet, without: PlansWithout) -> None:
        self.usual, self.without = plans.best, without
        self.plans = plans.plans
        self.heard: list[tuple[int, list[float], str]] = []
        self._next = 0

    def choose(self, n_requests: int) -> Chosen:
        plan = self.plans[self._next % len(self.plans)]
        self._next += 1
        others = tuple(one for one in self.plans if one is not plan)
        return Chosen(plan, others, tuple((one.id, 1 / len(self.plans)) for one in self.plans), self._hear)

    def _hear(
        self, trace_ids: Sequence[str], inputs: Mapping[str, Array], came: Answer | FenixError, took_ms: float
    ) -> None:
        assert took_ms >= 0.0
        self.heard.append((len(trace_ids), inputs["x"].tolist(), type(came).__name__))


def with_choosers(scenario: Any, work: Mapping[str, Any] = WORK) -> None:
    async def run() -> None:
        choosers: list[Alternating] = []

        def chooser_for(goal: str, terms: Terms, plans: PlanSet, without: PlansWithout) -> Alternating:
            choosers.append(Alternating(plans, without))
            return choosers[-1]

        calls = LocalCalls({ExtensionId(id_): function for id_, function in work.items()})
        engine = Engine(calls, chooser_for=chooser_for)
        await engine.follow(Catalogue.of(CARDS, GOALS))
        await scenario(engine, choosers)

    asyncio.run(run())


@pytest.mark.parametrize("detailed", [False, True])
def test_the_chooser_says_which_plan_runs_and_hears_what_became_of_it(detailed: bool) -> None:
    async def scenario(engine: Engine, choosers: list[Alternating]) -> None:
        plans = [
            str((await engine.infer(InferRequest(model="double", inputs=X, detailed=detailed))).parameters["plan"])
            for _ in range(4)
        ]
        (chooser,) = choosers
        assert plans[:2] == plans[2:]
        assert plans[0] != plans[1]
        assert chooser.heard == [(1, [1.0, 2.0], "Answer")] * 4

    with_choosers(scenario)


@pytest.mark.parametrize("detailed", [False, True])
def test_the_chooser_hears_of_what_failed_too(detailed: bool) -> None:
    def broken(rows: dict[str, Array]) -> Mapping[str, Rows]:
        raise ValueError("no")

    async def scenario(engine: Engine, choosers: list[Alternating]) -> None:
        with pytest.raises(StepFailed):
            await engine.infer(InferRequest(model="double", inputs=X, detailed=detailed))
        (heard,) = choosers[0].heard
        assert heard[:2] == (0, [1.0, 2.0])

    with_choosers(scenario, {**WORK, "exact@1": broken, "rough@1": broken})


def test_what_is_withheld_serves_only_whom_a_chooser_sends_there() -> None:
    async def scenario(engine: Engine, choosers: list[Alternating]) -> None:
        before = engine.generation
        engine.withhold(frozenset({ExtensionId("exact@1"), ExtensionId("words@2")}))
        assert engine.generation == before + 1
        with pytest.raises(NoPlan):
            await engine.infer(InferRequest(model="double", inputs=X, terms={"min_accuracy": 0.95}))
        answer = await engine.infer(InferRequest(model="double", inputs=X))
        assert answer.plan.extensions() == ("rough@1",)
        other = choosers[-1].without(frozenset({ExtensionId("rough@1")}))
        assert other is not None
        assert other.best.extensions() == ("exact@1",)
        assert choosers[-1].without(frozenset({ExtensionId("rough@1"), ExtensionId("exact@1")})) is None
        # A bare name means the version that is left; with its version anything can be asked for.
        assert (await engine.infer(InferRequest(model="words", inputs=A_TEXT))).version == "1"
        words = choosers[-1].without(frozenset({ExtensionId("words@1")}))
        assert words is not None
        assert words.best.extensions() == ("words@2",)
        n = len(choosers)
        assert (await engine.infer(InferRequest(model="words", version="2", inputs=A_TEXT))).version == "2"
        assert len(choosers) == n
        engine.withhold(frozenset())
        assert (await engine.infer(InferRequest(model="double", inputs=X, terms={"min_accuracy": 0.95}))).plan

    with_choosers(scenario)
