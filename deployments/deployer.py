"""Deploying: from a source to an extension version that serves. Nothing gets traffic before it has started, held its
contract and been measured; until then, and if any of that fails, whatever served before goes on serving."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress

from deployments.applications import Installation, Report, delete, refuse, start
from deployments.loading import describe, pin
from deployments.measure import (
    TIMEOUT_S,
    ValidationSet,
    ends,
    load_validation,
    measure_all,
    measure_latency,
    stretched,
)
from deployments.registry import RegistryClient
from deployments.rollouts import Shown
from deployments.rollouts_actor import RolloutsClient
from deployments.serve_calls import ServeCalls
from planner.batching import Batchers
from planner.cards import Card, ExtensionId
from planner.catalogue import Catalogue
from planner.dispatch import Dispatcher
from planner.errors import BadCard, BadRequest, Conflict, FenixError, StepFailed
from planner.goals import Goal
from planner.rollout.records import RolloutPlan

SEED = 20  # of the rows that the contract is tried on
PROFILE_ROWS = (1, 16, 64)
PROFILE_ELEMENTS = (2_000, 20_000)  # of one row, where its size is free


def deploy(
    sources: Sequence[Card | str],
    goals: Sequence[Goal],
    installation: Installation,
    report: Report,
    rollout: RolloutPlan | None = None,
) -> tuple[Card, ...]:
    """Deploys extensions and goals on the cluster this process is connected to; returns the cards as registered.

    A source is a card, or what `deployments.loading.describe` reads. When this returns, the catalogue holds them
    durably and every gateway plans with them (one that is silent for 5 s will, once it is back). Raises BadCard, with
    nothing changed, when one does not start or breaks the contract; Conflict when its id is taken by something else.

    With `rollout`, new versions of extensions that serve already get no traffic but what such a rollout gives them,
    from the first moment on; raises what `Rollouts.start` raises, and then they are not deployed.
    """
    return asyncio.run(deploying(sources, goals, installation, report, rollout))


def remove(extensions: Sequence[str], goals: Sequence[str], report: Report) -> None:
    """Takes extensions and goals out of the catalogue, then ends their replicas. Raises NotFound, and Conflict for a
    version that won its rollout and serves while others of its extension stay."""
    asyncio.run(removing(extensions, goals, report))


async def deploying(
    sources: Sequence[Card | str],
    goals: Sequence[Goal],
    installation: Installation,
    report: Report,
    rollout: RolloutPlan | None = None,
    by: str = "",
) -> tuple[Card, ...]:
    """`deploy` on the running event loop. `by` is who wants the rollout."""
    registry = RegistryClient()
    catalogue = await registry.catalogue()
    cards = [_card(source, installation) for source in sources]
    for card in cards:
        _check_new(card, catalogue)
    validation = {goal.name: load_validation(goal) for goal in goals if goal.validation}
    new = [card for card in cards if card.id not in catalogue.cards]
    if new:
        report(f"starting {len(new)} extensions")
    try:
        started = await start(new, installation, report)
        refuse(started.failed)
        cards = [await _probed(card, report) for card in cards]
        tentative = _with(catalogue, cards, goals)
        # A new goal is also the first chance to measure what was there before it.
        unmeasured = [
            card
            for card in catalogue.cards.values()
            if card.accuracy.n_rows == 0 and any(ends(card, goal) for goal in goals)
        ]
        ids = list(dict.fromkeys(card.id for card in (*cards, *unmeasured)))
        validation |= _known_validation(tentative, ids, validation, report)
        dispatcher = Dispatcher(Batchers(ServeCalls()), tentative.cards.get)
        known = await measure_all(tentative, ids, validation, dispatcher, report)
        measured = [known.cards[id_] for id_ in ids]
        tried = [] if rollout is None else [card for card in new if catalogue.versions(card.name)]
        if rollout is None and new:
            with suppress(FenixError):  # one that was held for a rollout which never came
                await RolloutsClient().release([card.id for card in new])
        epoch = await _register(measured, goals, tried, rollout, by, registry)
    except BaseException:
        await delete([card.id for card in new])
        raise
    report(f"registered {len(cards)} extensions and {len(goals)} goals (epoch {epoch})")
    if new:
        with suppress(FenixError):  # it is deployed all the same
            for id_ in _without_traffic(cards, await RolloutsClient().status()):
                report(f"{id_} gets no traffic yet: `fenix rollout start {id_}`")
    return tuple(known.cards[card.id] for card in cards)


def _without_traffic(cards: Sequence[Card], rollouts: Sequence[Shown]) -> list[ExtensionId]:
    """Those that serve nobody, since another version of the extension has won its rollout and none runs for them."""
    last = {shown.rollout.extension: shown.rollout for shown in rollouts}
    return [
        card.id
        for card in cards
        if card.name in last
        and card.version != last[card.name].champion
        and not (last[card.name].running and card.version == last[card.name].challenger)
    ]


async def _register(
    cards: Sequence[Card],
    goals: Sequence[Goal],
    tried: Sequence[Card],
    rollout: RolloutPlan | None,
    by: str,
    registry: RegistryClient,
) -> int:
    """Shows cards and goals to every gateway; those that are `tried` serve nobody but whom their rollouts send there.
    Returns the epoch. Raises what starting these raises, with the cards taken back again."""
    rollouts = RolloutsClient()
    held = [card.id for card in tried]
    if held:
        await rollouts.hold(held)
    put = False
    try:
        epoch = await registry.put(cards, goals)
        put = True
        await registry.followed(epoch)
        for card in tried:
            await rollouts.start(card.name, card.version, rollout, "", by)
    except BaseException:
        if held:
            if put:
                await rollouts.leave(held)
                await registry.followed(await registry.remove(held))
            else:
                await rollouts.release(held)
        raise
    return epoch


def _known_validation(
    catalogue: Catalogue, new: Sequence[ExtensionId], have: Mapping[str, ValidationSet], report: Report
) -> dict[str, ValidationSet]:
    """The validation sets of goals deployed before that a new extension can end; one that is gone is left out."""
    found = {}
    for goal in catalogue.goals.values():
        if goal.validation and goal.name not in have and any(ends(catalogue.cards[id_], goal) for id_ in new):
            try:
                found[goal.name] = load_validation(goal)
            except BadCard as error:
                report(f"not measured on {goal.name}: {error.message}")
    return found


def _card(source: Card | str, installation: Installation) -> Card:
    """The card to deploy; its source names the same thing for ever."""
    mlflow_uri, cache_dir = installation.mlflow_uri, installation.cache_dir
    if isinstance(source, str):
        return describe(source, mlflow_uri=mlflow_uri, cache_dir=cache_dir)
    return source.but(source=pin(source.source, mlflow_uri=mlflow_uri, cache_dir=cache_dir))


async def removing(extensions: Sequence[str], goals: Sequence[str], report: Report) -> None:
    """`remove` on the running event loop."""
    registry = RegistryClient()
    catalogue = await registry.catalogue()
    ids = [catalogue.card(name).id for name in extensions]
    for name in goals:
        catalogue.goal(name)
    if ids:
        await RolloutsClient().leave(ids)
    epoch = await registry.remove(ids, goals)
    await registry.followed(epoch)
    report(f"removed {', '.join([*ids, *goals])} from the catalogue (epoch {epoch})")
    await delete(ids)


def _check_new(card: Card, catalogue: Catalogue) -> None:
    known = catalogue.cards.get(card.id)
    if known is not None and known.identity != card.identity:
        raise Conflict(
            f"extension {card.id} exists with other ports, source or options.",
            hint="Give the new one another version, or remove the old one first.",
        )


def _with(catalogue: Catalogue, cards: Sequence[Card], goals: Sequence[Goal]) -> Catalogue:
    return Catalogue.of(
        [*catalogue.cards.values(), *cards], [*catalogue.goals.values(), *goals], epoch=catalogue.epoch + 1
    )


async def _probed(card: Card, report: Report) -> Card:
    """The card with its measured latency, after the replica has run the contract on itself."""
    calls = ServeCalls()
    await calls.check(card.id, SEED)
    sizes = [n for n in PROFILE_ROWS if n <= card.resources.max_batch_rows]
    samples = [await calls.samples(card.id, n, SEED) for n in sizes]
    for n_elements in PROFILE_ELEMENTS:
        longer = stretched(card, samples[0], n_elements)
        try:
            if longer:
                await calls.infer(card.id, {port: [values] for port, values in longer.items()}, TIMEOUT_S)
                samples.append(longer)
        except (StepFailed, BadRequest) as error:  # not every length makes sense to every model
            report(f"{card.id} is not measured with {n_elements:,} elements: {error.message}")
    profile = await measure_latency(card, samples, calls)
    per_kilo = f" + {profile.per_kilo_ms:.4f} ms per 1,000 elements" if card.free_ports else ""
    report(f"{card.id} holds its contract; {profile.fixed_ms:.2f} ms + {profile.per_row_ms:.4f} ms a row{per_kilo}")
    return card.but(profile=profile)
