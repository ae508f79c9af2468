"""Rollouts, for the clients: which version serves whom, and how that is changed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from planner.errors import BadRequest

_PATH = "/v1/rollouts"


class RolloutMethods:
    """What `Client` says about rollouts. An extension is named without its version, but where one is started."""

    @abstractmethod
    def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    def rollouts(self) -> list[dict[str, Any]]:
        """The last rollout of every extension that had one."""
        found: list[dict[str, Any]] = self._call(_PATH)["rollouts"]
        return found

    def rollout(self, extension: str) -> dict[str, Any]:
        """The last rollout of an extension in full, with its evidence, its history and those before it. Raises
        NotFound."""
        return self._call(_path(extension))

    def start_rollout(
        self, extension: str, version: str = "", *, plan: Mapping[str, Any] | None = None, champion: str = ""
    ) -> dict[str, Any]:
        """Begins to try a deployed version, `name@version` or apart, against the one that serves. `plan` says how, as
        `planner.rollout.records.RolloutPlan` has it; what it leaves out is as by default. Raises NotFound, Conflict
        where a rollout runs, and BadCard for a plan that is none."""
        return self._call(_PATH, _start(extension, version, plan, champion))

    def promote(self, extension: str, version: str = "", *, reason: str = "") -> dict[str, Any]:
        """Lets the challenger serve all requests at once; or, where none is tried, any deployed `version`."""
        return self._call(_path(extension, "promote"), {"version": version, "reason": reason})

    def roll_back(self, extension: str, to: str = "", *, reason: str = "") -> dict[str, Any]:
        """Lets the champion, or the former version `to`, serve all requests at once. When this returns every gateway
        does, unless `followed` is false."""
        return self._call(_path(extension, "rollback"), {"to": to, "reason": reason})

    def pause_rollout(self, extension: str) -> dict[str, Any]:
        """Keeps the share where it is; what does harm is rolled back all the same."""
        return self._call(_path(extension, "pause"), {})

    def resume_rollout(self, extension: str) -> dict[str, Any]:
        """Lets a paused rollout go on."""
        return self._call(_path(extension, "resume"), {})

    def abort_rollout(self, extension: str) -> dict[str, Any]:
        """Ends a rollout without a judgement; the champion serves."""
        return self._call(_path(extension, "abort"), {})


class AsyncRolloutMethods:
    """What `AsyncClient` says about rollouts; see `RolloutMethods`."""

    @abstractmethod
    async def _call(self, path: str, body: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """Asks, or tells."""

    async def rollouts(self) -> list[dict[str, Any]]:
        """See `Client.rollouts`."""
        found: list[dict[str, Any]] = (await self._call(_PATH))["rollouts"]
        return found

    async def rollout(self, extension: str) -> dict[str, Any]:
        """See `Client.rollout`."""
        return await self._call(_path(extension))

    async def start_rollout(
        self, extension: str, version: str = "", *, plan: Mapping[str, Any] | None = None, champion: str = ""
    ) -> dict[str, Any]:
        """See `Client.start_rollout`."""
        return await self._call(_PATH, _start(extension, version, plan, champion))

    async def promote(self, extension: str, version: str = "", *, reason: str = "") -> dict[str, Any]:
        """See `Client.promote`."""
        return await self._call(_path(extension, "promote"), {"version": version, "reason": reason})

    async def roll_back(self, extension: str, to: str = "", *, reason: str = "") -> dict[str, Any]:
        """See `Client.roll_back`."""
        return await self._call(_path(extension, "rollback"), {"to": to, "reason": reason})

    async def pause_rollout(self, extension: str) -> dict[str, Any]:
        """See `Client.pause_rollout`."""
        return await self._call(_path(extension, "pause"), {})

    async def resume_rollout(self, extension: str) -> dict[str, Any]:
        """See `Client.resume_rollout`."""
        return await self._call(_path(extension, "resume"), {})

    async def abort_rollout(self, extension: str) -> dict[str, Any]:
        """See `Client.abort_rollout`."""
        return await self._call(_path(extension, "abort"), {})


def split_version(extension: str, version: str) -> tuple[str, str]:
    """Name and version of `name@version`, or of both apart. Raises BadRequest where there is no version, or two."""
    name, _, named = extension.partition("@")
    if not name or bool(named) == bool(version):
        raise BadRequest(
            f"{extension!r} {'names two versions' if named else 'names no version'}.", hint="Write it like digits@2."
        )
    return name, named or version


def _start(extension: str, version: str, plan: Mapping[str, Any] | None, champion: str) -> dict[str, Any]:
    name, number = split_version(extension, version)
    return {"extension": name, "version": number, "plan": None if plan is None else dict(plan), "champion": champion}


def _path(extension: str, verb: str = "") -> str:
    if not extension or "@" in extension:
        raise BadRequest(f"{extension!r} is not the name of an extension.", hint="Leave the version out.")
    return f"{_PATH}/{quote(extension, safe='')}" + (f"/{verb}" if verb else "")
