"""Die with the parent process, and ignore the stop signals meant for it."""

from __future__ import annotations

import ctypes
import os
import signal
from types import FrameType

_PR_SET_PDEATHSIG = 1


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, or more exactly the thread that created it; prctl(2).

    Exits at once if the parent, the process with this ID, has already ended. Its ID may be 1, in a container.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def ignore_stop_signals() -> None:
    """Ignore stop signals, because a terminal and systemd signal every process of the group; the main process stops.

    This installs a handler that does nothing: SIG_IGN would be inherited by programs that workflows start.
    """
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, _do_nothing)


def _do_nothing(number: int, frame: FrameType | None) -> None:
    """Do nothing."""
