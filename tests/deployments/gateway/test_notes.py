"""What the journal gets to know of requests that a real engine answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import Any

import numpy as np
import pytest

from deployments.gateway.engine import Engine
from deployments.gateway.messages import InferAnswer, InferRequest
from deployments.gateway.notes import NoteBook, _blamed, _giver
from deployments.gateway.recorder import Recorder
from lineage.chunks import Chunk
from lineage.outcomes import Outcome, split_trace_id
from planner.calls import LocalCalls
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.choosing import Chosen
from planner.errors import DeadlineExceeded, ExtensionRaised, ExtensionTimeout, Overloaded
from planner.features import Array, Rows
from planner.plans import Answer, Binding, Plan, PlanSet, Prediction, Source, Step, StepId, StepRecord
from tests.deployments.gateway.test_engine import CARDS, GOALS, WORK


class Kept:
    """A gateway's engine, and what its recorder wrote."""

    def __init__(self, engine: Engine, recorder: Recorder, chunks: list[Chunk]) -> None:
        self.engine, self.recorder, self.chunks = engine, recorder, chunks

    async def ask(self, *values: float, **request: Any) -> InferAnswer:
        rows = {"x": np.array(values, np.float32)}
        return await self.engine.infer(InferRequest(**{"model": "double", "inputs": rows, **request}))

    async def outcome(self, answer: InferAnswer) -> Outcome:
        return (await self.outcomes())[str(answer.parameters["trace_id"])]

    async def outcomes(self) -> dict[str, Outcome]:
        assert await self.recorder.flush(5.0)
        found = {}
        for chunk in self.chunks:
            for group in chunk.groups():
                for seq in group.seqs.tolist():
                    outcome = chunk.find(seq)
                    assert outcome is not None
                    found[outcome.trace_id] = outcome
        return found


def kept(
    scenario: Any,
    work: Mapping[str, Any] = WORK,
    sample_share: float = 0.0,
    cards: Sequence[Card] = CARDS,
    **more: Any,
) -> None:
    async def run() -> None:
        chunks: list[Chunk] = []

        async def write(run: str, encoded: Sequence[bytes]) -> None:
            chunks.extend(map(Chunk.decode, encoded))

        recorder = Recorder(write)
        recorder.start()
        book = NoteBook(recorder, sample_share, Random(1))
        calls = LocalCalls({ExtensionId(id_): function for id_, function in work.items()})
        engine = Engine(calls, notes_for=book.notes_for, **more)
        await engine.follow(Catalogue.of(cards, GOALS))
        try:
            await scenario(Kept(engine, recorder, chunks))
        finally:
            await recorder.close(5.0)

    asyncio.run(run())


def test_an_answer_is_found_again_by_its_trace_id_with_all_that_is_known_of_it() -> None:
    async def scenario(kept: Kept) -> None:
        terms = {"min_accuracy": 0.95, "user": "ann", "purpose": "a trial", "deadline_ms": 5000.0}
        answer = await kept.ask(1, 2, terms=terms)
        found = await kept.outcome(answer)
        setting = found.setting
        assert split_trace_id(found.trace_id)[0] == kept.recorder.run
        assert (setting.model, setting.version, setting.goal) == ("double", "1", "double")
        assert (setting.user, setting.purpose, setting.min_accuracy) == ("ann", "a trial", 0.95)
        assert setting.plan == answer.plan.id
        assert setting.steps == ((int(answer.plan.steps[0].id), "exact@1"),)
        assert (setting.giver, setting.failed) == ("exact@1", ())
        assert (found.n_rows, found.confidence) == (2, 0.75)
        assert found.outputs.full["y"].tolist() == [2.0, 4.0]
        assert found.inputs is None
        (step,) = found.steps
        assert (step.extension, step.batch_rows) == ("exact@1", 2)
        assert 0.0 < found.latency_ms < 5000.0

    kept(scenario)


def test_requests_that_travel_together_have_notes_of_their_own() -> None:
    async def scenario(kept: Kept) -> None:
        answers = await asyncio.gather(*[kept.ask(*range(n, 2 * n)) for n in (1, 3, 2, 1)])
        found = await kept.outcomes()
        assert len(found) == 4
        for answer in answers:
            outcome = found[str(answer.parameters["trace_id"])]
            assert outcome.outputs.full["y"].tolist() == answer.outputs["y"].values.tolist()
            assert outcome.n_rows == len(answer.outputs["y"].values)

    kept(scenario)


def test_a_request_that_travels_alone_is_noted_too() -> None:
    async def scenario(kept: Kept) -> None:
        answer = await kept.ask(4, detailed=True)
        assert (await kept.outcome(answer)).outputs.full["y"].tolist() == answer.outputs["y"].values.tolist()

    kept(scenario)


def raising(rows: dict[str, Array]) -> Mapping[str, Rows]:
    raise ExtensionRaised("it does not want to")


@pytest.mark.parametrize("detailed", [False, True])
def test_a_failure_is_noted_with_its_name(detailed: bool) -> None:
    async def scenario(kept: Kept) -> None:
        with pytest.raises(ExtensionRaised):
            await kept.ask(1, model="exact", detailed=detailed)
        (outcome,) = (await kept.outcomes()).values()
        assert (outcome.setting.error, outcome.setting.model, outcome.steps) == ("ExtensionRaised", "exact", ())
        assert (outcome.setting.failed, outcome.setting.giver) == (("exact@1",), "")

    kept(scenario, {**WORK, "exact@1": raising})


def test_what_another_stood_in_for_is_noted_as_failed() -> None:
    async def scenario(kept: Kept) -> None:
        answer = await kept.ask(1, terms={"min_accuracy": 0.5, "user": "ann"})
        assert answer.parameters["flags"] == "degraded,fallback"
        setting = (await kept.outcome(answer)).setting
        assert (setting.giver, setting.failed, setting.error) == ("rough@1", ("exact@1",), "")

    cards = (CARDS[0].but(cost=0.0, profile=CARDS[1].profile), CARDS[1])

    def raising(rows: dict[str, Array]) -> Mapping[str, Rows]:
        raise ValueError("no")

    kept(scenario, {**WORK, "exact@1": raising}, cards=cards)


def test_of_a_longer_plan_the_step_that_the_error_names_is_noted_as_failed() -> None:
    plan = Plan(
        "p",
        (Step(StepId(0), ExtensionId("a@1"), ()), Step(StepId(1), ExtensionId("b@1"), (), (ExtensionId("c@1"),))),
        (),
        Prediction(1, 1, 0, 1),
        0.0,
    )
    for error, failed in (
        (ExtensionRaised("b@1 raised ValueError: no"), ("b@1",)),
        (ExtensionRaised("c@1: it broke"), ("c@1",)),
        (ExtensionTimeout("the request waited for a@1, 30 ms after it came there."), ("a@1",)),
        (ExtensionRaised("b@10 raised ValueError"), ()),
        (ExtensionRaised("a@1 and b@1 do not fit"), ()),
        (DeadlineExceeded("the answer came after 5 ms."), ()),
        (Overloaded("the queue of a@1 is full."), ()),
    ):
        assert _blamed(error, plan) == failed


def test_where_rows_may_come_from_several_steps_no_extension_counts_as_the_giver() -> None:
    outputs = (Binding("y", (Source(StepId(0), "y"), Source(StepId(1), "y"))),)
    plan = Plan("p", (), outputs, Prediction(1, 1, 0, 1), 0.0, "cascade")
    record = StepRecord(StepId(0), ExtensionId("a@1"), 1, 1, 0.0, 0.0, 0.1, 0.2)
    assert _giver(Answer({}, plan, (record,))) == ""
    alone = replace(plan, outputs=(Binding("y", (Source(StepId(0), "y"),)),))
    assert _giver(Answer({}, alone, (record,))) == "a@1"


def test_who_is_late_is_noted_once_and_as_late() -> None:
    async def scenario(kept: Kept) -> None:
        patient = asyncio.create_task(kept.ask(1, model="slow"))
        with pytest.raises(DeadlineExceeded):
            await kept.ask(2, model="slow", terms={"deadline_ms": 20.0})
        gate.set()
        await patient
        errors = sorted(outcome.setting.error for outcome in (await kept.outcomes()).values())
        assert errors == ["", "DeadlineExceeded"]

    gate = asyncio.Event()

    class Slow(LocalCalls):
        async def infer(self, *arguments: Any, **more: Any) -> Any:
            await gate.wait()
            return await super().infer(*arguments, **more)

    async def run() -> None:
        chunks: list[Chunk] = []

        async def write(run: str, encoded: Sequence[bytes]) -> None:
            chunks.extend(map(Chunk.decode, encoded))

        recorder = Recorder(write)
        recorder.start()
        slow = CARDS[0].but(name="slow")
        engine = Engine(Slow({slow.id: WORK["exact@1"]}), notes_for=NoteBook(recorder, 0.0).notes_for)
        await engine.follow(Catalogue.of([slow], []))
        await scenario(Kept(engine, recorder, chunks))
        await recorder.close(5.0)

    asyncio.run(run())


def test_inputs_are_kept_of_the_share_that_is_asked_for_and_nothing_of_tagged_data() -> None:
    async def scenario(kept: Kept) -> None:
        for _ in range(200):
            await kept.ask(1)
        for _ in range(50):
            await kept.ask(2, terms={"tags": ["pii"]})
        outcomes = list((await kept.outcomes()).values())
        sampled = [outcome for outcome in outcomes if outcome.inputs is not None]
        assert 60 <= len(sampled) <= 140
        assert all(outcome.inputs.full["x"].tolist() == [1.0] for outcome in sampled if outcome.inputs)
        tagged = [outcome for outcome in outcomes if outcome.setting.tags]
        assert len(tagged) == 50
        assert not any(outcome.inputs or outcome.outputs.full or outcome.outputs.best for outcome in tagged)

    kept(scenario, sample_share=0.5)


def test_requests_that_differ_in_their_purpose_are_not_mixed_up() -> None:
    async def scenario(kept: Kept) -> None:
        answers: list[Coroutine[Any, Any, InferAnswer]] = [kept.ask(1, terms={"purpose": text}) for text in ("a", "b")]
        for text, answer in zip(("a", "b"), await asyncio.gather(*answers), strict=True):
            assert (await kept.outcome(answer)).setting.purpose == text

    kept(scenario)


def test_what_could_have_been_chosen_is_noted_with_its_probabilities() -> None:
    class Second:
        def __init__(self, plans: PlanSet) -> None:
            self.usual = plans.best
            considered = (plans.best.id, 0.75), (plans.plans[1].id, 0.25)
            self.chosen = Chosen(plans.plans[1], (plans.best,), considered, reason="it is tried")

        def choose(self, n_requests: int) -> Chosen:
            return self.chosen

    async def scenario(kept: Kept) -> None:
        answer = await kept.ask(1)
        setting = (await kept.outcome(answer)).setting
        assert setting.plan == answer.plan.id
        assert len(setting.considered) == 2
        assert setting.propensity == 0.25
        assert setting.reason == "it is tried"
        assert setting.expected_ms == answer.plan.prediction.p50_ms > 0.0
        assert setting.expected_accuracy == answer.plan.prediction.accuracy > 0.0

    kept(scenario, chooser_for=lambda goal, terms, plans, without: Second(plans))
