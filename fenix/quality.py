"""How well versions and plans do, for the clients: figures with their intervals, and who does poorly."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from planner.errors import BadRequest

USUAL_WINDOW = "1d"


class QualityMethods:
    """What `Client` says about quality. A `window` is 15m, 1h, 6h, 1d, 7d, 30d or all; a `segment` is a user, "" for
    requests without one, None for all."""

    @abstractmethod
    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    def extension_quality(self, id: str, *, window: str = USUAL_WINDOW, segment: str | None = None) -> dict[str, Any]:
        """How well an extension version does: `quality`, with 95 % intervals, and `findings` in sentences."""
        return self._call(_path("extensions", id, window, segment))

    def goal_quality(self, name: str, *, window: str = USUAL_WINDOW, segment: str | None = None) -> dict[str, Any]:
        """How well the plans of a goal do: `plans`, each with its `quality`, and `findings`."""
        return self._call(_path("goals", name, window, segment))

    def findings(self, *, window: str = USUAL_WINDOW) -> list[dict[str, Any]]:
        """Who does poorly, against what, and why, the surest first."""
        found: list[dict[str, Any]] = self._call(f"/v1/quality?{urlencode({'window': window})}")["findings"]
        return found


class AsyncQualityMethods:
    """What `AsyncClient` says about quality; see `QualityMethods`."""

    @abstractmethod
    async def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    async def extension_quality(
        self, id: str, *, window: str = USUAL_WINDOW, segment: str | None = None
    ) -> dict[str, Any]:
        """See `Client.extension_quality`."""
        return await self._call(_path("extensions", id, window, segment))

    async def goal_quality(
        self, name: str, *, window: str = USUAL_WINDOW, segment: str | None = None
    ) -> dict[str, Any]:
        """See `Client.goal_quality`."""
        return await self._call(_path("goals", name, window, segment))

    async def findings(self, *, window: str = USUAL_WINDOW) -> list[dict[str, Any]]:
        """See `Client.findings`."""
        found: list[dict[str, Any]] = (await self._call(f"/v1/quality?{urlencode({'window': window})}"))["findings"]
        return found


def _path(what: str, name: str, window: str, segment: str | None) -> str:
    if not name:
        raise BadRequest("the name is empty.", hint=f"`fenix get {what}` lists what there is.")
    asked = {"window": window} if segment is None else {"window": window, "segment": segment}
    return f"/v1/{what}/{quote(name, safe='@')}/quality?{urlencode(asked)}"
