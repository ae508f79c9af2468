"""Rules, for the clients: what users are to be served by, or not."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

_PATH = "/v1/rules"


class RuleMethods:
    """What `Client` says about rules, each a line such as `pin reader@2 for ann` (see `planner/choice/rules.py`)."""

    @abstractmethod
    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    @abstractmethod
    def _drop(self, path: str) -> dict[str, Any]:
        """Has something taken away."""

    def rules(self) -> list[dict[str, Any]]:
        """The rules that are in force, the oldest first: `rule` and `added_s`, since 1970."""
        found: list[dict[str, Any]] = self._call(_PATH)["rules"]
        return found

    def add_rule(self, rule: str) -> dict[str, Any]:
        """Adds a rule; it is durable when this returns, and in force at every gateway within two seconds. Raises
        BadRequest, which says what is wrong with it."""
        return self._call(_PATH, {"rule": rule})

    def remove_rule(self, rule: str) -> list[dict[str, Any]]:
        """Takes a rule back; returns those that are left. Raises NotFound."""
        found: list[dict[str, Any]] = self._drop(_of(rule))["rules"]
        return found


class AsyncRuleMethods:
    """What `AsyncClient` says about rules; see `RuleMethods`."""

    @abstractmethod
    async def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    @abstractmethod
    async def _drop(self, path: str) -> dict[str, Any]:
        """Has something taken away."""

    async def rules(self) -> list[dict[str, Any]]:
        """See `Client.rules`."""
        found: list[dict[str, Any]] = (await self._call(_PATH))["rules"]
        return found

    async def add_rule(self, rule: str) -> dict[str, Any]:
        """See `Client.add_rule`."""
        return await self._call(_PATH, {"rule": rule})

    async def remove_rule(self, rule: str) -> list[dict[str, Any]]:
        """See `Client.remove_rule`."""
        found: list[dict[str, Any]] = (await self._drop(_of(rule)))["rules"]
        return found


def _of(rule: str) -> str:
    return f"{_PATH}?rule={quote(rule, safe='')}"
