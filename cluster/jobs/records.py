"""The nouns of jobs and schedules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

from planner.errors import BadRequest

JobState = Literal["waiting", "running", "succeeded", "failed", "stopped"]
Missed = Literal["skip", "latest", "all"]

MOST_WORDS = 200  # of a command
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, slots=True)
class Job:
    """A command line that runs once. Of the jobs of one `lane` one runs at a time; without a lane it is its own.

    `attempts` counts its starts: it is started again where its process was lost, not where it failed. Times are since
    1970. `said` is why it ended as it did. Raises BadRequest for an id or a command that cannot be.
    """

    id: str
    command: tuple[str, ...]
    lane: str = ""
    by: str = "operator"
    submitted_s: float = 0.0
    state: JobState = "waiting"
    attempts: int = 0
    started_s: float | None = None
    ended_s: float | None = None
    said: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id):
            raise BadRequest(
                f"{self.id[:140]!r} is no id of a job.",
                hint="It has up to 128 letters, digits, dots, dashes and underscores; a letter or digit is the first.",
            )
        _check_command(self.command)

    @property
    def is_over(self) -> bool:
        return self.state in ("succeeded", "failed", "stopped")


@dataclass(frozen=True, slots=True)
class Schedule:
    """Makes a job of `command` at each tick of `cron`: minute, hour, day of month, month, day of week, in `timezone`.

    Ticks after `since_s` (since 1970) are still to come. `missed` says what becomes of those that passed while nobody
    looked: none is caught up with, one run stands for all of them, or each gets its own.
    Raises BadRequest for what is none of these.
    """

    name: str
    cron: str
    command: tuple[str, ...]
    lane: str = ""
    timezone: str = "UTC"
    missed: Missed = "latest"
    paused: bool = False
    since_s: float = 0.0
    by: str = "operator"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise BadRequest(
                f"{self.name[:80]!r} is no name of a schedule.",
                hint="It has up to 64 small letters, digits, dots, dashes and underscores.",
            )
        if self.missed not in ("skip", "latest", "all"):
            raise BadRequest(f"{self.missed!r} says not what is missed.", hint="Choose skip, latest or all.")
        _check_command(self.command)
        zone_of(self.timezone)
        try:
            CronSim(self.cron, datetime(2026, 1, 1, tzinfo=UTC))
        except CronSimError as error:
            raise BadRequest(
                f"{self.cron[:80]!r} is no cron expression: {str(error).lower()}.",
                hint="It has five fields: minute, hour, day of month, month, day of week; 0 3 * * * is daily at three.",
            ) from None

    def job_at(self, tick_s: float, now_s: float) -> Job:
        """The job of a tick; its id is the same whenever it is made."""
        at = datetime.fromtimestamp(tick_s, UTC)
        return Job(f"{self.name}-{at:%Y%m%dT%H%MZ}", self.command, self.lane or self.name, "schedule", now_s)


def zone_of(name: str) -> ZoneInfo:
    """A time zone by its IANA name. Raises BadRequest."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise BadRequest(
            f"there is no time zone {name[:60]!r}.", hint="Write it as in Europe/Vienna, or leave it out for UTC."
        ) from None


def _check_command(command: tuple[str, ...]) -> None:
    if not command or not command[0]:
        raise BadRequest("there is no command to run.", hint="Write it after --.")
    if len(command) > MOST_WORDS or any("\0" in word or len(word) > 4_096 for word in command):
        raise BadRequest(f"a command has at most {MOST_WORDS} words of up to 4,096 characters.")
