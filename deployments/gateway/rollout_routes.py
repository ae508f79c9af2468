"""`/v1/rollouts`: versions on trial, and back to any former one with one request."""

from __future__ import annotations

from typing import Annotated, Protocol

from fastapi import APIRouter, Path

from deployments.gateway.rest import StrictRoute, may_answer
from deployments.gateway.rollout_schemas import (
    ByBody,
    PromoteBody,
    RollbackBody,
    RolloutDetails,
    RolloutInfo,
    RolloutList,
    StartBody,
)
from deployments.rollouts import Event, Shown
from planner.rollout.codec import parse_plan
from planner.rollout.records import Rollout, RolloutPlan

_Extension = Annotated[str, Path(description="The name of an extension, without its version.", examples=["digits"])]
_CHANGING = may_answer(400, 404, 409, 422, 500, 503)
_BY = "over /v1"


class Keeper(Protocol):
    """Who keeps the rollouts; see `deployments/rollouts.py`."""

    async def start(
        self, extension: str, version: str, plan: RolloutPlan | None = None, champion: str = "", by: str = ""
    ) -> Shown: ...

    async def promote(self, extension: str, version: str = "", by: str = "", reason: str = "by hand") -> Shown: ...

    async def roll_back(self, extension: str, to: str = "", by: str = "", reason: str = "by hand") -> Shown: ...

    async def pause(self, extension: str, by: str = "") -> Shown: ...

    async def resume(self, extension: str, by: str = "") -> Shown: ...

    async def abort(self, extension: str, by: str = "", reason: str = "by hand") -> Shown: ...

    async def status(self) -> tuple[Shown, ...]: ...

    async def show(self, extension: str) -> tuple[Shown, tuple[Rollout, ...], tuple[Event, ...]]: ...


def rollout_routes(client: Keeper) -> APIRouter:
    """The routes, over whoever keeps the rollouts. What is answered is durable, and `followed` by all gateways unless
    the answer says otherwise."""
    router = APIRouter(prefix="/v1/rollouts", tags=["Rollouts"], route_class=StrictRoute)

    @router.get("", responses=may_answer(400, 500, 503))
    async def rollouts() -> RolloutList:
        """The last rollout of every extension that had one."""
        return RolloutList(rollouts=[RolloutInfo.of(shown) for shown in await client.status()])

    @router.post("", responses=_CHANGING)
    async def start(body: StartBody) -> RolloutInfo:
        """Begins to try a deployed version against the one that serves."""
        plan = None if body.plan is None else parse_plan(body.plan)
        return RolloutInfo.of(await client.start(body.extension, body.version, plan, body.champion, body.by or _BY))

    @router.get("/{extension}", responses=may_answer(400, 404, 500, 503))
    async def rollout(extension: _Extension) -> RolloutDetails:
        """The last rollout of an extension in full, and those before it."""
        return RolloutDetails.with_past(*await client.show(extension))

    @router.post("/{extension}/promote", responses=_CHANGING)
    async def promote(extension: _Extension, body: PromoteBody | None = None) -> RolloutInfo:
        """Lets the challenger serve all requests at once; or, where none is tried, any deployed version."""
        body = body or PromoteBody()
        return RolloutInfo.of(await client.promote(extension, body.version, body.by or _BY, body.reason or "by hand"))

    @router.post("/{extension}/rollback", responses=_CHANGING)
    async def roll_back(extension: _Extension, body: RollbackBody | None = None) -> RolloutInfo:
        """Lets the champion, or a former version, serve all requests at once."""
        body = body or RollbackBody()
        return RolloutInfo.of(await client.roll_back(extension, body.to, body.by or _BY, body.reason or "by hand"))

    @router.post("/{extension}/pause", responses=_CHANGING)
    async def pause(extension: _Extension, body: ByBody | None = None) -> RolloutInfo:
        """Keeps the share where it is. What does harm is rolled back all the same."""
        return RolloutInfo.of(await client.pause(extension, (body or ByBody()).by or _BY))

    @router.post("/{extension}/resume", responses=_CHANGING)
    async def resume(extension: _Extension, body: ByBody | None = None) -> RolloutInfo:
        """Lets a paused rollout go on."""
        return RolloutInfo.of(await client.resume(extension, (body or ByBody()).by or _BY))

    @router.post("/{extension}/abort", responses=_CHANGING)
    async def abort(extension: _Extension, body: ByBody | None = None) -> RolloutInfo:
        """Ends a rollout without a judgement; the champion serves."""
        return RolloutInfo.of(await client.abort(extension, (body or ByBody()).by or _BY))

    return router
