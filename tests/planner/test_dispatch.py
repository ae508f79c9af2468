from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest

from planner.admission import Backlog
from planner.batching import Batchers, Done
from planner.calls import Part, Parts, Produced, Ran
from planner.cards import Accuracy, Card, ExtensionId, LatencyProfile
from planner.dispatch import Dispatcher
from planner.errors import BadInput, DeadlineExceeded, ExtensionRaised, ExtensionUnavailable, Overloaded, StepFailed
from planner.features import Array, Feature, Port
from planner.goals import Terms
from planner.line import Ahead
from planner.placed import Queue
from planner.plans import REQUEST, Answer, Guard, Plan, Prediction, StepId
from planner.progress import path_ms
from planner.tokens import Token
from tests.planner.doubles import PacedCalls, Work, bind, card, failing, plan_of, plus, step
from tests.planner.test_batching import settle

X = np.array([1, 2, 3, 4], np.float32)


class Bench:
    """A dispatcher over functions, all of them deployed."""

    def __init__(self, work: Mapping[str, Work], cards: Sequence[Card] = ()) -> None:
        self.calls = PacedCalls({f"{name}@1": function for name, function in work.items()})
        known = {c.id: c for c in cards} or {c.id: c for c in map(card, work)}
        self.dispatcher = Dispatcher(Batchers(self.calls), known.get)

    async def run(self, plan: Plan, alternatives: Sequence[Plan] = (), terms: Terms | None = None) -> Answer:
        token = Token.of(terms or Terms(), asyncio.get_running_loop().time())
        return await self.dispatcher.dispatch(plan, {"x": X}, token, alternatives)


def dispatch(
    work: Mapping[str, Work], plan: Plan, alternatives: Sequence[Plan] = (), cards: Sequence[Card] = ()
) -> Answer:
    async def scenario() -> Answer:
        return await Bench(work, cards).run(plan, alternatives=alternatives)

    return asyncio.run(scenario())


def values(answer: Answer) -> list[float]:
    return answer.outputs["y"].values.tolist()


def low_below(limit: float) -> Work:
    """plus(0), unsure of every row below `limit`."""
    return plus(0, lambda y: np.where(y < limit, 0.1, 0.9).astype(np.float32))


def test_a_chain_runs_in_order_and_every_step_is_recorded() -> None:
    answer = dispatch({"a": plus(1), "b": plus(10)}, plan_of(step(0, "a"), step(1, "b")))
    assert values(answer) == [12, 13, 14, 15]
    assert [record.extension for record in answer.steps] == ["a@1", "b@1"]
    assert answer.flags == frozenset()


def test_independent_steps_run_at_the_same_time() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": plus(2), "join": plus(0)}, [card("a"), card("b"), card("join", ("l", "r"))])
        bench.calls.gate.clear()
        left, right = (step(i, name, bind("x", (REQUEST, "x"))) for i, name in enumerate("ab"))
        plan = plan_of(left, right, step(2, "join", bind("l", (0, "y")), bind("r", (1, "y"))))
        running = asyncio.create_task(bench.run(plan))
        await settle()
        assert sorted(name for name, _ in bench.calls.batches) == ["a@1", "b@1"]
        bench.calls.gate.set()
        assert values(await running) == [5, 7, 9, 11]

    asyncio.run(scenario())


def test_a_cascade_sends_only_unsure_rows_on_and_rejoins_them_in_place() -> None:
    cheap = step(0, "cheap")
    dear = step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5))
    plan = plan_of(cheap, dear, output=bind("y", (0, "y"), (1, "y")))
    answer = dispatch({"cheap": low_below(3), "dear": plus(100)}, plan)
    assert values(answer) == [101, 102, 3, 4]
    assert [record.n_rows for record in answer.steps] == [4, 2]


def test_a_cascade_that_is_sure_of_every_row_never_calls_the_dear_branch() -> None:
    plan = plan_of(
        step(0, "cheap"),
        step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5)),
        output=bind("y", (0, "y"), (1, "y")),
    )
    answer = dispatch({"cheap": low_below(0), "dear": failing(AssertionError("called"))}, plan)
    assert values(answer) == [1, 2, 3, 4]


def test_a_guarded_branch_of_two_steps_and_a_second_guard_inside_it_keep_rows_apart() -> None:
    first, second = Guard(StepId(0), 0.5), Guard(StepId(2), 0.5)
    plan = plan_of(
        step(0, "cheap"),
        step(1, "prepare", bind("x", (REQUEST, "x")), guard=first),
        step(2, "middle", bind("x", (1, "y")), guard=first),
        step(3, "dear", bind("x", (1, "y")), guard=second),
        output=bind("y", (0, "y"), (2, "y"), (3, "y")),
    )
    work = {"cheap": low_below(4), "prepare": plus(10), "middle": low_below(12), "dear": plus(1000)}
    assert values(dispatch(work, plan)) == [1011, 12, 13, 4]


def test_a_step_after_a_cascade_sees_the_rejoined_rows() -> None:
    plan = plan_of(
        step(0, "cheap"),
        step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5)),
        step(2, "after", bind("x", (0, "y"), (1, "y"))),
    )
    assert values(dispatch({"cheap": low_below(3), "dear": plus(100), "after": plus(0.5)}, plan)) == [
        101.5,
        102.5,
        3.5,
        4.5,
    ]


def test_a_combiner_gets_its_sources_stacked_on_axis_one() -> None:
    seen: list[tuple[int, ...]] = []

    def combine(rows: dict[str, Array]) -> Mapping[str, Produced]:
        seen.append(rows["votes"].shape)
        return {"y": Produced(rows["votes"].max(axis=1))}

    votes = [bind("votes", (i, "y")) for i in range(3)]
    ways = [step(i, name, bind("x", (REQUEST, "x"))) for i, name in enumerate("abc")]
    votes_port = Port("votes", Feature("number"), many=3)
    cards = [*map(card, "abc"), card("vote").but(inputs=(votes_port,))]
    work = {"a": plus(1), "b": plus(5), "c": plus(3), "vote": combine}
    answer = dispatch(work, plan_of(*ways, step(3, "vote", *votes)), cards=cards)
    assert seen == [(4, 3)]
    assert values(answer) == [6, 7, 8, 9]


def test_confidence_is_inherited_as_the_least_of_the_inputs_unless_a_step_judges_itself() -> None:
    answer = dispatch({"a": low_below(3), "b": plus(0)}, plan_of(step(0, "a"), step(1, "b")))
    sure = answer.outputs["y"].confidence
    assert sure is not None
    assert sure.tolist() == pytest.approx([0.1, 0.1, 0.9, 0.9])


def test_a_failing_step_falls_back_to_the_next_extension_with_the_same_ports_and_says_so() -> None:
    work = {"a": failing(ExtensionRaised("a@1 raised KeyError: 'x'")), "spare": plus(7)}
    answer = dispatch(work, plan_of(step(0, "a", fallbacks=["spare"])))
    assert values(answer) == [8, 9, 10, 11]
    assert answer.flags == {"fallback"}
    assert "KeyError" in answer.steps[0].note


def test_when_a_step_and_its_fallbacks_fail_the_next_plan_without_the_guilty_one_answers_degraded() -> None:
    work = {"a": failing(ExtensionUnavailable("gone")), "b": plus(1), "c": plus(2)}
    best, same, other = (
        plan_of(step(0, "a"), accuracy=0.9),
        plan_of(step(0, "b"), step(1, "a"), accuracy=0.9, id_="same"),
        plan_of(step(0, "c"), accuracy=0.8, id_="other"),
    )
    answer = dispatch(work, best, [best, same, other])
    assert values(answer) == [3, 4, 5, 6]
    assert answer.plan.id == "other"
    assert answer.flags == {"fallback", "degraded"}


def test_when_everything_fails_the_last_failure_is_raised() -> None:
    with pytest.raises(StepFailed, match="gone"):
        dispatch({"a": failing(ExtensionUnavailable("gone"))}, plan_of(step(0, "a")))


def test_rows_that_the_extension_calls_bad_are_the_clients_fault_and_no_fallback_is_tried() -> None:
    work = {"a": failing(BadInput("row 0 is no digit")), "spare": failing(AssertionError("called"))}
    with pytest.raises(BadInput):
        dispatch(work, plan_of(step(0, "a", fallbacks=["spare"])))


def test_a_failure_in_one_branch_cancels_the_other_and_is_raised_as_it_is() -> None:
    async def scenario() -> None:
        work = {"a": plus(0), "b": failing(ExtensionRaised("b failed")), "join": plus(0)}
        bench = Bench(work, [card("a"), card("b"), card("join", ("l", "r"))])
        left, right = (step(i, name, bind("x", (REQUEST, "x"))) for i, name in enumerate("ab"))
        await bench.run(plan_of(left, right, step(2, "join", bind("l", (0, "y")), bind("r", (1, "y")))))

    with pytest.raises(ExtensionRaised, match="b failed"):
        asyncio.run(scenario())


def test_the_deadline_of_the_request_ends_it_with_its_own_error() -> None:
    async def scenario() -> None:
        bench = Bench({"slow": plus(0)})
        bench.calls.gate.clear()
        await bench.run(plan_of(step(0, "slow")), terms=Terms(deadline_ms=10.0))

    with pytest.raises(DeadlineExceeded):
        asyncio.run(scenario())


def test_a_plan_without_steps_hands_the_input_back() -> None:
    plan = Plan("none", (), (bind("y", (REQUEST, "x")),), Prediction(0.0, 0.0, 0.0, 1.0), 0.0)
    assert values(dispatch({"a": plus(0)}, plan)) == X.tolist()


def test_an_extension_removed_while_the_request_runs_is_unavailable() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(0)}, [card("other")])
        await bench.run(plan_of(step(0, "a")))

    with pytest.raises(ExtensionUnavailable, match="removed"):
        asyncio.run(scenario())


def wide(width: int, confidence: float = 0.0) -> Work:
    def work(rows: dict[str, Array]) -> Mapping[str, Produced]:
        n = len(rows["x"])
        return {"y": Produced(np.ones((n, width), np.float32), np.full(n, confidence, np.float32))}

    return work


def of_any_width(name: str) -> Card:
    return card(name).but(outputs=(Port("y", Feature("number", "FP32", (-1,))),))


def test_a_cascade_whose_stages_give_different_shapes_says_which_and_another_plan_takes_over() -> None:
    cascade = plan_of(
        step(0, "cheap"),
        step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5)),
        output=bind("y", (0, "y"), (1, "y")),
    )
    work = {"cheap": wide(3), "dear": wide(5), "other": wide(4)}
    cards = [of_any_width(name) for name in work]
    other = plan_of(step(0, "other"), id_="other")
    with pytest.raises(StepFailed, match=r"cheap@1 and dear@1 give rows of different shapes \(\[3\], \[5\]\)"):
        dispatch(work, cascade, cards=cards)
    assert dispatch(work, cascade, [cascade, other], cards).plan.id == "other"


def test_rows_that_do_not_fit_the_next_step_are_their_givers_fault_not_the_clients() -> None:
    taker = card("taker").but(inputs=(Port("x", Feature("number", "FP32", (4,))),))
    with pytest.raises(StepFailed, match=r"giver@1 gave rows of shape \[5\], but taker@1 takes \[4\]"):
        dispatch(
            {"giver": wide(5), "taker": plus(0)},
            plan_of(step(0, "giver"), step(1, "taker")),
            cards=[of_any_width("giver"), taker],
        )


def test_a_full_queue_is_a_reason_to_take_another_way() -> None:
    answer = dispatch(
        {"busy": failing(Overloaded("full")), "spare": plus(1)}, plan_of(step(0, "busy", fallbacks=["spare"]))
    )
    assert answer.flags == {"fallback"}


def test_a_stand_in_that_is_less_accurate_is_flagged_degraded() -> None:
    work = {"a": failing(ExtensionUnavailable("gone")), "spare": plus(7)}
    cards = [card("a").but(accuracy=Accuracy(0.99)), card("spare").but(accuracy=Accuracy(0.5))]
    answer = dispatch(work, plan_of(step(0, "a", fallbacks=["spare"])), cards=cards)
    assert answer.flags == {"fallback", "degraded"}


class Said:
    """Queues whose answers say of themselves what a test gives by name."""

    def __init__(self, **said: Done) -> None:
        self._said = said

    def of(self, card: Card) -> Queue:
        return _Saying(self._said[card.name])


class _Saying:
    def __init__(self, done: Done) -> None:
        self._done = done

    async def submit(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float | None = None) -> Done:
        return self._done


def share(batch_rows: int = 4, *, hedged: bool = False) -> Done:
    return Done({"y": Produced(X)}, batch_rows, 0.0, 0.0, hedged)


def test_steps_say_whether_they_were_known_or_sent_twice_and_the_answer_says_that_some_were() -> None:
    def flags(**said: Done) -> tuple[frozenset[str], list[tuple[bool, bool]]]:
        known = {c.id: c for c in map(card, said)}
        running = Dispatcher(Said(**said), known.get).dispatch(
            plan_of(step(0, "a"), step(1, "b")), {"x": X}, Token(1e9)
        )
        answer = asyncio.run(running)
        return answer.flags, [(record.cached, record.hedged) for record in answer.steps]

    assert flags(a=share(), b=share()) == (frozenset(), [(False, False), (False, False)])
    assert flags(a=share(0), b=share()) == ({"cached"}, [(True, False), (False, False)])
    assert flags(a=share(), b=share(hedged=True)) == ({"hedged"}, [(False, False), (False, True)])
    assert flags(a=share(0), b=share(9, hedged=True)) == ({"cached", "hedged"}, [(True, False), (False, True)])


def test_what_the_answer_is_not_made_of_gives_it_no_flag() -> None:
    async def scenario() -> Answer:
        known = {c.id: c for c in (card("a"), card("c"))}
        best = plan_of(step(0, "a"), step(1, "gone"))
        other = plan_of(step(0, "c"), id_="other")
        return await Dispatcher(Said(a=share(0), c=share()), known.get).dispatch(best, {"x": X}, Token(1e9), [other])

    answer = asyncio.run(scenario())
    assert (answer.plan.id, answer.flags) == ("other", {"fallback"})


def test_a_step_that_hangs_gives_way_to_its_fallback_even_without_a_deadline() -> None:
    class HangingCalls(PacedCalls):
        async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
            if extension == "slow@1":
                await asyncio.Event().wait()
            return await super().infer(extension, parts, timeout_s)

    async def scenario() -> Answer:
        cards = {c.id: c for c in map(card, ["slow", "spare"])}
        calls = HangingCalls({"spare@1": plus(1)})
        dispatcher = Dispatcher(Batchers(calls), cards.get)
        token = Token.of(Terms(), asyncio.get_running_loop().time())
        return await dispatcher.dispatch(plan_of(step(0, "slow", fallbacks=["spare"])), {"x": X}, token)

    answer = asyncio.run(scenario())
    assert values(answer) == [2, 3, 4, 5]
    assert "was not done in time" in answer.steps[0].note


def timed(plan: Plan, *p50_ms: float) -> Plan:
    """The plan, its steps predicted to take that long."""
    steps = tuple(replace(s, p50_ms=ms) for s, ms in zip(plan.steps, p50_ms, strict=True))
    return replace(plan, steps=steps, prediction=replace(plan.prediction, p50_ms=path_ms(plan, lambda s: 0.0)))


def ran(bench: Bench) -> list[str]:
    return [extension for extension, _ in bench.calls.batches]


def test_when_a_step_fails_the_next_plan_goes_on_from_what_both_share() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": failing(ExtensionRaised("gone")), "c": plus(10)})
        best = plan_of(step(0, "a"), step(1, "b"))
        other = plan_of(step(4, "a", bind("x", (REQUEST, "x"))), step(5, "c"), id_="other")
        answer = await bench.run(best, [best, other])
        assert values(answer) == [12, 13, 14, 15]
        assert ran(bench) == ["a@1", "b@1", "c@1"]
        assert [(record.step, record.extension) for record in answer.steps] == [(4, "a@1"), (5, "c@1")]
        assert answer.flags == {"fallback"}

    asyncio.run(scenario())


def test_the_same_extension_on_other_rows_is_not_shared() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": failing(ExtensionRaised("gone")), "c": plus(10)})
        best = plan_of(step(0, "a"), step(1, "b"))
        other = plan_of(step(0, "c"), step(1, "a"), id_="other")
        assert values(await bench.run(best, [best, other])) == [12, 13, 14, 15]
        assert ran(bench) == ["a@1", "b@1", "c@1", "a@1"]

    asyncio.run(scenario())


def test_when_time_runs_short_on_the_way_a_quicker_rest_takes_over_and_says_so() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "slow": plus(5), "quick": plus(10)})
        best = timed(plan_of(step(0, "a"), step(1, "slow"), accuracy=0.9), 1.0, 10_000.0)
        other = timed(plan_of(step(0, "a"), step(1, "quick"), accuracy=0.8, id_="other"), 1.0, 1.0)
        answer = await bench.run(best, [best, other], Terms(deadline_ms=5_000.0))
        assert values(answer) == [12, 13, 14, 15]
        assert ran(bench) == ["a@1", "quick@1"]
        assert answer.flags == {"replanned", "degraded"}

    asyncio.run(scenario())


def test_where_no_plan_is_quicker_the_first_one_goes_on() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "slow": plus(5), "slower": plus(10)})
        best = timed(plan_of(step(0, "a"), step(1, "slow")), 1.0, 10_000.0)
        other = timed(plan_of(step(0, "a"), step(1, "slower"), id_="other"), 1.0, 20_000.0)
        answer = await bench.run(best, [best, other], Terms(deadline_ms=5_000.0))
        assert (answer.plan.id, answer.flags) == ("plan", frozenset())

    asyncio.run(scenario())


def test_a_dear_branch_that_no_row_needs_is_no_reason_to_replan() -> None:
    async def scenario() -> None:
        bench = Bench({"cheap": low_below(0), "dear": plus(5), "quick": plus(10)})
        dear = step(1, "dear", bind("x", (REQUEST, "x")), guard=Guard(StepId(0), 0.5))
        best = timed(plan_of(step(0, "cheap"), dear, output=bind("y", (0, "y"), (1, "y"))), 1.0, 10_000.0)
        other = timed(plan_of(step(0, "quick"), id_="other"), 1.0)
        answer = await bench.run(best, [best, other], Terms(deadline_ms=5_000.0))
        assert (answer.plan.id, ran(bench)) == ("plan", ["cheap@1"])

    asyncio.run(scenario())


def test_what_still_runs_in_a_graph_and_is_shared_goes_on_under_the_new_plan() -> None:
    async def scenario() -> None:
        gates = {name: asyncio.Event() for name in ("a", "b")}

        class GatedCalls(PacedCalls):
            async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
                gate = gates.get(extension.partition("@")[0])
                if gate is not None:
                    self.batches.append((extension, 0))
                    await gate.wait()
                return await super().infer(extension, parts, timeout_s)

        cards = [card("a"), card("b"), card("slow", ("l", "r")), card("quick", ("l", "r"))]
        bench = Bench({"a": plus(1), "b": plus(2), "slow": plus(0), "quick": plus(100)}, cards)
        bench.calls = GatedCalls({f"{c.name}@1": plus({"a": 1, "b": 2, "quick": 100}.get(c.name, 0)) for c in cards})
        bench.dispatcher = Dispatcher(Batchers(bench.calls), {c.id: c for c in cards}.get)
        ways = [step(i, name, bind("x", (REQUEST, "x"))) for i, name in enumerate("ab")]
        ends = [step(2, name, bind("l", (0, "y")), bind("r", (1, "y"))) for name in ("slow", "quick")]
        best = timed(plan_of(*ways, ends[0]), 1.0, 1.0, 10_000.0)
        other = timed(plan_of(*ways, ends[1], id_="other"), 1.0, 1.0, 1.0)
        running = asyncio.create_task(bench.run(best, [best, other], Terms(deadline_ms=5_000.0)))
        await settle()
        gates["a"].set()
        await settle()
        gates["b"].set()
        answer = await running
        assert values(answer) == [105, 107, 109, 111]
        assert answer.plan.id == "other"
        assert [name for name, n_rows in bench.calls.batches if n_rows == 0] == ["a@1", "b@1"]

    asyncio.run(scenario())


def test_an_extension_that_falls_ill_while_others_run_is_gone_round() -> None:
    async def scenario() -> None:
        ill: set[str] = set()

        def infecting(rows: dict[str, Array]) -> Mapping[str, Produced]:
            ill.add("b@1")
            return plus(1)(rows)

        bench = Bench({"a": infecting, "b": plus(5), "c": plus(10)})
        known = {c.id: c for c in map(card, "abc")}
        bench.dispatcher = Dispatcher(Batchers(bench.calls), known.get, is_healthy=lambda e: e not in ill)
        best = plan_of(step(0, "a"), step(1, "b"))
        other = plan_of(step(0, "a"), step(1, "c"), id_="other")
        answer = await bench.run(best, [best, other])
        assert values(answer) == [12, 13, 14, 15]
        assert ran(bench) == ["a@1", "c@1"]
        assert answer.flags == {"replanned"}

    asyncio.run(scenario())


def test_who_is_ill_is_tried_last_and_a_plan_of_the_healthy_goes_first() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": plus(5), "c": plus(10)})
        known = {c.id: c for c in map(card, "abc")}
        bench.dispatcher = Dispatcher(Batchers(bench.calls), known.get, is_healthy=lambda e: e != "a@1")
        spared = await bench.run(plan_of(step(0, "a", fallbacks=["b"])))
        assert (values(spared), spared.flags) == ([6, 7, 8, 9], {"fallback"})
        other = plan_of(step(0, "c"), id_="other")
        assert (await bench.run(plan_of(step(0, "a")), [other])).plan.id == "other"
        assert values(await bench.run(plan_of(step(0, "a")))) == [2, 3, 4, 5]
        assert ran(bench) == ["b@1", "c@1", "a@1"]

    asyncio.run(scenario())


def test_what_a_fallback_gave_is_shared_too() -> None:
    async def scenario() -> None:
        work = {"a": failing(ExtensionRaised("gone")), "spare": plus(1), "c": plus(10)}
        bench = Bench({**work, "b": failing(ExtensionRaised("gone too"))})
        first = step(0, "a", fallbacks=["spare"])
        answer = await bench.run(plan_of(first, step(1, "b")), [plan_of(first, step(1, "c"), id_="other")])
        assert values(answer) == [12, 13, 14, 15]
        assert ran(bench) == ["a@1", "spare@1", "b@1", "c@1"]

    asyncio.run(scenario())


def test_a_request_that_would_be_late_is_refused_before_anything_runs_or_takes_a_quicker_plan() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": plus(2)})
        known = {c.id: c for c in map(card, "ab")}
        full = Backlog(Ahead(1000, 1000), 0.0, 100, 50.0, 0.0, 1)
        bench.dispatcher = Dispatcher(
            Batchers(bench.calls), known.get, backlog_of=lambda e, token: full if e == "a@1" else None
        )
        best, other = plan_of(step(0, "a"), accuracy=0.9), plan_of(step(0, "b"), accuracy=0.8, id_="other")
        hurry = Terms(deadline_ms=300.0)
        with pytest.raises(Overloaded) as refused:
            await bench.run(best, terms=hurry)
        assert 0.2 <= refused.value.retry_after_s <= 0.31
        assert ran(bench) == []
        answer = await bench.run(best, [other], hurry)
        assert (answer.plan.id, answer.flags) == ("other", {"degraded"})

    asyncio.run(scenario())


def test_a_client_that_leaves_marks_its_token() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1)})
        bench.calls.gate.clear()
        token = Token(1e9)
        running = asyncio.create_task(bench.dispatcher.dispatch(plan_of(step(0, "a")), {"x": X}, token))
        await settle()
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        assert token.gone

    asyncio.run(scenario())


def test_rows_are_not_begun_that_would_be_late_for_what_comes_after_them() -> None:
    async def scenario() -> None:
        bench = Bench({"a": plus(1), "b": plus(2)})
        known = {c.id: c for c in map(card, "ab")}
        known[ExtensionId("b@1")] = known[ExtensionId("b@1")].but(profile=LatencyProfile(10_000.0))
        crowd = Backlog(Ahead(10, 10), 0.0, 100, 1.0, 0.0, 1)
        bench.dispatcher = Dispatcher(Batchers(bench.calls), known.get, backlog_of=lambda e, token: crowd)
        plan = plan_of(step(0, "a"), step(1, "b"))
        assert values(await bench.run(plan, terms=Terms(deadline_ms=5_000.0))) == [4, 5, 6, 7]  # an idle one is tried
        bench.calls.gate.clear()
        first = asyncio.create_task(bench.run(plan_of(step(0, "a"))))
        await settle()
        second = asyncio.create_task(bench.run(plan, terms=Terms(deadline_ms=5_000.0)))
        await settle()
        bench.calls.gate.set()
        await first
        with pytest.raises(DeadlineExceeded, match="could not be done in time"):
            await second
        assert ran(bench) == ["a@1", "b@1", "a@1"]

    asyncio.run(scenario())
