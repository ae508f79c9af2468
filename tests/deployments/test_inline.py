from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from deployments.blackbox import note_of
from deployments.extension import Extension, Result, Scored, execute
from deployments.inline import InlineHost
from planner.batching import Batchers
from planner.calls import LocalCalls, Parts, Produced, Ran, join
from planner.cards import Card, ExtensionId, Resources
from planner.catalogue import Catalogue
from planner.errors import BadInput, ExtensionRaised, ExtensionUnavailable
from planner.features import Array, Feature
from planner.placed import Placed
from planner.placement import PROVEN_CALLS, PROVEN_S, Placements
from planner.tokens import Token

INLINE = Resources(placement="inline")
LONG_S = 10.0


class Grade(Extension):
    """Divides, and says how sure it is. Every instance that was made is known."""

    inputs = {"x": Feature("number", "FP32", (2,))}
    outputs = {"y": Feature("number/graded", "FP32", (2,)), "name": Feature("name", "BYTES")}
    made: list[Grade] = []

    def __init__(self, by: float = 2.0, sure: float = 0.5, word: str = "fine") -> None:
        self.by, self.sure, self.word = by, sure, word
        self.is_set_up = self.is_closed = False

    def setup(self) -> None:
        self.is_set_up = True
        Grade.made.append(self)

    def close(self) -> None:
        self.is_closed = True

    def infer(self, x: Array) -> Result:
        assert self.is_set_up
        assert not self.is_closed
        if x[0, 0] < 0:
            raise BadInput("negative")
        if x[0, 0] > 1e6:
            raise ValueError("too large")
        names = np.full(len(x), self.word, object)
        return Scored({"y": x / np.float32(self.by), "name": names}, np.full(len(x), self.sure, np.float32))


class Unwilling(Extension):
    """Does not load."""

    inputs = {"x": Feature("number", "FP32", (2,))}
    outputs = {"y": Feature("number/graded", "FP32", (2,))}

    def setup(self) -> None:
        raise OSError("no weights")

    def infer(self, x: Array) -> Result:
        return x


class Deployments:
    """Stands for the deployments of a cluster: the same extensions, each with options of its own."""

    def __init__(self, **options: Any) -> None:
        self._there = Grade(**options)
        self._there.is_set_up = True
        self.gate = asyncio.Event()
        self.gate.set()
        self.are_up = True
        self.n_asked = 0

    async def samples(self, extension: ExtensionId, n_rows: int, seed: int) -> dict[str, Array]:
        self.n_asked += 1
        await self.gate.wait()
        if not self.are_up:
            raise ExtensionUnavailable("gone")
        return self._there.samples(n_rows, np.random.default_rng(seed))

    async def infer(self, extension: ExtensionId, parts: Parts, timeout_s: float, pair: str = "") -> Ran:
        rows = {port: await join(arrays) for port, arrays in parts.items()}
        made = execute(self._there, rows)
        return Ran({name: Produced(out.values, out.confidence) for name, out in made.items()}, 0.1)


def card(made: Extension | None = None, **changes: Any) -> Card:
    return replace((made or Grade()).card(), resources=INLINE, **changes)


@dataclass
class Bench:
    """A host at work."""

    host: InlineHost
    placed: Placed
    placements: Placements
    calls: Deployments
    catalogue: Catalogue

    async def until(self, condition: Callable[[], bool]) -> None:
        ends_s = perf_counter() + LONG_S
        for _ in iter(condition, True):
            assert perf_counter() < ends_s
            await asyncio.sleep(0.002)

    def is_inline(self, which: Card) -> bool:
        return which.id in self.placed.inline()

    def shows(self, *cards: Card) -> None:
        """From now on the catalogue has these cards."""
        self.catalogue = Catalogue.of(cards, (), epoch=self.catalogue.epoch + 1)
        self.placed.keep_only(frozenset(self.catalogue.cards))

    async def ask(self, which: Card, *values: float) -> Mapping[str, Produced]:
        x = np.array(values, np.float32).reshape(-1, 2)
        return (await self.placed.of(which).submit({"x": x}, len(x), Token(1e9))).outputs


@asynccontextmanager
async def bench(folder: Path, *cards: Card, calls: Deployments | None = None) -> AsyncIterator[Bench]:
    calls = calls or Deployments()
    placements = Placements()
    observe = lambda *told: None  # noqa: E731
    placed = Placed(Batchers(LocalCalls({})), placements, observe)
    holder: list[Bench] = []
    host = InlineHost(
        placed,
        placements,
        calls,  # type: ignore[arg-type]  # two of its methods are enough
        lambda: holder[0].catalogue,
        mlflow_uri="",
        cache_dir=str(folder),
        every_s=0.005,
    )
    made = Bench(host, placed, placements, calls, Catalogue.of(cards, (), epoch=1))
    holder.append(made)
    Grade.made.clear()
    tending = asyncio.create_task(host.tend())
    try:
        yield made
        assert not tending.done()
    finally:
        tending.cancel()
        await asyncio.wait([tending])
        await host.close()
        assert all(grade.is_closed for grade in Grade.made)


def test_what_is_wanted_inline_is_loaded_compared_and_answers_here(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted) as it:
            await it.until(lambda: it.is_inline(wanted))
            outputs = await it.ask(wanted, 4, 6)
            assert np.asarray(outputs["y"].values).tolist() == [[2, 3]]
            assert np.asarray(outputs["name"].values).tolist() == [b"fine"]
            sure = outputs["y"].confidence
            assert sure is not None
            assert sure.tolist() == [0.5]
            assert len(Grade.made) == 1
            assert it.calls.n_asked == 1

    asyncio.run(scenario())


def test_what_has_proven_itself_is_taken_in_and_nothing_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        proven = replace(Grade().card(), name="proven")
        unproven = replace(Grade().card(), name="unproven")
        remote = replace(Grade().card(), name="remote", resources=Resources(placement="remote"))
        async with bench(tmp_path, proven, unproven, remote) as it:
            for of in (proven, remote):
                for _ in range(PROVEN_CALLS):
                    it.placements.ran(of.id, 0.1, perf_counter() - PROVEN_S)
            await it.until(lambda: it.is_inline(proven))
            await asyncio.sleep(0.03)
            assert it.placed.inline() == {proven.id}

    asyncio.run(scenario())


@pytest.mark.parametrize("options", [{"by": 3.0}, {"sure": 0.75}, {"word": "good"}])
def test_what_answers_otherwise_than_its_deployment_is_refused_closed_and_not_tried_again(
    tmp_path: Path, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted, calls=Deployments(**options)) as it:
            await it.until(lambda: bool(Grade.made) and Grade.made[0].is_closed)
            await asyncio.sleep(0.03)
            assert it.placed.inline() == frozenset()
            assert len(Grade.made) == 1
            assert not it.placements.inline(wanted, perf_counter())
        assert "differs from that of its deployment" in caplog.text

    asyncio.run(scenario())


def test_rounding_is_no_difference(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted, calls=Deployments(by=2.000001, sure=0.500001)) as it:
            await it.until(lambda: it.is_inline(wanted))

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "unfit",
    [
        card(Unwilling()),
        card(source="tests.deployments.test_inline:Nobody"),
        card(options={"colour": "red"}),
    ],
    ids=["setup fails", "there is no source", "wrong options"],
)
def test_what_does_not_load_stays_where_it_is_and_hinders_nobody(tmp_path: Path, unfit: Card) -> None:
    async def scenario() -> None:
        unfit_ = replace(unfit, name="unfit")
        fit = replace(card(), name="fit")
        async with bench(tmp_path, unfit_, fit) as it:
            await it.until(lambda: it.is_inline(fit))
            await it.until(lambda: not it.placements.inline(unfit_, perf_counter()))
            assert it.placed.inline() == {fit.id}

    asyncio.run(scenario())


def test_without_its_deployment_nothing_is_taken_in(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        calls = Deployments()
        calls.are_up = False
        async with bench(tmp_path, wanted, calls=calls) as it:
            await it.until(lambda: bool(Grade.made) and Grade.made[0].is_closed)
            assert it.placed.inline() == frozenset()

    asyncio.run(scenario())


def test_what_is_removed_is_let_go_and_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        stays, goes = replace(card(), name="stays"), replace(card(), name="goes")
        async with bench(tmp_path, stays, goes) as it:
            await it.until(lambda: it.placed.inline() == {stays.id, goes.id})
            it.shows(stays)
            await it.until(lambda: any(grade.is_closed for grade in Grade.made))
            assert it.placed.inline() == {stays.id}
            assert [grade.name for grade in Grade.made if grade.is_closed] == ["goes"]
            assert np.asarray((await it.ask(stays, 4, 6))["y"].values).tolist() == [[2, 3]]

    asyncio.run(scenario())


def test_what_is_removed_while_it_is_taken_in_is_closed(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        calls = Deployments()
        calls.gate.clear()
        async with bench(tmp_path, wanted, calls=calls) as it:
            await it.until(lambda: calls.n_asked == 1)
            it.shows()
            calls.gate.set()
            await it.until(lambda: Grade.made[0].is_closed)
            assert it.placed.inline() == frozenset()

    asyncio.run(scenario())


def test_what_was_removed_and_came_back_as_another_is_loaded_anew(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted) as it:
            await it.until(lambda: it.is_inline(wanted))
            it.shows()
            it.shows(wanted)  # before the host has looked
            assert not it.is_inline(wanted)
            await it.until(lambda: it.is_inline(wanted))
            assert [grade.is_closed for grade in Grade.made] == [True, False]

    asyncio.run(scenario())


def test_what_fails_here_goes_back_and_a_clients_mistake_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted) as it:
            await it.until(lambda: it.is_inline(wanted))
            with pytest.raises(BadInput, match="negative"):
                await it.ask(wanted, -1, 0)
            await asyncio.sleep(0.03)
            assert it.is_inline(wanted)
            with pytest.raises(ExtensionRaised, match="ValueError: too large"):
                await it.ask(wanted, 1e7, 0)
            await it.until(lambda: not it.is_inline(wanted))
            await it.until(lambda: Grade.made[0].is_closed)

    asyncio.run(scenario())


@pytest.mark.parametrize("values", [(4.0, 6.0), (1e7, 0.0)], ids=["comes back", "raises"])
def test_a_call_that_came_back_leaves_no_suspect(tmp_path: Path, values: Sequence[float]) -> None:
    async def scenario() -> None:
        wanted = card()
        async with bench(tmp_path, wanted) as it:
            await it.until(lambda: it.is_inline(wanted))
            try:
                await it.ask(wanted, *values)
            except ExtensionRaised:
                assert values[0] > 1e6
            (box,) = (tmp_path / "inline").glob("*.box")
            note = box.read_bytes()
            assert note[0] == 0
            assert note[1:].startswith(wanted.id.encode()[1:])  # it was noted, and taken back

    asyncio.run(scenario())


def test_what_ran_when_a_gateway_died_stays_away(tmp_path: Path) -> None:
    async def scenario() -> None:
        suspect, innocent = replace(card(), name="suspect"), replace(card(), name="innocent")
        folder = tmp_path / "inline"
        folder.mkdir()
        (folder / f"{2**22 + 1}-1.box").write_bytes(note_of(suspect.id))  # no process has this id
        async with bench(tmp_path, suspect, innocent) as it:
            await it.until(lambda: it.is_inline(innocent))
            await asyncio.sleep(0.03)
            assert it.placed.inline() == {innocent.id}
            assert not it.placements.inline(suspect, perf_counter() + 50)
            assert it.placements.inline(suspect, perf_counter() + 61)

    asyncio.run(scenario())


def test_a_host_that_closes_lets_all_go_and_takes_its_box_along(tmp_path: Path) -> None:
    async def scenario() -> None:
        cards = [replace(card(), name=name) for name in ("one", "two")]
        async with bench(tmp_path, *cards) as it:
            await it.until(lambda: len(it.placed.inline()) == 2)
            placed = it.placed
        assert placed.inline() == frozenset()
        assert len(Grade.made) == 2
        assert all(grade.is_closed for grade in Grade.made)
        assert list((tmp_path / "inline").iterdir()) == []

    asyncio.run(scenario())
