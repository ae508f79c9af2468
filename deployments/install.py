"""What a fresh cluster needs before it can serve: the catalogue actor, the board, the ledger, the rollouts, the
steward, the gateway, and all that the catalogue holds from before."""

from __future__ import annotations

import asyncio

from ray import serve

from deployments.applications import Installation, Report, start
from deployments.board import start_board
from deployments.gateway.app import APPLICATION, gateway
from deployments.ledger import start_ledger
from deployments.registry import RegistryClient, start_catalogue
from deployments.rollouts_actor import start_rollouts
from deployments.steward import start_steward


def install(installation: Installation, report: Report) -> None:
    """Installs Fenix on the Ray cluster this process is connected to, where Serve runs without proxies.

    Extensions in the catalogue are started again; one that does not start is reported and left out of Serve, its
    card stays. When this returns the gateway answers.
    """
    start_catalogue(installation.database_url)
    start_board()
    if installation.journal is not None:
        start_ledger(installation.database_url, installation.journal.keep_s)
    start_rollouts(installation)
    report("catalogue open")
    asyncio.run(_restore(installation, report))
    start_steward(installation)
    report("starting the gateway")
    serve.run(gateway(installation), name=APPLICATION, route_prefix=None)


async def _restore(installation: Installation, report: Report) -> None:
    catalogue = await RegistryClient().catalogue()
    if not catalogue.cards:
        return
    report(f"starting {len(catalogue.cards)} extensions from the catalogue")
    started = await start(list(catalogue.cards.values()), installation, report)
    for id_, why in started.failed.items():
        report(f"{id_} did not start: {why}")
