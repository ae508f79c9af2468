"""Actors are looked for on threads of their own, and nobody waits longer than they said, whatever Ray's head does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import ray

from deployments.actors import NAMESPACE, ActorHandle
from planner.errors import ClusterDown


class Method:
    """The method of an actor, which gives or raises what `answers` says just now; None: nothing ever comes."""

    def __init__(self, answers: dict[str, object], name: str) -> None:
        self.answers = answers
        self.name = name

    async def remote(self, *arguments: object) -> object:
        answer = self.answers[self.name]
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        return answer, *arguments


class Head:
    """Ray's head, with actors whose one method is `ask`. While it is away, a lookup blocks."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.lookups: list[tuple[str, str, bool]] = []  # name, namespace, on a daemon thread
        self.is_there = threading.Event()
        self.is_there.set()

    def get_actor(self, name: str, namespace: str) -> Any:
        self.lookups.append((name, namespace, threading.current_thread().daemon))
        self.is_there.wait(10.0)
        if name not in self.answers:
            raise ValueError(f"no actor {name}")
        return type("Actor", (), {"ask": Method(self.answers, name)})


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch) -> Iterator[Head]:
    head = Head()
    monkeypatch.setattr(ray, "get_actor", head.get_actor)
    yield head
    come_back(head)


def come_back(head: Head) -> None:
    """The head is there again, and all lookups have ended."""
    head.is_there.set()
    for thread in threading.enumerate():
        if thread.name.startswith("look for "):
            thread.join()


def ask(handle: ActorHandle, *arguments: object, timeout_s: float = 10.0) -> object:
    return asyncio.run(handle.call("ask", *arguments, timeout_s=timeout_s))


def refused(handle: ActorHandle, timeout_s: float = 10.0) -> str:
    with pytest.raises(ClusterDown) as caught:
        ask(handle, timeout_s=timeout_s)
    return caught.value.message


def test_an_actor_is_looked_for_once_and_then_known(head: Head) -> None:
    head.answers["known"] = "yes"
    handle = ActorHandle("known", "what is known")
    assert [ask(handle, 1), ask(handle, 2, 3)] == [("yes", 1), ("yes", 2, 3)]
    assert head.lookups == [("known", NAMESPACE, True)]


def test_a_lookup_that_blocks_holds_up_nobody_who_gave_up(head: Head) -> None:
    head.is_there.clear()
    assert refused(ActorHandle("away", "the board"), 0.01) == "the board does not answer (TimeoutError)."
    assert not head.is_there.is_set()  # and yet the event loop has ended: it waits for the threads of its pool


def test_a_lookup_that_blocks_takes_no_thread_of_the_pool(head: Head) -> None:
    head.is_there.clear()

    async def scenario() -> list[str]:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(thread_name_prefix="this test's"))
        with pytest.raises(ClusterDown):
            await ActorHandle("away", "the board").call("ask", timeout_s=0.01)
        await asyncio.to_thread(lambda: None)
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("this test's")]

    assert len(asyncio.run(scenario())) == 1


def test_while_a_name_is_being_looked_for_nobody_looks_for_it_again(head: Head) -> None:
    head.is_there.clear()
    head.answers |= {"slow": "at last", "other": "too"}
    handles = [ActorHandle("slow", "it") for _ in range(3)]
    for handle in handles:
        refused(handle, 0.01)
    assert refused(ActorHandle("other", "the other"), 0.01)

    async def scenario() -> list[object]:
        calls = [asyncio.create_task(handle.call("ask", timeout_s=10.0)) for handle in handles]
        await asyncio.sleep(0)
        calls[0].cancel()  # does not take it from the others
        await asyncio.sleep(0)
        head.is_there.set()
        return [await call for call in calls[1:]]

    assert asyncio.run(scenario()) == [("at last",), ("at last",)]
    come_back(head)
    assert sorted(name for name, *_ in head.lookups) == ["other", "slow"]


def test_a_lookup_that_fails_says_what_does_not_answer_and_is_tried_again_the_next_time(head: Head) -> None:
    handle = ActorHandle("late", "the steward")
    assert refused(handle) == "the steward does not answer (ValueError)."
    head.answers["late"] = "here"
    assert ask(handle) == ("here",)
    assert len(head.lookups) == 2


@pytest.mark.parametrize(("answer", "why"), [(None, "TimeoutError"), (ray.exceptions.RayActorError(), "RayActorError")])
def test_an_actor_that_does_not_answer_is_looked_for_anew(head: Head, answer: object, why: str) -> None:
    head.answers["board"] = "well"
    handle = ActorHandle("board", "the board")
    assert ask(handle) == ("well",)
    head.answers["board"] = answer
    assert refused(handle, 10.0 if answer else 0.01) == f"the board does not answer ({why})."
    head.answers["board"] = "well again"
    assert ask(handle) == ("well again",)
    assert len(head.lookups) == 2


def test_what_is_no_fault_of_the_cluster_is_not_hidden(head: Head) -> None:
    head.answers["board"] = KeyError("x")
    with pytest.raises(KeyError):
        ask(ActorHandle("board", "the board"))
