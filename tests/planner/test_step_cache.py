"""Whoever asks through the cache gets what he would get without it, and rows are computed once where they can be."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.batching import Batchers, Done
from planner.calls import Part, Produced, RemoteArray
from planner.cards import Card, LatencyProfile, Resources
from planner.errors import ExtensionRaised, FenixError
from planner.features import Array, Feature, Port
from planner.step_cache import StepCache, worth_caching
from planner.tokens import Token
from tests.planner.doubles import PacedCalls

FAR_S = 1e9
MEASURED = LatencyProfile(per_row_ms=5.0, n_calls=10)
NUMBER = Feature("number", "FP32")
CARD = Card("plus", "1", (Port("x", NUMBER),), (Port("y", NUMBER),), profile=MEASURED)


def numbers(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)}


def plus(inputs: Mapping[str, Any]) -> dict[str, Produced]:
    x = inputs["x"]
    return {"y": Produced(x + 1, x / 100)}


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


@dataclass(eq=False)
class Order:
    """A call that waits for the test to answer it."""

    inputs: Mapping[str, Any]
    token: Token
    answer: asyncio.Future[Mapping[str, Produced]]

    @property
    def rows(self) -> list[float]:
        return [float(value) for value in self.inputs["x"]]

    def serve(self) -> None:
        self.answer.set_result(plus(self.inputs))


class Desk:
    """Takes calls in the place of an extension's queue, and answers at once unless it `waits` for the test."""

    def __init__(
        self, work: Callable[[Mapping[str, Any]], Mapping[str, Produced]] = plus, *, waits: bool = False
    ) -> None:
        self.work = work
        self.waits = waits
        self.hedged = False
        self.orders: list[Order] = []

    async def __call__(self, inputs: Mapping[str, Part], n_rows: int, token: Token, until_s: float) -> Done:
        assert all(len(part) == n_rows for part in inputs.values())
        order = Order(inputs, token, asyncio.get_running_loop().create_future())
        self.orders.append(order)
        if not self.waits:
            order.answer.set_result(self.work(inputs))
        return Done(await order.answer, n_rows, 0.0, 1.0, self.hedged)

    @property
    def asked(self) -> list[list[float]]:
        return [order.rows for order in self.orders]


class Asker:
    def __init__(self, desk: Desk, card: Card = CARD, cache: StepCache | None = None) -> None:
        self.cache = cache or StepCache(1 << 20)
        self.desk = desk
        self.card = card

    async def __call__(self, *values: float, **token: Any) -> Any:
        done = await self.done(*values, **token)
        return np.asarray(done.outputs["y"].values).tolist()

    async def done(self, *values: float, until_s: float = FAR_S, **token: Any) -> Done:
        return await self.cache.submit(self.card, numbers(*values), len(values), Token(until_s, **token), self.desk)

    def start(self, *values: float, **token: Any) -> asyncio.Task[Any]:
        return asyncio.create_task(self(*values, **token))


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(20):
            await scenario()

    asyncio.run(bounded())


def test_rows_that_are_known_need_no_call() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        first = await ask.done(1, 2)
        again = await ask.done(2, 1)
        assert ask.desk.asked == [[1, 2]]
        assert (first.batch_rows, again.batch_rows) == (2, 0)
        made = again.outputs["y"]
        assert np.asarray(made.values).tolist() == [3, 2]
        assert made.confidence is not None
        assert made.confidence.tolist() == (np.array([2, 1], np.float32) / 100).tolist()
        assert (ask.cache.counts.hits, ask.cache.counts.misses) == (2, 2)

    run(scenario)


def test_rows_of_which_a_half_is_known_say_that_the_call_for_the_others_was_sent_twice() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(1)
        assert not (await ask.done(1, 2)).hedged
        ask.desk.hedged = True
        assert (await ask.done(2, 3)).hedged
        assert not (await ask.done(1, 3)).hedged

    run(scenario)


def test_of_a_batch_that_is_half_known_only_the_other_half_travels_and_order_is_kept() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(2, 4)
        assert await ask(1, 2, 3, 4) == [2, 3, 4, 5]
        assert ask.desk.asked == [[2, 4], [1, 3]]

    run(scenario)


def test_equal_rows_of_one_request_are_computed_once() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        assert await ask(1, 2, 1, 1) == [2, 3, 2, 2]
        assert ask.desk.asked == [[1, 2]]
        assert ask.cache.counts.joined == 2

    run(scenario)


def test_a_row_that_another_request_has_under_way_is_waited_for() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        first = ask.start(1, 2)
        await settle()
        second, third = ask.start(2, 3), ask.start(1)
        await settle()
        assert ask.desk.asked == [[1, 2], [3]]
        ask.desk.orders[1].serve()
        await settle()
        assert not second.done()
        ask.desk.orders[0].serve()
        assert await asyncio.gather(first, second, third) == [[2, 3], [3, 4], [2]]
        assert ask.cache.counts.joined == 2

    run(scenario)


@pytest.mark.parametrize("failure", [ExtensionRaised("a neighbour is to blame"), None])
def test_when_the_other_one_fails_or_is_cancelled_the_rows_are_computed_after_all(failure: Exception | None) -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        first = ask.start(1, 2)
        await settle()
        second = ask.start(2, 3)
        await settle()
        ask.desk.orders[1].serve()
        if failure is None:
            first.cancel()
        else:
            ask.desk.orders[0].answer.set_exception(failure)
        await settle()
        assert ask.desk.asked == [[1, 2], [3], [2]]
        ask.desk.orders[2].serve()
        assert await second == [3, 4]
        with pytest.raises(asyncio.CancelledError if failure is None else ExtensionRaised):
            await first

    run(scenario)


def test_requests_that_wait_for_each_other_both_get_their_answer() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        first = ask.start(1)
        await settle()
        second = ask.start(2, 1)
        await settle()
        third = ask.start(1, 2)
        await settle()
        ask.desk.orders[1].answer.set_exception(ExtensionRaised("no"))
        await settle()
        ask.desk.orders[0].serve()
        await settle()
        ask.desk.orders[2].serve()
        assert await third == [2, 3]
        assert await first == [2]
        with pytest.raises(ExtensionRaised):
            await second

    run(scenario)


def test_who_is_cancelled_while_he_waits_takes_nobody_along() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        first = ask.start(1)
        await settle()
        second, third = ask.start(1), ask.start(1)
        await settle()
        second.cancel()
        await settle()
        ask.desk.orders[0].serve()
        assert await asyncio.gather(first, third) == [[2], [2]]
        assert ask.desk.asked == [[1]]

    run(scenario)


@pytest.mark.parametrize(
    ("theirs", "mine", "waits"),
    [
        ({"priority": 5}, {"priority": 5}, True),
        ({"priority": 2}, {"priority": 5}, True),
        ({"priority": 7}, {"priority": 5}, False),
        ({"until_s": FAR_S}, {"until_s": FAR_S + 1}, True),
        ({"until_s": FAR_S + 1}, {"until_s": FAR_S}, False),
    ],
)
def test_nobody_waits_for_a_request_that_is_less_urgent(theirs: Any, mine: Any, waits: bool) -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        first = ask.start(1, **theirs)
        await settle()
        second = ask.start(1, **mine)
        await settle()
        assert ask.desk.asked == ([[1]] if waits else [[1], [1]])
        for order in ask.desk.orders:
            order.serve()
        assert await asyncio.gather(first, second) == [[2], [2]]

    run(scenario)


def test_a_call_of_others_that_never_ends_is_given_up_at_the_deadline() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(waits=True))
        past_s = asyncio.get_running_loop().time() - 1.0
        first = ask.start(1, until_s=past_s)
        await settle()
        second = ask.start(1, until_s=past_s)
        await settle()
        await settle()
        ask.desk.orders[1].serve()
        assert await second == [2]
        first.cancel()

    run(scenario)


@pytest.mark.parametrize(
    ("cache", "same", "other_tags", "other_user", "other_both"),
    [
        ("shared", True, True, True, True),
        ("tags", True, False, True, False),
        ("user", True, False, False, False),
        ("off", False, False, False, False),
    ],
)
def test_results_reach_those_alone_whom_the_card_names(
    cache: Any, same: bool, other_tags: bool, other_user: bool, other_both: bool
) -> None:
    ann = {"user": "ann", "tags": frozenset({"eu", "pii"})}
    bob = {"user": "bob", "tags": frozenset({"eu"})}

    async def scenario() -> None:
        for token, known in (
            (ann, same),
            (ann | {"tags": bob["tags"]}, other_tags),
            (ann | {"user": "bob"}, other_user),
            (bob, other_both),
        ):
            for waits in (False, True):  # neither from the store nor from under way
                ask = Asker(Desk(waits=waits), CARD.but(cache=cache))
                first = ask.start(1, **ann)
                await settle()
                second = ask.start(1, **token)
                await settle()
                assert ask.desk.asked == ([[1]] if known else [[1], [1]])
                for order in ask.desk.orders * waits:
                    order.serve()
                assert await asyncio.gather(first, second) == [[2], [2]]

    run(scenario)


def test_those_without_a_name_are_not_one_user() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(), CARD.but(cache="user"))
        await ask(1)
        await ask(1)
        assert ask.desk.asked == [[1], [1]]

    run(scenario)


@pytest.mark.parametrize(
    ("card", "worth"),
    [
        (CARD, True),
        (CARD.but(deterministic=False), False),
        (CARD.but(cache="off"), False),
        (CARD.but(cache="user"), True),
        (CARD.but(profile=LatencyProfile(per_row_ms=5.0)), False),
        (CARD.but(profile=LatencyProfile(fixed_ms=50.0, per_row_ms=0.01, n_calls=9)), False),
        (CARD.but(inputs=(Port("x", Feature("n", "FP32", (1000, 1000))),)), False),
        (CARD.but(inputs=(Port("x", Feature("n", "UINT8", (100, 1000))),)), True),
        (CARD.but(inputs=(Port("x", Feature("n", "FP32", (100, 1000)), many=2),)), False),
        (
            CARD.but(inputs=(Port("x", Feature("n", "FP32", (-1,))),), profile=LatencyProfile(1.0, 0.0, 1.0, 2.0, 9)),
            True,
        ),
        (
            CARD.but(inputs=(Port("x", Feature("n", "FP32", (-1,))),), profile=LatencyProfile(1.0, 0.0, 0.1, 2.0, 9)),
            False,
        ),
    ],
)
def test_only_what_was_measured_to_be_dear_is_kept(card: Card, worth: bool) -> None:
    assert worth_caching(card) == worth

    async def scenario() -> None:
        ask = Asker(Desk(), card)
        await ask(1, user="ann")
        await ask(1, user="ann")
        assert len(ask.desk.asked) == (1 if worth else 2)
        assert ask.cache.counts.passed == (0 if worth else 2)

    run(scenario)


def test_an_extension_that_is_gone_is_forgotten_and_what_it_had_under_way_is_not_kept() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(1)
        ask.desk.waits = True
        late = ask.start(2)
        await settle()
        ask.cache.keep_only({CARD.id})
        assert ask.cache.counts.n_rows == 1
        ask.cache.keep_only(set())
        assert ask.cache.counts.n_bytes == 0
        back = ask.start(1, 2)
        await settle()
        ask.desk.orders[1].serve()
        assert await late == [3]
        assert ask.cache.counts.n_rows == 0
        assert ask.desk.asked[-1] == [1, 2]
        ask.desk.orders[-1].serve()
        assert await back == [2, 3]

    run(scenario)


def test_other_options_under_the_same_version_are_another_extension_and_a_new_measurement_is_not() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(1)
        ask.card = CARD.but(profile=LatencyProfile(per_row_ms=6.0, n_calls=20))
        await ask(1)
        assert len(ask.desk.asked) == 1
        ask.card = CARD.but(options={"by": 2})
        await ask(1)
        assert len(ask.desk.asked) == 2
        assert ask.cache.counts.n_rows == 1

    run(scenario)


def test_what_is_turned_off_gives_its_room_back() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(1)
        ask.card = CARD.but(cache="off")
        await ask(1)
        assert (len(ask.desk.asked), ask.cache.counts.n_bytes) == (2, 0)

    run(scenario)


def test_more_rows_than_there_is_room_for_are_still_answered_rightly_within_the_bound() -> None:
    async def scenario() -> None:
        ask = Asker(Desk(), cache=StepCache(64 << 10))
        rng = np.random.default_rng(0)
        for _ in range(300):
            values = rng.integers(0, 300, 4).tolist()
            assert await ask(*values) == [value + 1 for value in values]
            assert ask.cache.counts.n_bytes <= 64 << 10
        counts = ask.cache.counts
        assert counts.evictions > 100
        assert counts.hits > 100
        assert counts.hits + counts.misses + counts.joined == 1200

    run(scenario)


class Far(RemoteArray):
    def __init__(self, values: Array) -> None:
        self.values = values
        self.shape = values.shape
        self.dtype = values.dtype

    def __getitem__(self, rows: slice) -> Far:
        return Far(self.values[rows])

    async def fetch(self) -> Array:
        return self.values


def test_remote_inputs_pass_through() -> None:
    async def scenario() -> None:
        cache, desk = StepCache(1 << 20), Desk(lambda inputs: {"y": Produced(np.ones(1))})
        far = {"x": Far(np.ones(1, np.float32))}
        for _ in range(2):
            await cache.submit(CARD, far, 1, Token(FAR_S), desk)
        assert [order.inputs for order in desk.orders] == [far, far]

    run(scenario)


def test_remote_results_are_not_kept_but_joined_with_those_that_are() -> None:
    async def scenario() -> None:
        ask = Asker(Desk())
        await ask(1)
        ask.desk.work = lambda inputs: {"y": Produced(Far(inputs["x"] + 1), inputs["x"] / 100)}
        whole = (await ask.done(5, 6)).outputs["y"].values
        assert isinstance(whole, Far)
        assert await ask(2, 1) == [3, 2]
        assert ask.cache.counts.n_rows == 1

    run(scenario)


def test_rows_that_do_not_lie_in_one_array_as_they_were_kept_are_computed_together() -> None:
    def padded(inputs: Mapping[str, Any]) -> dict[str, Produced]:
        x = inputs["x"]
        return {"y": Produced(np.tile(x[:, None], (1, int(x.max()))))}

    async def scenario() -> None:
        ask = Asker(Desk(padded), CARD.but(outputs=(Port("y", Feature("number", "FP32", (-1,))),)))
        assert await ask(1, 1) == [[1], [1]]
        assert await ask(3) == [[3, 3, 3]]
        assert await ask(1, 3) == [[1, 1, 1], [3, 3, 3]]
        assert await ask(3, 3) == [[3, 3, 3]] * 2
        assert ask.desk.asked == [[1], [3], [1, 3]]

    run(scenario)


def test_large_inputs_are_told_apart_too() -> None:
    async def scenario() -> None:
        cache, desk = StepCache(1 << 20), Desk(lambda inputs: {"y": Produced(inputs["x"].max(axis=1))})
        values = np.zeros((2, 300_000), np.float32)
        values[1, -1] = 1
        card = CARD.but(profile=LatencyProfile(per_row_ms=50.0, n_calls=9))
        for _ in range(2):
            done = await cache.submit(card, {"x": values}, 2, Token(FAR_S), desk)
            assert np.asarray(done.outputs["y"].values).tolist() == [0, 1]
        assert len(desk.orders) == 1

    run(scenario)


def test_it_stands_before_the_queue_of_an_extension() -> None:
    async def scenario() -> None:
        calls = PacedCalls({CARD.id: plus})
        card = CARD.but(resources=Resources(max_batch_rows=2))
        queue = Batchers(calls).of(card)
        cache = StepCache(1 << 20)
        token = Token(asyncio.get_running_loop().time() + 60)

        async def ask(*values: float) -> Any:
            done = await cache.submit(card, numbers(*values), len(values), token, queue.submit, token.until_s)
            return np.asarray(done.outputs["y"].values).tolist()

        assert await asyncio.gather(ask(1, 2, 3), ask(3, 4)) == [[2, 3, 4], [4, 5]]
        assert sum(n_rows for _, n_rows in calls.batches) == 4
        assert await ask(4, 3, 2, 1) == [5, 4, 3, 2]
        assert sum(n_rows for _, n_rows in calls.batches) == 4

    run(scenario)


class Failed(FenixError):
    """Says whose call it was that failed."""

    def __init__(self, token: Token) -> None:
        super().__init__("failed")
        self.token = token


Ask = tuple[str, list[int], int, str]
asks = st.tuples(
    st.just("ask"), st.lists(st.integers(0, 6), min_size=1, max_size=4), st.integers(4, 6), st.sampled_from(["", "ann"])
)
others = st.tuples(st.sampled_from(["serve", "serve", "fail", "cancel", "forget"]), st.integers(0, 9))


@settings(max_examples=150, deadline=None)
@given(st.lists(asks | others, min_size=4, max_size=30), st.sampled_from([1_000, 1 << 20]))
def test_whatever_happens_everyone_gets_his_answer_or_his_own_failure(
    actions: Sequence[tuple[Any, ...]], max_bytes: int
) -> None:
    """Requests come, calls are answered or fail, clients leave and extensions go, in any order; a thousand bytes are
    too few to keep a row, so that only those under way can be shared."""

    async def scenario() -> None:
        desk = Desk(waits=True)
        cache = StepCache(max_bytes)
        card = CARD.but(cache="tags")
        requests: list[tuple[Token, list[int], asyncio.Task[Done]]] = []
        failed: set[Token] = set()
        cancelled: set[Token] = set()
        forgot = False

        def waiting() -> list[Order]:
            return [order for order in desk.orders if not order.answer.done()]

        for action in actions:
            if action[0] == "ask":
                _, values, priority, tag = action
                token = Token(FAR_S, priority, tags=frozenset({tag}))
                task = asyncio.create_task(cache.submit(card, numbers(*values), len(values), token, desk))
                requests.append((token, values, task))
            elif action[0] == "forget":
                cache.keep_only(())
                forgot = True
            elif action[0] == "cancel" and requests:
                token, _, task = requests[action[1] % len(requests)]
                if not task.done():
                    task.cancel()
                    cancelled.add(token)
            elif action[0] in ("serve", "fail") and (orders := waiting()):
                order = orders[action[1] % len(orders)]
                if action[0] == "serve":
                    order.serve()
                else:
                    failed.add(order.token)
                    order.answer.set_exception(Failed(order.token))
            await settle()
            assert cache.counts.n_bytes <= max_bytes
        for _ in range(len(actions) * 2):
            for order in waiting():
                order.serve()
            await settle()
        assert all(task.done() for _, _, task in requests), "somebody waits for ever"

        for token, values, task in requests:
            if token in cancelled:
                assert task.cancelled()
            elif token in failed:
                error = task.exception()
                assert isinstance(error, Failed)
                assert error.token is token
            else:
                made = task.result().outputs["y"]
                expected = plus(numbers(*values))["y"]
                assert np.array_equal(np.asarray(made.values), np.asarray(expected.values))
                assert np.asarray(made.values).dtype == np.float32
                assert made.confidence is not None
                assert expected.confidence is not None
                assert np.array_equal(made.confidence, expected.confidence)
            own = [row for order in desk.orders if order.token is token for row in order.rows]
            assert len(own) == len(set(own)), "a request had a row of its own computed twice"
        alike = len({token.priority for token, _, _ in requests}) == 1
        if alike and max_bytes > 1_000 and not (failed or cancelled or forgot):
            kinds = {(value, token.tags) for token, values, _ in requests for value in values}
            assert sum(len(order.rows) for order in desk.orders) == len(kinds)

    run(scenario)
