"""Which ticks of a schedule are to be run now."""

from __future__ import annotations

from datetime import UTC, datetime

from cronsim import CronSim, CronSimError

from cluster.jobs.records import Schedule, zone_of

PUNCTUAL_S = 60.0  # a tick that nobody looked at for longer was missed
MOST_CAUGHT_UP = 100
_FAR_S = 366 * 86_400.0


def next_tick_s(schedule: Schedule, after_s: float) -> float | None:
    """The first tick after that time, in seconds since 1970; None where there is none in the next fifty years."""
    try:
        found: datetime = next(_ticks(schedule, after_s))
    except (CronSimError, StopIteration):
        return None
    return found.timestamp()


def due(schedule: Schedule, now_s: float) -> tuple[float, ...]:
    """The ticks to be run now, in order, in seconds since 1970: those after `since_s` up to now, as `missed` has it.
    Those of over a year ago are past; when all are caught up with, they are the latest `MOST_CAUGHT_UP`."""
    if schedule.paused:
        return ()
    found: list[float] = []
    ticks = _ticks(schedule, max(schedule.since_s, now_s - _FAR_S))
    try:
        while (at_s := next(ticks).timestamp()) <= now_s:
            found.append(at_s)
            del found[:-MOST_CAUGHT_UP]
    except (CronSimError, StopIteration):
        pass
    if schedule.missed == "skip":
        return tuple(at_s for at_s in found if at_s >= now_s - PUNCTUAL_S)
    return tuple(found[-1:] if schedule.missed == "latest" else found)


def _ticks(schedule: Schedule, after_s: float) -> CronSim:
    after = datetime.fromtimestamp(after_s, UTC).astimezone(zone_of(schedule.timezone))
    return CronSim(schedule.cron, after)
