from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import pytest

from planner.batching import AGAIN_AFTER_S, Batcher, Batchers, BatchLimits, Done
from planner.calls import Parts, Produced, Ran
from planner.cards import ExtensionId, Resources
from planner.envelopes import Envelope
from planner.errors import (
    BadInput,
    Cancelled,
    DeadlineExceeded,
    ExtensionBroken,
    ExtensionRaised,
    ExtensionTimeout,
    ExtensionUnavailable,
    Overloaded,
)
from planner.features import Array
from planner.line import AGING_S
from planner.policies.greedy import Greedy
from planner.policies.policy import BatchOutcome, BatchPolicy, QueueState
from planner.tokens import Escort, LineAhead, Token
from tests.planner.doubles import PacedCalls, Work, card, failing, plus

NAME = ExtensionId("plus@1")
FAR_S = 1e9


def batcher(work: Work, **limits: int) -> tuple[Batcher, PacedCalls]:
    calls = PacedCalls({NAME: work})
    return Batcher(NAME, calls, BatchLimits(**limits), lambda extension, n_rows, kilo, took_ms: None, Greedy()), calls


def numbers(*values: float) -> dict[str, Array]:
    return {"x": np.array(values, np.float32)}


async def submit(queue: Batcher, *values: float, until_s: float = FAR_S, priority: int = 0) -> list[float]:
    done = await queue.submit(numbers(*values), len(values), Token(until_s, priority))
    return np.asarray(done.outputs["y"].values).tolist()


async def settle() -> None:
    """Lets every task run until it waits for something."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_lone_request_to_an_idle_extension_goes_at_once() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(1))
        assert await submit(queue, 1.0) == [2.0]
        assert calls.batches == [(NAME, 1)]

    asyncio.run(scenario())


def test_what_arrives_while_all_slots_are_taken_travels_as_one_batch_and_everyone_gets_his_own_rows() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(1), max_in_flight=1)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0, -0.0))]
        await settle()
        waiting += [asyncio.create_task(submit(queue, float(i), float(-i))) for i in range(1, 5)]
        await settle()
        calls.gate.set()
        assert await asyncio.gather(*waiting) == [[i + 1.0, -i + 1.0] for i in range(5)]
        assert calls.batches == [(NAME, 2), (NAME, 8)]

    asyncio.run(scenario())


def test_no_more_calls_are_under_way_than_allowed_and_no_batch_is_larger_than_allowed() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=2, max_rows=4)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, float(i))) for i in range(30)]
        await settle()
        assert calls.under_way == 4  # two run, and two full ones are ahead of their turn
        calls.gate.set()
        await asyncio.gather(*waiting)
        assert calls.most_under_way == 4
        assert max(n_rows for _, n_rows in calls.batches) == 4

    asyncio.run(scenario())


def test_only_a_full_call_is_sent_ahead_and_its_time_counts_from_when_its_replica_is_free(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = [100.0]
    monkeypatch.setattr("planner.batching.perf_counter", lambda: now_s[0])

    async def scenario() -> None:
        took: list[tuple[int, float]] = []
        calls = PacedCalls({NAME: plus(0)})
        observe = lambda extension, n_rows, kilo, took_ms: took.append((n_rows, took_ms))  # noqa: E731
        queue = Batcher(NAME, calls, BatchLimits(max_rows=4), observe, Greedy())
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        waiting += [asyncio.create_task(submit(queue, float(i))) for i in range(3)]
        await settle()
        assert calls.under_way == 1
        waiting += [asyncio.create_task(submit(queue, float(i))) for i in range(3)]
        await settle()
        assert calls.under_way == 2
        now_s[0] += 5.0
        calls.gate.set()
        await asyncio.gather(*waiting)
        assert took == [(1, 5000.0), (4, 0.0), (2, 0.0)]

    asyncio.run(scenario())


def test_there_is_room_for_what_the_next_call_can_take_beside_the_more_urgent() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_rows=4)
        low, high = Token(FAR_S, 9), Token(FAR_S, 1)
        told: list[str] = []
        assert queue.room(low) == 4
        queue.expect(3, high)
        assert (queue.room(low), queue.room(high)) == (1, 1)
        queue.expect(-3, high)
        queue.expect(3, low)
        assert (queue.room(low), queue.room(high)) == (1, 4)
        queue.expect(-3, low)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        waiting += [asyncio.create_task(submit(queue, 0.0, priority=1)) for _ in range(3)]
        await settle()
        assert (queue.room(low), queue.room(high)) == (1, 1)
        waiting.append(asyncio.create_task(submit(queue, 0.0, priority=5)))
        await settle()
        assert (queue.room(low), queue.room(high)) == (0, 0)  # that one was sent ahead: more would only stand here
        queue.when_moved(low, lambda: told.append("low"))
        queue.when_moved(high, lambda: told.append("high"))
        await settle()
        assert told == []
        calls.gate.set()
        await asyncio.gather(*waiting)
        await settle()
        assert told == ["high", "low"]

    asyncio.run(scenario())


def test_who_has_waited_long_enough_has_room_among_the_more_urgent_and_hears_of_it_first() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_rows=4)
        now_s = asyncio.get_running_loop().time()
        aged, fresh = Token(FAR_S, 5, came_s=now_s - 1.5 * AGING_S), Token(FAR_S, 5, came_s=now_s)
        urgent = Token(FAR_S, 4, came_s=now_s)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        waiting += [asyncio.create_task(submit(queue, 0.0, priority=4)) for _ in range(2)]
        queue.expect(2, Token(FAR_S, 5))  # others of the lower class, who have not waited
        await settle()
        assert [queue.room(token) for token in (aged, urgent, fresh)] == [2, 2, 0]
        told: list[str] = []
        for name, token in (("urgent", urgent), ("aged", aged)):
            queue.when_moved(token, partial(told.append, name))
        calls.gate.set()
        await asyncio.gather(*waiting)
        await settle()
        assert told == ["aged", "urgent"]

    asyncio.run(scenario())


def test_who_waits_for_room_is_told_when_those_who_were_expected_do_not_come() -> None:
    async def scenario() -> None:
        queue, _ = batcher(plus(0), max_rows=4)
        told: list[bool] = []
        queue.expect(4, Token(FAR_S))
        assert queue.room(Token(FAR_S)) == 0
        queue.when_moved(Token(FAR_S), lambda: told.append(True))
        await settle()
        assert told == []
        queue.expect(-4, Token(FAR_S))
        await settle()
        assert told == [True]
        assert queue.room(Token(FAR_S)) == 4

    asyncio.run(scenario())


def test_a_request_larger_than_a_batch_is_cut_and_comes_back_whole_and_in_order() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(1), max_rows=3)
        values = [float(i) for i in range(20)]
        assert await submit(queue, *values) == [v + 1 for v in values]
        assert max(n_rows for _, n_rows in calls.batches) == 3

    asyncio.run(scenario())


def test_one_bad_piece_of_a_large_request_fails_it_with_its_own_error() -> None:
    def refuses_sevens(rows: dict[str, Array]) -> Mapping[str, Produced]:
        if (rows["x"] == 7).any():
            raise BadInput("a seven")
        return plus(0)(rows)

    async def scenario() -> None:
        queue, _ = batcher(refuses_sevens, max_rows=3)
        await submit(queue, *range(20))

    with pytest.raises(BadInput, match="a seven"):
        asyncio.run(scenario())


def test_rows_of_different_shapes_never_share_a_batch() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=1)
        calls.gate.clear()
        shapes = [(1,), (1, 2), (1, 2), (1, 3)]
        waiting = [
            asyncio.create_task(queue.submit({"x": np.ones(shape, np.float32)}, 1, Token(FAR_S))) for shape in shapes
        ]
        await settle()
        calls.gate.set()
        sums = [float(np.asarray(done.outputs["y"].values)[0]) for done in await asyncio.gather(*waiting)]
        assert sums == [1.0, 2.0, 2.0, 3.0]
        assert [n_rows for _, n_rows in calls.batches] == [1, 2, 1]

    asyncio.run(scenario())


@pytest.mark.parametrize("shape", [(1,), (1, 2)])
def test_texts_of_similar_length_travel_together_where_more_wait_than_a_batch_takes(shape: tuple[int, ...]) -> None:
    seen: list[list[int]] = []

    def measure(rows: dict[str, Array]) -> Mapping[str, Produced]:
        seen.append([len(text) for text in rows["x"].reshape(len(rows["x"]), -1)[:, 0]])
        return {"y": Produced(np.zeros(len(rows["x"])))}

    async def scenario() -> None:
        queue, calls = batcher(measure, max_in_flight=1, max_rows=3)
        calls.gate.clear()
        waiting = []
        for i, length in enumerate([1, 300, 10, 290, 12, 11, 310]):
            texts = np.full(shape, b"a" * length, dtype=object)
            waiting.append(asyncio.create_task(queue.submit({"x": texts}, 1, Token(FAR_S + i))))
            await settle()
        calls.gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())
    assert [sorted(lengths) for lengths in seen] == [[1], [290, 300, 310], [10, 11, 12]]


def test_one_guilty_request_fails_alone_and_its_neighbours_are_answered() -> None:
    def refuses_negatives(rows: dict[str, Array]) -> Mapping[str, Produced]:
        if (rows["x"] < 0).any():
            raise ExtensionRaised("negative")
        return plus(1)(rows)

    async def scenario() -> None:
        queue, calls = batcher(refuses_negatives, max_in_flight=1)
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 0.0))
        await settle()
        waiting = [asyncio.create_task(submit(queue, float(v))) for v in (1, 2, -3, 4, 5, 6, 7)]
        await settle()
        calls.gate.set()
        await first
        answers = await asyncio.gather(*waiting, return_exceptions=True)
        assert isinstance(answers[2], ExtensionRaised)
        assert [a for i, a in enumerate(answers) if i != 2] == [[2.0], [3.0], [5.0], [6.0], [7.0], [8.0]]

    asyncio.run(scenario())


def test_a_full_queue_refuses_at_once_with_a_typed_error() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=1, max_waiting_rows=3)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        waiting += [asyncio.create_task(submit(queue, float(i))) for i in range(1, 4)]
        await settle()
        with pytest.raises(Overloaded, match="3 rows waiting"):
            await submit(queue, 9.0)
        calls.gate.set()
        assert len(await asyncio.gather(*waiting)) == 4

    asyncio.run(scenario())


def test_a_request_is_given_up_at_its_deadline_while_the_batch_goes_on_for_others() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0))
        calls.gate.clear()
        soon_s = asyncio.get_running_loop().time() + 0.01
        hurried, patient = submit(queue, 1.0, until_s=soon_s), asyncio.create_task(submit(queue, 2.0))
        with pytest.raises(ExtensionTimeout):
            await hurried
        calls.gate.set()
        assert await patient == [2.0]

    asyncio.run(scenario())


def test_a_cancelled_request_leaves_the_queue_and_is_never_run() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=1)
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 1.0))
        await settle()
        gone = asyncio.create_task(submit(queue, 2.0))
        last = asyncio.create_task(submit(queue, 3.0))
        await settle()
        gone.cancel()
        await settle()
        calls.gate.set()
        assert (await first, await last) == ([1.0], [3.0])
        assert calls.batches == [(NAME, 1), (NAME, 1)]

    asyncio.run(scenario())


@pytest.mark.parametrize("error", [BadInput("no"), ValueError("a bug")])
def test_whatever_a_call_raises_reaches_the_caller_typed(error: Exception) -> None:
    async def scenario() -> Done:
        queue, _ = batcher(failing(error))
        return await queue.submit(numbers(1.0), 1, Token(FAR_S))

    with pytest.raises(BadInput if isinstance(error, BadInput) else ExtensionRaised):
        asyncio.run(scenario())


def test_rows_that_nobody_waits_for_any_more_make_room_behind_a_hanging_call() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_waiting_rows=2)
        calls.gate.clear()
        hanging = asyncio.create_task(submit(queue, 1.0))
        await settle()
        soon_s = asyncio.get_running_loop().time() + 0.01
        late = [asyncio.create_task(submit(queue, 2.0, until_s=soon_s)) for _ in range(2)]
        assert all(isinstance(e, ExtensionTimeout) for e in await asyncio.gather(*late, return_exceptions=True))
        patient = asyncio.create_task(submit(queue, 3.0, 4.0))
        await settle()
        calls.gate.set()
        assert await patient == [3.0, 4.0]
        await hanging
        assert calls.batches == [(NAME, 1), (NAME, 2)]

    asyncio.run(scenario())


def test_a_call_that_nobody_waits_for_is_ended_and_frees_its_place() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=1)
        calls.gate.clear()
        with pytest.raises(ExtensionTimeout):
            await submit(queue, 1.0, until_s=asyncio.get_running_loop().time() + 0.01)
        await settle()
        assert calls.under_way == 0
        calls.gate.set()
        assert await submit(queue, 2.0) == [2.0]

    asyncio.run(scenario())


def test_waiting_bytes_are_bounded_too() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_in_flight=1, max_waiting_bytes=100)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, *([1.0] * 20)))]
        await settle()
        waiting.append(asyncio.create_task(submit(queue, *([1.0] * 20))))
        await settle()
        with pytest.raises(Overloaded, match="MiB"):
            await submit(queue, *([1.0] * 20))
        calls.gate.set()
        await asyncio.gather(*waiting)

    asyncio.run(scenario())


def test_pieces_that_come_back_in_different_shapes_are_the_extensions_fault() -> None:
    def ragged(rows: dict[str, Array]) -> Mapping[str, Produced]:
        width = 1 if rows["x"][0] == 0 else 2
        return {"y": Produced(np.ones((len(rows["x"]), width), np.float32))}

    async def scenario() -> None:
        queue, _ = batcher(ragged, max_rows=3)
        await submit(queue, *range(6))

    with pytest.raises(ExtensionBroken, match=r"plus@1 gives rows of different shapes"):
        asyncio.run(scenario())


def test_what_a_call_took_is_told_with_its_rows_and_the_size_of_what_has_no_fixed_size() -> None:
    async def scenario() -> None:
        told: list[tuple[int, float]] = []
        calls = PacedCalls({NAME: plus(0)})
        queue = Batcher(
            NAME, calls, BatchLimits(), lambda e, n_rows, kilo, ms: told.append((n_rows, kilo)), Greedy(), ("x",)
        )
        await queue.submit({"x": np.ones((2, 500), np.float32)}, 2, Token(FAR_S))
        assert told == [(2, 1.0)]

    asyncio.run(scenario())


def test_while_more_urgent_rows_could_come_the_last_of_the_room_is_kept_for_them() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_waiting_rows=20)
        calls.gate.clear()
        hanging = asyncio.create_task(submit(queue, 0.0))
        await settle()
        flood = [asyncio.create_task(submit(queue, 1.0, priority=9)) for _ in range(20)]
        await settle()
        refused = [task for task in flood if task.done()]
        assert all(isinstance(task.exception(), Overloaded) for task in refused)
        assert len(refused) == 9
        urgent = asyncio.create_task(submit(queue, 2.0))
        await settle()
        calls.gate.set()
        assert await urgent == [2.0]
        assert len(await asyncio.gather(hanging, *flood, return_exceptions=True)) == 21

    asyncio.run(scenario())


def test_the_most_urgent_and_of_those_the_first_due_travel_first() -> None:
    order: list[float] = []

    def noting(rows: dict[str, Array]) -> Mapping[str, Produced]:
        order.extend(rows["x"].tolist())
        return plus(0)(rows)

    async def scenario() -> None:
        queue, calls = batcher(noting, max_rows=1)
        calls.gate.clear()
        soon_s = asyncio.get_running_loop().time() + 1.0
        tasks = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        for value, priority, wait_s in [(1.0, 5, 3.0), (2.0, 5, 2.0), (3.0, 1, 4.0), (4.0, 5, 1.0)]:
            tasks.append(asyncio.create_task(submit(queue, value, until_s=soon_s + wait_s, priority=priority)))
        await settle()
        calls.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())
    assert order == [0.0, 3.0, 4.0, 2.0, 1.0]


def test_rows_that_could_not_be_done_in_time_any_more_fail_before_they_run() -> None:
    class SlowCalls(PacedCalls):
        async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
            await asyncio.sleep(0.05)
            return await super().infer(extension, parts, timeout_s)

    async def scenario() -> None:
        calls = SlowCalls({NAME: plus(0)})
        queue = Batcher(NAME, calls, BatchLimits(max_rows=1), lambda e, n_rows, kilo, ms: None, Greedy())
        await submit(queue, 0.0)  # now it is known what a call takes
        now_s = asyncio.get_running_loop().time()
        first = asyncio.create_task(submit(queue, 1.0))
        await settle()
        hard = Token(now_s + 0.08, hard=True)
        with pytest.raises(DeadlineExceeded, match="could not be done in time"):
            await queue.submit(numbers(2.0), 1, hard)
        assert asyncio.get_running_loop().time() < hard.until_s
        await first
        assert len(calls.batches) == 2

    asyncio.run(scenario())


def test_rows_of_a_client_that_has_gone_never_run() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0))
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 1.0))
        await settle()
        token = Token(FAR_S)
        later = asyncio.create_task(queue.submit(numbers(2.0), 1, token))
        await settle()
        token.gone = True
        calls.gate.set()
        await first
        with pytest.raises(Cancelled):
            await later
        with pytest.raises(Cancelled):
            await queue.submit(numbers(3.0), 1, token)
        assert calls.batches == [(NAME, 1)]

    asyncio.run(scenario())


def test_a_call_that_is_given_up_before_it_began_frees_its_place() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0))
        token = Token(FAR_S)
        loop = asyncio.get_running_loop()
        coroutine = queue.submit(numbers(1.0), 1, token)
        coroutine.send(None)
        loop.call_soon(coroutine.close)  # when the call has its task, but that had no turn yet
        await asyncio.sleep(0)
        assert await submit(queue, 2.0) == [2.0]
        assert calls.batches == [(NAME, 1)]

    asyncio.run(scenario())


class Patient(BatchPolicy):
    """Waits for three rows, or 20 ms."""

    name = "patient"

    def _wish(self, state: QueueState) -> tuple[int, float]:
        return 3, 20.0 - state.oldest_wait_ms


def test_a_policy_may_wait_for_more_and_looks_again_in_time() -> None:
    async def scenario() -> None:
        calls = PacedCalls({NAME: plus(0)})
        queue = Batcher(NAME, calls, BatchLimits(max_in_flight=2), lambda e, n_rows, kilo, ms: None, Patient())
        loop = asyncio.get_running_loop()
        for _ in range(5):  # so that the policy may expect more rows to come
            await asyncio.gather(*(submit(queue, float(i)) for i in range(100)))
            await asyncio.sleep(0.03)
        calls.batches.clear()
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 0.0))
        await settle()
        began_s = loop.time()
        pair = [asyncio.create_task(submit(queue, float(i))) for i in range(2)]
        await settle()
        assert [n_rows for _, n_rows in calls.batches] == [1]
        calls.gate.set()
        await asyncio.gather(*pair)
        assert [n_rows for _, n_rows in calls.batches] == [1, 2]
        assert loop.time() - began_s >= 0.015
        await first

    asyncio.run(scenario())


def test_the_policy_hears_what_calls_took_and_how_many_rows_were_dropped() -> None:
    heard: list[BatchOutcome] = []

    class Listening(Greedy):
        def _learn(self, outcome: BatchOutcome) -> None:
            heard.append(outcome)

    async def scenario() -> None:
        calls = PacedCalls({NAME: plus(0)})
        queue = Batcher(NAME, calls, BatchLimits(), lambda e, n_rows, kilo, ms: None, Listening())
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 1.0, 2.0))
        await settle()
        others = [asyncio.create_task(submit(queue, 3.0)) for _ in range(2)]
        await settle()
        calls.gate.set()
        await asyncio.gather(first, *others)

    asyncio.run(scenario())
    assert [(outcome.n_rows, outcome.state.n_waiting_rows) for outcome in heard] == [(2, 1), (2, 2)]


def test_the_policy_sees_how_busy_the_replicas_are() -> None:
    seen: list[QueueState] = []

    class Looking(Greedy):
        def _wish(self, state: QueueState) -> tuple[int, float]:
            seen.append(state)
            return super()._wish(state)

    async def scenario() -> None:
        calls = PacedCalls({NAME: plus(0)})
        batchers = Batchers(calls, policy_of=lambda card: Looking())
        plus_card = card("plus")

        async def look() -> tuple[float, float]:
            queue = batchers.of(plus_card)
            calls.gate.clear()
            tasks = [asyncio.create_task(submit(queue, 1.0)) for _ in range(4)]
            await settle()
            calls.gate.set()
            await asyncio.gather(*tasks)
            return seen[-1].cpu_share, seen[-1].gpu_share

        batchers.hear({NAME: Envelope(NAME, "", 0.0, cpu_share=0.6, gpu_share=0.25, n_replicas=2)})
        assert await look() == (0.3, 0.25)
        batchers.hear({NAME: Envelope(NAME, "", 0.0, cpu_share=3.5)})
        cpu_share, gpu_share = await look()
        assert cpu_share == 1.0
        assert math.isnan(gpu_share)
        batchers.hear({})
        assert all(map(math.isnan, await look()))

    asyncio.run(scenario())


def test_a_backlog_tells_what_a_new_request_would_find() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_rows=4)
        assert queue.backlog(Token(FAR_S)) is None
        calls.gate.clear()
        tasks = [asyncio.create_task(submit(queue, *([1.0] * 4), priority=5)) for _ in range(4)]  # two go
        await settle()
        found = queue.backlog(Token(FAR_S, priority=5))
        assert found is not None
        assert found.ahead.n_rows == 8
        urgent = queue.backlog(Token(FAR_S, priority=0))
        assert urgent is not None
        assert urgent.ahead.n_rows == 0
        calls.gate.set()
        await asyncio.gather(*tasks)

    asyncio.run(scenario())


def test_what_comes_in_one_turn_travels_in_one_call_even_to_an_idle_extension() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(1))
        waiting = [asyncio.create_task(submit(queue, float(i))) for i in range(3)]
        assert await asyncio.gather(*waiting) == [[1.0], [2.0], [3.0]]
        assert calls.batches == [(NAME, 3)]

    asyncio.run(scenario())


def test_a_call_is_filled_to_the_last_row_and_who_was_cut_gets_all_of_its_rows_in_order() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(1, confidence=lambda rows: rows / 100), max_rows=4)
        calls.gate.clear()
        waiting = [asyncio.create_task(submit(queue, 0.0))]
        await settle()
        sizes = (3, 3, 4, 1)
        given = [[float(10 * i + j) for j in range(size)] for i, size in enumerate(sizes)]
        waiting += [asyncio.create_task(submit(queue, *values)) for values in given]
        await settle()
        calls.gate.set()
        assert await asyncio.gather(*waiting) == [[1.0], *([value + 1 for value in values] for values in given)]
        assert [n_rows for _, n_rows in calls.batches] == [1, 4, 4, 3]
        done = await asyncio.gather(*(queue.submit(numbers(*values), len(values), Token(FAR_S)) for values in given))
        for values, one in zip(given, done, strict=True):
            assert one.outputs["y"].confidence == pytest.approx([(value + 1) / 100 for value in values])

    asyncio.run(scenario())


def test_a_cut_request_fails_as_a_whole_and_leaves_nothing_in_the_line() -> None:
    def refuses_sevens(rows: dict[str, Array]) -> Mapping[str, Produced]:
        if (rows["x"] == 7).any():
            raise BadInput("a seven")
        return plus(0)(rows)

    async def scenario() -> None:
        queue, calls = batcher(refuses_sevens, max_rows=4)
        calls.gate.clear()
        first = asyncio.create_task(submit(queue, 0.0))
        await settle()
        good = asyncio.create_task(submit(queue, 1.0, 2.0, 3.0))
        bad = asyncio.create_task(submit(queue, 7.0, 5.0, 6.0))
        last = asyncio.create_task(submit(queue, 8.0))
        await settle()
        calls.gate.set()
        assert (await first, await good, await last) == ([0.0], [1.0, 2.0, 3.0], [8.0])
        with pytest.raises(BadInput, match="a seven"):
            await bad
        assert queue.backlog(Token(FAR_S)) is None

    asyncio.run(scenario())


class Watching(Escort):
    """Counts the rows that stand in lines."""

    def __init__(self) -> None:
        self.standing = 0
        self.told: list[int] = []

    def waits(self, line: LineAhead, n_rows: int, batch_rows: int) -> None:
        self.standing += n_rows
        self.told.append(self.standing)
        assert batch_rows == 4

    def goes(self, line: LineAhead, n_rows: int) -> None:
        self.standing -= n_rows
        self.told.append(self.standing)


def test_an_escort_hears_of_its_rows_in_the_line_whatever_becomes_of_them() -> None:
    async def scenario() -> None:
        queue, calls = batcher(plus(0), max_rows=4)
        calls.gate.clear()
        escort = Watching()

        def rows_of(n_rows: int, until_s: float = FAR_S) -> asyncio.Task[Done]:
            token = Token(until_s, escort=escort)
            return asyncio.create_task(queue.submit(numbers(*[0.0] * n_rows), n_rows, token))

        first = asyncio.create_task(submit(queue, 0.0))
        await settle()
        runs, cut, left = rows_of(3), rows_of(2), rows_of(4)
        late = rows_of(2, asyncio.get_running_loop().time() + 0.01)
        await asyncio.wait([late])
        left.cancel()
        await settle()
        assert escort.told == [3, 5, 9, 11, 9, 7, 3]  # the two soonest and two more were sent ahead
        calls.gate.set()
        await asyncio.gather(first, runs, cut)
        assert escort.told[7:] == [2, 0]
        with pytest.raises(ExtensionTimeout):
            await late

    asyncio.run(scenario())


class Dying(PacedCalls):
    """Loses the replica under the first `times` calls."""

    def __init__(self, times: int) -> None:
        super().__init__({NAME: plus(1)})
        self.left = times

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        ran = await super().infer(extension, parts, timeout_s)
        if self.left:
            self.left -= 1
            raise ExtensionUnavailable("it died")
        return ran


@pytest.mark.parametrize(("deaths", "replicas", "tries"), [(1, 2, 2), (2, 2, 2), (1, 1, 1)])
def test_a_call_whose_replica_died_is_sent_once_more_where_there_are_others(
    deaths: int, replicas: int, tries: int
) -> None:
    async def scenario() -> None:
        calls = Dying(deaths)
        limits = BatchLimits(max_in_flight=replicas)
        queue = Batcher(NAME, calls, limits, lambda extension, n_rows, kilo, took_ms: None, Greedy())
        if deaths < tries:
            assert await submit(queue, 1.0) == [2.0]
        else:
            with pytest.raises(ExtensionUnavailable):
                await submit(queue, 1.0)
        assert len(calls.batches) == tries

    asyncio.run(scenario())


def test_what_is_no_function_of_its_rows_is_not_sent_them_again() -> None:
    async def scenario() -> None:
        for deterministic in (True, False):
            calls = Dying(1)
            several = card("plus").but(deterministic=deterministic, resources=Resources(max_replicas=2))
            queue = Batchers(calls).of(several)
            if deterministic:
                assert await submit(queue, 1.0) == [2.0]
            else:
                with pytest.raises(ExtensionUnavailable):
                    await submit(queue, 1.0)
            assert len(calls.batches) == 1 + deterministic

    asyncio.run(scenario())


def test_a_call_is_not_sent_again_when_there_is_no_time_for_it() -> None:
    async def scenario() -> None:
        calls = Dying(1)
        limits = BatchLimits(max_in_flight=2)
        queue = Batcher(NAME, calls, limits, lambda extension, n_rows, kilo, took_ms: None, Greedy())
        with pytest.raises(ExtensionUnavailable):
            await submit(queue, 1.0, until_s=asyncio.get_running_loop().time() + AGAIN_AFTER_S / 2)
        assert len(calls.batches) == 1

    asyncio.run(scenario())
