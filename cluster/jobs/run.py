"""What a job's process does first: it ends with whoever started it, steps behind serving, and becomes the command.

python -m cluster.jobs.run PARENT_PID COMMAND...
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

NICENESS = 10
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> None:
    """Does not return, unless the parent is gone already."""
    parent, command = int(arguments[0]), arguments[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        raise SystemExit("whoever started this is gone")
    os.nice(NICENESS)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        raise SystemExit(f"{command[0]} cannot be run: {error.strerror}") from None


if __name__ == "__main__":
    main(sys.argv[1:])
