"""`/v1/rules`: what users are to be served by, or not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated, Protocol

from fastapi import APIRouter, Query
from pydantic import Field

from deployments.gateway.rest import StrictRoute, may_answer
from deployments.gateway.schemas import Closed
from planner.choice.rule_store import MOST_CHARS, StoredRule
from planner.errors import FenixError, StoreUnavailable

_EXAMPLE = "pin reader@2 for ann"
_CHANGING = may_answer(400, 404, 409, 500, 503)


class RuleBody(Closed):
    """A rule: `pin` or `exclude`, an extension, its id or a pattern of them, or `plan:` and a plan; then, if it is not
    for all, `for` a user, `at` a segment, `in` a goal."""

    rule: str = Field(max_length=MOST_CHARS, examples=[_EXAMPLE, "exclude draft-* for team/* in digits"])


class RuleInfo(Closed):
    """A rule that is in force, and since when."""

    rule: str
    added_s: float = Field(description="Since 1970.")

    @classmethod
    def of(cls, stored: StoredRule) -> RuleInfo:
        return cls(rule=str(stored.rule), added_s=stored.added_s)


class RuleList(Closed):
    """All rules, the oldest first."""

    rules: list[RuleInfo]


class Keeper(Protocol):
    """Who keeps the rules; see `deployments/ledger.py`."""

    async def rules(self) -> tuple[StoredRule, ...]: ...

    async def add_rule(self, text: str) -> StoredRule: ...

    async def remove_rule(self, text: str) -> None: ...


def rule_routes(keeper: Keeper | None, changed: Callable[[], Awaitable[None]]) -> APIRouter:
    """The routes; without a keeper they are refused. `changed` is told of a change here: this gateway then follows it
    at once, the others do within a second or two."""
    router = APIRouter(prefix="/v1/rules", tags=["Rules"], route_class=StrictRoute)

    def kept() -> Keeper:
        if keeper is None:
            raise StoreUnavailable("this gateway keeps no rules.", hint="The journal is switched off in the settings.")
        return keeper

    async def followed() -> None:
        with suppress(FenixError):  # it is durable all the same, and followed as soon as the ledger answers again
            await changed()

    @router.get("", responses=may_answer(400, 500, 503))
    async def rules() -> RuleList:
        """The rules that are in force."""
        return RuleList(rules=[RuleInfo.of(one) for one in await kept().rules()])

    @router.post("", responses=_CHANGING)
    async def add(body: RuleBody) -> RuleInfo:
        """Adds a rule; it is durable when this answers. One that is there already stays as it is."""
        added = await kept().add_rule(body.rule)
        await followed()
        return RuleInfo.of(added)

    @router.delete("", responses=_CHANGING)
    async def remove(
        rule: Annotated[str, Query(description="In its own words.", max_length=MOST_CHARS, examples=[_EXAMPLE])],
    ) -> RuleList:
        """Takes a rule back; answers with those that are left."""
        await kept().remove_rule(rule)
        await followed()
        return await rules()

    return router
