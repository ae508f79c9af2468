"""`/v1/quality`, and the figures of extensions and goals: how well they do, who does poorly, and why."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query

from deployments.gateway.messages import Engine
from deployments.gateway.quality import USUAL, QualityDesk, Window
from deployments.gateway.quality_schemas import (
    ExtensionQuality,
    FindingInfo,
    GoalQuality,
    PlanQuality,
    QualityFindings,
    QualityInfo,
)
from deployments.gateway.rest import StrictRoute, may_answer

_Window = Annotated[Window, Query(description="How far back. It may begin earlier by up to an hour, or a day.")]
_Segment = Annotated[
    str | None,
    Query(
        max_length=256,
        description='The requests of this user alone, if it is one of the busiest; "" are those without one, "(other)" '
        "those of all others.",
    ),
]
_Id = Annotated[str, Path(description="`name@version`; a bare name will do where there is one version.")]
_ANSWERS = may_answer(400, 404, 500, 503)


def quality_routes(engine: Engine, desk: QualityDesk) -> APIRouter:
    """The routes, over a desk."""
    router = APIRouter(prefix="/v1", tags=["Quality"], route_class=StrictRoute)

    @router.get("/extensions/{id}/quality", responses=_ANSWERS)
    async def extension_quality(id: _Id, window: _Window = USUAL, segment: _Segment = None) -> ExtensionQuality:
        """How well an extension version does, from the journal and what was said of its answers."""
        card = engine.catalogue.card(id)
        figures = await desk.version(card.id, window, segment)
        found = await desk.findings(window)
        return ExtensionQuality(
            id=card.id,
            window=window,
            segment=segment,
            quality=QualityInfo.of(figures),
            findings=FindingInfo.all_of(found, card.id, whole=True),
        )

    @router.get("/goals/{name}/quality", responses=_ANSWERS)
    async def goal_quality(name: str, window: _Window = USUAL, segment: _Segment = None) -> GoalQuality:
        """How well the plans of a goal do."""
        goal = engine.catalogue.goal(name)
        figures = await desk.plans(goal.name, window, segment)
        found = await desk.findings(window)
        return GoalQuality(
            goal=goal.name,
            window=window,
            segment=segment,
            plans=[
                PlanQuality(plan=plan, steps=list(one.steps), quality=QualityInfo.of(one))
                for plan, one in figures.items()
            ],
            findings=FindingInfo.all_of(found, f"{goal.name}/", whole=False),
        )

    @router.get("/quality", responses=may_answer(400, 500, 503))
    async def quality(window: _Window = USUAL) -> QualityFindings:
        """Who does poorly, against what, and why, in a sentence each."""
        return QualityFindings(window=window, findings=[FindingInfo.of(one) for one in await desk.findings(window)])

    return router
