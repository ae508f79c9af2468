"""Jobs and the schedule: work that runs beside serving, at times or when asked, once and not twice.

A job is a command line with an id; submitting an id again changes nothing. A schedule makes jobs by a cron expression,
one for each tick, with ids that name the tick. Both are in the database before anybody is told, and a detached actor
carries them out: as Ray jobs where Ray's dashboard (and with it the jobs API) is on, else as processes of its own.

records.py    the nouns: Job, Schedule
due.py        which ticks of a schedule are to be run now
store.py      where both lie: contract, in memory, SQL
launchers.py  who runs a command: processes of our own, or Ray's jobs API
run.py        what such a process does first
keeper.py     makes jobs of ticks, starts them lane by lane, looks after them
actor.py      the keeper as a detached Ray actor, and how others call it
"""
