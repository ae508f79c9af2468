"""The gateway as a Serve deployment that owns its listening sockets: engine, HTTP, gRPC, and the catalogue followed.

Serve starts, supervises and replaces it; requests do not pass through Serve's proxies. Several gateways on one
machine share the ports (SO_REUSEPORT).
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from pathlib import Path
from time import perf_counter
from typing import Any

from ray import serve

from deployments.applications import Installation, Journaling
from deployments.board import BoardClient, BoardFollower
from deployments.gateway.choosing import Choosing, choosing_of
from deployments.gateway.engine import Engine, NotesFor
from deployments.gateway.feedback import FeedbackDesk
from deployments.gateway.metrics import observing_routes
from deployments.gateway.notes import NoteBook
from deployments.gateway.recorder import Recorder, Recording
from deployments.gateway.rollout_routes import rollout_routes
from deployments.gateway.rollouts import GatewayRollouts
from deployments.gateway.rule_routes import rule_routes
from deployments.gateway.server import serve_grpc, serve_http
from deployments.gateway.tally import Tally
from deployments.inline import InlineHost
from deployments.ledger import LedgerClient
from deployments.registry import CatalogueFollower, RegistryClient
from deployments.rollouts_actor import RolloutsClient, RulesFollower, stored_rules
from deployments.serve_calls import ServeCalls
from deployments.steward import StewardClient
from planner.breakers import Standing
from planner.cards import ExtensionId
from planner.catalogue import Catalogue
from planner.choosing import Chooser, FirstPlan, PlansWithout
from planner.convoys import Unnoted
from planner.errors import FenixError
from planner.goals import Terms
from planner.hedging import HedgedCalls, HedgeSettings, Hedging
from planner.intent import SentenceEncoder, TfidfEncoder
from planner.plans import PlanSet

APPLICATION = "gateway"
PROFILES_EVERY_S = 5.0
USES_EVERY_S = 5.0  # until the steward says otherwise
JUDGE_EVERY_S = 2.0
_DRAIN_S = 10.0
_NEWS_S = 5.0  # of what was learned are waited for so long
_LAST_WRITE_S = 2.0  # for what the journal has not got yet; then it goes to disk
_log = logging.getLogger("fenix.gateway")


class Gateway:
    """One gateway process."""

    async def __init__(self, installation: Installation) -> None:  # type: ignore[misc]  # Serve awaits it
        registry = RegistryClient()
        self._registry = registry
        model = installation.sentence_model
        encoder = (lambda: SentenceEncoder(model)) if model else TfidfEncoder
        calls = ServeCalls()
        hedging = Hedging(HedgeSettings(most_share=installation.hedge_share))
        self._hedged = HedgedCalls(calls, self._n_replicas, hedging)
        self._recorder = _recorder(installation.journal)
        self._choosing = self._chooses(installation)
        self._rollouts = rollouts = GatewayRollouts(
            lambda: self._engine,
            _first if self._choosing is None else self._choosing.chooser_for,
            RolloutsClient(),
            keeps_answers=self._recorder is not None,
        )
        self._engine = engine = Engine(
            self._hedged,
            lambda: self._follower.ready(),
            encoder,
            self._notes_for(installation),
            rollouts.chooser_for,
        )
        self._rules = RulesFollower(RolloutsClient(), rollouts.follow, lambda: stored_rules(installation.database_url))
        await self._rules.start()
        if self._choosing is not None:
            await self._choosing.start()
        self._follower = CatalogueFollower(registry, self._follow)
        await self._follower.start()
        host, limits = installation.host, installation.limits
        desk = None
        if self._recorder is not None and self._choosing is not None:
            desk = FeedbackDesk(LedgerClient(), self._recorder.flush, beliefs=self._choosing.beliefs)
        rules = rule_routes(None if self._choosing is None else LedgerClient(), self._rules_changed)
        tally, ledger = Tally(), None if self._recorder is None else LedgerClient()
        observing = observing_routes(engine, tally, ledger, self._recorder)
        routers = [rollout_routes(RolloutsClient()), rules, *observing]
        self._http = await serve_http(
            self._engine, host, installation.http_port, limits, desk=desk, routers=routers, tally=tally
        )
        self._grpc = await serve_grpc(self._engine, host, installation.grpc_port, limits, tally=tally)
        self._inline = InlineHost(
            engine.placed,
            engine.placements,
            calls,
            lambda: engine.catalogue,
            mlflow_uri=installation.mlflow_uri,
            cache_dir=installation.cache_dir,
        )
        self._tending = asyncio.get_running_loop().create_task(self._inline.tend(), name="tend-inline")
        self._telling = asyncio.get_running_loop().create_task(self._tell_profiles(), name="tell-profiles")
        self._board = BoardClient()
        self._fares = BoardFollower(self._board, lambda found: engine.placed.hear(found, perf_counter()))
        self._fares.start()
        self._judging = asyncio.get_running_loop().create_task(self._judge(), name="judge-extensions")
        self._steward = StewardClient() if installation.fusion is not None else None
        self._reporting = asyncio.get_running_loop().create_task(self._report_uses(), name="report-uses")
        self._trying = asyncio.get_running_loop().create_task(rollouts.tend(), name="tend-rollouts")

    def _notes_for(self, installation: Installation) -> NotesFor:
        if self._recorder is None or installation.journal is None:
            return lambda model, version, goal, terms, plans: Unnoted()
        self._recorder.start()
        return NoteBook(self._recorder, installation.journal.sample_share).notes_for

    def _chooses(self, installation: Installation) -> Choosing | None:
        """Who chooses among plans; nobody where nothing is recorded, so that nothing can be learned."""
        if installation.journal is None:
            return None
        return choosing_of(installation.choice, lambda: self._engine, LedgerClient(_NEWS_S), self._busy)

    def _busy(self) -> float:
        load = self._http.load
        return load.running / load.most

    async def _rules_changed(self) -> None:
        if self._choosing is not None:
            await self._choosing.hear_rules()

    async def _follow(self, catalogue: Catalogue) -> None:
        self._rollouts.foresee(catalogue)
        await self._engine.follow(catalogue)
        self._rollouts.renew()
        self._hedged.hedging.keep_only(frozenset(catalogue.cards))

    def _n_replicas(self, extension: ExtensionId) -> int:
        """How many replicas a call may choose from; 0 for extensions that must not be asked the same thing twice."""
        card = self._engine.catalogue.cards.get(extension)
        if card is None or not card.deterministic or card.resources.max_replicas < 2:
            return 0
        fares = self._fares.extensions.get(extension)
        return card.resources.min_replicas if fares is None else fares.n_replicas

    async def _tell_profiles(self) -> None:
        """Passes latency profiles that live traffic has changed on to the catalogue."""
        while True:
            await asyncio.sleep(PROFILES_EVERY_S)
            changed = self._engine.changed_profiles()
            if changed:
                try:
                    await self._registry.profiles(changed)
                except FenixError as error:
                    _log.warning("latency profiles not stored: %s", error.text())

    async def _judge(self) -> None:
        """Leaves out extensions that do much worse than what could stand in for them. Shows who is left out, and what
        runs inline."""
        gateway = uuid.uuid4().hex
        told: tuple[tuple[Standing, ...], frozenset[ExtensionId]] = (), frozenset()
        breakers = self._engine.placed.breakers
        while True:
            await asyncio.sleep(JUDGE_EVERY_S)
            now_s = perf_counter()
            breakers.eject_outliers(self._engine.alternatives(), now_s)
            standings = tuple(one for one in breakers.standings(now_s) if one.state != "closed")
            inline = self._engine.inline()
            if standings or inline or any(told):
                try:
                    await self._board.report(gateway, standings, 5 * JUDGE_EVERY_S, inline)
                    told = standings, inline
                except FenixError as error:
                    _log.debug("%s", error.text())

    async def _report_uses(self) -> None:
        """Tells the steward what ran, so that it finds the chains that are worth fusing."""
        pause_s = USES_EVERY_S
        while True:
            await asyncio.sleep(pause_s)
            uses = self._engine.uses()
            if self._steward is not None:
                try:
                    pause_s = await self._steward.report(uses)
                except FenixError as error:  # what ran meanwhile is not counted
                    pause_s = USES_EVERY_S
                    _log.warning("%s", error.text())

    async def addresses(self) -> dict[str, int]:
        """The ports this gateway listens on."""
        return {"http": self._http.port, "grpc": self._grpc.port}

    async def check_health(self) -> None:
        """Called by Serve, which replaces a gateway whose background work has died."""
        tasks = {
            "catalogue follower": self._follower.ready(),
            "profiles": not self._telling.done(),
            "usage reports": not self._reporting.done(),
            "inline host": not self._tending.done(),
            "board follower": self._fares.alive(),
            "judge of extensions": not self._judging.done(),
            "rules follower": self._rules.alive(),
            "rollouts": not self._trying.done(),
            "choice follower": self._choosing is None or self._choosing.alive(),
        }
        for name, alive in tasks.items():
            if not alive:
                raise RuntimeError(f"the gateway's {name} task has ended")
        if self._recorder is not None:
            self._recorder.health()

    async def __del__(self) -> None:
        """Called by Serve on shutdown: stops accepting, lets what is under way finish, closes."""
        for task in (self._telling, self._reporting, self._tending, self._judging, self._trying):
            task.cancel()
        await asyncio.gather(self._http.stop(_DRAIN_S), self._grpc.stop(_DRAIN_S))
        if self._recorder is not None:
            await self._recorder.close(_LAST_WRITE_S)
        await self._rollouts.close()
        await self._inline.close()
        await self._rules.stop()
        if self._choosing is not None:
            await self._choosing.stop()
        await self._fares.stop()
        await self._follower.stop()


def _first(goal: str, terms: Terms, plans: PlanSet, without: PlansWithout) -> Chooser:
    return FirstPlan(plans)


def _recorder(journal: Journaling | None) -> Recorder | None:
    if journal is None:
        return None
    return Recorder(LedgerClient().append, Path(journal.folder), Recording(spool_bytes=journal.spool_bytes))


def gateway(installation: Installation) -> Any:
    """The gateway's Serve application."""
    return (
        serve.deployment(Gateway)
        .options(
            name="gateway",
            num_replicas=installation.gateways,
            ray_actor_options={"num_cpus": 0},
            max_constructor_retry_count=3,
            health_check_period_s=5,
            graceful_shutdown_timeout_s=_DRAIN_S + 5,
            graceful_shutdown_wait_loop_s=0.2,
        )
        .bind(installation)
    )
